"""The matrices of LoRA files of any trainer, by layer.

factors = read_factors(name, tensors, metadata)        by the file's own names
known, strange = canonical(factors, layers)    by ours
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from library.contracts import Target
from library.lora_files import whole
from library.lora_files.layouts import (
    KOHYA_ENDINGS,
    MAGNITUDE,
    by_name,
    fused_names,
    layer_of,
    other_kinds,
    split_name,
    without_bundled,
)
from library.lora_files.whole import LayerUpdate
from library.messages import UserError, say

UNDERSTOOD = ("LoHa", "LoKr", "DoRA")  # of `layouts.OTHER_KINDS`


@dataclass(frozen=True, eq=False)
class Factors:
    """What a LoRA or LoCon file holds for one layer: the `LayerUpdate` that is a product of two thin matrices."""

    down: Tensor  # (r, n) or (r, n, k, k); (r, n, 1, 1) with `mid`
    up: Tensor  # (m, r) or (m, r, 1, 1)
    mid: Tensor | None  # (r, r, k, k): LyCORIS' convolutions in three steps
    scale: float  # alpha / rank

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def needs_weight(self) -> bool:
        return False

    def shape(self) -> tuple[int, ...]:
        """Of the update; a kernel of one pixel is left out."""
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (len(self.up), self.down.shape[1], *(kernel if set(kernel) - {1} else ()))

    def whole_shape(self) -> tuple[int, ...]:
        """The same, with a kernel of one pixel where the file has one."""
        return (len(self.up), self.down.shape[1], *(self.down if self.mid is None else self.mid).shape[2:])

    def shaped(self, shape: tuple[int, ...]) -> "Factors | None":
        """Itself, where it fits such a layer; that of a 1x1 convolution may be written as of a linear one."""
        plain = tuple(shape) if set(shape[2:]) - {1} else tuple(shape[:2])
        return self if self.shape() == plain else None

    def thin(self, device: torch.device | str = "cpu", weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(r, n k k) down, with what is between, and (m, r) up: float32, scale * up @ down is the update."""
        down, up = self.down.to(device, torch.float32).flatten(1), self.up.to(device, torch.float32).flatten(1)
        if self.mid is not None:
            down = torch.einsum("ijkl,jn->inkl", self.mid.to(device, torch.float32), down).flatten(1)
        return down, up

    def update(self, device: torch.device | str, weight: Tensor | None = None) -> Tensor:
        """What is added to the layer's weight at strength 1, float32, in `shape`."""
        down, up = self.thin(device)
        return (up @ down).mul_(self.scale).reshape(self.shape())

    def rows(self, first: int, count: int) -> "Factors":
        """Of some of the layer's outputs."""
        return replace(self, up=self.up[first : first + count])


def read_factors(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, LayerUpdate]:
    """What a file adds to each layer, by the layer's name in it.

    Names and orders of kohya's sd-scripts, LyCORIS (LoCon, LoHa, LoKr, DoRA), diffusers and peft are understood. A
    missing alpha is the rank, which leaves the product as it is.

    Args:
        name: of the file, for messages.
        metadata: of the file; peft's own alpha stands there.

    Raises:
        UserError: it is another kind of adapter, which is named, or no adapter; or it is damaged.
    """
    tensors, _ = without_bundled(tensors)
    if kinds := [kind for kind in other_kinds(tensors) if kind not in UNDERSTOOD]:
        raise UserError(_other_kind(name, kinds))
    refuse_strangers(name, tensors)
    layers: dict[str, dict[str, Tensor]] = {}  # layer -> what of it -> its tensor
    for key, tensor in tensors.items():
        layer, part = split_name(key)
        if part is None:
            layer = layer_of(key)
            part = "magnitude" if re.search(f"({MAGNITUDE})$", key) else key[len(layer) + 1 :]
        layers.setdefault(layer, {})[part] = tensor
    alphas = _peft_alphas(name, metadata or {})
    updates, damaged = {}, []
    for layer, parts in layers.items():
        update = _update_of(parts, alphas.get(layer.partition(".")[0]))
        if update is None:
            damaged.append(layer)
        else:
            updates[layer] = update
    if damaged:
        raise UserError(_damaged(name, damaged))
    return updates


def _update_of(parts: Mapping[str, Tensor], usual_alpha: float | None) -> LayerUpdate | None:
    """Of the parts of one layer; None: they are damaged."""
    if not all(bool(tensor.isfinite().all()) for tensor in parts.values()):
        return None
    if "alpha" in parts and parts["alpha"].numel() != 1:
        return None
    update: LayerUpdate | None
    if "down" in parts or "up" in parts:
        if not _is_whole(parts):
            return None
        rank = parts["down"].shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else usual_alpha or rank
        update = Factors(parts["down"], parts["up"], parts.get("mid"), alpha / rank)
    else:
        update = whole.of_parts(parts)
    if update is not None and "magnitude" in parts:
        return whole.rescaled(update, parts["magnitude"])
    return update


def refuse_strangers(name: str, keys: Collection[str]) -> None:
    """Raise a UserError where a file is no adapter of any kind, by the names of its tensors."""
    if not keys:
        raise UserError(say(f"{name}: is empty", f"{name}：是空文件"))
    strange = next((key for key in keys if layer_of(key) == key), None)
    if strange is not None:
        raise UserError(
            say(
                f'{name}: is no LoRA: it contains {len(keys)} tensors such as "{strange}". A base model, an embedding?',
                f"{name}：不是 LoRA：其中有 {len(keys)} 个张量，如“{strange}”。是否误选了底模或嵌入模型？",
            )
        )


def _is_whole(parts: Mapping[str, Tensor]) -> bool:
    down, up, mid = parts.get("down"), parts.get("up"), parts.get("mid")
    if down is None or up is None or down.dim() < 2 or up.dim() < 2:
        return False
    if up.shape[1:].numel() != down.shape[0]:
        return False
    return mid is None or (mid.shape[:2] == (up.shape[1], down.shape[0]) and down.shape[1:].numel() == down.shape[1])


def _peft_alphas(name: str, metadata: Mapping[str, str]) -> dict[str, float]:
    """Part of the model -> the alpha that diffusers writes into the metadata instead of a tensor for each layer."""
    try:
        entries = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        patterned = [key for key, value in entries.items() if key.endswith("_pattern") and value]
        if patterned:
            raise UserError(
                say(
                    f"{name}: its layers have strengths of their own ({patterned[0]}), which is not understood here",
                    f"{name}：各层有各自的强度（{patterned[0]}），这里不支持",
                )
            )
        return {key.partition(".")[0]: float(value) for key, value in entries.items() if key.endswith(".lora_alpha")}
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        return {}


def canonical(
    factors: Mapping[str, LayerUpdate], targets: Iterable[Target]
) -> tuple[dict[str, LayerUpdate], list[str]]:
    """A file's matrices by `Target.saved_as`, and the names that no layer of the model has.

    What a file has for several layers in one, as the original model keeps them, is taken apart.
    """
    layers = by_name(targets)
    known: dict[str, LayerUpdate] = {}
    strange = []
    for name, own in factors.items():
        found = layers.get(name, [])
        is_fused = any(name in fused_names(target) for target in found)
        # unknown, or named twice, or norms that go over several layers
        if not found or any(target.saved_as in known for target in found) or (is_fused and own.needs_weight):
            strange.append(name)
            continue
        for target in found:
            is_part = name in fused_names(target)
            rows = (target.original_row or 0, len(target.layer.weight))
            known[target.saved_as] = own.rows(*rows) if is_part else own
    return known, strange


def in_our_writing(
    name: str, tensors: Mapping[str, Tensor], targets: Iterable[Target], metadata: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """The tensors of any adapter file by `Target.saved_as` and kohya's endings, as a training writes and reads them.

    What belongs to no layer of the model keeps its name; embeddings that a file holds besides are left out. Arguments
    as in `read_factors`.

    Raises:
        UserError: each layer of the file has a strength of its own, in peft's writing.
    """
    layers, alphas = by_name(targets), _peft_alphas(name, metadata or {})
    tensors, _ = without_bundled(tensors)
    ours: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, part = layer_of(str(key)), split_name(str(key))[1]  # a pickle may have keys of any kind
        ending = KOHYA_ENDINGS[part] if part else str(key)[len(layer) :]
        found = layers.get(layer, [])
        for target in found:
            is_part = part == "up" and layer in fused_names(target)
            first = target.original_row or 0
            own = tensor[first : first + len(target.layer.weight)] if is_part else tensor
            ours[f"{target.saved_as}{ending}"] = own
            if (alpha := alphas.get(layer.partition(".")[0])) is not None:
                ours[f"{target.saved_as}.alpha"] = torch.tensor(alpha)
        if not found:
            ours[key] = tensor
    return ours


def some(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    shown = ", ".join(names[:3])
    return shown + (say(f" and {len(names) - 3} more", f" 等 {len(names)} 个") if len(names) > 3 else "")


def _other_kind(name: str, kinds: list[str]) -> str:
    return say(
        f"{name}: is a {' / '.join(kinds)}. LoRA, LoCon, LoHa, LoKr and DoRA can be used for generation, merged and "
        "resized here, this can't",
        f"{name}：这是 {' / '.join(kinds)}。画图、合并、改秩支持 LoRA、LoCon、LoHa、LoKr、DoRA，不支持这一种",
    )


def _damaged(name: str, layers: list[str]) -> str:
    return say(
        f"{name}: {some(layers)} lack a part, have an impossible shape or contain NaN. The file is "
        "damaged, or its training failed; use another one",
        f"{name}：{some(layers)} 缺少一部分、形状不对或含有 NaN。文件已损坏或训练失败，请换一个",
    )
