"""Signal and noise: what the network sees at a timestep, and what it is asked to predict.

One law serves every objective, `noisy = signal * latents + sigma * noise`; targets and signal-to-noise ratios follow
from it. To add an objective: add a row to OBJECTIVES (its target, and how the latents come back from a prediction).

Random numbers come from a CPU generator that the caller holds, so a seed gives the same bits on every device.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from library.contracts import NoiseSpec


class Objective(NamedTuple):
    """What a network predicts, and what its prediction says about the latents. All tensors (B, C, h, w)."""

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # latents, noise, signal, sigma
    latents: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # noisy, prediction, signal, sigma


OBJECTIVES = {
    "epsilon": Objective(  # Ho et al. 2020, arXiv:2006.11239
        target=lambda latents, noise, signal, sigma: noise,
        latents=lambda noisy, predicted, signal, sigma: (noisy - sigma * predicted) / signal,
    ),
    "v": Objective(  # Salimans and Ho 2022, arXiv:2202.00512
        target=lambda latents, noise, signal, sigma: signal * noise - sigma * latents,
        latents=lambda noisy, predicted, signal, sigma: signal * noisy - sigma * predicted,
    ),
    "flow": Objective(  # Lipman et al. 2022, arXiv:2210.02747: the straight line from picture to noise
        target=lambda latents, noise, signal, sigma: noise - latents,
        latents=lambda noisy, predicted, signal, sigma: noisy - sigma * predicted,
    ),
}


class Process:
    """The way from a picture to noise that a family of models was trained on.

    Args:
        spec: objective, betas and number of steps; and whether the signal is rescaled so that nothing of the picture
            is left at the last timestep. Lin et al. 2023, arXiv:2305.08891. Only sensible for "v": from pure noise,
            epsilon says nothing about the picture.
    """

    def __init__(self, spec: NoiseSpec):
        self.objective = spec.objective
        self.step_count = spec.step_count
        share = alpha_bar(spec)  # (step_count,) float64, so that 1 - share keeps its digits
        signal = share.sqrt()
        if spec.zero_terminal_snr:
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        self._signal = signal.float()  # (step_count,) each
        self._sigma = (1 - signal**2).sqrt().float()
        self._snr = (share / (1 - share)).float()

    def signal(self, t: Tensor) -> Tensor:
        """(B,) factor of the latents at timesteps t, (B,) in [0, step_count); float32, on t's device.

        Keep t on the CPU: the tables are there, and only the (B,) factors travel.
        """
        if self.objective == "flow":
            return 1 - self.sigma(t)
        return self._signal.to(t.device)[t]

    def sigma(self, t: Tensor) -> Tensor:
        """(B,) factor of the noise at timesteps t."""
        if self.objective == "flow":
            return t.float() / self.step_count
        return self._sigma.to(t.device)[t]

    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal-to-noise ratio signal² / sigma² at timesteps t, for the weights of the loss.

        As in sd-scripts it is that of the process before `zero_terminal_snr` rescales it: never 0, so no weight of the
        loss is infinite, and the last timestep keeps a weight.
        """
        if self.objective == "flow":
            return (self.signal(t) / self.sigma(t)) ** 2
        return self._snr.to(t.device)[t]

    def corrupt(
        self, latents: Tensor, noise: Tensor, t: Tensor, more_noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Put noise on latents, and say what the network should answer.

        Args:
            latents: (B, C, h, w) scaled.
            noise: the same shape; see `draw_noise`.
            t: (B,) timesteps, on the CPU or beside the latents.
            more_noise: the same shape: seen by the network, but not part of what it should answer. Ning et al. 2023,
                "Input Perturbation Reduces Exposure Bias in Diffusion Models", arXiv:2301.11706.

        Returns:
            noisy and target, both (B, C, h, w) in float32 whatever came in: sigma loses digits in half precision.
        """
        latents, noise = latents.float(), noise.float()
        signal, sigma = _beside(latents, self.signal(t)), _beside(latents, self.sigma(t))
        noisy = signal * latents + sigma * (noise if more_noise is None else noise + more_noise.float())
        return noisy, OBJECTIVES[self.objective].target(latents, noise, signal, sigma)

    def recover(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The latents (B, C, h, w) that a prediction implies; exact if the prediction is the target."""
        signal, sigma = _beside(noisy, self.signal(t)), _beside(noisy, self.sigma(t))
        return OBJECTIVES[self.objective].latents(noisy.float(), prediction.float(), signal, sigma)

    def draw_timesteps(
        self, count: int, generator: torch.Generator, minimum: int = 0, maximum: int | None = None
    ) -> Tensor:
        """(count,) timesteps drawn evenly from [minimum, maximum), on the CPU.

        Whole numbers where the model knows a table of them; real numbers for "flow", which knows any.
        """
        maximum = self.step_count if maximum is None else maximum
        if self.objective == "flow":  # 1 - rand is in (0, 1]: never the untouched picture, whose SNR is infinite
            return minimum + (maximum - minimum) * (1 - torch.rand(count, generator=generator))
        return torch.randint(minimum, maximum, (count,), generator=generator)


def alpha_bar(spec: NoiseSpec) -> Tensor:
    """(step_count,) share of the picture's variance that is left at each timestep; float64.

    The "scaled linear" betas of latent diffusion: evenly spaced in their square roots. Rombach et al. 2021,
    arXiv:2112.10752.
    """
    roots = torch.linspace(spec.beta_start**0.5, spec.beta_end**0.5, spec.step_count, dtype=torch.float64)
    return (1 - roots**2).cumprod(0)


def draw_noise(
    latents: Tensor,
    generator: torch.Generator,
    noise_offset: float | None = None,
    *,
    noise_offset_random_strength: bool = False,
    adaptive_noise_scale: float | None = None,
    multires_noise_iterations: int | None = None,
    multires_noise_discount: float = 0.3,
    candidates: int | None = None,
) -> Tensor:
    """Noise for a batch of latents, (B, C, h, w) float32 on their device.

    Args:
        latents: (B, C, h, w); only their shape, device and (for the adaptive offset) mean matter.
        generator: on the CPU.
        noise_offset: about 0.03 to 0.1 also shifts each channel as a whole, so that very dark and very bright pictures
            can be learned. Guttenberg 2023, "Diffusion with Offset Noise".
        noise_offset_random_strength: draw the offset's strength between 0 and `noise_offset` for each batch.
        adaptive_noise_scale: added to the strength in proportion to each channel's |mean|.
        multires_noise_iterations: coarser and coarser noise on top, up to so many times; 6 to 10. Whitaker 2023,
            "Multi-Resolution Noise for Diffusion Model Training".
        multires_noise_discount: each coarser one is weaker by this factor.
        candidates: so many noises are drawn for each picture and the nearest to it is taken, so that pictures do not
            all pass through the same noise. Li et al. 2024, "Immiscible Diffusion", arXiv:2406.12303, with their later
            choice among k in place of an assignment within the batch, which does nothing at small batches.
    """
    noise = torch.randn(latents.shape, generator=generator)
    for _ in range((candidates or 1) - 1):
        other = torch.randn(latents.shape, generator=generator)
        own = latents.float().cpu()
        is_nearer = (other - own).square().sum((1, 2, 3)) < (noise - own).square().sum((1, 2, 3))
        noise = torch.where(is_nearer[:, None, None, None], other, noise)
    if noise_offset or adaptive_noise_scale:
        noise = noise + _offset(
            latents, generator, noise_offset or 0.0, noise_offset_random_strength, adaptive_noise_scale
        )
    if multires_noise_iterations:
        noise = _with_coarser_noise(noise, generator, multires_noise_iterations, multires_noise_discount)
    return noise.to(latents.device)


def draw_perturbation(noise: Tensor, generator: torch.Generator, gamma: float, random_strength: bool) -> Tensor:
    """(B, C, h, w) beside the noise: `more_noise` of `Process.corrupt`, of deviation gamma, or of 0 to gamma."""
    strength = gamma * torch.rand(1, generator=generator) if random_strength else gamma
    return (strength * torch.randn(noise.shape, generator=generator)).to(noise.device)


def _offset(
    latents: Tensor, generator: torch.Generator, strength: float, random_strength: bool, adaptive_scale: float | None
) -> Tensor:
    """(B, C, 1, 1) to add to the noise."""
    if random_strength:
        strength = strength * torch.rand(1, generator=generator)
    if adaptive_scale:
        brightness = latents.float().mean(dim=(2, 3), keepdim=True).abs().cpu()
        strength = (strength + adaptive_scale * brightness).clamp(min=0)
    return strength * torch.randn(*latents.shape[:2], 1, 1, generator=generator)


def _with_coarser_noise(noise: Tensor, generator: torch.Generator, iterations: int, discount: float) -> Tensor:
    """(B, C, h, w) of unit deviation again."""
    height, width = noise.shape[2:]
    for i in range(iterations):
        ratio = float(torch.rand(1, generator=generator)) * 2 + 2
        h, w = max(1, int(height / ratio**i)), max(1, int(width / ratio**i))
        coarse = torch.randn(*noise.shape[:2], h, w, generator=generator)
        noise = noise + functional.interpolate(coarse, (height, width), mode="bilinear") * discount**i
        if h == 1 or w == 1:
            break
    return noise / noise.std()


def _beside(latents: Tensor, factor: Tensor) -> Tensor:
    return factor.to(latents.device, non_blocking=True)[:, None, None, None]  # (B,) -> (B, 1, 1, 1)
