"""What goes wrong with files, said to the user."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from library.messages import UserError, say


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
        raise UserError(
            say(
                f"{path}: cannot be written ({error.strerror or error}). Is the disk full, or the folder protected? "
                "What was there before is intact.",
                f"{path}：无法写入（{error.strerror or error}）。"
                "磁盘是否已满，或文件夹没有写入权限？原有文件未受影响。",
            )
        ) from error


def one_line(error: Exception) -> str:
    """One line of what another library says at length."""
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):  # torch refuses to unpickle anything but tensors and numbers
        return say(f"it contains a {foreign[1]}", f"含有 {foreign[1]}")
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
