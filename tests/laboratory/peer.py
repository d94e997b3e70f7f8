"""Is a LoRA of ours as good as one of diffusers' own training script, and what do our defaults add?"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from tests.laboratory.character import QUESTIONS, SHOWN, make_set, measure
from tests.laboratory.diffusers_script import train_as_diffusers
from tests.laboratory.experiment import BLOCK_WEIGHTS, Claim, Comparison, Training

STEPS, RANK = 600, 32


def theirs(rate: float) -> Training:
    return Training(make_set, dict(network_dim=RANK, max_train_steps=STEPS, learning_rate=rate), train_as_diffusers)


def ours(rate: float | None, with_regularization: bool = True, **options: Any) -> Training:
    """With sd-scripts' weights of the loss, and the block's defaults in all else, beside `options`."""
    given = dict(network_dim=RANK, network_alpha=float(RANK), max_train_steps=STEPS, learning_rate=rate)
    return Training(partial(make_set, with_regularization=with_regularization), given | options)


ITS_SETTINGS = dict(with_regularization=False, network_train_unet_only=True, lr_scheduler="constant")
BESIDES_ATTENTION = [".*_ff_net_.*", ".*_proj_in", ".*_proj_out"]  # layers that we adapt and the script does not
SCRIPT, NEARLY = "diffusers' script", "the script less 0.1"
SENSES = {"concept": "more", "obedience": "more", "prior": "more", "leak": "less"}  # measure -> what is better


def nearly(results: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The script's results, each by 0.1 worse: who is better than these is no worse than the script."""
    return {name: number + (0.1 if SENSES.get(name) == "less" else -0.1) for name, number in results[SCRIPT].items()}


def no_worse(condition: str) -> list[Comparison]:
    words = f"{condition}: {{}} certainly not worse by 0.1"
    return [
        Comparison(words.format(name), (condition, name), sense, (NEARLY, name), margin=0.0)
        for name, sense in SENSES.items()
    ]


CLAIM = Claim(
    title="A LoRA of ours is no worse than one of diffusers' own script",
    sentence="",
    method="""The character is trained at rank 32 for 600 steps of 4 pictures, so that each picture is seen 150 times,
beside regularization pictures 75 times: by diffusers' script; by ours with the script's layers, settings and rate
(attention of the U-Net alone, constant rate, no regularization pictures); by ours with its settings on the layers that
we adapt, which are those of sd-scripts; with the block's defaults but no regularization pictures; with these and
sd-scripts' weights of the loss (no min-SNR, regularization pictures count as much as others); with min-SNR 5; with the
block's weights (min-SNR 5, regularization pictures count 0.3); the last two at the miniature's usual rate, 5e-4, too.

But for these, each has the rate that scored best for it on two other seeds, of 2.5e-4, 5e-4, 1e-3 and 2e-3
(sd-scripts' weights: of 1e-3, 2e-3 and 4e-3; min-SNR 5 has the same); which, stands in `tests/laboratory/peer.py`.
*Certainly not worse by 0.1* compares with the script's result less 0.1 (of leaks: plus 0.1), so the true difference to
the script is by 0.1 less good than the one below. The miniature was itself trained with min-SNR weights, which may
favour them here.""",
    trainings={
        SCRIPT: theirs(5e-4),
        "its layers": ours(5e-4, **ITS_SETTINGS, exclude_patterns=BESIDES_ATTENTION),
        "its settings": ours(1e-3, **ITS_SETTINGS),
        "no regularization": ours(2.5e-4, with_regularization=False, **BLOCK_WEIGHTS),
        "sd-scripts' weights": ours(2e-3),
        "min-SNR 5": ours(2e-3, min_snr_gamma=5.0),
        "defaults": ours(2e-3, **BLOCK_WEIGHTS),
        "min-SNR 5 at the usual rate": ours(None, min_snr_gamma=5.0),
        "defaults at the usual rate": ours(None, **BLOCK_WEIGHTS),
    },
    derived={NEARLY: nearly},
    questions=QUESTIONS,
    measure=measure,
    sampling_steps=10,
    comparisons=[
        *no_worse("its layers"),
        *no_worse("its settings"),
        *no_worse("defaults"),
        *no_worse("defaults at the usual rate"),
        Comparison(
            "the defaults learn more of the concept", ("defaults", "concept"), "more", (SCRIPT, "concept"), margin=0.03
        ),
        Comparison(
            "and keep more of old words", ("defaults", "prior"), "more", (SCRIPT, "prior"), margin=0.03
        ),
        Comparison(
            "regularization pictures keep more of them", ("defaults", "prior"), "more", ("no regularization", "prior"),
            margin=0.03,
        ),
        Comparison(
            "min-SNR learns more of the concept than sd-scripts' weights",
            ("min-SNR 5", "concept"), "more", ("sd-scripts' weights", "concept"), margin=0.03,
        ),
        Comparison(
            "and keeps as much of old words",
            ("min-SNR 5", "prior"), "same", ("sd-scripts' weights", "prior"), margin=0.03,
        ),
        *(
            Comparison(
                f"weight 0.3{at} {words}", (f"defaults{at}", name), sense, (f"min-SNR 5{at}", name), margin
            )
            for at in ("", " at the usual rate")
            for words, name, sense, margin in (
                ("learns more of the concept than weight 1", "concept", "more", 0.03),
                ("keeps as much of old words", "prior", "same", 0.03),
                ("leaks no more", "leak", "same", 0.1),
            )
        ),
    ],
    shown=SHOWN,
    seeds=range(1, 11),
)  # fmt: skip
