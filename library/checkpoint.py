"""What a run writes and reads: adapter files, and training states from which it goes on exactly.

Nothing half-written ever carries a final name: files and folders are written beside it, synced to the disk and renamed.
No file of an earlier run is overwritten: see `free_name`. To add a file format: add a row to FORMATS.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from library.messages import UserError, say

PRECISIONS = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of save_precision
PARTS = {  # beginning of a layer's name in the file -> part of the model
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
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
    as a folder `-state` or `-previews`. Case does not count: it does not on Windows and macOS.
    """
    ours = re.compile(rf"{re.escape(output_name)}(-\d{{6}}|-step\d{{8}})?(-state|-previews)?(\..*)?", re.IGNORECASE)
    return output_dir.is_dir() and any(ours.fullmatch(entry) for entry in os.listdir(output_dir))


def free_name(output_dir: Path, output_name: str) -> str:
    """`output_name`, or `name-2`, `name-3`, ... if an earlier run used it: the name for all files of this run."""
    name, number = output_name, 1
    while is_taken(output_dir, name):
        number += 1
        name = f"{output_name}-{number}"
    return name


def expired_epoch(epoch: int, save_every_n_epochs: int, save_last_n_epochs: int | None) -> int | None:
    """The epoch whose file goes when that of `epoch` has been saved; None: none."""
    old = epoch - save_every_n_epochs * (save_last_n_epochs or epoch)
    return old if old > 0 else None


def remove_save(path: Path) -> None:
    """Remove an adapter file or a training state of this run, if it is there."""
    if (path / STATE_FILE).is_file():  # nothing else is a state: no other folder is ever removed
        shutil.rmtree(path)
    elif path.is_file():
        path.unlink()


# ---- Adapter files ----


def save_adapter(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write an adapter file; an older file of that name stays whole until the new one is.

    Args:
        path: its suffix says the format, a key of FORMATS.
        tensors: under the names of the file, on any device.
        metadata: for .safetensors, which also gets the hashes by which web interfaces know it; the others hold none.
        dtype: of the file; None: as they are.

    Raises:
        UserError: the disk is full, or the like.
    """
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    data = FORMATS[path.suffix](tensors, metadata or {})
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        try:
            _write_synced(temporary, data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


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
        "sshs_model_hash": hashlib.sha256(memoryview(serialised)[8 + header_size :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(serialised[0x100000:0x110000]).hexdigest()[:8],
    }


def load_adapter(path: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA file with kohya's names, float32 on the CPU; a missing alpha is filled in as the rank.

    Args:
        path: .safetensors, or .ckpt and .pt, of which only tensors are read.

    Raises:
        UserError: the file is missing, damaged, or not such a LoRA.
    """
    tensors = _read(path)
    downs = [name for name in tensors if name.endswith(".lora_down.weight")]
    foreign = [name for name in tensors if not name.startswith(tuple(PARTS))]
    if not downs or foreign:
        example = (foreign or list(tensors) or ["-"])[0]
        raise UserError(
            say(
                f"{path}: not a LoRA in the format of web interfaces (names such as lora_unet_... .lora_down.weight): "
                f"it holds {len(tensors)} tensors such as {example}. A base model, or a LoRA of another program?",
                f"{path}：不是网页界面通用格式的 LoRA（其中的名称应形如 lora_unet_… .lora_down.weight），"
                f"文件里有 {len(tensors)} 个张量，例如 {example}。是否误选了底模，或其他程序的 LoRA？",
            )
        )
    for name in downs:
        tensors.setdefault(name.replace(".lora_down.weight", ".alpha"), torch.tensor(float(tensors[name].shape[0])))
    return {name: tensor.float() for name, tensor in tensors.items()}


def read_back(path: Path, expected: dict[str, torch.Size | tuple[int, ...]]) -> dict[str, float]:
    """Read a file just written, and make sure that it holds what was learned.

    Args:
        path: the file.
        expected: name -> shape of every tensor.

    Returns:
        For each part of the model the Frobenius norm of all its updates, alpha / rank * up @ down, together.

    Raises:
        UserError: tensors are missing, of another shape or not finite, or a part has learned nothing at all.
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
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        problems.append(
            say(
                f"{len(broken)} tensors hold infinities or NaN, the first is {broken[0]}. Training has diverged: lower "
                'the learning rate, use mixed_precision = "bf16" or "no", and go back to a file saved earlier.',
                f"{len(broken)} 个张量含有无穷大或 NaN，第一个是 {broken[0]}。训练已发散："
                '请降低学习率，改用 mixed_precision = "bf16" 或 "no"，并退回到更早保存的文件。',
            )
        )
    norms = {} if problems else _norms(tensors)
    for part, norm in norms.items():
        if norm == 0:
            problems.append(
                say(
                    f"{part}: nothing was learned, every lora_up is zero. Was its learning rate 0 or tiny, or the "
                    'training a step or two? With save_precision = "fp16" very small values become 0: try "float".',
                    f"{part}：什么都没学到，所有 lora_up 都是 0。学习率是否为 0 或过小？是否只训练了一两步？"
                    'save_precision = "fp16" 会把极小的值变成 0，可改为 "float"。',
                )
            )
    if problems:
        raise UserError(problems, say(f"{path}: this LoRA cannot be used:", f"{path}：该 LoRA 不可用："))
    return norms


def _norms(tensors: dict[str, Tensor]) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name in tensors:
        if name.endswith(".lora_down.weight"):
            layer = name.removesuffix(".lora_down.weight")
            down, up = tensors[name].flatten(1).double(), tensors[f"{layer}.lora_up.weight"].flatten(1).double()
            scale = float(tensors[f"{layer}.alpha"]) / len(down)
            square = float(((up.T @ up) * (down @ down.T)).sum()) * scale**2  # ‖up @ down‖² by r x r products
            part = next(part for beginning, part in PARTS.items() if name.startswith(beginning))
            squares[part] = squares.get(part, 0.0) + square
    return {part: square**0.5 for part, square in squares.items()}


def _read(path: Path) -> dict[str, Tensor]:
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

STATE_FILE = "state.json"  # also what tells a state from any other folder
ADAPTER_FILE = "adapter.safetensors"
TRAINING_FILE = "training.pt"


class Position(NamedTuple):
    """How far a run has come: where the next batch is."""

    epoch: int = 1  # the current one, counted from 1
    batch_in_epoch: int = 0  # its batches that are done
    global_step: int = 0  # steps of the optimizer that are done, in all


@dataclass
class State:
    """All that changes while training; never the base model. A few times the size of the LoRA.

    `optimizer`, `schedule` and `scaler` are what their `state_dict()` gives. Random numbers need no place here: they
    follow from the seed and the step.
    """

    position: Position
    adapter: dict[str, Tensor]
    optimizer: dict
    schedule: dict
    scaler: dict | None = None
    facts: dict = field(default_factory=dict)  # as JSON: what must be the same when going on, and the run's name


def save_state(folder: Path, state: State) -> None:
    """Write a training state; an older one of that name stays whole until the new one is.

    Raises:
        UserError: the disk is full, or the like.
    """
    new, old = _beside(folder)
    training = dict(optimizer=state.optimizer, schedule=state.schedule, scaler=state.scaler)
    described = dict(position=state.position._asdict(), facts=state.facts)
    with _told(folder):
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            _write_synced(new / ADAPTER_FILE, safetensors.torch.save({k: v.cpu() for k, v in state.adapter.items()}))
            _write_synced(new / TRAINING_FILE, _pickle(training, {}))
            _make_sure_it_can_be_read(new / TRAINING_FILE)
            _write_synced(new / STATE_FILE, json.dumps(described, indent=2, ensure_ascii=False).encode())
            _sync_folder(new)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(folder, old)
            os.replace(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        _sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path) -> State:
    """Read a training state; tensors on the CPU.

    Raises:
        UserError: the folder is missing, damaged, or no state of this program.
    """
    _, old = _beside(folder)
    if not folder.exists() and old.exists():  # stopped between the two renames
        folder = old
    if not (folder / STATE_FILE).is_file():
        raise UserError(
            say(
                f"resume = {folder}: there is no training state of this program ({STATE_FILE} is missing). Give a "
                "folder named ...-state that save_state wrote. From a LoRA file, or from a state of "
                "sd-scripts, take the LoRA as network_weights.",
                f"resume = {folder}：这里没有本程序的训练状态（缺少 {STATE_FILE}）。"
                "请填 save_state 写出的、名为 …-state 的文件夹。"
                "如果只有 LoRA 文件，或是 sd-scripts 的状态，请把其中的 LoRA 填到 network_weights。",
            )
        )
    try:
        described = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        adapter = safetensors.torch.load_file(folder / ADAPTER_FILE)
        training = torch.load(folder / TRAINING_FILE, map_location="cpu", weights_only=True)
        return State(Position(**described["position"]), adapter, **training, facts=described["facts"])
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
        ValueError,
        KeyError,
        TypeError,
    ) as e:
        raise UserError(
            say(
                f"resume = {folder}: the training state is damaged ({_reason(e)}). Take an older one, or the newest "
                "LoRA file as network_weights.",
                f"resume = {folder}：训练状态已损坏（{_reason(e)}）。"
                "请换用更早的状态，或把最新的 LoRA 文件填到 network_weights。",
            )
        ) from e


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


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a state is written, and where an older one waits meanwhile."""
    return folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")


# ---- The disk ----


def _write_synced(path: Path, data: bytes | memoryview) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure; Windows does so by itself."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
