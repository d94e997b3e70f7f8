"""What a run will need in memory, counted on a model without weights, and what to change where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from library.messages import say
from library.options.derived import has_dropout, trains_text_encoder
from library.training.attach import attach, pack_base
from library.training.resolve import settings_of
from library.training.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from library.hardware.attention import Attention
    from library.hardware.memory import Cost, Trace
    from library.hardware.memory import Plan as MemoryPlan


def plan_memory(run: Run, attend: Attention, **instead: Any) -> MemoryPlan:
    """What the run will need at its largest images, counted on a model without weights; see `memory.plan`.

    Args:
        instead: options that count in place of the run's: what it would need then.

    Raises:
        UserError: `network_weights` does not fit the run.
    """
    import torch

    from library import families
    from library.hardware import memory
    from library.hardware.blocks import Blocks
    from library.optim import optimizers

    settings, device, dtype = settings_of(run.settings, instead), run.device.torch_device, run.device.dtype
    family = families.blueprint(run.model, settings.max_token_length)
    modules = {name: module.to(dtype).requires_grad_(False) for name, module in family.modules().items()}
    if settings.int8_base:
        pack_base(family)
    blocks = Blocks(is_random=has_dropout(settings))
    attached = attach(settings, family, attend, 0, blocks, run.start)
    if run.start:
        attached.refuse_others(run.start)  # here, before the model and the images are loaded
    batch_sizes = [instead.get("train_batch_size", own.batch_size) for own in run.plan.sets]
    shapes = {
        (size, *fit.bucket) for size, own in zip(batch_sizes, run.plan.sets, strict=True) for fit in own.fits.values()
    }
    batch_size, width, height = max(shapes, key=math.prod)
    latents = family.facts.latents
    captions = ["a " * settings.max_token_length] * batch_size  # as long as any
    with torch.no_grad():
        cached = None if trains_text_encoder(settings) else family.encode_captions(captions)

    def step(trace: Trace) -> Tensor:
        new = partial(torch.empty, device="meta")
        noisy = new(batch_size, latents.channels, height // latents.factor, width // latents.factor)
        embeddings = cached or family.encode_captions(captions)
        conditioning = embeddings | family.size_conditioning(new(batch_size, 6))
        with blocks.observed(trace.block):
            prediction = family.predict(noisy, new(batch_size, dtype=torch.long), conditioning)
        return (prediction.float() - new(noisy.shape)).square().mean()

    def measure(names: Iterable[str]) -> Cost:
        blocks.recomputed = frozenset(names)
        return memory.trace(step)

    count = sum(parameter.numel() for parameter in attached.parameters())
    halves = 0 if dtype == torch.float32 else 4  # what the model reads, and its gradient
    held = ["denoiser"]
    held += [] if settings.cache_latents else ["vae"]
    if trains_text_encoder(settings) or not settings.cache_text_encoder_outputs:
        held += [name for name in modules if name.startswith("text_encoder")]
    parts = {
        say("base model", "底模"): sum(memory.weight_bytes(modules[name]) for name in held),
        say("LoRA and optimizer", "LoRA 与优化器"): count
        * (4 + (halves or 4) + optimizers.state_bytes(settings.optimizer_type) + (4 if settings.ema_decay else 0)),
        say("device's libraries (estimate)", "设备库（估计）"): memory.workspace(device, modules["denoiser"]),
    }
    return memory.plan(measure, parts, memory.available(device), settings.gradient_checkpointing)


def ways_to_fit(run: Run, attend: Attention, plan: MemoryPlan) -> list[str]:
    """What to change where the run does not fit, each with what it would then need."""
    settings = run.settings
    if plan.fits:
        return []
    changes: list[tuple[str, Any]] = []
    if plan.recomputed == () and settings.gradient_checkpointing is False:
        changes.append(("gradient_checkpointing", "auto"))
    if run.plan.batch_size > 1:
        changes.append(("train_batch_size", 1))
    if trains_text_encoder(settings):
        changes.append(("text_encoder_lr", 0))
    if not settings.int8_base:
        changes.append(("int8_base", True))
    lines = [_does_not_fit(plan)]
    for name, value in changes:
        need = plan_memory(run, attend, **{name: value}).need >> 20
        shown = f'"{value}"' if isinstance(value, str) else value
        lines.append(say(f"{name} = {shown}: {need:,} MiB", f"{name} = {shown}：{need:,} MiB"))
    return lines


def _does_not_fit(plan: MemoryPlan) -> str:
    assert plan.budget is not None, "what has no limit fits"
    need, budget = plan.need >> 20, plan.budget >> 20
    return say(
        f"this run needs {need:,} MiB, but {budget:,} are free: it will probably run out of memory. Close other "
        "programs, or:",
        f"本次训练需要 {need:,} MiB，但只有 {budget:,} MiB 可用，很可能不够。请关闭其他程序，或者：",
    )
