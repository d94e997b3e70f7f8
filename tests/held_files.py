"""Windows' rule on Linux: a file that this process has open or mapped is not deleted, replaced or renamed.

The suites that write files run under it (`tests/conftest.py`): most users sit before Windows, and no test does. It is a
simulation. It knows the files of this process alone, and says nothing of what a virus scanner does.
"""

import errno
import os
from pathlib import Path

LET_THROUGH = (".lock", ".index")  # locked while they are removed: on Windows the code goes another way


def holder(path: os.PathLike | str) -> str | None:
    """ "mapped" or "open", as this process holds a file; None: it does not."""
    try:
        real, own = os.path.realpath(path), os.lstat(path)
    except OSError:
        return None
    if os.path.isdir(path):
        return None
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        if any(line.rstrip("\n").endswith(f" {real}") for line in maps):
            return "mapped"
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if os.path.samestat(os.stat(descriptor), own):
                return "open"
        except OSError:
            continue
    return None


def refuse(path: os.PathLike | str) -> None:
    """Raise what Windows raises, if the file is held."""
    if str(path).endswith(LET_THROUGH):
        return
    if held := holder(path):
        raise sharing_violation(path, f"{held} by this process")


def sharing_violation(path: os.PathLike | str, reason: str = "another program has it open") -> PermissionError:
    """As Windows raises it."""
    error = PermissionError(errno.EACCES, f"[WinError 32] {reason}", os.fspath(path))
    error.winerror = 32
    return error


def install(monkeypatch) -> None:
    """Let os.unlink, os.remove, os.replace and os.rename keep the rule."""
    real = {name: getattr(os, name) for name in ("unlink", "remove", "replace", "rename")}

    def removing(name):
        def remove(path, *, dir_fd=None):
            if dir_fd is None:
                refuse(path)
            return real[name](path, dir_fd=dir_fd)

        return remove

    def replace(source, target, **places):
        refuse(source)
        refuse(target)
        return real["replace"](source, target, **places)

    def rename(source, target, **places):
        refuse(source)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "[WinError 183] the target exists", os.fspath(target))
        return real["rename"](source, target, **places)

    for name, function in dict(
        unlink=removing("unlink"), remove=removing("remove"), replace=replace, rename=rename
    ).items():
        monkeypatch.setattr(os, name, function)
