"""Train a LoRA: flags as in sd-scripts in, a .safetensors out. `lora_train_command_line.py` runs this without flags.

Here the parts are built and one's product is handed to the next; what each does stands in library/. Read from the end:
`train_one` is the whole story, `train` the loop with its arithmetic in view. A run's randomness follows from (seed,
step) alone: noise and timesteps from one generator, dropout from torch's own streams, both seeded anew for every batch.
"""

import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from library.contracts import Batch, Conditioning, Family
from library.messages import Stopped, UserError, say
from library.options import command_line, sd_scripts
from library.options.checks import check
from library.options.derived import trains_text_encoder
from library.options.training import Config
from library.training.build import Training, build
from library.training.debug_dataset import show_dataset
from library.training.outputs import Files, check_disk, closing_words, hashes_of
from library.training.prepare import Prepared, prepare
from library.training.recovery import is_sound, memory_full, not_finite, use_less_memory, what_is_lost
from library.training.validate import measured_epochs, validate


def main(argv: list[str]) -> int:
    """Flags to an exit code; what there is to say is printed.

    Returns:
        0: trained, or stopped and saved. 1: crashed. 2: the user has something to put right. 130: a second Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without Chinese letters must not end the run
    try:
        argv, output = command_line.output_of(argv)
        values, where, notices, problems = sd_scripts.translate(*command_line.parse(argv))
        config, warnings = check(values, where, problems)
        if output:
            command_line.write_config(config, output)
            print(say(f"written: {output}", f"已写入 {output}"))
            return 0
        return run(config, notices + warnings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Stopped:
        return 0
    except KeyboardInterrupt:
        return 130


# torch and what stands on it is imported below the check of the parameters: that takes seconds, a typing mistake none.


GO_ON, STOP, GO_BACK = range(3)  # what the first process tells the others after each step


def train(prepared: Prepared, training: Training, files: Files | None, stop: Any) -> Any:
    """Train to the end, or until the user stops; a poisoned batch costs one step back to the last state.

    Args:
        files: None in all processes but the first.

    Returns:
        Where it ended, a `training_state.Position`.

    Raises:
        UserError: NaN came a second time, or memory is full.
    """
    import torch

    state, world = prepared.state, prepared.world  # files have saved a first one: there is always one to go back to
    position = prepared.position
    skipped: set[int] = set(state.more.get("skipped", [])) if state else set()
    until = 0  # steps up to this one are looked at closely, each on its own
    if files and not files.report.validations:
        validate(prepared, training, files.report, epoch=0, step=0, by="epoch")
    if files and position.global_step == 0 and prepared.config.sample_at_first:
        files.preview(epoch=0)
    while True:
        try:
            return steps(prepared, training, files, stop, position, skipped, until)
        except FloatingPointError as error:
            bad_step = world.told(files and getattr(error, "step", files.report.step))
            if until >= bad_step:  # it was looked at, and nothing helped
                raise not_finite(str(error)) from None
            state = world.told(files and files.load_state())
            announce(
                files,
                say(
                    f"{error}. Going back to the state of step {state.position.global_step} to find the cause",
                    f"{error}。退回第 {state.position.global_step} 步的状态，查找原因",
                ),
            )
            until = bad_step
        except torch.OutOfMemoryError as error:  # while the optimizer stepped: a part of it may have been done
            what = use_less_memory(prepared, training) if world.count == 1 else None
            if what is None:
                raise memory_full(str(error)) from None
            state = files.load_state()
            announce(files, say(f"memory ran out: {what}", f"显存不足：{what}"))
        training.restore(state)
        position = state.position
        if files:
            files.begin_report(position.global_step)


def announce(files: Files | None, line: str) -> None:
    """Say something in the middle of the run."""
    if files:
        files.report.say(line)
    else:
        print(line, file=sys.stderr)


def steps(
    prepared: Prepared,
    training: Training,
    files: Files | None,
    stop: Any,
    position: Any,
    skipped: set[int],
    until: int,
) -> Any:
    """The loop, from a position to the end or the user's stop; gives the position it came to.

    Args:
        skipped: steps whose batch gave NaN: they are left out.
        until: up to this step everything is checked at once, and what is not finite is left out.

    Raises:
        FloatingPointError: something is not finite.
    """
    import torch

    config, plan, world = prepared.config, prepared.plan, prepared.world
    epoch_at, batches_done, step = position
    generator = torch.Generator()
    training.adapters.train()
    met: set[tuple] = set()  # sizes of batches
    for epoch in range(epoch_at, plan.epoch_count + 1):
        batches = training.dataset.batches(epoch, start=batches_done, process=world.rank, of=world.count)
        for group in in_groups(batches, config.gradient_accumulation_steps * world.count):
            if step == plan.step_count:
                break
            if training.begin_step(step):
                announce(files, say("the text encoder is not trained any more", "文本编码器从此不再训练"))
            rates = {entry["name"]: entry["lr"] for entry in training.optimizer.param_groups}
            with tuned(prepared, files, group, met):
                loss = gradients(prepared, training, files, group, generator, step)
            if step < until and step + 1 not in skipped and not is_sound(training, loss):
                cause = name_cause(prepared, training, group, generator, step)
                if skipped:
                    raise not_finite(cause)
                announce(files, say(f"{cause}. This batch is left out", f"{cause}。跳过这个批次"))
                skipped.add(step + 1)
            if step + 1 not in skipped:
                if config.max_grad_norm:
                    training.scaler.unscale_(training.optimizer)
                    torch.nn.utils.clip_grad_norm_(training.adapters.parameters(), config.max_grad_norm)
                training.scaler.step(training.optimizer)
                training.scaler.update()
            training.schedule.step()
            training.adapters.refresh()
            if config.scale_weight_norms:
                training.adapters.limit_norms(config.scale_weight_norms)
            step += 1
            if training.average and step not in skipped:
                training.average.update(step)
            batches_done += len(group)
            position = type(position)(epoch, batches_done, step)
            tell = partial(tell_step, files, stop, position, loss, rates, skipped) if files else None
            if agreed(world, tell) == STOP:
                return position
        batches_done = 0
        position = type(position)(epoch + 1, 0, step)
        if agreed(world, partial(tell_epoch, files, position, skipped) if files else None) == STOP:
            break
    if problem := what_is_lost(training):  # after the last step no loss tells of it
        raise FloatingPointError(problem)
    return position


@contextmanager
def tuned(prepared: Prepared, files: Files | None, group: list[Batch | None], met: set[tuple]) -> Iterator[None]:
    """The first step of each size: kernels are tuned where that costs time, and that is said."""
    sizes = [(batch.pixels if batch.latents is None else batch.latents).shape for batch in group if batch]
    new = {tuple(size) for size in sizes} - met
    if not (new and prepared.machine.tunes_per_shape):
        yield
        return
    met |= new
    done, count = len({size[-2:] for size in met}), len(prepared.plan.sizes)
    announce(files, say(f"tuning bucket {done} of {count}", f"正在调优第 {done} 个桶，共 {count} 个"))
    with prepared.machine.tuning():
        yield


def agreed(world: Any, tell: Any) -> int:
    """The first process tells and saves; all get to know what follows.

    Raises:
        FloatingPointError: something is not finite.
    """
    problem = None
    try:
        code = tell() if tell else GO_ON
    except FloatingPointError as error:
        code, problem = GO_BACK, error
    code = world.code(code)
    if code == GO_BACK:
        raise problem or FloatingPointError
    return code


def tell_step(files: Files, stop: Any, position: Any, loss: Any, rates: dict[str, float], skipped: set[int]) -> int:
    """Report a step, and save what is due after it."""
    config, step = files.prepared.config, position.global_step
    if step in skipped:
        files.report.skipped(position.epoch, step)
    else:
        files.report.losses(position.epoch, step, loss, rates)
    files.write_page()
    if is_due(step, config.validate_every_n_steps):
        validate(files.prepared, files.training, files.report, epoch=position.epoch, step=step, by="step")
    if step == files.step_count:
        return GO_ON
    if is_due(step, config.save_every_n_steps) or stop.save_requested():
        files.save(position, by="step", skipped=skipped)
    if is_due(step, config.sample_every_n_steps):
        files.preview(step=step)
    if stop.requested():
        files.save(position, by="step", skipped=skipped)
        files.save_state(position, skipped)
        return STOP
    if files.state_is_due():
        files.save_state(position, skipped)
    return GO_ON


def tell_epoch(files: Files, position: Any, skipped: set[int]) -> int:
    """Report the epoch before `position`, and save what is due after it; STOP where no more epochs are worth it."""
    prepared, training, report = files.prepared, files.training, files.report
    config, epoch, step = prepared.config, position.epoch - 1, position.global_step
    files.end_epoch(epoch)
    if epoch in measured_epochs(config, prepared.plan):
        validate(prepared, training, report, epoch=epoch, step=step, by="epoch")
        files.keep_best(position)
    if epoch < prepared.plan.epoch_count:
        if is_due(epoch, config.save_every_n_epochs):
            files.save(position, by="epoch", skipped=skipped)
        if is_due(epoch, config.sample_every_n_epochs):
            files.preview(epoch=epoch)
        if files.ends_early():
            return STOP
    return GO_ON


def gradients(
    prepared: Prepared,
    training: Training,
    files: Files | None,
    group: list[Batch | None],
    generator: Any,
    step: int,
) -> Any:
    """Forward and backward of a step's batches; where memory runs out, again with less of it, the same arithmetic.

    Args:
        group: all batches of the step; None: another process's.

    Returns:
        The loss, a scalar on the device: reading it would stall the step.

    Raises:
        UserError: there is no memory left to save.
    """
    import torch

    while True:
        loss = torch.zeros((), device=prepared.machine.device)
        try:
            for place, batch in enumerate(group):
                if batch is None:
                    continue
                seed_step(generator, prepared.seed, step, place)
                inputs = draw(training, prepared, batch, generator)
                for part in inputs.split(training.batch_parts):
                    share = len(part.noisy) / len(inputs.noisy) / len(group)
                    loss += backward(training, prepared, part, share)
                    training.adapters.gather()
            if not any(group):
                training.adapters.gather()
            prepared.world.sum([loss, *(parameter.grad for parameter in training.adapters.parameters())])
            return loss
        except torch.OutOfMemoryError as error:
            training.adapters.refresh()  # forgets what was gathered
            reason = str(error)
        # outside of `except`: its traceback would hold the tensors of the failed pass
        what = use_less_memory(prepared, training)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if what is None:
            raise memory_full(reason)
        announce(files, say(f"memory ran out at step {step + 1}: {what}", f"第 {step + 1} 步显存不足：{what}"))
        if files:
            files.report.event("out of memory", step=step, done=what)


def name_cause(prepared: Prepared, training: Training, group: list[Batch], generator: Any, step: int) -> str:
    """Do a step's passes once more, slowly: which tensor is the first that is not finite, in which batch."""
    from library.hardware import nan

    causes = []
    for place, batch in enumerate(group):
        if batch is None:
            continue
        seed_step(generator, prepared.seed, step, place)
        inputs = draw(training, prepared, batch, generator)

        def run(hunt: Any, inputs: Inputs = inputs) -> None:
            with training.blocks.observed(hunt.block):
                backward(training, prepared, inputs, 1.0)

        named = {
            say("the latents", "图片编码"): batch.latents,
            say("the noisy latents", "加噪后的图片编码"): inputs.noisy,
        }
        for name, tensor in (inputs.text_embeddings or {}).items():
            named[say(f"the captions' {name}", f"标签编码（{name}）")] = tensor
        cause = nan.first_bad(named, run)
        pictures = ", ".join(str(sample.image_path) for sample in batch.samples)
        times = ", ".join(f"{float(t):g}" for t in inputs.t)
        causes.append(
            say(
                f"step {step + 1}: NaN or infinity, first in {cause}; pictures: {pictures}; timesteps: {times}",
                f"第 {step + 1} 步出现 NaN 或无穷大，最先出现在：{cause}；图片：{pictures}；时间步：{times}",
            )
        )
    training.adapters.gather()
    return "; ".join(causes)


@dataclasses.dataclass
class Inputs:
    """What the network is shown in one pass and what it should answer, on the device."""

    noisy: Any  # (B, C, h, w) float32
    t: Any  # (B,) timesteps
    target: Any  # (B, C, h, w) float32
    mask: Any  # (B, 1, h, w) float32, how much each place is learnt, or None: all is
    huber_c: Any  # (B,) where the loss turns from quadratic to linear, or None
    weights: Any  # (B,) of the losses
    text_embeddings: Conditioning | None  # None: the captions are encoded in the pass
    size_conditioning: Conditioning
    captions: list[str]

    def split(self, count: int) -> Iterator["Inputs"]:
        """The same in at most so many parts."""
        if count == 1:
            yield self
            return
        size = -(-len(self.noisy) // count)
        for at in range(0, len(self.noisy), size):
            part = slice(at, at + size)
            yield Inputs(
                self.noisy[part],
                self.t[part],
                self.target[part],
                None if self.mask is None else self.mask[part],
                None if self.huber_c is None else self.huber_c[part],
                self.weights[part],
                self.text_embeddings and {name: tensor[part] for name, tensor in self.text_embeddings.items()},
                {name: tensor[part] for name, tensor in self.size_conditioning.items()},
                self.captions[part],
            )


def draw(training: Training, prepared: Prepared, batch: Batch, generator: Any) -> Inputs:
    """Everything that is left to chance, and what can be done beforehand: on the CPU, where cached latents are."""
    from library.diffusion import losses
    from library.diffusion import noise as diffusion

    config, process, family = prepared.config, training.process, training.family
    latents = family.encode_images(batch.pixels) if batch.latents is None else batch.latents
    t = process.draw_timesteps(len(latents), generator, config.min_timestep, config.max_timestep)
    noise = diffusion.draw_noise(
        latents,
        generator,
        config.noise_offset,
        noise_offset_random_strength=config.noise_offset_random_strength,
        adaptive_noise_scale=config.adaptive_noise_scale,
        multires_noise_iterations=config.multires_noise_iterations,
        multires_noise_discount=config.multires_noise_discount,
        candidates=config.immiscible_noise,
    )
    more_noise = None
    if config.ip_noise_gamma:
        is_random = config.ip_noise_gamma_random_strength
        more_noise = diffusion.draw_perturbation(noise, generator, config.ip_noise_gamma, is_random)
    noisy, target = process.corrupt(latents, noise, t, more_noise)
    snr, objective = process.snr(t), family.noise.objective
    weights = batch.weights * losses.weight(snr, objective, config)
    huber_c = losses.threshold(t, snr, config)
    place = prepared.machine.place
    embeddings = batch.text_embeddings and {name: place(x) for name, x in batch.text_embeddings.items()}
    sizes = {name: place(x) for name, x in batch.size_conditioning.items()}
    tensors = (noisy, t, target, batch.masks, huber_c, weights)
    tensors = [None if tensor is None else place(tensor) for tensor in tensors]
    return Inputs(*tensors, embeddings, sizes, batch.captions)


def backward(training: Training, prepared: Prepared, inputs: Inputs, share: float) -> Any:
    """Forward and backward of one batch, or a part of it; its loss, a scalar on the device, times its share."""
    import torch

    embeddings = inputs.text_embeddings
    trains_text = bool(training.adapters.arenas.keys() - {"unet", *training.adapters.frozen})
    if embeddings is None:
        with torch.set_grad_enabled(trains_text):
            embeddings = training.family.encode_captions(inputs.captions)
        embeddings = {name: prepared.machine.place(tensor) for name, tensor in embeddings.items()}
    step = training.step.plain if training.blocks.is_observed else training.step
    scale = training.scaler.scale(torch.ones((), device=inputs.noisy.device))
    shown = (inputs.noisy, inputs.t, inputs.target, inputs.mask, inputs.huber_c)
    loss, *gradients = step(*shown, inputs.weights * share, scale, **embeddings, **inputs.size_conditioning)
    told = zip(embeddings.values(), gradients, strict=True)
    pairs = [(tensor, gradient) for tensor, gradient in told if gradient is not None and tensor.requires_grad]
    if pairs:  # on into the text encoders
        torch.autograd.backward(*zip(*pairs, strict=True))
    return loss


def unet_step(config: Config, family: Family) -> Any:
    """Forward and backward of the U-Net, as a function of tensors alone: what a CUDA graph can hold."""
    from library.diffusion import losses

    trained = set(family.text_embeddings) if trains_text_encoder(config) else set()

    def step(
        noisy: Any,
        t: Any,
        target: Any,
        mask: Any,
        huber_c: Any,
        weights: Any,
        scale: Any,
        **conditioning: Any,
    ) -> Any:
        """The loss, and the gradients of the captions' embeddings, if they are wanted."""
        told = {
            name: tensor.detach().requires_grad_(name in trained and tensor.is_floating_point())
            for name, tensor in conditioning.items()
        }
        prediction = family.predict(noisy, t, told)
        loss = (losses.per_sample(prediction, target, config.loss_type, huber_c, mask) * weights).mean()
        loss.backward(scale)
        return loss.detach(), *(told[name].grad for name in family.text_embeddings)

    return step


def seed_step(generator: Any, seed: int, step: int, place: int) -> None:
    """Noise and timesteps from `generator`, dropout from torch's own streams: both follow from the seed and the place.

    Args:
        place: of a batch among those of its step, whichever process computes it.
    """
    import torch

    number = (
        int.from_bytes(hashlib.sha256(f"{seed} {step}{f' {place}' if place else ''}".encode()).digest()[:8], "big") >> 1
    )
    generator.manual_seed(number)
    torch.manual_seed(number)


def in_groups(batches: Iterator[Batch | None], size: int) -> Iterator[list[Batch | None]]:
    """So many batches at a time; the last group of an epoch may be shorter."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def is_due(count: int, every: int | None) -> bool:
    return bool(every) and count % every == 0


def run(config: Config, warnings: list[str]) -> int:
    """`train_one`, with the terminal as the options say, and with no secret in anything that is written."""
    from library.messages import set_language
    from library.reporting import console

    set_language(config.language)
    if config.wandb_api_key:
        os.environ["WANDB_API_KEY"] = config.wandb_api_key  # where wandb looks, in the processes we start, too
        config = dataclasses.replace(config, wandb_api_key=None)
    with console.told(config):
        return train_one(config, warnings)


def train_one(config: Config, warnings: list[str]) -> int:
    """Train one LoRA.

    Args:
        config: checked.
        warnings: what the check found, to be said with the rest.

    Returns:
        0: trained, and the file was read back and found whole.
        1: crashed; a report was written.

    Raises:
        UserError: something only the user can put right.
        Stopped: by the user; LoRA and state are saved.
    """
    from library.hardware import distributed, rocm
    from library.reporting import crash_report
    from library.training.stop import Stop

    lines = [] if config.device in ("cpu", "mps") else rocm.prepare_environment()  # before torch is imported
    if config.device_plan == "print only" and not lines:
        lines = [say("nothing needs to be set on this machine", "这台机器不需要任何设置")]
    for line in lines:
        print(say(f"device plan: {line}", f"设备设置：{line}"))
    if config.device_plan == "print only":
        return 0
    if distributed.is_wanted(config):
        script = str(Path(__file__).resolve())
        return distributed.launch(config, [sys.executable, script, *command_line.to_arguments(config)])
    world = distributed.World(is_cpu=config.device == "cpu", patience=config.ddp_timeout)
    config = dataclasses.replace(config, num_processes=max(1, world.count // config.num_machines))
    if not world.is_first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the first talks for all
    prepared = prepare(config, warnings, world)
    files = None
    try:
        if config.debug_dataset:
            if world.is_first:
                show_dataset(prepared)
            return 0
        with Stop(Path(config.output_dir)) as stop:
            hashing = ThreadPoolExecutor(1).submit(hashes_of, prepared.config) if world.is_first else None
            training = build(prepared, unet_step)
            if hashing:
                check_disk(prepared, training)
                files = Files(prepared, training, stop, hashing.result())
                if config.tag_occurrence_txt_file:
                    files.write_tags()
            position = train(prepared, training, files, stop)
            return finish(prepared, training, files, position) if files else 0
    except UserError:
        raise
    except Exception as error:
        lines = files.report.last_steps(20) if files and files.report else []
        facts = dict(device=prepared.machine.description, name=prepared.name)
        path = crash_report.write(Path(config.output_dir), error, config=prepared.config, facts=facts, last_lines=lines)
        print(crash_report.cause_line(error), file=sys.stderr)
        print(say(f"all that is known about it: {path}", f"详细情况见 {path}"), file=sys.stderr)
        return 1
    finally:
        if files and files.report:
            with contextlib.suppress(FloatingPointError, RuntimeError):  # of a broken device: told above
                files.report.close()
        if prepared.run_lock:
            prepared.run_lock.release()
        world.leave()


def finish(prepared: Prepared, training: Training, files: Files, position: Any) -> int:
    """What follows the loop: the final file, pictures to compare, and how to go on."""
    from library.reporting import best_epoch
    from library.storage import lora_file

    config, plan = prepared.config, prepared.plan
    if position.global_step < plan.step_count and not files.ended_early:
        command = command_line.command(dataclasses.replace(config, resume="auto"))
        is_enough = config.resume == "auto"
        print(
            say(
                f"stopped after step {position.global_step} of {plan.step_count}; LoRA and state are saved. To go on, "
                + ("start it again as before, or:" if is_enough else 'set resume = "auto" and start it again, or:'),
                f"已在第 {position.global_step} 步停止（共 {plan.step_count} 步），LoRA 与训练状态已保存。"
                + (
                    "用同样的方式再次启动即可接着训练，或运行："
                    if is_enough
                    else '要接着训练，请设 resume = "auto" 再启动，或运行：'
                ),
            )
        )
        print(command)
        files.report.event("stopped", step=position.global_step)
        files.write_page(is_due=True)
        raise Stopped
    try:
        path = files.save(position)
    except FloatingPointError as error:
        raise not_finite(str(error)) from None
    norms = lora_file.read_back(path, {name: tensor.shape for name, tensor in training.adapters.state_dict().items()})
    files.tell_result(path)
    files.write_page(is_due=True)
    files.finish(position)
    advice = best_epoch.recommend(files.report.validations)
    print(closing_words(prepared, path, norms, files.best, advice))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
