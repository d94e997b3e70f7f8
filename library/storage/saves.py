"""What a run saves: how it is called, when it goes, and what it must not be written over."""

import os
import re
from contextlib import suppress
from pathlib import Path

from library import files
from library.storage import lora_file, training_state

_FORMATS = "|".join(map(re.escape, lora_file.FORMATS))


def file_name(output_name: str, extension: str, *, epoch: int | None = None, step: int | None = None) -> str:
    """`name.safetensors`; of an epoch `name-000004.safetensors`; of a step `name-step00000500.safetensors`."""
    return f"{_stem(output_name, epoch, step)}.{extension}"


def state_name(output_name: str, *, epoch: int | None = None, step: int | None = None) -> str:
    """The folder of the training state beside such a file: `name-state`, `name-000004-state`, ..."""
    return f"{_stem(output_name, epoch, step)}-state"


def _stem(output_name: str, epoch: int | None, step: int | None) -> str:
    if epoch is not None:
        return f"{output_name}-{epoch:06d}"
    if step is not None:
        return f"{output_name}-step{step:08d}"
    return output_name


def is_taken(output_dir: Path, output_name: str) -> bool:
    """Whether the folder holds anything that a run of this name wrote.

    That is `name` or `name-000004`, `name-step00000500`, each alone, with any ending (`.safetensors`, `.jsonl`, ...) or
    as a folder `-state` or `-previews`; not a lock alone, nor a state that was never finished. Case does not count: it
    does not on Windows and macOS.
    """
    ending = r"(-\d{6}|-step\d{8})?(-state|-previews)?(?!\.lock$)(\..*)?"
    ours = re.compile(re.escape(output_name) + ending, re.IGNORECASE)
    if not output_dir.is_dir():
        return False
    entries = [output_dir / entry for entry in os.listdir(output_dir) if ours.fullmatch(entry)]
    return not all(map(training_state.is_unfinished, entries))


def free_name(output_dir: Path, output_name: str) -> str:
    """`output_name`, or `name-2`, `name-3`, ... if an earlier run used it: the name for all files of this run."""
    return next(name for name in files.numbered(output_name) if not is_taken(output_dir, name))


def lies_beyond(output_dir: Path, output_name: str, position: training_state.Position) -> bool:
    """Whether the folder holds what a run of this name would write over if it went on from there.

    That is its result, what it saved after a later epoch or step, and the state of a run that is finished or further.
    """
    ours = re.compile(rf"{re.escape(output_name)}(?:-(\d{{6}})|-step(\d{{8}}))?({_FORMATS}|-state)", re.IGNORECASE)
    for match in filter(None, map(ours.fullmatch, os.listdir(output_dir) if output_dir.is_dir() else ())):
        epoch, step, ending = match.groups()
        if epoch and int(epoch) >= position.epoch:
            return True
        if step and int(step) > position.global_step:
            return True
        if not (epoch or step):
            state = training_state.described(output_dir / match[0]) if ending.lower() == "-state" else None
            if not state and not (output_dir / match[0]).is_dir():
                return True
            if state and (state.facts.get("finished") or state.position.global_step > position.global_step):
                return True
    return False


def expired_epoch(epoch: int, save_every_n_epochs: int, save_last_n_epochs: int | None) -> int | None:
    """The epoch whose file goes when that of `epoch` has been saved; None: none."""
    old = epoch - save_every_n_epochs * (save_last_n_epochs or epoch)
    return old if old > 0 else None


def expired_step(step: int, save_every_n_steps: int, save_last_n_steps: int | None) -> int | None:
    """The step whose file goes when that of `step` has been saved; None: none."""
    if not save_last_n_steps or step % save_every_n_steps:  # a save that the user asked for in between
        return None
    old = (step - save_last_n_steps - 1) // save_every_n_steps * save_every_n_steps
    return old if old > 0 else None


def remove_save(path: Path) -> bool:
    """Remove an adapter file or a training state of this run, if it is there.

    Returns:
        False: it is still there, in whole or in part. Another program holds it, or the folder is protected.
    """
    if path.is_file():
        ours = [path]
    else:
        names = [name for slot in training_state.SLOTS for name in training_state.state_files(slot)]
        written = [path / name for name in names]
        ours = [file for file in (*written, *map(files.part_of, written)) if file.is_file()]  # a kill leaves a part
    try:
        for file in ours:
            files.remove(file)
    except OSError:
        return False
    if ours and ours[0] != path:
        with suppress(OSError):  # it holds something else as well, which is not ours
            path.rmdir()
    return True


def remove_oldest_epoch(output_dir: Path, output_name: str, keep: int) -> bool:
    """Remove what the run saved of its oldest epoch, to make room; never one of the last `keep`, nor the only one.

    Returns:
        Whether there was such an epoch.
    """
    ours = re.compile(rf"{re.escape(output_name)}-(\d{{6}})(-state|{_FORMATS})")
    saves = [(int(match[1]), output_dir / match[0]) for match in map(ours.fullmatch, os.listdir(output_dir)) if match]
    epochs = sorted({epoch for epoch, _ in saves})
    if len(epochs) <= max(1, keep):
        return False
    return all([remove_save(path) for epoch, path in saves if epoch == epochs[0]])
