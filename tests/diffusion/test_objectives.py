"""Weights of the loss against golden values of sd-scripts, and options that make no sense for an objective."""

import dataclasses

import pytest
import torch

from library.diffusion import losses
from library.diffusion.objectives import OBJECTIVES, check_options
from library.messages import UserError
from library.options.training import Config

SNR = torch.tensor([1175.47, 103.508, 8.45389, 3.05996, 0.38185, 0.038281, 0.00468192])
V_SCALE = [0.999001, 0.990431, 0.894223, 0.753692, 0.276333, 0.0368696, 0.0046601]
NO_WEIGHTS = Config(
    min_snr_gamma=None, debiased_estimation_loss=False, scale_v_pred_loss_like_noise_pred=False, v_pred_like_loss=None
)
GOLDEN = [  # objective, option, value, factors
    ("epsilon", "min_snr_gamma", 5, [0.00425362, 0.0483057, 0.591443, 1, 1, 1, 1]),
    ("v", "min_snr_gamma", 5, [0.00425, 0.0478435, 0.528883, 0.753692, 0.276333, 0.0368696, 0.0046601]),
    (
        "epsilon",
        "debiased_estimation_loss",
        True,
        [0.0316228, 0.0982911, 0.343931, 0.571666, 1.61828, 5.11103, 14.6146],
    ),
    ("v", "debiased_estimation_loss", True, (1 / (SNR.clamp(max=1000) + 1)).tolist()),
    ("v", "scale_v_pred_loss_like_noise_pred", True, V_SCALE),
    ("epsilon", "v_pred_like_loss", 0.5, [1 + 0.5 / scale for scale in V_SCALE]),
]


@pytest.mark.parametrize(("objective", "option", "value", "factors"), GOLDEN)
def test_weights_are_those_of_sd_scripts(objective, option, value, factors):
    config = dataclasses.replace(NO_WEIGHTS, **{option: value})
    check_options(config, objective)
    torch.testing.assert_close(losses.weight(SNR, objective, config), torch.tensor(factors), rtol=1e-5, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_min_snr_weighs_the_same_error_of_the_latents_alike(objective):
    """All objectives, measured as an error of the latents, get min(snr, gamma)."""
    snr = torch.tensor([20.0, 4.0, 0.25])
    sigma = 1 / (1 + snr.sqrt()) if objective == "flow" else 1 / (1 + snr).sqrt()
    of_latents = {"epsilon": 1 / snr, "v": sigma**2, "flow": sigma**2}[objective]
    weight = losses.weight(snr, objective, dataclasses.replace(NO_WEIGHTS, min_snr_gamma=5))
    torch.testing.assert_close(weight / of_latents, snr.clamp(max=5))


def test_weights_that_are_switched_on_are_multiplied():
    values = dict(min_snr_gamma=5, debiased_estimation_loss=True, v_pred_like_loss=0.5)
    single = [losses.weight(SNR, "epsilon", dataclasses.replace(NO_WEIGHTS, **{name: values[name]})) for name in values]
    together = losses.weight(SNR, "epsilon", dataclasses.replace(NO_WEIGHTS, **values))
    torch.testing.assert_close(together, torch.stack(single).prod(0))
    assert losses.weight(SNR, "epsilon", NO_WEIGHTS).eq(1).all()


@pytest.mark.parametrize(
    ("objective", "option", "wanted"),
    [
        ("epsilon", "scale_v_pred_loss_like_noise_pred", "predict v,"),
        ("v", "v_pred_like_loss", "predict epsilon,"),
        ("epsilon", "zero_terminal_snr", "predict v,"),
        ("flow", "zero_terminal_snr", "predict v,"),
        ("flow", "debiased_estimation_loss", "predict epsilon or v,"),
        ("flow", "v_pred_like_loss", "predict epsilon,"),
    ],
)
def test_an_option_that_makes_no_sense_for_an_objective_is_refused_with_a_sentence(objective, option, wanted):
    config = dataclasses.replace(NO_WEIGHTS, **{option: True})
    with pytest.raises(
        UserError, match=f"^{option} is for models that {wanted} and the base model predicts {objective}"
    ):
        check_options(config, objective)


def test_all_options_that_make_no_sense_are_told_at_once():
    config = dataclasses.replace(NO_WEIGHTS, zero_terminal_snr=True, debiased_estimation_loss=True)
    with pytest.raises(UserError) as error:
        check_options(config, "flow")
    assert len(error.value.problems) == 2
