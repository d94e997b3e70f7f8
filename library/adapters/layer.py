"""What all kinds of adapters share: how they are hooked into a layer, and their place in flat parameters.

`AdapterLayer` is any of them. `WholeLayer` are those whose update is no product of two thin matrices (LoHa, LoKr,
DoRA): they give the whole matrix dW, which the fast functions of `linear_ops` add to the frozen weight, or use beside
it in half precision. It is as large as the weight, and so never kept: the backward pass makes it again.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from library.adapters import linear_ops
from library.adapters.linear_ops import Kept, Layer
from library.files import seed_from


class AdapterLayer(nn.Module):
    """The update of one layer, hooked into that layer by taking the place of its `forward`.

    Not by a module around it: the model's own names stay what they are, and other adapters can be hooked on top. Moving
    the model does not move the adapter; see `Adapters.to`.

    What is trained lies in flat memory, see `flat_parameters.py`. Of each tensor `x` there are `x_master`, float32,
    which the optimizer changes, and the parameter `x`, the same in the layer's dtype, which the forward pass reads and
    whose gradient is added to.

    Args:
        layer: nn.Linear or nn.Conv2d (groups = 1).
        rank: r, at least 1.
        alpha: the update is scaled by alpha / rank. None or 0: rank.
        start: attribute -> its first value, float32, on any device; see FILE_NAMES.
        module_dropout: share of the steps at which the whole update is skipped.
    """

    FILE_NAMES: dict[str, str]  # attribute -> what its tensor is called in the file, behind the layer's name
    RANK_AXIS: dict[str, int]  # attribute -> in which dimension of its tensor the rank is
    PLUS: str  # the attribute that LoRA+ lets learn faster
    HAS_DROPOUT = False  # of inner values
    can_stack = False  # with others of its shape, for one product

    def __init__(
        self, layer: Layer, rank: int, alpha: float | None, start: dict[str, Tensor], module_dropout: float = 0.0
    ):
        super().__init__()
        self.rank = rank
        self.alpha = float(alpha or rank)
        self.multiplier = 1.0
        self.is_fused = True  # False: the plain functions, for comparison
        self.module_dropout = module_dropout
        self.stack: linear_ops.Stack | None = None  # with others, if `FlatParameters` puts it beside them
        self._layer = [layer]  # in a list: not a submodule, its weights are not ours
        self.kernel = tuple(layer.weight.shape[2:])  # () of a linear layer
        self.attributes = list(start)  # in the order of the file
        for name, value in start.items():
            setattr(self, f"{name}_master", value.to(layer.weight.device))
        self._before = {key: layer.__dict__[key] for key in ("forward", "adapter") if key in layer.__dict__}
        self._base_forward = layer.forward  # the class's, or that of an adapter hooked in before
        self.is_alone = not self._before  # then the fast functions can do both at once
        layer.__dict__["forward"] = self.forward
        layer.__dict__["adapter"] = self  # not as an attribute: it would become a submodule

    def bind(self, masters: list[Tensor], work: list[Tensor], gradients: list[Tensor]) -> None:
        """Take the place in flat memory; each argument has room for every tensor, flat.

        Args:
            masters: what the optimizer changes; gets the present values.
            work: the same in the layer's dtype.
            gradients: like work; gradients are added to it.
        """
        for name, room, of_work, gradient in zip(self.attributes, masters, work, gradients, strict=True):
            own = getattr(self, f"{name}_master")
            room.copy_(own.flatten())
            setattr(self, f"{name}_master", room.view(own.shape))
            if not hasattr(self, name):
                setattr(self, name, nn.Parameter(of_work.view(own.shape)))
            parameter = getattr(self, name)
            parameter.grad = None  # of another device, perhaps
            parameter.data = of_work.view(own.shape)
            parameter.grad = gradient.view(own.shape)

    def masters(self) -> tuple[Tensor, ...]:
        """What is trained, in float32; not copied: the next step changes it."""
        return tuple(getattr(self, f"{name}_master") for name in self.attributes)

    def file_tensors(self) -> dict[str, Tensor]:
        """The same by their names in the file, behind the layer's name."""
        return {self.FILE_NAMES[name]: getattr(self, f"{name}_master") for name in self.attributes}

    @property
    def scale(self) -> float:
        """alpha / rank: what the file's reader multiplies the update by, at strength 1."""
        return self.alpha / self.rank

    def update(self) -> linear_ops.Update | linear_ops.WholeUpdate | None:
        """What is added to the layer in this forward pass, for `linear_ops`; None: nothing."""
        raise NotImplementedError

    def plain_forward(self, x: Tensor) -> Tensor:
        """`forward` by plain functions that autograd differentiates, on whatever the base layer's `forward` is."""
        raise NotImplementedError

    def norm(self) -> Tensor:
        """() Frobenius norm of the update."""
        raise NotImplementedError

    def shrink(self, ratio: Tensor) -> None:
        """Multiply the update by () `ratio`, in (0, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m), or (B, n, H, W) -> (B, m, h, w): the base layer's output with the update added."""
        layer = self._layer[0]
        if not (self.is_fused and self.is_alone and layer.__dict__["adapter"] is self):
            return self.plain_forward(x)
        return linear_ops.convolve(x, layer) if isinstance(layer, nn.Conv2d) else linear_ops.project(x, [layer])[0]

    def is_off(self) -> bool:
        """Whether nothing is added in this forward pass; draws a random number where `module_dropout` is on."""
        # From torch's global streams, as all dropout here: gradient checkpointing restores those, and only those, when
        # it computes a block a second time.
        if self.multiplier == 0:
            return True
        return self.training and self.module_dropout > 0 and float(torch.rand(1)) < self.module_dropout

    @torch.no_grad()
    def limit_norm(self, maximum: float) -> Tensor:
        """Shrink the update to `maximum` where its norm is larger. () bool: was it?"""
        norm = self.norm()
        self.shrink(maximum / norm.clamp(min=maximum))  # 1 where the norm is not too large
        return norm > maximum

    def detach_from_model(self) -> None:
        """Give the layer its own `forward` back."""
        layer = self._layer[0]
        assert layer.forward == self.forward, "adapters hooked in later must be taken off first"
        del layer.forward, layer.__dict__["adapter"]  # the class's `forward` shows again
        layer.__dict__.update(self._before)


class WholeLayer(AdapterLayer):
    """A kind whose update is a whole matrix. It gives `matrix`, `make`, `backward` and `shrink`.

    Args:
        rank_dropout: share of the layer's outputs to which nothing is added, drawn at each step; the rest is scaled up
            to match. So LyCORIS understands the word for these kinds, but for the scaling.
        layer, rank, alpha, start, module_dropout: as in `AdapterLayer`.
    """

    def __init__(
        self,
        layer: Layer,
        rank: int,
        alpha: float | None,
        start: dict[str, Tensor],
        *,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
    ):
        super().__init__(layer, rank, alpha, start, module_dropout)
        self.rank_dropout = rank_dropout

    def matrix(self, *tensors: Tensor) -> Tensor:
        """(m, n k k) the update at strength 1, from `tensors` in the order of `attributes`; for autograd."""
        raise NotImplementedError

    def prepare(self) -> Kept:
        """What a forward and its backward pass both want and is small enough to be kept."""

    def make(self, prepared: Kept) -> tuple[Tensor, Kept]:
        """The matrix in the layer's dtype, in new memory, and what `backward` wants besides."""
        raise NotImplementedError

    def backward(self, gradient: Tensor, kept: Kept) -> None:
        """From the (m, n k k) gradient of the matrix; adds to the gradients of what it is made of."""
        raise NotImplementedError

    def update(self) -> linear_ops.WholeUpdate | None:
        if self.is_off():
            return None
        factor, prepared = self._factor(), self.prepare()

        def make() -> tuple[Tensor, Kept]:
            matrix, kept = self.make(prepared)
            return matrix if factor is None else matrix.mul_(factor), kept

        def backward(gradient: Tensor, kept: Kept) -> None:
            self.backward(gradient if factor is None else gradient.mul_(factor), kept)

        return linear_ops.WholeUpdate(make, backward, getattr(self, self.attributes[0]))

    def _factor(self) -> Tensor | float | None:
        """Of the matrix in this pass: the strength, and what is dropped. None: 1."""
        if not (self.training and self.rank_dropout):
            return None if self.multiplier == 1 else self.multiplier
        rows = getattr(self, self.attributes[0]).new_ones(len(self._layer[0].weight), 1)
        return functional.dropout(rows, self.rank_dropout) * self.multiplier

    def plain_forward(self, x: Tensor) -> Tensor:
        base = self._base_forward(x)
        if self.is_off():
            return base
        factor = self._factor()
        matrix = self.matrix(*(getattr(self, name) for name in self.attributes))
        matrix = matrix if factor is None else matrix * factor
        layer = self._layer[0]
        if not isinstance(layer, nn.Conv2d):
            return base + functional.linear(x, matrix)
        kernel = matrix.view(layer.weight.shape)
        return base + functional.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)

    @torch.no_grad()
    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.matrix(*self.masters()))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Where its gradient is added up: there is such a place once the adapter is bound."""
    assert parameter.grad is not None
    return parameter.grad


def generator_of(seed: int, name: str) -> torch.Generator:
    """Random numbers of one layer: they depend neither on the other layers nor on what was drawn before."""
    return torch.Generator().manual_seed(seed_from(f"{seed} {name}"))


def kaiming(*shape: int, generator: torch.Generator) -> Tensor:
    """Float32, uniform within 1 / sqrt(inputs): what torch gives a linear layer of its own."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
