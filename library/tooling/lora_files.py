"""LoRA files for the scripts that make new ones of them: found, read whatever their writing, named alike, written anew.

What is written carries its provenance in the metadata: of which files and with which settings it was made. A script
that is run again finds its own work and does nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Sequence
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

    from library.contracts import FamilyFacts, ModelInfo, Target
    from library.families.rewriting import Reader
    from library.lora_files.whole import LayerUpdate

ENDINGS = (".safetensors", ".pt", ".ckpt")
PROVENANCE = "lora_recipe"  # in the metadata


class LoraFile(NamedTuple):
    """A file as it was read."""

    path: Path
    metadata: dict[str, str]
    factors: dict[str, LayerUpdate]  # by its own names
    family: FamilyFacts | None  # that it was made for; None: nothing tells
    dtype: torch.dtype  # of its matrices
    bundled: dict[str, Tensor]  # of embeddings in the same file

    @property
    def embeddings(self) -> list[str]:
        """What is typed in a prompt to use them."""
        from library.lora_files.layouts import bundled_names

        return bundled_names(self.bundled)

    @property
    def is_whole(self) -> bool:
        """Whether some of it is no product of thin matrices: LoHa, LoKr, DoRA."""
        from library.lora_files.factors import Factors

        return any(not isinstance(update, Factors) for update in self.factors.values())

    @property
    def needs_weights(self) -> bool:
        """Whether it takes the base model to know what it adds."""
        return any(update.needs_weight for update in self.factors.values())


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


class Loaded(NamedTuple):
    """The tensors of an adapter of any kind."""

    tensors: dict[str, Tensor]
    bundled: dict[str, Tensor]  # of embeddings that the file holds besides
    metadata: dict[str, str]


def load(path: Path) -> Loaded:
    """Read an adapter of any kind; a model of gigabytes is refused before it is read.

    Raises:
        UserError: the file is damaged, or no adapter.
    """
    from library.families.weights_file import read_header
    from library.lora_files.factors import refuse_strangers
    from library.lora_files.layouts import without_bundled
    from library.storage import lora_file, metadata

    names = None
    if path.suffix == ".safetensors":
        with suppress(UserError):  # of a damaged file `read_tensors` tells more fittingly
            names = read_header(path).shapes
    if names is not None:
        refuse_strangers(path.name, without_bundled(names)[0])
    tensors, bundled = without_bundled(lora_file.read_tensors(path))
    refuse_strangers(path.name, tensors)
    return Loaded(tensors, bundled, metadata.of_file(path))


def embeddings_in(path: Path) -> list[str]:
    """The names of the embeddings that a file holds besides a LoRA, by its header; [] where it has none that says."""
    from library.families.weights_file import read_header
    from library.lora_files.layouts import bundled_names

    with suppress(UserError):
        return bundled_names(read_header(path).shapes)
    return []


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA, LoCon, LoHa, LoKr or DoRA of any trainer. Raises UserError: it is no such file, which is told."""
    from library import families
    from library.lora_files import merging
    from library.lora_files.factors import read_factors

    tensors, bundled, entries = load(path)
    updates = read_factors(path.name, tensors, entries)
    family = merging.family_of(updates, entries, families.all_facts())
    dtypes = [tensor.dtype for tensor in tensors.values() if tensor.dim() > 1]
    numbers = max(set(dtypes), key=dtypes.count)  # magnitudes may have another
    return LoraFile(path, entries, updates, family, numbers, bundled)


def by_saved_name(file: LoraFile) -> dict[str, LayerUpdate]:
    """What a file adds, by sd-scripts' names, which every program reads; these are what most files have.

    Raises:
        UserError: a layer's name is none that we know.
    """
    known = _renamed(file)
    if not (file.family and file.is_whole):
        return known
    # Neither a LoHa nor a LoKr tells whether its inputs are those of a larger kernel: the model does.
    kernels = {target.saved_as: tuple(target.layer.weight.shape[2:]) for target in layers_of(file.family, known)}
    return {name: _with_kernel(update, kernels.get(name, ())) for name, update in known.items()}


def _with_kernel(update: LayerUpdate, kernel: tuple[int, ...]) -> LayerUpdate:
    outputs, inputs, *own = update.whole_shape()
    if own or not kernel:
        return update
    return update.shaped((outputs, inputs // math.prod(kernel), *kernel)) or update


def layers_of(family: FamilyFacts, names: Collection[str]) -> list[Target]:
    """The layers of this family's model; of the built-in miniature where these names are its own and not the family's.

    Args:
        names: of layers, in a file.
    """
    from library import families

    return miniature_layers(family, names) or families.architecture(family.name).layers()


def miniature_layers(family: FamilyFacts, names: Collection[str]) -> list[Target] | None:
    """Those of the built-in miniature, if these names are its own and not its family's."""
    from library import families
    from library.lora_files.layouts import by_name
    from library.options.training import Config

    if set(names) <= by_name(families.architecture(family.name).layers()).keys():
        return None
    with suppress(UserError):  # somebody removed it
        info = families.inspect(PROJECT / Config().pretrained_model_name_or_path)
        small = families.blueprint(info).layers()
        if info.family == family.name and set(names) <= by_name(small).keys():
            return small
    return None


def _renamed(file: LoraFile) -> dict[str, LayerUpdate]:
    strange = [name for name in file.factors if not name.startswith("lora_")]
    if file.family:  # names of another writing lie in none of its blocks
        prefix, blocks = file.family.parts["denoiser"].prefix, file.family.blocks
        strange += [name for name in file.factors if name.startswith(prefix) and blocks.index(name) is None]
    if not strange:
        return file.factors
    known, others = {}, list(file.factors)
    if file.family:
        from library.lora_files.factors import canonical

        known, others = canonical(file.factors, layers_of(file.family, file.factors))
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


class BaseModel:
    """A base model's layers by name, each weight read when it is asked for.

    Args:
        info: from `families.inspect`.
    """

    def __init__(self, info: ModelInfo):
        from library import families
        from library.families.rewriting import Reader

        family = families.blueprint(info)
        self.info = info
        self.targets = family.targets()
        stored = families.stored_weights(info, family)
        self.stored = {target.saved_as: stored[target.layer] for target in family.layers() if target.layer in stored}
        self.readers: dict[Path, Reader] = {file: Reader(file) for file in {one.file for one in self.stored.values()}}

    def read(self, name: str) -> Tensor:
        """A layer's weight, float32."""
        file, source = self.stored[name]
        tensor = self.readers[file].read(source.name)
        return (tensor if source.third is None else tensor.chunk(3)[source.third]).float()

    def weight_for(self, name: str, update: LayerUpdate) -> Tensor | None:
        """Of the layer that this is to change, where that decides what is added."""
        return self.read(name) if update.needs_weight else None


def base_for(files: Sequence[LoraFile], model: str | None) -> BaseModel | None:
    """The base model that DoRA files among these need; None: none does.

    Raises:
        UserError: there is no such model, or it does not fit them.
    """
    from library import families
    from library.lora_files import merging

    wanting = [file for file in files if file.needs_weights]
    if not wanting:
        return None
    if model is None:
        raise UserError([_needs_weights(file.path) for file in wanting])
    info = families.inspect(Path(model))
    layers, facts = families.blueprint(info).layers(), families.facts_of(info.family)
    for file in wanting:
        merging.fit(file.path.name, file.factors, layers, made_for=file.family, base=facts)
    return BaseModel(info)


# ---- What a file says of itself ----


def merged_metadata(
    weighted: Sequence[tuple[LoraFile, float]], family: FamilyFacts | None, title: str
) -> dict[str, str]:
    """What the files say in common: the base model, and the tags of all, so that trigger words are still offered.

    Args:
        weighted: the files, each with its weight, which is not 0; a negative one takes away what its tags call up.
    """
    files = [file for file, _ in weighted]
    entries: dict[str, str] = {"ss_output_name": title}
    if family:
        entries |= {"ss_base_model_version": family.base_model_version, "ss_v2": str(family.is_v2)}
    for name in ("ss_base_model_version", "ss_v2", "ss_clip_skip", "modelspec.architecture", "modelspec.implementation",
                 "modelspec.prediction_type", "modelspec.resolution", "modelspec.sai_model_spec"):  # fmt: skip
        told = {file.metadata[name] for file in files if name in file.metadata}
        if len(told) == 1:
            entries[name] = told.pop()
    for name in ("ss_tag_frequency", "ss_reg_dataset_dirs"):  # by the second one knows which tags call up nothing
        if table := _added([file for file, weight in weighted if weight > 0], name):
            entries[name] = json.dumps(table, ensure_ascii=False)
    return entries | merged_modelspec([file.path for file in files], title)


def _added(files: Sequence[LoraFile], name: str) -> dict[str, dict[str, object]]:
    """Tables by folder in the metadata of several files, their counts added; of files of one training once."""
    tables: dict[str, dict[str, object]] = {}
    trainings = set()
    for file in files:
        training = file.metadata.get("ss_session_id")
        if training in trainings:
            continue
        trainings |= {training} - {None, "None"}
        try:
            table = json.loads(file.metadata.get(name, "{}"))
        except ValueError:
            continue
        for folder, counts in table.items() if isinstance(table, dict) else ():
            if isinstance(counts, dict):
                own = tables.setdefault(folder, {})
                for key, count in counts.items():
                    before = own.get(key, 0)
                    is_sum = isinstance(before, int) and isinstance(count, int) and key != "n_repeats"
                    own[key] = before + count if is_sum else count
    return tables


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


# ---- In words ----


def _needs_weights(path: Path) -> str:
    return say(
        f"{path}: is a DoRA, whose update goes by the weights of the base model it was trained on. Set "
        "pretrained_model_name_or_path to that model",
        f"{path}：这是 DoRA，它的更新量取决于训练时底模的权重。请把 pretrained_model_name_or_path 设为那个底模",
    )


def bundled_note(name: str, embeddings: Sequence[str], english: str, chinese: str) -> str:
    """That a file of this name holds embeddings, and what becomes of them."""
    names = ", ".join(embeddings)
    return say(
        f"{name} also holds the embedding{'' if len(embeddings) == 1 else 's'} {names}: {english}",
        f"{name} 还带有嵌入模型 {names}：{chinese}",
    )
