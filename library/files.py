"""Files that count: written whole or not at all, locked, told apart by their bytes, never over another's.

One place for what every package needs of a disk that may be full, be unplugged, be shared by several computers, or
belong to Windows. Nothing here imports torch.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from library.messages import say

JsonObject = dict[str, Any]  # values of every kind that JSON and TOML have

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ATTEMPTS, SECONDS_BETWEEN = 20, 0.1
HELD = {5, 32, 33, 1224}  # Windows: access denied, sharing violation, lock violation, a file that is mapped
LOCKED_BYTE = 2**31 - 2  # Windows lets nobody read a locked byte: the last it can lock, which no file of ours reaches

# ---- Written whole or not at all ----


@contextmanager
def replacing(path: Path, half: Path | None = None, *, is_synced: bool = False) -> Iterator[Path]:
    """A file or folder to be written in the body; it takes the place of `path` at the end.

    After an exception, Ctrl-C included, `path` is what it was, and nothing is left of the new one.

    Args:
        half: where it is written, on the same disk; None: a name that no other process or thread takes.
        is_synced: a file is on the disk before it gets the name, or a power failure might leave the name without the
            bytes.

    Raises:
        OSError: the disk is full, the folder protected, or the like.
    """
    half = half or _private_beside(path)
    try:
        if os.path.lexists(half):  # a kill may have left it
            remove(half)
        yield half
        if is_synced:
            with open(half, "r+b") as file:  # Windows syncs no file that is only read
                os.fsync(file.fileno())
        replace(half, path)
    finally:
        with suppress(OSError):
            remove(half)


def part_of(path: Path) -> Path:
    """`name.part`: where the only writer of `path` writes it. The next one finds what a kill left of it."""
    return path.with_name(f"{path.name}.part")


def _private_beside(path: Path) -> Path:
    # Without the other's name, which may be as long as names can be.
    return path.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp")


def write(path: Path, data: bytes | memoryview) -> None:
    """Make a file have these bytes, at once or not at all; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as half:
        half.write_bytes(data)


def write_verified(path: Path, data: bytes | memoryview) -> bytes:
    """Write a file in its place, wait for the disk, and read it back.

    Returns:
        (32 bytes) the SHA-256.

    Raises:
        OSError: among others, what was read back is not what was written.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    written = sha256(data)
    if sha256_of_file(path) != written:
        raise OSError(errno.EIO, say("what was read back differs from what was written", "读回的内容与写入的不同"))
    return written


def replace(source: Path, target: Path) -> None:
    """os.replace, tried for two seconds where Windows refuses it because one of the two is held. Raises OSError."""
    _when_free(lambda: os.replace(source, target))


def _when_free(action: Callable[[], None]) -> None:
    for _ in range(ATTEMPTS):
        try:
            return action()
        except OSError as error:
            if not is_held(error):
                raise
            time.sleep(SECONDS_BETWEEN)
    action()


def is_held(error: OSError) -> bool:
    """Whether a file was refused because a program, perhaps this one, has it open, so that waiting helps.

    Windows neither deletes nor replaces such a file: for a moment where a virus scanner looks at it, longer in a folder
    that is being synchronised, for hours where a web UI has loaded it.
    """
    return getattr(error, "winerror", None) in HELD


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure; Windows does so by itself."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there; tried as `replace`. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        _when_free(lambda: shutil.rmtree(path))
    else:
        _when_free(lambda: path.unlink(missing_ok=True))


# ---- Told apart ----


def sha256(data: bytes | memoryview) -> bytes:
    """(32 bytes) the SHA-256: on a CPU that has instructions for it 1.5 times as fast as BLAKE2b."""
    return hashlib.sha256(data).digest()


def sha256_of_file(path: Path, start: int = 0) -> bytes:
    """(32 bytes) the SHA-256 of a file from byte `start` to its end, which need not fit in memory. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").digest()


def seed_from(text: str) -> int:
    """A seed for random numbers, below 2**63, that depends on a text alone: whatever else was drawn before."""
    return int.from_bytes(sha256(text.encode())[:8], "big") >> 1


# ---- Locks ----


def try_lock(handle: int) -> bool:
    """Lock an open file until it is closed or this process ends, however it ends.

    Returns:
        False: another process holds it.

    Raises:
        OSError: the disk knows no locks.
    """
    try:
        if sys.platform == "win32":
            place = os.lseek(handle, 0, os.SEEK_CUR)
            os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, place, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


@dataclass
class Lock:
    """A lock file that this process holds.

    It is the system's lock on the file that counts, so one left by a process that is dead, on whatever machine, holds
    nobody up. A disk that knows no locks guards nothing.
    """

    path: Path
    handle: int

    def release(self) -> None:
        """Give it up and remove the file."""
        if os.name == "posix":
            self.path.unlink(missing_ok=True)  # before the lock goes, or another's would be removed
        os.close(self.handle)
        if os.name != "posix":  # Windows removes no open file: not ours, nor another's that took it meanwhile
            with suppress(OSError):
                self.path.unlink()


def lock(path: Path) -> Lock | None:
    """Make a lock file and hold it; None: another process holds it (see `lock_holder`). Raises OSError."""
    attempts = 0
    while True:
        attempts += 1
        handle = os.open(path, os.O_CREAT | os.O_RDWR)
        with suppress(OSError):  # a disk that knows no locks
            if not try_lock(handle):
                os.close(handle)
                return None
        with suppress(FileNotFoundError):
            # Some network drives number their files anew at each look: as a disk that knows no locks.
            if os.path.samestat(os.stat(path), os.fstat(handle)) or attempts == ATTEMPTS:
                break
        os.close(handle)  # its holder removed it between our two calls
    text = json.dumps(dict(pid=os.getpid(), host=socket.gethostname(), started=time.strftime("%Y-%m-%d %H:%M:%S")))
    with suppress(OSError):  # for the reader only
        os.ftruncate(handle, 0)
        os.write(handle, text.encode())
    return Lock(path, handle)


def lock_holder(path: Path) -> str:
    """Who holds a lock file, for a message: process, computer and since when."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return say(
            f"process {held['pid']} on {held['host']} since {held['started']}",
            f"{held['host']} 上的进程 {held['pid']}，开始于 {held['started']}",
        )
    except (OSError, ValueError, KeyError, TypeError):
        return say("another process", "另一个进程")


# ---- Names that are free ----


def numbered(name: str) -> Iterator[str]:
    """name, name-2, name-3, ..."""
    yield name
    for number in count(2):
        yield f"{name}-{number}"


def numbered_paths(path: Path) -> Iterator[Path]:
    """The path, and with -2, -3, ... behind its stem."""
    return (path.with_stem(stem) for stem in numbered(path.stem))


def free_path(path: Path) -> Path:
    """The path, with -2, -3, ... behind its stem where it is taken."""
    return next(free for free in numbered_paths(path) if not free.exists())
