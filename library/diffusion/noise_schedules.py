"""Noise schedules: how much of an image and how much noise there is at a timestep, and which timesteps are trained.

Models that predict "epsilon" or "v" know a table of whole timesteps; "flow" models any point of a straight line.
"""

from typing import Protocol

import torch
from torch import Tensor

from library.contracts import NoiseSpec
from library.diffusion.timesteps import LAWS


class NoiseSchedule(Protocol):
    """Factors of `noisy = signal * latents + sigma * noise` at timesteps t, (B,) in [0, step_count); float32.

    Keep t on the CPU: the tables are there, and only the (B,) factors travel.
    """

    def signal(self, t: Tensor) -> Tensor:
        """(B,) factor of the latents, on t's device."""

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) factor of the noise."""

    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal-to-noise ratio signal² / sigma², for the weights of the loss."""

    def draw_timesteps(
        self, latents: torch.Size, generator: torch.Generator, minimum: int = 0, maximum: int | None = None
    ) -> Tensor:
        """(B,) timesteps from minimum to maximum (None: the last) for latents of the shape (B, C, h, w); on the CPU."""


class DiscreteSchedule:
    """A table of signal² + sigma² = 1 at whole timesteps: Ho et al. 2020, arXiv:2006.11239.

    Args:
        spec: betas and number of steps; and whether the signal is rescaled so that nothing of the image is left at the
            last timestep. Lin et al. 2023, arXiv:2305.08891. Only sensible for "v": from pure noise, epsilon says
            nothing about the image.
    """

    def __init__(self, spec: NoiseSpec):
        assert spec.timestep_law == "uniform", "tables of timesteps are drawn from evenly"
        self.step_count = spec.step_count
        share = alpha_bar(spec)  # (step_count,) float64, so that 1 - share keeps its digits
        signal = share.sqrt()
        if spec.zero_terminal_snr:
            signal = without_terminal_signal(signal)
        self._signal = signal.float()  # (step_count,) each
        self._sigma = (1 - signal**2).sqrt().float()
        self._snr = (share / (1 - share)).float()

    def signal(self, t: Tensor) -> Tensor:
        return self._signal.to(t.device)[t]

    def sigma(self, t: Tensor) -> Tensor:
        return self._sigma.to(t.device)[t]

    def snr(self, t: Tensor) -> Tensor:
        """As in sd-scripts that of the schedule before `zero_terminal_snr` rescales it.

        So it is never 0, no weight of the loss is infinite, and the last timestep keeps a weight.
        """
        return self._snr.to(t.device)[t]

    def draw_timesteps(
        self, latents: torch.Size, generator: torch.Generator, minimum: int = 0, maximum: int | None = None
    ) -> Tensor:
        """Whole numbers, evenly from [minimum, maximum)."""
        maximum = self.step_count if maximum is None else maximum
        return torch.randint(minimum, maximum, (latents[0],), generator=generator)


class FlowSchedule:
    """The straight line from an image to noise, signal + sigma = 1: Lipman et al. 2022, arXiv:2210.02747.

    Args:
        spec: number of steps that the line is counted in; the timestep law, its shift, and the size of a token.
    """

    def __init__(self, spec: NoiseSpec):
        self.step_count, self.patch_size = spec.step_count, spec.patch_size
        self.law, self.shift = LAWS[spec.timestep_law], spec.shift

    def signal(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.float() / self.step_count

    def snr(self, t: Tensor) -> Tensor:
        return (self.signal(t) / self.sigma(t)) ** 2

    def draw_timesteps(
        self, latents: torch.Size, generator: torch.Generator, minimum: int = 0, maximum: int | None = None
    ) -> Tensor:
        """Real numbers in (minimum, maximum], by the timestep law."""
        maximum = self.step_count if maximum is None else maximum
        token_count = latents[-2] * latents[-1] // self.patch_size**2
        return minimum + (maximum - minimum) * self.law.draw(latents[0], generator, self.shift, token_count)


def alpha_bar(spec: NoiseSpec) -> Tensor:
    """(step_count,) share of the image's variance that is left at each timestep; float64.

    The "scaled linear" betas of latent diffusion: evenly spaced in their square roots. Rombach et al. 2021,
    arXiv:2112.10752.
    """
    roots = torch.linspace(spec.beta_start**0.5, spec.beta_end**0.5, spec.step_count, dtype=torch.float64)
    return (1 - roots**2).cumprod(0)


def without_terminal_signal(signal: Tensor) -> Tensor:
    """(step_count,) factors of the latents, shifted and scaled: the first stays, the last is 0. arXiv:2305.08891."""
    return (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
