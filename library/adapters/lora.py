"""LoRA: a layer's update as the product of two thin matrices. Hu et al. 2021, arXiv:2106.09685.

    y = W x + multiplier * alpha / rank * up(down(x))

`down` starts random and `up` at zero, so training starts at the base model exactly. A convolution's `down` keeps its
kernel and `up` is 1x1. Masters are float32; arithmetic follows the base layer.
"""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        self.dropout, self.rank_dropout, self.module_dropout = dropout, rank_dropout, module_dropout
        self._layer = [layer]  # in a list: not a submodule, its weights are not ours
        device = layer.weight.device
        self.down = nn.Parameter(_initial_down(rank, layer.weight, seed, name).to(device))
        outputs, kernel_dims = layer.weight.shape[0], layer.weight.dim() - 2
        self.up = nn.Parameter(torch.zeros(outputs, rank, *[1] * kernel_dims, device=device))
        self._convolution = (
            dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation) if kernel_dims else None
        )
        self._base_forward = layer.forward  # the class's, or that of an adapter hooked in before
        layer.forward = self.forward

    @property
    def scale(self) -> float:
        """alpha / rank: what the file's reader multiplies up @ down by, at strength 1."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m), or (B, n, H, W) -> (B, m, h, w): the base layer's output with the update added."""
        base = self._base_forward(x)
        if self.multiplier == 0 or (self.training and self._is_skipped()):
            return base
        mask = self._mask(base) if self.training else None
        scale = self.multiplier * self.scale
        if self._convolution:
            return linear_ops.conv2d(base, x, self.down, self.up, scale, mask, **self._convolution)
        return linear_ops.linear(base, x, self.down, self.up, scale, mask)

    def _is_skipped(self) -> bool:
        # Drawn from torch's global streams, as all dropout here: gradient checkpointing restores those, and only those,
        # when it computes a block a second time.
        return self.module_dropout > 0 and float(torch.rand(1)) < self.module_dropout

    def _mask(self, base: Tensor) -> Tensor | None:
        """Factors for the inner values, (..., r) or (B, r, h, w) like base; None where nothing is dropped."""
        channel_dim = 1 if self._convolution else base.dim() - 1
        shape = list(base.shape)
        shape[channel_dim] = self.rank
        mask = None
        if self.dropout:
            mask = functional.dropout(base.new_ones(shape), self.dropout)
        if self.rank_dropout:
            per_sample = [size if dim in (0, channel_dim) else 1 for dim, size in enumerate(shape)]
            channels = functional.dropout(base.new_ones(per_sample), self.rank_dropout)
            mask = channels if mask is None else mask * channels
        return mask

    @torch.no_grad()
    def norm(self) -> Tensor:
        """() Frobenius norm of the update, scale * up @ down; without building it: r x r products suffice."""
        down, up = self.down.flatten(1), self.up.flatten(1)  # (r, n), (m, r)
        squared = ((up.T @ up) * (down @ down.T)).sum()
        return squared.clamp(min=0).sqrt() * self.scale

    @torch.no_grad()
    def limit_norm(self, maximum: float) -> Tensor:
        """Shrink the update to `maximum` where its norm is larger. () bool: was it?"""
        norm = self.norm()
        ratio = (maximum / norm.clamp(min=maximum)).sqrt()  # 1 where the norm is not too large; half for each factor
        self.down *= ratio
        self.up *= ratio
        return norm > maximum

    def detach_from_model(self) -> None:
        """Give the layer its own `forward` back."""
        layer = self._layer[0]
        assert layer.forward == self.forward, "adapters hooked in later must be taken off first"
        if self._base_forward == type(layer).forward.__get__(layer):
            del layer.forward  # the class's shows again
        else:
            layer.forward = self._base_forward


def _initial_down(rank: int, weight: Tensor, seed: int, name: str) -> Tensor:
    """(r, n) or (r, n, k, k) float32, uniform within 1 / sqrt(inputs): what torch gives a linear layer of its own."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    down = torch.empty(rank, *weight.shape[1:])
    return nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
