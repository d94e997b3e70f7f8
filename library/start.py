"""What a person should see who started a script in another way than the README says.

A double click takes the system's Python, which may be too old or lack the packages, in a window that closes with the
last line. So nothing here needs a package, a newer Python, or the user's language, which is not known yet.
"""

from __future__ import annotations  # read by Pythons that know no `X | None`

import atexit
import contextlib
import sys
from types import TracebackType

LEAST_PYTHON = (3, 11)
INSTALL = "-m pip install -r requirements.txt"


def prepare() -> None:
    """Refuse a Python that is too old, explain a package that is missing, and let a window of our own wait."""
    if sys.platform == "win32":
        atexit.register(_hold_the_window)
    if sys.version_info < LEAST_PYTHON:
        sys.exit(_too_old())
    if sys.excepthook is sys.__excepthook__:  # else somebody else's program uses ours
        sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("library"):
        sys.stderr.write(missing(error.name) + "\n")
    else:
        sys.__excepthook__(kind, error, traceback)


def missing(name: str) -> str:
    """What to do where a package is missing from the Python that runs."""
    return (
        f"{name} is not installed in {sys.executable}, which runs this script. Either start it with the Python of your "
        f"virtual environment (README, Installation), or install the packages:\n"
        f'  "{sys.executable}" {INSTALL}\n'
        f"运行本脚本的 Python（{sys.executable}）没有安装 {name}。"
        f"请改用虚拟环境里的 Python（见 README 的安装一节），或用上面这行命令安装所需的包。"
    )


def _too_old() -> str:
    wanted, present = (".".join(map(str, version[:2])) for version in (LEAST_PYTHON, sys.version_info))
    linux, linux_zh = "", ""
    if sys.platform == "linux":  # Ubuntu 20.04 has 3.8: the whole system is too old, above all for an AMD card
        linux = " Ubuntu 24.04 has Python 3.12; what to upgrade in which order: docs/amd.md, An older system."
        linux_zh = "Ubuntu 24.04 自带 Python 3.12；升级顺序见 docs/amd.zh-CN.md 的“旧系统”一节。"
    return (
        f"This program needs Python {wanted} or newer; {sys.executable} is {present}. Install a newer one from "
        f"https://www.python.org, and make the virtual environment with it (README, Installation).{linux}\n"
        f"本程序需要 Python {wanted} 或更新版本，而 {sys.executable} 是 {present}。"
        f"请从 https://www.python.org 安装新版本，并用它重新建立虚拟环境（见 README 的安装一节）。{linux_zh}"
    )


def _hold_the_window() -> None:
    """Wait for Enter where the console belongs to us alone: it would close before anybody could read it."""
    import ctypes

    ids = (ctypes.c_uint32 * 4)()
    # py.exe and python.exe
    if sys.platform == "win32" and sys.stdin and ctypes.windll.kernel32.GetConsoleProcessList(ids, len(ids)) <= 2:
        with contextlib.suppress(EOFError, KeyboardInterrupt, RuntimeError):
            input("\nEnter: close this window | 按 Enter 键关闭窗口 ")
