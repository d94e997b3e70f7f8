"""LoRA: a layer's update as the product of two thin matrices. Hu et al. 2021, arXiv:2106.09685.

    y = W x + multiplier * alpha / rank * up(down(x))

`down` starts random and `up` at zero, so training starts at the base model exactly. A convolution's `down` keeps its
kernel and `up` is 1x1. Arithmetic follows the base layer's dtype; the optimizer works on float32 (`arena.py`).
"""

import hashlib
import math

import torch
from torch import Tensor, nn

from library.adapters import linear_ops


class LoraLayer(nn.Module):
    """The update of one layer, hooked into that layer by taking the place of its `forward`.

    Not by a module around it: the model's own names stay what they are, and other adapters can be hooked on top. Moving
    the model does not move the adapter; see `Adapters.to`.

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

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        alpha: float | None = None,
        *,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
        seed: int = 0,
        name: str = "",
    ):
        super().__init__()
        self.rank = rank
        self.alpha = float(alpha or rank)
        self.multiplier = 1.0
        self.is_fused = True  # False: the plain functions, for comparison
        self.masks = linear_ops.Masks(dropout, rank_dropout) if dropout or rank_dropout else None
        self.module_dropout = module_dropout
        self._layer = [layer]  # in a list: not a submodule, its weights are not ours
        weight = layer.weight
        self.kernel = tuple(weight.shape[2:])  # () of a linear layer
        self.down_master = _initial_down(rank, weight, seed, name).to(weight.device)  # (r, n) or (r, n, k, k) float32
        self.up_master = torch.zeros(len(weight), rank, *[1] * len(self.kernel), device=weight.device)
        self.stack = None  # with other layers, if the arena puts it beside them
        self._before = {key: layer.__dict__[key] for key in ("forward", "adapter") if key in layer.__dict__}
        self._base_forward = layer.forward  # the class's, or that of an adapter hooked in before
        self.is_low_rank = not self._before  # and nothing else: then the fast functions can do both at once
        layer.forward = self.forward
        layer.__dict__["adapter"] = self  # not as an attribute: it would become a submodule

    def bind(self, masters: list[Tensor], work: list[Tensor], gradients: list[Tensor]) -> None:
        """Take the place in an arena; each argument has room for `down` and for `up`, flat.

        Args:
            masters: what the optimizer changes; gets the present values.
            work: the same in the layer's dtype.
            gradients: like work; gradients are added to it.
        """
        shapes = (self.down_master.shape, self.up_master.shape)
        for room, own in zip(masters, (self.down_master, self.up_master), strict=True):
            room.copy_(own.flatten())
        self.down_master, self.up_master = (room.view(shape) for room, shape in zip(masters, shapes, strict=True))
        if not hasattr(self, "down"):
            self.down, self.up = (nn.Parameter(room.view(shape)) for room, shape in zip(work, shapes, strict=True))
        for own, room, gradient in zip((self.down, self.up), work, gradients, strict=True):
            own.grad = None  # of another device, perhaps
            own.data = room.view(own.shape)
            own.grad = gradient.view(own.shape)

    def masters(self) -> tuple[Tensor, Tensor]:
        """`down` and `up` in float32; not copied: the next step changes them."""
        return self.down_master, self.up_master

    @property
    def scale(self) -> float:
        """alpha / rank: what the file's reader multiplies up @ down by, at strength 1."""
        return self.alpha / self.rank

    def update(self) -> linear_ops.Update | None:
        """What is added to the layer in this forward pass; None: nothing."""
        if self.multiplier == 0 or (self.training and self._is_skipped()):
            return None
        down, up = self.down, self.up
        return linear_ops.Update(
            down.detach().flatten(1),
            up.detach().flatten(1),
            down.grad.flatten(1),
            up.grad.flatten(1),
            self.multiplier * self.scale,
            down,
            None if self.training and self.module_dropout else self.stack,  # which is skipped as a whole or not at all
            self.masks if self.training else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m), or (B, n, H, W) -> (B, m, h, w): the base layer's output with the update added."""
        layer = self._layer[0]
        if not (self.is_fused and self.is_low_rank and layer.__dict__["adapter"] is self):
            return self.plain_forward(x)
        return linear_ops.convolve(x, layer) if self.kernel else linear_ops.project(x, [layer])[0]

    def plain_forward(self, x: Tensor) -> Tensor:
        """The same by plain functions that autograd differentiates, on whatever the base layer's `forward` is."""
        base, update = self._base_forward(x), self.update()
        if update is None:
            return base
        if not self.kernel:
            mask = update.mask_of.draw(base.new_empty(*base.shape[:-1], self.rank), -1) if update.mask_of else None
            return linear_ops.linear(base, x, self.down, self.up, update.scale, mask)
        mask = update.mask_of.draw(base.new_empty(len(base), self.rank, *base.shape[2:]), 1) if update.mask_of else None
        layer = self._layer[0]
        place = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
        return linear_ops.conv2d(base, x, self.down, self.up, update.scale, mask, **place)

    def _is_skipped(self) -> bool:
        # Drawn from torch's global streams, as all dropout here: gradient checkpointing restores those, and only those,
        # when it computes a block a second time.
        return self.module_dropout > 0 and float(torch.rand(1)) < self.module_dropout

    @torch.no_grad()
    def norm(self) -> Tensor:
        """() Frobenius norm of the update, scale * up @ down; without building it: r x r products suffice."""
        down, up = self.down_master.flatten(1), self.up_master.flatten(1)  # (r, n), (m, r)
        squared = ((up.T @ up) * (down @ down.T)).sum()
        return squared.clamp(min=0).sqrt() * self.scale

    @torch.no_grad()
    def limit_norm(self, maximum: float) -> Tensor:
        """Shrink the update to `maximum` where its norm is larger. () bool: was it?"""
        norm = self.norm()
        ratio = (maximum / norm.clamp(min=maximum)).sqrt()  # 1 where the norm is not too large; half for each factor
        self.down_master *= ratio
        self.up_master *= ratio
        return norm > maximum

    def detach_from_model(self) -> None:
        """Give the layer its own `forward` back."""
        layer = self._layer[0]
        assert layer.forward == self.forward, "adapters hooked in later must be taken off first"
        del layer.forward, layer.__dict__["adapter"]  # the class's `forward` shows again
        layer.__dict__.update(self._before)


def _initial_down(rank: int, weight: Tensor, seed: int, name: str) -> Tensor:
    """(r, n) or (r, n, k, k) float32, uniform within 1 / sqrt(inputs): what torch gives a linear layer of its own."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    down = torch.empty(rank, *weight.shape[1:])
    return nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
