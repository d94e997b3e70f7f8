"""What the terminal shows, as the options say: which lines, whether a progress bar, and a copy of it in a file.

Everything that is said goes through `print`, as lines; so this stands in the place of sys.stdout and sys.stderr.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from library.messages import UserError, say
from library.options.training import Config

NOTES = ("note: ", "注意：")  # how lines begin that are a WARNING, in both languages
SHOWN = {"DEBUG": "all", "INFO": "all", "WARNING": "notes", "ERROR": "none", "CRITICAL": "none"}


class Console(io.TextIOBase):
    """A stream that passes on the lines which are wanted.

    Args:
        stream: where they go.
        shown: "all"; "notes": only those that begin with one of NOTES; "none".
        is_simple: no terminal, so no progress bar.
        copy: a file that gets the same lines.
    """

    def __init__(self, stream: TextIO, shown: str, *, is_simple: bool = False, copy: TextIO | None = None):
        self.stream, self.shown, self.copy = stream, shown, copy
        self.is_terminal = stream.isatty() and not is_simple and shown == "all"
        self.line = ""  # one that is not yet complete

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        if "\r" in text:  # the progress bar
            self.stream.write(text)
            return len(text)
        *whole, self.line = (self.line + text).split("\n")
        for line in whole:
            if self.shown == "all" or (self.shown == "notes" and line.startswith(NOTES)):
                self.stream.write(line + "\n")
                if self.copy and line:
                    self.copy.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()
        if self.copy:
            self.copy.flush()


@contextmanager
def told(config: Config) -> Iterator[None]:
    """Let sys.stdout and sys.stderr be as the options say; errors are shown at every level.

    Raises:
        UserError: console_log_file cannot be written.
    """
    if (config.console_log_level, config.console_log_file, config.console_log_simple) == ("INFO", None, False):
        yield
        return
    copy, before = None, (sys.stdout, sys.stderr)
    if config.console_log_file:
        path = Path(config.console_log_file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            copy = path.open("a", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            problem = say(
                f"console_log_file = {path} cannot be written ({reason}). Choose another place, or None.",
                f"console_log_file = {path} 无法写入（{reason}），请换一个位置，或设为 None。",
            )
            raise UserError(problem) from error
    shown = SHOWN[config.console_log_level]
    sys.stdout = Console(sys.stdout, shown, is_simple=config.console_log_simple, copy=copy)
    sys.stderr = Console(sys.stderr, "all", is_simple=config.console_log_simple, copy=copy)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if getattr(stream, "line", ""):
                stream.write("\n")
            stream.flush()
        sys.stdout, sys.stderr = before
        if copy:
            copy.close()
