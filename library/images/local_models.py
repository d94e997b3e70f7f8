"""Models of other programs that lie on this machine already: found by name, and opened where they are ONNX.

Taggers, background removers, super-resolution and face detectors are hundreds of megabytes, and many users cannot
download them; a web UI has them. Nothing is downloaded here.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from library.messages import UserError, say

PROJECT = Path(__file__).resolve().parents[2]

USUAL = (  # how the folders of such programs begin; "sd-webui-aki-v4.8" too
    "stable-diffusion-webui", "sd-webui", "sd-forge", "comfyui", "sd.next", "sdnext", "stabilitymatrix", "kohya_ss",
    "lora-scripts", "sd-scripts",
)  # fmt: skip
DRIVES = "CDEFGH"  # of Windows, where such programs seldom lie in the home folder
NOT_ENTERED = {  # in any case of letters; hold thousands of files and no model
    "venv", ".venv", "env", ".git", "node_modules", "__pycache__", "outputs", "output", "site-packages",
    "stable-diffusion", "checkpoints", "lora", "loras", "python_embeded", "python", "blobs",
}  # fmt: skip
DEEPEST = 6  # folders below a place: StabilityMatrix/Data/Packages/ComfyUI/custom_nodes/ComfyUI-WD14-Tagger/models
MOST_FOLDERS = 10_000  # in one place, the upper ones first: a search must not take minutes

PROVIDERS = (  # of onnxruntime, the fastest first
    ("CUDAExecutionProvider", "CUDA"),
    ("MIGraphXExecutionProvider", "MIGraphX (AMD)"),
    ("ROCMExecutionProvider", "ROCm (AMD)"),
    ("DmlExecutionProvider", "DirectML"),
)
TOO_SMALL = 2000  # bytes: what lies in place of a model that was not really downloaded, such as Git LFS's pointer


def places(extra: Iterable[str] | None = None) -> list[Path]:
    """The folders that are searched and exist, the user's own first."""
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    found = [Path(os.path.expanduser(path)) for path in extra or ()]
    found = [path if path.is_absolute() else PROJECT / path for path in found]
    found += [PROJECT / "models", Path(os.environ.get("U2NET_HOME") or home / ".u2net"), Path(hub)]
    found += [Path(os.environ.get("MODELSCOPE_CACHE") or home / ".cache" / "modelscope")]
    for parent in (PROJECT.parent, home, *_drives()):
        found += _programs(parent)
    return list(dict.fromkeys(path for path in found if path.is_dir()))


def _drives() -> list[Path]:
    return [Path(f"{letter}:\\") for letter in DRIVES] if sys.platform == "win32" else []


def _programs(parent: Path) -> list[Path]:
    """The folders directly in one whose names begin as those of known programs do."""
    try:
        return sorted(path for path in parent.iterdir() if path.name.lower().startswith(USUAL))
    except OSError:  # no such drive, or it may not be read
        return []


def content(path: Path) -> np.ndarray:
    """A file as OpenCV takes it: its own way of opening one fails on Windows below a folder with a Chinese name."""
    return np.frombuffer(path.read_bytes(), np.uint8)


def find_models(patterns: Iterable[str], extra: Iterable[str] | None = None) -> list[Path]:
    """All files whose name or path below a place is like one of the patterns, in the order of places and patterns.

    A file that is reached in several ways, as links in a hub's cache, is given once.

    Args:
        patterns: "u2net*.onnx", or with folders "*tagger*/*.onnx"; capital letters do not matter.
        extra: further places, the user's models_dirs.
    """
    patterns = [pattern.lower() for pattern in patterns]
    found: list[tuple[int, int, str, Path]] = []
    for number, place in enumerate(places(extra)):
        for path in files_below(place):
            rank = _rank(path, place, patterns)
            if rank is not None:
                found.append((number, rank, str(path), path))
    once: dict[str, Path] = {}
    for *_, path in sorted(found):
        once.setdefault(os.path.realpath(path), path)
    return list(once.values())


def _rank(path: Path, place: Path, patterns: list[str]) -> int | None:
    """Which of the patterns a file is like, the first of several."""
    name = path.name.lower()
    below = f"/{path.relative_to(place.parent).as_posix()}".lower()
    for number, pattern in enumerate(patterns):
        if fnmatchcase(below, f"*/{pattern}") if "/" in pattern else fnmatchcase(name, pattern):
            return number
    return None


def files_below(place: Path) -> Iterator[Path]:
    """The files in a folder and below, the upper ones first; links are followed, each to a place once."""
    waiting = deque([(place, 0)])
    entered = {os.path.realpath(place)}
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # may not be read
            continue
        for entry in listed:
            try:
                if entry.is_file():  # or a link to one: a hub's cache is made of them
                    yield Path(entry.path)
                elif depth < DEEPEST and entry.is_dir() and entry.name.lower() not in NOT_ENTERED:
                    target = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if target not in entered:
                        entered.add(target)
                        waiting.append((Path(entry.path), depth + 1))
            except OSError:  # links in a circle
                continue


Session = Any  # onnxruntime.InferenceSession; what it gives is declared as a union that nobody can use


class Onnx(NamedTuple):
    """A model that is ready to run."""

    session: Session
    path: Path
    device: str  # where it runs, in words


def open_onnx(path: Path, device: str = "auto") -> Onnx:
    """Open an ONNX model on the best device that this onnxruntime knows.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1" (AMD too).

    Raises:
        UserError: onnxruntime is missing, knows no such device or cannot start it, or the file is damaged.
    """
    name, _, number = device.lower().partition(":")
    if name not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise UserError(
            say(
                f'device = "{device}": models of onnxruntime run on "auto", "cpu" or "cuda" (AMD too)',
                f'device = "{device}"：onnxruntime 模型的设备只能是 "auto"、"cpu" 或 "cuda"（AMD 也写 cuda）',
            )
        )
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            say(
                f"{path} needs onnxruntime: pip install onnxruntime (NVIDIA: onnxruntime-gpu; AMD: "
                "onnxruntime-migraphx)",
                f"{path} 需要 onnxruntime：请 pip install onnxruntime（NVIDIA 用 onnxruntime-gpu，"
                "AMD 用 onnxruntime-migraphx）",
            )
        ) from None
    _refuse_placeholder(path)
    available = onnxruntime.get_available_providers()
    names = dict(PROVIDERS)
    wanted = [provider for provider in names if provider in available and name != "cpu"]
    if name == "cuda" and not wanted:
        raise UserError(
            say(
                f'device = "{device}": this onnxruntime supports only the CPU. Use device = "auto", or pip install '
                "onnxruntime-gpu (AMD: onnxruntime-migraphx) in place of onnxruntime",
                f'device = "{device}"：安装的 onnxruntime 只支持 CPU。请设 device = "auto"，或改装 onnxruntime-gpu'
                "（AMD：onnxruntime-migraphx）",
            )
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # nothing: a provider that cannot start falls back, which is said below
    chosen = [(provider, {"device_id": number} if number else {}) for provider in wanted]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # onnxruntime prints what it tries
            if "CUDAExecutionProvider" in wanted and hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # CUDA's libraries as pip installs them, which torch brings
            session = onnxruntime.InferenceSession(str(path), options, providers=[*chosen, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            say(
                f"{path}: this model cannot be opened ({reason}). It is damaged or of another kind: download it again",
                f"{path}：无法打开该模型（{reason}）。文件已损坏或类型不对，请重新获取",
            )
        ) from error
    provider = session.get_providers()[0]
    if name == "cuda" and provider not in names:
        raise UserError(
            say(
                f'device = "{device}": onnxruntime cannot start the GPU here; its version must fit the CUDA (AMD: '
                'ROCm) that is installed. Use device = "auto", which then uses the CPU',
                f'device = "{device}"：onnxruntime 无法启用显卡，它的版本须与安装的 CUDA（AMD：ROCm）相符。'
                '请设 device = "auto"，届时改用 CPU',
            )
        )
    return Onnx(session, path, names.get(provider, say("the CPU", "CPU")))


def _refuse_placeholder(path: Path) -> None:
    """Refuse a file that only stands for a model, which onnxruntime would call an invalid one. Raises UserError."""
    try:
        with open(path, "rb") as file:
            start = file.read(TOO_SMALL)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(say(f"{path}: cannot be read ({reason})", f"{path}：无法读取（{reason}）")) from error
    begins = start.lstrip().lower()
    if not begins or begins.startswith((b"version https://git-lfs", b"<!doctype html", b"<html")):
        raise UserError(
            say(
                f"{path}: contains no model but "
                f"{'nothing' if not begins else 'a pointer or web page in its place'}: the download did not fetch "
                "the file itself. Download it anew, by the arrow beside its name",
                f"{path}：{'是空文件' if not begins else '只是指针或网页，不是模型'}：下载时没有取到文件本身。"
                "请在其页面点文件名旁的下载按钮重新下载",
            )
        )
