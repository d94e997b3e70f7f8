"""Files changed so that it can be undone: what was there is kept first, in the folder `.backup` of the set.

Each run of a tool that changes files is a folder `.backup/<time> <tool>` with a journal, a line for each file: where it
is, the copy of what it was, and the checksum of what it became. The line is on disk before the file is changed, so a
run that was killed can be undone too.
"""

import json
import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

from library import files
from library.files import JsonObject
from library.messages import UserError, plural, say

FOLDER = ".backup"
JOURNAL = "journal.jsonl"
UNDONE = " undone"  # behind the name of a folder whose changes were taken back
TIME = "%Y-%m-%d %H.%M.%S"


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
        stamp = datetime.now()
        for made in self.folder.glob(f"{FOLDER}/*/{JOURNAL}"):
            try:  # names sort as the runs came, also within one second and where the clock was set back
                stamp = max(stamp, datetime.strptime(made.parent.name[:19], TIME) + timedelta(seconds=1))
            except ValueError:
                continue  # a folder that somebody renamed
        self._own = self.folder / FOLDER / f"{stamp:{TIME}} {tool}"
        self._journal = None
        self.count = 0  # files changed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._journal:
            self._journal.close()

    def write(self, path: Path, data: bytes) -> None:
        """Make a file have these bytes, at once or not at all; what it had before is kept.

        A link to a file becomes a file of its own; what it led to stays as it is. Raises UserError.
        """
        path = path.parent.resolve() / path.name
        try:
            before = path.read_bytes() if path.exists() else None
            if before == data:
                return
            if self._journal is None:
                self._own.mkdir(parents=True, exist_ok=True)
                self._journal = open(self._own / JOURNAL, "a", encoding="utf-8")  # noqa: SIM115  # closed by __exit__
            copy_name = None if before is None else f"{self.count:06d}{path.suffix}"
            line = {
                "path": Path(os.path.relpath(path, self.folder)).as_posix(),
                "before": copy_name,
                "after": files.sha256(data).hex(),
            }
            if path.is_symlink():
                line["link"] = os.readlink(path)
            if before is not None and copy_name is not None:
                with open(self._own / copy_name, "wb") as copy:
                    copy.write(before)
                    copy.flush()
                    os.fsync(copy.fileno())
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
            with files.replacing(path) as half:
                half.write_bytes(data)
                if before is not None:
                    shutil.copymode(path, half)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                say(
                    f"{path} cannot be changed ({reason}). Free some space, or change its permissions; earlier "
                    "changes can be undone",
                    f"{path} 无法修改（{reason}）。请腾出空间或修改权限；此前的改动可以撤销",
                )
            ) from error
        self.count += 1


def undo(folder: Path) -> Undone:
    """Take back the newest changes of a folder that were not taken back yet, whichever tool made them.

    Files that were changed or deleted since by something else are left and named. Where some cannot be restored the
    others are, and it can be tried again. Raises UserError.
    """
    folder = folder.resolve()
    made = [journal.parent for journal in folder.glob(f"{FOLDER}/*/{JOURNAL}")]
    made = sorted(path for path in made if not path.name.endswith(UNDONE))
    if not made:
        return Undone("", [], [])
    own = made[-1]
    restored, left, problems = [], [], []
    try:
        # behind the last line's end is nothing, or half a line: of a run that ended before it changed that file
        entries = [json.loads(line) for line in (own / JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]]
    except (OSError, ValueError) as error:
        entries = []
        problems.append(f"{own / JOURNAL}: {error}")
    for entry in reversed(entries):
        path = _place_of(folder, entry["path"])
        try:
            is_restored = _restore(path, entry, own)
        except OSError as error:
            problems.append(f"{path}: {error.strerror or error}")
            continue
        if is_restored is not None:
            (restored if is_restored else left).append(path)
    try:
        if not problems and (restored or not left):
            own.rename(own.with_name(own.name + UNDONE))
    except OSError as error:
        problems.append(f"{own}: {error.strerror or error}")
    if problems:
        raise UserError(
            problems,
            say(
                f"Not everything could be undone ({plural(len(restored), 'file')} restored). Fix this and undo "
                f"again; the original files are in {own}:",
                f"没有全部撤销（已恢复 {len(restored)} 个文件）。请解决后再撤销一次；原来的文件都在 {own}：",
            ),
        )
    return Undone(own.name, restored, left)


def _place_of(folder: Path, relative: str) -> Path:
    """Where a journal's file is; earlier versions wrote \\ between folders on Windows."""
    path = folder / relative
    return path if path.exists() else folder / relative.replace("\\", "/")


def _restore(path: Path, entry: JsonObject, own: Path) -> bool | None:
    """Make one file what it was. False: something else has changed it since. None: it is so already."""
    link, now = entry.get("link"), files.sha256(path.read_bytes()).hex() if path.exists() else None
    before = (own / entry["before"]).read_bytes() if entry["before"] else None
    if link and path.is_symlink() and os.readlink(path) == link:
        return None
    if not link and now == (None if before is None else files.sha256(before).hex()):
        return None  # the run was killed before it changed this one
    if now != entry["after"]:
        return False
    if link is None and before is None:
        path.unlink()
        return True
    with files.replacing(path) as half:
        if link is not None:
            half.symlink_to(link)
        else:
            half.write_bytes(before)
            shutil.copymode(path, half)
    return True
