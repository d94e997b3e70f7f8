"""Weights into modules, frugally: the module is built without memory, then each parameter is taken from the file.

A parameter is read (or memory-mapped) and brought to its dtype and device one at a time, so no second copy of the model
ever exists. Whoever loads says for every parameter under which names a file may keep it; what a file lacks, or holds
beyond what is known, is said by name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from library.families.weights_file import open_tensors, read_header
from library.messages import UserError, say

# Entries that carry no weight of ours: counters and the halves of CLIP that only its training needs.
BYSTANDING = re.compile(r"(^|\.)(position_ids|logit_scale|text_projection(\.weight)?|attn_mask)$")

Network = TypeVar("Network", bound=nn.Module)


class Source(NamedTuple):
    """Where a file keeps a parameter."""

    name: str
    third: int | None = None  # 0, 1, 2: the query, key or value rows of a joint matrix
    is_transposed: bool = False

    def take(self, tensors: Mapping[str, Tensor]) -> Tensor:
        tensor = tensors[self.name]
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        return tensor.T if self.is_transposed else tensor


Sources = dict[str, Callable[[str], Iterable[Source]]]
"""Part of a model -> from a parameter's name to the places where a file may keep it, the likeliest first."""


class Place(NamedTuple):
    """Where weights go."""

    dtype: torch.dtype
    device: str | torch.device = "cpu"


class LoadOptions(NamedTuple):
    """How a model is loaded; see `families.open_model`."""

    place: Place
    vae_path: Path | None = None
    vae_dtype: torch.dtype | None = None
    clip_skip: int | None = None
    max_token_length: int | None = None


def build(make: Callable[[], Network], device: str = "meta") -> Network:
    """A frozen module in evaluation mode; on "meta" it costs neither memory nor random numbers.

    Raises:
        UserError: the configuration makes no module.
    """
    try:
        with torch.device(device):
            return make().requires_grad_(False).eval()
    except Exception as error:  # what diffusers and transformers raise for a configuration that is damaged: anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            say(
                f"no model can be built from this configuration ({reason}). If the base model is a folder, one of its "
                "config.json is damaged: download it again.",
                f"无法按配置建立模型（{reason}）。如果底模是文件夹，说明其中的 config.json 已损坏，请重新下载。",
            )
        ) from error


def fill(
    module: Network,
    tensors: Mapping[str, Tensor],
    sources: Callable[[str], Iterable[Source]],
    place: Place,
    *,
    part: str,
    path: Path,
    scope: str = "",
    ignored: tuple[str, ...] = (),
) -> Network:
    """Give every parameter of a module on the meta device its tensor.

    Args:
        tensors: what the file holds.
        sources: from a parameter's name to where the file may keep it; the first that exists is taken.
        part: what the module is, for messages: "U-Net".
        scope: beginning of all names that belong to the module; ones that are not used are reported.
        ignored: beginnings of names within the scope that are known and not needed.

    Raises:
        UserError: names of tensors that are missing, unknown, of another shape, or hold NaN or infinities.
    """
    state, used, missing, other_shape, not_finite = {}, set(), [], [], []
    for name, wanted in module.state_dict().items():
        source = next((source for source in sources(name) if source.name in tensors), None)
        if source is None:
            if not name.endswith("position_ids"):
                missing.append(next(iter(sources(name))).name)
            continue
        tensor = source.take(tensors)
        used.add(source.name)
        if tensor.shape != wanted.shape and [n for n in tensor.shape if n > 1] == [n for n in wanted.shape if n > 1]:
            tensor = tensor.reshape(wanted.shape)  # a linear layer kept as a 1x1 convolution, or the reverse
        if tensor.shape != wanted.shape:
            other_shape.append(f"{source.name} {list(tensor.shape)} / {list(wanted.shape)}")
            continue
        state[name] = tensor.to(place.device, place.dtype).contiguous()
        if not is_finite(state[name]):
            not_finite.append(source.name)
    unknown = [
        name
        for name in tensors
        if name.startswith(scope) and name not in used and not BYSTANDING.search(name) and not name.startswith(ignored)
    ]
    refuse_misfit(path, part, missing, other_shape, unknown)
    refuse_not_finite(path, part, not_finite, place.dtype)
    module.load_state_dict(state, strict=False, assign=True)
    materialise_buffers(module, place.device)
    return module  # still frozen and in evaluation mode, as `build` made it


def refuse_misfit(path: Path, part: str, missing: list[str], other_shape: list[str], unknown: list[str]) -> None:
    if not (missing or other_shape or unknown):
        return
    groups = (
        (missing, say("missing", "缺少")),
        (other_shape, say("of another shape (in the file / expected)", "形状不符（文件中 / 应为）")),
        (unknown, say("unknown", "多出")),
    )
    listed = "; ".join(
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for names, what in groups
        if names
    )
    if any(name.endswith((".scale_weight", ".weight_scale", ".comfy_quant", ".quant_state")) for name in unknown):
        cure = say(
            "The file is quantized for generating images; use its fp16, bf16 or fp32 version.",
            "这是为出图而量化的文件，请改用 fp16、bf16 或 fp32 版本。",
        )
    elif part == "VAE" and missing:
        cure = say(
            "Give a file that contains a whole VAE: under `vae` if the base model comes without one.",
            "请提供完整的 VAE；底模不带 VAE 时，请在 vae 里另外指定。",
        )
    else:
        cure = say(
            "The file is damaged, or its model was changed in its structure (distilled, pruned, merged with another "
            "kind); use the unchanged base model.",
            "文件已损坏，或模型结构被改动过（蒸馏、裁剪、与别的模型混合），请使用原始底模。",
        )
    raise UserError(
        say(
            f"{path}: its {part} does not fit. Tensors: {listed}. {cure}",
            f"{path}：{part} 对不上。张量：{listed}。{cure}",
        )
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor; on the meta device nobody knows."""
    if tensor.is_meta:
        return True
    if tensor.sum().isfinite():  # at the speed of memory; a sum that overflows proves nothing yet
        return True
    return bool(tensor.isfinite().all())


def refuse_not_finite(path: Path, part: str, names: list[str], dtype: torch.dtype) -> None:
    """Raise a UserError that names tensors with NaN: training on them fails at the first step, or learns nothing."""
    if names:
        raise UserError(_not_finite(path, part, names, dtype))


def materialise_buffers(module: nn.Module, device: str | torch.device) -> None:
    """Position numbers are no weights: no file keeps them, they are counted anew."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.device.type == "meta" and str(device) != "meta":
                assert name == "position_ids", f"a buffer without values: {name}"
                owner.register_buffer(
                    name, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape), persistent=False
                )


def folder_files(folder: Path, part: str) -> list[Path]:
    """The files of weights in one folder of a diffusers model: one, or all shards of one.

    Where several stand side by side the order is: safetensors before .bin, full precision before a variant (fp16).

    Raises:
        UserError: there is none, or a shard is missing.
    """
    pattern = re.compile(
        r"(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(\w+))?(?:-\d+-of-(\d+))?(?:\.(\w+))?\.(safetensors|bin)"
    )
    groups: dict[tuple[bool, bool, str, int], list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = pattern.fullmatch(file.name)
        if found:
            variant = found[1] or found[3] or ""
            groups.setdefault((found[4] == "bin", variant == "non_ema", variant, int(found[2] or 1)), []).append(file)
    if not groups:
        raise UserError(
            say(
                f"{folder}: the weights of the {part} are missing (a .safetensors or .bin file). Download the folder "
                "again, with them.",
                f"{folder}：缺少 {part} 的权重文件（.safetensors 或 .bin），请重新下载完整的文件夹。",
            )
        )
    best = min(groups)
    if len(groups[best]) < best[3]:
        raise UserError(
            say(
                f"{folder}: {len(groups[best])} of {best[3]} parts of the {part} are there; the download is not "
                "complete. Download it again.",
                f"{folder}：{part} 共有 {best[3]} 个分片，只找到 {len(groups[best])} 个，没有下载完整，请重新下载。",
            )
        )
    return groups[best]


def folder_tensors(folder: Path, part: str) -> Mapping[str, Tensor]:
    """The tensors in one folder of a diffusers model; the headers of the files are checked first."""
    files = folder_files(folder, part)
    for file in files:
        read_header(file)
    return open_tensors(files)


def _not_finite(path: Path, part: str, names: list[str], dtype: torch.dtype) -> str:
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    kind = str(dtype).removeprefix("torch.")
    return say(
        f"{path}: {len(names)} tensors of its {part} contain NaN or infinities (in {kind}): {listed}. The file "
        "is damaged or was merged wrongly; use another copy or another base model"
        + (', or mixed_precision = "bf16" or "no".' if dtype == torch.float16 else "."),
        f"{path}：{part} 中有 {len(names)} 个张量含有 NaN 或无穷大（{kind} 精度下）：{listed}。"
        "文件已损坏，或合并模型时出了错，请换一份文件或换一个底模"
        + ('，也可以设 mixed_precision = "bf16" 或 "no"。' if dtype == torch.float16 else "。"),
    )
