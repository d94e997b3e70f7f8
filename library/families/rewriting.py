"""Checkpoints read and written tensor by tensor: memory holds the largest one, never the model.

    stored = stored_weights(info, blueprint(info))       layer -> the file and the tensor that keep its weight
    rewrite(info, target, {stored[layer]: change, ...})  a copy with other weights there and nothing else changed

What is not changed is copied byte by byte, whatever its type. Files are read, not mapped: a mapped file's pages count
as the program's memory, and of a model of 7 GB they would fill that of a small machine.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from library import files
from library.contracts import Family, ModelInfo
from library.families import clip_text
from library.families.loading import Source, Sources, folder_files
from library.families.table import all_facts
from library.families.weights_file import FLOATS, Header, open_tensors, read_header
from library.messages import UserError, say

CHUNK = 2**24  # bytes copied at once
CODES = {name: code for code, name in FLOATS.items()}

Change = Callable[[Tensor], Tensor]
"""From a weight, in the file's type and shape, to the new one in float32, of the same shape."""

Changes = Mapping[str, list[tuple[Source, Change]]]  # by the name of the tensor in the file


class Stored(NamedTuple):
    """Where a model keeps a layer's weight."""

    file: Path
    source: Source


class Reader:
    """The tensors of one file, each read when it is asked for and kept by nobody.

    Args:
        path: .safetensors, or a pickle of torch, whose tensors are mapped.
    """

    def __init__(self, path: Path):
        self.header = read_header(path)
        self._pickled = None if self.header.offsets else open_tensors([path])

    @property
    def metadata(self) -> dict[str, str]:
        return self.header.metadata

    def names(self) -> list[str]:
        """In the order of the file."""
        offsets = self.header.offsets
        return sorted(offsets, key=lambda name: offsets[name][1]) if offsets else list(self.header.shapes)

    def code(self, name: str) -> str:
        """The type of a tensor, as a header of safetensors names it."""
        return self.header.offsets[name][0] if self._pickled is None else code_of(self._pickled[name].dtype)

    def size(self, name: str) -> int:
        """Bytes of a tensor."""
        if self._pickled is not None:
            return self._pickled[name].nbytes
        _, begin, end = self.header.offsets[name]
        return end - begin

    def read(self, name: str) -> Tensor:
        """A tensor of floating-point numbers. Raises UserError for one of another type."""
        if self._pickled is not None:
            return self._pickled[name]
        code, begin, end = self.header.offsets[name]
        _refuse_quantized(self.header.path, name, code)
        data = bytearray(end - begin)
        with open(self.header.path, "rb") as file:
            file.seek(begin)
            file.readinto(data)
        shape = self.header.shapes[name]
        dtype = getattr(torch, FLOATS[code])
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)

    def copy(self, name: str, out: BinaryIO) -> None:
        """Write a tensor's bytes as they are."""
        if self._pickled is not None:
            out.write(as_bytes(self._pickled[name]))
            return
        _, begin, end = self.header.offsets[name]
        with open(self.header.path, "rb") as file:
            file.seek(begin)
            for start in range(begin, end, CHUNK):
                out.write(file.read(min(CHUNK, end - start)))


def stored_weights(info: ModelInfo, family: Family, original: Sources) -> dict[nn.Module, Stored]:
    """Where a model keeps the weight of every linear layer and convolution that can be adapted.

    Args:
        family: of this model, as `families.blueprint` gives it.
        original: of the family, for single files.

    Raises:
        UserError: a layer's weight is not there, or has another shape.
    """
    found: dict[nn.Module, Stored] = {}
    single = read_header(info.path) if info.path.is_file() else None
    problems = []
    for part, (_, folder) in family.facts.parts.items():
        headers = [single] if single else [read_header(file) for file in folder_files(info.path / folder, folder)]
        if single:
            sources = original[part]
        else:
            sources = clip_text.folder_sources if part.startswith("text") else lambda name: [Source(name)]
        file_of = {name: header for header in headers for name in header.shapes}
        for name, layer in family.modules()[part].named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            places = list(sources(f"{name}.weight"))
            source = next((source for source in places if source.name in file_of), None)
            if source is None or source.is_transposed:  # a text encoder's projection: never adapted
                problems += [places[0].name] if source is None else []
                continue
            header = file_of[source.name]
            share = 3 if source.third is not None else 1
            if _count(header, source.name) != layer.weight.numel() * share:
                problems.append(source.name)
            found[layer] = Stored(header.path, source)
    if problems:
        raise UserError(_weights_missing(info.path, problems))
    return found


def _count(header: Header, name: str) -> int:
    return torch.Size(header.shapes[name]).numel()


def rewrite(
    info: ModelInfo,
    target: Path,
    changes: Mapping[Stored, Change],
    *,
    dtype: torch.dtype | None = None,
    metadata: Callable[[dict[str, str]], dict[str, str]] = dict,
    progress: Callable[[int], object] = int,
) -> None:
    """A copy of a model with some weights changed.

    Args:
        info: the model, a file or a diffusers folder.
        target: a .safetensors file, or a folder for a folder; must not exist. What is half written bears another name.
        changes: at these places.
        dtype: of all floating-point tensors; None: each its own.
        metadata: from a file's to its copy's.
        progress: is told of the bytes that are done.

    Raises:
        UserError: the disk is full, or a changed weight is too large for its type; nothing is left behind.
    """
    by_file: dict[Path, dict[str, list[tuple[Source, Change]]]] = {}
    for (file, source), change in changes.items():
        by_file.setdefault(file, {}).setdefault(source.name, []).append((source, change))
    with _whole_or_nothing(target) as half:
        if info.path.is_file():
            _rewrite_file(info.path, half, by_file.get(info.path, {}), dtype, metadata, progress)
        else:
            _rewrite_folder(info.path, half, by_file, dtype, metadata, progress)


def model_size(info: ModelInfo) -> int:
    """Bytes of the files that `rewrite` reads tensor by tensor."""
    return sum(file.stat().st_size for file in _weights(info.path))


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folders = {part.folder for facts in all_facts() for part in facts.parts.values()} | {"vae"}
    parts = [folder for folder in sorted(path.iterdir()) if folder.name in folders]
    return list(chain.from_iterable(folder_files(folder, folder.name) for folder in parts))


def _rewrite_folder(
    folder: Path,
    half: Path,
    by_file: Mapping[Path, Changes],
    dtype: torch.dtype | None,
    metadata: Callable[[dict[str, str]], dict[str, str]],
    progress: Callable[[int], object],
) -> None:
    weights = _weights(folder)
    pickled = [file for file in weights if file.suffix == ".bin"]
    if pickled:
        raise UserError(
            say(
                f"{pickled[0]}: the weights of a folder must be .safetensors here. Download that form of the model, or "
                "give a single file",
                f"{pickled[0]}：文件夹里的权重必须是 .safetensors。请下载该格式的模型，或改用单个文件",
            )
        )
    parts = {file.parent for file in weights}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        copy = half / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file in weights:
            _rewrite_file(file, copy, by_file.get(file, {}), dtype, metadata, progress)
        elif not (
            file.parent in parts and file.suffix in (".safetensors", ".bin")
        ):  # of another precision: not changed
            shutil.copyfile(file, copy)


def _rewrite_file(
    path: Path,
    target: Path,
    changes: Changes,
    dtype: torch.dtype | None,
    metadata: Callable[[dict[str, str]], dict[str, str]],
    progress: Callable[[int], object],
) -> None:
    reader = Reader(path)
    codes = {name: reader.code(name) for name in reader.names()}
    for name in changes:
        _refuse_quantized(path, name, codes[name])
    if dtype is not None:
        codes = {name: code_of(dtype) if code in FLOATS else code for name, code in codes.items()}
    kept = {name for name, code in codes.items() if code == reader.code(name) and name not in changes}
    shapes = reader.header.shapes
    sizes = {
        name: reader.size(name) if name in kept else torch.Size(shapes[name]).numel() * _type(code).itemsize
        for name, code in codes.items()
    }
    # The larger types first, as safetensors writes them: so every tensor begins at a multiple of its numbers' size.
    order = sorted(codes, key=lambda name: -(sizes[name] // max(1, torch.Size(shapes[name]).numel())))
    entries: dict[str, object] = {"__metadata__": metadata(reader.metadata)}
    place = 0
    if not entries["__metadata__"]:
        entries = {}
    for name in order:
        offsets = [place, place + sizes[name]]
        entries[name] = {"dtype": codes[name], "shape": list(shapes[name]), "data_offsets": offsets}
        place = offsets[1]
    head = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(target, "wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            if name in kept:
                reader.copy(name, out)
            else:
                out.write(as_bytes(_changed(reader, name, changes.get(name, []), _type(codes[name]))))
            progress(reader.size(name))
        out.flush()
        os.fsync(out.fileno())
    read_header(target)  # as a stranger would: every byte belongs to a tensor


def _refuse_quantized(path: Path, name: str, code: str) -> None:
    if code not in FLOATS:
        raise UserError(
            say(
                f"{path}: {name} is quantized ({code}): use the fp16, bf16 or fp32 version of the model",
                f"{path}：{name} 经过量化（{code}），请改用该模型的 fp16、bf16 或 fp32 版本",
            )
        )


def _changed(reader: Reader, name: str, changes: list[tuple[Source, Change]], dtype: torch.dtype) -> Tensor:
    tensor = reader.read(name)
    if changes:
        thirds = list(tensor.chunk(3)) if changes[0][0].third is not None else [tensor]
        for source, change in changes:
            thirds[source.third or 0] = change(thirds[source.third or 0])
        tensor = torch.cat([third.float() for third in thirds]) if len(thirds) > 1 else thirds[0]
    was_finite = bool(tensor.isfinite().all())
    tensor = tensor.to(dtype)
    if was_finite and not tensor.isfinite().all():
        raise UserError(_too_large(name, dtype))
    return tensor


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """Where to write what becomes `target` at the end; if there is no end, nothing is left."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target, files.part_of(target)) as half:
            yield half
    except OSError as error:
        raise UserError(
            say(
                f"{target}: cannot be written ({error.strerror or error}). Is the disk full, or the folder protected?",
                f"{target}：无法写入（{error.strerror or error}）。磁盘是否已满，或文件夹没有写入权限？",
            )
        ) from error


def code_of(dtype: torch.dtype) -> str:
    """A type as a header of safetensors names it; of integers and truth values too."""
    name = str(dtype).removeprefix("torch.")
    return CODES.get(name) or {"bool": "BOOL"}.get(name) or name.replace("uint", "U").replace("int", "I")


def _type(code: str) -> torch.dtype:
    return getattr(torch, FLOATS[code])


def as_bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _weights_missing(path: Path, names: list[str]) -> str:
    return say(
        f"{path}: {len(names)} weights are missing or of another shape, the first is {names[0]}. "
        "The file is damaged, or its model was changed in its structure",
        f"{path}：有 {len(names)} 个权重缺失或形状不符，第一个是 {names[0]}。文件已损坏，或模型结构被改动过",
    )


def _too_large(name: str, dtype: torch.dtype) -> str:
    return say(
        f"{name} is too large for {str(dtype).removeprefix('torch.')}: nothing was written. Set save_precision "
        'to "bf16" or "float"',
        f"{name} 的数值超出 {str(dtype).removeprefix('torch.')} 的范围，没有写入。"
        '请把 save_precision 设为 "bf16" 或 "float"',
    )
