"""The way from an image to noise: what the network sees at a timestep, and what it is asked to predict.

What differs between objectives stands in `objectives.py`, what a timestep means in `noise_schedules.py`.

Random numbers come from a CPU generator that the caller holds, so a seed gives the same bits on every device.
"""

import torch
from torch import Tensor
from torch.nn import functional

from library.contracts import NoiseSpec
from library.diffusion.objectives import OBJECTIVES


class Process:
    """The way from an image to noise that a family of models was trained on.

    Args:
        spec: its objective, and what its schedule needs.
    """

    def __init__(self, spec: NoiseSpec):
        self.objective = OBJECTIVES[spec.objective]
        self.schedule = self.objective.schedule(spec)

    def snr(self, t: Tensor) -> Tensor:
        """(B,) signal-to-noise ratio at timesteps t, for the weights of the loss; see the schedule's."""
        return self.schedule.snr(t)

    def draw_timesteps(
        self, latents: torch.Size, generator: torch.Generator, minimum: int = 0, maximum: int | None = None
    ) -> Tensor:
        """(B,) timesteps from minimum to maximum (None: the last) for latents of the shape (B, C, h, w); on the CPU."""
        return self.schedule.draw_timesteps(latents, generator, minimum, maximum)

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
        signal, sigma = self._factors(latents, t)
        noisy = signal * latents + sigma * (noise if more_noise is None else noise + more_noise.float())
        return noisy, self.objective.target(latents, noise, signal, sigma)

    def recover(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The latents (B, C, h, w) that a prediction implies; exact if the prediction is the target."""
        return self.objective.latents(noisy.float(), prediction.float(), *self._factors(noisy, t))

    def _factors(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 1, 1) signal and sigma beside the latents."""
        return _beside(latents, self.schedule.signal(t)), _beside(latents, self.schedule.sigma(t))


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
        noise_offset: about 0.03 to 0.1 also shifts each channel as a whole, so that very dark and very bright images
            can be learned. Guttenberg 2023, "Diffusion with Offset Noise".
        noise_offset_random_strength: draw the offset's strength between 0 and `noise_offset` for each batch.
        adaptive_noise_scale: added to the strength in proportion to each channel's |mean|.
        multires_noise_iterations: coarser and coarser noise on top, up to so many times; 6 to 10. Whitaker 2023,
            "Multi-Resolution Noise for Diffusion Model Training".
        multires_noise_discount: each coarser one is weaker by this factor.
        candidates: so many noises are drawn for each image and the nearest to it is taken, so that images do not
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
    factor: float | Tensor = strength * torch.rand(1, generator=generator) if random_strength else strength
    if adaptive_scale:
        brightness = latents.float().mean(dim=(2, 3), keepdim=True).abs().cpu()
        factor = (factor + adaptive_scale * brightness).clamp(min=0)
    return factor * torch.randn(*latents.shape[:2], 1, 1, generator=generator)


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
