"""LoRA files of any trainer, read; and put into a model's own weights, for drawing, and out again to the last bit.

    factors = read(name, tensors, metadata)            any trainer's LoRA or LoCon -> its matrices, by layer
    refuse_misfit(name, factors, family.named_layers(), metadata)
    with Merging(family.named_layers()) as merging:
        merging.apply([Strength(factors, text_encoder=0.6, unet=0.6)])      weights + what the files add
        ...
    here the weights are the base model's again

As web UIs do it: each layer's weight becomes W + strength * alpha / rank * up @ down, worked out in float32 and rounded
once to the weight's own type. (In training the update runs beside the layer: `lora.py`.)
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from library.contracts import Target
from library.messages import UserError, say

ENDINGS = {  # behind a layer's name -> what the tensor is
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid", ".alpha": "alpha",
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up",
}  # fmt: skip
OTHER_KINDS = {  # at the end of a tensor's name -> kind of adapter
    r"\.hada_\w+": "LoHa", r"\.lokr_\w+": "LoKr", r"\.dora_scale|\.lora_magnitude_vector(\.\w+)?": "DoRA",
    r"\.oft_\w+(\.weight)?": "OFT", r"\.on_input": "IA3", r"\.diff(_b)?": "full", r"\.[wb]_norm": "norm",
    r"\.[ab][12]\.weight": "GLoRA",
}  # fmt: skip
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # of the caption's states -> line of base models


class Factors(NamedTuple):
    """What a file holds for one layer."""

    down: Tensor  # (r, n) or (r, n, k, k); (r, n, 1, 1) with `mid`
    up: Tensor  # (m, r) or (m, r, 1, 1)
    mid: Tensor | None  # (r, r, k, k): LyCORIS' convolutions in three steps
    scale: float  # alpha / rank

    def shape(self) -> tuple[int, ...]:
        """Of the update; a kernel of one pixel is left out."""
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (len(self.up), self.down.shape[1], *(kernel if set(kernel) - {1} else ()))

    def thin(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(r, n k k) down, with what is between, and (m, r) up: float32, scale * up @ down is the update."""
        down, up = self.down.to(device, torch.float32).flatten(1), self.up.to(device, torch.float32).flatten(1)
        if self.mid is not None:
            down = torch.einsum("ijkl,jn->inkl", self.mid.to(device, torch.float32), down).flatten(1)
        return down, up

    def update(self, device: torch.device | str) -> Tensor:
        """What is added to the layer's weight at strength 1, float32, in `shape`."""
        down, up = self.thin(device)
        return (up @ down).mul_(self.scale).reshape(self.shape())


class Strength(NamedTuple):
    """A file and how strongly it acts."""

    factors: Mapping[str, Factors]
    text_encoder: float
    unet: float


# ---- Files ----


def read(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Factors]:
    """A file's matrices by the layer's name in it.

    Names and orders of kohya's sd-scripts, LyCORIS (LoCon), diffusers and peft are understood. A missing alpha is the
    rank, which leaves the product as it is.

    Args:
        name: of the file, for messages.
        metadata: of the file; peft's own alpha stands there.

    Raises:
        UserError: it is another kind of adapter, which is named, or no adapter; or it is damaged.
    """
    if kinds := other_kinds(tensors):
        raise UserError(
            say(
                f"{name}: is a {' / '.join(kinds)}: what it adds to a layer is no product of two thin matrices, as in "
                "LoRA and LoCon. Such files cannot be drawn with, merged or resized here yet",
                f"{name}：这是 {' / '.join(kinds)}，它的更新量不像 LoRA、LoCon 那样是两个小矩阵的乘积，"
                "暂不支持用它画图、合并或改秩",
            )
        )
    refuse_strangers(name, tensors)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, part = _split(key)
        layers.setdefault(layer, {})[part] = tensor
    alphas = _peft_alphas(name, metadata or {})
    found, damaged = {}, []
    for layer, parts in layers.items():
        if not _is_whole(parts):
            damaged.append(layer)
            continue
        rank = parts["down"].shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else alphas.get(layer.partition(".")[0], rank)
        found[layer] = Factors(parts["down"], parts["up"], parts.get("mid"), alpha / rank)
    if damaged:
        raise UserError(
            say(
                f"{name}: {_some(damaged)} lack a part, have an impossible shape or hold NaN. The file is damaged, or "
                "its training failed; take another one",
                f"{name}：{_some(damaged)} 缺少一部分、形状不对或含有 NaN。文件已损坏或训练失败，请换一个",
            )
        )
    return found


def other_kinds(keys: Iterable[str]) -> list[str]:
    """What a file is beside LoRA, by the names of its tensors; [] of a LoRA or LoCon."""
    return sorted({kind for key in keys for end, kind in OTHER_KINDS.items() if re.search(f"({end})$", key)})


def refuse_strangers(name: str, keys: Collection[str]) -> None:
    """Raise a UserError where a file is no adapter of any kind, by the names of its tensors."""
    if not keys:
        raise UserError(say(f"{name}: is empty", f"{name}：是空文件"))
    strange = next((key for key in keys if layer_of(key) == key), None)
    if strange is not None:
        raise UserError(
            say(
                f'{name}: is no LoRA: it holds {len(keys)} tensors such as "{strange}". A base model, an embedding?',
                f"{name}：不是 LoRA：其中有 {len(keys)} 个张量，如“{strange}”。是否误选了底模或嵌入模型？",
            )
        )


def layer_of(key: str) -> str:
    """The layer that a tensor of any kind of adapter belongs to, by its name in the file."""
    layer, part = _split(key)
    return layer if part else re.sub(f"({'|'.join(OTHER_KINDS)})$", "", key)


def _split(key: str) -> tuple[str, str | None]:
    """A tensor's name -> its layer's, and what of the layer it is."""
    for ending, part in ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return key, None


def _is_whole(parts: dict[str, Tensor]) -> bool:
    down, up, mid = parts.get("down"), parts.get("up"), parts.get("mid")
    if down is None or up is None or down.dim() < 2 or up.dim() < 2:
        return False
    if up.shape[1:].numel() != down.shape[0] or ("alpha" in parts and parts["alpha"].numel() != 1):
        return False
    if mid is not None and (mid.shape[:2] != (up.shape[1], down.shape[0]) or down.shape[1:].numel() != down.shape[1]):
        return False
    return all(bool(tensor.isfinite().all()) for tensor in parts.values())


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


def refuse_misfit(
    name: str, factors: Mapping[str, Factors], layers: Mapping[str, Target], metadata: Mapping[str, str] | None = None
) -> None:
    """Raise a UserError where a file names layers that this model lacks, or has them in another shape."""
    strange = [layer for layer in factors if layer not in layers]
    misshapen = [
        layer
        for layer, found in factors.items()
        if layer in layers and found.shape() != _plain_shape(layers[layer].layer.weight)
    ]
    if not strange and not misshapen:
        return
    made_for, base = line_of(factors, metadata or {}), _line_of_model(layers)
    told = []
    if strange:
        told.append(
            say(
                f"{len(strange)} of its {len(factors)} layers are not in this base model: {_some(strange)}",
                f"它的 {len(factors)} 层中有 {len(strange)} 层在底模里不存在：{_some(strange)}",
            )
        )
    if misshapen:
        told.append(
            say(
                f"{len(misshapen)} of its layers have another shape in this base model: {_some(misshapen)}",
                f"它有 {len(misshapen)} 层的形状与底模不同：{_some(misshapen)}",
            )
        )
    if made_for and base and made_for != base:
        cure = say(
            f"It was made for {made_for}, this is {base}: take a base model or a LoRA of the other kind",
            f"它是为 {made_for} 训练的，而底模是 {base}：请换用同一系列的底模或 LoRA",
        )
    elif made_for:
        cure = say(
            f"It was made for {made_for}: take a base model of that kind",
            f"它是为 {made_for} 训练的，请换用该系列的底模",
        )
    else:
        cure = say(
            "It was made for another kind of base model; take one that it was trained on",
            "它是为另一类底模训练的，请换用训练时所用的底模",
        )
    raise UserError(say(f"{name}: {'; '.join(told)}. {cure}", f"{name}：{'；'.join(told)}。{cure}"))


def line_of(factors: Mapping[str, Factors], metadata: Mapping[str, str]) -> str | None:
    """The line of base models that a file was made for, a value of WIDTHS, as its metadata or its layers tell."""
    version = metadata.get("ss_base_model_version", "")
    for beginning, line in (("sdxl", "SDXL"), ("sd_v2", "SD 2.x"), ("sd_v1", "SD 1.x")):
        if version.startswith(beginning):
            return line
    if any(re.match(r"lora_te2_|text_encoder_2\.|lora_unet_(input|output)_blocks_", layer) for layer in factors):
        return WIDTHS[2048]
    widths = {found.down.shape[1] for layer, found in factors.items() if re.search(r"attn2[._]to_[kv]$", layer)}
    return WIDTHS.get(widths.pop()) if len(widths) == 1 else None


def _line_of_model(layers: Mapping[str, Target]) -> str | None:
    for name, target in layers.items():
        if re.search(r"attn2[._]to_k$", name):
            return WIDTHS.get(target.layer.weight.shape[1])
    return None


def _plain_shape(weight: Tensor) -> tuple[int, ...]:
    """A layer's shape; that of a 1x1 convolution is a linear layer's, for files are written in both ways."""
    kernel = tuple(weight.shape[2:])
    return (*weight.shape[:2], *(kernel if set(kernel) - {1} else ()))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (say(f" and {len(names) - 3} more", f" 等 {len(names)} 个") if len(names) > 3 else "")


# ---- Models ----


class Merging:
    """A model whose weights carry LoRAs for as long as it is open.

    Args:
        layers: name in a file -> layer, as `Family.named_layers` gives them.
    """

    def __init__(self, layers: Mapping[str, Target]):
        self.layers = layers
        self._originals: dict[nn.Module, Tensor] = {}  # weights as they were, in main memory: of layers ever changed
        self._changed: set[nn.Module] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.apply([])

    @torch.no_grad()
    def apply(self, loras: Iterable[Strength]) -> None:
        """Make the weights those of the base model with these LoRAs, and no others.

        All layers must be known: see `refuse_misfit`.
        """
        wanted: dict[nn.Module, list[tuple[Factors, float]]] = {}
        for lora in loras:
            for name, factors in lora.factors.items():
                target = self.layers[name]
                strength = lora.unet if target.part == "unet" else lora.text_encoder
                if strength:
                    wanted.setdefault(target.layer, []).append((factors, strength))
        for layer in self._changed - set(wanted):
            layer.weight.copy_(self._originals[layer])
            self._changed.remove(layer)
        for layer, updates in wanted.items():
            weight = layer.weight
            if layer not in self._originals:
                self._originals[layer] = weight.detach().to("cpu", copy=True)
            self._changed.add(layer)  # before it is: Ctrl-C may come at any moment
            weight.copy_(with_updates(self._originals[layer].to(weight.device), updates))


def with_updates(weight: Tensor, updates: Iterable[tuple[Factors, float]]) -> Tensor:
    """A weight with what files add to it, each at its strength; float32, to be rounded once."""
    total = weight.to(torch.float32, copy=True)
    for factors, strength in updates:
        total += factors.update(weight.device).mul_(strength).reshape(weight.shape)
    return total
