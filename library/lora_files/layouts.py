"""How LoRA files call layers and their tensors: what other programs read is written, what any of them wrote is read.

In this program a layer has one name, `Target.saved_as`, and its tensors have kohya's endings and an alpha. A layout is
another writing of the same: other names, no alpha (its scale is then in the numbers), layers that the original model
keeps as one (query, key and value) as one. To add a layout: a row in LAYOUTS. What is read besides stands in ENDINGS
and in `names_of`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from library.contracts import Target

KOHYA_ENDINGS = {  # what a tensor is -> what stands behind its layer's name
    "down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "alpha": ".alpha",
}  # fmt: skip
ENDINGS = {ending: part for part, ending in KOHYA_ENDINGS.items()} | {
    ".lora_A.weight": "down", ".lora_B.weight": "up",  # peft, diffusers
    ".lora.down.weight": "down", ".lora.up.weight": "up",  # diffusers' older files
}  # fmt: skip
MAGNITUDE = r"\.dora_scale|\.lora_magnitude_vector(\.\w+)?"
OTHER_KINDS = {  # at the end of a tensor's name -> kind of adapter
    r"\.hada_\w+": "LoHa", r"\.lokr_\w+": "LoKr", MAGNITUDE: "DoRA",
    r"\.oft_\w+(\.weight)?": "OFT", r"\.on_input": "IA3", r"\.diff(_b)?": "full", r"\.[wb]_norm": "norm",
    r"\.[ab][12]\.weight": "GLoRA",
}  # fmt: skip


BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.")  # an embedding in the same file: OneTrainer, A1111's PR 13568


T = TypeVar("T")  # a tensor, or its shape


class Layout(NamedTuple):
    """A writing of LoRA files."""

    name_of: Callable[[Target], str]
    down: str  # endings
    up: str
    has_alpha: bool  # False: the update is up @ down as it stands
    is_fused: bool  # layers that are one in the original model are one here

    def of(self, down: Tensor, up: Tensor, scale: float, name: str) -> dict[str, Tensor]:
        """A layer's tensors by their names in the file; scale is alpha / rank."""
        if self.has_alpha:
            alpha = torch.tensor(scale * len(down))
            return {f"{name}{self.down}": down, f"{name}{self.up}": up, f"{name}.alpha": alpha}
        return {f"{name}{self.down}": down, f"{name}{self.up}": up * scale}


LAYOUTS = {
    # sd-scripts, LyCORIS, all web UIs
    "kohya": Layout(lambda target: target.saved_as, ".lora_down.weight", ".lora_up.weight", True, False),
    # the original model's names, as ComfyUI and most trainers of transformers have them
    "original": Layout(lambda target: target.original, ".lora_A.weight", ".lora_B.weight", False, True),
    # diffusers and peft
    "diffusers": Layout(lambda target: target.module, ".lora_A.weight", ".lora_B.weight", False, False),
}

# ---- Names ----


def split_name(key: str) -> tuple[str, str | None]:
    """A tensor's name -> its layer's, and what of the layer it is, a value of ENDINGS; None: nothing of a LoRA."""
    for ending, part in ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return key, None


def layer_of(key: str) -> str:
    """The layer that a tensor of any kind of adapter belongs to, by its name in the file; the name itself: of none."""
    layer, part = split_name(key)
    return layer if part else re.sub(f"({'|'.join(OTHER_KINDS)})$", "", key)


def without_bundled(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """A file's tensors without those of embeddings that it carries besides, and these."""
    bundled = {key: tensor for key, tensor in tensors.items() if BUNDLED.match(str(key))}
    return {key: tensor for key, tensor in tensors.items() if key not in bundled}, bundled


def bundled_names(keys: Iterable[str]) -> list[str]:
    """The embeddings that a file carries besides, by what is typed in a prompt to use them."""
    return sorted({found[1] for key in keys if (found := BUNDLED.match(key))})


def other_kinds(keys: Iterable[str]) -> list[str]:
    """What a file is beside LoRA, by the names of its tensors; [] of a LoRA or LoCon."""
    return sorted({kind for key in keys for end, kind in OTHER_KINDS.items() if re.search(f"({end})$", key)})


def names_of(target: Target) -> list[str]:
    """Every name that files have for a layer, by whichever trainer."""
    names = [layout.name_of(target) for layout in LAYOUTS.values()]
    names += fused_names(target)
    names.append(f"lora_{target.module.replace('.', '_')}")  # kohya's with diffusers' names: OneTrainer, early SDXL
    names.append(target.module.replace(".text_model.", ".", 1))  # of transformers 5
    return [name for name in dict.fromkeys(names) if name not in ("", "lora_")]


def fused_names(target: Target) -> list[str]:
    """Names under which files have it together with others, as the original model keeps them; []: they do not."""
    if target.original_row is None:
        return []
    return [target.original, f"lora_unet_{target.original.partition('.')[2].replace('.', '_')}"]


def by_name(targets: Iterable[Target]) -> dict[str, list[Target]]:
    """Layers under every name that files have for them; several where the original model keeps them as one."""
    layers: dict[str, list[Target]] = {}
    for target in targets:
        for name in names_of(target):
            layers.setdefault(name, []).append(target)
    return layers


# ---- Writing ----


def write(tensors: Mapping[str, Tensor], targets: Iterable[Target], layout: str) -> dict[str, Tensor]:
    """An adapter's tensors as another program names them.

    Args:
        tensors: as `Adapters.state_dict` gives them. Kinds other than LoRA keep kohya's endings and their alpha, layers
            that have no name in the layout all of kohya's writing, which most readers know beside their own.
        targets: all layers of the model that can be adapted.
        layout: a key of LAYOUTS.
    """
    chosen = LAYOUTS[layout]
    if layout == "kohya":
        return dict(tensors)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, ending = key.partition(".")
        layers.setdefault(layer, {})[ending] = tensor
    fused: dict[str, list[Target]] = {}
    written: dict[str, Tensor] = {}
    for target in targets:
        name, parts = chosen.name_of(target), layers.get(target.saved_as, {})
        if chosen.is_fused and target.original_row is not None:
            fused.setdefault(name, []).append(target)
        elif name and "lora_down.weight" in parts:
            written |= chosen.of(*_matrices(parts), name)
        else:
            written |= {f"{name or target.saved_as}.{ending}": tensor for ending, tensor in parts.items()}
    for name, members in fused.items():
        if any(member.saved_as in layers for member in members):
            written |= chosen.of(*_fused(members, layers), 1.0, name)
    return written


def _matrices(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    down = parts["lora_down.weight"]
    return down, parts["lora_up.weight"], float(parts["alpha"]) / len(down)


def _fused(members: Iterable[Target], layers: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """(R, n) down and (M, R) up of the layer that the original model has for all of them; R is the sum of the ranks."""
    members = sorted(members, key=lambda member: member.original_row or 0)
    found = {member.saved_as: _matrices(layers[member.saved_as]) for member in members if member.saved_as in layers}
    down = torch.cat([down for down, _, _ in found.values()])
    last = members[-1]
    up = down.new_zeros((last.original_row or 0) + len(last.layer.weight), len(down))
    column = 0
    for member in members:
        if member.saved_as in found:
            own_down, own_up, scale = found[member.saved_as]
            row = member.original_row or 0
            up[row : row + len(own_up), column : column + len(own_down)] = own_up * scale
            column += len(own_down)
    return down, up
