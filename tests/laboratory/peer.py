"""Is a LoRA of ours as good as one of diffusers' own training script, and what do our defaults add?"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from library.config import Config
from tests.laboratory.character import QUESTIONS, SHOWN, make_set, measure
from tests.laboratory.diffusers_script import train_as_diffusers
from tests.laboratory.experiment import Claim, Comparison, Training

STEPS, RANK = 600, 32
WEIGHTS = dict(min_snr_gamma=Config.min_snr_gamma, prior_loss_weight=Config.prior_loss_weight)  # the block's
USUAL = 5e-4  # for a model this narrow: 1e-4 times 320 / 64, by the widths of the first level


def theirs(rate: float) -> Training:
    return Training(make_set, dict(network_dim=RANK, max_train_steps=STEPS, learning_rate=rate), train_as_diffusers)


def ours(rate: float, with_regularization: bool = True, **options: Any) -> Training:
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
