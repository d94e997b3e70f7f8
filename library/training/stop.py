"""Stopping a run, or having it save, from its own window or from another: never in the middle of a step.

Ctrl-C and SIGTERM ask for an end after the step; Ctrl-C once more ends at once. A file named STOP or SAVE, put into the
output folder by whatever means, asks for the same where no signal reaches: another window, a file manager, Windows.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from library.messages import say

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":
    SIGNALS.append(signal.SIGBREAK)  # Ctrl-Break, and a window that is closed
LOOK_SECONDS = 1.0  # between two looks into the folder: it may lie on a network


class Stop:
    """Whether the user wants the run to end or to save now. A context manager: the signals are its own within.

    Outside the main thread, which alone gets signals, the files still work.

    Args:
        folder: where STOP and SAVE are looked for; in any case, with or without `.txt`, which Windows hides.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._stop: Literal["signal", "file"] | None = None
        self._save = False
        self._looked = -LOOK_SECONDS
        self._before: dict[int, Any] = {}  # signal -> handler
        self._honoured: set[str] = set()  # files that could not be removed: once is enough

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def requested(self) -> Literal["signal", "file"] | None:
        """How the user asked for the end of the run; None: not yet. Cheap enough for every step."""
        self._look()
        return self._stop

    def save_requested(self) -> bool:
        """Whether the user asked for a file now; True once for each time."""
        self._look()
        save, self._save = self._save, False
        return save

    def _take(self, number: int, *_: object) -> None:
        if number == signal.SIGINT and self._stop == "signal":
            raise KeyboardInterrupt
        if self._stop != "signal":
            self._stop = "signal"
            _write_line(
                say(
                    "stopping after this step, then saving; press Ctrl-C again to stop immediately",
                    "将在这一步结束后保存并停止；再按一次 Ctrl-C 则立即停止",
                )
            )

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        with suppress(OSError):  # a network drive that is away for a moment
            for entry in os.listdir(self.folder):
                wish = entry.casefold().removesuffix(".txt")
                if wish not in ("stop", "save") or entry in self._honoured or not (self.folder / entry).is_file():
                    continue
                try:
                    (self.folder / entry).unlink()
                except OSError:
                    self._honoured.add(entry)
                if wish == "save":
                    self._save = True
                else:
                    self._stop = self._stop or "file"


def _write_line(text: str) -> None:
    """Past Python's own buffers, which a signal may have interrupted."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with suppress(OSError):  # there is no terminal any more
        os.write(2, f"\n{text}\n".encode(encoding, errors="replace"))
