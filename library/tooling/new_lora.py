"""A LoRA file that a script makes of others or of models: its tensors, and how near they are to what they were to be.

What is told of it (`Likeness`) is worked out from the numbers that are written: cut, clamped and rounded.
"""

from __future__ import annotations

import json
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from library.lora_files import low_rank
from library.lora_files.low_rank import Likeness
from library.messages import say


class NewLayer(NamedTuple):
    """A layer of the file."""

    rank: int
    alpha: float
    is_conv: bool  # of more than one pixel
    likeness: Likeness | None  # None: nothing was to be written


class NewLora:
    """Layers are added to it one by one.

    Args:
        dtype: of the file.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.tensors: dict[str, Tensor] = {}
        self.layers: dict[str, NewLayer] = {}

    def add(
        self,
        name: str,
        matrices: tuple[Tensor, Tensor],
        alpha: float,
        shape: tuple[int, ...],
        *,
        whole: tuple[Tensor, Tensor],
    ) -> NewLayer:
        """Put a layer into the file.

        Args:
            matrices: (r, n k k) down and (m, r) up. The update is alpha / r * up @ down.
            shape: of the layer's weight, (m, n) or (m, n, k, k); a 1x1 convolution may be written as either.
            whole: down and up of any rank, whose product the update is to be.
        """
        down, up = matrices
        outputs, inputs, *kernel = shape
        # The file's type may round alpha: `up` makes up for that.
        rounded = torch.tensor(alpha, dtype=self.dtype)
        factor = alpha / float(rounded) if float(rounded) else 1.0
        own_down, own_up = down.to(self.dtype), (up * factor).to(self.dtype)
        rank = len(down)
        self.tensors |= {
            f"{name}.lora_down.weight": own_down.reshape(rank, inputs, *kernel),
            f"{name}.lora_up.weight": own_up.reshape(outputs, rank, *[1] * len(kernel)),
            f"{name}.alpha": rounded,
        }
        written = own_down.double(), own_up.double() * (float(rounded) / rank)
        layer = NewLayer(rank, alpha, bool(set(kernel) - {1}), low_rank.likeness(whole, written))
        self.layers[name] = layer
        return layer

    def metadata(self) -> dict[str, str]:
        """ss_network_dim, ss_network_alpha and ss_network_args of these layers; "Dynamic" where they differ."""
        layers = self.layers.values()
        conv = [layer for layer in layers if layer.is_conv]
        plain = [layer for layer in layers if not layer.is_conv] or conv  # nothing but 3x3: their rank is the file's
        entries = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": _one([layer.rank for layer in plain]),
            "ss_network_alpha": _one([layer.alpha for layer in plain]),
        }
        if conv:
            args = {"conv_dim": _one([one.rank for one in conv]), "conv_alpha": _one([one.alpha for one in conv])}
            entries["ss_network_args"] = json.dumps(args)
        return entries

    def kept(self) -> str:
        """What the file holds of what it was to be, in words."""
        shares = {name: layer.likeness for name, layer in self.layers.items() if layer.likeness}
        if not shares:
            return say("every layer is zero", "所有层都是 0")
        least = min(shares, key=lambda name: shares[name].kept)
        kept, error = (mean(getattr(one, what) for one in shares.values()) for what in Likeness._fields)
        lowest = percent(shares[least].kept)
        return say(
            f"Frobenius norm kept in the file: {percent(kept)} on average, least {lowest} ({least}); error {error:.2%}",
            f"文件保留的 Frobenius 范数：平均 {percent(kept)}，最少 {lowest}（{least}）；误差 {error:.2%}",
        )


def _one(values: list[float] | list[int]) -> str:
    return f"{values[0]:g}" if len({round(value, 4) for value in values}) == 1 else "Dynamic"


def percent(share: float) -> str:
    """In percent, rounded down: 100 % is all of it."""
    return f"{int(share * 10000 + 0.01) / 100:.2f}%"
