"""LoRA files for the scripts that make new ones of them: found, read whatever their writing, named alike, written anew.

What is written carries its provenance in the metadata: of which files and with which settings it was made. A script
that is run again finds its own work and does nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from library.files import numbered_paths, sha256
from library.messages import UserError, say
from library.options.declaration import PROJECT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.contracts import FamilyFacts
    from library.lora_files.factors import Factors

ENDINGS = (".safetensors", ".pt", ".ckpt")
PROVENANCE = "lora_recipe"  # in the metadata


class LoraFile(NamedTuple):
    """A file as it was read."""

    path: Path
    metadata: dict[str, str]
    factors: dict[str, Factors]  # by its own names
    family: FamilyFacts | None  # that it was made for; None: nothing tells
    dtype: torch.dtype  # of its matrices


def from_project(entry: str) -> Path:
    """A path as the block of a script has it: relative ones are taken from the project's folder."""
    path = Path(entry).expanduser()
    return path if path.is_absolute() else PROJECT / path


def find_loras(path: Path) -> list[Path]:
    """The file itself, or all files in a folder and below that may be LoRAs, by name. Raises UserError: none."""
    if path.is_file():
        return [path]
    found = sorted(
        Path(folder) / name
        for folder, _, names in os.walk(path)
        for name in names
        if Path(name).suffix.lower() in ENDINGS and not name.startswith(".")
    )
    if not found:
        raise UserError(
            say(
                f"{path}: there is no LoRA in this folder ({', '.join(ENDINGS)})",
                f"{path}：这个目录里没有 LoRA（{'、'.join(ENDINGS)}）",
            )
        )
    return found


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of an adapter of any kind; a model of gigabytes is refused before it is read.

    Raises:
        UserError: the file is damaged, or no adapter.
    """
    from library.families.weights_file import read_header
    from library.lora_files.factors import refuse_strangers
    from library.storage import lora_file, metadata

    names = None
    if path.suffix == ".safetensors":
        with suppress(UserError):  # of a damaged file `read_tensors` tells more fittingly
            names = read_header(path).shapes
    if names is not None:
        refuse_strangers(path.name, names)
    tensors = lora_file.read_tensors(path)
    refuse_strangers(path.name, tensors)
    return tensors, metadata.of_file(path)


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA or LoCon of any trainer. Raises UserError: it is no such file, which is told."""
    from library import families
    from library.lora_files import merging
    from library.lora_files.factors import read_factors

    tensors, entries = load(path)
    found = read_factors(path.name, tensors, entries)
    dtype = next(iter(found.values())).down.dtype
    return LoraFile(path, entries, found, merging.family_of(found, entries, families.all_facts()), dtype)


def by_saved_name(file: LoraFile) -> dict[str, Factors]:
    """A file's matrices by sd-scripts' names, which every program reads; these are what most files have.

    Raises:
        UserError: a layer's name is none that we know.
    """
    strange = [name for name in file.factors if not name.startswith("lora_")]
    if file.family:  # names of another writing lie in none of its blocks
        prefix, blocks = file.family.parts["denoiser"].prefix, file.family.blocks
        strange += [name for name in file.factors if name.startswith(prefix) and blocks.index(name) is None]
    if not strange:
        return file.factors
    known, others = {}, list(file.factors)
    if file.family:
        from library import families
        from library.lora_files.factors import canonical

        known, others = canonical(file.factors, families.architecture(file.family.name).layers())
    title = file.family and file.family.title
    if unknown := [name for name in others if name in strange]:
        raise UserError(
            say(
                f"{file.path}: {len(unknown)} of its layers have names that no {title or 'known'} model has, such "
                f"as {unknown[0]}. It was made for another kind of model",
                f"{file.path}：有 {len(unknown)} 层的名称在{title or '已知'}模型里不存在，如 {unknown[0]}。"
                "它是为另一类模型训练的",
            )
        )
    return known | {name: file.factors[name] for name in others}


def same_family(files: Sequence[LoraFile]) -> FamilyFacts | None:
    """The family of base models that all are made for; None: nothing tells. Raises UserError."""
    found = {file.family.name: file for file in files if file.family}
    if len(found) > 1:
        told = ", ".join(f"{file.path.name}: {file.family.title}" for file in found.values() if file.family)
        raise UserError(
            say(
                f"the LoRAs are for different families of base models ({told}) and cannot be merged",
                f"这些 LoRA 对应不同系列的底模（{told}），不能合并",
            )
        )
    return next((file.family for file in found.values()), None)


def save(path: Path, tensors: dict[str, Tensor], entries: dict[str, str]) -> None:
    """Write a LoRA file, as a training does. Raises UserError."""
    from library.storage import lora_file

    try:
        lora_file.save_adapter(path, tensors, entries)
    except FloatingPointError as error:
        reason = say('. Set save_precision to "bf16" or "float"', '。请把 save_precision 设为 "bf16" 或 "float"')
        raise UserError(f"{error}{reason}") from error


# ---- What a file says of itself ----


def merged_metadata(files: Sequence[LoraFile], family: FamilyFacts | None, title: str) -> dict[str, str]:
    """What the files say in common: the base model, and the tags of all, so that trigger words are still offered."""
    entries: dict[str, str] = {"ss_output_name": title}
    if family:
        entries |= {"ss_base_model_version": family.base_model_version, "ss_v2": str(family.is_v2)}
    for name in ("ss_base_model_version", "ss_v2", "ss_clip_skip", "modelspec.architecture", "modelspec.implementation",
                 "modelspec.prediction_type", "modelspec.resolution", "modelspec.sai_model_spec"):  # fmt: skip
        told = {file.metadata[name] for file in files if name in file.metadata}
        if len(told) == 1:
            entries[name] = told.pop()
    frequencies: dict[str, dict[str, int]] = {}
    for file in files:
        try:
            table = json.loads(file.metadata.get("ss_tag_frequency", "{}"))
        except ValueError:
            continue
        for folder, counts in table.items() if isinstance(table, dict) else ():
            if isinstance(counts, dict):
                frequencies.setdefault(folder, {}).update(counts)
    if frequencies:
        entries["ss_tag_frequency"] = json.dumps(frequencies, ensure_ascii=False)
    return entries | merged_modelspec([file.path for file in files], title)


def merged_modelspec(paths: Sequence[Path], title: str) -> dict[str, str]:
    """modelspec.* of what was made of these files."""
    return {
        "modelspec.title": title,
        "modelspec.date": datetime.fromtimestamp(int(time.time())).isoformat(),
        "modelspec.merged_from": ", ".join(path.stem for path in paths),
    }


# ---- Work that was done before ----


def fingerprint(path: Path) -> str:
    """What tells a file's content: the digits by which web UIs know a LoRA; of large ones their size and time."""
    from library.storage import metadata

    if path.is_file() and path.stat().st_size < 2**30:
        return metadata.web_ui_hash(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(json.dumps(told).encode()).hex()[:12]


def provenance(tool: str, files: Sequence[Path], **settings: object) -> str:
    """What decides a result, for its metadata."""
    return json.dumps({"tool": tool, "files": [[path.name, fingerprint(path)] for path in files], **settings})


def made_before(target: Path, wanted: str) -> Path | None:
    """The file or folder of this name, or with -2, -3, ... behind, that was made with this provenance."""
    from library.storage import metadata

    for path in numbered_paths(target):
        if not path.exists():
            return None
        file = path if path.is_file() else next(iter(sorted(path.glob("unet/*.safetensors"))), path)
        if metadata.of_file(file).get(PROVENANCE) == wanted:
            return path
    return None


def made_in(folder: Path, beginning: str, wanted: str) -> Path | None:
    """The file of this folder, with such a name, that was made with this provenance."""
    from library.storage import metadata

    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    named = [path for path in files if path.name.startswith(beginning)]
    return next((path for path in named if metadata.of_file(path).get(PROVENANCE) == wanted), None)


def size(path: Path) -> str:
    """A file's size as a person reads it."""
    count = path.stat().st_size
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
