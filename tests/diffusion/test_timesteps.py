"""Timestep laws against their closed forms and the values that the families' own pipelines use."""

import math

import pytest
import torch

from library.diffusion.timesteps import LAWS, shifted


def draw(law, count=20000, shift=1.0, token_count=4096, seed=0):
    return LAWS[law].draw(count, torch.Generator().manual_seed(seed), shift, token_count).double()


def normal_share(z):
    """Of a standard normal distribution, below z."""
    return (1 + math.erf(z / math.sqrt(2))) / 2


@pytest.mark.parametrize("law", LAWS)
def test_points_are_shares_of_noise_and_never_the_untouched_image(law):
    points = draw(law)
    assert points.min() > 0
    assert points.max() <= 1
    assert torch.equal(points, draw(law))


def test_uniform_points_are_even():
    torch.testing.assert_close(draw("uniform").quantile(0.25), torch.tensor(0.25).double(), rtol=0, atol=0.01)


@pytest.mark.parametrize("point", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("law", "shift"), [("sigmoid", 1.0), ("shift", 3.0), ("flux_shift", math.exp(1.15))])
def test_the_share_of_points_below_a_point_is_that_of_the_logit_normal_law(law, shift, point):
    """A shift adds its logarithm to the logits: logit(shifted) = logit(t) + log(shift)."""
    expected = normal_share(math.log(point / (1 - point)) - math.log(shift))
    assert float((draw(law, shift=3.0) < point).double().mean()) == pytest.approx(expected, abs=0.012)


def test_a_shift_of_one_moves_nothing_and_the_ends_stay():
    points = torch.tensor([0.0, 0.25, 1.0])
    assert torch.equal(shifted(points, 1.0), points)
    assert shifted(points, 3.0).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("law", "shifts"),  # at 512, 768, 1024 and 1280 pixels
    [
        ("flux_shift", (1.878, 2.332, 3.158, 4.665)),
        ("qwen_shift", (1.714, 1.828, 2.001, 2.247)),
        ("krea2_shift", (1.788, 2.048, 2.475, 3.158)),
    ],
)
def test_the_shift_of_a_resolution_is_that_of_the_familys_pipeline(law, shifts):
    tokens = [(side // 16) ** 2 for side in (512, 768, 1024, 1280)]
    assert [LAWS[law].shift_of(7.0, count) for count in tokens] == pytest.approx(shifts, abs=6e-4)


@pytest.mark.parametrize("law", ["uniform", "sigmoid", "shift"])
def test_samplers_take_the_familys_shift_where_no_resolution_matters(law):
    assert LAWS[law].shift_of(3.0, 4096) == 3.0
