"""What a run will need in memory, counted on a model without weights, and what to change where it does not fit."""

import dataclasses
import math
from collections.abc import Collection
from functools import partial
from typing import Any

from library.messages import say
from library.options.derived import has_dropout, trains_text_encoder
from library.training.attach import attach, pack_base
from library.training.prepare import Prepared


def plan_memory(
    prepared: Prepared, attend: Any, *, batch_size: int | None = None, checkpointing: bool | str | None = None
) -> Any:
    """What the run will need at its largest pictures, counted on a model without weights; see `memory.plan`.

    Args:
        batch_size, checkpointing: instead of the configuration's.
    """
    import torch

    from library import families
    from library.families.recognise import vae_factor
    from library.hardware import memory
    from library.hardware.blocks import Blocks
    from library.optim import optimizers

    config, device, dtype = prepared.config, prepared.machine.device, prepared.machine.dtype
    family = families.blueprint(prepared.model, config.max_token_length)
    modules = {name: module.to(dtype).requires_grad_(False) for name, module in family.modules().items()}
    unet = modules["unet"]
    if config.int8_base:
        pack_base(family)
    blocks = Blocks(is_random=has_dropout(config))
    attached, _ = attach(config, family, attend, 0, blocks, prepared.start)
    shapes = {(batch_size or own.batch_size, *fit.bucket) for own in prepared.plan.sets for fit in own.fits.values()}
    batch_size, width, height = max(shapes, key=math.prod)
    scale = vae_factor(modules["vae"].config)
    captions = [""] * batch_size
    with torch.no_grad():
        cached = None if trains_text_encoder(config) else family.encode_captions(captions)

    def step(traced: Any) -> Any:
        new = partial(torch.empty, device="meta")
        noisy = new(batch_size, 4, height // scale, width // scale)
        embeddings = cached or family.encode_captions(captions)
        conditioning = embeddings | family.size_conditioning(new(batch_size, 6))
        with blocks.observed(traced.block):
            prediction = family.predict(noisy, new(batch_size, dtype=torch.long), conditioning)
        return (prediction.float() - new(noisy.shape)).square().mean()

    def measure(names: Collection[str]) -> Any:
        blocks.recomputed = frozenset(names)
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
        * (4 + (halves or 4) + optimizers.state_bytes(config.optimizer_type) + (4 if config.ema_decay else 0)),
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
    if plan.recomputed == () and config.gradient_checkpointing is False:
        changes.append(('gradient_checkpointing = "auto"', {}, dict(checkpointing="auto")))
    if prepared.plan.batch_size > 1:
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
