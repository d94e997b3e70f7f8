"""Which training images do not go with their captions: measured once, at the end of a run.

An image of something else, or with another image's caption, is learnt as willingly as the others, so its loss says
little. What tells it is how much its caption helps: the loss with the caption beside that with an empty one, on the
same noise, of the trained and of the unchanged model. The mean over both and over the timesteps of
log(loss with / loss without) is what images are ranked by (docs/log.md: what else was tried, and how well it does).
"""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

from library.contracts import Sample
from library.files import JsonObject
from library.messages import log, say
from library.training.run import Run, Training
from library.training.validate import in_batches, losses_of, seed_of

if TYPE_CHECKING:
    from library.reporting.run_log import RunLog

TIME_SHARE = 0.03  # of the run's that may be spent
LEAST = 4  # images among which one can stand out
TIMESTEPS = (2, 8)  # of each image, at least and at most
CAPTIONS = ("with", "without")
ODD = 1.5  # deviations from the others beyond which an image is worth a look


def tell_images(run: Run, training: Training, run_log: RunLog) -> None:
    """Measure all images of the subject, or as many as there is time for, and write them down as "images"."""
    from library.data import held_out
    from library.diffusion import validation
    from library.hardware import memory

    config = run.settings
    unique = {sample.image_path: sample for sample in held_out.of_subject(run.plan.samples, config)}
    scope = extent(len(unique), samples_trained(run))
    if scope.images < LEAST:
        return
    every = list(unique.values())
    samples = [every[at] for at in validation.sample_of(len(every), scope.images, seed_of(run))]
    timesteps = validation.timesteps(config.min_timestep, config.max_timestep, scope.timesteps)
    training.step.clear()  # the images are shown in other batches than those that CUDA graphs have recorded
    try:
        rows = _measured(run, training, samples, timesteps, scope.models)
    except RuntimeError as error:
        if not memory.is_full(error):
            raise
        log.info(say("the training images are not ranked: not enough memory", "显存不足，未对训练图片排序"))
        return
    names = [f"{sample.folder}/{sample.image_path.name}" for sample in samples]
    run_log.event("pictures", step=run_log.step, timesteps=timesteps, pictures=names, rows=rows, of=len(unique))


class Extent(NamedTuple):
    """How much is measured."""

    images: int
    timesteps: int  # of each
    models: tuple[str, ...]


def extent(images: int, samples: float) -> Extent:
    """As much as there is time for: the unchanged model alone, fewer timesteps, at last a sample of the images.

    Args:
        images: that there are.
        samples: that the run has trained.
    """
    from library.data.held_out import PASSES_OF_A_SAMPLE

    least, most = TIMESTEPS
    passes = TIME_SHARE * PASSES_OF_A_SAMPLE * samples
    both = ("trained", "unchanged")
    models = both if passes >= images * len(both) * len(CAPTIONS) * least else both[1:]
    each = len(models) * len(CAPTIONS)
    times = min(most, max(least, int(passes / images / each)))
    return Extent(min(images, int(passes / times / each)), times, models)


def samples_trained(run: Run) -> float:
    return run.plan.batch_size * run.plan.batches_per_step * run.plan.step_count


def _measured(
    run: Run, training: Training, samples: list[Sample], timesteps: list[int], models: tuple[str, ...]
) -> dict[str, list[list[float]]]:
    """Losses of each image (outer) at each timestep (inner), of each model, with and without captions."""
    from library.data import held_out

    texts = training.dataset.texts  # an empty caption need not be in the cache
    samples = held_out.fixed(samples, run.settings)
    bare = [dataclasses.replace(sample, caption="") for sample in samples]
    batches = in_batches(run, training, samples)
    encoders = {name: module for name, module in training.family.modules().items() if name.startswith("text_encoder")}
    places = {name: next(module.parameters()).device for name, module in encoders.items()}
    for module in encoders.values():  # where captions are cached they wait elsewhere
        module.to(run.device.torch_device)
    strength = training.adapters.multiplier
    training.adapters.eval()
    rows_of: dict[str, list[list[float]]] = {}
    try:
        with training.averaged():
            for model in models:
                training.adapters.multiplier = strength if model == "trained" else 0.0
                for words in CAPTIONS:
                    own, training.dataset.texts = (samples, texts) if words == "with" else (bare, None)
                    rows = losses_of(run, training, own, batches, timesteps)
                    rows_of[f"{model}, {words} caption"] = [rows[place].tolist() for place in range(len(samples))]
    finally:
        training.dataset.texts = texts
        training.adapters.multiplier = strength
        training.adapters.train()
        for name, module in encoders.items():
            module.to(places[name])
    return rows_of


class Ranked(NamedTuple):
    """A training image and how it goes with its caption."""

    image: str  # "10_mytag/003.png"
    help: float  # by how much its caption lowers the loss, as a share; negative: it raises it
    is_odd: bool  # worth a look


def ranked(event: JsonObject) -> list[Ranked]:
    """The images of an event "pictures", the odd ones first.

    An image is odd whose logarithm lies above the median by more than ODD deviations, as the median of the distances
    from it tells a deviation: single images that are far off do not change that.
    """
    names, rows = event["pictures"], event["rows"]
    logs: list[list[float]] = [[] for _ in names]
    for model in {condition.partition(",")[0] for condition in rows}:
        pairs = zip(rows[f"{model}, with caption"], rows[f"{model}, without caption"], strict=True)
        for own, (ours, bare) in zip(logs, pairs, strict=True):
            own += [math.log(a / b) for a, b in zip(ours, bare, strict=True) if a > 0 and b > 0]
    means = [fmean(own or [0.0]) for own in logs]
    usual = median(means)
    bound = usual + ODD * 1.4826 * median(abs(mean - usual) for mean in means)
    found = [Ranked(name, 1 - math.exp(mean), mean > bound) for name, mean in zip(names, means, strict=True)]
    return sorted(found, key=lambda one: (one.help, one.image))
