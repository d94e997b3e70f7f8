"""Which device trains, in which number format, and why; and whether it computes right.

The frozen base model is held and computed in `dtype`; the LoRA's weights, their gradients and the loss stay in fp32.
To try another kind of arithmetic before training: add a row to ARITHMETIC; to name the cause of a failure: to CURES.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from library.messages import UserError, plural, say

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# AMD's GCN, Vega and RDNA 1 and 2 have no bf16 arithmetic; torch says they do and emulates it, at a quarter of the
# speed of fp16 (measured by users on an RX 6800).
NO_BF16 = ("gfx8", "gfx900", "gfx902", "gfx904", "gfx906", "gfx909", "gfx90c", "gfx10")
FULL_WIDTH = 320  # channels of the first block of every Stable Diffusion


@dataclass(frozen=True)
class Device:
    """A device and how to compute on it."""

    torch_device: torch.device
    dtype: torch.dtype  # of the base model and its activations
    description: str  # one line for the person: what was chosen and why
    architecture: str = ""  # of AMD cards: "gfx1031"

    @property
    def tunes_per_shape(self) -> bool:
        """Whether every new size of a batch costs a search for kernels: under ROCm, up to minutes for each."""
        return bool(self.architecture)

    @property
    def bucket_limit(self) -> int | None:
        """More sizes than that cost more in tuning than they are worth; None: any number."""
        return 8 if self.tunes_per_shape else None

    @contextmanager
    def tuning(self) -> Iterator[None]:
        """Matrix products of sizes not met before are tuned within, for a step of each bucket; outside never.

        What was found is kept where PYTORCH_TUNABLEOP_FILENAME says, and used from then on. Does nothing unless
        PYTORCH_TUNABLEOP_ENABLED is set, as `library/hardware/rocm.py` does for AMD's RDNA.
        """
        if not (self.tunes_per_shape and torch.cuda.tunable.is_enabled()):
            yield
            return
        torch.cuda.tunable.tuning_enable(True)
        try:
            yield
        finally:
            torch.cuda.tunable.tuning_enable(False)

    @property
    def needs_loss_scale(self) -> bool:
        """fp16 gradients below 6e-8 would become zero: the loss is scaled up before the backward pass."""
        return self.dtype == torch.float16

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; from page-locked memory where that lets the host go on at once."""
        if tensor.device.type == "cpu" and self.torch_device.type == "cuda":
            return tensor.pin_memory().to(self.torch_device, non_blocking=True)
        return tensor.to(self.torch_device)


def choose(device: str = "auto", mixed_precision: str = "auto", model_width: int = 0) -> Device:
    """Find the device and the number format.

    Args:
        device: "auto" (CUDA or ROCm, then Apple's MPS, then the CPU) or a name that torch knows.
        mixed_precision: "auto", "no", "fp16" or "bf16".
        model_width: channels of the model's first block. On a CPU only wide models gain from bf16.

    Raises:
        UserError: the device asked for is not there, with the likely cause.
    """
    torch_device = _available() if device == "auto" else _asked_for(device)
    name, architecture = _name(torch_device), _architecture(torch_device)
    if mixed_precision == "auto":
        dtype, reason = _fast_and_safe(torch_device, architecture, model_width)
    else:
        dtype, reason = DTYPES[mixed_precision], say("as asked", "按设置")
    numbers = str(dtype).removeprefix("torch.")
    description = say(
        f"device {torch_device} ({name}), {numbers} ({reason})", f"设备 {torch_device}（{name}），{numbers}（{reason}）"
    )
    return Device(torch_device, dtype, description, architecture)


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
        raise UserError(_device_absent(name, count))
    return device


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return say(f"{torch.get_num_threads()} threads", f"{torch.get_num_threads()} 线程")
    return "Apple"


def _architecture(device: torch.device) -> str:
    """Of an AMD card: "gfx1031"; empty elsewhere."""
    if device.type != "cuda":
        return ""
    name = getattr(torch.cuda.get_device_properties(device), "gcnArchName", "")  # "gfx1031:sramecc+:xnack-"
    return name.partition(":")[0] if name.startswith("gfx") else ""


def _fast_and_safe(device: torch.device, architecture: str, model_width: int) -> tuple[torch.dtype, str]:
    """bf16 where the hardware has it, since it cannot overflow; else fp16; fp32 off the GPU, if bf16 is not faster."""
    if device.type == "cpu":
        return _cpu_numbers(model_width)
    if device.type != "cuda":
        return torch.float32, say("safest there", "在此设备上最稳妥")
    if architecture.startswith(NO_BF16):
        return torch.float16, say(f"{architecture} has no bf16 arithmetic", f"{architecture} 没有 bf16 运算单元")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, say("the GPU supports it", "显卡支持")
    return torch.float16, say("the GPU has no bf16", "显卡不支持 bf16")


def _cpu_numbers(model_width: int) -> tuple[torch.dtype, str]:
    """bf16 where this CPU computes it in hardware and a trial of half a second shows that it is clearly faster.

    A block of Stable Diffusion's U-Net took a half to a quarter of the time in bf16 (AVX512-BF16, two cores); a step of
    the built-in miniature, whose layers are narrow, took four to ten times as long.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if not (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")):
        return torch.float32, say("the CPU has no bf16", "CPU 不支持 bf16")
    if model_width < FULL_WIDTH:
        return torch.float32, say("faster than bf16 for a small model", "小模型用它比 bf16 快")
    gain = _trial_seconds(torch.float32) / _trial_seconds(torch.bfloat16)
    if gain < 1.5:  # near 1 the choice would follow from what else the machine does
        return torch.float32, say(f"bf16 was tried: {gain:.1f} times as fast", f"试算 bf16，速度仅为 {gain:.1f} 倍")
    return torch.bfloat16, say(f"tried: {gain:.1f} times as fast as fp32", f"试算比 fp32 快，为其 {gain:.1f} 倍")


def _trial_seconds(dtype: torch.dtype) -> float:
    """A convolution and a linear layer of Stable Diffusion's first block, forward and backward: the best of three."""
    pixels = torch.ones(1, FULL_WIDTH, 32, 32, dtype=dtype, requires_grad=True)
    kernel = torch.ones(FULL_WIDTH, FULL_WIDTH, 3, 3, dtype=dtype)
    weight = torch.ones(4 * FULL_WIDTH, FULL_WIDTH, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one prepares
        start = time.perf_counter()
        tokens = functional.conv2d(pixels, kernel, padding=1).flatten(2).mT
        functional.linear(tokens, weight).sum().backward()
        best = min(best, time.perf_counter() - start)
    return best


# ---- does it compute right? -----------------------------------------------------------------------------------------


def _matmul(x: Tensor) -> Tensor:
    return x.flatten(2) @ x.flatten(2).mT


def _convolution(x: Tensor) -> Tensor:
    kernel = torch.linspace(-1, 1, 64 * 64 * 9, dtype=torch.float32).view(64, 64, 3, 3)
    return functional.conv2d(x, kernel.to(x), padding=1)


def _attention(x: Tensor) -> Tensor:
    q = x.flatten(2).mT.unflatten(-1, (1, 64)).transpose(1, 2)  # one head of 64
    return functional.scaled_dot_product_attention(q, q.flip(2), q)


ARITHMETIC: dict[
    str, tuple[str, Callable[[Tensor], Tensor]]
] = {  # English name -> Chinese name, (B, 64, 16, 16) -> any
    "matrix products": ("矩阵乘法", _matmul),
    "convolutions": ("卷积", _convolution),
    "attention": ("注意力", _attention),
}
TOLERANCE = 0.03  # of the norm; bf16 rounds to 1/256, and TF32 is coarser than fp32

CURES: list[tuple[str, str, str]] = [  # pattern in what the device said, cure; the first that fits counts
    (
        r"out of memory",
        "its memory is full: close other programs that use it",
        "显存已被占满：请关闭占用显卡的其他程序",
    ),
    (
        r"invalid device function|no kernel image|shared object initialization failed|device kernel image is invalid",
        "this torch has no code for the card: unset HSA_OVERRIDE_GFX_VERSION if it is set, and install the build of "
        "torch for this card (README, Installation)",
        "这个 torch 不含该显卡的代码：如设置了 HSA_OVERRIDE_GFX_VERSION 请先取消，并安装适合该显卡的 torch"
        "（见 README 的“安装”）",
    ),
    (
        r"Memory access fault|SIGSEGV|SIGABRT|SIGBUS|0xC0000005",
        "AMD: choose the card with ROCR_VISIBLE_DEVICES (not the processor's graphics); if convolutions fail, set "
        "MIOPEN_DEBUG_CONV_GEMM=0; then update driver and torch",
        "AMD：用 ROCR_VISIBLE_DEVICES 指定独立显卡（不要用核显）；若是卷积出错，设 MIOPEN_DEBUG_CONV_GEMM=0；"
        "再不行请更新驱动和 torch",
    ),
    (
        r"no answer",
        "AMD: set HSA_ENABLE_SDMA=0 and try again; if the card hangs still, restart the computer and update the driver",
        "AMD：设 HSA_ENABLE_SDMA=0 再试；若仍无响应，请重启电脑并更新驱动",
    ),
    (
        r"wrong results",
        "undo overclocking; AMD: unset HSA_OVERRIDE_GFX_VERSION if it names another card, or set "
        "MIOPEN_DEBUG_CONV_WINOGRAD=0 if convolutions are wrong; then update driver and torch",
        "请取消超频；AMD：若 HSA_OVERRIDE_GFX_VERSION 填的是另一种显卡请取消；若卷积结果有误，"
        "设 MIOPEN_DEBUG_CONV_WINOGRAD=0；再不行请更新驱动和 torch",
    ),
    (r"", "update the driver, or install another build of torch", "请更新驱动，或换一个 torch 版本"),
]


def self_test(device: Device, seconds: float = 180) -> None:
    """A second of arithmetic on the device, compared with the CPU's, so that no training runs on garbage.

    Under ROCm in a child process, since a wrong build there ends or hangs the process; the CPU needs no test.

    Args:
        seconds: how long the child may take; the first time ROCm compiles its kernels.

    Raises:
        UserError: the device computes wrongly, fails or gives no answer; with the likely cause and what to try.
    """
    if device.torch_device.type == "cpu":
        return
    name, numbers = str(device.torch_device), str(device.dtype).removeprefix("torch.")
    try:
        if device.architecture:
            errors = _in_child(
                f"from library.hardware import device; answer = device.arithmetic_errors({name!r}, {numbers!r})",
                seconds,
            )
        else:
            errors = arithmetic_errors(name, numbers)
        wrong = [kind for kind, error in errors.items() if not error <= TOLERANCE]  # NaN is wrong too
        if not wrong:
            return
        symptom = "wrong results"
        detail = say(
            f"wrong results of {', '.join(wrong)}", f"{'、'.join(ARITHMETIC[kind][0] for kind in wrong)}结果有误"
        )
    except RuntimeError as error:
        symptom = detail = str(error).strip().partition("\n")[0]
    english, chinese = next(cure for pattern, *cure in CURES if re.search(pattern, symptom, re.IGNORECASE))
    raise UserError(_self_test_failed(device, detail, english, chinese))


def arithmetic_errors(device: str, numbers: str) -> dict[str, float]:
    """How far each row of ARITHMETIC is from the CPU in fp32: |a - b| / |b| of its result, plus its gradient's.

    Args:
        device, numbers: as torch names them: "cuda:0", "float16".

    Raises:
        RuntimeError: the device refuses.
    """
    given = torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0)).to(getattr(torch, numbers))

    def results(compute: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        output = compute(x)
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        output.backward(weights.to(output))
        assert x.grad is not None
        return [part.detach().cpu().double() for part in (output, x.grad)]

    errors = {}
    for kind, (_, compute) in ARITHMETIC.items():
        there, here = results(compute, given.to(device)), results(compute, given.float())
        errors[kind] = sum(float((a - b).norm() / b.norm()) for a, b in zip(there, here, strict=True))
    return errors


def _in_child(program: str, seconds: float) -> dict[str, float]:
    """What a program of another process leaves in `answer`.

    Raises:
        RuntimeError: it crashed, with what it said last; or it gave no answer in time.
    """
    program += "; import json; print(); print(json.dumps(answer))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=Path(__file__).parents[2],
    )
    try:
        output, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a hung driver cannot even be killed
            process.communicate(timeout=5)
        raise RuntimeError(f"no answer within {seconds:g} s") from None
    if process.returncode == 0:
        return json.loads(output.splitlines()[-1])
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    raise RuntimeError(f"{_exit(process.returncode)} {last}".strip())


def _exit(code: int) -> str:
    """-11 -> "SIGSEGV", 0xC0000005 as Windows writes it; nothing where Python itself ended the process."""
    if code < 0:
        return signal.Signals(-code).name
    return "" if code == 1 else f"0x{code:X}"


def _device_absent(name: str, count: int) -> str:
    return say(
        f'device = "{name}" is not there: torch {torch.__version__} sees {plural(count, "GPU")}. A torch '
        'whose version ends in "+cpu" never sees one: install the CUDA or ROCm build (README, '
        'Installation), or use "auto".',
        f'device = "{name}" 不可用：torch {torch.__version__} 能看到 {count} 块显卡。'
        '版本号以 "+cpu" 结尾的 torch 看不到显卡，'
        '请按 README 的“安装”一节换成 CUDA 或 ROCm 版，或改用 "auto"。',
    )


def _self_test_failed(device: Device, detail: str, english: str, chinese: str) -> str:
    return say(
        f"{device.description}: it failed a test of its arithmetic ({detail}). Try: {english}. "
        'device = "cpu" trains without it, slowly.',
        f"{device.description}：未通过运算测试（{detail}）。可以尝试：{chinese}。"
        '设 device = "cpu" 可不用它训练，但很慢。',
    )
