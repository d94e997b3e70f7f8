"""Train a LoRA: flags as in sd-scripts in, a .safetensors out. `lora_train_command_line.py` runs this without flags.

Here the parts are built and one's product is handed to the next; what each does stands in library/. Read from the end:
`run` is the whole story, `train` the loop with its arithmetic in view. A run's randomness follows from (seed, step)
alone: noise and timesteps from one generator, dropout from torch's own streams, both seeded anew for every batch.
"""

import contextlib
import dataclasses
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from library import arguments, kohya
from library.checks import check, differences
from library.config import Config, trains_text_encoder, trains_unet
from library.contracts import Batch, Family
from library.messages import Stopped, UserError, say


def main(argv: list[str]) -> int:
    """Flags to an exit code; what there is to say is printed.

    Returns:
        0: trained, or stopped and saved. 1: crashed. 2: the user has something to put right. 130: a second Ctrl-C.
    """
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
    except Stopped:
        return 0
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
    world: Any  # processes.World
    claim: Any  # checkpoint.Claim on the name; None in all processes but the first
    data: str  # changes with the pictures, captions and folders


def prepare(config: Config, warnings: list[str], world: Any) -> Prepared:
    """Do all cheap things first: read names, pictures, captions and prompts; then say what will happen.

    Raises:
        UserError: all that is wrong with them, together.
    """
    from library.data import buckets, samples

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
    machine = attempt(device.choose, world.device or config.device, config.mixed_precision, model.width if model else 0)
    if machine:
        attempt(device.self_test, machine)
    rule = attempt(buckets.resolve_resolution, config, model.resolution, model.size_step) if model else None
    output_dir = Path(config.output_dir)
    attempt(make_folder, output_dir)
    state = attempt(find_state, config) if world.is_first else None
    start = attempt(checkpoint.load_adapter, Path(config.network_weights)) if config.network_weights else None
    prompts = attempt(sampling.read_prompts, Path(config.sample_prompts)) if config.sample_prompts else None
    optimizer_args = attempt(optimizers.parse_args, config.optimizer_args)
    if problems:
        raise UserError(problems)

    state, claim = claim_name(config, state) if world.is_first else (None, None)
    try:
        state, name = world.told((state, claim and claim.name))
        prepared = plan_run(config, warnings, found, model, machine, rule, prompts, optimizer_args, start, state, name)
    except BaseException:
        if claim:
            claim.release()
        raise
    return dataclasses.replace(prepared, world=world, claim=claim, seed=world.told(prepared.seed))


def plan_run(
    config: Config,
    warnings: list[str],
    found: Any,
    model: Any,
    machine: Any,
    rule: Any,
    prompts: Any,
    optimizer_args: dict[str, Any],
    start: Any,
    state: Any,
    name: str,
) -> Prepared:
    """Resolve what depends on several of the things that were read, and say what will happen."""
    from library import families, optimizers, sampling
    from library.data import captions, plan

    output_dir = Path(config.output_dir)
    seed = state.facts["seed"] if state and config.seed is None else config.seed
    seed = secrets.randbelow(2**32) if seed is None else seed
    planned = plan.make_plan(found, config, rule, whole_batches=machine.tunes_per_shape)
    wanted_step = rule.step
    while (
        machine.bucket_limit
        and config.bucket_reso_steps is None
        and len(planned.sizes) > machine.bucket_limit
        and rule.step <= rule.width // 8
    ):
        rule = dataclasses.replace(rule, step=rule.step * 2)
        planned = plan.make_plan(found, config, rule, whole_batches=True)
    if rule.step != wanted_step:
        warnings = warnings + [
            say(
                f"bucket_reso_steps = {rule.step} leaves {len(planned.sizes)} buckets: each costs minutes of tuning "
                "on this card",
                f"bucket_reso_steps 改为 {rule.step}，桶减为 {len(planned.sizes)} 个：此显卡每个桶都要调优几分钟",
            )
        ]
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
    data = fingerprint_of_data(planned)
    if state:
        warnings += state.notices + changes_since(state, config, data)
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
    if state:
        print(
            say(
                f'going on with {name} after step {state.position.global_step} (resume = "new" begins anew)',
                f'接着训练 {name}，从第 {state.position.global_step} 步之后继续（resume = "new" 则重新开始）',
            )
        )
    sys.stdout.flush()
    return Prepared(
        config, seed, name, model, planned, prompts, machine, optimizer_args, start, state, None, None, data
    )


def find_state(config: Config) -> Any:
    """The training state to go on from; None: begin anew."""
    from library import checkpoint

    if config.resume in (None, "new"):
        return None
    if config.resume == "auto":
        return checkpoint.newest_state(Path(config.output_dir), config.output_name)
    return checkpoint.load_state(Path(config.resume))


def claim_name(config: Config, state: Any) -> tuple[Any, Any]:
    """The state, and a hold on the run's name. A state whose run is under way at this moment is left alone."""
    from library import checkpoint

    output_dir = Path(config.output_dir)
    busy: set[str] = set()
    while state:
        try:
            return state, checkpoint.claim(output_dir, state.facts["name"])
        except UserError:
            if config.resume != "auto":
                raise
        busy.add(state.facts["name"])
        state = checkpoint.newest_state(output_dir, config.output_name, busy)
    return None, checkpoint.claim_free_name(output_dir, config.output_name)


def fingerprint_of_data(plan: Any) -> str:
    """Changes with the pictures' names, sizes and bytes, the captions, the folders and how often they are repeated.

    Bytes are counted, not read: there may be a hundred thousand pictures, and a copy has another date.
    """
    facts = [
        (
            sample.folder,
            sample.image_path.name,
            sample.image_path.stat().st_size,
            sample.width,
            sample.height,
            sample.caption,
            sample.repeats,
        )
        for sample in plan.samples_used
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def changes_since(state: Any, config: Config, data: str) -> list[str]:
    """What is not as it was when the state was saved.

    Raises:
        UserError: something is, and the user has not asked for this very state.
    """
    changes = differences(state.facts["config"], config)
    if state.facts.get("data", data) != data:
        changes.append(say("the pictures or captions have changed", "图片或标签有改动"))
    if changes and config.resume == "auto":
        folder = Path(config.output_dir) / f"{state.facts['name']}-state"
        raise UserError(
            changes
            + [
                say(
                    f'set these back to go on, or resume = "new" to begin anew, or resume = "{folder}" to go on all '
                    "the same",
                    f'请改回原值以接着训练；或设 resume = "new" 重新开始；或设 resume = "{folder}" 仍然接着训练',
                )
            ],
            say(
                f"{state.facts['name']} was stopped after step {state.position.global_step} and can be continued, but:",
                f"{state.facts['name']} 在第 {state.position.global_step} 步后中断，可以接着训练，但是：",
            ),
        )
    return changes


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
    unet_forward: Any  # families.unet_forward.UNetForward
    memory: Any  # memory.Plan
    step: Any  # `unet_step`'s, or cuda_graphs.Graphs in its place
    batch_parts: int = 1  # a batch goes through the network in so many pieces; more where memory ran out

    def restore(self, state: Any) -> None:
        """Take over what a training state holds."""
        self.adapters.load_state_dict(state.adapter)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        device = next(iter(self.adapters.parameters())).device.type
        self.scaler = type(self.scaler)(device, enabled=self.scaler.is_enabled())  # the old one may be amid a step
        if state.scaler:  # saved in fp16
            self.scaler.load_state_dict(state.scaler)
        self.adapters.refresh()


def build(prepared: Prepared) -> Training:
    """Load the model, encode what is encoded once, and hook the adapters in."""
    import torch

    from library import attention, diffusion, families, memory, optimizers, schedules
    from library.data.dataset import Dataset

    config, machine = prepared.config, prepared.machine
    attend = attention.choose(machine.device, machine.dtype, config.attention)
    print(attend.description)
    plan = plan_memory(prepared, attend)
    print(
        memory.table(plan, machine.device, say("memory:", "显存："))
        if machine.device.type != "cpu"
        else memory.table(plan, machine.device, say("memory:", "内存："))
    )
    for line in ways_to_fit(prepared, attend, plan):
        print(say(f"note: {line}", f"注意：{line}"))
    sys.stdout.flush()
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
    parts = family.modules()
    attention.install(parts["vae"], attend)
    latents, texts = fill_caches(prepared, family)
    if config.int8_base:
        pack_base(family)
    for name, module in parts.items():  # what is in the caches is not needed on the device
        is_cached = (name == "vae" and latents) or (name.startswith("text_encoder") and texts)
        module.to("cpu" if is_cached else machine.device)
    if config.gradient_checkpointing is True and trains_text_encoder(config):
        for name in parts:
            if name.startswith("text_encoder"):  # recomputes in training mode only
                parts[name].train().gradient_checkpointing_enable({"use_reentrant": False})

    attached, unet_forward = attach(config, family, attend, prepared.seed, plan.checkpointed)
    if prepared.start:
        attached.load_state_dict(prepared.start)
    optimizer_type = optimizer_of(config)
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
        unet_forward=unet_forward,
        memory=plan,
        step=unet_step(config, family),
    )
    if config.torch_compile:
        compile_units(config, training)
    if config.cuda_graphs:
        record_steps(prepared, training)
    if prepared.state:
        training.restore(prepared.state)
    return training


def record_steps(prepared: Prepared, training: Training) -> None:
    """Let CUDA graphs take the place of the step, where there are any."""
    from library import cuda_graphs

    device = prepared.machine.device
    reason = cuda_graphs.hindrance(device, is_random=bool(prepared.config.network_dropout))
    if reason is None:
        buffers = [arena.gradient for arena in training.adapters.arenas.values()]
        recorder = cuda_graphs.CudaRecorder(device)
        training.step = cuda_graphs.Graphs(training.step, buffers, recorder, partial(print, flush=True))
        print(training.step.description)
    else:
        print(say(f"note: no CUDA graphs: {reason}", f"注意：不使用 CUDA graphs：{reason}"))


def compile_units(config: Config, training: Training) -> None:
    """Let compiled functions take the place of the U-Net's resnets and transformer blocks."""
    from library.adapters import linear_ops, recipes
    from library.compilation import Compiler
    from library.families.unet_forward import UNetForward

    if config.network_dropout:
        print(
            say(
                "note: torch_compile is off: dropout would draw other numbers",
                "注意：不使用 torch_compile：dropout 取到的随机数会不同",
            )
        )
        return
    for name, layer in training.adapters.layers.items():
        if name.startswith("lora_unet"):
            layer.is_fused = False  # where the plain functions call it; the fast ones do not ask
    fast = training.unet_forward
    attend = dataclasses.replace(fast.attend, asked=fast.attend.kind)  # nothing left to try out while compiling
    plain = UNetForward(fast.unet, linear_ops.PLAIN, recipes, attend)
    compiler = Compiler(partial(print, flush=True), config.dynamo_backend)
    fast.resnet = compiler(plain.resnet, fast.resnet)
    fast.transformer_block = compiler(plain.transformer_block, fast.transformer_block)


def optimizer_of(config: Config) -> str:
    return "AdamW8bit" if config.use_8bit_adam else config.optimizer_type


def attach(config: Config, family: Family, attend: Any, seed: int, checkpointed: Collection[str]) -> tuple[Any, Any]:
    """Hook the adapters into a model, and its U-Net's forward pass into the fast functions."""
    from library import adapters, optimizers
    from library.adapters import linear_ops, recipes
    from library.families.unet_forward import UNetForward

    parts = family.modules()
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
        seed=seed,
    )
    forward = UNetForward(
        parts["unet"],
        linear_ops.FAST,
        recipes,
        attend,
        checkpointed=checkpointed,
        is_random=bool(config.network_dropout),
    )
    parts["unet"].forward = forward
    return attached, forward


def pack_base(family: Family) -> None:
    """Hold the linear layers of the U-Net's transformers in 8 bits."""
    from library import memory

    for target in family.targets():
        if target.part == "unet" and not target.needs_conv_dim:
            memory.to_int8(target.layer)


def plan_memory(
    prepared: Prepared, attend: Any, *, batch_size: int | None = None, checkpointing: bool | str | None = None
) -> Any:
    """What the run will need at its largest pictures, counted on a model without weights; see `memory.plan`.

    Args:
        batch_size, checkpointing: instead of the configuration's.
    """
    import torch

    from library import families, memory, optimizers
    from library.contracts import Conditioning

    config, device, dtype = prepared.config, prepared.machine.device, prepared.machine.dtype
    family = families.blueprint(prepared.model, config.max_token_length)
    modules = {name: module.to(dtype).requires_grad_(False) for name, module in family.modules().items()}
    unet = modules["unet"]
    if config.int8_base:
        pack_base(family)
    attached, forward = attach(config, family, attend, 0, ())
    batch_size = batch_size or config.train_batch_size
    width, height = max((fit.bucket for fit in prepared.plan.fits.values()), key=lambda bucket: bucket[0] * bucket[1])
    scale = 2 ** (len(modules["vae"].config.block_out_channels) - 1)
    positions = config.max_token_length + 2
    pooled = getattr(unet.config, "projection_class_embeddings_input_dim", None)

    def step(traced: Any) -> Any:
        forward.watch = traced.unit
        new = partial(torch.empty, device="meta")
        noisy = new(batch_size, 4, height // scale, width // scale)
        if trains_text_encoder(config):
            conditioning = family.encode_captions([""] * batch_size, new(batch_size, 6))
        else:
            conditioning = Conditioning(
                new(batch_size, positions, unet.config.cross_attention_dim, dtype=dtype),
                new(batch_size, pooled - 6 * unet.config.addition_time_embed_dim, dtype=dtype) if pooled else None,
                new(batch_size, 6),
            )
        prediction = family.predict(noisy, new(batch_size, dtype=torch.long), conditioning)
        return (prediction.float() - new(noisy.shape)).square().mean()

    def measure(names: Collection[str]) -> Any:
        forward.checkpointed = frozenset(names)
        return memory.trace(step)

    count = sum(parameter.numel() for parameter in attached.parameters())
    halves = 0 if dtype == torch.float32 else 4  # what the model reads, and its gradient
    held = ["unet"]
    held += [] if config.cache_latents else ["vae"]
    if trains_text_encoder(config) or not config.cache_text_encoder_outputs:
        held += [name for name in modules if name.startswith("text_encoder")]
    parts = {
        say("base model", "底模"): sum(memory.weight_bytes(modules[name]) for name in held),
        say("LoRA and optimizer", "LoRA 与优化器"): count
        * (4 + (halves or 4) + optimizers.state_bytes(optimizer_of(config))),
        say("device's libraries (estimate)", "设备库（估计）"): memory.workspace(device, unet),
    }
    checkpointing = config.gradient_checkpointing if checkpointing is None else checkpointing
    return memory.plan(measure, parts, memory.available(device), checkpointing)


def ways_to_fit(prepared: Prepared, attend: Any, plan: Any) -> list[str]:
    """What to change where the run does not fit, each with what it would then need."""
    config = prepared.config
    if plan.fits:
        return []
    lines = [
        say(
            f"this run needs {plan.need >> 20:,} MiB, but {plan.budget >> 20:,} are free: it will probably run out of "
            "memory. Close other programs, or:",
            f"本次训练需要 {plan.need >> 20:,} MiB，但只有 {plan.budget >> 20:,} MiB 可用，很可能不够。"
            "请关闭其他程序，或者：",
        )
    ]
    changes: list[tuple[str, dict, dict]] = []
    if plan.checkpointed == () and config.gradient_checkpointing is False:
        changes.append(('gradient_checkpointing = "auto"', {}, dict(checkpointing="auto")))
    if config.train_batch_size > 1:
        changes.append(("train_batch_size = 1", {}, dict(batch_size=1)))
    if trains_text_encoder(config):
        changes.append(("text_encoder_lr = 0", dict(text_encoder_lr=0.0), {}))
    if not config.int8_base:
        changes.append(("int8_base = True", dict(int8_base=True), {}))
    for name, options, settings in changes:
        other = dataclasses.replace(prepared, config=dataclasses.replace(config, **options))
        need = plan_memory(other, attend, **settings).need >> 20
        lines.append(say(f"{name}: {need:,} MiB", f"{name}：{need:,} MiB"))
    return lines


def is_trained(part: str, config: Config) -> bool:
    """Whether a part of the model, "unet" or a text encoder, gets adapters."""
    return trains_unet(config) if part == "unet" else trains_text_encoder(config)


def fill_caches(prepared: Prepared, family: Family) -> tuple[Any, Any]:
    """Encode pictures, and captions where they can be known beforehand; None for what is not cached."""
    import torch

    from library.data import cache, dataset

    config, plan, device = prepared.config, prepared.plan, prepared.machine.device
    folder, line = cache.cache_folder(config)
    if line:
        print(say(f"note: {line}", f"注意：{line}"))
    modules = family.modules()
    latents = texts = None
    if folder and not prepared.world.is_first:
        prepared.world.told(None)  # the first has filled them
    if config.cache_latents:
        vae = modules["vae"].to(device)

        filled, batch_size = None, config.train_batch_size
        while filled is None:
            latents = cache.LatentCache(folder, cache.fingerprint(vae))
            try:
                filled = latents.fill(
                    dataset.latents_wanted(plan, config),
                    family.encode_images,
                    batch_size=batch_size,
                    thread_count=config.max_data_loader_n_workers,
                )
            except cache.BadLatents as error:
                if next(vae.parameters()).dtype == torch.float32:
                    raise
                print(say(f"note: {error}: trying in float32", f"注意：{error}；改用 float32 再试"), flush=True)
                vae.float()
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size = 1
                print(say("note: not enough memory: pictures are encoded one by one", "注意：显存不足，改为逐张编码"))
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
        filled, batch_size = None, config.train_batch_size
        while filled is None:
            texts = cache.TextCache(folder, fingerprint)
            try:
                filled = texts.fill(captions, family.encode_captions, batch_size=batch_size)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size = 1
                print(
                    say("note: not enough memory: captions are encoded one by one", "注意：显存不足，改为逐条编码标签")
                )
        print(
            say(
                f"captions: {filled.made} encoded, {filled.reused} from the cache",
                f"标签编码：新编码 {filled.made} 条，取自缓存 {filled.reused} 条",
            ),
            flush=True,
        )
    if folder and prepared.world.is_first:
        prepared.world.told(None)
    return latents, texts


GO_ON, STOP, GO_BACK = range(3)  # what the first process tells the others after each step


def train(prepared: Prepared, training: Training, files: "Files | None", stop: Any) -> Any:
    """Train to the end, or until the user stops; a poisoned batch costs one step back to the last state.

    Args:
        files: None in all processes but the first.

    Returns:
        Where it ended, a `checkpoint.Position`.

    Raises:
        UserError: NaN came a second time, or memory is full.
    """
    import torch

    from library import checkpoint

    state, world = prepared.state, prepared.world  # files have saved a first one: there is always one to go back to
    position = state.position if state else checkpoint.Position()
    skipped: set[int] = set(state.more.get("skipped", [])) if state else set()
    until = 0  # steps up to this one are looked at closely, each on its own
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


def announce(files: "Files | None", line: str) -> None:
    """Say something in the middle of the run."""
    if files:
        files.report.say(line)
    else:
        print(line, file=sys.stderr)


def not_finite(reason: str) -> UserError:
    return UserError(
        say(
            f"{reason}. What was saved before is whole. The cause is usually a learning rate that is too high, a "
            "broken picture or fp16: lower learning_rate, look at the pictures named, or set mixed_precision = "
            '"bf16" or "no".',
            f"{reason}。此前保存的文件完好。原因通常是学习率过高、图片有问题或 fp16 溢出：请降低 learning_rate，"
            '检查上面列出的图片，或设 mixed_precision = "bf16" 或 "no"。',
        )
    )


def steps(
    prepared: Prepared,
    training: Training,
    files: "Files | None",
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
            batches_done += len(group)
            position = type(position)(epoch, batches_done, step)
            tell = partial(tell_step, files, stop, position, loss, rates, skipped) if files else None
            if agreed(world, tell) == STOP:
                return position
        batches_done = 0
        position = type(position)(epoch + 1, 0, step)
        agreed(world, partial(tell_epoch, files, position, skipped) if files else None)
    if problem := what_is_lost(training):  # after the last step no loss tells of it
        raise FloatingPointError(problem)
    return position


@contextmanager
def tuned(prepared: Prepared, files: "Files | None", group: list[Batch | None], met: set[tuple]) -> Iterator[None]:
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


def tell_step(files: "Files", stop: Any, position: Any, loss: Any, rates: dict[str, float], skipped: set[int]) -> int:
    """Report a step, and save what is due after it."""
    config, step = files.prepared.config, position.global_step
    if step in skipped:
        files.report.skipped(position.epoch, step)
    else:
        files.report.losses(position.epoch, step, loss, rates)
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


def tell_epoch(files: "Files", position: Any, skipped: set[int]) -> int:
    """Report the epoch before `position`, and save what is due after it."""
    config, epoch = files.prepared.config, position.epoch - 1
    files.report.epoch_end(epoch)
    if epoch < files.prepared.plan.epoch_count:
        if is_due(epoch, config.save_every_n_epochs):
            files.save(position, by="epoch", skipped=skipped)
        if is_due(epoch, config.sample_every_n_epochs):
            files.preview(epoch=epoch)
    return GO_ON


def gradients(
    prepared: Prepared,
    training: Training,
    files: "Files | None",
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


def memory_full(reason: str) -> UserError:
    first = reason.splitlines()[0] if reason else "out of memory"
    return UserError(
        say(
            f"the device's memory is full, and nothing is left to save ({first}). Lower resolution or network_dim, set "
            "text_encoder_lr = 0 or int8_base = True, or close other programs.",
            f"显存不足，已没有可再节省的部分（{first}）。请降低 resolution 或 network_dim，设 text_encoder_lr = 0 或 "
            "int8_base = True，或关闭其他程序。",
        )
    )


def use_less_memory(prepared: Prepared, training: Training) -> str | None:
    """Take the next measure, the cheapest first; what it is and what it costs. None: there is none left."""
    forward, plan = training.unet_forward, training.memory
    if hasattr(training.step, "give_up") and training.step.give_up():
        return say("no CUDA graphs any more, somewhat slower", "不再使用 CUDA graphs，略慢")
    attend = forward.attend
    smallest = 8 * 2**20
    if attend.kind == "chunked" and attend.chunk_bytes > smallest:
        forward.attend = dataclasses.replace(attend, chunk_bytes=attend.chunk_bytes // 2)
        size = forward.attend.chunk_bytes >> 20
        return say(f"attention in chunks of {size} MiB, hardly slower", f"注意力改为每块 {size} MiB，几乎不变慢")
    for name, module in training.family.modules().items():
        is_idle = name.startswith("text_encoder") and not trains_text_encoder(prepared.config)
        if is_idle and next(module.parameters()).device.type != "cpu":
            module.to("cpu")
            return say(f"{name} works on the CPU, somewhat slower", f"{name} 移到 CPU 上运行，略慢")
    units = plan.unlimited.units
    left = [name for name in units if name not in forward.checkpointed]
    if left:
        left.sort(key=lambda name: units[name].kept / max(1, units[name].flops), reverse=True)
        more = left[: max(1, (len(left) + 1) // 2)]
        forward.checkpointed |= frozenset(more)
        extra = sum(units[name].flops for name in more) / plan.unlimited.flops
        count, of = len(forward.checkpointed), len(units)
        return say(
            f"{count} of {of} blocks are computed twice now, {extra:.0%} more arithmetic",
            f"现在 {of} 个模块中有 {count} 个算两遍，计算量增加 {extra:.0%}",
        )
    if training.batch_parts < prepared.config.train_batch_size:
        training.batch_parts *= 2
        return say(
            f"each batch goes through in {training.batch_parts} parts, with the same result; slower",
            f"每个批次分 {training.batch_parts} 次计算，结果不变，较慢",
        )
    return None


def what_is_lost(training: Training) -> str | None:
    """Why what was trained is worth nothing any more; None: it is sound. Waits for the device."""
    from library import nan

    if not nan.are_finite(training.adapters.parameters()):
        return say("a trained weight is NaN or infinite", "训练的权重出现 NaN 或无穷大")
    if scale_is_lost(training):
        return say("the gradients are NaN or infinite at every step", "每一步的梯度都是 NaN 或无穷大")
    return None


def scale_is_lost(training: Training) -> bool:
    """Whether fp16's loss scale fell so low that it cannot have been overflow."""
    return training.scaler.is_enabled() and training.scaler.get_scale() < 1


def is_sound(training: Training, loss: Any) -> bool:
    """Whether a step's loss and gradients are finite. Infinite gradients in fp16 are the loss scale's business."""
    from library import nan

    found = [loss]
    if not training.scaler.is_enabled() or scale_is_lost(training):
        found += [parameter.grad for parameter in training.adapters.parameters()]
    return nan.are_finite(found)


def name_cause(prepared: Prepared, training: Training, group: list[Batch], generator: Any, step: int) -> str:
    """Do a step's passes once more, slowly: which tensor is the first that is not finite, in which batch."""
    from library import nan

    causes = []
    for place, batch in enumerate(group):
        if batch is None:
            continue
        seed_step(generator, prepared.seed, step, place)
        inputs = draw(training, prepared, batch, generator)
        conditioning = inputs.conditioning

        def run(hunt: Any, inputs: Inputs = inputs) -> None:
            training.unet_forward.watch = hunt.unit
            backward(training, prepared, inputs, 1.0)

        named = {
            say("the latents", "图片编码"): batch.latents,
            say("the captions' states", "标签编码"): conditioning and conditioning.states,
            say("the noisy latents", "加噪后的图片编码"): inputs.noisy,
        }
        try:
            cause = nan.first_bad(named, run)
        finally:
            training.unet_forward.watch = None
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
    weights: Any  # (B,) of the losses
    conditioning: Any  # contracts.Conditioning, or None: the captions are encoded in the pass
    captions: list[str]
    sizes: Any  # (B, 6)

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
                self.weights[part],
                self.conditioning and self.conditioning.map(lambda tensor, part=part: tensor[part]),
                self.captions[part],
                self.sizes[part],
            )


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


def backward(training: Training, prepared: Prepared, inputs: Inputs, share: float) -> Any:
    """Forward and backward of one batch, or a part of it; its loss, a scalar on the device, times its share."""
    import torch

    conditioning, trains_text = inputs.conditioning, trains_text_encoder(prepared.config)
    if conditioning is None:
        with torch.set_grad_enabled(trains_text):
            conditioning = training.family.encode_captions(inputs.captions, inputs.sizes)
        conditioning = conditioning.map(prepared.machine.place)
    step = training.step if training.unet_forward.watch is None else unet_step(prepared.config, training.family)
    scale = training.scaler.scale(torch.ones((), device=inputs.noisy.device))
    given = (conditioning.states, conditioning.pooled)
    loss, *gradients = step(
        inputs.noisy, inputs.t, inputs.target, inputs.weights * share, scale, *given, conditioning.sizes
    )
    pairs = [pair for pair in zip(given, gradients, strict=True) if pair[1] is not None and pair[0].requires_grad]
    if pairs:  # on into the text encoders
        torch.autograd.backward(*zip(*pairs, strict=True))
    return loss


def unet_step(config: Config, family: Family) -> Any:
    """Forward and backward of the U-Net, as a function of tensors alone: what a CUDA graph can hold."""
    from library import losses
    from library.contracts import Conditioning

    trains_text = trains_text_encoder(config)

    def step(noisy: Any, t: Any, target: Any, weights: Any, scale: Any, states: Any, pooled: Any, sizes: Any) -> Any:
        """The loss, and the gradients of the captions' states and of the pooled captions, if they are wanted."""
        states, pooled = (x if x is None else x.detach().requires_grad_(trains_text) for x in (states, pooled))
        prediction = family.predict(noisy, t, Conditioning(states, pooled, sizes))
        loss = (losses.per_sample(prediction, target) * weights).mean()
        loss.backward(scale)
        return loss.detach(), states.grad, None if pooled is None else pooled.grad

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


STATE_SECONDS = 30.0  # between two states while training; longer where saving one takes more than 1/50 of that


class Files:
    """The files of a run, and what they say about it."""

    def __init__(self, prepared: Prepared, training: Training, stop: Any):
        from library import checkpoint, metadata
        from library.data import plan

        config, state = prepared.config, prepared.state
        self.prepared, self.training, self.stop = prepared, training, stop
        self.folder = Path(config.output_dir)
        self.suffix = config.save_model_as
        before = state.facts if state else {}
        self.session_id = before.get("session_id", secrets.randbelow(2**32))
        self.started_at = before.get("started_at", time.time())
        self.facts = plan.metadata(prepared.plan) | {"ss_zero_terminal_snr": prepared.model.zero_terminal_snr}
        self.model = metadata.model_hashes(Path(config.pretrained_model_name_or_path))
        self.vae = metadata.model_hashes(Path(config.vae)) if config.vae else None
        self.dtype = checkpoint.PRECISIONS[config.save_precision]
        self.state_wait = STATE_SECONDS
        self.state_saved_at = time.monotonic()
        self.report: Any = None
        if state is None:  # before all other files: a run of which only these are left could not be gone on with
            self.save_state(checkpoint.Position(), ())
        self.begin_report(state.position.global_step if state else 0)
        self.report.event("start", name=prepared.name, config=dataclasses.asdict(config), steps=self.step_count)

    @property
    def step_count(self) -> int:
        return self.prepared.plan.step_count

    def begin_report(self, step: int) -> None:
        """Tell of the steps after `step`; what was told of them before is forgotten."""
        from library.report import Report

        if self.report:
            self.report.waiting = []
            self.report.close()
        folder = self.prepared.config.logging_dir
        self.report = Report(
            self.path(".run.jsonl"), self.step_count, first_step=step, logging_dir=Path(folder) if folder else None
        )

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.prepared.name}{ending}"

    def write_tags(self) -> None:
        """How often each tag occurs, for the user to look through."""
        from library.data import captions

        is_sorted = self.prepared.config.sort_tag_occurrence_alphabetically
        counts = captions.count_table(self.facts["ss_tag_frequency"], is_sorted)
        path = self.path(".tags.txt")
        self._write(path, len(counts), lambda: path.write_text(counts, encoding="utf-8"))

    @property
    def state_folder(self) -> Path:
        """Of the state that is kept while training, and under save_state beyond its end."""
        from library import checkpoint

        return self.folder / checkpoint.state_name(self.prepared.name)

    def save(self, position: Any, *, by: str | None = None, skipped: Collection[int] = ()) -> Path:
        """Write the LoRA as it is, and a training state beside it if the user wants it.

        Args:
            by: "epoch" or "step", whose number the file's name gets; None: the final file.
        """
        from library import checkpoint, metadata

        config, name = self.prepared.config, self.prepared.name
        epochs_done = position.epoch - 1
        number = {"epoch": dict(epoch=epochs_done), "step": dict(step=position.global_step), None: {}}[by]
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
                epoch=epochs_done,
                step=position.global_step,
                optimizer=self.training.optimizer_text,
                model=self.model,
                vae=self.vae,
                process_count=self.prepared.world.count,
            ),
        )
        size = sum(tensor.nbytes for tensor in tensors.values())
        self._write(path, size, lambda: checkpoint.save_adapter(path, tensors, entries, self.dtype))
        if config.save_state and by:
            self._save_state(self.folder / checkpoint.state_name(name, **number), position, skipped)
        if by == "epoch":
            old = checkpoint.expired_epoch(epochs_done, config.save_every_n_epochs, config.save_last_n_epochs)
            if old:
                checkpoint.remove_save(self.folder / checkpoint.file_name(name, self.suffix, epoch=old))
                checkpoint.remove_save(self.folder / checkpoint.state_name(name, epoch=old))
        return path

    def state_is_due(self) -> bool:
        return time.monotonic() - self.state_saved_at > self.state_wait

    def save_state(self, position: Any, skipped: Collection[int], *, is_finished: bool = False) -> None:
        """Keep what is needed to go on exactly from here."""
        began = time.monotonic()
        self._save_state(self.state_folder, position, skipped, is_finished)
        self.state_saved_at = time.monotonic()
        self.state_wait = max(STATE_SECONDS, 50 * (self.state_saved_at - began))

    def _save_state(self, folder: Path, position: Any, skipped: Collection[int], is_finished: bool = False) -> None:
        from library import checkpoint

        prepared, training = self.prepared, self.training
        if problem := what_is_lost(training):
            raise FloatingPointError(problem)
        if self.report:  # no state knows of a step that run.jsonl does not
            self._write(self.path(".run.jsonl"), 2**16, self.report.flush)
        state = checkpoint.State(
            position,
            training.adapters.state_dict(),
            training.optimizer.state_dict(),
            training.schedule.state_dict(),
            training.scaler.state_dict(),
            facts=dict(
                name=prepared.name,
                seed=prepared.seed,
                config=dataclasses.asdict(prepared.config),
                data=prepared.data,
                session_id=self.session_id,
                started_at=self.started_at,
                finished=is_finished,
            ),
            more=dict(skipped=sorted(skipped)),
        )
        size = 3 * sum(tensor.nbytes for tensor in state.adapter.values())
        self._write(folder, size, lambda: checkpoint.save_state(folder, state))

    def load_state(self) -> Any:
        from library import checkpoint

        return checkpoint.load_state(self.state_folder)

    def finish(self, position: Any) -> None:
        """The run has its result: the state that was kept for a kill goes, unless the user wants states."""
        from library import checkpoint

        if self.prepared.config.save_state:
            self.save_state(position, (), is_finished=True)
        else:
            checkpoint.remove_save(self.state_folder)

    def preview(self, *, epoch: int | None = None, step: int | None = None) -> None:
        """Previews in the middle of a run, named as sd-scripts names them."""
        if self.prepared.config.sample_every_n_epochs == 0:
            return
        folder = self.folder / "sample"
        self._write(folder, 2**12, lambda: folder.mkdir(exist_ok=True))
        when = f"e{epoch:06d}" if step is None else f"{step:06d}"
        clock = time.strftime("%Y%m%d%H%M%S")
        rows = draw_previews(self.prepared, self.training, self.report)
        for index, picture in enumerate(rows[0] if rows else []):
            self.picture(
                folder / f"{self.prepared.name}_{when}_{index:02d}_{clock}_{self.prepared.prompts[index].seed}.png",
                picture,
            )

    def picture(self, path: Path, picture: Any) -> None:
        """Write a picture."""
        self._write(path, 2**20, partial(picture.save, path))

    def _write(self, path: Path, size: int, write: Any) -> None:
        from library import checkpoint, disk

        keep = self.prepared.config.save_last_n_epochs
        say_line = self.report.say if self.report else partial(print, flush=True)

        def may_free() -> bool:
            return bool(keep) and checkpoint.remove_oldest_epoch(self.folder, self.prepared.name, keep - 1)

        disk.writing(
            path,
            write,
            size=size,
            may_free=may_free,
            say_line=say_line,
            is_stopped=lambda: self.stop.requested() == "signal",
        )


def draw_previews(
    prepared: Prepared, training: Training, report: Any, strengths: tuple[float, ...] = (1.0,)
) -> list[list]:
    """A row of pictures for each strength of the LoRA, one picture for each prompt; none where memory is too small."""
    import torch

    from library import sampling

    if hasattr(training.step, "clear"):
        training.step.clear()  # previews want its memory
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
    except torch.OutOfMemoryError:
        report.say(say("no previews: not enough memory for them", "显存不足，这次没有画预览图"))
        return []
    finally:
        training.adapters.multiplier = 1.0
        training.adapters.train()
        for name, module in modules.items():
            module.to(places[name])
    return rows


def run(config: Config, warnings: list[str]) -> int:
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
    from library import cards, crash_report, processes
    from library.messages import set_language
    from library.stop import Stop

    set_language(config.language)
    lines = [] if config.device in ("cpu", "mps") else cards.prepare_environment()  # before torch is imported
    if config.device_plan == "print only" and not lines:
        lines = [say("nothing needs to be set on this machine", "这台机器不需要任何设置")]
    for line in lines:
        print(say(f"device plan: {line}", f"设备设置：{line}"))
    if config.device_plan == "print only":
        return 0
    if processes.is_wanted(config):
        script = str(Path(__file__).resolve())
        return processes.launch(config, [sys.executable, script, *arguments.to_arguments(config)])
    world = processes.World(is_cpu=config.device == "cpu")
    config = dataclasses.replace(config, num_processes=max(1, world.count // config.num_machines))
    if not world.is_first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the first talks for all
    prepared = prepare(config, warnings, world)
    files = None
    try:
        with Stop(Path(config.output_dir)) as stop:
            training = build(prepared)
            if world.is_first:
                check_disk(prepared, training)
                files = Files(prepared, training, stop)
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
        if prepared.claim:
            prepared.claim.release()
        world.leave()


def check_disk(prepared: Prepared, training: Training) -> None:
    """Compare what will be written with what is free."""
    from library import disk

    plan, config = prepared.plan, prepared.config
    sizes = [prompt.width * prompt.height for prompt in prepared.prompts]
    needs = disk.needed(
        config,
        parameter_count=sum(parameter.numel() for parameter in training.adapters.parameters()),
        epoch_count=plan.epoch_count,
        step_count=plan.step_count,
        preview_count=len(sizes),
        preview_pixels=max(sizes, default=0),
    )
    for line in disk.check(needs):
        print(say(f"note: {line}", f"注意：{line}"), flush=True)


def finish(prepared: Prepared, training: Training, files: Files, position: Any) -> int:
    """What follows the loop: the final file, pictures to compare, and how to go on."""
    from library import checkpoint, sampling

    config, plan = prepared.config, prepared.plan
    if position.global_step < plan.step_count:
        command = arguments.command(dataclasses.replace(config, resume="auto"))
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
        raise Stopped
    try:
        path = files.save(position)
    except FloatingPointError as error:
        raise not_finite(str(error)) from None
    norms = checkpoint.read_back(path, {name: tensor.shape for name, tensor in training.adapters.state_dict().items()})
    draws = config.sample_every_n_epochs != 0 and prepared.prompts
    if draws and (rows := draw_previews(prepared, training, files.report, strengths=(0.0, 1.0))):
        without, with_lora = rows
        files.picture(files.path(".comparison.png"), sampling.grid([without, with_lora]))
        files.picture(files.path(".preview.png"), with_lora[0])  # web UIs show it beside the LoRA's name
    files.report.event("end", step=position.global_step, file=path.name)
    files.finish(position)
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
