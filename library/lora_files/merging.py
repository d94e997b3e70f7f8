"""LoRA files put into a model's own weights, for generation, and out again to the last bit.

    known = fit(name, factors, family.layers(), metadata)
    with Merging(family.layers()) as merging:
        merging.apply([Strength(known, text_encoder=0.6, unet=0.6)])      weights + what the files add
        ...
    here the weights are the base model's again

As web UIs do it: each layer's weight becomes W + strength * alpha / rank * up @ down, worked out in float32 and rounded
once to the weight's own type. (In training the update runs beside the layer: `adapters/lora.py`.)
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from library.contracts import Target
from library.lora_files.factors import Factors, canonical, some
from library.messages import UserError, say

WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # of the caption's states -> line of base models


class Strength(NamedTuple):
    """A file and how strongly it acts."""

    factors: Mapping[str, Factors]  # by `Target.saved_as`
    text_encoder: float
    unet: float


def fit(
    name: str, factors: Mapping[str, Factors], targets: Iterable[Target], metadata: Mapping[str, str] | None = None
) -> dict[str, Factors]:
    """A file's matrices by `Target.saved_as`.

    Args:
        name: of the file, for messages.
        factors: by the file's own names.
        targets: all layers of the model, `Family.layers`.

    Raises:
        UserError: the file names layers that this model lacks, or has them in another shape.
    """
    layers = {target.saved_as: target for target in targets}
    known, strange = canonical(factors, layers.values())
    misshapen = [layer for layer, own in known.items() if own.shape() != _plain_shape(layers[layer].layer.weight)]
    if strange or misshapen:
        raise UserError(_misfit(name, factors, layers, strange, misshapen, metadata or {}))
    return known


def _misfit(
    name: str,
    factors: Mapping[str, Factors],
    layers: Mapping[str, Target],
    strange: list[str],
    misshapen: list[str],
    metadata: Mapping[str, str],
) -> str:
    made_for, base = line_of(factors, metadata), _line_of_model(layers)
    told = []
    if strange:
        told.append(
            say(
                f"{len(strange)} of its {len(factors)} layers are not in this base model: {some(strange)}",
                f"它的 {len(factors)} 层中有 {len(strange)} 层在底模里不存在：{some(strange)}",
            )
        )
    if misshapen:
        told.append(
            say(
                f"{len(misshapen)} of its layers have another shape in this base model: {some(misshapen)}",
                f"它有 {len(misshapen)} 层的形状与底模不同：{some(misshapen)}",
            )
        )
    if made_for and base and made_for != base:
        cure = say(
            f"It was made for {made_for}, this is {base}: use a matching base model or LoRA",
            f"它是为 {made_for} 训练的，而底模是 {base}：请换用同一系列的底模或 LoRA",
        )
    elif made_for:
        cure = say(
            f"It was made for {made_for}: use a base model of that kind",
            f"它是为 {made_for} 训练的，请换用该系列的底模",
        )
    else:
        cure = say(
            "It was made for another kind of base model; use the one it was trained on",
            "它是为另一类底模训练的，请换用训练时所用的底模",
        )
    return say(f"{name}: {'; '.join(told)}. {cure}", f"{name}：{'；'.join(told)}。{cure}")


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


# ---- Models ----


class Merging:
    """A model whose weights carry LoRAs for as long as it is open.

    Args:
        targets: all layers that LoRAs may change, `Family.layers`.
    """

    def __init__(self, targets: Iterable[Target]):
        self.layers = {target.saved_as: target for target in targets}
        self._originals: dict[nn.Module, Tensor] = {}  # weights as they were, in main memory: of layers ever changed
        self._changed: set[nn.Module] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.apply([])

    @torch.no_grad()
    def apply(self, loras: Iterable[Strength]) -> None:
        """Make the weights those of the base model with these LoRAs, and no others.

        All layers must be known: see `fit`.
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
