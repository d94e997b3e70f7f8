"""Which training pictures do not go with their captions: measured once, at the end of a run.

A picture of something else, or with another picture's caption, is learnt as willingly as the others, so its loss says
little. What tells it is how much its caption helps: the loss with the caption beside that with an empty one, on the
same noise, of the trained and of the unchanged model (docs/log.md: which number was tried how). The mean over both and
over the timesteps of log(loss with / loss without) is what pictures are ranked by.
"""

import dataclasses
import math
from statistics import fmean, median
from typing import Any, NamedTuple

from library.assembly.build import Training
from library.assembly.prepare import Prepared
from library.assembly.validating import _shower, in_batches, seed_of
from library.contracts import Sample
from library.messages import say

TIME_SHARE = 0.03  # of the run's that may be spent
LEAST = 4  # pictures among which one can stand out
TIMESTEPS = (2, 8)  # of each picture, at least and at most; with 3 it works, with 8 it is sure (docs/log.md)
ODD = 1.5  # deviations from the others beyond which a picture is worth a look
CONDITIONS = 4  # forward passes for each: (trained, unchanged) x (caption, empty caption)


def tell_pictures(prepared: Prepared, training: Training, report: Any) -> None:
    """Measure all pictures of the subject, or as many as there is time for, and write them down as "pictures"."""
    import torch

    from library import validation

    config = prepared.config
    unique = {sample.image_path: sample for sample in own_pictures(prepared)}
    count, times = extent(len(unique), samples_trained(prepared))
    if count < LEAST:
        return
    every = list(unique.values())
    samples = [every[at] for at in validation.sample_of(len(every), count, seed_of(prepared))]
    timesteps = validation.timesteps(config.min_timestep, config.max_timestep, times)
    if hasattr(training.step, "clear"):
        training.step.clear()  # the pictures are shown in other batches than those that CUDA graphs have recorded
    try:
        rows = _measured(prepared, training, samples, timesteps)
    except torch.OutOfMemoryError:
        report.say(say("the training pictures are not ranked: not enough memory", "显存不足，未对训练图片排序"))
        return
    names = [f"{sample.folder}/{sample.image_path.name}" for sample in samples]
    report.event("pictures", step=report.step, timesteps=timesteps, pictures=names, rows=rows, of=len(unique))


def own_pictures(prepared: Prepared) -> list[Sample]:
    """The pictures of the subject: those that are learnt, and those that were held out of them."""
    found = prepared.plan.found
    return found.train + ([] if prepared.config.validation_data_dir else found.validation)


def extent(pictures: int, samples: float) -> tuple[int, int]:
    """How many pictures are measured, and at how many timesteps each, for their share of the run's time.

    Args:
        pictures: that there are.
        samples: that the run has trained.
    """
    from library.validation import PASSES_OF_A_SAMPLE

    least, most = TIMESTEPS
    passes = TIME_SHARE * PASSES_OF_A_SAMPLE * samples / CONDITIONS
    times = min(most, max(least, int(passes / pictures)))
    return min(pictures, max(1, int(passes / times))), times


def samples_trained(prepared: Prepared) -> float:
    from library.data.plan import batches_of_step

    return prepared.plan.batch_size * batches_of_step(prepared.config) * prepared.plan.step_count


def _measured(prepared: Prepared, training: Training, samples: list[Sample], timesteps: list[int]) -> dict[str, list]:
    """Losses of each picture (outer) at each timestep (inner) under each condition."""
    from library import losses, validation
    from library.data import held_out

    seed, texts = seed_of(prepared), training.dataset.texts  # an empty caption need not be in the cache
    samples = held_out.fixed(samples, prepared.config)
    bare = [dataclasses.replace(sample, caption="") for sample in samples]
    batches = in_batches(prepared, training, samples)
    encoders = {name: module for name, module in training.family.modules().items() if name.startswith("text_encoder")}
    places = {name: next(module.parameters()).device for name, module in encoders.items()}
    for module in encoders.values():  # where captions are cached they wait elsewhere
        module.to(prepared.machine.device)
    strength = training.adapters.multiplier
    training.adapters.eval()

    def plain_loss(prediction: Any, target: Any, mask: Any) -> Any:
        return losses.per_sample(prediction, target, mask=mask)

    found = {}
    try:
        with training.averaged():
            for model, multiplier in (("trained", strength), ("unchanged", 0.0)):
                training.adapters.multiplier = multiplier
                for words in ("with", "without"):
                    shown, training.dataset.texts = (samples, texts) if words == "with" else (bare, None)
                    show = _shower(prepared, training, shown)
                    rows = validation.losses(batches, show, training.process.corrupt, plain_loss, timesteps, seed)
                    found[f"{model}, {words} caption"] = [rows[place].tolist() for place in range(len(samples))]
    finally:
        training.dataset.texts = texts
        training.adapters.multiplier = strength
        training.adapters.train()
        for name, module in encoders.items():
            module.to(places[name])
    return found


class Ranked(NamedTuple):
    """A training picture and how it goes with its caption."""

    picture: str  # "10_mytag/003.png"
    help: float  # by how much its caption lowers the loss, as a share; negative: it raises it
    is_odd: bool  # worth a look
    loss: float  # of the trained model, with its caption


def ranked(event: dict[str, Any]) -> list[Ranked]:
    """The pictures of an event "pictures", the odd ones first.

    A picture is odd whose logarithm lies above the median by more than ODD deviations, as the median of the distances
    from it tells a deviation: single pictures that are far off do not change that.
    """
    rows = event["rows"]

    def of_model(model: str, at: int) -> list[float]:
        pairs = zip(rows[f"{model}, with caption"][at], rows[f"{model}, without caption"][at], strict=True)
        return [math.log(ours / bare) for ours, bare in pairs if ours > 0 and bare > 0]

    logs = [
        fmean([*of_model("trained", at), *of_model("unchanged", at)] or [0.0]) for at in range(len(event["pictures"]))
    ]
    usual = median(logs)
    bound = usual + ODD * 1.4826 * median(abs(log - usual) for log in logs)
    found = [
        Ranked(name, 1 - math.exp(log), log > bound, fmean(rows["trained, with caption"][at]))
        for at, (name, log) in enumerate(zip(event["pictures"], logs, strict=True))
    ]
    return sorted(found, key=lambda one: (one.help, one.picture))
