"""What earlier runs found out about files, so that a run which starts need not read a hundred thousand images; and
the folder in which this, latents and captions are kept.

A file is known by its stamp: path, size, inode and both dates. On POSIX whatever changes a file sets ctime, which
nothing can set back. On Windows st_ctime is the date of creation: there an image that is replaced by another of the
same size, with the old date set on purpose, is taken for the old one. Nothing here imports torch.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from library.data.shards import Lost, Rows, Shards
from library.data.threads import in_order
from library.files import sha256
from library.messages import UserError, say
from library.options.training import Config

Fact = TypeVar("Fact")

# A file whose dates are younger is read again at the next start: it might change within the same tick of a coarse
# clock (2 seconds on FAT) and then bear the dates it was known by.
SETTLED_SECONDS = 3.0

FILES_AT_ONCE = 256  # facts that an interruption may lose


def cache_folder(config: Config) -> tuple[Path | None, str | None]:
    """The folder for caches, made and tried out; None keeps them in memory. And a line where it is not the usual one.

    Raises:
        UserError: the user's own `cache_dir` cannot be written.
    """
    if not config.cache_latents_to_disk:
        return None, None
    beside = Path(config.dataset_config).parent if config.dataset_config else Path(config.train_data_dir)
    usual = Path(config.cache_dir or beside / ".cache")
    if not config.cache_dir and not usual.parent.is_dir():
        return None, None  # `samples.find_samples` says so; a mistyped folder must not come into being here
    if _can_write(usual):
        return usual, None
    if config.cache_dir:
        raise UserError(
            say(
                f"cache_dir = {usual} cannot be written. Choose another folder, or cache_latents_to_disk = False",
                f"cache_dir = {usual} 无法写入。请换一个目录，或设 cache_latents_to_disk = False",
            )
        )
    instead = Path(config.output_dir) / ".cache"
    if _can_write(instead):
        line = say(f"{usual} cannot be written, caching in {instead}", f"{usual} 无法写入，缓存改放在 {instead}")
        return instead, line
    return None, say(f"{usual} cannot be written, caching in memory", f"{usual} 无法写入，缓存只放在内存")


def _can_write(folder: Path) -> bool:
    trial = folder / f"trial.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError:
        return False
    return True


def facts_of(
    files: list[Path], find_out: Callable[[Path], Fact], *, folder: Path | None, kind: str, thread_count: int
) -> list[Fact]:
    """`find_out(file)` of each file, in order; what an earlier run found out about the same file is taken from there.

    Args:
        files: no file twice.
        find_out: done by threads. If it gives bytes, always of one even length, they are remembered; anything else
            (the file is broken) is found out anew by every run.
        folder: the cache folder, need not exist; where it cannot be written, less is remembered. None: nothing is.
        kind: letters and digits that stand for what is found out, and in which way.

    Raises:
        Whatever `find_out` raises; what was found out before it is still remembered.
    """
    if folder is None:
        return list(in_order(find_out, files, thread_count))
    settled = time.time_ns() - int(SETTLED_SECONDS * 1e9)
    stamped = [_stamp(file, kind) for file in files]
    stamps, dates = [stamp for stamp, _ in stamped], [date for _, date in stamped]
    memory = Shards(folder / "pictures", kind)
    numbers = memory.find(stamps)
    known = (numbers >= 0).nonzero()[0].tolist()
    found: dict[int, Fact] = {}  # by place in `files`
    with suppress(Lost):  # vanished or damaged this moment: all are read
        (rows,) = memory.read(numbers[known].tolist()) if known else ([],)
        found = {at: row.tobytes() for at, row in zip(known, rows, strict=True)}
    new = [at for at in range(len(files)) if at not in found]
    results = zip(new, in_order(find_out, (files[at] for at in new), thread_count), strict=True)

    def batches() -> Iterator[Rows]:
        while batch := dict(islice(results, FILES_AT_ONCE)):
            found.update(batch)
            keep = {at: fact for at, fact in batch.items() if dates[at] < settled and isinstance(fact, bytes)}
            if keep:
                rows = np.frombuffer(b"".join(keep.values()), np.float16).reshape(len(keep), -1)
                yield [stamps[at] for at in keep], [rows]

    if new:
        with suppress(UserError):  # it cannot be written
            list(memory.append(batches()))
        list(batches())  # what is left then
    memory.sweep()
    return [found[at] for at in range(len(files))]


def _stamp(file: Path, kind: str) -> tuple[bytes, float]:
    """(32 bytes) what the file is known by, and its youngest date in nanoseconds; infinity: it cannot be looked at."""
    try:
        stat = os.stat(file)
    except OSError:  # `find_out` says why
        return bytes(32), math.inf
    facts = (kind, os.fspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return sha256(repr(facts).encode()), max(stat.st_mtime_ns, stat.st_ctime_ns)
