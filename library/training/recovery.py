"""When memory is full or numbers are no longer finite: what can still be done, and what is said where nothing can."""

import dataclasses
from typing import Any

from library.messages import UserError, say
from library.options.derived import trains_text_encoder
from library.training.build import Training
from library.training.prepare import Prepared


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
    if training.step.disable():
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
    costs, blocks = plan.unlimited.blocks, training.blocks
    left = [name for name in costs if name not in blocks.recomputed]
    if left:
        left.sort(key=lambda name: costs[name].kept / max(1, costs[name].flops), reverse=True)
        more = left[: max(1, (len(left) + 1) // 2)]
        blocks.recomputed |= frozenset(more)
        extra = sum(costs[name].flops for name in more) / plan.unlimited.flops
        count, of = len(blocks.recomputed), len(costs)
        return say(
            f"{count} of {of} blocks are computed twice now, {extra:.0%} more arithmetic",
            f"现在 {of} 个模块中有 {count} 个算两遍，计算量增加 {extra:.0%}",
        )
    if training.batch_parts < prepared.plan.batch_size:
        training.batch_parts *= 2
        return say(
            f"each batch goes through in {training.batch_parts} parts, with the same result; slower",
            f"每个批次分 {training.batch_parts} 次计算，结果不变，较慢",
        )
    return None


def what_is_lost(training: Training) -> str | None:
    """Why what was trained is worth nothing any more; None: it is sound. Waits for the device."""
    from library.hardware import nan

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
    from library.hardware import nan

    found = [loss]
    if not training.scaler.is_enabled() or scale_is_lost(training):
        found += [parameter.grad for parameter in training.adapters.parameters()]
    return nan.are_finite(found)
