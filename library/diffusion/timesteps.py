"""Timestep laws: at which points of the line from an image (0) to noise (1) a flow model is trained.

A law draws points and then shifts them towards noise: a larger image keeps more of its layout at the same share of
noise, so it needs more of it. To add a law: add a row to LAWS, named as `--timestep_sampling` of sd-scripts and
musubi-tuner has it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def uniform(count: int, generator: torch.Generator) -> Tensor:
    """(count,) points drawn evenly from (0, 1]: never the untouched image, whose signal-to-noise ratio is infinite."""
    return 1 - torch.rand(count, generator=generator)


def logit_normal(count: int, generator: torch.Generator) -> Tensor:
    """(count,) points whose logits are of the standard normal distribution: mostly the middle.

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", arXiv:2403.03206, section 3.1.
    """
    return torch.randn(count, generator=generator).sigmoid()


def shifted(points: Tensor, shift: float) -> Tensor:
    """(count,) the same points of (0, 1], nearer to noise; a shift of 1 leaves them where they are.

    Source: arXiv:2403.03206, section 5.3.2, equation 23.
    """
    return shift * points / (1 + (shift - 1) * points)


def shift_of_resolution(token_count: int, at_low: tuple[int, float], at_high: tuple[int, float]) -> float:
    """The shift of an image of so many tokens: its logarithm lies on a line through two points.

    Args:
        token_count: of the image, one for each square of 16 x 16 pixels.
        at_low, at_high: (token_count, logarithm of the shift) of a small and of a large image.

    Source: `calculate_shift` of diffusers' FluxPipeline, after Black Forest Labs' FLUX.1.
    """
    (low, log_low), (high, log_high) = at_low, at_high
    return math.exp(log_low + (token_count - low) * (log_high - log_low) / (high - low))


class TimestepLaw(NamedTuple):
    """How points are drawn, and whether they are shifted."""

    points: Callable[[int, torch.Generator], Tensor]
    is_shifted: bool = False  # in training; samplers shift their points in any case
    by_resolution: tuple[tuple[int, float], tuple[int, float]] | None = None  # `at_low` and `at_high`; None: one shift

    def draw(self, count: int, generator: torch.Generator, shift: float, token_count: int) -> Tensor:
        """(count,) shares of noise in (0, 1], float32 on the CPU.

        Args:
            shift: the family's, for laws that do not go by the resolution.
            token_count: of each image.
        """
        points = self.points(count, generator)
        return shifted(points, self.shift_of(shift, token_count)) if self.is_shifted else points

    def shift_of(self, shift: float, token_count: int) -> float:
        """The shift of images of so many tokens: that of their resolution where the law has one, else the family's."""
        return shift if self.by_resolution is None else shift_of_resolution(token_count, *self.by_resolution)


LAWS = {
    "uniform": TimestepLaw(uniform),
    "sigmoid": TimestepLaw(logit_normal),
    "shift": TimestepLaw(logit_normal, is_shifted=True),
    "flux_shift": TimestepLaw(logit_normal, True, ((256, 0.5), (4096, 1.15))),
    "qwen_shift": TimestepLaw(logit_normal, True, ((256, 0.5), (8192, 0.9))),
    "krea2_shift": TimestepLaw(logit_normal, True, ((256, 0.5), (6400, 1.15))),
}
