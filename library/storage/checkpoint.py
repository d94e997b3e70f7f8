"""What a run writes and reads: adapter files, and training states from which it goes on exactly.

Nothing half-written ever counts: a file is written beside its name, synced, read back and renamed; a state counts once
its description lies beside it, with the checksums of all. No file of an earlier run is overwritten: see
`claim_free_name`. To add a file format: add a row to FORMATS.
"""

import json
import os
import pickle
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from library import files
from library.messages import UserError, say

PRECISIONS = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of save_precision
PARTS = {  # beginning of a layer's name in the file -> part of the model
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}

FIRST = {  # the tensor by which a kind of adapter is known in a file -> the one whose first dimension is the rank
    "lora_down.weight": "lora_down.weight",
    "hada_w1_a": "hada_w1_b",
    "lokr_w1": "lokr_w2_b",  # not there where w2 is whole
}

# ---- Names ----


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
    return output_dir.is_dir() and any(
        ours.fullmatch(entry) and not _is_unborn(output_dir / entry) for entry in os.listdir(output_dir)
    )


def _is_unborn(folder: Path) -> bool:
    """Whether it holds nothing but the pieces of a first state: a run was killed before it had done anything."""
    pieces: set[str] = set()
    for description, *others in map(_state_files, SLOTS):
        pieces |= {files.part_of(folder / description).name, *others}
    return folder.name.endswith("-state") and folder.is_dir() and set(os.listdir(folder)) <= pieces


def free_name(output_dir: Path, output_name: str) -> str:
    """`output_name`, or `name-2`, `name-3`, ... if an earlier run used it: the name for all files of this run."""
    return next(name for name in files.numbered(output_name) if not is_taken(output_dir, name))


@dataclass
class Claim:
    """A run's hold on its name, `<name>.lock`: no other run takes the name while this process lives."""

    name: str  # of all files of the run
    lock: files.Lock

    def release(self) -> None:
        """Give the name up and remove the lock file."""
        self.lock.release()


def claim(output_dir: Path, name: str) -> Claim:
    """Take hold of the name of a run that is to go on.

    Raises:
        UserError: it is being trained at this moment, or the folder cannot be written.
    """
    path = output_dir / f"{name}.lock"
    with _told(path):
        lock = files.lock(path)
    if lock is None:
        holder = files.lock_holder(path)
        raise UserError(
            say(
                f"{name} in {output_dir} is being trained at this moment, by {holder}. Wait for it or stop it; "
                "or choose another output_name and leave resume empty.",
                f"{output_dir} 中的 {name} 正在训练（{holder}）。请等它结束或先停止它；"
                "也可以换一个 output_name，并把 resume 留空。",
            )
        )
    return Claim(name, lock)


def claim_free_name(output_dir: Path, output_name: str) -> Claim:
    """Take hold of a name for a new run: `free_name`, and never the one that another run takes at the same moment."""
    for name in files.numbered(output_name):
        if is_taken(output_dir, name):
            continue
        path = output_dir / f"{name}.lock"
        with _told(path):
            output_dir.mkdir(parents=True, exist_ok=True)
            lock = files.lock(path)
        if lock is None:
            continue
        held = Claim(name, lock)
        if not is_taken(output_dir, name):  # it was not a moment ago: another run may have come and gone since
            return held
        held.release()
    raise AssertionError("there is always one more name")


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


def remove_save(path: Path) -> None:
    """Remove an adapter file or a training state of this run, if it is there."""
    if path.is_file():
        path.unlink()
        return
    names = [name for slot in SLOTS for name in _state_files(slot)]
    written = [path / name for name in names]
    if ours := [file for file in (*written, *map(files.part_of, written)) if file.is_file()]:  # a kill leaves a part
        for file in ours:
            file.unlink()
        with suppress(OSError):  # it holds something else as well, which is not ours
            path.rmdir()


def remove_oldest_epoch(output_dir: Path, output_name: str, keep: int) -> bool:
    """Remove what the run saved of its oldest epoch, to make room; never one of the last `keep`, nor the only one.

    Returns:
        Whether there was such an epoch.
    """
    ours = re.compile(rf"{re.escape(output_name)}-(\d{{6}})(-state|\.({'|'.join(FORMATS).replace('.', '')}))")
    saves = [(int(match[1]), output_dir / match[0]) for match in map(ours.fullmatch, os.listdir(output_dir)) if match]
    epochs = sorted({epoch for epoch, _ in saves})
    if len(epochs) <= max(1, keep):
        return False
    for epoch, path in saves:
        if epoch == epochs[0]:
            remove_save(path)
    return True


# ---- Adapter files ----


def save_adapter(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write an adapter file; an older file of that name stays whole until the new one has been read back.

    Args:
        path: its suffix says the format, a key of FORMATS.
        tensors: under the names of the file, on any device.
        metadata: for .safetensors, which also gets the hashes by which web interfaces know it; the others hold none.
        dtype: of the file; None: as they are.

    Raises:
        FloatingPointError: a tensor, which is named, holds infinities or NaN, if only in `dtype`; nothing is written.
        UserError: the disk is full, or the like; its cause is the OSError.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    _refuse(path, (name for name, tensor in tensors.items() if not tensor.isfinite().all()))
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    reason = say(' in this save_precision: take "bf16"', '，因为超出了 save_precision 的范围：请改用 "bf16"')
    _refuse(path, (name for name, tensor in tensors.items() if not tensor.isfinite().all()), reason)
    data = FORMATS[path.suffix](tensors, metadata or {})
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, files.part_of(path)) as half:
            files.write_verified(half, data)
        files.sync_folder(path.parent)


def _refuse(path: Path, names: Iterator[str], reason: str = "") -> None:
    """Rather keep the older file than write one of no use."""
    if name := next(names, None):
        raise FloatingPointError(
            say(
                f"{path} was not written: {name} holds infinities or NaN{reason}",
                f"{path} 没有写入：{name} 含有无穷大或 NaN{reason}",
            )
        )


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    return safetensors.torch.save(tensors, {**metadata, **sshs_hashes(safetensors.torch.save(tensors))})


def _pickle(tensors: dict, metadata: dict[str, str]) -> memoryview:
    buffer = BytesIO()
    torch.save(tensors, buffer)
    return buffer.getbuffer()


FORMATS: dict[str, Callable[[dict[str, Tensor], dict[str, str]], bytes | memoryview]] = {
    ".safetensors": _safetensors,
    ".ckpt": _pickle,
    ".pt": _pickle,
}


def sshs_hashes(serialised: bytes) -> dict[str, str]:
    """The two hashes of a LoRA, from a .safetensors of its tensors alone, so that the metadata does not change them.

    sshs_model_hash: SHA-256 of everything behind the header; A1111 knows a LoRA by it. sshs_legacy_hash: the first 8
    digits of the SHA-256 of 64 KiB at 1 MiB.
    """
    header_size = int.from_bytes(serialised[:8], "little")
    return {
        "sshs_model_hash": files.sha256(memoryview(serialised)[8 + header_size :]).hex(),
        "sshs_legacy_hash": files.sha256(serialised[0x100000:0x110000]).hex()[:8],
    }


def load_adapter(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter file with kohya's names, float32 on the CPU; a missing alpha is filled in as the rank.

    Args:
        path: .safetensors, or .ckpt and .pt, of which only tensors are read.

    Raises:
        UserError: the file is missing, damaged, holds NaN, or is not such a LoRA.
    """
    tensors = read_tensors(path)
    firsts = [name for name in tensors if str(name).partition(".")[2] in FIRST]
    foreign = [name for name in tensors if not str(name).startswith(tuple(PARTS))]
    if not firsts or foreign:
        example = (foreign or list(tensors) or ["-"])[0]
        raise UserError(
            say(
                f"{path}: not a LoRA in the format of web interfaces (names such as lora_unet_... .lora_down.weight): "
                f"it holds {len(tensors)} tensors such as {example}. A base model, or a LoRA of another program?",
                f"{path}：不是网页界面通用格式的 LoRA（其中的名称应形如 lora_unet_… .lora_down.weight），"
                f"文件里有 {len(tensors)} 个张量，例如 {example}。是否误选了底模，或其他程序的 LoRA？",
            )
        )
    odd = [name for name in firsts if tensors[name].dim() < 2]
    odd += [name for name, tensor in tensors.items() if name.endswith(".alpha") and tensor.numel() != 1]
    odd += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if odd:
        raise UserError(
            say(
                f"{path}: {odd[0]} has an impossible shape, or holds NaN or infinities. The file is damaged, or its "
                "training failed; use another one.",
                f"{path}：{odd[0]} 的形状不对，或含有 NaN 或无穷大。文件已损坏或训练失败，请换一个文件。",
            )
        )
    if broken := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise UserError(
            say(
                f"{path}: {broken} holds NaN or infinities: the training that wrote this LoRA had failed. "
                "Take an earlier file of it.",
                f"{path}：{broken} 含有 NaN 或无穷大，写出该 LoRA 的训练当时已失败。请换用它较早的文件。",
            )
        )
    for name in firsts:
        layer, _, first = name.partition(".")
        ranked = tensors.get(f"{layer}.{FIRST[first]}")
        if ranked is not None:
            tensors.setdefault(f"{layer}.alpha", torch.tensor(float(ranked.shape[0])))
    return {name: tensor.float() for name, tensor in tensors.items()}


def read_back(path: Path, expected: dict[str, torch.Size | tuple[int, ...]]) -> dict[str, float]:
    """Read a file just written, and make sure that it holds what was learned.

    Args:
        path: the file.
        expected: name -> shape of every tensor.

    Returns:
        For each part of the model the Frobenius norm of all its updates, alpha / rank * up @ down, together. Of DoRA
        without its magnitudes, for whose part the base model's weights would be needed.

    Raises:
        UserError: tensors are missing or of another shape, or a part has learned nothing at all.
    """
    tensors = load_adapter(path)
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(
            say(
                f"{len(missing)} tensors are missing, the first is {missing[0]}.",
                f"缺少 {len(missing)} 个张量，第一个是 {missing[0]}。",
            )
        )
    if wrong := [name for name, shape in expected.items() if name in tensors and tensors[name].shape != tuple(shape)]:
        shapes = f"{tuple(tensors[wrong[0]].shape)}, {tuple(expected[wrong[0]])}"
        problems.append(
            say(
                f"{len(wrong)} tensors have the wrong shape, the first is {wrong[0]} (is, should be: {shapes}).",
                f"{len(wrong)} 个张量形状不对，第一个是 {wrong[0]}（实际、应为：{shapes}）。",
            )
        )
    norms = {} if problems else _norms(tensors)
    for part, norm in norms.items():
        if norm == 0:
            problems.append(
                say(
                    f"{part}: nothing was learned, every update is zero. Was its learning rate 0 or tiny, or the "
                    'training a step or two? With save_precision = "fp16" very small values become 0: try "float".',
                    f"{part}：什么都没学到，所有更新量都是 0。学习率是否为 0 或过小？是否只训练了一两步？"
                    'save_precision = "fp16" 会把极小的值变成 0，可改为 "float"。',
                )
            )
    if problems:
        raise UserError(problems, say(f"{path}: this LoRA cannot be used:", f"{path}：该 LoRA 不可用："))
    return norms


def _norms(tensors: dict[str, Tensor]) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name in tensors:
        layer, _, first = name.partition(".")
        if first in FIRST:
            part = next(part for beginning, part in PARTS.items() if name.startswith(beginning))
            squares[part] = squares.get(part, 0.0) + _norm(tensors, layer) ** 2
    return {part: square**0.5 for part, square in squares.items()}


def _norm(tensors: dict[str, Tensor], layer: str) -> float:
    """Frobenius norm of a layer's update. The kinds' formulas: `adapters/lora.py`, `loha.py`, `lokr.py`."""

    def of(name: str) -> Tensor | None:
        tensor = tensors.get(f"{layer}.{name}")
        return None if tensor is None else tensor.flatten(1).double()

    def scale(rank: int) -> float:
        return float(tensors[f"{layer}.alpha"]) / rank

    if (down := of("lora_down.weight")) is not None:
        up = of("lora_up.weight")
        square = float(((up.T @ up) * (down @ down.T)).sum())  # ‖up @ down‖² by r x r products
        return max(square, 0.0) ** 0.5 * abs(scale(len(down)))
    if (first := of("hada_w1_a")) is not None:
        product = (first @ of("hada_w1_b")) * (of("hada_w2_a") @ of("hada_w2_b"))
        return float(product.norm()) * abs(scale(first.shape[1]))
    if (second := of("lokr_w2")) is not None:  # whole, and then not scaled
        return float(of("lokr_w1").norm() * second.norm())
    inner = of("lokr_w2_b")
    return float(of("lokr_w1").norm() * (of("lokr_w2_a") @ inner).norm()) * abs(scale(len(inner)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, whatever they are; of a pickled one nothing else is read. Raises UserError."""
    if not path.is_file():
        raise UserError(say(f"{path}: there is no such file.", f"{path}：没有这个文件。"))
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            say(
                f"{path}: cannot be read ({_reason(error)}). It is damaged, was not copied to its end, or is not a "
                "LoRA file.",
                f"{path}：无法读取（{_reason(error)}）。文件已损坏、没有复制完整，或不是 LoRA 文件。",
            )
        ) from error
    if not (isinstance(tensors, dict) and all(isinstance(tensor, Tensor) for tensor in tensors.values())):
        raise UserError(say(f"{path}: holds more than tensors.", f"{path}：除张量外还有其他内容。"))
    return tensors


# ---- Training state ----
#
# A folder holds one state or two generations of it, since Windows replaces no folder at a stroke. The older one is
# overwritten; its description goes first and the new one's comes last, so at any moment one of the two is whole.

SLOTS = ("", "-2")  # behind the names of a generation's files


def _state_files(slot: str) -> tuple[str, str, str]:
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
    optimizer: dict
    schedule: dict
    scaler: dict | None = None
    facts: dict = field(default_factory=dict)  # as JSON: what must be the same when going on, and the run's name
    more: dict = field(default_factory=dict)  # tensors, numbers, texts: an average of the weights, the best loss, ...
    notices: list[str] = field(default_factory=list)  # what the user should know of the reading; not saved


class Candidate(NamedTuple):
    """A training state as its description tells it; its tensors have not been read."""

    folder: Path
    position: Position
    facts: dict
    saved_at: float  # seconds since 1970


class _Generation(NamedTuple):
    slot: str
    number: int  # counts up: the newest has the largest
    saved_at: float
    position: dict
    facts: dict
    checksums: dict[str, str]  # file -> SHA-256


def save_state(folder: Path, state: State) -> None:
    """Write a training state; the newest whole one in the folder stays until the new one has been read back, and after.

    Raises:
        FloatingPointError: the adapter holds infinities or NaN, or the optimizer NaN; nothing is written.
        UserError: the disk is full, or the like; its cause is the OSError.
    """
    adapter = {name: tensor.detach().cpu().contiguous() for name, tensor in state.adapter.items()}
    training = dict(optimizer=state.optimizer, schedule=state.schedule, scaler=state.scaler, more=state.more)
    _refuse(folder, (name for name, tensor in adapter.items() if not tensor.isfinite().all()))
    _refuse(folder, (name for name, tensor in _plain_tensors(training) if tensor.isnan().any()))
    data = [safetensors.torch.save(adapter), _pickle(training, {})]
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        kept = next((generation for generation in _generations(folder) if _is_whole(folder, generation)), None)
        slot = SLOTS[1] if kept and kept.slot == SLOTS[0] else SLOTS[0]
        description, *others = (folder / name for name in _state_files(slot))
        try:
            for path in (description, *others):
                path.unlink(missing_ok=True)  # gives its space free
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
    described = [slot for slot in SLOTS if (folder / _state_files(slot)[0]).is_file()]
    if not described:
        raise UserError(
            say(
                f"resume = {folder}: there is no training state of this program ({_state_files(SLOTS[0])[0]} is "
                "missing). Give a folder named ...-state that this program wrote. From a LoRA file, or from a state of "
                "sd-scripts, take the LoRA as network_weights.",
                f"resume = {folder}：这里没有本程序的训练状态（缺少 {_state_files(SLOTS[0])[0]}）。"
                "请填本程序写出的、名为 …-state 的文件夹。"
                "如果只有 LoRA 文件，或是 sd-scripts 的状态，请把其中的 LoRA 填到 network_weights。",
            )
        )
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
    _, adapter, training = (folder / name for name in _state_files(generation.slot))
    try:
        return State(
            Position(**generation.position),
            safetensors.torch.load_file(adapter),
            **torch.load(training, map_location="cpu", weights_only=True),
            facts=generation.facts,
        )
    except (SafetensorError, RuntimeError, OSError, pickle.UnpicklingError, TypeError) as error:
        raise _damaged(folder, _reason(error)) from error


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        say(
            f"resume = {folder}: the training state is damaged ({reason}). Take an older one, or the newest LoRA file "
            "as network_weights; remove this folder to begin anew.",
            f"resume = {folder}：训练状态已损坏（{reason}）。"
            "请换用更早的状态，或把最新的 LoRA 文件填到 network_weights；若要从头开始，请删除该文件夹。",
        )
    )


def candidates(output_dir: Path, output_name: str) -> list[Candidate]:
    """All training states that runs of this output_name left, whatever name they got; newest first.

    Only their descriptions are read.
    """
    found = []
    for folder in output_dir.glob("*-state"):
        for newest in _generations(folder)[:1]:
            name = str(newest.facts.get("config", {}).get("output_name"))
            if name.casefold() == output_name.casefold():
                found.append(Candidate(folder, Position(**newest.position), newest.facts, newest.saved_at))
    return sorted(found, key=lambda candidate: (candidate.saved_at, candidate.position.global_step), reverse=True)


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
            described = json.loads((folder / _state_files(slot)[0]).read_text(encoding="utf-8"))
            if described.pop("checksum") == _checksum_of(described):
                found.append(_Generation(**described))
    return sorted(found, key=lambda generation: generation.number, reverse=True)


def _is_whole(folder: Path, generation: _Generation) -> bool:
    try:
        return all(files.sha256_of_file(folder / name).hex() == known for name, known in generation.checksums.items())
    except OSError:
        return False


def _checksum_of(described: dict) -> str:
    return files.sha256(json.dumps(described).encode()).hex()


def _plain_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
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
        raise UserError(
            say(
                f"the state of this optimizer cannot be saved ({_reason(error)}). Take another optimizer_type, or "
                "save_state = False.",
                f"该优化器的训练状态无法保存（{_reason(error)}）。请换用其他 optimizer_type，或设 save_state = False。",
            )
        ) from error


# ---- The disk ----


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            say(
                f"{path}: cannot be written ({error.strerror or error}). Is the disk full, or the folder protected? "
                "What was there before is untouched.",
                f"{path}：无法写入（{error.strerror or error}）。"
                "磁盘是否已满，或文件夹没有写入权限？原有文件未受影响。",
            )
        ) from error


def _reason(error: Exception) -> str:
    """One line of what another library says at length."""
    if foreign := re.search(r"GLOBAL (\S+)", str(error)):  # torch refuses to unpickle anything but tensors and numbers
        return say(f"it holds a {foreign[1]}", f"含有 {foreign[1]}")
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
