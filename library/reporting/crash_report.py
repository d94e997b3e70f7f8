"""crash_report.txt: what happened, what to do, and what somebody else needs to help; nothing secret.

The cause comes first. To make a crash known with its remedy: add a row to CAUSES.
"""

import dataclasses
import importlib.metadata
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from library import files
from library.messages import log, say
from library.options.training import Config

CAUSES: list[tuple[str, str, str]] = [  # pattern in "TypeName: message", remedy; the first that fits counts
    (
        r"(CUDA|HIP|MPS).{0,40}out of memory|OutOfMemoryError",
        "the device's memory is full. Try in this order: close other programs that use the graphics card, "
        "train_batch_size = 1, gradient_checkpointing = True, text_encoder_lr = 0, a lower resolution",
        "显存不足。请依次尝试：关闭占用显卡的其他程序、train_batch_size = 1、gradient_checkpointing = True、"
        "text_encoder_lr = 0、降低 resolution",
    ),
    (
        r"MemoryError|DefaultCPUAllocator|Cannot allocate memory|WinError 1455\b",
        "the computer's main memory is full: close other programs; on Windows enlarge the page file; lowram = True",
        "内存不足：请关闭其他程序；Windows 可增大虚拟内存（页面文件）；也可设 lowram = True",
    ),
    (
        r"Errno 28\b|Errno 122\b|Errno 69\b|WinError (39|112)\b|No space left on device|quota exceeded",
        "the disk is full: free some space, or use another output_dir or cache_dir; then continue from the last state",
        "磁盘已满：请腾出空间，或更换 output_dir、cache_dir，然后从最近的训练状态继续",
    ),
    (
        r"Errno (5|30)\b|Input/output error|Read-only file system",
        "the disk cannot be written or read: check it, its cable and the network drive; then continue from the "
        "last state",
        "磁盘无法读写：请检查磁盘、连接线和网络盘，然后从最近的训练状态继续",
    ),
    (
        r"invalid device function|HIP error|hipError",
        "this torch has no code for this AMD card: for the RX 6700 start with HSA_OVERRIDE_GFX_VERSION=10.3.0, or "
        "install the ROCm build for your card (README, Installation)",
        "这个 torch 不含该 AMD 显卡的代码：RX 6700 请加环境变量 HSA_OVERRIDE_GFX_VERSION=10.3.0 启动，"
        "或安装适合该显卡的 ROCm 版（见 README 的“安装”）",
    ),
    (
        r"no kernel image",
        "this torch has no code for this graphics card: a new card needs a newer torch, a very old one an older "
        "torch (README, Installation)",
        "这个 torch 不含该显卡的代码：新显卡请装更新的 torch，很老的显卡请装更早的版本（见 README 的“安装”）",
    ),
    (
        r"Memory access fault",
        "the AMD driver stopped the program: HSA_OVERRIDE_GFX_VERSION may name the wrong card, or the integrated "
        "graphics was used instead (ROCR_VISIBLE_DEVICES=0); otherwise update the driver and ROCm",
        "AMD 驱动终止了程序：HSA_OVERRIDE_GFX_VERSION 可能与显卡不符，或误用了处理器的核显"
        "（设 ROCR_VISIBLE_DEVICES=0）；否则请更新驱动和 ROCm",
    ),
    (
        r"CUDA error|CUDNN_STATUS|cuBLAS|CUBLAS_STATUS|device-side assert|AcceleratorError",
        "the graphics card or its driver failed: start again from the last state; if it comes back, undo overclocking, "
        "update the driver, and see whether the card gets too hot",
        "显卡或驱动出错：请从最近的训练状态重新开始；若再次出现，请取消超频、更新驱动，并检查显卡是否过热",
    ),
    (
        r"DLL load failed|WinError (126|127|193|1114)\b|cannot open shared object file",
        "a library that torch or another package needs is missing or does not fit: on Windows install Microsoft's "
        "Visual C++ Redistributable (x64), then pip install --force-reinstall -r requirements.txt",
        "缺少 torch 等软件包所需的动态库，或版本不符：Windows 请安装微软 Visual C++ Redistributable (x64)，"
        "再运行 pip install --force-reinstall -r requirements.txt",
    ),
    (
        r"ModuleNotFoundError|No module named|ImportError",
        "a package is missing or of an unsuitable version: pip install -r requirements.txt, with this same Python",
        "缺少软件包，或版本不合适：请用运行本程序的 Python 执行 pip install -r requirements.txt",
    ),
    (
        r"PermissionError|Errno 13\b|WinError (5|32)\b",
        "a file or folder may not be written, or another program is using it: close web UIs that use it, or choose "
        "another output_dir",
        "文件或文件夹没有写入权限，或被其他程序占用：请关闭正在使用它的网页界面，或更换 output_dir",
    ),
    (
        r"SafetensorError|HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeader|PytorchStreamReader|UnpicklingError",
        "a model file is damaged or was not copied completely: compare its size with the original and copy it again",
        "模型文件已损坏，或没有复制完整：请与原文件比较大小，并重新复制",
    ),
    (
        r"FloatingPointError",
        'training has diverged: lower learning_rate, or set mixed_precision = "bf16" or "no"',
        '训练已发散：请降低 learning_rate，或设 mixed_precision = "bf16" 或 "no"',
    ),
]

SECRET = r"[\w-]*(?:token|key|passw|secret|credential)[\w-]*"
SECRETS: list[tuple[str, str]] = [  # pattern, what stands there instead
    (r"://[^/\s@'\"]+@", "://***@"),
    (r"\b(?:hf|gh[a-z]|github_pat|glpat|sk)[_-][\w-]{8,}", "***"),
    (r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}", r"\1***"),
    (
        rf"(?i)(\b{SECRET}\s*=(?!=|\s*(?:None|True|False)\b)\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;&)\]}}]+)",
        r"\1***",
    ),  # name=value, also in a URL
    (rf"(?i)(--{SECRET}\s+)\S+", r"\1***"),
    (rf"(?i)([\"']{SECRET}[\"']\s*:\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,}}]+)", r"\1***"),  # a dict, JSON
]


def cause_line(error: BaseException) -> str:
    """What went wrong, in one line, with its probable remedy if the crash or what caused it is known."""
    texts = [_described(one) for one in _chain(error)]
    for text in texts:
        for pattern, english, chinese in CAUSES:
            if re.search(pattern, text):
                first = _first_line(texts[0])
                return _harmless(say(f"{first}. Likely fix: {english}", f"{first}。可能的解决办法：{chinese}"))
    return _harmless(_first_line(texts[0]))


def write(
    folder: Path, error: BaseException, *, config: Config, facts: Mapping[str, object], last_lines: list[str]
) -> Path:
    """Write crash_report.txt; an older one is replaced. Raises nothing: the crash is what the user must see.

    Args:
        folder: where it goes; if it cannot be written, into the system's folder for temporary files.
        config: values whose name speaks of a token, key or password are masked.
        facts: what else is known, such as device and step, by name.
        last_lines: the last steps.

    Returns:
        Where it lies; `folder / "crash_report.txt"` also if it could be written nowhere and was printed.
    """
    try:
        text = _report(error, config, facts, last_lines)
    except Exception as second:  # a broken value must not hide the crash
        text = f"{_described(error)}\n({_described(second)})\n"
    for place in (folder, Path(tempfile.gettempdir())):
        path = place / "crash_report.txt"
        with suppress(OSError):
            with files.replacing(path, files.part_of(path), is_synced=True) as half:
                half.write_text(text, encoding="utf-8", errors="replace")
            return path
    log.error(text)
    return folder / "crash_report.txt"


def _report(error: BaseException, config: Config, facts: Mapping[str, object], last_lines: list[str]) -> str:
    sections = [
        (say("What happened", "发生了什么"), [cause_line(error)]),
        (say("Facts", "情况"), _listed(facts)),
        (say("Configuration", "参数"), _listed(dataclasses.asdict(config))),
        (say("Versions", "版本"), _listed(versions())),
        (say("Last steps", "最后几步"), last_lines),
        (say("Traceback", "调用栈"), "".join(traceback.format_exception(error)).splitlines()),
    ]
    return _harmless("\n\n".join("\n".join([f"== {title} ==", *lines]) for title, lines in sections) + "\n")


def _listed(values: Mapping[str, object]) -> list[str]:
    masked = {
        name: "***" if value is not None and re.fullmatch(SECRET, name, re.IGNORECASE) else value
        for name, value in values.items()
    }
    return [f"{name} = {value!r}" if isinstance(value, str) else f"{name} = {value}" for name, value in masked.items()]


def versions() -> dict[str, str]:
    """Of Python, the system and the packages that matter; of torch's build only if torch was imported already."""
    found = {"python": sys.version.split()[0], "system": platform.platform()}
    for package in ("torch", "diffusers", "transformers", "safetensors"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = say("not installed", "未安装")
    if "torch" in sys.modules:  # importing it may be what crashed
        built_for = sys.modules["torch"].version
        found["torch built for"] = f"CUDA {built_for.cuda}, ROCm {built_for.hip}"
    return found


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error, what caused it, what caused that, ..."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _described(error: BaseException) -> str:
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ == "OutOfMemoryError"]
    return f"{(names or [type(error).__name__])[0]}: {error}"


def _first_line(text: str) -> str:
    return " ".join(text.split("\n", 1)[0].split())


def _harmless(text: str) -> str:
    """Without secrets, and with ~ for the home directory, which names the user."""
    for pattern, instead in SECRETS:
        text = re.sub(pattern, instead, text)
    try:
        home = str(Path.home())
    except RuntimeError:
        return text
    if len(home) > 1:
        for spelt in {home, home.replace("\\", "/"), home.replace("\\", "\\\\")}:
            text = re.sub(rf"(?<![\w.~-]){re.escape(spelt)}(?![\w.-])", "~", text, flags=re.IGNORECASE)
    return text
