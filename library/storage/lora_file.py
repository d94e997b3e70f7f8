"""Adapter files: written whole or not at all, read back, and loaded. To add a format: add a row to FORMATS."""

import pickle
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from library import files
from library.messages import UserError, say
from library.storage.problems import explain_write_errors, one_line, refuse_non_finite

PRECISIONS = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of save_precision
Renaming = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# Always float32: what a DoRA has learned of its magnitudes is a small part of them, which half precision rounds away.
# A1111, Forge and ComfyUI then act by 6e-4 otherwise than trained, with bf16 by more than half.
EXACT = ".dora_scale"

RANK_TENSORS = {  # by which a kind of adapter is known in a file -> the one whose first dimension is the rank
    "lora_down.weight": "lora_down.weight",
    "hada_w1_a": "hada_w1_b",
    "lokr_w1": "lokr_w2_b",  # not there where w2 is whole
}


def save_adapter(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write an adapter file; an older file of that name stays whole until the new one has been read back.

    Args:
        path: its suffix says the format, a key of FORMATS.
        tensors: under the names of the file, on any device.
        metadata: for .safetensors, which also gets the hashes by which web interfaces know it; the others hold none.
        dtype: of the file, but for what stands in EXACT; None: as they are.

    Raises:
        FloatingPointError: a tensor, which is named, holds infinities or NaN, if only in `dtype`; nothing is written.
        UserError: the disk is full, or the like; its cause is the OSError.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    refuse_non_finite(path, (name for name, tensor in tensors.items() if not tensor.isfinite().all()))
    tensors = {
        name: tensor.to(torch.float32 if name.endswith(EXACT) else dtype).contiguous()
        for name, tensor in tensors.items()
    }
    reason = say(' in this save_precision: use "bf16"', '，因为超出了 save_precision 的范围：请改用 "bf16"')
    refuse_non_finite(path, (name for name, tensor in tensors.items() if not tensor.isfinite().all()), reason)
    data = FORMATS[path.suffix](tensors, metadata or {})
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, files.part_of(path)) as half:
            files.write_verified(half, data)
        files.sync_folder(path.parent)


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    of_training = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    return safetensors.torch.save(tensors, {**metadata, **sshs_hashes(safetensors.torch.save(tensors, of_training))})


def _pickle(tensors: dict[str, Tensor], metadata: dict[str, str]) -> memoryview:
    return torch_bytes(tensors)


def torch_bytes(content: dict[str, Any]) -> memoryview:
    """What `torch.save` writes into a file."""
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


FORMATS: dict[str, Callable[[dict[str, Tensor], dict[str, str]], bytes | memoryview]] = {
    ".safetensors": _safetensors,
    ".ckpt": _pickle,
    ".pt": _pickle,
}


def sshs_hashes(serialised: bytes) -> dict[str, str]:
    """The two hashes of a LoRA, from a .safetensors of its tensors and ss_* entries, as sd-scripts computes them.

    sshs_model_hash: SHA-256 of everything behind the header, so that the metadata does not change it; A1111 knows a
    LoRA by it. sshs_legacy_hash: the first 8 digits of the SHA-256 of 64 KiB at 1 MiB, header and all.
    """
    header_size = int.from_bytes(serialised[:8], "little")
    return {
        "sshs_model_hash": files.sha256(memoryview(serialised)[8 + header_size :]).hex(),
        "sshs_legacy_hash": files.sha256(serialised[0x100000:0x110000]).hex()[:8],
    }


def load_adapter(path: Path, renamed: Renaming = dict) -> dict[str, Tensor]:
    """The tensors of an adapter file with kohya's names, float32 on the CPU; a missing alpha is filled in as the rank.

    Args:
        path: .safetensors, or .ckpt and .pt, of which only tensors are read.
        renamed: from the file's writing to kohya's, where it may be another.

    Raises:
        UserError: the file is missing, damaged, holds NaN, or is not such a LoRA.
    """
    tensors = renamed(read_tensors(path))
    known = [name for name in tensors if str(name).partition(".")[2] in RANK_TENSORS]
    foreign = [name for name in tensors if not str(name).startswith("lora_")]
    if not known or foreign:
        example = (foreign or list(tensors) or ["-"])[0]
        raise UserError(_not_a_lora(path, len(tensors), example))
    odd = [name for name in known if tensors[name].dim() < 2]
    odd += [name for name, tensor in tensors.items() if name.endswith(".alpha") and tensor.numel() != 1]
    odd += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if odd:
        raise UserError(_damaged(path, odd[0]))
    for name in known:
        layer, _, kind = name.partition(".")
        ranked = tensors.get(f"{layer}.{RANK_TENSORS[kind]}")
        if ranked is not None:
            tensors.setdefault(f"{layer}.alpha", torch.tensor(float(ranked.shape[0])))
    return {name: tensor.float() for name, tensor in tensors.items()}


def read_back(
    path: Path, expected: Mapping[str, tuple[int, ...]], parts: Mapping[str, str], renamed: Renaming = dict
) -> dict[str, float]:
    """Read a file just written, and make sure that it holds what was learned.

    Args:
        path: the file.
        expected: name -> shape of every tensor.
        parts: name of a layer -> part of the model that it is of.
        renamed: as in `load_adapter`.

    Returns:
        For each part of the model the Frobenius norm of all its updates, alpha / rank * up @ down, together. Of DoRA
        without its magnitudes, for whose part the base model's weights would be needed.

    Raises:
        UserError: tensors are missing or of another shape, or a part has learned nothing at all.
    """
    tensors = load_adapter(path, renamed)
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(
            say(
                f"{len(missing)} tensors are missing, the first is {missing[0]}.",
                f"缺少 {len(missing)} 个张量，第一个是 {missing[0]}。",
            )
        )
    if wrong := [name for name, shape in expected.items() if name in tensors and tensors[name].shape != tuple(shape)]:
        shapes = f"{tuple(tensors[wrong[0]].shape)}, {tuple(expected[wrong[0]])}"
        problems.append(
            say(
                f"{len(wrong)} tensors have the wrong shape, the first is {wrong[0]} (is, should be: {shapes}).",
                f"{len(wrong)} 个张量形状不对，第一个是 {wrong[0]}（实际、应为：{shapes}）。",
            )
        )
    norms = {} if problems else _norms(tensors, parts)
    for part, norm in norms.items():
        if norm == 0:
            problems.append(_nothing_learned(part))
    if problems:
        raise UserError(problems, say(f"{path}: this LoRA cannot be used:", f"{path}：该 LoRA 不可用："))
    return norms


def _norms(tensors: Mapping[str, Tensor], parts: Mapping[str, str]) -> dict[str, float]:
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, ending = name.partition(".")
        layers.setdefault(layer, {})[ending] = tensor
    squares: dict[str, float] = {}
    for layer, of_layer in layers.items():
        squares[parts[layer]] = squares.get(parts[layer], 0.0) + _norm(of_layer) ** 2
    return {part: square**0.5 for part, square in squares.items()}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    """Frobenius norm of a layer's update. The kinds' formulas: `adapters/lora.py`, `loha.py`, `lokr.py`."""
    own = {ending: tensor.flatten(1).double() for ending, tensor in tensors.items() if tensor.dim() > 1}

    def scale(rank: int) -> float:
        return float(tensors["alpha"]) / rank

    if "lora_down.weight" in own:
        down, up = own["lora_down.weight"], own["lora_up.weight"]
        square = float(((up.T @ up) * (down @ down.T)).sum())  # ‖up @ down‖² by r x r products
        return max(square, 0.0) ** 0.5 * abs(scale(len(down)))
    if "hada_w1_a" in own:
        product = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
        return float(product.norm()) * abs(scale(own["hada_w1_a"].shape[1]))
    if "lokr_w2" in own:  # whole, and then not scaled
        return float(own["lokr_w1"].norm() * own["lokr_w2"].norm())
    inner = own["lokr_w2_b"]
    return float(own["lokr_w1"].norm() * (own["lokr_w2_a"] @ inner).norm()) * abs(scale(len(inner)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, whatever they are; of a pickled one nothing else is read. Raises UserError."""
    if not path.is_file():
        raise UserError(say(f"{path}: there is no such file.", f"{path}：没有这个文件。"))
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())  # not mapped: Windows would not let it be replaced
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(_unreadable(path, one_line(error))) from error
    if not (isinstance(tensors, dict) and all(isinstance(tensor, Tensor) for tensor in tensors.values())):
        raise UserError(say(f"{path}: contains more than tensors.", f"{path}：除张量外还有其他内容。"))
    return tensors


def _not_a_lora(path: Path, count: int, example: str) -> str:
    return say(
        f"{path}: not a LoRA in the format of web interfaces (names such as lora_unet_... "
        f".lora_down.weight): it contains {count} tensors such as {example}. A base model, or a LoRA "
        "of another program?",
        f"{path}：不是网页界面通用格式的 LoRA（其中的名称应形如 lora_unet_… .lora_down.weight），"
        f"文件里有 {count} 个张量，例如 {example}。是否误选了底模，或其他程序的 LoRA？",
    )


def _damaged(path: Path, name: str) -> str:
    return say(
        f"{path}: {name} has an impossible shape, or contains NaN or infinities. The file is damaged, or "
        "its training failed; use another one.",
        f"{path}：{name} 的形状不对，或含有 NaN 或无穷大。文件已损坏或训练失败，请换一个文件。",
    )


def _nothing_learned(part: str) -> str:
    return say(
        f"{part}: nothing was learned, every update is zero. Was its learning rate 0 or tiny, or the "
        'training a step or two? With save_precision = "fp16" very small values become 0: try "float".',
        f"{part}：什么都没学到，所有更新量都是 0。学习率是否为 0 或过小？是否只训练了一两步？"
        'save_precision = "fp16" 会把极小的值变成 0，可改为 "float"。',
    )


def _unreadable(path: Path, reason: str) -> str:
    return say(
        f"{path}: cannot be read ({reason}). It is damaged, was not copied to its end, or is not a LoRA file.",
        f"{path}：无法读取（{reason}）。文件已损坏、没有复制完整，或不是 LoRA 文件。",
    )
