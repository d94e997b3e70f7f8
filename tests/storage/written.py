"""What the tests of storage write."""

import torch

from library.storage.training_state import Position, State


def lora(seed=0):
    """Two layers: a text encoder's linear and a U-Net's 3x3 convolution."""
    g = torch.Generator().manual_seed(seed)
    return {
        "lora_te_fc1.lora_down.weight": torch.randn(4, 6, generator=g),
        "lora_te_fc1.lora_up.weight": torch.randn(5, 4, generator=g),
        "lora_te_fc1.alpha": torch.tensor(2.0),
        "lora_unet_conv1.lora_down.weight": torch.randn(3, 8, 3, 3, generator=g),
        "lora_unet_conv1.lora_up.weight": torch.randn(7, 3, 1, 1, generator=g),
        "lora_unet_conv1.alpha": torch.tensor(3.0),
    }


def state(seed=0):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([dict(params=[parameter], lr=1e-3, name="unet")])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    schedule.step()
    return State(
        Position(3, 7, 100 + seed), lora(seed), optimizer.state_dict(), schedule.state_dict(), {"scale": 1024.0},
        {"output_name": "女孩"},
    )  # fmt: skip
