"""Objectives: what a network predicts, and all that follows from it. To add one: add a row to OBJECTIVES.

One law serves every objective, `noisy = signal * latents + sigma * noise`, with signal and sigma from its schedule.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from library.contracts import NoiseSpec
from library.diffusion.noise_schedules import DiscreteSchedule, FlowSchedule, NoiseSchedule
from library.messages import UserError, say
from library.options.training import Config

Weight = Callable[[Tensor, float], Tensor]  # snr (B,), the option's value -> (B,) factors of the losses


class Objective(NamedTuple):
    """What a network predicts, and what follows. Latents and noise are (B, C, h, w), signal and sigma (B, 1, 1, 1)."""

    prediction_type: str  # what diffusers calls it, for samplers
    schedule: Callable[[NoiseSpec], NoiseSchedule]
    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # latents, noise, signal, sigma
    latents: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # noisy, prediction, signal, sigma
    weights: Mapping[str, Weight]  # option -> what it does to the losses; an option that is not here makes no sense
    has_zero_terminal_snr: bool = False  # whether the option makes sense: what is predicted from pure noise


def min_snr_weight(error_scale: Callable[[Tensor], Tensor]) -> Weight:
    """Weights that stop easy, low-noise timesteps from dominating the loss.

    Args:
        error_scale: from the (B,) signal-to-noise ratios: the squared error of a prediction for each unit of squared
            error of the latents.

    Returns:
        From the ratios and gamma, a cap on them (5 in the paper; larger changes less), (B,) factors: what a squared
        error of the prediction is, measured in the latents, times min(snr, gamma).

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting", arXiv:2303.09556.
    """
    return lambda snr, gamma: snr.clamp(max=gamma) / error_scale(snr)


def debiased_epsilon_weight(snr: Tensor, is_on: float) -> Tensor:
    """(B,) factors 1 / sqrt(snr): noisy timesteps, where the image's layout is decided, get their due.

    The ratios are counted as at most 1000.

    Source: Yu et al. 2024, "Unmasking Bias in Diffusion Model Training", arXiv:2310.08442.
    """
    return snr.clamp(max=1000).rsqrt()


def debiased_v_weight(snr: Tensor, is_on: float) -> Tensor:
    """(B,) factors 1 / (snr + 1): the same for "v", as in sd-scripts."""
    return 1 / (snr.clamp(max=1000) + 1)


def epsilon_scale_weight(snr: Tensor, is_on: float) -> Tensor:
    """(B,) factors snr / (snr + 1) that give the loss of a "v" model the scale of an "epsilon" model's."""
    snr = snr.clamp(max=1000)
    return snr / (snr + 1)


def v_scale_weight(snr: Tensor, strength: float) -> Tensor:
    """(B,) factors that add to an "epsilon" loss the same loss in the scale of "v", times `strength`."""
    return 1 + strength / epsilon_scale_weight(snr, True)


OBJECTIVES = {
    "epsilon": Objective(  # Ho et al. 2020, arXiv:2006.11239
        prediction_type="epsilon",
        schedule=DiscreteSchedule,
        target=lambda latents, noise, signal, sigma: noise,
        latents=lambda noisy, predicted, signal, sigma: (noisy - sigma * predicted) / signal,
        weights={
            "min_snr_gamma": min_snr_weight(lambda snr: snr),
            "v_pred_like_loss": v_scale_weight,
            "debiased_estimation_loss": debiased_epsilon_weight,
        },
    ),
    "v": Objective(  # Salimans and Ho 2022, arXiv:2202.00512
        prediction_type="v_prediction",
        schedule=DiscreteSchedule,
        target=lambda latents, noise, signal, sigma: signal * noise - sigma * latents,
        latents=lambda noisy, predicted, signal, sigma: signal * noisy - sigma * predicted,
        weights={
            "min_snr_gamma": min_snr_weight(lambda snr: snr + 1),
            "scale_v_pred_loss_like_noise_pred": epsilon_scale_weight,
            "debiased_estimation_loss": debiased_v_weight,
        },
        has_zero_terminal_snr=True,
    ),
    "flow": Objective(  # Lipman et al. 2022, arXiv:2210.02747: the straight line from image to noise
        prediction_type="flow_prediction",
        schedule=FlowSchedule,
        target=lambda latents, noise, signal, sigma: noise - latents,
        latents=lambda noisy, predicted, signal, sigma: noisy - sigma * predicted,
        weights={"min_snr_gamma": min_snr_weight(lambda snr: (snr.sqrt() + 1) ** 2)},
    ),
}


def check_options(config: Config, objective: str) -> None:
    """Refuse options that make no sense for models of an objective. Raises UserError."""
    owners = {option: names_with(option) for row in OBJECTIVES.values() for option in row.weights}
    owners["zero_terminal_snr"] = [name for name, row in OBJECTIVES.items() if row.has_zero_terminal_snr]
    problems = [
        say(
            f"{option} is for models that predict {' or '.join(owners[option])}, and the base model predicts "
            f"{objective}. Remove it",
            f"{option} 只用于预测 {' 或 '.join(owners[option])} 的底模，而此底模预测 {objective}。请去掉此项",
        )
        for option in owners
        if getattr(config, option) and objective not in owners[option]
    ]
    if problems:
        raise UserError(problems)


def names_with(option: str) -> list[str]:
    """The objectives that have a weight of this option."""
    return [name for name, row in OBJECTIVES.items() if option in row.weights]
