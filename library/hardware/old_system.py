"""Whether a Linux with an AMD card is too old for today's torch, and what to upgrade, in which order.

torch's ROCm builds bring ROCm itself along; of the system they need a kernel whose driver knows the card, and Python.
An older ROCm in /opt is no help and can be in the way. The figures are AMD's and Ubuntu's; no such machine was at hand.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from library.messages import say

RELEASE = Path("/etc/os-release")
OPT_ROCM = Path("/opt/rocm/.info/version")
PCI = Path("/sys/bus/pci/devices")
LEAST_UBUNTU, LEAST_KERNEL, LEAST_ROCM = (22, 4), (5, 15), (6, 0)


class System(NamedTuple):
    """What decides."""

    name: str  # "Ubuntu 20.04.1 LTS"; "": not told
    ubuntu: tuple[int, ...] | None  # (20, 4); None: another one
    kernel: tuple[int, ...]
    rocm: tuple[int, ...] | None  # installed in /opt; None: none
    has_amd_card: bool


def read_system(release: Path = RELEASE, rocm: Path = OPT_ROCM, pci: Path = PCI, kernel: str | None = None) -> System:
    """This system, from small files; an empty one where there are none."""
    facts = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _text(release), re.MULTILINE))
    ubuntu = _numbers(facts.get("VERSION_ID", "")) if facts.get("ID") == "ubuntu" else None
    if kernel is None:
        kernel = os.uname().release if hasattr(os, "uname") else ""
    cards = [card for card in pci.glob("*") if _text(card / "class").startswith("0x03")]
    has_card = any(_text(card / "vendor").strip() == "0x1002" for card in cards)
    return System(facts.get("PRETTY_NAME", ""), ubuntu, _numbers(kernel), _numbers(_text(rocm)) or None, has_card)


def advice(system: System) -> list[str]:
    """What is too old, and how to upgrade; mostly nothing. For machines with an AMD card only."""
    if not system.has_amd_card:
        return []
    old = []
    if system.ubuntu and system.ubuntu < LEAST_UBUNTU:
        old.append(system.name)
    if system.kernel and system.kernel < LEAST_KERNEL:
        old.append(say(f"Linux {_joined(system.kernel)}", f"Linux 内核 {_joined(system.kernel)}"))
    is_old_rocm = system.rocm is not None and system.rocm < LEAST_ROCM
    if system.rocm and is_old_rocm:
        old.append(f"ROCm {_joined(system.rocm)} (/opt/rocm)")
    if not old:
        return []
    listed = ", ".join(old)
    return [_only_rocm(listed) if len(old) == 1 and is_old_rocm else _upgrade(listed)]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    """ "5.15.0-91-generic" -> (5, 15)."""
    match = re.match(r"(\d+)\.(\d+)", text.strip())
    return tuple(map(int, match.groups())) if match else ()


def _joined(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


# ---- what is said ----


def _upgrade(old: str) -> str:
    return say(
        f"too old for today's torch on an AMD card: {old}. Upgrade in this order: 1. remove the old driver and ROCm "
        "(sudo amdgpu-uninstall); 2. Ubuntu 24.04, whose kernel knows the card and which has Python 3.12; 3. sudo "
        "usermod -aG render,video $USER, log in again; 4. a new virtual environment, and in it torch for rocm7.2, "
        "which brings ROCm along; 5. pip install -r requirements.txt (docs/amd.md)",
        f"系统太旧，AMD 显卡用不了现在的 torch：{old}。请按此顺序升级：1. 卸载旧驱动和 ROCm（sudo amdgpu-uninstall）；"
        "2. 升级到 Ubuntu 24.04，其内核支持该显卡，并自带 Python 3.12；3. sudo usermod -aG render,video $USER，"
        "重新登录；4. 新建虚拟环境，在其中安装 rocm7.2 版的 torch，ROCm 已包含在内；5. pip install -r requirements.txt"
        "（见 docs/amd.zh-CN.md）",
    )


def _only_rocm(old: str) -> str:
    return say(
        f"{old} is older than the ROCm that torch brings along, and not needed. If the card is not found or it "
        "crashes, remove it (sudo amdgpu-uninstall) and take its folders out of LD_LIBRARY_PATH",
        f"{old} 比 torch 自带的 ROCm 旧，已用不着。如果找不到显卡或崩溃，请卸载它（sudo amdgpu-uninstall），"
        "并从 LD_LIBRARY_PATH 中去掉它的目录",
    )
