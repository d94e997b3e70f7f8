"""What the terminal shows, as the options say: which lines, whether a progress bar, and a copy of them in a file."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from library.messages import TERMINAL, LineFormatter, UserError, is_terminal, log, say
from library.options.training import Config

LEVELS = {  # console_log_level -> the least that is shown; errors always are
    "DEBUG": logging.INFO,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.ERROR,
}


@contextmanager
def as_asked(config: Config) -> Iterator[None]:
    """Let the log show and copy what the options say; afterwards all is as before.

    Raises:
        UserError: console_log_file cannot be written.
    """
    copy = _copy(Path(config.console_log_file)) if config.console_log_file else logging.NullHandler()
    level, before = LEVELS[config.console_log_level], TERMINAL.level
    TERMINAL.setLevel(level)
    copy.setLevel(level)
    log.addHandler(copy)
    try:
        yield
    finally:
        TERMINAL.setLevel(before)
        log.removeHandler(copy)
        copy.close()


def _copy(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="replace")  # names of files may be no UTF-8
    except OSError as error:
        reason = error.strerror or error
        problem = say(
            f"console_log_file = {path} cannot be written ({reason}). Choose another place, or None.",
            f"console_log_file = {path} 无法写入（{reason}），请换一个位置，或设为 None。",
        )
        raise UserError(problem) from error
    handler.setFormatter(LineFormatter())
    return handler


def progress_stream(config: Config) -> TextIO | None:
    """Where a progress bar is drawn: on a terminal that shows every line; None: nowhere."""
    is_wanted = LEVELS[config.console_log_level] == logging.INFO and not config.console_log_simple
    return sys.stdout if is_wanted and is_terminal(sys.stdout) else None
