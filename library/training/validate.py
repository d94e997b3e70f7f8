"""Validation in the middle of a run: what is measured, with what, and where it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Literal, NamedTuple

from library.contracts import Sample
from library.messages import log, say
from library.options.training import Config
from library.training.resolve import validation_scope
from library.training.run import Run, Training

if TYPE_CHECKING:
    from torch import Tensor

    from library.data.plan import Plan
    from library.diffusion.validation import Measured, MeasuredBatch
    from library.reporting.run_log import RunLog


def measured_epochs(settings: Config, plan: Plan) -> list[int]:
    """The epochs whose end is validated: every n-th, and the last."""
    every, count = settings.validate_every_n_epochs or 1, plan.epoch_count
    return sorted({*range(every, count + 1, every), count}) if plan.samples.validation else []


def validate(
    run: Run, training: Training, run_log: RunLog, *, epoch: int, step: int, by: Literal["epoch", "step"]
) -> None:
    """Measure the model as it would be saved now, and tell it; nothing where no images are held out.

    Args:
        by: which of them was due.
        step: 0: the unchanged model is measured, whatever LoRA the run began with.
    """
    if not run.plan.samples.validation:
        return
    run_log.read()  # of losses that are not finite nothing is measured
    if run_log.is_validated(step):  # as steps were due, or before the run was interrupted: nothing has changed since
        run_log.validation(epoch, step, by)
        return
    if not run_log.validations:
        run_log.event("held out", step=step, **measured_samples(run).names())
    began = time.monotonic()
    measured = _measure_with_room(run, training, is_unchanged=step == 0)
    if measured is None:
        log.info(say("no validation: not enough memory", "显存不足，这次没有做验证"))
    elif measured.is_finite:
        values = dict(
            ends_epoch=step == sum(run.plan.step_counts[:epoch]),
            seconds=round(time.monotonic() - began, 3),
            **measured.values(),
        )
        run_log.validation(epoch, step, by, values)
    else:  # of the weights the next step tells
        log.info(say(f"validation after step {step}: NaN or infinity", f"第 {step} 步后的验证：出现 NaN 或无穷大"))


def _measure_with_room(run: Run, training: Training, *, is_unchanged: bool) -> Measured | None:
    """None where memory is too small."""
    from library.hardware import memory

    for _ in range(2):
        try:
            return measure(run, training, is_unchanged=is_unchanged)
        except RuntimeError as error:
            if not memory.is_full(error):
                raise
            training.step.clear()  # CUDA graphs hold memory; the next steps record them anew
    return None


class MeasuredSamples(NamedTuple):
    """The images that are measured, with nothing about them left to chance."""

    held_out: list[Sample]
    beside: list[Sample]  # of the training, one for each
    regularization: list[Sample]

    def names(self) -> dict[str, list[str]]:
        """As run.jsonl has them: "10_mytag/003.png"."""
        kinds = dict(held_out=self.held_out, training=self.beside, regularization=self.regularization)
        return {kind: [f"{one.folder}/{one.image_path.name}" for one in own] for kind, own in kinds.items()}


def seed_of(run: Run) -> int:
    """Of the choice of images and of their noise."""
    return run.seed if run.settings.validation_seed is None else run.settings.validation_seed


def measured_samples(run: Run) -> MeasuredSamples:
    """Which images are measured: the same all through a run."""
    from library.data import held_out
    from library.diffusion import validation

    settings, plan, seed = run.settings, run.plan, seed_of(run)
    scope = validation_scope(settings, plan)

    def some(samples: list[Sample], count: int) -> list[Sample]:
        return [samples[place] for place in validation.sample_of(len(samples), count, seed)]

    held = some(plan.samples.validation, scope.held_out)
    regularization = some([one for one in plan.samples_used if one.is_regularization], scope.regularization)
    partners = held_out.beside(held, plan.samples.train, bucket_in(plan), seed)
    return MeasuredSamples(*(held_out.fixed(samples, settings) for samples in (held, partners, regularization)))


def bucket_in(plan: Plan) -> Callable[[Sample], Hashable]:
    """Gives what images of one batch have in common."""
    return lambda sample: (sample.dataset, plan.fit(sample).bucket)


def measure(run: Run, training: Training, *, is_unchanged: bool = False) -> Measured:
    """The losses of the held-out images, of training images beside them and of regularization images.

    Args:
        is_unchanged: of the model without the LoRA.
    """
    from library.diffusion import validation

    settings = run.settings
    held, partners, regularization = measured_samples(run)
    batches = in_batches(run, training, held)[: settings.max_validation_steps]
    timesteps = validation.timesteps(
        settings.min_timestep, settings.max_timestep, validation_scope(settings, run.plan).timesteps
    )
    training.adapters.eval()
    strength = training.adapters.multiplier
    try:
        with training.averaged():
            if is_unchanged:
                training.adapters.multiplier = 0.0
            of_held = losses_of(run, training, held, batches, timesteps)
            partner_batches = [[at for at in own if at in of_held] for own in in_batches(run, training, partners)]
            of_partners = losses_of(run, training, partners, [own for own in partner_batches if own], timesteps)
            batches = in_batches(run, training, regularization)
            of_regularization = losses_of(run, training, regularization, batches, timesteps)
    finally:
        training.adapters.multiplier = strength
        training.adapters.train()
    return validation.Measured.of(timesteps, of_held, of_partners, of_regularization)


def in_batches(run: Run, training: Training, samples: list[Sample]) -> list[list[int]]:
    """The places of samples, in batches as large as the training's."""
    from library.diffusion import validation

    sets, bucket = run.plan.sets, bucket_in(run.plan)
    sizes = [-(-sets[sample.dataset].batch_size // training.batch_parts) for sample in samples]
    return validation.groups([bucket(sample) for sample in samples], sizes, seed_of(run))


def losses_of(
    run: Run, training: Training, samples: list[Sample], batches: list[list[int]], timesteps: list[int]
) -> dict[int, Tensor]:
    """The losses of samples that are `held_out.fixed`, by their places, at some timesteps; see `validation.losses`."""
    from library.diffusion import losses, validation
    from library.diffusion.validation import MeasuredBatch

    family, place = training.family, run.device.place

    def plain_loss(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return losses.per_sample(prediction, target, mask=mask)

    def show(places: list[int]) -> MeasuredBatch:
        batch = training.dataset.batch_of([samples[at] for at in places])
        conditioning = (batch.text_embeddings or family.encode_captions(batch.captions)) | batch.size_conditioning
        conditioning = {name: place(tensor) for name, tensor in conditioning.items()}
        mask = None if batch.masks is None else place(batch.masks)
        latents = place(batch.encoded(family.encode_images))
        return MeasuredBatch(latents, mask, lambda noisy, t: family.predict(noisy, place(t), conditioning))

    return validation.losses(batches, show, training.process.corrupt, plain_loss, timesteps, seed_of(run))
