"""Room on the disk: what a run will write against what is free, and writing on a disk that is full meanwhile.

A disk that fills up ends no run: the write is tried again until there is room, and what lay there before is untouched.
To count another kind of file: add a `Need` to `needed`.
"""

import errno
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from library import files
from library.messages import UserError, log, say
from library.options.derived import last_strengths
from library.options.training import Config
from library.storage.problems import HELD_BY

MIB = 2**20
OPTIMIZER_VALUES = 2  # per trained value: AdamW's moments. Lion keeps 1, Prodigy 4
MARGIN = 2**30  # free space below which a disk is told to get full: other programs write too
POLL_SECONDS = 0.5  # between two looks whether the user wants to stop

FULL = {errno.ENOSPC, errno.EDQUOT}
TRANSIENT = FULL | {errno.EROFS, errno.EIO}  # a cable or a network drive may come back


class Need(NamedTuple):
    """Files that a run will write."""

    folder: Path
    what: str  # in the user's language
    size: int  # bytes, at the most crowded moment


def needed(
    config: Config,
    *,
    parameter_count: int,
    epoch_count: int,
    step_count: int,
    preview_count: int = 0,
    preview_pixels: int = 0,
    keeps_best: bool = False,
    cache_folder: Path | None = None,
    cache_bytes: int = 0,
) -> list[Need]:
    """What a run will write, on the generous side.

    Args:
        parameter_count: values of the LoRA.
        preview_count: images drawn each time.
        preview_pixels: of one image.
        keeps_best: whether a copy of the best epoch is left.
        cache_folder: where encoded images and captions are kept; None: in memory.
        cache_bytes: of what is not there yet.
    """
    output_dir = Path(config.output_dir)
    lora = parameter_count * (4 if config.save_precision == "float" else 2)
    state = parameter_count * 4 * (1 + OPTIMIZER_VALUES)
    epochs, steps = _times(config.save_every_n_epochs, epoch_count), _times(config.save_every_n_steps, step_count)
    kept = _kept(epochs, steps, config, config.save_last_n_epochs, config.save_last_n_steps)
    states = _kept(
        epochs,
        steps,
        config,
        config.save_last_n_epochs_state or config.save_last_n_epochs,
        config.save_last_n_steps_state or config.save_last_n_steps,
    )
    draws = len(last_strengths(config)) + config.sample_at_first
    draws += _times(config.sample_every_n_epochs, epoch_count) + _times(config.sample_every_n_steps, step_count)
    draws *= config.sample_every_n_epochs != 0
    needs = [
        Need(
            output_dir, say("LoRA files", "LoRA 文件"), lora * (kept + 2 + keeps_best)
        ),  # the last, and one that is being written
        Need(output_dir, say("training states", "训练状态"), state * (2 + states * config.save_state)),
        Need(output_dir, say("previews", "预览图"), draws * preview_count * preview_pixels * 3),  # .png, hard to pack
    ]
    if cache_folder:
        needs.append(Need(cache_folder, say("encoded images and captions", "图片与标注的编码缓存"), cache_bytes))
    return [need for need in needs if need.size]


def _kept(epochs: int, steps: int, config: Config, last_epochs: int | None, last_steps: int | None) -> int:
    """How many saves lie there at once, of so many by epochs and by steps."""
    if last_steps and config.save_every_n_steps:
        steps = min(steps, last_steps // config.save_every_n_steps + 2)  # one more while the next is written
    return min(epochs, last_epochs or epochs) + steps


def _times(every: int | None, count: int) -> int:
    """How often something happens in between: not at the end."""
    return (count - 1) // every if every else 0


def free(path: Path) -> int:
    """Bytes that may be written to the disk of a file or folder, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next((place for place in (path, *path.parents) if place.exists()), Path(path.anchor))


def check(needs: list[Need]) -> list[str]:
    """Compare what a run will write with what is free, disk by disk.

    Returns:
        A line for each disk that will be nearly full.

    Raises:
        UserError: a disk on which it does not fit, with numbers and cures.
    """
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    problems, warnings = [], []
    for group in by_disk.values():
        folder, total = group[0].folder, sum(need.size for need in group)
        room = free(folder)
        listed = ", ".join(f"{need.what} {mib(need.size)}" for need in group)
        if total > room:
            problems.append(
                say(
                    f"{folder}: this run will write up to {mib(total)} ({listed}), but only {mib(room)} are free. Free "
                    f"{mib(total - room)} there, choose a folder on another disk, or keep fewer files: "
                    "save_last_n_epochs, a larger save_every_n_epochs or save_every_n_steps, save_state = False.",
                    f"{folder}：本次训练最多会写入 {mib(total)}（{listed}），但只剩 {mib(room)}。"
                    f"请腾出 {mib(total - room)}，或换到其他磁盘的文件夹，或少存一些文件：设 save_last_n_epochs，"
                    "调大 save_every_n_epochs 或 save_every_n_steps，设 save_state = False。",
                )
            )
        elif room - total < MARGIN:
            warnings.append(
                say(
                    f"{folder}: this run will write up to {mib(total)} ({listed}), and {mib(room)} are free: the "
                    "disk will be nearly full. A full disk doesn't end the run: it waits for free space",
                    f"{folder}：本次训练最多会写入 {mib(total)}（{listed}），现有 {mib(room)} 可用，磁盘将接近写满。"
                    "写满时训练不会中断，会等待腾出空间",
                )
            )
    if problems:
        raise UserError(problems)
    return warnings


def mib(size: int) -> str:
    """A size in bytes as a person reads it, rounded up."""
    return f"{math.ceil(size / MIB)} MiB"


def writing(
    path: Path,
    write: Callable[[], object],
    *,
    size: int,
    may_free: Callable[[], bool],
    waits_for_holder: bool = True,
    is_stopped: Callable[[], bool] = lambda: False,
    wait_seconds: float = 10.0,
) -> Any:
    """Write until it works: where the disk is full or another program holds the file, say so once, wait, try again.

    Args:
        path: what is written; for the messages.
        write: does it, and leaves an older file whole when it fails. Raises an OSError, or an error caused by one.
        size: bytes that it takes, about.
        may_free: where the disk is full, removes one old file that may go, and says whether it did.
        waits_for_holder: False: raise at once where another program holds the file.
        is_stopped: whether the user wants to stop, asked twice a second while waiting.

    Returns:
        What `write` gives.

    Raises:
        Exception: that of `write`, where waiting is no cure or the user stops.
    """
    waited_since = None
    while True:
        try:
            result = write()
        except Exception as error:
            reason = curable_error(error)
            if reason is None or (files.is_held(reason) and not waits_for_holder):
                raise
            if reason.errno in FULL and may_free():
                continue
            if waited_since is None:
                waited_since = time.monotonic()
                log.info(_waiting_line(path, reason, size, wait_seconds))
            if not _wait(wait_seconds, is_stopped):
                raise
            continue
        if waited_since is not None:
            seconds = round(time.monotonic() - waited_since)
            log.info(say(f"{path} was written after {seconds} s", f"等待 {seconds} 秒后已写入 {path}"))
        return result


def curable_error(error: BaseException | None) -> OSError | None:
    """The error of a disk or a file that may be cured while we wait, be it behind another error."""
    while error is not None:
        if isinstance(error, OSError):
            is_full = getattr(error, "winerror", None) in (39, 112)  # Windows' own names for a full disk
            return error if is_full or error.errno in TRANSIENT or files.is_held(error) else None
        error = error.__cause__
    return None


def _waiting_line(path: Path, reason: OSError, size: int, wait_seconds: float) -> str:
    place = _existing(path.parent)
    if files.is_held(reason):
        english = f"{reason.filename} is open in another program: {HELD_BY[0]}. Close it there"
        chinese = f"{reason.filename} 正被其他程序占用：{HELD_BY[1]}。请在那边关闭它"
    elif reason.errno in (errno.EROFS, errno.EIO):
        english = f"the disk of {path} cannot be written ({reason.strerror}): check it and its cable or network"
        chinese = f"{path} 所在磁盘无法写入（{reason.strerror}）：请检查磁盘、连接线或网络"
    else:
        short = size - free(place)
        lacking = mib(max(short if short > 0 else size, 1))  # with room left it is a quota: its rest is unknown
        english = f"disk full: {path} cannot be written; free {lacking} on {place}"
        chinese = f"磁盘已满：{path} 无法写入；请在 {place} 腾出 {lacking}"
    return say(
        f"{english}. Earlier saves are intact. Retrying every {wait_seconds:g} s; Ctrl-C to stop",
        f"{chinese}。此前保存的文件未受影响。每 {wait_seconds:g} 秒重试一次；按 Ctrl-C 停止",
    )


def _wait(seconds: float, is_stopped: Callable[[], bool]) -> bool:
    """Whether the time passed without the user's stop."""
    end = time.monotonic() + seconds
    while not is_stopped():
        left = end - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, POLL_SECONDS))
    return False
