"""How wrong a prediction is, and how much each sample counts.

`per_sample` gives one number per sample; every weight is a factor for it, so their order does not matter. To add a
loss: add a row to LOSSES. The weights stand in `objectives.py`, for each objective has its own; `weight` multiplies
those that are switched on.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from library.diffusion.objectives import OBJECTIVES
from library.options.training import Config

LOSSES: dict[
    str, Callable[[Tensor, Any], Tensor]
] = {  # difference (B, C, h, w), c (B, 1, 1, 1) or None -> as the first
    "l2": lambda d, c: d**2,
    "l1": lambda d, c: d.abs(),
    "huber": lambda d, c: 2 * c * ((d**2 + c**2).sqrt() - c),  # l2 near 0, 2c * l1 far from it
    "smooth_l1": lambda d, c: 2 * ((d**2 + c**2).sqrt() - c),  # the same over c: l1 in scale
}

HUBER_SCHEDULES: dict[str, Callable[..., Tensor]] = {  # t (B,), snr (B,), c, scale, step_count -> (B,)
    "constant": lambda t, snr, c, scale, step_count: torch.full_like(snr, c * scale),
    "exponential": lambda t, snr, c, scale, step_count: (math.log(c) / step_count * t).exp() * scale,
    "snr": lambda t, snr, c, scale, step_count: (1 - c) / (1 + snr.rsqrt()) ** 2 + c,
}


def per_sample(
    prediction: Tensor,
    target: Tensor,
    loss_type: str = "l2",
    huber_c: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of each sample: mean over channels and pixels.

    Where a mask is 0 nothing is learnt. As in sd-scripts the mean is still over all places, so an image of which a
    third is learnt counts a third: each place counts as much as in any other image.

    Args:
        prediction, target: (B, C, h, w), of any dtype; compared in float32.
        loss_type: a key of LOSSES.
        huber_c: (B,) where the loss turns from quadratic to linear, see `huber_threshold`; for "huber" and "smooth_l1".
        mask: (B, 1, h, w) factors of each place's loss, 0 to 1; None: all 1.

    Returns:
        (B,) float32, on the device: reading it would stall the step.
    """
    c = None if huber_c is None else huber_c[:, None, None, None]
    loss = LOSSES[loss_type](prediction.float() - target.float(), c)
    return (loss if mask is None else loss * mask).mean(dim=(1, 2, 3))


def huber_threshold(
    schedule: str, t: Tensor, snr: Tensor, *, c: float = 0.1, scale: float = 1.0, step_count: int = 1000
) -> Tensor:
    """Where the Huber losses turn from quadratic to linear: outliers matter less at noisy timesteps.

    Args:
        schedule: "snr", "exponential" (both fall from 1 to about c over the timesteps) or "constant".
        t, snr: (B,) timesteps and their signal-to-noise ratios.
        c: the threshold at the noisiest timestep, > 0.
        scale: factor of "exponential" and "constant"; as in sd-scripts, "snr" has none.

    Returns:
        (B,).

    Source: Khrapov et al. 2024, "Improving Diffusion Models' Data-Corruption Resistance using Scheduled Pseudo-Huber
    Loss", arXiv:2403.16728.
    """
    return HUBER_SCHEDULES[schedule](t, snr, c, scale, step_count)


def weight(snr: Tensor, objective: str, config: Config) -> Tensor:
    """(B,) factors of the losses at timesteps with these signal-to-noise ratios: all weights that are switched on."""
    factors = torch.ones_like(snr)
    for option, factor_of in OBJECTIVES[objective].weights.items():
        if value := getattr(config, option):
            factors = factors * factor_of(snr, value)
    return factors


def threshold(t: Tensor, snr: Tensor, config: Config) -> Tensor | None:
    """(B,) `huber_c` of `per_sample`, for the loss that was asked for; None where it needs none."""
    if config.loss_type not in ("huber", "smooth_l1"):
        return None
    return huber_threshold(config.huber_schedule, t, snr, c=config.huber_c, scale=config.huber_scale)
