"""Train a LoRA: flags as in sd-scripts in, a .safetensors out. `lora_train_command_line.py` runs this without flags.

`train_one` builds a run, `train` is its loop, `forward_backward` the arithmetic of a step: from the top, in the order
of what happens. What is done where a step does not go well is in library/training/recovery.py; what is saved, drawn and
measured after it in outputs.py. A run's randomness follows from (seed, step, place of a batch in its step) alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from library.contracts import Batch, Family
from library.messages import Stopped, UserError, exit_code, log, say, set_language
from library.options import command_line, scripts, sd_scripts
from library.options.checks import check, missing
from library.options.derived import trains_text_encoder
from library.options.training import Config
from library.training.build import build
from library.training.debug_dataset import show_dataset
from library.training.inputs import Inputs, seed_step
from library.training.outputs import Outputs, Verdict
from library.training.prepare import prepare
from library.training.recovery import Recovery
from library.training.run import Run, Training
from library.training.saver import check_disk, hashes_of
from library.training.soundness import what_is_lost
from library.training.stop import Stop
from library.training.tuning import Tuning

if TYPE_CHECKING:  # torch is imported below the check of the parameters: that takes seconds, a typing mistake none
    import torch
    from torch import Tensor

    from library.hardware.distributed import ProcessGroup
    from library.storage.training_state import Position


def main(argv: list[str]) -> int:
    """Flags to an exit code (see `messages.exit_code`); what there is to say is said."""
    return exit_code(partial(run_flags, argv))


def run_flags(argv: list[str]) -> int:
    """Check the flags and train, or write them into a file where that is asked."""
    argv, output = command_line.output_of(scripts.flags_of(argv))
    values, where, notices, problems = sd_scripts.translate(*command_line.parse(argv))
    config, warnings = check(values, where, problems if output else [*missing(values), *problems])
    if output:
        command_line.write_config(config, output)
        log.info(say(f"written: {output}", f"已写入 {output}"))
        return 0
    return run(config, notices + warnings)


def run(config: Config, warnings: list[str]) -> int:
    """`train_one`, with the terminal as the options say; where several processes are wanted, in each of them."""
    from library.hardware import distributed, rocm
    from library.reporting import console

    set_language(config.language)
    if config.wandb_api_key:
        os.environ["WANDB_API_KEY"] = config.wandb_api_key  # where wandb looks, in the processes we start, too
    with console.as_asked(config):
        lines = [] if config.device in ("cpu", "mps") else rocm.prepare_environment()  # before torch is imported
        if config.device_plan == "print only" and not lines:
            lines = [say("nothing needs to be set on this machine", "这台机器不需要任何设置")]
        for line in lines:
            log.info(say(f"device plan: {line}", f"设备设置：{line}"))
        if config.device_plan == "print only":
            return 0
        if distributed.is_wanted(config):
            script = str(Path(__file__).resolve())
            return distributed.launch(config, [sys.executable, script, *command_line.to_arguments(config)])
        return train_one(config, warnings)


def train_one(config: Config, warnings: list[str]) -> int:
    """Train one LoRA.

    Args:
        config: checked.
        warnings: what the check found, to be said with the rest.

    Returns:
        0: trained, and the file was read back and found whole. 1: crashed; a report was written.

    Raises:
        UserError: something only the user can put right.
        Stopped: by the user; LoRA and state are saved.
    """
    from library.hardware.awake import kept_awake
    from library.hardware.distributed import ProcessGroup
    from library.reporting import crash_report

    processes = ProcessGroup(is_cpu=config.device == "cpu", patience=config.ddp_timeout)
    if not processes.is_first:
        log.setLevel(logging.ERROR)  # the first talks for all
    run = prepare(config, warnings, processes)
    outputs = None
    try:
        if config.debug_dataset:
            if processes.is_first:
                show_dataset(run)
            return 0
        with Stop(run.output_dir) as stop, kept_awake():
            hashing = ThreadPoolExecutor(1).submit(hashes_of, run.settings) if processes.is_first else None
            training = build(run, denoiser_step)
            if hashing:
                check_disk(run, training)
                outputs = Outputs(run, training, stop, hashing.result())
            position = train(run, training, outputs)
            if outputs and position.global_step < run.plan.step_count and not outputs.ended_early:
                outputs.stopped(position)
                raise Stopped
            if outputs:
                outputs.finish(position)
            return 0
    except UserError:
        raise
    except Exception as error:
        facts = dict(device=run.device.description, name=run.name)
        last_steps = outputs.run_log.last_steps(20) if outputs else []
        path = crash_report.write(run.output_dir, error, config=run.settings, facts=facts, last_lines=last_steps)
        log.error(crash_report.cause_line(error))
        log.error(say(f"details: {path}", f"详细情况见 {path}"))
        return 1
    finally:
        if outputs:
            with contextlib.suppress(FloatingPointError, RuntimeError):  # of a broken device: told above
                outputs.run_log.close()
        if run.lock:
            run.lock.release()
        processes.leave()


def train(run: Run, training: Training, outputs: Outputs | None) -> Position:
    """Train to the end, or until the user stops; a poisoned batch costs one step back to the last state.

    Args:
        outputs: None in all processes but the first.

    Returns:
        Where it ended.
    """
    if outputs:
        outputs.before_first_step()
    recovery = Recovery(run, training, outputs, draw, backward)
    while True:
        with recovery:
            return train_from(recovery.position, run, training, outputs, recovery)


def train_from(
    position: Position, run: Run, training: Training, outputs: Outputs | None, recovery: Recovery
) -> Position:
    """The loop, from a position to the end or the user's stop; gives the position it came to.

    Raises:
        FloatingPointError: something is not finite.
    """
    import torch

    settings, plan, processes, adapters = run.settings, run.plan, run.processes, training.adapters
    generator, tuning = torch.Generator(), Tuning(run)
    epoch_at, batches_done, step = position
    adapters.train()
    for epoch in range(epoch_at, plan.epoch_count + 1):
        batches_of_epoch = training.dataset.batches(
            epoch, start=batches_done, process=processes.rank, of=processes.count
        )
        for batches in in_groups(batches_of_epoch, plan.batches_per_step):
            if step == plan.step_count:
                break
            if training.begin_step(step):
                recovery.say(say("the text encoder is no longer trained", "文本编码器从此不再训练"))
            rates = training.rates()
            with tuning(batches):
                passes = partial(forward_backward, run, training, batches, generator, step)
                loss = recovery.with_room_for(passes, step)
            if not recovery.leaves_out(step, batches, loss):
                if settings.max_grad_norm:
                    training.scaler.unscale_(training.optimizer)
                    torch.nn.utils.clip_grad_norm_(adapters.parameters(), settings.max_grad_norm)
                training.scaler.step(training.optimizer)
                training.scaler.update()
            training.schedule.step()
            adapters.refresh()
            if settings.scale_weight_norms:
                adapters.limit_norms(settings.scale_weight_norms)
            step += 1
            if training.average and step not in recovery.skipped:
                training.average.update(step)
            batches_done += len(batches)
            position = type(position)(epoch, batches_done, step)
            report = partial(outputs.after_step, position, loss, rates, recovery.skipped) if outputs else None
            if synchronized(processes, report) == Verdict.STOP:
                return position
        batches_done = 0
        position = type(position)(epoch + 1, 0, step)
        report = partial(outputs.after_epoch, position, recovery.skipped) if outputs else None
        if synchronized(processes, report) == Verdict.STOP:
            break
    if problem := what_is_lost(training):  # after the last step no loss tells of it
        raise FloatingPointError(problem)
    return position


def forward_backward(
    run: Run, training: Training, batches: list[Batch | None], generator: torch.Generator, step: int
) -> Tensor:
    """Gradients of a step's batches, summed over all processes; the loss, on the device: reading it would stall.

    Args:
        batches: all of the step; None: another process's.
    """
    import torch

    loss = torch.zeros((), device=run.device.torch_device)
    for place, batch in enumerate(batches):
        if batch is None:
            continue
        seed_step(generator, run.seed, step, place)
        inputs = draw(run, training, batch, generator)
        for part in inputs.split(training.batch_parts):
            share = len(part.noisy) / len(inputs.noisy) / len(batches)
            loss += backward(run, training, part, share)
            training.adapters.gather()
    if not any(batches):
        training.adapters.gather()
    run.processes.sum([loss, *(parameter.grad for parameter in training.adapters.parameters())])
    return loss


def draw(run: Run, training: Training, batch: Batch, generator: torch.Generator) -> Inputs:
    """Everything that is left to chance, and what can be done beforehand: on the CPU, where cached latents are."""
    from library.diffusion import losses
    from library.diffusion.noise import draw_noise, draw_perturbation

    settings, process, family, place = run.settings, training.process, training.family, run.device.place
    latents = batch.encoded(family.encode_images)  # (B, C, h, w)
    t = process.draw_timesteps(latents.shape, generator, settings.min_timestep, settings.max_timestep)  # (B,)
    noise = draw_noise(
        latents,
        generator,
        settings.noise_offset,
        noise_offset_random_strength=settings.noise_offset_random_strength,
        adaptive_noise_scale=settings.adaptive_noise_scale,
        multires_noise_iterations=settings.multires_noise_iterations,
        multires_noise_discount=settings.multires_noise_discount,
        candidates=settings.immiscible_noise,
    )
    more_noise = None
    if settings.ip_noise_gamma:
        is_random = settings.ip_noise_gamma_random_strength
        more_noise = draw_perturbation(noise, generator, settings.ip_noise_gamma, is_random)
    noisy, target = process.corrupt(latents, noise, t, more_noise)
    snr = process.snr(t)  # (B,)
    huber_c = losses.threshold(t, snr, settings)
    weights = batch.weights * losses.weight(snr, family.noise.objective, settings)  # (B,)
    embeddings = batch.text_embeddings
    return Inputs(
        noisy=place(noisy),
        t=place(t),
        target=place(target),
        mask=None if batch.masks is None else place(batch.masks),
        huber_c=None if huber_c is None else place(huber_c),
        weights=place(weights),
        text_embeddings=None if embeddings is None else {name: place(tensor) for name, tensor in embeddings.items()},
        size_conditioning={name: place(tensor) for name, tensor in batch.size_conditioning.items()},
        captions=batch.captions,
    )


def backward(run: Run, training: Training, inputs: Inputs, share: float) -> Tensor:
    """Forward and backward of one batch, or a part of it; its loss, a scalar on the device, times its share."""
    import torch

    embeddings = inputs.text_embeddings
    trains_text = bool(training.adapters.flat_parameters.keys() - {"denoiser", *training.adapters.frozen})
    if embeddings is None:
        with torch.set_grad_enabled(trains_text):
            embeddings = training.family.encode_captions(inputs.captions)
        embeddings = {name: run.device.place(tensor) for name, tensor in embeddings.items()}
    step = training.step.plain if training.blocks.is_observed else training.step
    scale = training.scaler.scale(torch.ones((), device=inputs.noisy.device))
    shown = (inputs.noisy, inputs.t, inputs.target, inputs.mask, inputs.huber_c, inputs.weights * share, scale)
    loss, *gradients = step(*shown, **embeddings, **inputs.size_conditioning)
    pairs = zip(embeddings.values(), gradients, strict=True)
    wanted = [(tensor, gradient) for tensor, gradient in pairs if gradient is not None and tensor.requires_grad]
    if wanted:  # on into the text encoders
        torch.autograd.backward([tensor for tensor, _ in wanted], [gradient for _, gradient in wanted])
    assert loss is not None
    return loss


def denoiser_step(settings: Config, family: Family) -> Callable[..., tuple[Tensor | None, ...]]:
    """Forward and backward of the denoiser, as a function of tensors alone: what a CUDA graph can hold."""
    from library.diffusion import losses

    trained = set(family.facts.text_embeddings) if trains_text_encoder(settings) else set()

    def step(
        noisy: Tensor,
        t: Tensor,
        target: Tensor,
        mask: Tensor | None,
        huber_c: Tensor | None,
        weights: Tensor,
        scale: Tensor,
        **conditioning: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """The loss, and the gradients of the captions' embeddings, if they are wanted."""
        told = {
            name: tensor.detach().requires_grad_(name in trained and tensor.is_floating_point())
            for name, tensor in conditioning.items()
        }
        prediction = family.predict(noisy, t, told)
        loss = (losses.per_sample(prediction, target, settings.loss_type, huber_c, mask) * weights).mean()
        loss.backward(scale)
        return loss.detach(), *(told[name].grad for name in family.facts.text_embeddings)

    return step


def synchronized(processes: ProcessGroup, action: Callable[[], Verdict] | None) -> Verdict:
    """The first process acts; all get to know what follows.

    Raises:
        FloatingPointError: something is not finite.
    """
    problem = None
    try:
        verdict = action() if action else Verdict.GO_ON
    except FloatingPointError as error:
        verdict, problem = Verdict.GO_BACK, error
    verdict = Verdict(processes.broadcast_code(verdict))
    if verdict == Verdict.GO_BACK:
        raise problem or FloatingPointError
    return verdict


def in_groups(batches: Iterator[Batch | None], size: int) -> Iterator[list[Batch | None]]:
    """So many batches at a time; the last group of an epoch may be shorter."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
