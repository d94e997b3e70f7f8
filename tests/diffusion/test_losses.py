"""Losses against closed forms, thresholds against golden values."""

import math

import pytest
import torch

from library.diffusion import losses

T = torch.tensor([0, 10, 100, 200, 500, 800, 999])
SNR = torch.tensor([1175.47, 103.508, 8.45389, 3.05996, 0.38185, 0.038281, 0.00468192])
GOLDEN = {
    "exponential": [1, 0.977237, 0.794328, 0.630957, 0.316228, 0.158489, 0.100231],
    "snr": [0.94971, 0.846118, 0.598297, 0.464353, 0.231284, 0.1241, 0.103691],
}


def assert_golden(value, name):
    torch.testing.assert_close(value, torch.tensor(GOLDEN[name], dtype=torch.float32), rtol=1e-5, atol=0)


def test_huber_thresholds_are_those_of_sd_scripts():
    assert_golden(losses.huber_threshold("exponential", T, SNR), "exponential")
    assert_golden(losses.huber_threshold("snr", T, SNR), "snr")
    torch.testing.assert_close(losses.huber_threshold("constant", T, SNR, c=0.2, scale=2), torch.full((7,), 0.4))


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("l2", 9.0),
        ("l1", 3.0),
        ("huber", 2 * 0.5 * (math.sqrt(9.25) - 0.5)),
        ("smooth_l1", 2 * (math.sqrt(9.25) - 0.5)),
    ],
)
def test_losses_are_their_closed_forms_for_each_sample(loss_type, expected):
    target = torch.randn(2, 4, 3, 5)
    prediction = target + torch.tensor([3.0, 0.0])[:, None, None, None]
    loss = losses.per_sample(prediction, target, loss_type, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(loss, torch.tensor([expected, 0.0]), rtol=1e-5, atol=1e-6)


def test_samples_are_averaged_over_all_their_values_in_float32():
    prediction, target = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    loss = losses.per_sample(prediction.half(), target)
    expected = torch.stack(
        [torch.nn.functional.mse_loss(p.half().float(), q) for p, q in zip(prediction, target, strict=True)]
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_masked_losses_are_those_of_sd_scripts():
    """Each element's loss times the mask, then the mean over all elements: not over those that are learnt."""
    difference = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(2, 4, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.25]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    loss = losses.per_sample(difference, torch.zeros(2, 4, 2, 2), mask=mask)
    torch.testing.assert_close(loss, torch.tensor([(1 + 0.5 * 9 + 0.25 * 16) / 4, 0.0]))


def test_what_a_mask_hides_neither_counts_nor_learns():
    prediction = torch.randn(2, 4, 6, 5, requires_grad=True)
    target, mask = torch.randn(2, 4, 6, 5), (torch.rand(2, 1, 6, 5) > 0.6).float()
    loss = losses.per_sample(prediction, target, mask=mask)
    loss.sum().backward()
    hidden = (mask == 0).expand_as(prediction)
    assert prediction.grad[hidden].eq(0).all()
    assert prediction.grad[~hidden].ne(0).all()
    assert torch.equal(losses.per_sample(prediction, torch.where(hidden, 1e3, target), mask=mask), loss)


@pytest.mark.parametrize("loss_type", losses.LOSSES)
def test_a_white_mask_changes_no_bit(loss_type):
    prediction, target, c = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5), torch.tensor([0.5, 0.1])
    whole = losses.per_sample(prediction, target, loss_type, c)
    assert torch.equal(losses.per_sample(prediction, target, loss_type, c, mask=torch.ones(2, 1, 6, 5)), whole)
