"""A running average of the trained weights, which is saved and shown in their place: steadier than the last step's.

    average <- d average + (1 - d) weights        d = min(decay, (1 + step) / (10 + step))

d rises from the start, or the average would hold on to weights that had learned nothing. Source: Polyak and Juditsky
1992, "Acceleration of Stochastic Approximation by Averaging"; the rise is TensorFlow's ExponentialMovingAverage's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """The average of some tensors, in memory of its own as large as they.

    Args:
        tensors: float32; they are to stay the same objects.
        decay: share of the average that stays at each step, below 1.
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float):
        self.tensors, self.decay = list(tensors), decay
        self.values = [tensor.detach().clone() for tensor in self.tensors]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After each step of the optimizer, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for value, tensor in zip(self.values, self.tensors, strict=True):
            value.lerp_(tensor, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the tensors' place."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, tensor in zip(self.values, self.tensors, strict=True):
            kept = tensor.detach().clone()
            tensor.copy_(value)
            value.copy_(kept)

    @torch.no_grad()
    def load(self, values: Sequence[Tensor] | None) -> None:
        """Take over what `values` was in a training state; None: begin anew with the tensors as they are."""
        for value, other in zip(self.values, self.tensors if values is None else values, strict=True):
            value.copy_(other)
