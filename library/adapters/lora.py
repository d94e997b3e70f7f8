"""LoRA: a layer's update as the product of two thin matrices. Hu et al. 2021, arXiv:2106.09685.

    y = W x + multiplier * alpha / rank * up(down(x))

`down` starts random and `up` at zero, so training starts at the base model exactly. A convolution's `down` keeps its
kernel and `up` is 1x1 (LoCon). Arithmetic follows the base layer's dtype; the optimizer works on float32
(`flat_parameters.py`).
"""

import torch
from torch import Tensor, nn

from library.adapters import linear_ops
from library.adapters.layer import AdapterLayer, generator_of, gradient_of, kaiming
from library.adapters.linear_ops import Layer


class LoraLayer(AdapterLayer):
    """See `AdapterLayer`.

    Args:
        layer: nn.Linear or nn.Conv2d (groups = 1).
        rank: r, at least 1.
        alpha: the update is scaled by alpha / rank. None or 0: rank.
        dropout: share of single inner values that are dropped in training.
        rank_dropout: share of the r inner channels that are dropped, for each sample; the rest is scaled up to match.
        module_dropout: share of the steps at which the whole update is skipped.
        seed: of the initial `down`.
        name: the layer's name in the file; mixed into the seed, so that a layer's start does not depend on which others
            are adapted.
    """

    FILE_NAMES = {"down": "lora_down.weight", "up": "lora_up.weight"}
    RANK_AXIS = {"down": 0, "up": 1}
    PLUS = "up"
    HAS_DROPOUT = True
    can_stack = True

    down: nn.Parameter
    down_master: Tensor
    up: nn.Parameter
    up_master: Tensor

    def __init__(
        self,
        layer: Layer,
        rank: int,
        alpha: float | None = None,
        *,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
        seed: int = 0,
        name: str = "",
    ):
        shape = layer.weight.shape
        start = {
            "down": kaiming(rank, *shape[1:], generator=generator_of(seed, name)),  # (r, n) or (r, n, k, k)
            "up": torch.zeros(shape[0], rank, *[1] * len(shape[2:])),  # (m, r) or (m, r, 1, 1)
        }
        super().__init__(layer, rank, alpha, start, module_dropout)
        self.masks = linear_ops.Masks(dropout, rank_dropout) if dropout or rank_dropout else None

    def update(self) -> linear_ops.Update | None:
        if self.is_off():
            return None
        down, up = self.down, self.up
        return linear_ops.Update(
            down.detach().flatten(1),
            up.detach().flatten(1),
            gradient_of(down).flatten(1),
            gradient_of(up).flatten(1),
            self.multiplier * self.scale,
            down,
            None if self.training and self.module_dropout else self.stack,  # which is skipped as a whole or not at all
            self.masks if self.training else None,
        )

    def plain_forward(self, x: Tensor) -> Tensor:
        base, update = self._base_forward(x), self.update()
        if update is None:
            return base
        layer = self._layer[0]
        if not isinstance(layer, nn.Conv2d):
            mask = update.mask_of.draw(base.new_empty(*base.shape[:-1], self.rank), -1) if update.mask_of else None
            return linear_ops.linear(base, x, self.down, self.up, update.scale, mask)
        mask = update.mask_of.draw(base.new_empty(len(base), self.rank, *base.shape[2:]), 1) if update.mask_of else None
        return linear_ops.conv2d(
            base, x, self.down, self.up, update.scale, mask, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation,
        )  # fmt: skip

    @torch.no_grad()
    def norm(self) -> Tensor:
        """() Frobenius norm of the update, scale * up @ down; without building it: r x r products suffice."""
        down, up = self.down_master.flatten(1), self.up_master.flatten(1)  # (r, n), (m, r)
        squared = ((up.T @ up) * (down @ down.T)).sum()
        return squared.clamp(min=0).sqrt() * self.scale

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        self.down_master *= ratio.sqrt()  # half for each factor
        self.up_master *= ratio.sqrt()
