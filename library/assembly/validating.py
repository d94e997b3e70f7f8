"""Validation in the middle of a run: what is measured, with what, and where it is told."""

from collections.abc import Callable
from typing import Any

from library.assembly.build import Training
from library.assembly.prepare import Prepared
from library.contracts import Sample
from library.messages import say


def validate(prepared: Prepared, training: Training, report: Any, *, epoch: int, step: int, by: str) -> None:
    """Measure the model as it would be saved now, and tell it; nothing where no pictures are held out.

    Args:
        by: "epoch" or "step": which of them was due.
    """
    if not prepared.plan.found.validation:
        return
    report.read()  # of losses that are not finite nothing is measured
    if report.is_validated(step):  # as steps were due, or before the run was interrupted: nothing has changed since
        report.validation(epoch, step, by)
    elif measured := _with_room(prepared, training, report):
        if measured.is_finite:
            report.validation(epoch, step, by, measured.values())
        else:  # of the weights the next step tells
            report.say(
                say(f"validation after step {step}: NaN or infinity", f"第 {step} 步后的验证：出现 NaN 或无穷大")
            )


def _with_room(prepared: Prepared, training: Training, report: Any) -> Any:
    """What was measured; None where memory is too small."""
    import torch

    try:
        return measure(prepared, training)
    except torch.OutOfMemoryError:
        pass
    if hasattr(training.step, "clear"):  # CUDA graphs hold memory; it records them anew
        training.step.clear()
        try:
            return measure(prepared, training)
        except torch.OutOfMemoryError:
            pass
    report.say(say("no validation: not enough memory for it", "显存不足，这次没有做验证"))
    return None


def measure(prepared: Prepared, training: Training) -> Any:
    """The losses of the held-out pictures, and of the training pictures beside them: a `validation.Measured`."""
    from library import losses, validation
    from library.data import held_out

    config, plan = prepared.config, prepared.plan
    seed = prepared.seed if config.validation_seed is None else config.validation_seed
    times = validation.timesteps(config.min_timestep, config.max_timestep)

    def bucket(sample: Sample) -> tuple:
        return sample.dataset, plan.fit(sample).bucket

    def in_batches(samples: list[Sample]) -> list[list[int]]:
        sizes = [-(-plan.sets[sample.dataset].batch_size // training.batch_parts) for sample in samples]
        return validation.groups([bucket(sample) for sample in samples], sizes, seed)

    def losses_of(samples: list[Sample], batches: list[list[int]]) -> dict[int, Any]:
        show = _shower(prepared, training, held_out.fixed(samples, config))
        return validation.losses(batches, show, training.process.corrupt, plain_loss, times, seed)

    def plain_loss(prediction: Any, target: Any, mask: Any) -> Any:
        return losses.per_sample(prediction, target, mask=mask)

    held = plan.found.validation
    partners = held_out.beside(held, plan.found.train, bucket, seed)
    batches = in_batches(held)[: config.max_validation_steps]
    training.adapters.eval()
    try:
        with training.averaged():
            ours = losses_of(held, batches)
            their_batches = [[place for place in places if place in ours] for places in in_batches(partners)]
            theirs = losses_of(partners, [places for places in their_batches if places])
    finally:
        training.adapters.train()
    return validation.Measured.of(times, ours, theirs)


def _shower(prepared: Prepared, training: Training, samples: list[Sample]) -> Callable[[list[int]], Any]:
    """Gives the batch of some of the samples, by their places."""
    from library.validation import Shown

    family, place = training.family, prepared.machine.place

    def show(places: list[int]) -> Shown:
        batch = training.dataset.batch_of([samples[at] for at in places])
        latents = family.encode_images(batch.pixels) if batch.latents is None else batch.latents
        conditioning = batch.conditioning or family.encode_captions(batch.captions, place(batch.sizes))
        conditioning = conditioning.map(place)
        mask = None if batch.masks is None else place(batch.masks)
        return Shown(place(latents), mask, lambda noisy, t: family.predict(noisy, place(t), conditioning))

    return show
