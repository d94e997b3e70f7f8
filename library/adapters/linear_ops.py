"""The arithmetic of a low-rank update, as functions of tensors: `y = base + scale * up(down(x))`.

These are the plain versions, which autograd differentiates. A faster function stands beside its plain one, takes the
same arguments, and is tested against it, forward and gradients.
"""

from torch import Tensor
from torch.nn import functional


def linear(base: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Add a low-rank update to the output of a linear layer.

    Args:
        base: (..., m) what the layer itself makes of x.
        x: (..., n).
        down: (r, n).
        up: (m, r).
        scale: alpha / r, times the strength at which the adapter is applied.
        mask: broadcasts against (..., r): factors for the r inner values, where dropout is on.

    Returns:
        (..., m) in base's dtype.
    """
    inner = functional.linear(x, down.to(x.dtype))  # fp32 weights follow x; their gradients come back as fp32
    inner = inner * (scale if mask is None else mask * scale)  # on the r inner values, which are fewer than the m outer
    return base + functional.linear(inner, up.to(inner.dtype))


def conv2d(
    base: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
) -> Tensor:
    """The same for a convolution: down has the layer's own kernel, up is 1x1.

    Args:
        base: (B, m, h, w).
        x: (B, n, H, W).
        down: (r, n, k, k).
        up: (m, r, 1, 1).
        scale, mask: as in `linear`; mask broadcasts against (B, r, h, w).
        stride, padding, dilation: the layer's.

    Returns:
        (B, m, h, w) in base's dtype.
    """
    inner = functional.conv2d(x, down.to(x.dtype), stride=stride, padding=padding, dilation=dilation)
    inner = inner * (scale if mask is None else mask * scale)
    return base + functional.conv2d(inner, up.to(inner.dtype))
