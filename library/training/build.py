"""The parts put together: model, caches, adapters, optimizer, schedule, dataset."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from library.contracts import Execution, Family
from library.messages import UserError, log, say
from library.options.derived import has_dropout, trains_text_encoder
from library.options.resuming import todays
from library.options.training import Config
from library.training.attach import attach, pack_base, param_group_rates
from library.training.caches import fill_caches
from library.training.memory_plan import plan_memory, ways_to_fit
from library.training.run import Run, Training

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.adapters import Adapters
    from library.hardware.attention import Attention
    from library.optim.optimizers import Built
    from library.storage.training_state import State


def build(run: Run, step_of: Callable[[Config, Family], Callable[..., Sequence[Tensor | None]]]) -> Training:
    """Load the model, encode what is encoded once, and hook the adapters in.

    Args:
        step_of: gives the forward and backward pass of the denoiser as a function of tensors alone.
    """
    import torch

    from library.data.dataset import Dataset
    from library.diffusion.noise import Process
    from library.hardware import attention, memory
    from library.hardware.blocks import Blocks
    from library.hardware.cuda_graphs import PlainStep
    from library.optim.averages import Average

    settings, device = run.settings, run.device
    attend = attention.choose(device.torch_device, device.dtype, settings.attention)
    log.info(attend.description)
    plan = plan_memory(run, attend)
    is_gpu = device.torch_device.type != "cpu"
    log.info(memory.table(plan, device.torch_device, say("memory:", "显存：" if is_gpu else "内存：")))
    for line in ways_to_fit(run, attend, plan):
        run.note(line)
    memory.refuse_spilling(device.torch_device)

    family = open_family(run, attend)
    latents, texts = fill_caches(run, family)
    if settings.int8_base:
        pack_base(family)
    for name, module in family.modules().items():  # what is in the caches is not needed on the device
        is_cached = (name == "vae" and latents) or (name.startswith("text_encoder") and texts)
        module.to("cpu" if is_cached else device.torch_device)
        if (
            name.startswith("text_encoder")
            and settings.gradient_checkpointing is True
            and trains_text_encoder(settings)
        ):
            # of transformers' models, in training mode only
            module.train().gradient_checkpointing_enable({"use_reentrant": False})  # pyrefly: ignore[not-callable]

    blocks = Blocks(plan.recomputed, is_random=has_dropout(settings))
    adapters = attach(settings, family, attend, run.seed, blocks, run.start)
    if run.state:
        load_weights(run.settings, run.state, adapters)
    elif run.start:
        adapters.load_state_dict(run.start)
    built = build_optimizer(run, adapters)
    training = Training(
        family=family,
        adapters=adapters,
        dataset=Dataset(
            run.plan,
            settings,
            run.seed,
            latents=latents,
            texts=texts,
            scale=family.facts.latents.factor,
            size_conditioning=family.size_conditioning,
        ),
        process=Process(family.noise),
        optimizer=built.optimizer,
        optimizer_text=built.described_as,
        schedule=build_schedule(run, built.optimizer),
        scaler=torch.amp.GradScaler(device.torch_device.type, enabled=device.needs_loss_scale),
        blocks=blocks,
        memory=plan,
        step=PlainStep(step_of(settings, family)),
        text_stops=text_stops(settings, run.plan.step_count),
    )
    if settings.ema_decay:
        training.average = Average([flat.master for flat in adapters.flat_parameters.values()], settings.ema_decay)
    if settings.torch_compile:
        compile_blocks(run, training)
    if settings.cuda_graphs:
        record_steps(run, training)
    if run.state:
        training.take_over_rest(run.state)
    return training


def load_weights(settings: Config, state: State, adapters: Adapters) -> None:
    """Take over what is trained from a training state. Raises UserError: it was trained with other sizes or parts."""
    try:
        adapters.load_state_dict(state.adapter)
    except UserError as error:
        stops = [] if trains_text_encoder(settings) else [_how_to_stop_text_encoder()]
        raise UserError([*error.problems, *stops], _state_does_not_fit(state)) from None


def open_family(run: Run, attend: Attention) -> Family:
    """The base model, frozen, as the options want it."""
    import torch

    from library import families
    from library.diffusion import prompts
    from library.hardware import attention
    from library.lora_files import merging

    settings, device = run.settings, run.device
    family = families.open_model(
        settings.pretrained_model_name_or_path,
        dtype=device.dtype,
        device=device.torch_device if settings.lowram else "cpu",
        vae=settings.vae,
        # many a VAE overflows in fp16
        vae_dtype=torch.float32 if settings.no_half_vae or device.dtype == torch.float16 else None,
        objective="v" if settings.v_parameterization else None,
        clip_skip=settings.clip_skip,
        max_token_length=settings.max_token_length,
    )
    family.noise = dataclasses.replace(family.noise, zero_terminal_snr=settings.zero_terminal_snr)
    for line in family.warnings:
        run.note(line)
    if settings.weighted_captions:
        family.weigh = prompts.weights
    if run.base_loras:
        merging.Merging(family.layers()).apply(run.base_loras)  # never closed: the weights stay so
    attention.install(family.modules()["vae"], attend)
    return family


def build_optimizer(run: Run, adapters: Adapters) -> Built:
    """The optimizer, with a parameter group for each part and rate, and what it has learned in the run gone on with."""
    from library.optim import optimizers

    optimizer_type = run.settings.optimizer_type
    trained = adapters.param_groups(is_flat=optimizers.is_shape_blind(optimizer_type))
    rates = param_group_rates(run.settings, trained)
    built = optimizers.build(
        optimizer_type,
        optimizers.parameter_groups({group.name: its for group, its in trained.items()}, rates),
        learning_rate=run.settings.learning_rate,
        args=run.optimizer_args,
    )
    for line in built.notices:
        run.note(line)
    if run.state and (line := take_over_optimizer(run, run.state, built)):
        run.note(line)
    return built


def take_over_optimizer(run: Run, state: State, built: Built) -> str | None:
    """Let the optimizer go on with what it has learned; the line that says what of it begins anew, if anything does."""
    from library.optim import optimizers

    optimizer, config, settings = built.optimizer, todays(state.facts["config"]), run.settings
    name = settings.optimizer_type
    is_same = str(config.get("optimizer_type")).lower() == name.lower()
    if kind := state.facts.get("optimizer"):  # what was used, which need not be what was asked for
        is_same = kind.partition("(")[0] == built.described_as.partition("(")[0]
    if not is_same:
        return _another_optimizer(str(config.get("optimizer_type")), name)
    args_then = optimizers.parse_args(config.get("optimizer_args"))
    first = optimizer.param_groups[0]["params"][0]
    if not optimizers.remembers_the_same(name, args_then, run.optimizer_args, first):
        return _other_memory(name)
    begun_anew = optimizers.take_over(optimizer, state.optimizer, run.optimizer_args)
    return _groups_begin_anew(name, begun_anew) if begun_anew else None


def build_schedule(run: Run, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule, where the run begins in it: one that goes on, at its step, with the rates that are asked for."""
    from library.optim import optimizers, schedules

    settings, state = run.settings, run.state
    schedule = schedules.build(
        settings.lr_scheduler,
        optimizer,
        step_count=run.plan.step_count,
        warmup=settings.lr_warmup_steps,
        cycles=settings.lr_scheduler_num_cycles,
        power=settings.lr_scheduler_power,
        decay=settings.lr_decay_steps,
        lowest=settings.lr_scheduler_min_lr_ratio,
        timescale=settings.lr_scheduler_timescale,
        path=settings.lr_scheduler_type,
        args=optimizers.parse_args(settings.lr_scheduler_args, "lr_scheduler_args"),
    )
    if state:
        # After initial_step, the schedule begins there. That it is behind the steps stays so.
        behind = state.position.global_step - state.schedule.get("last_epoch", state.position.global_step)
        schedules.advance(schedule, max(0, run.position.global_step - behind))
        for group, then in zip(optimizer.param_groups, state.optimizer["param_groups"], strict=False):
            if group.get("relative_step") and then.get("relative_step"):  # Adafactor's own rate, which is shown
                group["lr"] = then["lr"]
    return schedule


def text_stops(config: Config, step_count: int) -> int | None:
    """The steps after which the text encoders are no longer trained; None: they are to the end, or not at all."""
    stop = config.stop_text_encoder_training
    if not stop or not trains_text_encoder(config):
        return None
    return round(stop * step_count) if stop < 1 else int(stop)


def record_steps(run: Run, training: Training) -> None:
    """Let CUDA graphs take the place of the step, where there are any."""
    from library.hardware import cuda_graphs

    device = run.device.torch_device
    reason = cuda_graphs.reason_unavailable(device, is_random=has_dropout(run.settings))
    if reason is None:
        buffers = [flat.gradient for flat in training.adapters.flat_parameters.values()]
        recorder = cuda_graphs.CudaRecorder(device)
        graphs = cuda_graphs.Graphs(training.step.plain, buffers, recorder, partial(print, flush=True))
        log.info(graphs.description)
        training.step = graphs
    else:
        run.note(say(f"no CUDA graphs: {reason}", f"不使用 CUDA graphs：{reason}"))


def compile_blocks(run: Run, training: Training) -> None:
    """Let compiled functions compute the denoiser's blocks."""
    from library.adapters import linear_ops, recompute
    from library.hardware.attention import Attention
    from library.hardware.compilation import Compiler

    if has_dropout(run.settings):
        run.note(
            say(
                "torch_compile is off: dropout would use other random numbers",
                "不使用 torch_compile：dropout 取到的随机数会不同",
            )
        )
        return
    for name, layer in training.adapters.layers.items():
        if name.startswith(training.family.facts.parts["denoiser"].prefix):
            layer.is_fused = False  # where the plain functions call it; the fast ones do not ask
    fast = training.family.denoiser
    assert fast.execution is not None, "set when the adapters were attached"
    attend = fast.execution.attend
    assert isinstance(attend, Attention)
    attend = dataclasses.replace(attend, asked=attend.kind)  # nothing left to try out while compiling
    plain = copy.copy(fast)
    plain.compute_with(Execution(linear_ops.PLAIN, recompute, attend, training.blocks.run))
    compiler = Compiler(partial(print, flush=True), run.settings.dynamo_backend)
    for function, own in zip(fast.block_functions, plain.block_functions, strict=True):
        training.blocks.compile(function, compiler, own)


# ---- What is said ----


def _state_does_not_fit(state: State) -> str:
    return say(
        f"the training state of {state.facts['name']} (in the lines below: the file) does not fit this run:",
        f"{state.facts['name']} 的训练状态（以下称“文件”）与本次训练的设置不符：",
    )


def _how_to_stop_text_encoder() -> str:
    return say(
        "To keep what the text encoder has learned and train it no further, leave text_encoder_lr as it was and set "
        "stop_text_encoder_training = 1.",
        "如果要保留文本编码器已学到的内容、但不再训练它，请保持 text_encoder_lr 不变，"
        "并设 stop_text_encoder_training = 1。",
    )


def _another_optimizer(then: str, now: str) -> str:
    return say(
        f"optimizer_type was {then} when the state was saved: the LoRA goes on from there, but {now} begins anew and "
        "knows nothing of the steps before",
        f"保存状态时 optimizer_type 为 {then}：LoRA 接着训练，但 {now} 从头开始，不含此前各步的记忆（动量等）",
    )


def _other_memory(name: str) -> str:
    return say(
        f"with these optimizer_args {name} remembers other things than those in the state: the LoRA goes on from "
        "there, but the optimizer begins anew",
        f"改用这些 optimizer_args 后，{name} 需要的记忆（动量等）与状态中的不同：LoRA 接着训练，但优化器从头开始",
    )


def _groups_begin_anew(name: str, groups: list[str]) -> str:
    listed = ", ".join(groups)
    return say(
        f"{name} begins anew for {listed}: the state has nothing of the same layers",
        f"{name} 对 {listed} 从头开始：状态中没有相同各层的记忆",
    )
