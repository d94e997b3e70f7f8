"""What LoHa, LoKr and DoRA files add to a layer: a whole matrix, by the formulas of `adapters/loha.py`, `lokr.py` and
`dora.py`, in each form that LyCORIS and OneTrainer write.

    LoHa   scale * (w1_a w1_b) * (w2_a w2_b)                with `hada_t1`, `hada_t2` for convolutions (Tucker)
    LoKr   scale * kron(w1, w2)                             each whole or as a product; with `lokr_t2`
    DoRA   magnitude * (W + D) / norm(W + D) - W            D of any kind; the norm of each input or of each output

To add a kind: a class here, and its parts in `of_parts`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from library.lora_files import low_rank

Parts = Mapping[str, Tensor]  # what stands behind a layer's name -> its tensor
LEAST = 1e-6  # of the largest singular value: what is below is rounding of float32


class LayerUpdate(Protocol):
    """What a file adds to one layer."""

    @property
    def scale(self) -> float:
        """What `thin`'s product is multiplied by."""

    @property
    def rank(self) -> int | None:
        """As trained; None: it has none."""

    @property
    def needs_weight(self) -> bool:
        """Whether the base model's weight decides what is added."""

    def shape(self) -> tuple[int, ...]:
        """Of the update; a kernel of one pixel is left out."""

    def whole_shape(self) -> tuple[int, ...]:
        """The same, with a kernel of one pixel where the file has one."""

    def shaped(self, shape: tuple[int, ...]) -> "LayerUpdate | None":
        """As that of a layer whose weight has this shape; None: it is that of no such layer."""

    def thin(self, device: torch.device | str = "cpu", weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(r, n k k) down and (m, r) up, float32: scale * up @ down is the update."""

    def update(self, device: torch.device | str, weight: Tensor | None = None) -> Tensor:
        """What is added to the base model's `weight` at strength 1, float32, in `shape`."""

    def rows(self, first: int, count: int) -> "LayerUpdate":
        """Of some of the layer's outputs."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Whole:
    """An update that is no product of two thin matrices.

    Args:
        outputs, inputs: m and n, times the kernel's size where `kernel` is not known: LoHa and LoKr files do not tell
            it.
        selected: first and number of the outputs, where a file has several layers in one.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()
    rank: int | None = None
    selected: tuple[int, int] | None = None

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def needs_weight(self) -> bool:
        return False

    def matrix(self, device: torch.device | str, weight: Tensor | None) -> Tensor:
        """(m, n k k), float32."""
        raise NotImplementedError

    def whole_shape(self) -> tuple[int, ...]:
        return (self.selected[1] if self.selected else self.outputs, self.inputs, *self.kernel)

    def shape(self) -> tuple[int, ...]:
        shape = self.whole_shape()
        return shape if set(shape[2:]) - {1} else shape[:2]

    def shaped(self, shape: tuple[int, ...]) -> "Whole | None":
        own = self.whole_shape()
        if own[0] != shape[0] or math.prod(own[1:]) != math.prod(shape[1:]):
            return None
        return replace(self, inputs=shape[1], kernel=tuple(shape[2:]))

    def update(self, device: torch.device | str, weight: Tensor | None = None) -> Tensor:
        matrix = self.matrix(device, weight)
        if self.selected:
            matrix = matrix.narrow(0, *self.selected)
        return matrix.reshape(self.shape())

    def thin(self, device: torch.device | str = "cpu", weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Exact: of as many ranks as are not rounding. Seconds for the largest layers."""
        apart = low_rank.of_matrix(self.update(device, weight).flatten(1))
        down, up = apart.cut(max(1, int((apart.values > LEAST * apart.values.max()).sum())))
        return down.float(), up.float()

    def rows(self, first: int, count: int) -> "Whole":
        return replace(self, selected=(first, count))


class Pair(NamedTuple):
    """A product of a (m, r) and b (r, n k k); with t (r, r, k, k) of a (r, m) and b (r, n)."""

    a: Tensor
    b: Tensor
    t: Tensor | None = None

    def matrix(self, device: torch.device | str) -> Tensor:
        """(m, n k k)."""
        a, b = self.a.to(device, torch.float32), self.b.to(device, torch.float32)
        if self.t is None:
            return a @ b
        return torch.einsum("ijkl,jn,im->mnkl", self.t.to(device, torch.float32), b, a).flatten(1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, n k k), or (m, n, k, k) where the kernel is known."""
        if self.t is None:
            return (len(self.a), self.b.shape[1])
        return (self.a.shape[1], self.b.shape[1], *self.t.shape[2:])

    @property
    def is_whole(self) -> bool:
        """Whether its parts fit one another."""
        if self.a.dim() != 2 or self.b.dim() != 2:
            return False
        if self.t is None:
            return self.a.shape[1] == len(self.b)
        return tuple(self.t.shape[:2]) == (len(self.a), len(self.b))


@dataclass(frozen=True, eq=False, kw_only=True)
class Hadamard(Whole):
    """LoHa."""

    first: Pair
    second: Pair
    factor: float  # alpha / rank

    def matrix(self, device: torch.device | str, weight: Tensor | None) -> Tensor:
        return self.first.matrix(device) * self.second.matrix(device) * self.factor


@dataclass(frozen=True, eq=False, kw_only=True)
class Kronecker(Whole):
    """LoKr."""

    first: Pair | Tensor
    second: Pair | Tensor
    factor: float

    def matrix(self, device: torch.device | str, weight: Tensor | None) -> Tensor:
        first, second = (  # `kron` asks for contiguous ones
            (own.matrix(device) if isinstance(own, Pair) else own.to(device, torch.float32).flatten(1)).contiguous()
            for own in (self.first, self.second)
        )
        return torch.kron(first * self.factor, second)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rescaled(Whole):
    """DoRA."""

    inner: LayerUpdate
    magnitude: Tensor  # (1, n) or (1, n, 1, 1) of inputs, (m, 1), (m, 1, 1, 1) or (m,) of outputs

    @property
    def needs_weight(self) -> bool:
        return True

    def matrix(self, device: torch.device | str, weight: Tensor | None) -> Tensor:
        assert weight is not None, "a DoRA acts by the base model's weights"
        base = weight.to(device, torch.float32).flatten(1)
        turned = base + self.inner.update(device).reshape(base.shape)
        magnitude, tiny = self.magnitude.to(device, torch.float32).flatten(), torch.finfo(torch.float32).tiny
        if self.is_of_outputs:
            factor = magnitude / torch.linalg.vector_norm(turned, dim=1).clamp_(min=tiny)
            return factor[:, None] * turned - base
        columns = turned.view(len(turned), len(magnitude), -1)  # all weights that read one input
        factor = magnitude / torch.linalg.vector_norm(columns, dim=(0, 2)).clamp_(min=tiny)
        return (columns * factor[:, None]).flatten(1) - base

    @property
    def is_of_outputs(self) -> bool:
        """Whether each output has a number of its own: LyCORIS' wd_on_output, peft."""
        return self.magnitude.dim() == 1 or (len(self.magnitude) == self.outputs and self.magnitude.shape[1] == 1)

    def shaped(self, shape: tuple[int, ...]) -> "Whole | None":
        inner = self.inner.shaped(shape)
        if inner is None or self.magnitude.numel() != shape[0 if self.is_of_outputs else 1]:
            return None
        return replace(self, inputs=shape[1], kernel=tuple(shape[2:]), inner=inner)


# ---- Reading ----


def of_parts(parts: Parts) -> Whole | None:
    """What a file has for a layer, of LoHa or LoKr; None: its parts do not fit one another."""
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    if "hada_w1_a" in parts:
        pairs = [_pair(parts, f"hada_w{n}", f"hada_t{n}") for n in (1, 2)]
        first, second = pairs
        if not (isinstance(first, Pair) and isinstance(second, Pair) and first.shape == second.shape):
            return None
        rank = len(first.b)
        outputs, inputs, *kernel = first.shape
        return Hadamard(
            outputs=outputs, inputs=inputs, kernel=tuple(kernel), rank=rank, first=first, second=second,
            factor=1.0 if alpha is None else alpha / rank,
        )  # fmt: skip
    first, second = _pair(parts, "lokr_w1"), _pair(parts, "lokr_w2", "lokr_t2")
    if first is None or second is None or len(first.shape) != 2:
        return None
    ranks = [len(own.b) for own in (first, second) if isinstance(own, Pair)]  # whole ones are not scaled
    outputs, inputs, *kernel = second.shape
    return Kronecker(
        outputs=first.shape[0] * outputs, inputs=first.shape[1] * inputs, kernel=tuple(kernel),
        rank=ranks[-1] if ranks else None, first=first, second=second,
        factor=alpha / ranks[-1] if ranks and alpha is not None else 1.0,
    )  # fmt: skip


def _pair(parts: Parts, name: str, middle: str = "") -> Pair | Tensor | None:
    if (whole := parts.get(name)) is not None:
        return whole if whole.dim() >= 2 else None
    a, b = parts.get(f"{name}_a"), parts.get(f"{name}_b")
    pair = Pair(a, b, parts.get(middle)) if a is not None and b is not None else None
    return pair if pair and pair.is_whole else None


def rescaled(inner: LayerUpdate, magnitude: Tensor) -> Rescaled | None:
    """A DoRA; None: the magnitudes are those of another layer."""
    outputs, inputs, *kernel = inner.whole_shape()
    made = Rescaled(
        outputs=outputs, inputs=inputs, kernel=tuple(kernel), rank=inner.rank, inner=inner, magnitude=magnitude
    )
    fits = magnitude.numel() == outputs if made.is_of_outputs else inputs % magnitude.numel() == 0
    return made if fits and magnitude.dim() in (1, 2, 4) else None
