"""Files changed so that it can be undone: what was there is kept first, in the folder `.backup` of the set.

Each run of a tool that changes files is a folder `.backup/<time> <tool>` with a journal, a line for each file: where it
is, the copy of what it was, and the checksum of what it became. The line is on disk before the file is changed, so a
run that was killed can be undone too.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple, Self

from library.messages import UserError, say

FOLDER = ".backup"
JOURNAL = "journal.jsonl"
UNDONE = " undone"  # behind the name of a folder whose changes were taken back


class Undone(NamedTuple):
    """What `undo` did."""

    name: str  # of the folder, "2026-11-25 13.45.00 edit_tags"; "": there was nothing to undo
    restored: list[Path]
    left: list[Path]  # were changed since by something else, and stay as they are


class Backup:
    """Keeps what is changed; a context manager.

    Args:
        folder: the set; all files that are changed lie below it.
        tool: name of who changes them.
    """

    def __init__(self, folder: Path, tool: str):
        self.folder = folder.resolve()
        name = f"{time.strftime('%Y-%m-%d %H.%M.%S')} {tool}"
        self._own = self.folder / FOLDER / name
        number = 1
        while self._own.exists() or self._own.with_name(self._own.name + UNDONE).exists():  # within the same second
            number += 1
            self._own = self.folder / FOLDER / f"{name} {number}"
        self._journal = None
        self.count = 0  # files changed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._journal:
            self._journal.close()

    def write(self, path: Path, data: bytes) -> None:
        """Make a file have these bytes, at once or not at all; what it had before is kept. Raises UserError."""
        path = path.absolute()
        before = path.read_bytes() if path.exists() else None
        if before == data:
            return
        half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            copy = None
            if self._journal is None:
                self._own.mkdir(parents=True)
                self._journal = open(self._own / JOURNAL, "a", encoding="utf-8")  # noqa: SIM115  # closed by __exit__
            if before is not None:
                copy = f"{self.count:06d}{path.suffix}"
                (self._own / copy).write_bytes(before)
            line = {"path": os.path.relpath(path, self.folder), "before": copy, "after": _checksum(data)}
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
            half.write_bytes(data)
            half.replace(path)
        except OSError as error:
            half.unlink(missing_ok=True)
            reason = error.strerror or error
            raise UserError(
                say(
                    f"{path} cannot be changed ({reason}). Make room, or allow yourself to write there; what was "
                    "changed before can be undone",
                    f"{path} 无法修改（{reason}）。请腾出空间或取得写入权限；此前的改动可以撤销",
                )
            ) from error
        self.count += 1


def undo(folder: Path) -> Undone:
    """Take back the newest changes below a folder that were not taken back yet, whichever tool made them.

    Files that were changed since by something else are left and named. Raises UserError.
    """
    made = sorted(folder.glob(f"{FOLDER}/*/{JOURNAL}"), key=lambda journal: journal.parent.name)
    made = [journal for journal in made if not journal.parent.name.endswith(UNDONE)]
    if not made:
        return Undone("", [], [])
    own = made[-1].parent
    restored, left = [], []
    try:
        for line in reversed(made[-1].read_text(encoding="utf-8").splitlines()):
            entry = json.loads(line)
            path = folder / entry["path"]
            now = _checksum(path.read_bytes()) if path.exists() else None
            before = (own / entry["before"]).read_bytes() if entry["before"] else None
            if now == (None if before is None else _checksum(before)):
                continue  # the run was killed before it changed this one
            if now != entry["after"]:
                left.append(path)
                continue
            if before is None:
                path.unlink()
            else:
                half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                half.write_bytes(before)
                half.replace(path)
            restored.append(path)
        name = own.name
        shutil.move(own, own.with_name(own.name + UNDONE))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            say(
                f"{own}: cannot be undone as a whole ({error}). The files as they were lie in that folder",
                f"{own}：无法全部撤销（{error}）。原来的文件都在该目录里",
            )
        ) from error
    return Undone(name, restored, left)


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
