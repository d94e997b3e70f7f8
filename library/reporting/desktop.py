"""A screen, where there is one: a page opens by itself, and the end of a long run is announced.

"auto" is for a person who watches: a terminal, a display, no remote login, no test. What a system cannot do is left.
"""

import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from library.messages import say

LONG = 600  # seconds of a run whose end is worth announcing
UNWATCHED = ("CI", "PYTEST_CURRENT_TEST", "SSH_CONNECTION", "SSH_TTY")


def has_screen(platform: str = sys.platform, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody sits before this machine, as far as it shows."""
    if any(environment.get(name) for name in UNWATCHED) or not _is_terminal():
        return False
    return platform in ("win32", "darwin") or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def open_page(page: Path, wanted: bool | str) -> None:
    """Show a page in the browser.

    Args:
        wanted: the option open_pages: "auto", True or False.
    """
    if page.is_file() and _is_wanted(wanted):
        with suppress(Exception):  # a page that does not open costs nothing: its path was printed
            webbrowser.open(page.resolve().as_uri())


def announce_end(name: str, seconds: float, wanted: bool | str) -> None:
    """Tell that a long training is finished: the terminal's bell, and the desktop's message where it has one.

    Args:
        seconds: how long it took; a short one is not announced.
        wanted: the option notify_at_end: "auto", True or False.
    """
    if seconds < LONG or not _is_wanted(wanted):
        return
    text = say(f"{name} is trained", f"{name} 训练完成")
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write("\a")
        sys.stderr.flush()
    command = _message_command(text)
    with suppress(OSError, subprocess.SubprocessError):
        if command:
            subprocess.run(command, check=False, timeout=10, capture_output=True)


def _message_command(text: str, platform: str = sys.platform) -> list[str] | None:
    """What shows a message on the desktop; None: nothing is known."""
    if platform == "darwin":
        return ["osascript", "-e", "on run argv", "-e", "display notification (item 1 of argv)", "-e", "end run", text]
    return ["notify-send", "--", "LoRA", text] if shutil.which("notify-send") else None


def _is_wanted(wanted: bool | str) -> bool:
    return has_screen() if wanted == "auto" else bool(wanted)


def _is_terminal() -> bool:
    with suppress(AttributeError, ValueError):  # no stream, or a closed one
        return sys.stdout.isatty()
    return False
