"""Cheap steps before a layer whose result is not kept for the backward pass but worked out a second time.

Each stands between a tensor that is kept (`source`) and a layer's input: a norm, an activation. Called, it gives the
input; `again` gives it once more in the backward pass, with what its own gradient needs; `backward` turns the input's
gradient into the source's. Each is one or two passes over memory, so doing it twice costs little, while its result
would be kept once for every layer: 37 % of all that SDXL keeps (docs/log.md).

`plain` is the same for autograd: the reference of the tests.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

aten = torch.ops.aten


Kept = Any  # what a step keeps between recomputing and its backward pass: its own


class Recompute(Protocol):
    """A step whose result is not kept."""

    def __call__(self, source: Tensor) -> Tensor:
        """The layer's input."""

    def again(self, source: Tensor) -> tuple[Tensor, Kept]:
        """The layer's input, and what `backward` wants besides."""

    def backward(self, gradient: Tensor, source: Tensor, kept: Kept) -> Tensor:
        """From the gradient of the input to that of the source."""

    def plain(self, source: Tensor) -> Tensor:
        """`__call__` that autograd differentiates."""


class LayerNorm:
    """(..., n) -> (..., n)."""

    def __init__(self, norm: nn.LayerNorm):
        self.norm = norm

    def again(self, source: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        norm = self.norm
        result, mean, rstd = aten.native_layer_norm(source, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return result, (mean, rstd)

    def __call__(self, source: Tensor) -> Tensor:
        return self.again(source)[0]

    def backward(self, gradient: Tensor, source: Tensor, kept: tuple[Tensor, Tensor]) -> Tensor:
        norm = self.norm
        return aten.native_layer_norm_backward(
            gradient, source, norm.normalized_shape, *kept, norm.weight, norm.bias, [True, False, False]
        )[0]

    def plain(self, source: Tensor) -> Tensor:
        return self.norm(source)


class GroupNormSilu:
    """(B, C, H, W) -> (B, C, H, W): the norm and the activation before each convolution."""

    def __init__(self, norm: nn.GroupNorm):
        self.norm = norm

    def again(self, source: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        normed, mean, rstd = _group_norm(self.norm, source)
        return functional.silu(normed), (normed, mean, rstd)

    def __call__(self, source: Tensor) -> Tensor:
        return aten.silu_(_group_norm(self.norm, source)[0])

    def backward(self, gradient: Tensor, source: Tensor, kept: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        normed, mean, rstd = kept
        return _group_norm_backward(self.norm, aten.silu_backward(gradient, normed), source, mean, rstd)

    def plain(self, source: Tensor) -> Tensor:
        return functional.silu(self.norm(source))


class GroupNormTokens:
    """(B, C, H, W) -> (B, H W, C): the norm before a transformer; each place of the image becomes a token."""

    def __init__(self, norm: nn.GroupNorm):
        self.norm = norm

    def again(self, source: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        normed, mean, rstd = _group_norm(self.norm, source)
        return normed.flatten(2).transpose(1, 2), (mean, rstd)

    def __call__(self, source: Tensor) -> Tensor:
        return self.again(source)[0]

    def backward(self, gradient: Tensor, source: Tensor, kept: tuple[Tensor, Tensor]) -> Tensor:
        gradient = gradient.transpose(1, 2).reshape(source.shape)
        return _group_norm_backward(self.norm, gradient, source, *kept)

    def plain(self, source: Tensor) -> Tensor:
        return self.norm(source).flatten(2).transpose(1, 2)


class Geglu:
    """(..., 2 F) -> (..., F): the first half times GELU of the second. Shazeer 2020, arXiv:2002.05202."""

    def again(self, source: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        value, gate = source.chunk(2, dim=-1)
        opened = functional.gelu(gate)
        return value * opened, (value, gate, opened)

    def __call__(self, source: Tensor) -> Tensor:
        value, gate = source.chunk(2, dim=-1)
        return functional.gelu(gate).mul_(value)

    def backward(self, gradient: Tensor, source: Tensor, kept: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        value, gate, opened = kept
        result = torch.empty_like(source)
        of_value, of_gate = result.chunk(2, dim=-1)
        torch.mul(gradient, opened, out=of_value)
        torch.mul(gradient, value, out=opened)  # the gradient of gelu(gate); `opened` is not needed again
        aten.gelu_backward.grad_input(opened, gate, grad_input=of_gate)
        return result

    def plain(self, source: Tensor) -> Tensor:
        value, gate = source.chunk(2, dim=-1)
        return value * functional.gelu(gate)


class Enlarge:
    """(B, C, h, w) -> (B, C, *size), each value repeated: the step before an upsampler's convolution."""

    def __init__(self, size: tuple[int, int]):
        self.size = list(size)

    def again(self, source: Tensor) -> tuple[Tensor, None]:
        return self.plain(source), None

    def __call__(self, source: Tensor) -> Tensor:
        return self.plain(source)

    def backward(self, gradient: Tensor, source: Tensor, kept: None) -> Tensor:
        return aten.upsample_nearest2d_backward(gradient, self.size, list(source.shape))

    def plain(self, source: Tensor) -> Tensor:
        return functional.interpolate(source, size=self.size, mode="nearest")


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    x = x.contiguous()
    return aten.native_group_norm(x, norm.weight, norm.bias, batch, channels, height * width, norm.num_groups, norm.eps)


def _group_norm_backward(norm: nn.GroupNorm, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return aten.native_group_norm_backward(
        gradient.contiguous(), x.contiguous(), mean, rstd, norm.weight, batch, channels, height * width,
        norm.num_groups, [True, False, False],
    )[0]  # fmt: skip
