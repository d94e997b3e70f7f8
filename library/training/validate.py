"""Validation in the middle of a run: what is measured, with what, and where it is told."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from library.contracts import Sample
from library.messages import say
from library.options.training import Config
from library.training.resolve import validation_scope
from library.training.run import Run, Training


def measured_epochs(config: Config, plan: Any) -> list[int]:
    """The epochs whose end is validated: every n-th, and the last."""
    every, count = config.validate_every_n_epochs or 1, plan.epoch_count
    return sorted({*range(every, count + 1, every), count}) if plan.found.validation else []


def validate(run: Run, training: Training, report: Any, *, epoch: int, step: int, by: str) -> None:
    """Measure the model as it would be saved now, and tell it; nothing where no pictures are held out.

    Args:
        by: "epoch" or "step": which of them was due.
        step: 0: the unchanged model is measured, whatever LoRA the run began with.
    """
    if not run.plan.found.validation:
        return
    report.read()  # of losses that are not finite nothing is measured
    if report.is_validated(step):  # as steps were due, or before the run was interrupted: nothing has changed since
        report.validation(epoch, step, by)
        return
    if not report.validations:
        report.event("held out", step=step, **chosen(run).names())
    began = time.monotonic()
    measured = _with_room(run, training, report, is_unchanged=step == 0)
    if measured and measured.is_finite:
        told = dict(
            ends_epoch=step == sum(run.plan.step_counts[:epoch]),
            seconds=round(time.monotonic() - began, 3),
            **measured.values(),
        )
        report.validation(epoch, step, by, told)
    elif measured:  # of the weights the next step tells
        report.say(say(f"validation after step {step}: NaN or infinity", f"第 {step} 步后的验证：出现 NaN 或无穷大"))


def _with_room(run: Run, training: Training, report: Any, *, is_unchanged: bool) -> Any:
    """What was measured; None where memory is too small."""
    import torch

    for _ in range(2):
        try:
            return measure(run, training, is_unchanged=is_unchanged)
        except torch.OutOfMemoryError:
            training.step.clear()  # CUDA graphs hold memory; the next steps record them anew
    report.say(say("no validation: not enough memory for it", "显存不足，这次没有做验证"))
    return None


class Chosen(NamedTuple):
    """The pictures that are measured, with nothing about them left to chance."""

    held_out: list[Sample]
    beside: list[Sample]  # of the training, one for each
    regularization: list[Sample]

    def names(self) -> dict[str, list[str]]:
        """As run.jsonl has them: "10_mytag/003.png"."""
        told = dict(held_out=self.held_out, training=self.beside, regularization=self.regularization)
        return {kind: [f"{one.folder}/{one.image_path.name}" for one in own] for kind, own in told.items()}


def seed_of(run: Run) -> int:
    """Of the choice of pictures and of their noise."""
    return run.seed if run.settings.validation_seed is None else run.settings.validation_seed


def chosen(run: Run) -> Chosen:
    """Which pictures are measured: the same all through a run."""
    from library.data import held_out
    from library.diffusion import validation

    config, plan, seed = run.settings, run.plan, seed_of(run)
    scope = validation_scope(config, plan)

    def some(samples: list[Sample], count: int) -> list[Sample]:
        return [samples[place] for place in validation.sample_of(len(samples), count, seed)]

    held = some(plan.found.validation, scope.held_out)
    old = some([sample for sample in plan.samples_used if sample.is_regularization], scope.regularization)
    partners = held_out.beside(held, plan.found.train, bucket_in(plan), seed)
    return Chosen(*(held_out.fixed(samples, config) for samples in (held, partners, old)))


def bucket_in(plan: Any) -> Callable[[Sample], tuple]:
    """Gives what pictures of one batch have in common."""
    return lambda sample: (sample.dataset, plan.fit(sample).bucket)


def measure(run: Run, training: Training, *, is_unchanged: bool = False) -> Any:
    """The losses of the held-out pictures, of training pictures beside them and of regularization images.

    Args:
        is_unchanged: of the model without the LoRA.

    Returns:
        A `validation.Measured`.
    """
    from library.diffusion import validation

    config = run.settings
    held, partners, old = chosen(run)
    batches = in_batches(run, training, held)[: config.max_validation_steps]
    training.adapters.eval()
    strength = training.adapters.multiplier
    try:
        with training.averaged():
            if is_unchanged:
                training.adapters.multiplier = 0.0
            times = times_of(run)
            ours = losses_of(run, training, held, batches, times)
            places = [[place for place in own if place in ours] for own in in_batches(run, training, partners)]
            theirs = losses_of(run, training, partners, [own for own in places if own], times)
            olds = losses_of(run, training, old, in_batches(run, training, old), times)
    finally:
        training.adapters.multiplier = strength
        training.adapters.train()
    return validation.Measured.of(times, ours, theirs, olds)


def times_of(run: Run) -> list[int]:
    """The timesteps that are measured."""
    from library.diffusion import validation

    config = run.settings
    return validation.timesteps(config.min_timestep, config.max_timestep, validation_scope(config, run.plan).timesteps)


def in_batches(run: Run, training: Training, samples: list[Sample]) -> list[list[int]]:
    """The places of samples, in batches as large as the training's."""
    from library.diffusion import validation

    sets = run.plan.sets
    sizes = [-(-sets[sample.dataset].batch_size // training.batch_parts) for sample in samples]
    return validation.groups([bucket_in(run.plan)(sample) for sample in samples], sizes, seed_of(run))


def losses_of(
    run: Run, training: Training, samples: list[Sample], batches: list[list[int]], times: list[int]
) -> dict[int, Any]:
    """The losses of samples that are `held_out.fixed`, by their places, at some timesteps; see `validation.losses`."""
    from library.diffusion import losses, validation

    def plain_loss(prediction: Any, target: Any, mask: Any) -> Any:
        return losses.per_sample(prediction, target, mask=mask)

    show = _shower(run, training, samples)
    return validation.losses(batches, show, training.process.corrupt, plain_loss, times, seed_of(run))


def _shower(run: Run, training: Training, samples: list[Sample]) -> Callable[[list[int]], Any]:
    """Gives the batch of some of the samples, by their places."""
    from library.diffusion.validation import Shown

    family, place = training.family, run.machine.place

    def show(places: list[int]) -> Shown:
        batch = training.dataset.batch_of([samples[at] for at in places])
        latents = family.encode_images(batch.pixels) if batch.latents is None else batch.latents
        conditioning = (batch.text_embeddings or family.encode_captions(batch.captions)) | batch.size_conditioning
        conditioning = {name: place(tensor) for name, tensor in conditioning.items()}
        mask = None if batch.masks is None else place(batch.masks)
        return Shown(place(latents), mask, lambda noisy, t: family.predict(noisy, place(t), conditioning))

    return show
