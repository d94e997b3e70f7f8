"""What the program says to a person: in one language, the user's, and all problems at once.

Both texts stand at the place of use, `say("no image found", "没有找到图片")`, so whoever changes one sees the other.
Everything goes through `log`: `log.info` is a line; `log.warning` a note, which is marked as one; `log.error` what went
wrong. It is shown on the terminal from the start; `reporting.console` narrows it, or copies it into a file.
"""

import io
import locale
import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

_language = "en"


def set_language(language: str) -> None:
    """Choose the language of all messages: "en", "zh", or "auto" (Chinese under a zh locale, else English)."""
    global _language
    _language = locale_language() if language == "auto" else language


def locale_language() -> str:
    """The language of the environment or of the system: "zh" or "en"."""
    for variable in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):  # the order gettext looks in
        value = os.environ.get(variable, "")
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    name = locale.getlocale()[0] or ""  # Windows has no LANG
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


def say(english: str, chinese: str) -> str:
    """The one of two texts that is in the user's language."""
    return chinese if _language == "zh" else english


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its English noun: "1 image", "1,234 images".

    Args:
        one, many: the words for 1 and for any other count, with the verb where one follows ("image is", "images are");
            without `many` an s is added.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def prepare_streams() -> None:
    """Let every line pass, wherever it goes.

    A letter that the terminal or log file has not becomes ?: a Chinese path must not end the run. Without a window
    (pythonw) there is no stream at all; that of IDLE or a notebook is none of Python's own, and needs nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for as long as we run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can go back on its line. IDLE's window says so and cannot."""
    try:
        return stream.isatty() and stream.fileno() >= 0
    except (OSError, ValueError, AttributeError):
        return False


class LineFormatter(logging.Formatter):
    """The line alone, with "note: " before a warning."""

    def format(self, record: logging.LogRecord) -> str:
        return (say("note: ", "注意：") if record.levelno == logging.WARNING else "") + record.getMessage()


class Terminal(logging.Handler):
    """Errors to sys.stderr, all else to sys.stdout, whatever these are at that moment; above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        with _bars_out_of_the_way(stream):
            print(self.format(record), file=stream, flush=True)


def _bars_out_of_the_way(stream: TextIO) -> AbstractContextManager[None]:
    """Clear tqdm's bars on the terminal, and draw them again; nothing where tqdm was never imported."""
    tqdm = sys.modules.get("tqdm")
    return tqdm.tqdm.external_write_mode(file=stream) if tqdm else nullcontext()


log = logging.getLogger("lora")
log.setLevel(logging.INFO)
log.propagate = False  # what other libraries do with the root logger is not for the user of this program
TERMINAL = Terminal()
TERMINAL.setFormatter(LineFormatter())
log.addHandler(TERMINAL)


class Note(str):
    """A line the user should know of, with how serious it is; any other str that is noted counts as amber.

    Args:
        level: "red": what is trained would be wrong or wasted; "amber": worth a look; "green": in order.
        topic: a key of `doctor.TOPICS`; "": that of the list it stands in.
        images: files that it is about, to be shown where images can be.
    """

    level: str
    topic: str
    images: tuple[Path, ...]

    def __new__(cls, text: str, level: str = "amber", *, topic: str = "", images: Iterable[Path] = ()) -> "Note":
        note = super().__new__(cls, text)
        note.level, note.topic, note.images = level, topic, tuple(images)
        return note


class Stopped(BaseException):
    """The user ended the run; it is saved, and what would come after it is not begun.

    As KeyboardInterrupt it is no Exception: nothing that deals with errors may take it for one.
    """


class UserError(ValueError):
    """Something only the user can put right. Programs print it without a traceback and end with exit code 2.

    Args:
        problems: each says what was wrong, where (file, line, image) and what to do.
        heading: one line above them; where there is none, the problems speak for themselves.
    """

    def __init__(self, problems: str | list[str], heading: str | None = None):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = ([heading] if heading else []) + [f"  {problem}" if heading else problem for problem in self.problems]
        super().__init__("\n".join(lines))


def exit_code(work: Callable[[], int]) -> int:
    """Do a program's work; what only the user can put right is said, not raised.

    Returns:
        What `work` gives: 0 where it is done, 1 where it crashed. 0: stopped by the user, and saved. 2: the user has
        something to put right. 130: a second Ctrl-C.
    """
    prepare_streams()
    try:
        return work()
    except UserError as error:
        log.error(error)
        return 2
    except Stopped:
        return 0
    except KeyboardInterrupt:
        return 130
