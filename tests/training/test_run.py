"""What a run tells of itself while it trains."""

from types import SimpleNamespace

import torch

from library.training.run import Training


def test_a_rate_that_is_a_tensor_is_told_as_it_was_at_its_step():
    """Adafactor's schedule writes the next one into the same tensor; the log reads it later."""
    rate = torch.tensor(1e-3)
    groups = [dict(name="unet", lr=rate), dict(name="text_encoder", lr=2e-4)]
    told = Training.rates(SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups)))
    rate.fill_(5e-4)
    assert {name: float(value) for name, value in told.items()} == {
        "unet": float(torch.tensor(1e-3)),
        "text_encoder": 2e-4,
    }
