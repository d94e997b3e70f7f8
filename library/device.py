"""Which device trains, in which number format, and why.

The frozen base model is held and computed in `dtype`; the LoRA's weights, their gradients and the loss stay in fp32.
"""

from dataclasses import dataclass

import torch

from library.messages import UserError, say

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Device:
    """A device and how to compute on it."""

    device: torch.device
    dtype: torch.dtype  # of the base model and its activations
    description: str  # one line for the person: what was chosen and why

    @property
    def needs_loss_scale(self) -> bool:
        """fp16 gradients below 6e-8 would become zero: the loss is scaled up before the backward pass."""
        return self.dtype == torch.float16

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; from page-locked memory where that lets the host go on at once."""
        if tensor.device.type == "cpu" and self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def choose(device: str = "auto", mixed_precision: str = "auto") -> Device:
    """Find the device and the number format.

    Args:
        device: "auto" (CUDA or ROCm, then Apple's MPS, then the CPU) or a name that torch knows.
        mixed_precision: "auto", "no", "fp16" or "bf16".

    Raises:
        UserError: the device asked for is not there, with the likely cause.
    """
    chosen = _available() if device == "auto" else _asked_for(device)
    name = _name(chosen)
    if mixed_precision == "auto":
        dtype, reason = _fast_and_safe(chosen)
    else:
        dtype, reason = DTYPES[mixed_precision], say("as asked", "按设置")
    numbers = str(dtype).removeprefix("torch.")
    description = say(
        f"device {chosen} ({name}), {numbers} ({reason})", f"设备 {chosen}（{name}），{numbers}（{reason}）"
    )
    return Device(chosen, dtype, description)


def _available() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _asked_for(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            say(
                f'device = "{name}": there is no such device. Use "auto", "cpu", "cuda", "cuda:1" or "mps".',
                f'device = "{name}"：没有这种设备。可用 "auto"、"cpu"、"cuda"、"cuda:1"、"mps"。',
            )
        ) from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type, False)
    if not there:
        count = torch.cuda.device_count()
        raise UserError(
            say(
                f'device = "{name}" is not there: torch {torch.__version__} sees {count} GPU(s). A torch whose version '
                'ends in "+cpu" never sees one: install the CUDA or ROCm build (README, Installation), or use "auto".',
                f'device = "{name}" 不可用：torch {torch.__version__} 能看到 {count} 块显卡。'
                '版本号以 "+cpu" 结尾的 torch 看不到显卡，'
                '请按 README 的“安装”一节换成 CUDA 或 ROCm 版，或改用 "auto"。',
            )
        )
    return device


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return say(f"{torch.get_num_threads()} threads", f"{torch.get_num_threads()} 线程")
    return "Apple"


def _fast_and_safe(device: torch.device) -> tuple[torch.dtype, str]:
    """bf16 where the hardware has it, since it cannot overflow; else fp16; fp32 off the GPU."""
    if device.type != "cuda":
        return torch.float32, say("no GPU", "没有显卡")
    architecture = getattr(torch.cuda.get_device_properties(device), "gcnArchName", "")  # AMD only: "gfx1031:..."
    if architecture.startswith("gfx10"):  # RDNA 1 and 2 emulate bf16, at about a quarter of the speed of fp16
        return torch.float16, say(f"{architecture} has no bf16 arithmetic", f"{architecture} 没有 bf16 运算单元")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, say("the GPU supports it", "显卡支持")
    return torch.float16, say("the GPU has no bf16", "显卡不支持 bf16")
