"""The parts put together: model, caches, adapters, optimizer, schedule, dataset."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from library.contracts import Family, Step
from library.messages import say
from library.options.derived import has_dropout, trains_text_encoder
from library.options.training import Config
from library.training.attach import attach, pack_base, section_rates
from library.training.memory_plan import plan_memory, ways_to_fit
from library.training.prepare import Prepared


@dataclasses.dataclass
class Training:
    """Everything that the loop needs."""

    family: Family
    adapters: Any  # adapters.Adapters
    dataset: Any  # data.dataset.Dataset
    process: Any  # noise.Process
    optimizer: Any
    optimizer_text: str  # for the file's metadata
    schedule: Any
    scaler: Any  # torch.amp.GradScaler; does nothing unless the model is in fp16
    unet_forward: Any  # families.unet_forward.UNetForward
    blocks: Any  # hardware.blocks.Blocks
    memory: Any  # memory.Plan
    step: Step
    average: Any = None  # average.Average of the weights, where one is wanted
    text_stops: int | None = None  # after so many steps the text encoders are no longer trained; None: never
    batch_parts: int = 1  # a batch goes through the network in so many pieces; more where memory ran out

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights as they are to be saved and shown; see `optimizers.averaged`."""
        from library.optim import optimizers

        with optimizers.averaged(self.optimizer), self.average.shown() if self.average else nullcontext():
            self.adapters.refresh()
            yield
        self.adapters.refresh()

    def begin_step(self, step: int) -> bool:
        """Before each step, counted from 0: freeze the text encoders where it is time. Whether it is just now."""
        is_time = self.text_stops is not None and step >= self.text_stops
        is_new = is_time and not self.adapters.frozen
        self.adapters.frozen = {part for part in self.adapters.arenas if part != "unet"} if is_time else set()
        return is_new

    def restore(self, state: Any) -> None:
        """Take over what a training state holds."""
        self.adapters.load_state_dict(state.adapter)
        if self.average:
            self.average.load(state.more.get("average"))
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        device = next(iter(self.adapters.parameters())).device.type
        self.scaler = type(self.scaler)(device, enabled=self.scaler.is_enabled())  # the old one may be amid a step
        if state.scaler:  # saved in fp16
            self.scaler.load_state_dict(state.scaler)
        self.adapters.refresh()


def build(prepared: Prepared, unet_step: Callable[[Config, Family], Any]) -> Training:
    """Load the model, encode what is encoded once, and hook the adapters in.

    Args:
        unet_step: gives the forward and backward pass of the U-Net as a function of tensors alone.
    """
    import torch

    from library import families
    from library.data.dataset import Dataset
    from library.diffusion import noise, prompts
    from library.families.recognise import vae_factor
    from library.hardware import attention, memory
    from library.hardware.blocks import Blocks
    from library.hardware.cuda_graphs import PlainStep
    from library.lora_files import merging
    from library.optim import optimizers, schedules
    from library.optim.averages import Average

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
        prepared.note(line)
    sys.stdout.flush()
    family = families.open_model(
        config.pretrained_model_name_or_path,
        dtype=machine.dtype,
        device=machine.device if config.lowram else "cpu",
        vae=config.vae,
        # many a VAE overflows in fp16
        vae_dtype=torch.float32 if config.no_half_vae or machine.dtype == torch.float16 else None,
        objective="v" if config.v_parameterization else None,
        clip_skip=config.clip_skip,
        max_token_length=config.max_token_length,
    )
    family.noise = dataclasses.replace(family.noise, zero_terminal_snr=config.zero_terminal_snr)
    for line in family.warnings:
        prepared.note(line)
    if config.weighted_captions:
        family.weigh = prompts.weights
    parts = family.modules()
    if prepared.base_loras:
        merging.Merging(family.named_layers()).apply(prepared.base_loras)  # never closed: the weights stay so
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

    blocks = Blocks(plan.recomputed, is_random=has_dropout(config))
    attached, unet_forward = attach(config, family, attend, prepared.seed, blocks, prepared.start)
    if prepared.start:
        attached.load_state_dict(prepared.start)
    optimizer_type = config.optimizer_type
    trained = attached.sections(is_flat=optimizers.is_shape_blind(optimizer_type))
    rates = section_rates(config, trained)
    built = optimizers.build(
        optimizer_type,
        optimizers.parameter_groups({section.name: its for section, its in trained.items()}, rates),
        learning_rate=config.learning_rate,
        args=prepared.optimizer_args,
    )
    for line in built.notices:
        prepared.note(line)
    schedule = schedules.build(
        config.lr_scheduler,
        built.optimizer,
        step_count=prepared.plan.step_count,
        warmup=config.lr_warmup_steps,
        cycles=config.lr_scheduler_num_cycles,
        power=config.lr_scheduler_power,
        decay=config.lr_decay_steps,
        lowest=config.lr_scheduler_min_lr_ratio,
        timescale=config.lr_scheduler_timescale,
        path=config.lr_scheduler_type,
        args=optimizers.parse_args(config.lr_scheduler_args, "lr_scheduler_args"),
    )
    scale = vae_factor(parts["vae"].config)
    training = Training(
        family=family,
        adapters=attached,
        dataset=Dataset(
            prepared.plan,
            config,
            prepared.seed,
            latents=latents,
            texts=texts,
            scale=scale,
            size_conditioning=family.size_conditioning,
        ),
        process=noise.Process(family.noise),
        optimizer=built.optimizer,
        optimizer_text=built.described_as,
        schedule=schedule,
        scaler=torch.amp.GradScaler(machine.device.type, enabled=machine.needs_loss_scale),
        unet_forward=unet_forward,
        blocks=blocks,
        memory=plan,
        step=PlainStep(unet_step(config, family)),
        text_stops=text_stops(config, prepared.plan.step_count),
    )
    if config.ema_decay:
        training.average = Average([arena.master for arena in attached.arenas.values()], config.ema_decay)
    if config.torch_compile:
        compile_blocks(prepared, training)
    if config.cuda_graphs:
        record_steps(prepared, training)
    if prepared.state:
        training.restore(prepared.state)
    return training


def text_stops(config: Config, step_count: int) -> int | None:
    """The steps after which the text encoders are no longer trained; None: they are to the end, or not at all."""
    stop = config.stop_text_encoder_training
    if not stop or not trains_text_encoder(config):
        return None
    return round(stop * step_count) if stop < 1 else stop


def record_steps(prepared: Prepared, training: Training) -> None:
    """Let CUDA graphs take the place of the step, where there are any."""
    from library.hardware import cuda_graphs

    device = prepared.machine.device
    reason = cuda_graphs.reason_unavailable(device, is_random=has_dropout(prepared.config))
    if reason is None:
        buffers = [arena.gradient for arena in training.adapters.arenas.values()]
        recorder = cuda_graphs.CudaRecorder(device)
        graphs = cuda_graphs.Graphs(training.step.plain, buffers, recorder, partial(print, flush=True))
        print(graphs.description)
        training.step = graphs
    else:
        prepared.note(say(f"no CUDA graphs: {reason}", f"不使用 CUDA graphs：{reason}"))


def compile_blocks(prepared: Prepared, training: Training) -> None:
    """Let compiled functions take the place of the U-Net's resnets and transformer blocks."""
    from library.adapters import linear_ops, recompute
    from library.families.unet.forward import UNetForward
    from library.hardware.compilation import Compiler

    if has_dropout(prepared.config):
        prepared.note(
            say(
                "torch_compile is off: dropout would draw other numbers",
                "不使用 torch_compile：dropout 取到的随机数会不同",
            )
        )
        return
    for name, layer in training.adapters.layers.items():
        if name.startswith("lora_unet"):
            layer.is_fused = False  # where the plain functions call it; the fast ones do not ask
    fast = training.unet_forward
    attend = dataclasses.replace(fast.attend, asked=fast.attend.kind)  # nothing left to try out while compiling
    plain = UNetForward(fast.unet, linear_ops.PLAIN, recompute, attend)
    compiler = Compiler(partial(print, flush=True), prepared.config.dynamo_backend)
    training.blocks.compile(fast.resnet, compiler, plain.resnet)
    training.blocks.compile(fast.transformer_block, compiler, plain.transformer_block)


def fill_caches(prepared: Prepared, family: Family) -> tuple[Any, Any]:
    """Encode pictures, and captions where they can be known beforehand; None for what is not cached."""
    import torch

    from library.data import cache, dataset

    config, plan, device = prepared.config, prepared.plan, prepared.machine.device
    folder = prepared.cache_folder
    modules = family.modules()
    latents = texts = None
    if folder and not prepared.world.is_first:
        prepared.world.told(None)  # the first has filled them
    if config.cache_latents:
        vae = modules["vae"].to(device)

        filled, batch_size = None, config.vae_batch_size or plan.batch_size
        while filled is None:
            latents = cache.LatentCache(folder, cache.fingerprint(vae))
            try:
                filled = latents.fill(
                    dataset.latents_wanted(plan, config),
                    family.encode_images,
                    apart=dataset.latents_measured(plan),
                    batch_size=batch_size,
                    thread_count=config.max_data_loader_n_workers,
                )
            except cache.BadLatents as error:
                if next(vae.parameters()).dtype == torch.float32:
                    raise
                prepared.note(say(f"{error}: trying in float32", f"{error}；改用 float32 再试"))
                vae.float()
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size = 1
                prepared.note(say("not enough memory: pictures are encoded one by one", "显存不足，改为逐张编码"))
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
        settings = [config.clip_skip, config.max_token_length, *["weighted"] * config.weighted_captions]
        fingerprint = cache.fingerprint(*encoders, settings=settings)
        filled, batch_size = None, plan.batch_size
        while filled is None:
            texts = cache.TextCache(folder, fingerprint, family.text_embeddings)
            try:
                apart = dataset.captions_measured(plan)
                filled = texts.fill(captions, family.encode_captions, apart=apart, batch_size=batch_size)
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size = 1
                prepared.note(say("not enough memory: captions are encoded one by one", "显存不足，改为逐条编码标签"))
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
