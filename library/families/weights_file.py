"""A file of weights: what it holds, told without reading it, and its tensors, read one at a time.

A file is known by its first bytes, not by its suffix: safetensors, or a pickle of torch (.ckpt, .pt, .bin). What is
neither (a saved web page, a Git-LFS pointer, half a download) is refused by name. A pickle is only ever read with
`weights_only`: one that would run code is refused. A header is believed only where the safetensors library does: every
byte of the file belongs to one tensor. torch is imported only where tensors or pickles are read.
"""

import difflib
import json
import os
import re
import struct
import zipfile
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open

from library.messages import UserError, say

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
STRUCT_CODES = {"F64": "d", "F32": "f", "F16": "e"}
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # in a header -> torch's name
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library

# What checkpoints of the first years carry beside their weights: inert stand-ins take the place of these classes.
BYSTANDERS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


@dataclass(frozen=True)
class Header:
    """What a file of weights holds: names, shapes and metadata, but no values."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)
    offsets: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # dtype, first byte, end; safetensors only

    def values(self, name: str) -> list[float]:
        """The numbers of one small tensor."""
        dtype, begin, end = self.offsets.get(name, ("", 0, 0))
        if dtype not in STRUCT_CODES:
            return open_tensors([self.path])[name].float().flatten().tolist()
        with open(self.path, "rb") as file:  # without torch
            file.seek(begin)
            data = file.read(end - begin)
        return [value for (value,) in struct.iter_unpack("<" + STRUCT_CODES[dtype], data)]


def read_header(path: str | Path) -> Header:
    """Names, shapes and metadata of a file of weights.

    Raises:
        UserError: there is no such file, or it is damaged, or it is not a file of weights.
    """
    path = existing_file(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
    refuse_what_is_no_weights_file(path, start, size)
    if is_pickle(start):
        return Header(path, {name: tuple(tensor.shape) for name, tensor in read_pickle(path).items()})
    return read_safetensors_header(path, size)


def open_tensors(paths: list[Path]) -> Mapping[str, "Tensor"]:
    """The tensors of one file or of several shards by name: each is read (or mapped) when it is asked for."""
    mappings: list[Mapping[str, Tensor]] = []
    for path in paths:
        with open(path, "rb") as file:
            start = file.read(8)
        mappings.append(read_pickle(path) if is_pickle(start) else SafetensorsFile(path))
    return ChainMap(*mappings)  # pyrefly: ignore[bad-argument-type]  # nobody writes to it


class SafetensorsFile(Mapping[str, "Tensor"]):
    """A safetensors file as a mapping from names to tensors that are memory-mapped: nothing is read before its use."""

    def __init__(self, path: Path):
        self.file = safe_open(str(path), framework="pt", device="cpu")
        self.names = dict.fromkeys(self.file.keys())

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self.names:
            raise KeyError(name)
        return self.file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def is_pickle(start: bytes) -> bool:
    """Whether a file with this start is torch's: a zip (since torch 1.6) or a bare pickle (before)."""
    return start.startswith((b"PK\x03\x04", b"\x80\x02"))


# ---- Files that are not there ----


def existing_file(path: str | Path) -> Path:
    """The path of a file that exists.

    Raises:
        UserError: it does not. Says what stands nearby, or that it is a name on a hub, or a folder, and not a file.
    """
    refuse_absent(path)
    path = Path(path).expanduser()
    if not path.is_file():  # opening a pipe would wait for ever
        raise UserError(
            say(f"{path}: this is not a file. Give the path of the model.", f"{path}：这不是文件，请填写模型的路径。")
        )
    return path


def refuse_absent(given: str | Path) -> None:
    """Raise a UserError that helps where there is no such file or folder."""
    path = Path(os.path.expanduser(given))  # Path.expanduser would raise for a user who is not there
    if os.path.exists(path):  # Path.exists would raise for a name that is too long
        return
    text = str(given)
    if re.match(r"https?:|hf\.co/|huggingface\.co/", text):
        raise UserError(
            say(
                f"{text}: this is a web address. Nothing is downloaded here: download the model yourself (a "
                ".safetensors file) and give the path of the file.",
                f"{text}：这是一个网址。本程序不联网下载，请自行下载模型（.safetensors 文件），再填写它在本机的路径。",
            )
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.lower().endswith(SUFFIXES) and not path.parent.exists():
        cached = in_hub_cache(text)
        raise UserError(_name_on_the_hub(text, cached))
    if "\n" in text or "\t" in text:
        raise UserError(
            say(
                f"{text!r}: the path contains a line break or a tab, which \\n or \\t in quotes becomes. Write it with "
                '/ or as r"...".',
                f'{text!r}：路径里含有换行或制表符（引号中的 \\n、\\t 会变成它们）。请改用 / 分隔，或写成 r"..."。',
            )
        )
    if not path.parent.is_dir():
        folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path(path.anchor))
        raise UserError(
            say(
                f"{text}: there is no such file; even its folder does not exist (only {folder} does). Check the path.",
                f"{text}：没有这个文件，连它所在的文件夹也不存在（只找到 {folder}）。请检查路径。",
            )
        )
    near = near_names(path)
    listed = ", ".join(near)
    raise UserError(
        say(
            f"{text}: there is no such file." + (f" In the same folder: {listed}" if near else " Check the path."),
            f"{text}：没有这个文件。" + (f"同一文件夹里有：{listed}" if near else "请检查路径。"),
        )
    )


def near_names(path: Path) -> list[str]:
    """Up to five names in the path's folder that are spelt like it, or else the models that are there."""
    try:
        entries = [e for e in sorted(path.parent.iterdir()) if e.is_dir() or e.suffix.lower() in (*SUFFIXES, ".gguf")]
    except OSError:  # a folder we may not read
        return []
    entries = [entry for entry in entries if entry.exists()]  # a link that leads nowhere is no help
    by_lower = {entry.name.lower(): entry.name for entry in entries}
    near = difflib.get_close_matches(path.name.lower(), by_lower, n=5, cutoff=0.6)
    return [by_lower[name] for name in near] or [entry.name for entry in entries if entry.is_file()][:5]


def in_hub_cache(name: str) -> Path | None:
    """The folder of a whole diffusers model that another program has left in the Hub's cache on this machine."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / ("models--" + name.replace("/", "--"))
    snapshots = sorted(cache.glob("snapshots/*/model_index.json"), key=os.path.getmtime)
    return snapshots[-1].parent if snapshots else None


# ---- Files that are something else, or damaged ----


def refuse_what_is_no_weights_file(path: Path, start: bytes, size: int) -> None:
    if start[8:9] == b"{" and header_length(start) <= LARGEST_HEADER:
        return  # safetensors; its length may begin like a text: 0x7b20 is " {"
    text = start.lstrip().lower()
    again_en, again_zh = "Download it again.", "请重新下载。"
    if size == 0:
        raise UserError(say(f"{path}: the file is empty. {again_en}", f"{path}：文件是空的。{again_zh}"))
    if start.startswith(b"version https://git-lfs"):
        raise UserError(_git_lfs_pointer(path, size))
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            say(
                f"{path}: this is a saved web page, not a model. {again_en} (Sites that ask for a login send "
                "such a page in place of the file.)",
                f"{path}：这是一个网页，不是模型。{again_zh}（需要登录的网站常会返回网页来代替文件。）",
            )
        )
    if start.startswith(b"GGUF"):
        raise UserError(
            say(
                f"{path}: this is a GGUF file: quantized for generating images, it cannot be trained on. Use the "
                "original .safetensors of the model.",
                f"{path}：这是 GGUF 量化文件，只能用来出图，不能用来训练。请使用该模型的 .safetensors 原版。",
            )
        )
    if text.startswith((b"{", b"[")) and not start.startswith(b"\x80"):
        raise UserError(
            say(
                f"{path}: this is a text file (JSON), not a model: perhaps an error message of the download site. "
                f"{again_en}",
                f"{path}：这是文本文件（JSON），不是模型，可能是下载网站的出错信息。{again_zh}",
            )
        )
    if start.startswith((b"7z\xbc\xaf", b"Rar!", b"\x1f\x8b")):
        raise packed_archive(path)


def packed_archive(path: Path) -> UserError:
    return UserError(say(f"{path}: this is a packed archive. Unpack it first.", f"{path}：这是压缩包，请先解压。"))


def refuse_other_archives(path: Path) -> None:
    """Raise a UserError where a zip is not torch's: those are not compressed, so none unpacks to a thousandfold."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise packed_archive(path)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(_repacked(path))


def header_length(start: bytes) -> int:
    """What the first 8 bytes of a safetensors file tell: the bytes of JSON that follow."""
    return struct.unpack("<Q", start[:8].ljust(8, b"\xff"))[0]


def read_safetensors_header(path: Path, size: int) -> Header:
    """The header: 8 bytes that tell its length, then JSON that gives every tensor's dtype, shape and place."""
    with open(path, "rb") as file:
        length = header_length(file.read(8))
        if length > min(size - 8, LARGEST_HEADER) and (length > LARGEST_HEADER or file.read(1) != b"{"):
            raise UserError(_no_weights(path))
        if length > size - 8:
            raise cut_short(path, size, 8 + length)
        file.seek(8)
        try:
            entries = json.loads(file.read(length))
            metadata = entries.pop("__metadata__", None) or {}
            offsets = {
                name: (entry["dtype"], *(8 + length + place for place in entry["data_offsets"]))
                for name, entry in entries.items()
            }
            shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
            end = max((end for _, _, end in offsets.values()), default=8 + length)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged_header(path, error) from error
    if size < end < 2**63:
        raise cut_short(path, size, end)
    try:
        with safe_open(str(path), framework="np"):  # numpy: torch is not imported for it
            return Header(path, shapes, metadata, offsets)
    except SafetensorError as error:
        raise damaged_header(path, error) from error


def damaged_header(path: Path, error: Exception) -> UserError:
    return UserError(
        say(
            f"{path}: the header of this safetensors file cannot be read ({error}); the file is damaged. "
            "Download it again.",
            f"{path}：这个 safetensors 文件的文件头无法读取（{error}），文件已损坏，请重新下载。",
        )
    )


def cut_short(path: Path, size: int, wanted: int) -> UserError:
    return UserError(
        say(
            f"{path}: the file is cut short: {size:,} bytes are there, its header speaks of {wanted:,}. The download "
            "broke off; download it again.",
            f"{path}：文件不完整：只有 {size:,} 字节，而文件头记载应有 {wanted:,} 字节。下载中断了，请重新下载。",
        )
    )


class Bystander:
    """Takes the place of a class that is named in a checkpoint but has nothing to do with its weights."""

    def __new__(cls, *_arguments: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read_pickle(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a pickled checkpoint, memory-mapped where its format allows; nothing in it is executed.

    Raises:
        UserError: the file is damaged, or holds more than weights.
    """
    import pickle

    import torch

    stand_ins = [(type(name.rpartition(".")[2], (Bystander,), {}), name) for name in BYSTANDERS]
    load = partial(torch.load, map_location="cpu", weights_only=True)
    # pyrefly: ignore[bad-argument-type]  # a class is a callable
    with torch.serialization.safe_globals(stand_ins), open(path, "rb") as file:
        try:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            if is_zip:
                refuse_other_archives(path)
            can_map = is_zip and path.suffix.lower() != ".safetensors"  # new torch goes by that suffix, not by content
            content = load(path, mmap=True) if can_map else load(file)
        except UserError:
            raise
        except pickle.UnpicklingError as error:
            named = re.search(r"(?:GLOBAL|global|class|function) ([\w.]+\.[\w.]+)", str(error))
            name = named[1] if named else str(error).splitlines()[0]
            raise UserError(_would_run(path, name)) from error
        except Exception as error:  # a damaged pickle may raise anything
            raise UserError(
                _checkpoint_unreadable(path, str(error).splitlines()[0] if str(error) else type(error).__name__)
            ) from error
    return flat_tensors(content)


def flat_tensors(content: object) -> dict[str, "Tensor"]:
    """Names and tensors of a pickled object: of its "state_dict" where there is one; nested names joined by dots."""
    import torch

    if isinstance(content, torch.Tensor):
        return {"": content.detach()}
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    flat = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            flat[str(name)] = value.detach()
        elif isinstance(value, dict):
            flat |= {f"{name}.{inner}": t.detach() for inner, t in value.items() if isinstance(t, torch.Tensor)}
    return flat


def _name_on_the_hub(text: str, cached: Path | None) -> str:
    return say(
        f"{text}: there is no such file; it looks like the name of a model on the Hugging Face Hub, and "
        "nothing is downloaded here. "
        + (
            f"A copy is already on this machine; give its path: {cached}"
            if cached
            else "Download the model's .safetensors file, or the whole folder, and give its path."
        ),
        f"{text}：没有这个文件。它看起来是 Hugging Face 上的模型名，而本程序不联网下载。"
        + (
            f"本机缓存里已经有一份，请填写它的路径：{cached}"
            if cached
            else "请先下载该模型的 .safetensors 文件（或整个文件夹），再填写它在本机的路径。"
        ),
    )


def _git_lfs_pointer(path: Path, size: int) -> str:
    return say(
        f"{path}: this is a Git-LFS pointer, a note of {size} bytes that stands for the model. Fetch the model "
        "itself (git lfs pull), or download it in the browser.",
        f"{path}：这只是 Git-LFS 的指针文件（{size} 字节），并不是模型本身。"
        "请执行 git lfs pull 取回模型，或用浏览器下载。",
    )


def _repacked(path: Path) -> str:
    return say(
        f"{path}: this checkpoint was repacked by another program (torch does not compress). Get the "
        "original, better the .safetensors version of the model.",
        f"{path}：这个 ckpt 被其他程序重新压缩过（torch 保存的文件不压缩）。"
        "请使用原始文件，最好是该模型的 .safetensors 版本。",
    )


def _no_weights(path: Path) -> str:
    return say(
        f"{path}: this is not a file of weights: neither safetensors nor a torch checkpoint. Check which "
        "file you chose, or download it again.",
        f"{path}：这不是权重文件：既不是 safetensors，也不是 torch 的 ckpt。请检查是否选错了文件，或重新下载。",
    )


def _would_run(path: Path, name: str) -> str:
    return say(
        f"{path}: this file does not only hold weights: loading it would run {name}. It was not loaded. "
        "Get the .safetensors version of the model, which cannot run anything.",
        f"{path}：这个文件里不只有权重，加载它会执行 {name}，因此没有加载。"
        "请改用该模型的 .safetensors 版本（它无法执行代码）。",
    )


def _checkpoint_unreadable(path: Path, reason: str) -> str:
    return say(
        f"{path}: this checkpoint cannot be read; the download probably broke off. Download it again. ({reason})",
        f"{path}：这个 ckpt 无法读取，多半是下载中断了，请重新下载。（{reason}）",
    )
