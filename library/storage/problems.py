"""What goes wrong with files, said to the user."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from library import files
from library.messages import UserError, say

HELD_BY = (  # in English and Chinese
    "a web UI that has loaded it, a sync folder, a virus scanner",
    "加载了它的网页界面、同步盘或杀毒软件",
)


def refuse_non_finite(path: Path, names: Iterator[str], reason: str = "") -> None:
    """Rather keep the older file than write one of no use.

    Args:
        names: of tensors that hold infinities or NaN, if any do.

    Raises:
        FloatingPointError: there is one; it is named.
    """
    if name := next(names, None):
        raise FloatingPointError(
            say(
                f"{path} was not written: {name} contains infinities or NaN{reason}",
                f"{path} 没有写入：{name} 含有无穷大或 NaN{reason}",
            )
        )


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raises UserError, caused by the OSError, where the body cannot write `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(_cannot_be_written(path, error)) from error


def one_line(error: Exception) -> str:
    """One line of what another library says at length."""
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):  # torch refuses to unpickle anything but tensors and numbers
        return say(f"it contains a {foreign[1]}", f"含有 {foreign[1]}")
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cannot_be_written(path: Path, error: OSError) -> str:
    if files.is_held(error):
        return say(
            f"{path}: cannot be written: it is open in another program ({HELD_BY[0]}). Close it there. What was there "
            "before is intact.",
            f"{path}：无法写入：它正被其他程序占用（{HELD_BY[1]}）。请在那边关闭它。原有文件未受影响。",
        )
    return say(
        f"{path}: cannot be written ({error.strerror or error}). Is the disk full, or the folder protected? "
        "What was there before is intact.",
        f"{path}：无法写入（{error.strerror or error}）。磁盘是否已满，或文件夹没有写入权限？原有文件未受影响。",
    )
