"""Whether what is trained is still sound: NaN and infinities are told, never trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from library.messages import UserError, say
from library.training.run import Training

if TYPE_CHECKING:
    from torch import Tensor


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


def is_sound(training: Training, loss: Tensor) -> bool:
    """Whether a step's loss and gradients are finite. Infinite gradients in fp16 are the loss scale's business."""
    from library.hardware import nan

    tensors = [loss]
    if not training.scaler.is_enabled() or scale_is_lost(training):
        tensors += [parameter.grad for parameter in training.adapters.parameters() if parameter.grad is not None]
    return nan.are_finite(tensors)


def not_finite(reason: str) -> UserError:
    """The error that ends a run whose numbers cannot be saved."""
    return UserError(
        say(
            f"{reason}. Earlier saves are intact. The cause is usually a learning rate that is too high, a broken "
            'image or fp16: lower learning_rate, check the images named, or set mixed_precision = "bf16" or "no".',
            f"{reason}。此前保存的文件完好。原因通常是学习率过高、图片有问题或 fp16 溢出：请降低 learning_rate，"
            '检查上面列出的图片，或设 mixed_precision = "bf16" 或 "no"。',
        )
    )
