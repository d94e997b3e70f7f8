"""A base model opened for drawing alone: what the scripts in tools/ that draw share.

device = choose_device(name, mixed_precision, info.width)     before anything imports torch
family = open_for_generation(path, device, vae=..., clip_skip=...)
with memory_errors_explained():
    image = sampling.generate(family, prompt, device.torch_device)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.contracts import Conditioning, Execution, Family
from library.messages import UserError, log, say

if TYPE_CHECKING:
    from torch import Tensor

    from library.hardware.device import Device


def choose_device(device: str, mixed_precision: str, width: int) -> Device:
    """The device to draw on, tested. AMD's environment is set first: torch must not be there yet.

    Args:
        width: channels of the model's first block (`ModelInfo.width`).

    Raises:
        UserError: the device is not there, or it computes wrongly.
    """
    from library.hardware import rocm

    for line in [] if device in ("cpu", "mps") else rocm.prepare_environment():
        log.info(say(f"device plan: {line}", f"设备设置：{line}"))
    from library.hardware.device import choose, self_test

    chosen = choose(device, mixed_precision, width)
    self_test(chosen)
    return chosen


def open_for_generation(
    path: str | Path, device: Device, *, vae: str | None = None, clip_skip: int | None = None
) -> GenerationFamily:
    """Load a base model onto the device, ready for `sampling.generate`; what the user should know is printed.

    Raises:
        UserError: it is no model that can be drawn with, or it does not fit into the device's memory.
    """
    import torch

    from library import families
    from library.adapters import linear_ops, recompute
    from library.hardware import attention
    from library.hardware.blocks import Blocks

    attend = attention.choose(device.torch_device, device.dtype)
    log.info(f"{device.description}\n{attend.description}")
    with memory_errors_explained():
        family = families.open_model(
            path,
            dtype=device.dtype,
            device=device.torch_device,
            vae=vae,
            vae_dtype=torch.float32 if device.dtype == torch.float16 else None,  # many a VAE overflows in fp16
            clip_skip=clip_skip,
        )
    for line in family.warnings:
        log.warning(line)
    # The plain functions: nothing is kept for a backward pass, so the fast ones' frugality has nothing to win. The same
    # bits as diffusers' own forward; on two CPU cores 0.8 of its time (the miniature, and SD 1.x at 256 and 512 px).
    family.denoiser.compute_with(Execution(linear_ops.PLAIN, recompute, attend, Blocks().run))
    attention.install(family.modules()["vae"], attend)
    return GenerationFamily(family)


class GenerationFamily:
    """A family for drawing: each caption with the chunks it needs itself, and no spoilt image passes in silence.

    All that is not here is the family's own.
    """

    def __init__(self, family: Family):
        self.family = family
        self.is_tight = False  # decoding has the device to itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)

    def encode_captions(self, captions: list[str]) -> Conditioning:
        """As the family does, at the length that these captions have: an image depends on no other."""
        self.family.fit_length(captions)
        return self.family.encode_captions(captions)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled -> (B, 3, H, W) in [-1, 1], all finite. Where memory is short the U-Net makes room.

        Raises:
            UserError: the latents hold NaN, or the VAE makes some even in fp32.
        """
        import torch

        if not latents.isfinite().all():
            numbers = str(next(self.family.modules()["denoiser"].parameters()).dtype).removeprefix("torch.")
            raise UserError(
                say(
                    f'the denoiser gives NaN in {numbers}: the image would be black. Set mixed_precision = "no"'
                    + (', or "bf16"' if numbers == "float16" else "")
                    + "; if that doesn't help, the base model is damaged",
                    f'去噪网络在 {numbers} 精度下算出 NaN，会画成全黑。请设 mixed_precision = "no"'
                    + (' 或 "bf16"' if numbers == "float16" else "")
                    + "；仍不行则说明底模已损坏",
                )
            )
        pixels = self._decoded(latents)
        vae = self.family.modules()["vae"]
        if not pixels.isfinite().all() and vae.dtype != torch.float32:
            log.warning(
                say(
                    f"the VAE gives NaN in {vae.dtype}: it goes on in float32",
                    f"VAE 在 {vae.dtype} 精度下算出 NaN，改用 float32",
                )
            )
            vae.float()
            pixels = self._decoded(latents)
        if not pixels.isfinite().all():
            raise UserError(
                say(
                    "the VAE gives NaN: the image would be black. It is damaged; set another one as vae",
                    "VAE 算出 NaN，会画成全黑。它已损坏，请在 vae 里另填一个",
                )
            )
        return pixels

    def _decoded(self, latents: Tensor) -> Tensor:
        from library.hardware import memory

        if not self.is_tight:
            try:
                return self.family.decode_latents(latents)
            except RuntimeError as error:
                if not memory.is_full(error):
                    raise
                self.is_tight = True
            log.warning(
                say(
                    "low memory: the denoiser is moved out for the VAE at each image, somewhat slower",
                    "显存紧张，每次解码时去噪网络先移出显存，略慢",
                )
            )
        # outside of `except`: its traceback would hold the tensors of the failed pass
        idle = [module for name, module in self.family.modules().items() if name != "vae"]
        device = next(idle[0].parameters()).device
        for module in idle:
            module.to("cpu")
        memory.free_unused()
        try:
            return self.family.decode_latents(latents)
        finally:
            for module in idle:
                module.to(device)


def write_or_explain(path: Path, write: Callable[[], object], size: int) -> None:
    """Let `write` write a drawn image; where the disk is full, wait for room.

    Args:
        size: bytes that it takes, about.

    Raises:
        UserError: the folder cannot be written.
    """
    from library.storage import disk

    try:
        disk.writing(path, write, size=size, may_free=lambda: False)
    except OSError as error:
        raise UserError(
            say(
                f"{path} cannot be written ({error.strerror or error}). Change its permissions, or choose another "
                "output_dir",
                f"{path} 无法写入（{error.strerror or error}）。请修改权限，或换一个 output_dir",
            )
        ) from error


def duration_text(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 100:
        return say(f"{seconds:.0f} s", f"{seconds:.0f} 秒")
    if seconds < 100 * 60:
        return say(f"{seconds / 60:.0f} min", f"{seconds / 60:.0f} 分钟")
    return say(f"{seconds / 3600:.1f} h", f"{seconds / 3600:.1f} 小时")


def identity(path: str | Path, part: str = "unet") -> tuple[str, str | None]:
    """A model's name, and the first ten digits of its file's SHA-256, as web UIs know it; reads it from end to end.

    Args:
        part: whose weights stand for a diffusers folder: "unet" or "vae".
    """
    from library.families.loading import folder_files
    from library.storage import metadata

    path = Path(path).expanduser()
    name, file = path.stem if path.is_file() else path.resolve().name, path
    if path.is_dir():
        folder = path / part if (path / part).is_dir() else path
        file = folder_files(folder, part)[0]
    digest = metadata.model_hashes(file).sha256
    return name, digest and digest[:10]


@contextmanager
def memory_errors_explained() -> Iterator[None]:
    """What to do where the device's memory runs out within, in place of torch's error.

    Raises:
        UserError: it did.
    """
    from library.hardware import memory

    try:
        yield
    except RuntimeError as error:
        if not memory.is_full(error):
            raise
        first = str(error).partition("\n")[0]
        raise UserError(
            say(
                f"the device's memory is full ({first}). Lower the size of the images, set mixed_precision = "
                '"fp16" or "bf16" if it is "no", close other programs that use the card, or set device = "cpu" '
                "(slow)",
                f'显存不足（{first}）。请减小图片尺寸；mixed_precision 若为 "no" 请改为 "fp16" 或 "bf16"；'
                '关闭占用显卡的其他程序；或设 device = "cpu"（很慢）',
            )
        ) from error
