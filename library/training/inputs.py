"""What the network is shown in one pass, and where its random numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from library.files import seed_from

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.contracts import Conditioning


@dataclass
class Inputs:
    """What the network is shown in one pass and what it should answer, on the device."""

    noisy: Tensor  # (B, C, h, w) float32
    t: Tensor  # (B,) timesteps
    target: Tensor  # (B, C, h, w) float32
    mask: Tensor | None  # (B, 1, h, w) float32, how much each place is learnt; None: all is
    huber_c: Tensor | None  # (B,) where the loss turns from quadratic to linear
    weights: Tensor  # (B,) of the losses
    text_embeddings: Conditioning | None  # None: the captions are encoded in the pass
    size_conditioning: Conditioning
    captions: list[str]

    def split(self, count: int) -> Iterator[Inputs]:
        """The same in at most so many parts."""
        if count == 1:
            yield self
            return
        size = -(-len(self.noisy) // count)
        for at in range(0, len(self.noisy), size):
            part = slice(at, at + size)
            yield Inputs(
                self.noisy[part],
                self.t[part],
                self.target[part],
                None if self.mask is None else self.mask[part],
                None if self.huber_c is None else self.huber_c[part],
                self.weights[part],
                self.text_embeddings and {name: tensor[part] for name, tensor in self.text_embeddings.items()},
                {name: tensor[part] for name, tensor in self.size_conditioning.items()},
                self.captions[part],
            )


def seed_step(generator: torch.Generator, seed: int, step: int, place: int) -> None:
    """Noise and timesteps from `generator`, dropout from torch's own streams: both follow from the seed and the place.

    Args:
        place: of a batch among those of its step, whichever process computes it.
    """
    import torch

    text = f"{seed} {step} {place}" if place else f"{seed} {step}"
    number = seed_from(text)
    generator.manual_seed(number)
    torch.manual_seed(number)
