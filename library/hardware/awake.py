"""A machine that does not go to sleep while it trains: systems count the user's idleness, not the card's work."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WINDOWS_KEEP_AWAKE, WINDOWS_AS_BEFORE = 0x8000_0001, 0x8000_0000  # ES_CONTINUOUS, with and without ES_SYSTEM_REQUIRED


@contextmanager
def kept_awake() -> Iterator[None]:
    """Within, Windows and macOS do not sleep for want of a user; the screen may. Elsewhere nothing is done.

    A Linux desktop's own setting decides there.
    """
    helper = None
    if sys.platform == "win32":
        _tell_windows(WINDOWS_KEEP_AWAKE)
    elif sys.platform == "darwin":
        with suppress(OSError):
            helper = subprocess.Popen(["caffeinate", "-i", "-w", str(os.getpid())])  # ends with this process
    try:
        yield
    finally:
        if sys.platform == "win32":
            _tell_windows(WINDOWS_AS_BEFORE)
        if helper:
            helper.terminate()


def _tell_windows(state: int) -> None:
    import ctypes

    ctypes.windll.kernel32.SetThreadExecutionState(state)  # type: ignore[attr-defined]  # on Windows alone
