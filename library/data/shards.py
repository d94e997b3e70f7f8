"""Rows of fp16 numbers under keys of 32 bytes: in few large files, or in memory.

A folder holds pairs of files, named `<group>.<shape>.<random>`. `.rows` is nothing but rows of one shape, one after
another. `.index` is a header and 40 bytes for each row: its key, its checksum, and a checksum of these two.

- Killed at any moment: a row is written first and its 40 bytes afterwards. So what an index names is whole; what was
  half-written is named by nobody, and the next writer overwrites it. After a power cut the disk may hold 40 bytes
  without their row. Therefore the header notes size and dates of `.rows` whenever it was closed in good order: where
  they differ, every row is compared with its checksum at the start; where they agree, when it is first read.
- Several processes: only who holds the lock on its index appends to a shard, and who finds all of them locked begins
  another one. Nobody waits, readers need no lock, and the system frees the locks of a process that dies.
- Age: a shard that no run has asked anything of for 30 days is deleted. A group is one model's, a shape one bucket's,
  so a model or a resolution that is given up frees its whole space; rows beside ones in use stay with them.

Files are read by position, not mapped into memory. Measured on 1 GiB in the page cache, rows of 32 KiB: 3.9 instead of
3.0 microseconds a row; but the process stays 1 GiB smaller, a slow disk stops no other thread (Python's lock is free
meanwhile), and a file cut off by others is an error that can be told, where a map kills the process.
"""

import os
import secrets
import struct
import threading
import time
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import numpy as np

from library import files
from library.data.threads import in_order
from library.messages import UserError, say

SHARD_BYTES = 256 * 2**20  # about: the batch that passes it is still kept whole
FILES_OPEN = 64  # at most, in each `Shards`; a process may have 256 on macOS, 1,024 on most Linux
UNUSED_DAYS = 30  # after so many without a use a shard is deleted

HEADER = struct.Struct("<8s4q")  # MAGIC; size, mtime_ns, ctime_ns, inode of `.rows` when it was closed in good order
MAGIC = b"rows  1\n"
RECORD = np.dtype([("key", "<u8", 4), ("row_crc", "<u4"), ("crc", "<u4")])

Shapes = tuple[tuple[int, ...], ...]  # of the parts of a row: latents have one; a caption has states, perhaps pooled
Rows = tuple[list[bytes], list[np.ndarray]]  # n keys, and for each part (n, *shape) float16


class Lost(Exception):
    """A row that was there is missing or damaged.

    Args:
        at: its place among those asked for.
    """

    def __init__(self, at: int):
        super().__init__(at)
        self.at = at


class Memory:
    """What `Shards` does, without files."""

    damaged: frozenset[bytes] = frozenset()

    def __init__(self):
        self._numbers: dict[bytes, int] = {}
        self._rows: list[list[np.ndarray]] = []

    def find(self, keys: list[bytes]) -> np.ndarray:
        return np.array([self._numbers.get(key, -1) for key in keys], np.int64)

    def shapes(self, number: int) -> Shapes:
        return tuple(part.shape for part in self._rows[number])

    def read(self, numbers: list[int]) -> list[np.ndarray]:
        return [np.stack(parts) for parts in zip(*(self._rows[number] for number in numbers), strict=True)]

    def append(self, batches: Iterable[Rows]) -> Iterator[int]:
        for keys, parts in batches:
            for key, *row in zip(keys, *parts, strict=True):
                self._numbers[key] = len(self._rows)
                self._rows.append(row)
            yield len(keys)

    def sweep(self) -> None:
        """Nothing outlives the run."""


class Shards:
    """The rows of a group in a folder.

    Args:
        folder: need not exist yet.
        group: letters and digits; who has another group does not see these rows.

    Attributes:
        damaged: keys of rows that were found damaged when the shards were opened, and are as good as missing.
    """

    def __init__(self, folder: Path, group: str):
        self.folder, self.group = folder, group
        self._open()

    def _open(self) -> None:
        """Read the indexes as they are now."""
        self._shards = [shard for shard in map(_open_shard, sorted(self.folder.glob(f"{self.group}.*.index"))) if shard]
        self._starts: list[int] = []  # a row's number counts through all shards; these are the numbers of their first
        self._opened: deque[_Shard] = deque()  # the longest open first
        self.damaged: set[bytes] = set()
        count = 0
        for shard in self._shards:
            self._starts.append(count)
            count += len(shard.keys)
            self.damaged |= {key.tobytes() for key in shard.keys[shard.is_named & ~shard.is_good]}
        self._keys = np.concatenate([np.empty((0, 4), "<u8"), *(shard.keys for shard in self._shards)])
        for shard, start in zip(self._shards, self._starts, strict=True):
            shard.keys = self._keys[start : start + len(shard.keys)]  # once in memory is enough
        good = np.concatenate([np.empty(0, bool), *(shard.is_good for shard in self._shards)]).nonzero()[0]
        # Sorted by their first eighth, which tells any two keys apart: they are digests. `find` compares all of it.
        self._sorted = good[np.argsort(self._keys[good, 0], kind="stable")]
        self._first = self._keys[self._sorted, 0]

    def find(self, keys: list[bytes]) -> np.ndarray:
        """(n,) int64 numbers of the rows of these keys, -1 where there is none. Notes that their shards are in use."""
        wanted = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 4)
        if not len(self._first):
            return np.full(len(wanted), -1)
        numbers = self._sorted[np.searchsorted(self._first, wanted[:, 0]).clip(max=len(self._first) - 1)]
        numbers = np.where((self._keys[numbers] == wanted).all(1), numbers, -1)
        for at in np.unique(np.searchsorted(self._starts, numbers[numbers >= 0], side="right") - 1):
            with suppress(OSError):  # a folder that can only be read
                os.utime(self._shards[at].index)
        return numbers

    def shapes(self, number: int) -> Shapes:
        """Of the parts of a row; () where there is none."""
        return self._shards[bisect_right(self._starts, number) - 1].shapes if number >= 0 else ()

    def read(self, numbers: list[int]) -> list[np.ndarray]:
        """Each part of these rows, (n, *shape) float16. There is at least one row, and they share their shapes.

        Raises:
            Lost: one of them is missing or damaged. It is made sure that the next run finds out at its start.
        """
        if numbers[0] < 0:
            raise Lost(0)
        first = self._shards[bisect_right(self._starts, numbers[0]) - 1]
        shapes, buffer = first.shapes, np.empty((len(numbers), first.row_bytes), np.uint8)
        for at, number in enumerate(numbers):
            if number < 0:
                raise Lost(at)
            place = bisect_right(self._starts, number) - 1
            shard = self._shards[place]
            assert shard.shapes == shapes, "rows read together must share their shapes"
            if not shard.is_open:
                self._opened.append(shard)
                if len(self._opened) > FILES_OPEN:
                    self._opened.popleft().close()
            if not shard.read(number - self._starts[place], buffer[at]):
                shard.distrust()
                raise Lost(at)
        parts, start = [], 0
        for shape in shapes:
            stop = start + 2 * int(np.prod(shape))
            parts.append(buffer[:, start:stop].view(np.float16).reshape(len(numbers), *shape))
            start = stop
        return parts

    def append(self, batches: Iterable[Rows]) -> Iterator[int]:
        """Keep rows, in a thread of its own, so that whoever makes the batches need not wait for the disk.

        Batches of one shape should follow one another: one shard is open at a time.

        Yields:
            The number of rows of each batch, when it is kept. To be read to the end.

        Raises:
            UserError: the folder cannot be written.
            Whatever making the batches raises, when those before are kept.
        """
        tail: _Tail | None = None
        failures: list[BaseException] = []

        def until_failure() -> Iterator[Rows]:
            try:
                yield from batches
            except BaseException as failure:  # an interruption too: what was made before it is still kept
                failures.append(failure)

        def keep(batch: Rows) -> int:
            nonlocal tail
            keys, parts = batch
            shapes = tuple(part.shape[1:] for part in parts)
            if tail and (tail.shapes != shapes or tail.is_full):
                close()
            with _told():
                tail = tail or _Tail(self.folder, self.group, shapes)
                tail.append(keys, np.concatenate([part.reshape(len(keys), -1) for part in parts], axis=1))
            return len(keys)

        def close() -> None:
            nonlocal tail
            done, tail = tail, None
            assert done
            with _told():
                done.close()

        try:
            yield from in_order(keep, until_failure(), 1)
            if failures:
                raise failures[0]
        finally:
            if tail:
                close()
            self._open()

    def sweep(self) -> None:
        """Delete the shards of every group in the folder that have not been used for a long time."""
        oldest = time.time() - UNUSED_DAYS * 24 * 3600
        for index in self.folder.glob("*.index"):
            with suppress(OSError):
                if index.stat().st_mtime < oldest and (file := _lock(index)):
                    with file, suppress(OSError):
                        index.unlink()  # while it is locked, so that nobody begins to append
                    index.unlink(missing_ok=True)  # Windows deletes no open file
        for rows in self.folder.glob("*.rows"):
            if not _beside(rows, ".index").exists():  # it is made before and deleted before
                with suppress(OSError):  # Windows: some process still reads it
                    rows.unlink()


class _Shard:
    """What is known of a pair of files: of every row its key, and whether it can be had."""

    def __init__(self, index: Path):
        self.index, self.rows = index, _beside(index, ".rows")
        self.shapes: Shapes = tuple(
            tuple(int(side) for side in shape.split("x")) for shape in index.name.split(".")[1].split("+")
        )
        self.row_bytes = 2 * sum(int(np.prod(shape)) for shape in self.shapes)
        self._file: FileIO | None = None
        self._lock = threading.Lock()  # around moving to a row and reading it
        self.load()

    def load(self) -> None:
        """Read the index. Records that are cut off or damaged name no row.

        Raises:
            ValueError: it is none: its writer was killed before it had begun, or it is not ours.
        """
        data = self.index.read_bytes()
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise ValueError("not an index")
        size = RECORD.itemsize
        records = np.frombuffer(data, RECORD, (len(data) - HEADER.size) // size, HEADER.size)
        crcs = [zlib.crc32(data[at : at + size - 4]) for at in range(HEADER.size, len(data) - size + 1, size)]
        self.keys, self.row_crcs = records["key"], records["row_crc"].copy()
        self.is_named = records["crc"] == np.array(crcs, np.uint32)
        self.is_good = self.is_named.copy()  # as far as is known
        self.is_checked = np.zeros(len(records), bool)
        self.is_settled = data[: HEADER.size] == _header(self.rows)

    def check(self) -> None:
        """Compare every row with its checksum."""
        row = np.empty(self.row_bytes, np.uint8)
        for number in self.is_named.nonzero()[0]:
            self.is_good[number] = self.read(number, row)
        self.close()

    def settle(self, file: FileIO) -> None:
        """Strike out the rows that are not good, and note that the others are."""
        for row in (~self.is_good).nonzero()[0]:
            file.seek(HEADER.size + int(row) * RECORD.itemsize)
            _write(file, bytes(RECORD.itemsize))
        file.seek(0)
        _write(file, _header(self.rows))

    def read(self, row: int, into: np.ndarray) -> bool:
        """Fill (row_bytes,) uint8. False: the row is missing or damaged."""
        try:
            with self._lock:
                if self._file is None:
                    self._file = FileIO(self.rows)
                self._file.seek(row * self.row_bytes)
                count = self._file.readinto(into.data)
        except OSError:
            return False
        if count != self.row_bytes:
            return False
        if not self.is_checked[row]:
            self.is_checked[row] = zlib.crc32(into.data) == self.row_crcs[row]
        return bool(self.is_checked[row])

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def close(self) -> None:
        """Until the next `read`."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

    def distrust(self) -> None:
        """Have the next run compare every row at its start."""
        with suppress(OSError), FileIO(self.index, "r+") as file:
            _write(file, HEADER.pack(MAGIC, 0, 0, 0, 0))


def _open_shard(index: Path) -> _Shard | None:
    """None: there is nothing that can be read."""
    try:
        shard = _Shard(index)
        if not shard.is_settled:
            file = _lock(index)
            if file is None:  # someone is appending to it, or it can only be read
                shard.check()
                return shard
            with file:
                shard.load()  # as it is now that nobody else writes
                shard.check()
                with suppress(OSError):
                    shard.settle(file)
        return shard
    except (OSError, ValueError):  # deleted this moment, or no index
        return None


class _Tail:
    """The end of a shard, where only this process writes."""

    def __init__(self, folder: Path, group: str, shapes: Shapes):
        self.shapes, self._row_bytes = shapes, 2 * sum(int(np.prod(shape)) for shape in shapes)
        name = f"{group}.{'+'.join('x'.join(map(str, shape)) for shape in shapes)}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in sorted(folder.glob(f"{name}.*.index")):
            if self._continue(index):
                return
        self._path = folder / f"{name}.{secrets.token_hex(4)}.index"
        self._index = FileIO(self._path, "x+")
        with suppress(OSError):  # a disk without locks: nobody else can lock it either, and so append to it
            files.try_lock(self._index.fileno())
        _write(self._index, HEADER.pack(MAGIC, 0, 0, 0, 0))
        self._rows = FileIO(_beside(self._path, ".rows"), "x")
        self._count = 0

    def _continue(self, index: Path) -> bool:
        """Take over a shard that has space, that nobody writes and whose rows are known to be good."""
        with suppress(OSError):
            if index.stat().st_size < HEADER.size:
                return False  # made this moment: whoever did is about to lock it
            file = _lock(index)
            if file is None:
                return False
            self._path, self._index = index, file
            self._count = (os.fstat(file.fileno()).st_size - HEADER.size) // RECORD.itemsize
            if not self.is_full and file.read(HEADER.size) == _header(_beside(index, ".rows")):
                self._rows = FileIO(_beside(index, ".rows"), "r+")
                return True
            file.close()
        return False

    @property
    def is_full(self) -> bool:
        return self._count * self._row_bytes >= SHARD_BYTES

    def append(self, keys: list[bytes], rows: np.ndarray) -> None:
        """Rows (n, row_bytes / 2) float16, and then what names them."""
        records = np.empty(len(keys), RECORD)
        records["key"] = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 4)
        records["row_crc"] = [zlib.crc32(row) for row in rows]
        records["crc"] = [zlib.crc32(record.tobytes()[:-4]) for record in records]
        self._rows.seek(self._count * self._row_bytes)
        _write(self._rows, rows)
        self._index.seek(HEADER.size + self._count * RECORD.itemsize)
        _write(self._index, records)
        self._count += len(keys)

    def close(self) -> None:
        with self._index:
            with self._rows:
                os.fsync(self._rows.fileno())  # the header must not reach the disk before the rows it vouches for
            self._index.seek(0)
            _write(self._index, _header(_beside(self._path, ".rows")))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            say(
                f"the cache cannot be written: {error}. Free some space, choose another cache_dir, or set "
                "cache_latents_to_disk = False",
                f"缓存无法写入：{error}。请腾出空间、更换 cache_dir，或设 cache_latents_to_disk = False",
            )
        ) from error


def _beside(path: Path, ending: str) -> Path:
    return path.parent / f"{path.name.rpartition('.')[0]}{ending}"


def _header(rows: Path) -> bytes:
    """The header of an index whose rows are as they are now."""
    try:
        stat = rows.stat()
    except OSError:
        return b""
    return HEADER.pack(MAGIC, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & 2**63 - 1)


def _write(file: FileIO, data: bytes | np.ndarray) -> None:
    left = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
    while left:  # a nearly full disk takes a part
        left = left[file.write(left) :]


def _lock(index: Path) -> FileIO | None:
    """The index, nobody else's until it is closed. None: another process has it, or it cannot be written."""
    try:
        file = FileIO(index, "r+")
    except OSError:
        return None
    with suppress(OSError):
        if files.try_lock(file.fileno()) and os.path.samestat(
            os.fstat(file.fileno()), os.stat(index)
        ):  # not deleted meanwhile
            return file
    file.close()
    return None
