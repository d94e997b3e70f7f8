"""Models of other programs that lie on this machine already: found by name, and opened where they are ONNX.

Taggers, background removers, super-resolution and face detectors are hundreds of megabytes, and many users cannot
download them; a web UI has them. Nothing is downloaded here.
"""

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from library.messages import UserError, say

PROJECT = Path(__file__).resolve().parent.parent

USUAL = (  # below the home folder and beside this project
    "stable-diffusion-webui", "stable-diffusion-webui-forge", "stable-diffusion-webui-amdgpu",
    "stable-diffusion-webui-reForge", "sd-webui-aki", "sd-webui-aki-v4", "ComfyUI", "ComfyUI_windows_portable",
    "SD.Next", "StabilityMatrix", "kohya_ss", "lora-scripts",
)  # fmt: skip
NOT_ENTERED = {  # hold thousands of files and no model
    "venv", ".venv", "env", ".git", "node_modules", "__pycache__", "outputs", "output", "site-packages",
    "Stable-diffusion", "checkpoints", "Lora", "loras", "python_embeded", "python",
}  # fmt: skip
DEEPEST = 6  # folders below a place: models--org--name/snapshots/<hash>/model.onnx lies at 3
MOST_FOLDERS = 20_000  # in all: a search must not take minutes

PROVIDERS = (  # of onnxruntime, the fastest first
    ("CUDAExecutionProvider", "CUDA"),
    ("MIGraphXExecutionProvider", "MIGraphX (AMD)"),
    ("ROCMExecutionProvider", "ROCm (AMD)"),
    ("DmlExecutionProvider", "DirectML"),
)


def places(extra: Iterable[str] | None = None) -> list[Path]:
    """The folders that are searched and exist, the user's own first."""
    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    found = [Path(os.path.expanduser(path)) for path in extra or ()]
    found = [path if path.is_absolute() else PROJECT / path for path in found]
    found += [PROJECT / "models", Path(os.environ.get("U2NET_HOME") or home / ".u2net"), Path(hub)]
    found += [cache / "modelscope" / "hub", *(parent / name for parent in (home, PROJECT.parent) for name in USUAL)]
    return list(dict.fromkeys(path for path in found if path.is_dir()))


def find(patterns: Iterable[str], extra: Iterable[str] | None = None) -> list[Path]:
    """All files whose name or path below a place is like one of the patterns, in the order of places and patterns.

    Args:
        patterns: "u2net*.onnx", "*wd-*tagger*/*.onnx"; capital letters do not matter.
        extra: further places, the user's models_dirs.
    """
    patterns = [pattern.lower() for pattern in patterns]
    found: dict[Path, tuple[int, int]] = {}
    budget = [MOST_FOLDERS]
    for number, place in enumerate(places(extra)):
        for path in _files(place, DEEPEST, budget):
            below = path.relative_to(place.parent).as_posix().lower()
            for rank, pattern in enumerate(patterns):
                if fnmatch(path.name.lower(), pattern) or fnmatch(below, f"*{pattern}" if "/" in pattern else pattern):
                    found.setdefault(path, (number, rank))
                    break
    return sorted(found, key=lambda path: (*found[path], str(path)))


def _files(folder: Path, depth: int, budget: list[int]) -> Iterator[Path]:
    budget[0] -= 1
    if budget[0] < 0:
        return
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # may not be read
        return
    for entry in listed:
        try:
            if entry.is_file():  # or a link to one: the hub's cache is made of them
                yield Path(entry.path)
            elif depth and entry.is_dir(follow_symlinks=False) and entry.name not in NOT_ENTERED:
                yield from _files(Path(entry.path), depth - 1, budget)
        except OSError:
            continue


class Onnx(NamedTuple):
    """A model that is ready to run."""

    session: Any  # onnxruntime.InferenceSession
    path: Path
    device: str  # where it runs, in words


def open_onnx(path: Path, device: str = "auto") -> Onnx:
    """Open an ONNX model on the best device that this onnxruntime knows.

    Args:
        device: "auto", "cpu" or "cuda" (AMD too).

    Raises:
        UserError: onnxruntime is missing, knows no such device, or the file is damaged.
    """
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
    available = onnxruntime.get_available_providers()
    names = dict(PROVIDERS)
    wanted = [name for name in names if name in available and device != "cpu"]
    if device.startswith("cuda") and not wanted:
        raise UserError(
            say(
                f'device = "{device}": this onnxruntime knows the CPU only. Take device = "auto", or pip install '
                "onnxruntime-gpu (AMD: onnxruntime-migraphx) in place of onnxruntime",
                f'device = "{device}"：安装的 onnxruntime 只支持 CPU。请设 device = "auto"，或改装 onnxruntime-gpu'
                "（AMD：onnxruntime-migraphx）",
            )
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: a provider that cannot start falls back, which is said below
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*wanted, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            say(
                f"{path}: this model cannot be opened ({reason}). It is damaged or of another kind: get it anew",
                f"{path}：无法打开该模型（{reason}）。文件已损坏或类型不对，请重新获取",
            )
        ) from error
    return Onnx(session, path, names.get(session.get_providers()[0], say("the CPU", "CPU")))
