"""Frozen layers with their updates, `y = W x + b + scale * up(down(x))`: the plain way and the fast way.

The plain functions, `linear` and `conv2d`, say what is computed; autograd differentiates them. The fast ones do the
same with fewer passes over memory and keep less for the backward pass:

    the update is added to the layer's output in place (addmm), its scale folded in
    nothing is kept but the input, or what it can be recomputed from (`recompute.py`), and the r inner values
    gradients of down and up are added to where the optimizer reads them; autograd never sees them
    layers that share an input share the product with their stacked `down`; the captions' key and value layers of the
      whole U-Net are one batch of products
    a frozen convolution keeps nothing of its own: the gradient of its input follows from its weight alone

Per layer that is 6 operators beyond the frozen layer's own, forward and backward, instead of 14 (docs/log.md).

Kinds whose update is a whole matrix dW (`WholeUpdate`) share the same functions: dW is added to the weight, in half
precision used beside it, and made again in the backward pass, which takes its gradient in one product.

FAST and PLAIN hold the same three functions, so that a model's forward pass can be run with either.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from library.adapters.recompute import Recompute
from library.contracts import Operations

aten = torch.ops.aten

Layer = nn.Linear | nn.Conv2d
AutogradContext = Any  # whatever a function sets on it
Kept = Any  # what a kind of update keeps between making its matrix and the backward pass: its own


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
    inner = functional.linear(x, down)
    inner = inner * (scale if mask is None else mask * scale)  # on the r inner values, which are fewer than the m outer
    return base + functional.linear(inner, up)


def conv2d(
    base: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
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
    inner = functional.conv2d(x, down, stride=stride, padding=padding, dilation=dilation)
    inner = inner * (scale if mask is None else mask * scale)
    return base + functional.conv2d(inner, up)


class Update(NamedTuple):
    """The low-rank update of one layer for one forward pass, in the layer's dtype; matrices for convolutions, too."""

    down: Tensor  # (r, n), or (r, n k k)
    up: Tensor  # (m, r)
    down_grad: Tensor  # like down: the gradient is added to it
    up_grad: Tensor
    scale: float
    leaf: Tensor  # any tensor that asks for gradients, so that autograd comes by
    stack: "Stack | None" = None
    mask_of: "Masks | None" = None  # draws dropout masks; None: no dropout


class Masks(NamedTuple):
    """Dropout of the r inner values."""

    dropout: float  # of single values
    rank_dropout: float  # of whole channels, for each sample

    def draw(self, inner: Tensor, channel_dim: int) -> Tensor:
        """Factors that broadcast against `inner`: 0 or what makes up for the dropped ones."""
        mask: Tensor | None = functional.dropout(inner.new_ones(inner.shape), self.dropout) if self.dropout else None
        if self.rank_dropout:
            shape = [size if dim in (0, channel_dim % inner.dim()) else 1 for dim, size in enumerate(inner.shape)]
            channels = functional.dropout(inner.new_ones(shape), self.rank_dropout)
            mask = channels if mask is None else mask * channels
        assert mask is not None, "there is such an object only where something is dropped"
        return mask


class Stack(NamedTuple):
    """Updates of L layers of one shape that share an input, side by side in memory."""

    layers: list[Layer]
    down: Tensor  # (L r, n)
    up: Tensor  # (L, m, r)
    down_grad: Tensor
    up_grad: Tensor


class WholeUpdate(NamedTuple):
    """An update that is no product of two thin matrices, for one forward pass; matrices for convolutions, too."""

    make: Callable[[], tuple[Tensor, Kept]]  # (m, n k k) dW in the layer's dtype, and what `backward` wants besides
    backward: Callable[[Tensor, Kept], None]  # from the gradient of dW, which it may overwrite, to what dW is made of
    leaf: Tensor  # any tensor that asks for gradients, so that autograd comes by
    stack: None = None


def update_of(layer: Layer) -> Update | WholeUpdate | None:
    """What an adapter adds to this layer now; None: nothing."""
    adapter = layer.__dict__.get("adapter")
    return None if adapter is None else adapter.update()


def _is_unusual(layer: Layer) -> bool:
    """Whether something else has taken the place of the layer's `forward`: then it must be asked."""
    adapter = layer.__dict__.get("adapter")
    return "forward" in layer.__dict__ and not (adapter and adapter.is_alone)


# ---------------------------------------------------------------------------------------------------------------------


def project(source: Tensor, layers: Sequence[Layer], recompute: Recompute | None = None) -> list[Tensor]:
    """Linear layers (or 1x1 convolutions, on tokens) of one input, with their updates.

    Args:
        source: (B, T, n) the layers' input, or what `recompute` makes it from.

    Returns:
        (B, T, m) for each layer.
    """
    if any(_is_unusual(layer) for layer in layers):
        return plain_project(source, layers, recompute)
    updates = [update_of(layer) for layer in layers]
    leaf = next((update.leaf for update in updates if update), None)
    return list(_Project.apply(source, recompute, layers, updates, leaf))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext,
        source: Tensor,
        recompute: Recompute | None,
        layers: Sequence[Layer],
        updates: Sequence[Update | WholeUpdate | None],
        leaf: Tensor | None,
    ) -> tuple[Tensor, ...]:
        x = source if recompute is None else recompute(source)
        rows = x.flatten(0, -2)  # (N, n)
        stack = _common_stack(layers, updates)
        first = updates[0]
        if isinstance(first, Update) and _order_of(first, frozen_matrix(layers[0]), rows) != THIN:
            stack = None
        inner = rows @ stack.down.T if stack else None  # (N, L r)
        inners, masks, outputs = [], [], []
        for index, (layer, update) in enumerate(zip(layers, updates, strict=True)):
            weight, h, mask, beside = frozen_matrix(layer), None, None, None
            order = None
            if isinstance(update, WholeUpdate):
                weight, beside = _with(update.make()[0], weight)
            elif update:
                order = _order_of(update, weight, rows)
                if order.merges_forward:
                    weight = torch.addmm(weight, update.up, update.down, alpha=update.scale)
                else:
                    rank = len(update.down)
                    part = slice(index * rank, (index + 1) * rank)
                    h = rows @ update.down.T if inner is None else inner[:, part]
                    if update.mask_of:
                        h = h.unflatten(0, x.shape[:-1])
                        mask = update.mask_of.draw(h, -1).expand_as(h).flatten(0, -2)
                        h = h.flatten(0, -2) * mask
            y = rows @ weight.T if layer.bias is None else torch.addmm(layer.bias, rows, weight.T)
            if h is not None and isinstance(update, Update):
                y.addmm_(h, update.up.T, alpha=update.scale)
            if beside is not None:
                y.addmm_(rows, beside.T)
            outputs.append(y.unflatten(0, x.shape[:-1]))
            is_whole = stack is not None and mask is None  # then `inner` is kept in one piece
            inners.append(None if is_whole or (order and order.is_dense) else h)
            masks.append(mask)
        ctx.recompute, ctx.layers, ctx.updates, ctx.stack = recompute, layers, updates, stack
        ctx.shape, ctx.leading = source.shape, x.shape[:-1]
        needs_source = leaf is not None or recompute is not None
        inner = inner if inners[0] is None else None
        ctx.save_for_backward(source if needs_source else None, inner, *inners, *masks)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, inner, *rest = ctx.saved_tensors
        count = len(ctx.layers)
        inners, masks = rest[:count], rest[count:]
        recompute, stack = ctx.recompute, ctx.stack
        wants_input = ctx.needs_input_grad[0]
        x, kept = (source, None) if recompute is None else recompute.again(source)
        rows: Any = None if x is None else x.flatten(0, -2)  # None: no layer has an update, and nobody asks for them

        result: Tensor | None = None  # (N, n) gradient of the rows
        spread = rows.new_empty(len(rows), len(stack.down)) if stack else None  # (N, L r) gradient of the inner values
        for index, (layer, update, gradient) in enumerate(zip(ctx.layers, ctx.updates, gradients, strict=True)):
            gradient = gradient.flatten(0, -2)
            weight, beside = frozen_matrix(layer), None
            order = _order_of(update, weight, rows) if isinstance(update, Update) else None
            if isinstance(update, WholeUpdate):
                matrix, kept_of_update = update.make()
                update.backward(gradient.T @ rows, kept_of_update)
                if wants_input:
                    weight, beside = _with(matrix, weight)
            if order and order.merges_backward and wants_input:
                merged = torch.addmm(weight, update.up, update.down, alpha=update.scale)
                result = _with_product(result, gradient, merged)
            elif wants_input:
                result = _with_product(result, gradient, weight)
                if beside is not None:
                    result = _with_product(result, gradient, beside)
            if order is None:
                continue
            if order.is_dense:
                whole = gradient.T @ rows  # (m, n) the gradient of the whole weight
                update.down_grad.addmm_(update.up.T, whole, alpha=update.scale)
                update.up_grad.addmm_(whole, update.down.T, alpha=update.scale)
                if wants_input and not order.merges_backward:
                    result = _with_product(result, gradient @ update.up, update.down, update.scale)
                continue
            rank = len(update.down)
            part = slice(index * rank, (index + 1) * rank)
            h, mask = inners[index], masks[index]
            if h is None:
                h = inner[:, part] if stack else rows @ update.down.T
            z = rows.new_empty(len(rows), rank) if spread is None else spread[:, part]
            torch.addmm(z, gradient, update.up, beta=0, alpha=update.scale, out=z)
            if mask is not None:
                z.mul_(mask)
            update.up_grad.addmm_(gradient.T, h, alpha=update.scale)
            if not stack:
                update.down_grad.addmm_(z.T, rows)
                if wants_input and not order.merges_backward:
                    result = _with_product(result, z, update.down)
        if stack and spread is not None:
            stack.down_grad.addmm_(spread.T, rows)
            if wants_input:
                result = _with_product(result, spread, stack.down)
        if result is None:
            return (None,) * 5
        result = result.unflatten(0, ctx.leading)
        if recompute is not None:
            result = recompute.backward(result, source, kept)
        return result.view(ctx.shape), None, None, None, None


def _with_product(total: Tensor | None, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """total + scale * a @ b, in place; None counts as 0."""
    if total is not None:
        return total.addmm_(a, b, alpha=scale)
    return a @ b if scale == 1.0 else (a @ b).mul_(scale)


class Order(NamedTuple):
    """In which order the three matrices of a layer are multiplied."""

    merges_forward: bool  # x (W + scale up down)
    merges_backward: bool  # the same for the gradient of x
    is_dense: bool  # gradients of down and up by way of that of the whole weight


@lru_cache(maxsize=4096)
def best_order(tokens: int, n: int, m: int, rank: int, *, may_merge: bool) -> Order:
    """The order with the fewest multiplications.

    Args:
        may_merge: W + scale up down is exact enough: only in float32 and float64. In half precision the rounding of the
            sum swallows most of a small update (21 % of it at 1/1000 of W in fp16, 80 % in bf16).

    Source: the costs are those of Cherniuk et al. 2023, "Run LoRA Run", arXiv:2312.03415, without their assumption that
        inner values are never kept.
    """
    thin = tokens * rank  # of a product with one of the thin matrices, per row or column of W
    merge = rank * n * m
    forward = {False: thin * (n + m), True: merge} if may_merge else {False: thin * (n + m)}
    merges_forward = min(forward, key=lambda merges: forward[merges])
    again = thin * n if merges_forward else 0  # the inner values were not made in the forward pass
    backward = {
        (False, False): thin * (2 * n + 2 * m) + again,
        (False, True): tokens * n * m + 2 * merge + thin * (n + m),
    }
    if may_merge:
        backward[True, False] = thin * (n + 2 * m) + again + merge
        backward[True, True] = tokens * n * m + 3 * merge
    return Order(merges_forward, *min(backward, key=lambda order: backward[order]))


THIN = Order(False, False, False)


def _order_of(update: Update, weight: Tensor, rows: Tensor) -> Order:
    if update.mask_of:
        return THIN
    return best_order(len(rows), weight.shape[1], weight.shape[0], len(update.down), may_merge=_may_merge(weight))


def _may_merge(weight: Tensor) -> bool:
    return weight.dtype in (torch.float32, torch.float64)


def _with(matrix: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight with dW in it; where that would round too much: the weight, and dW to be used beside it."""
    return (matrix.add_(weight), None) if _may_merge(weight) else (weight, matrix)


def _common_stack(layers: Sequence[Layer], updates: Sequence[Update | WholeUpdate | None]) -> Stack | None:
    """The stack that holds the updates of these layers and no others, if it pays to use it."""
    stack = updates[0].stack if updates[0] else None
    if stack is None or len(stack.layers) != len(layers) or len(layers) == 1:
        return None
    if None in updates or any(a is not b for a, b in zip(stack.layers, layers, strict=True)):
        return None
    return stack


def frozen_matrix(layer: Layer) -> Tensor:
    """(m, n) the frozen weight of a linear layer or a 1x1 convolution; unpacked where it is held in 8 bits.

    In the backward pass it is unpacked once more: kept, it would take the memory that the 8 bits have saved.
    """
    weight = layer.weight.flatten(1)
    return weight if weight.is_floating_point() else weight * _scale_of_int8(layer)


def dtype_of(layer: Layer) -> torch.dtype:
    """In which a layer computes."""
    return layer.weight.dtype if layer.weight.is_floating_point() else _scale_of_int8(layer).dtype


def _scale_of_int8(layer: Layer) -> Tensor:
    """(m, 1) what the 8 bits are multiplied by; `memory.to_int8` hangs it into the layer."""
    return cast(Tensor, layer.weight_scale)


# ---------------------------------------------------------------------------------------------------------------------


def project_context(context: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Many linear layers of one input, the captions' states: one product for all updates of one shape.

    Args:
        context: (B, S, n).

    Returns:
        (B, S, m) for each layer.
    """
    found: dict[Layer, Tensor] = {}
    for layer in layers:
        if layer in found:
            continue
        if _is_unusual(layer):
            found[layer] = plain_project(context, [layer])[0]
            continue
        update = update_of(layer)  # once: it may draw a random number
        stack = update.stack if update else None
        if update and stack and set(stack.layers) <= set(layers) and not any(map(_is_unusual, stack.layers)):
            whole = _ProjectStack.apply(context, stack, update, update.leaf)
            found.update(zip(stack.layers, whole.unbind(0), strict=True))
        else:
            found[layer] = _Project.apply(context, None, [layer], [update], update.leaf if update else None)[0]
    return [found[layer] for layer in layers]


class _ProjectStack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: AutogradContext, context: Tensor, stack: Stack, update: Update, leaf: Tensor) -> Tensor:
        rows = context.flatten(0, -2)
        count, outputs, rank = stack.up.shape
        result = rows.new_empty(count, len(rows), outputs)
        for layer, own in zip(stack.layers, result, strict=True):
            if layer.bias is None:
                torch.mm(rows, frozen_matrix(layer).T, out=own)
            else:
                torch.addmm(layer.bias, rows, frozen_matrix(layer).T, out=own)
        inner = (rows @ stack.down.T).unflatten(1, (count, rank)).transpose(0, 1)  # (L, N, r)
        mask = None
        if update.mask_of:
            shaped = inner.new_empty(count * len(context), *context.shape[1:-1], rank)  # each layer has its own masks
            mask = update.mask_of.draw(shaped, -1).expand_as(shaped).reshape(inner.shape)
            inner = inner * mask
        result.baddbmm_(inner, stack.up.transpose(1, 2), alpha=update.scale)
        ctx.stack, ctx.scale = stack, update.scale
        ctx.save_for_backward(context, inner, mask)
        return result.unflatten(1, context.shape[:-1])

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        context, inner, mask = ctx.saved_tensors
        stack, rows = ctx.stack, context.flatten(0, -2)
        gradient = gradient.flatten(1, -2)  # (L, N, m)
        spread = torch.bmm(gradient, stack.up)  # (L, N, r)
        spread.mul_(ctx.scale if mask is None else mask * ctx.scale)
        stack.up_grad.baddbmm_(gradient.transpose(1, 2), inner, alpha=ctx.scale)
        spread = spread.transpose(0, 1).flatten(1)  # (N, L r)
        stack.down_grad.addmm_(spread.T, rows)
        result = None
        if ctx.needs_input_grad[0]:
            result = spread @ stack.down
            for layer, own in zip(stack.layers, gradient, strict=True):
                result.addmm_(own, frozen_matrix(layer))
            result = result.view_as(context)
        return result, None, None, None


# ---------------------------------------------------------------------------------------------------------------------


def convolve(
    source: Tensor, layer: nn.Conv2d, recompute: Recompute | None = None, shift: Tensor | None = None
) -> Tensor:
    """A convolution with its update.

    Args:
        source: (B, n, H, W) its input, or what `recompute` makes it from.
        shift: (B, m) is added to every place.

    Returns:
        (B, m, h, w).
    """
    if _is_unusual(layer):
        return plain_convolve(source, layer, recompute, shift)
    update = update_of(layer)
    return _Convolve.apply(source, shift, recompute, layer, update, update.leaf if update else None)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: AutogradContext,
        source: Tensor,
        shift: Tensor | None,
        recompute: Recompute | None,
        layer: nn.Conv2d,
        update: Update | WholeUpdate | None,
        leaf: Tensor | None,
    ) -> Tensor:
        x = source if recompute is None else recompute(source)
        weight, beside = layer.weight, None
        if isinstance(update, WholeUpdate):
            weight, beside = _with(update.make()[0].view(weight.shape), weight)
        if layer.bias is not None and _is_better_unfolded(layer, x):
            y = weight.flatten(1) @ functional.unfold(x, layer.kernel_size, padding=(1, 1))
            y = y.add_(layer.bias[:, None]).unflatten(2, x.shape[2:])
        else:
            y = functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation)
        if beside is not None:
            y.add_(functional.conv2d(x, beside, None, layer.stride, layer.padding, layer.dilation))
        inner = mask = None
        if isinstance(update, Update):
            inner = functional.conv2d(x, _kernel(update, layer), None, layer.stride, layer.padding, layer.dilation)
            if update.mask_of:
                mask = update.mask_of.draw(inner, 1)
                inner = inner * mask
            y.view(*y.shape[:2], -1).baddbmm_(_for_each(inner, update.up), inner.flatten(2), alpha=update.scale)
        if shift is not None:
            y.add_(shift[:, :, None, None])
        ctx.recompute, ctx.layer, ctx.update, ctx.shape = recompute, layer, update, x.shape
        ctx.save_for_backward(source if update or recompute is not None else None, inner, mask)
        return y

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        source, inner, mask = ctx.saved_tensors
        recompute, layer, update = ctx.recompute, ctx.layer, ctx.update
        wants_input, wants_shift = ctx.needs_input_grad[:2]
        x, kept = (source, None) if recompute is None else recompute.again(source)
        if x is None:  # only its shape is asked for
            x = gradient if gradient.shape == ctx.shape else gradient.new_empty(1).expand(ctx.shape)
        result = None
        if isinstance(update, WholeUpdate):
            result = _whole_backward(gradient, x, layer, update, wants_input)
        elif wants_input and _is_better_unfolded(layer, x):
            columns = layer.weight.flatten(1).T @ gradient.flatten(2)
            result = functional.fold(columns, x.shape[2:], layer.kernel_size, padding=(1, 1))
        elif wants_input:
            result = _conv_backward(gradient, x, layer.weight, layer, (True, False))[0]
        if isinstance(update, Update):
            places = gradient.flatten(2)  # (B, m, h w)
            update.up_grad.addbmm_(places, inner.flatten(2).mT, alpha=update.scale)
            nothing = places.new_empty(1, 1, 1)
            of_inner = torch.baddbmm(nothing, _for_each(inner, update.up.T), places, beta=0, alpha=update.scale)
            of_inner = of_inner.view(inner.shape) if mask is None else of_inner.view(inner.shape).mul_(mask)
            of_x, of_down = _conv_backward(of_inner, x, _kernel(update, layer), layer, (wants_input, True))
            update.down_grad.add_(of_down.flatten(1))
            if result is not None:
                result.add_(of_x)
        if wants_input and recompute is not None:
            result = recompute.backward(result, source, kept)
        return result, gradient.sum((2, 3)) if wants_shift else None, None, None, None, None


def _whole_backward(
    gradient: Tensor, x: Tensor, layer: nn.Conv2d, update: WholeUpdate, wants_input: bool
) -> Tensor | None:
    """The gradient of the input, of the weight and dW together; that of dW is handed on."""
    matrix, kept = update.make()
    weight, beside = _with(matrix.view(layer.weight.shape), layer.weight)
    result, of_matrix = _conv_backward(gradient, x, weight if beside is None else beside, layer, (wants_input, True))
    update.backward(of_matrix.flatten(1), kept)
    if wants_input and beside is not None:
        result.add_(_conv_backward(gradient, x, weight, layer, (True, False))[0])
    return result


FEW_PLACES, LARGE_WEIGHT = 64, 2**23


def _is_better_unfolded(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether a convolution of fp32 on the CPU is one matrix product rather.

    oneDNN lays the weights out anew at each use. Where they are many and the places of the image few, that takes
    longer than the convolution: unfolded, those of 1280 channels at 8 x 8 take half the time (docs/log.md).
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) * x.shape[2] * x.shape[3] <= FEW_PLACES
        and layer.weight.numel() > LARGE_WEIGHT
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding == (1, 1)
        and layer.bias is not None
    )


def _for_each(batch: Tensor, matrix: Tensor) -> Tensor:
    """(B, ...), (m, r) -> (B, m, r), not copied."""
    return matrix.expand(len(batch), *matrix.shape)


def _kernel(update: Update, layer: nn.Conv2d) -> Tensor:
    """(r, n, k, k) the update's `down` as a convolution."""
    return update.down.unflatten(1, layer.weight.shape[1:])


def _conv_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, layer: nn.Conv2d, wanted: tuple[bool, bool]
) -> Sequence[Any]:
    """Gradients of the input and of the weight, each None where it is not wanted: then of x only the shape is used."""
    return aten.convolution_backward(
        gradient, x, weight, None, list(layer.stride), list(layer.padding), list(layer.dilation), False, [0, 0], 1,
        [*wanted, False],
    )[:2]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------


def plain_project(source: Tensor, layers: Sequence[Layer], recompute: Recompute | None = None) -> list[Tensor]:
    """`project` by the layers' own `forward`, for autograd."""
    x = source if recompute is None else recompute.plain(source)
    if isinstance(layers[0], nn.Conv2d):  # tokens to places of an image one token wide, and back
        return [layer(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2) for layer in layers]
    return [layer(x) for layer in layers]


def plain_project_context(context: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """`project_context` by the layers' own `forward`, for autograd."""
    return [layer(context) for layer in layers]


def plain_convolve(
    source: Tensor, layer: nn.Conv2d, recompute: Recompute | None = None, shift: Tensor | None = None
) -> Tensor:
    """`convolve` by the layer's own `forward`, for autograd."""
    y = layer(source if recompute is None else recompute.plain(source))
    return y if shift is None else y + shift[:, :, None, None]


FAST = Operations(project, project_context, convolve)
PLAIN = Operations(plain_project, plain_project_context, plain_convolve)
