"""Training states, from which a run goes on exactly: a folder each, the newest whole one counts.

Nothing half-written ever counts: a state counts once its description lies beside it, with the checksums of all.

A folder holds one state or two generations of it, since Windows replaces no folder at a stroke. The older one is
overwritten; its description goes first and the new one's comes last, so at any moment one of the two is whole.
"""

import json
import os
import pickle
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from library import files
from library.files import JsonObject
from library.messages import UserError, say
from library.storage.lora_file import torch_bytes
from library.storage.problems import explain_write_errors, one_line, refuse_non_finite

StateDict = dict[str, Any]  # what `state_dict()` of an optimizer, schedule or scaler gives: each has its own
SLOTS = ("", "-2")  # behind the names of a generation's files


def state_files(slot: str) -> tuple[str, str, str]:
    """The description, which makes the others count, the adapter and what else the training needs."""
    return f"state{slot}.json", f"adapter{slot}.safetensors", f"training{slot}.pt"


class Position(NamedTuple):
    """How far a run has come: where the next batch is."""

    epoch: int = 1  # the current one, counted from 1
    batch_in_epoch: int = 0  # its batches that are done
    global_step: int = 0  # steps of the optimizer that are done, in all


@dataclass
class State:
    """All that changes while training; never the base model. A few times the size of the LoRA.

    `optimizer`, `schedule` and `scaler` are what their `state_dict()` gives. Random numbers need no place here: they
    follow from the seed and the step. `facts` must hold "name" (of the run) and "config" (a dict by option) to be found
    by `newest_state`, and "finished" where there is nothing left to do.
    """

    position: Position
    adapter: dict[str, Tensor]
    optimizer: StateDict
    schedule: StateDict
    scaler: StateDict | None = None
    # As JSON: what must be the same when going on, and the run's name.
    facts: JsonObject = field(default_factory=dict)
    # Tensors, numbers, texts: an average of the weights, the best loss, ...
    more: JsonObject = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)  # what the user should know of the reading; not saved


class Candidate(NamedTuple):
    """A training state as its description tells it; its tensors have not been read."""

    folder: Path
    position: Position
    facts: JsonObject
    saved_at: float  # seconds since 1970


class _Generation(NamedTuple):
    slot: str
    number: int  # counts up: the newest has the largest
    saved_at: float
    position: dict[str, int]
    facts: JsonObject
    checksums: dict[str, str]  # file -> SHA-256


def save_state(folder: Path, state: State) -> None:
    """Write a training state; the newest whole one in the folder stays until the new one has been read back, and after.

    Raises:
        FloatingPointError: the adapter holds infinities or NaN, or the optimizer NaN; nothing is written.
        UserError: the disk is full, or the like; its cause is the OSError.
    """
    adapter = {name: tensor.detach().cpu().contiguous() for name, tensor in state.adapter.items()}
    training = dict(optimizer=state.optimizer, schedule=state.schedule, scaler=state.scaler, more=state.more)
    refuse_non_finite(folder, (name for name, tensor in adapter.items() if not tensor.isfinite().all()))
    refuse_non_finite(folder, (name for name, tensor in _plain_tensors(training) if tensor.isnan().any()))
    data = [safetensors.torch.save(adapter), torch_bytes(training)]
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        kept = next((generation for generation in _generations(folder) if _is_whole(folder, generation)), None)
        slot = SLOTS[1] if kept and kept.slot == SLOTS[0] else SLOTS[0]
        description, *others = (folder / name for name in state_files(slot))
        try:
            for path in (description, *others):
                files.remove(path)  # gives its space free
            written = zip(others, data, strict=True)
            checksums = {path.name: files.write_verified(path, content).hex() for path, content in written}
            _make_sure_it_can_be_read(others[-1])
            generation = _Generation(
                slot,
                kept.number + 1 if kept else 1,
                time.time(),
                state.position._asdict(),
                state.facts,
                checksums,
            )
            described = generation._asdict()
            described["checksum"] = _checksum_of(described)
            with files.replacing(description, files.part_of(description)) as half:
                files.write_verified(half, json.dumps(described, indent=2, ensure_ascii=False).encode())
        except BaseException:
            with suppress(OSError):  # held by another program; without a description it counts as no state
                for path in (description, *others):
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # another generation lies there
                folder.rmdir()
            raise
        files.sync_folder(folder)
        files.sync_folder(folder.parent)


def load_state(folder: Path) -> State:
    """Read the newest whole training state of a folder; tensors on the CPU.

    Where that is not the newest, `notices` says so.

    Raises:
        UserError: the folder is missing, damaged, or no state of this program.
    """
    described = [slot for slot in SLOTS if (folder / state_files(slot)[0]).is_file()]
    if not described:
        raise UserError(_no_state(folder))
    generations = _generations(folder)
    for generation in generations:
        if not _is_whole(folder, generation):
            continue
        state = _read_state(folder, generation)
        if generation is not generations[0] or len(generations) < len(described):
            step = state.position.global_step
            state.notices.append(
                say(
                    f"the newest training state in {folder} is damaged; the one before it is used, of step {step}",
                    f"{folder} 中最新的训练状态已损坏，改用它的前一份（第 {step} 步）",
                )
            )
        return state
    raise _damaged(folder, say("checksums do not match", "校验和不符"))


def _read_state(folder: Path, generation: _Generation) -> State:
    _, adapter, training = (folder / name for name in state_files(generation.slot))
    try:
        return State(
            Position(**generation.position),
            safetensors.torch.load(adapter.read_bytes()),  # not mapped: Windows would never let it be replaced
            **torch.load(training, map_location="cpu", weights_only=True),
            facts=generation.facts,
        )
    except (SafetensorError, RuntimeError, OSError, pickle.UnpicklingError, TypeError) as error:
        raise _damaged(folder, one_line(error)) from error


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        say(
            f"resume = {folder}: the training state is damaged ({reason}). Use an older one, or set the newest LoRA "
            "file as network_weights; delete this folder to start over.",
            f"resume = {folder}：训练状态已损坏（{reason}）。"
            "请换用更早的状态，或把最新的 LoRA 文件填到 network_weights；若要从头开始，请删除该文件夹。",
        )
    )


def candidates(output_dir: Path, output_name: str) -> list[Candidate]:
    """All training states that runs of this output_name left, whatever name they got; newest first.

    Only their descriptions are read.
    """
    found = []
    for newest in filter(None, map(described, output_dir.glob("*-state"))):
        name = str(newest.facts.get("config", {}).get("output_name"))
        if name.casefold() == output_name.casefold():
            found.append(newest)
    return sorted(found, key=lambda candidate: (candidate.saved_at, candidate.position.global_step), reverse=True)


def described(folder: Path) -> Candidate | None:
    """The newest state of a folder as its description tells it; None: there is no whole one."""
    for newest in _generations(folder)[:1]:
        return Candidate(folder, Position(**newest.position), newest.facts, newest.saved_at)
    return None


def newest_state(output_dir: Path, output_name: str, busy: Collection[str] = ()) -> State | None:
    """The state to go on from when the user just starts again: the newest whole one of a run that is not finished.

    Args:
        busy: names of runs that are not asked for, because they are under way.

    Returns:
        The state, whose `notices` name those that are damaged; None: there is nothing to go on from.

    Raises:
        UserError: there are such states, but all are damaged.
    """
    newest_of_runs: dict[str | None, Candidate] = {}
    problems: list[str] = []
    for candidate in candidates(output_dir, output_name):
        newest = newest_of_runs.setdefault(candidate.facts.get("name"), candidate)
        if newest.facts.get("finished") or candidate.facts.get("name") in busy:
            continue
        try:
            state = load_state(candidate.folder)
        except UserError as error:
            problems += error.problems
            continue
        state.notices[:0] = problems
        return state
    if problems:
        raise UserError(problems)
    return None


def _generations(folder: Path) -> list[_Generation]:
    """Those whose description is whole; newest first."""
    found = []
    for slot in SLOTS:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            described = json.loads((folder / state_files(slot)[0]).read_text(encoding="utf-8"))
            if described.pop("checksum") == _checksum_of(described):
                found.append(_Generation(**described))
    return sorted(found, key=lambda generation: generation.number, reverse=True)


def _is_whole(folder: Path, generation: _Generation) -> bool:
    try:
        return all(files.sha256_of_file(folder / name).hex() == known for name, known in generation.checksums.items())
    except OSError:
        return False


def _checksum_of(described: JsonObject) -> str:
    return files.sha256(json.dumps(described).encode()).hex()


def _plain_tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors within dicts and lists; not the packages' own kinds, which may know no isnan."""
    if type(value) is Tensor and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _plain_tensors(item, f"{name}/{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _plain_tensors(item, f"{name}/{index}")


def _make_sure_it_can_be_read(path: Path) -> None:
    """An optimizer from elsewhere may keep anything in its state: better to fail now than when the user goes on."""
    try:
        torch.load(path, weights_only=True, map_location="meta")  # the structure only
    except pickle.UnpicklingError as error:
        raise UserError(_unsavable_optimizer(one_line(error))) from error


def is_unfinished(folder: Path) -> bool:
    """Whether it holds nothing but the pieces of a first state: a run was killed before it had done anything."""
    pieces: set[str] = set()
    for description, *others in map(state_files, SLOTS):
        pieces |= {files.part_of(folder / description).name, *others}
    return folder.name.endswith("-state") and folder.is_dir() and set(os.listdir(folder)) <= pieces


def _no_state(folder: Path) -> str:
    return say(
        f"resume = {folder}: there is no training state of this program ({state_files(SLOTS[0])[0]} is "
        "missing). Give a folder named ...-state that this program wrote. For a LoRA file, or a state of "
        "sd-scripts, set the LoRA as network_weights.",
        f"resume = {folder}：这里没有本程序的训练状态（缺少 {state_files(SLOTS[0])[0]}）。"
        "请填本程序写出的、名为 …-state 的文件夹。"
        "如果只有 LoRA 文件，或是 sd-scripts 的状态，请把其中的 LoRA 填到 network_weights。",
    )


def _unsavable_optimizer(reason: str) -> str:
    return say(
        f"the state of this optimizer cannot be saved ({reason}). Take another optimizer_type, or save_state = False.",
        f"该优化器的训练状态无法保存（{reason}）。请换用其他 optimizer_type，或设 save_state = False。",
    )
