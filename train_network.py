"""Train a LoRA: flags as in sd-scripts in, a .safetensors out. `lora_train_command_line.py` runs this without flags.

Here the parts are built and one's product is handed to the next; what each does stands in library/. Read from the end:
`run` is the whole story, `train` the loop with its arithmetic in view. A run's randomness follows from (seed, step)
alone: noise and timesteps from one generator, dropout from torch's own streams, both seeded anew for every step.
"""

import dataclasses
import secrets
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from library import arguments, kohya
from library.checks import check, differences
from library.config import Config, trains_text_encoder, trains_unet
from library.contracts import Batch, Family
from library.messages import UserError, say


def main(argv: list[str]) -> int:
    """Flags to an exit code: 0 trained, 2 the user has something to put right (which was printed), 130 stopped."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without Chinese letters must not end the run
    try:
        values, where = arguments.parse(argv)
        values, where, notices, problems = kohya.translate(values, where)
        config, warnings = check(values, where, problems)
        return run(config, notices + warnings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


# torch and what stands on it is imported below the check of the parameters: that takes seconds, a typing mistake none.


@dataclasses.dataclass
class Prepared:
    """What is known before any model is loaded."""

    config: Config  # "auto" and None resolved where that is possible by now
    seed: int
    name: str  # of all files of this run
    model: Any  # families.ModelInfo
    plan: Any  # data.plan.Plan
    prompts: list  # of sampling.Prompt
    machine: Any  # device.Device
    optimizer_args: dict[str, Any]
    start: dict | None  # tensors of the LoRA file to begin with
    state: Any  # checkpoint.State to go on from, or None


def prepare(config: Config, warnings: list[str]) -> Prepared:
    """Do all cheap things first: read names, pictures, captions and prompts, and say what will happen.

    Raises:
        UserError: all that is wrong with them, together.
    """
    from library.data import buckets, captions, plan, samples

    problems: list[str] = []

    def attempt(function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except UserError as error:
            problems.extend(error.problems)

    found = attempt(
        samples.find,
        config.train_data_dir,
        config.reg_data_dir,
        caption_extension=config.caption_extension,
        reg_captions=config.reg_captions,
    )
    from library import checkpoint, device, families, optimizers, sampling

    model = attempt(families.inspect, config.pretrained_model_name_or_path)
    machine = attempt(device.choose, config.device, config.mixed_precision)
    rule = attempt(buckets.resolve_resolution, config, model.resolution, model.size_step) if model else None
    state = attempt(checkpoint.load_state, Path(config.resume)) if config.resume else None
    start = attempt(checkpoint.load_adapter, Path(config.network_weights)) if config.network_weights else None
    prompts = attempt(sampling.read_prompts, Path(config.sample_prompts)) if config.sample_prompts else None
    optimizer_args = attempt(optimizers.parse_args, config.optimizer_args)
    output_dir = Path(config.output_dir)
    attempt(make_folder, output_dir)
    if problems:
        raise UserError(problems)

    seed = state.facts["seed"] if state and config.seed is None else config.seed
    seed = secrets.randbelow(2**32) if seed is None else seed
    planned = plan.make_plan(found, config, rule)
    texts = [captions.whole(sample.caption, config) for sample in planned.samples_used]
    counts = families.token_counts(model, texts)
    tokens_seen = min(config.max_token_length, max(75, -(-max(counts) // 75) * 75))  # no chunk that is empty in all
    warnings = warnings + plan.check(
        planned,
        config,
        token_counts=lambda texts: [(n, min(n, tokens_seen)) for n in families.token_counts(model, texts)],
        is_everyday_word=families.is_everyday_word,
    )
    usual_rate = optimizers.usual_learning_rate(config.optimizer_type, model.width)
    config = dataclasses.replace(
        config,
        seed=seed,
        learning_rate=usual_rate if config.learning_rate is None else config.learning_rate,
        max_token_length=tokens_seen,
        resolution=f"{rule.width},{rule.height}",
        min_bucket_reso=rule.minimum,
        max_bucket_reso=rule.maximum,
        bucket_reso_steps=rule.step,
    )
    prompts = prompts or [sampling.Prompt(caption) for caption in plan.typical_captions(planned, config)]
    prompts = sampling.complete(prompts, size=(rule.width, rule.height), seed=seed, sampler=config.sample_sampler)
    name = state.facts["name"] if state else checkpoint.free_name(output_dir, config.output_name)
    if state:
        warnings += differences(state.facts["config"], config)
    elif name != config.output_name:
        warnings.append(
            say(
                f"{output_dir} already holds {config.output_name}: this run is named {name}",
                f"{output_dir} 中已有 {config.output_name}，本次的文件名为 {name}",
            )
        )

    print(plan.plan_table(planned, config))
    print(
        say(
            f"model: {families.describe(model)}; {machine.description}; {config.optimizer_type}, learning rate "
            f"{config.learning_rate:g}; seed {seed}; {tokens_seen} caption tokens",
            f"底模：{families.describe(model)}；{machine.description}；{config.optimizer_type}，学习率 "
            f"{config.learning_rate:g}；随机种子 {seed}；标签 {tokens_seen} 个 token",
        )
    )
    for line in warnings:
        print(say(f"note: {line}", f"注意：{line}"))
    sys.stdout.flush()
    return Prepared(config, seed, name, model, planned, prompts, machine, optimizer_args, start, state)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            say(
                f"output_dir = {folder} cannot be made ({reason}). Choose another folder.",
                f"output_dir = {folder} 无法建立（{reason}），请换一个目录。",
            )
        ) from None


@dataclasses.dataclass
class Training:
    """Everything that the loop needs."""

    family: Family
    adapters: Any  # adapters.Adapters
    dataset: Any  # data.dataset.Dataset
    process: Any  # diffusion.Process
    optimizer: Any
    optimizer_text: str  # for the file's metadata
    schedule: Any
    scaler: Any  # torch.amp.GradScaler; does nothing unless the model is in fp16


def build(prepared: Prepared) -> Training:
    """Load the model, encode what is encoded once, and hook the adapters in."""
    import torch
    from torch.nn import functional

    from library import adapters, diffusion, families, optimizers, schedules
    from library.adapters import linear_ops, recipes
    from library.data.dataset import Dataset
    from library.families import unet_forward

    config, machine = prepared.config, prepared.machine
    family = families.open_model(
        config.pretrained_model_name_or_path,
        dtype=machine.dtype,
        device=machine.device if config.lowram else "cpu",
        vae=config.vae,
        vae_dtype=torch.float32 if machine.dtype == torch.float16 else None,  # many a VAE overflows in fp16
        objective="v" if config.v_parameterization else None,
        family="sd2" if config.v2 else None,
        clip_skip=config.clip_skip,
        max_token_length=config.max_token_length,
    )
    for line in family.warnings:
        print(say(f"note: {line}", f"注意：{line}"))
    latents, texts = fill_caches(prepared, family)
    parts = family.modules()
    for name, module in parts.items():  # what is in the caches is not needed on the device
        is_cached = (name == "vae" and latents) or (name.startswith("text_encoder") and texts)
        module.to("cpu" if is_cached else machine.device)
    if config.gradient_checkpointing and trains_text_encoder(config):
        for name in parts:
            if name.startswith("text_encoder"):  # recomputes in training mode only
                parts[name].train().gradient_checkpointing_enable({"use_reentrant": False})

    rates = optimizers.learning_rates(
        [name for name in parts if name != "vae" and is_trained(name, config)],
        config.unet_lr,
        config.text_encoder_lr,
        config.learning_rate,
    )
    attached = adapters.attach(
        [target for target in family.targets() if target.part in rates],
        module=config.network_module,
        rank=config.network_dim,
        alpha=config.network_alpha,
        conv_rank=config.conv_dim,
        conv_alpha=config.conv_alpha,
        dropout=config.network_dropout or 0.0,
        seed=prepared.seed,
    )
    if prepared.start:
        attached.load_state_dict(prepared.start)
    parts["unet"].forward = unet_forward.UNetForward(
        parts["unet"],
        linear_ops.FAST,
        recipes,
        functional.scaled_dot_product_attention,
        checkpointed=unet_forward.units(parts["unet"]) if config.gradient_checkpointing else (),
        is_random=bool(config.network_dropout),
    )
    optimizer_type = "AdamW8bit" if config.use_8bit_adam else config.optimizer_type
    trained = attached.parts(is_flat=optimizers.is_shape_blind(optimizer_type))
    built = optimizers.build(
        optimizer_type,
        optimizers.parameter_groups(trained, config.unet_lr, config.text_encoder_lr, config.learning_rate),
        learning_rate=config.learning_rate,
        args=prepared.optimizer_args,
    )
    for line in built.notices:
        print(say(f"note: {line}", f"注意：{line}"))
    schedule = schedules.build(
        config.lr_scheduler,
        built.optimizer,
        step_count=prepared.plan.step_count,
        warmup=config.lr_warmup_steps,
        cycles=config.lr_scheduler_num_cycles,
        power=config.lr_scheduler_power,
    )
    training = Training(
        family=family,
        adapters=attached,
        dataset=Dataset(prepared.plan, config, prepared.seed, latents=latents, texts=texts),
        process=diffusion.Process(family.noise, zero_terminal_snr=prepared.model.zero_terminal_snr),
        optimizer=built.optimizer,
        optimizer_text=built.described_as,
        schedule=schedule,
        scaler=torch.amp.GradScaler(machine.device.type, enabled=machine.needs_loss_scale),
    )
    if prepared.state:
        attached.load_state_dict(prepared.state.adapter)
        built.optimizer.load_state_dict(prepared.state.optimizer)
        schedule.load_state_dict(prepared.state.schedule)
        training.scaler.load_state_dict(prepared.state.scaler or {})
    return training


def is_trained(part: str, config: Config) -> bool:
    """Whether a part of the model, "unet" or a text encoder, gets adapters."""
    return trains_unet(config) if part == "unet" else trains_text_encoder(config)


def fill_caches(prepared: Prepared, family: Family) -> tuple[Any, Any]:
    """Encode pictures, and captions where they can be known beforehand; None for what is not cached."""
    from library.data import cache, dataset

    config, plan, device = prepared.config, prepared.plan, prepared.machine.device
    folder, line = cache.cache_folder(config)
    if line:
        print(say(f"note: {line}", f"注意：{line}"))
    modules = family.modules()
    latents = texts = None
    if config.cache_latents:
        vae = modules["vae"].to(device)
        latents = cache.LatentCache(folder, cache.fingerprint(vae))
        filled = latents.fill(
            dataset.latents_wanted(plan, config),
            family.encode_images,
            batch_size=config.train_batch_size,
            thread_count=config.max_data_loader_n_workers,
        )
        print(
            say(
                f"latents: {filled.made} pictures encoded, {filled.reused} from the cache",
                f"图片编码：新编码 {filled.made} 张，取自缓存 {filled.reused} 张",
            ),
            flush=True,
        )
    captions = dataset.captions_wanted(plan, config)
    if config.cache_text_encoder_outputs and captions is not None and not trains_text_encoder(config):
        encoders = [modules[name].to(device) for name in modules if name.startswith("text_encoder")]
        fingerprint = cache.fingerprint(*encoders, settings=[config.clip_skip, config.max_token_length])
        texts = cache.TextCache(folder, fingerprint)
        filled = texts.fill(captions, family.encode_captions, batch_size=config.train_batch_size)
        print(
            say(
                f"captions: {filled.made} encoded, {filled.reused} from the cache",
                f"标签编码：新编码 {filled.made} 条，取自缓存 {filled.reused} 条",
            ),
            flush=True,
        )
    return latents, texts


def train(prepared: Prepared, training: Training, report: Any, save: Any, preview: Any) -> int:
    """The loop. Gives the number of steps done.

    Args:
        save: called with epoch=n or step=n where a file is due.
        preview: called with epoch=n or step=n where previews are due.
    """
    import torch

    config, plan = prepared.config, prepared.plan
    state = prepared.state.position if prepared.state else None
    epoch_at, batches_done, step = (state.epoch, state.batch_in_epoch, state.global_step) if state else (1, 0, 0)
    generator = torch.Generator()
    training.adapters.train()
    if config.sample_at_first and step == 0:
        preview(epoch=0)
    for epoch in range(epoch_at, plan.epoch_count + 1):
        batches = training.dataset.batches(epoch, start=batches_done)
        for group in in_groups(batches, config.gradient_accumulation_steps):
            if step == plan.step_count:
                break
            seed_step(generator, prepared.seed, step)
            loss = 0
            for batch in group:
                loss = loss + backward(training, prepared, draw(training, prepared, batch, generator), len(group))
                training.adapters.gather()
            if config.max_grad_norm:
                training.scaler.unscale_(training.optimizer)
                torch.nn.utils.clip_grad_norm_(training.adapters.parameters(), config.max_grad_norm)
            rates = {entry["name"]: entry["lr"] for entry in training.optimizer.param_groups}
            training.scaler.step(training.optimizer)
            training.scaler.update()
            training.schedule.step()
            training.adapters.refresh()
            if config.scale_weight_norms:
                training.adapters.limit_norms(config.scale_weight_norms)
            step += 1
            batches_done += len(group)
            report.losses(epoch, step, loss, rates)

            if is_due(step, config.save_every_n_steps) and step < plan.step_count:
                save(epoch=epoch, step=step, batch_in_epoch=batches_done, by="step")
            if is_due(step, config.sample_every_n_steps) and step < plan.step_count:
                preview(step=step)
        report.epoch_end(epoch)
        batches_done = 0
        if is_due(epoch, config.save_every_n_epochs) and epoch < plan.epoch_count:
            save(epoch=epoch, step=step, batch_in_epoch=0, by="epoch")
        if is_due(epoch, config.sample_every_n_epochs) and epoch < plan.epoch_count:
            preview(epoch=epoch)
    return step


@dataclasses.dataclass
class Inputs:
    """What the network is shown in one pass and what it should answer, on the device."""

    noisy: Any  # (B, C, h, w) float32
    t: Any  # (B,) timesteps
    target: Any  # (B, C, h, w) float32
    weights: Any  # (B,) of the losses
    conditioning: Any  # contracts.Conditioning, or None: the captions are encoded in the pass
    captions: list[str]
    sizes: Any  # (B, 6)


def draw(training: Training, prepared: Prepared, batch: Batch, generator: Any) -> Inputs:
    """Everything that is left to chance, and what can be done beforehand: on the CPU, where cached latents are."""
    from library import diffusion, losses

    config, process, family = prepared.config, training.process, training.family
    latents = family.encode_images(batch.pixels) if batch.latents is None else batch.latents
    t = process.draw_timesteps(len(latents), generator)
    noise = diffusion.draw_noise(latents, generator, config.noise_offset)
    noisy, target = process.corrupt(latents, noise, t)
    weights = batch.weights
    if config.min_snr_gamma:
        weights = weights * losses.min_snr_weight(process.snr(t), config.min_snr_gamma, family.noise.objective)
    place = prepared.machine.place
    conditioning = batch.conditioning and batch.conditioning.map(place)
    tensors = [place(tensor) for tensor in (noisy, t, target, weights)]
    return Inputs(*tensors, conditioning, batch.captions, place(batch.sizes))


def backward(training: Training, prepared: Prepared, inputs: Inputs, share: int) -> Any:
    """Forward and backward of one batch; its loss, a scalar on the device, divided by the batches of the step."""
    import torch

    from library import losses

    conditioning = inputs.conditioning
    if conditioning is None:
        with torch.set_grad_enabled(trains_text_encoder(prepared.config)):
            conditioning = training.family.encode_captions(inputs.captions, inputs.sizes)
    prediction = training.family.predict(inputs.noisy, inputs.t, conditioning)
    loss = (losses.per_sample(prediction, inputs.target) * inputs.weights).mean() / share
    training.scaler.scale(loss).backward()
    return loss.detach()


def seed_step(generator: Any, seed: int, step: int) -> None:
    """Noise and timesteps from `generator`, dropout from torch's own streams: both follow from (seed, step) alone."""
    import hashlib

    import torch

    number = int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:8], "big") >> 1
    generator.manual_seed(number)
    torch.manual_seed(number)


def in_groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """So many batches at a time; the last group of an epoch may be shorter."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def is_due(count: int, every: int | None) -> bool:
    return bool(every) and count % every == 0


class Files:
    """The files of a run, and what they say about it."""

    def __init__(self, prepared: Prepared, training: Training):
        from library import checkpoint, metadata
        from library.data import plan

        config = prepared.config
        self.prepared, self.training = prepared, training
        self.folder = Path(config.output_dir)
        self.suffix = config.save_model_as
        self.session_id, self.started_at = secrets.randbelow(2**32), time.time()
        self.facts = plan.metadata(prepared.plan) | {"ss_zero_terminal_snr": prepared.model.zero_terminal_snr}
        self.model = metadata.model_hashes(Path(config.pretrained_model_name_or_path))
        self.vae = metadata.model_hashes(Path(config.vae)) if config.vae else None
        self.dtype = checkpoint.PRECISIONS[config.save_precision]

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.prepared.name}{ending}"

    def save(self, *, epoch: int, step: int, batch_in_epoch: int = 0, by: str | None = None) -> Path:
        """Write the LoRA as it is, and the training state if the user wants it.

        Args:
            epoch: the one that the next batch belongs to is `epoch`, or `epoch + 1` if `batch_in_epoch` is 0.
            by: "epoch" or "step", whose number the file's name gets; None: the final file.
        """
        from library import checkpoint, metadata

        config, name = self.prepared.config, self.prepared.name
        number = {"epoch": dict(epoch=epoch), "step": dict(step=step), None: {}}[by]
        path = self.folder / checkpoint.file_name(name, self.suffix, **number)
        tensors = self.training.adapters.state_dict()
        entries = metadata.build(
            config,
            self.facts,
            self.training.family.metadata(),
            metadata.Run(
                output_name=name,
                session_id=self.session_id,
                started_at=self.started_at,
                saved_at=time.time(),
                epoch=epoch - (batch_in_epoch > 0),
                step=step,
                optimizer=self.training.optimizer_text,
                model=self.model,
                vae=self.vae,
            ),
        )
        checkpoint.save_adapter(path, tensors, entries, self.dtype)
        if config.save_state:
            position = (epoch, batch_in_epoch) if batch_in_epoch else (epoch + 1, 0)
            state = checkpoint.State(
                checkpoint.Position(*position, step),
                tensors,
                self.training.optimizer.state_dict(),
                self.training.schedule.state_dict(),
                self.training.scaler.state_dict(),
                facts=dict(name=name, seed=self.prepared.seed, config=dataclasses.asdict(config)),
            )
            checkpoint.save_state(self.folder / checkpoint.state_name(name, **number), state)
        if by == "epoch":
            old = checkpoint.expired_epoch(epoch, config.save_every_n_epochs, config.save_last_n_epochs)
            if old:
                checkpoint.remove_save(self.folder / checkpoint.file_name(name, self.suffix, epoch=old))
                checkpoint.remove_save(self.folder / checkpoint.state_name(name, epoch=old))
        return path


def draw_previews(prepared: Prepared, training: Training, strengths: tuple[float, ...] = (1.0,)) -> list[list]:
    """A row of pictures for each strength of the LoRA, one picture for each prompt."""
    from library import sampling

    device, modules = prepared.machine.device, training.family.modules()
    places = {name: next(module.parameters()).device for name, module in modules.items()}
    for module in modules.values():
        module.to(device)
    training.adapters.eval()
    rows = []
    try:
        for strength in strengths:
            training.adapters.multiplier = strength
            rows.append([sampling.draw(training.family, prompt, device) for prompt in prepared.prompts])
    finally:
        training.adapters.multiplier = 1.0
        training.adapters.train()
        for name, module in modules.items():
            module.to(places[name])
    return rows


def save_previews(prepared: Prepared, training: Training, *, epoch: int | None = None, step: int | None = None) -> None:
    """Previews in the middle of a run, named as sd-scripts names them."""
    folder = Path(prepared.config.output_dir) / "sample"
    folder.mkdir(exist_ok=True)
    when = f"e{epoch:06d}" if step is None else f"{step:06d}"
    clock = time.strftime("%Y%m%d%H%M%S")
    for index, picture in enumerate(draw_previews(prepared, training)[0]):
        seed = prepared.prompts[index].seed
        picture.save(folder / f"{prepared.name}_{when}_{index:02d}_{clock}_{seed}.png")


def run(config: Config, warnings: list[str]) -> int:
    """Train one LoRA.

    Args:
        config: checked.
        warnings: what the check found, to be said with the rest.

    Returns:
        0: trained, and the file was read back and found whole.

    Raises:
        UserError: something only the user can put right.
    """
    from library.messages import set_language

    set_language(config.language)
    prepared = prepare(config, warnings)
    training = build(prepared)

    import torch

    from library import checkpoint, sampling
    from library.data import captions
    from library.report import Report

    config, plan = prepared.config, prepared.plan
    files = Files(prepared, training)
    if config.tag_occurrence_txt_file:
        counts = captions.count_table(files.facts["ss_tag_frequency"], config.sort_tag_occurrence_alphabetically)
        files.path(".tags.txt").write_text(counts, encoding="utf-8")
    report = Report(
        files.path(".run.jsonl"),
        plan.step_count,
        first_step=prepared.state.position.global_step if prepared.state else 0,
        logging_dir=Path(config.logging_dir) if config.logging_dir else None,
    )
    report.event("start", name=prepared.name, config=dataclasses.asdict(config), steps=plan.step_count)
    draws = config.sample_every_n_epochs != 0
    try:
        step = train(
            prepared,
            training,
            report,
            save=files.save,
            preview=lambda **when: save_previews(prepared, training, **when) if draws else None,
        )
    except FloatingPointError as error:
        raise UserError(
            say(
                f"{error}: nothing was saved since. The cause is usually a learning rate that is too high, or fp16: "
                'lower learning_rate, or set mixed_precision = "bf16" or "no".',
                f"{error}，此后没有再保存。原因通常是学习率过高或 fp16 溢出："
                '请降低 learning_rate，或设 mixed_precision = "bf16" 或 "no"。',
            )
        ) from None
    except torch.OutOfMemoryError:
        raise UserError(
            say(
                "the device's memory is full. In this order: train_batch_size = 1, gradient_checkpointing = True, "
                "text_encoder_lr = 0, a lower resolution.",
                "显存不足。请依次尝试：train_batch_size = 1、gradient_checkpointing = True、text_encoder_lr = 0、"
                "降低 resolution。",
            )
        ) from None
    except KeyboardInterrupt:
        print(say("stopped by Ctrl-C", "已被 Ctrl-C 中止"), file=sys.stderr)
        return 130
    finally:
        report.close()

    path = files.save(epoch=plan.epoch_count, step=step)
    norms = checkpoint.read_back(path, {name: tensor.shape for name, tensor in training.adapters.state_dict().items()})
    if draws and prepared.prompts:
        without, with_lora = draw_previews(prepared, training, strengths=(0.0, 1.0))
        sampling.grid([without, with_lora]).save(files.path(".comparison.png"))
        with_lora[0].save(files.path(".preview.png"))  # web UIs show it beside the LoRA's name
    print(closing_words(prepared, path, norms))
    return 0


def closing_words(prepared: Prepared, path: Path, norms: dict[str, float]) -> str:
    """Where the result lies, what it learned, and how to use it."""
    learned = ", ".join(f"{part} {norm:.2f}" for part, norm in norms.items())
    folders = prepared.plan.found.folders
    words = sorted({folder.text for folder in folders if folder.text and not folder.is_regularization})
    invoked = ", ".join([f"<lora:{path.stem}:0.8>", *words])
    comparison = path.with_name(f"{prepared.name}.comparison.png")
    lines = [
        say(
            f"saved {path} ({path.stat().st_size / 2**20:.1f} MiB; norm of what was learned: {learned})",
            f"已保存 {path}（{path.stat().st_size / 2**20:.1f} MiB；学到的量（范数）：{learned}）",
        ),
        say(
            f"To use it: copy it to models/Lora (AUTOMATIC1111, Forge) or models/loras (ComfyUI), and begin the prompt "
            f"with: {invoked}",
            f"使用方法：复制到 models/Lora（AUTOMATIC1111、Forge）或 models/loras（ComfyUI），"
            f"提示词以此开头：{invoked}",
        ),
    ]
    if comparison.exists():
        lines.append(
            say(
                f"Pictures without it (above) and with it (below): {comparison}",
                f"未使用（上）与使用（下）该 LoRA 的对比图：{comparison}",
            )
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
