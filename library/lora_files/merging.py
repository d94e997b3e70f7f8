"""LoRA files put into a model's own weights, for generation, and out again to the last bit.

    known = fit(name, factors, family.layers())
    with Merging(family.layers()) as merging:
        merging.apply([Strength(known, text_encoder=0.6, unet=0.6)])      weights + what the files add
        ...
    here the weights are the base model's again

As web UIs do it: each layer's weight becomes W + strength * alpha / rank * up @ down, worked out in float32 and rounded
once to the weight's own type. Of LoHa, LoKr and DoRA it is the matrix of `whole.py`; what a DoRA adds goes by the base
model's W, whatever other files add. (In training the update runs beside the layer: `adapters/lora.py`.)
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from library.contracts import FamilyFacts, Target
from library.lora_files.factors import canonical, some
from library.lora_files.whole import LayerUpdate
from library.messages import UserError, plural, say


class Strength(NamedTuple):
    """A file and how strongly it acts."""

    factors: Mapping[str, LayerUpdate]  # by `Target.saved_as`
    text_encoder: float
    unet: float


def fit(
    name: str,
    factors: Mapping[str, LayerUpdate],
    targets: Iterable[Target],
    *,
    made_for: FamilyFacts | None = None,
    base: FamilyFacts | None = None,
) -> dict[str, LayerUpdate]:
    """A file's matrices by `Target.saved_as`.

    Args:
        name: of the file, for messages.
        factors: by the file's own names.
        targets: all layers of the model, `Family.layers`.
        made_for, base: the families of the file and of the model, for messages; None: nobody knows.

    Raises:
        UserError: the file names layers that this model lacks, or has them in another shape.
    """
    layers = {target.saved_as: target for target in targets}
    known, strange = canonical(factors, layers.values())
    fitting, misshapen = {}, []
    for layer, own in known.items():
        shaped = own.shaped(tuple(layers[layer].layer.weight.shape))
        if shaped is None:
            misshapen.append(layer)
        else:
            fitting[layer] = shaped
    if strange or misshapen:
        raise UserError(_misfit(name, len(factors), strange, misshapen, made_for, base))
    return fitting


def _misfit(
    name: str,
    count: int,
    strange: list[str],
    misshapen: list[str],
    made_for: FamilyFacts | None,
    base: FamilyFacts | None,
) -> str:
    told = []
    if strange:
        told.append(
            say(
                f"{len(strange)} of its {plural(count, 'layer')} {'is' if len(strange) == 1 else 'are'} not in this "
                f"base model: {some(strange)}",
                f"它的 {count} 层中有 {len(strange)} 层在底模里不存在：{some(strange)}",
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
            f"It was made for {made_for.title}, this is {base.title}: use a matching base model or LoRA",
            f"它是为 {made_for.title} 训练的，而底模是 {base.title}：请换用同一系列的底模或 LoRA",
        )
    elif made_for:
        cure = say(
            f"It was made for {made_for.title}: use a base model of that kind",
            f"它是为 {made_for.title} 训练的，请换用该系列的底模",
        )
    else:
        cure = say(
            "It was made for another kind of base model; use the one it was trained on",
            "它是为另一类底模训练的，请换用训练时所用的底模",
        )
    return say(f"{name}: {'; '.join(told)}. {cure}", f"{name}：{'；'.join(told)}。{cure}")


def family_of(
    factors: Mapping[str, LayerUpdate | None], metadata: Mapping[str, str], families: Collection[FamilyFacts]
) -> FamilyFacts | None:
    """The family of base models that a file was made for, as its metadata or its layers tell; None: nothing does.

    Args:
        factors: by the file's own names; None where only the name is known.
        families: all that there are.
    """
    version = metadata.get("ss_base_model_version", "")
    for facts in families:
        if version.startswith(facts.version_prefix):
            return facts
    for facts in families:
        if facts.lora_marks and any(re.match(facts.lora_marks, layer) for layer in factors):
            return facts
    cross = [own for layer, own in factors.items() if own and re.search(r"attn2[._]to_[kv]$", layer)]
    widths = {own.shape()[1] for own in cross}
    return next((facts for facts in families if {facts.context_width} == widths), None)


# ---- Models ----


class Merging:
    """A model whose weights carry LoRAs for as long as it is open.

    Args:
        targets: all layers that LoRAs may change, `Family.layers`.
    """

    def __init__(self, targets: Iterable[Target]):
        self.layers = {target.saved_as: target for target in targets}
        # Weights as they were, in main memory: of layers ever changed.
        self._originals: dict[nn.Linear | nn.Conv2d, Tensor] = {}
        self._changed: set[nn.Linear | nn.Conv2d] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.apply([])

    @torch.no_grad()
    def apply(self, loras: Iterable[Strength]) -> None:
        """Make the weights those of the base model with these LoRAs, and no others.

        All layers must be known: see `fit`.
        """
        wanted: dict[nn.Linear | nn.Conv2d, list[tuple[LayerUpdate, float]]] = {}
        for lora in loras:
            for name, factors in lora.factors.items():
                target = self.layers[name]
                strength = lora.unet if target.part == "denoiser" else lora.text_encoder
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


def with_updates(weight: Tensor, updates: Iterable[tuple[LayerUpdate, float]]) -> Tensor:
    """A weight with what files add to it, each at its strength; float32, to be rounded once."""
    total = weight.to(torch.float32, copy=True)
    for factors, strength in updates:
        total += factors.update(weight.device, weight).mul_(strength).reshape(weight.shape)
    return total
