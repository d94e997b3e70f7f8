"""What all claims of the laboratory share: training, drawing, statistics, and results that survive an interruption.

A claim is a sentence of the user's text, tried against its opposite. Its file `tests/laboratory/<name>.py` ends with

    CLAIM = Claim(
        title=..., sentence=..., method=...,
        trainings={"tag kept": Training(make_set), "tag deleted": Training(make_other_set, dict(unet_lr=1e-3))},
        questions={"trigger": ["mytag, blue background", ...], ...},   # all are drawn with every condition
        measure=measure,                                       # {question: images} -> {name: number}
        comparisons=[Comparison("what is expected, in words", ("tag kept", "red hair"), "less",
                                ("tag deleted", "red hair"), margin=0.1)],
        shown=[("trigger", 0), ("trigger", 1)],                # columns of the image of the claim
    )

and its name stands in `tests.laboratory.CLAIMS`. `make_set(folder, rng)` writes `folder/train/<repeats>_<concept>`
and, where there shall be regularization images, `folder/reg/<repeats>_<concept>`; `rng` is the seed's, so that a seed
means other images, another order and other noise, the same in all trainings of that seed: differences are paired.
Without `conditions` each training is one, at strength 1, and "base model" is another; with them, a condition is any
LoRAs at any strengths, also files saved after an epoch: `(Lora("a", 0.6), Lora("b", 0.5, "it-000002.safetensors"))`. A
training that is not ours gives its own `train` (see `Training`). A claim about what else a run leaves has `read` in
place of `measure`, and nothing is drawn.

All runs on the CPU with one thread. What was trained is kept with a stamp of its set and options, what was measured
with a stamp of the claim's files: a laboratory that was interrupted goes on, a claim that was edited is measured again.
Only a change of the trainer itself is not noticed: begin with an empty folder then.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import train_network
from library import families
from library.contracts import Family
from library.diffusion import sampling
from library.lora_files import merging
from library.lora_files.factors import canonical
from library.miniature import MODEL_FOLDER
from library.options import checks
from library.options.training import Config
from library.tooling import lora_files

BASE = "base model"  # the condition without a LoRA
LORA = "it.safetensors"  # what a training leaves
OPTIONS = dict(
    pretrained_model_name_or_path=str(MODEL_FOLDER), network_dim=16, network_alpha=16.0, train_batch_size=4,
    max_train_steps=150, validation_split=0.0, sample_every_n_epochs=0, save_every_n_epochs=None, device="cpu",
    cache_latents_to_disk=False, tag_occurrence_txt_file=False, resume="new", language="en", min_snr_gamma=None,
    prior_loss_weight=1.0,
)  # fmt: skip
BLOCK_WEIGHTS = dict(  # of the loss, as the parameter block has them; OPTIONS has sd-scripts'
    min_snr_gamma=Config.min_snr_gamma, prior_loss_weight=Config.prior_loss_weight
)
STUDENT = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # 97.5 % quantiles, 1 to 9 degrees of freedom
MOST_SEEDS = len(STUDENT) + 1
GUIDANCE_SCALE, SAMPLING_STEPS = 4.0, 20

Images = list[np.ndarray]  # each (H, W, 3) uint8


# ---- A claim ---------------------------------------------------------------------------------------------------------


def train(folder: Path, values: dict[str, Any]) -> None:
    """Train as the user would, in this process. Leaves `LORA`, and in said.txt what the run says, in `folder`."""
    config, warnings = checks.check(values | dict(output_dir=str(folder), output_name=Path(LORA).stem), {})
    with open(folder / "said.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        code = train_network.run(config, warnings)
    assert code == 0, f"{folder}: the run ended with {code}"


@dataclass(frozen=True)
class Training:
    """A LoRA, and how it comes about."""

    make_set: Callable[[Path, random.Random], None]
    options: Mapping[str, Any] = field(default_factory=dict)  # beside OPTIONS
    train: Callable[[Path, dict[str, Any]], None] = train  # (folder, all options) -> a file LORA in the folder


class Lora(NamedTuple):
    """A training's file and how strongly it acts."""

    training: str
    strength: float = 1.0
    file: str = LORA


class Comparison(NamedTuple):
    """What a claim expects: a measure is more, less or the same in one condition as in another."""

    words: str  # that expectation, as a sentence
    first: tuple[str, str]  # condition, measure
    expected: str  # "more", "less" or "same"
    second: tuple[str, str]
    margin: float = 0.1  # a difference below is of no account; "same" means that it is certainly below


@dataclass(frozen=True)
class Claim:
    """A sentence of the user's text, and how it is tried."""

    title: str
    sentence: str  # of the user's text
    method: str  # what is done, for the reader of the results; a paragraph or two of Markdown
    trainings: Mapping[str, Training]
    questions: Mapping[str, Sequence[str]]  # name -> prompts
    measure: Callable[[Mapping[str, Images]], dict[str, float]] | None  # of what was drawn; None: see `read`
    comparisons: Sequence[Comparison]
    shown: Sequence[tuple[str, int]]  # question and place of its prompt
    conditions: Mapping[str, tuple[Lora, ...]] | None = None  # None: the base model, and each training at strength 1
    size: tuple[int, int] = (64, 64)  # width and height of what is drawn
    sampling_steps: int | None = None  # None: SAMPLING_STEPS; fewer where many images are drawn
    limits: str = ""  # what the miniature cannot tell
    derived: Mapping[str, Callable[[Mapping[str, Mapping[str, float]]], Mapping[str, float]]] = field(
        default_factory=dict
    )  # further conditions, made of the results of those that were drawn
    read: Callable[[Path], dict[str, float]] | None = None  # measures what a training left in its folder instead
    note: Callable[[list[Mapping[str, Mapping[str, float]]]], str] | None = None  # said of all seeds' results
    seeds: range = range(1, 6)  # at most MOST_SEEDS

    def all_conditions(self) -> dict[str, tuple[Lora, ...]]:
        if self.conditions is not None:
            return dict(self.conditions)
        return ({} if self.read else {BASE: ()}) | {name: (Lora(name),) for name in self.trainings}


# ---- Statistics ------------------------------------------------------------------------------------------------------


class Effect(NamedTuple):
    """A mean of paired differences over seeds."""

    difference: float
    half_width: float  # of its 95 % interval, by Student's t
    size: float  # Cohen's d of paired differences: their mean / their standard deviation

    def __str__(self) -> str:
        size = "inf" if math.isinf(self.size) else f"{self.size:+.1f}"
        return f"{self.difference:+.3f} ± {self.half_width:.3f} (d {size})"


def effect(first: Sequence[float], second: Sequence[float]) -> Effect:
    """First minus second, seed by seed. At least two seeds, at most MOST_SEEDS."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    middle, spread = mean(differences), stdev(differences)
    half_width = STUDENT[len(differences) - 2] * spread / math.sqrt(len(differences))
    return Effect(middle, half_width, middle / spread if spread else math.copysign(math.inf, middle) if middle else 0.0)


def verdict(found: Effect, expected: str, margin: float) -> str:
    """ "confirmed", "contradicted" or "not shown".

    "more" and "less" are confirmed by a mean beyond the margin and an interval without 0; contradicted by the same on
    the other side, or by an interval that lies within the margin: there is certainly no such difference. "same" is
    confirmed by an interval within the margin and contradicted by a mean beyond it with an interval without 0.
    """
    low, high = found.difference - found.half_width, found.difference + found.half_width
    is_same = -margin < low and high < margin
    is_more, is_less = low > 0 and found.difference > margin, high < 0 and found.difference < -margin
    confirmed = {"more": is_more, "less": is_less, "same": is_same}[expected]
    contradicted = {"more": is_less or is_same, "less": is_more or is_same, "same": is_more or is_less}[expected]
    return "confirmed" if confirmed else "contradicted" if contradicted else "not shown"


# ---- One seed of a claim ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def base_model() -> Family:
    return families.open_model(MODEL_FOLDER, dtype=torch.float32)


@torch.no_grad()
def drawn(
    prompts: Sequence[str], seed: int, loras: Sequence[tuple[Path, float]] = (), size=(64, 64), steps=None
) -> Images:
    """An image of each prompt, all in one batch; the same seed begins with the same noise whatever the LoRAs.

    Args:
        loras: files and strengths; none: the base model's own images.
        size: width and height in pixels.
        steps: of the sampler; None: SAMPLING_STEPS.
    """
    family = base_model()
    sampler = sampling.build_sampler("ddim", family.noise, steps or SAMPLING_STEPS)
    width, height = size
    shape = (len(prompts), 4, height // 8, width // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    layers = family.layers()
    with merging.Merging(layers) as weights:
        weights.apply(
            merging.Strength(canonical(lora_files.read_lora(path).factors, layers)[0], strength, strength)
            for path, strength in loras
        )
        sizes = family.size_conditioning(torch.zeros(len(prompts), 6))
        positive, negative = (family.encode_captions(texts) | sizes for texts in (list(prompts), [""] * len(prompts)))
        predict = sampling.guided(family, positive, negative, GUIDANCE_SCALE)
        for t in sampler.timesteps:
            latents = sampler.step(predict(latents, t.repeat(len(prompts))), t, latents).prev_sample
        return [np.asarray(sampling.to_image(pixels)) for pixels in family.decode_latents(latents)]


def claim_of(name: str) -> Claim:
    """The claim in the file of that name."""
    return import_module(f"tests.laboratory.{name}").CLAIM


def run_seed(name: str, seed: int, folder: Path, overriding: Mapping[str, Any] | None = None) -> dict:
    """Train what is not trained yet and measure what is not measured yet: condition -> measure -> number.

    Args:
        name: of the claim; its results lie in `folder/name/seed`.
        overriding: options that go before the claim's own, for a quick try.
    """
    torch.set_num_threads(1)
    claim = claim_of(name)
    place = folder / name / f"seed {seed}"
    files: dict[str, Path] = {}
    stamps: dict[str, str] = {}
    for training_name, training in claim.trainings.items():
        files[training_name] = place / training_name
        stamps[training_name] = _trained(training, seed, place / training_name, overriding or {})
    found = {}
    for condition, loras in claim.all_conditions().items():
        kept = place / f"{condition}.json"
        stamp = _stamp(_source(claim), *(f"{stamps[lora.training]} {lora}" for lora in loras))
        results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        if results.get("stamp") != stamp:
            if claim.read:
                measures = claim.read(files[loras[0].training])
            else:
                given = [(files[lora.training] / lora.file, lora.strength) for lora in loras]
                measures = claim.measure(_answers(claim, seed, given, place, condition))
            results = dict(stamp=stamp, measures=measures)
            kept.write_text(json.dumps(results), encoding="utf-8")
        found[condition] = results["measures"]
    return found | {condition: derive(found) for condition, derive in claim.derived.items()}


def _answers(
    claim: Claim, seed: int, loras: Sequence[tuple[Path, float]], place: Path, condition: str
) -> dict[str, Images]:
    """What is drawn to each question; strips of it are left in `place`."""
    prompts = [prompt for asked in claim.questions.values() for prompt in asked]
    rest = iter(drawn(prompts, seed, loras, claim.size, claim.sampling_steps))
    images = {question: list(islice(rest, len(asked))) for question, asked in claim.questions.items()}
    place.mkdir(parents=True, exist_ok=True)
    for question, of_question in images.items():
        strip = sampling.grid([[Image.fromarray(image) for image in of_question]], gap=0)
        strip.save(place / f"{condition}, {question}.png")
    return images


def _trained(training: Training, seed: int, folder: Path, overriding: Mapping[str, Any]) -> str:
    """The stamp of what lies in `folder`, trained unless it is there."""
    made = folder.with_name(folder.name + " set")
    shutil.rmtree(made, ignore_errors=True)
    training.make_set(made, random.Random(seed))
    values = OPTIONS | {"train_data_dir": str(made / "train"), "seed": seed}
    values |= {"reg_data_dir": str(made / "reg") if (made / "reg").exists() else None}
    values |= dict(training.options) | dict(overriding)
    contents = [f"{path.relative_to(made)} {path.read_bytes()!r}" for path in sorted(made.rglob("*.*"))]
    program = Path(inspect.getfile(training.train)).read_text(encoding="utf-8") if training.train is not train else ""
    told = json.dumps(values, sort_keys=True).replace(str(made), "")
    stamp = _stamp(told, program, *contents)
    kept = folder / "stamp.txt"
    if not kept.exists() or kept.read_text(encoding="utf-8") != stamp:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        training.train(folder, values)
        kept.write_text(stamp, encoding="utf-8")
    shutil.rmtree(made)
    return stamp


def _source(claim: Claim) -> str:
    """The text of the claim's file, of this one and of the laboratory's eyes."""
    files = [
        Path(inspect.getfile(claim.measure or claim.read)),
        Path(__file__),
        *Path(__file__).parent.glob("eyes*.py"),
    ]
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _stamp(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def shown_images(name: str, claim: Claim, seed: int, folder: Path) -> list[list[Image.Image]]:
    """What `claim.shown` names, as it was drawn: a row for each condition."""
    width, height = claim.size
    rows = []
    for condition in claim.all_conditions():
        row = []
        for question, index in claim.shown:
            strip = Image.open(folder / name / f"seed {seed}" / f"{condition}, {question}.png")
            row.append(strip.crop((index * width, 0, (index + 1) * width, height)))
        rows.append(row)
    return rows
