"""A model with what is trained hooked in: the same for the real one and for the one whose memory is counted."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from library.contracts import Execution, Family
from library.options.derived import trains_denoiser, trains_text_encoder
from library.options.training import Config

if TYPE_CHECKING:
    from torch import Tensor

    from library.adapters import Adapters, ParamGroup
    from library.hardware.attention import Attention
    from library.hardware.blocks import Blocks


def attach(
    config: Config,
    family: Family,
    attend: Attention,
    seed: int,
    blocks: Blocks,
    start: dict[str, Tensor] | None = None,
) -> Adapters:
    """Hook the adapters into a model, and have its denoiser computed by the fast functions.

    Args:
        blocks: computes the denoiser's blocks.
        start: tensors of the file to begin with.

    Raises:
        UserError: the denoiser has parts that its family has not, or no layer is left to train.
    """
    from library import adapters
    from library.adapters import linear_ops, recompute, sizes

    family.denoiser.compute_with(Execution(linear_ops.FAST, recompute, attend, blocks.run))
    rates = part_rates(config, family.modules())
    targets = [target for target in family.targets() if target.part in rates]
    from_file = sizes.of_file(start) if config.dim_from_weights and start else None
    return adapters.attach(
        targets,
        module=config.network_module,
        rank=config.network_dim,
        alpha=config.network_alpha,
        conv_rank=config.conv_dim,
        conv_alpha=config.conv_alpha,
        dropout=config.network_dropout or 0.0,
        rank_dropout=config.rank_dropout or 0.0,
        module_dropout=config.module_dropout or 0.0,
        sizes=sizes.choose(targets, config, family.facts.blocks, from_file),
        faster=[part for part in rates if plus_ratio(part, config)],
        rank_stabilized=config.rs_lora,
        factor=config.lokr_factor,
        seed=seed,
    )


def part_rates(config: Config, parts: Collection[str]) -> dict[str, float]:
    """The learning rate of each part of the model that is trained."""
    from library.optim import optimizers

    names = [name for name in parts if name != "vae" and is_trained(name, config)]
    assert config.learning_rate is not None, "decided before a model is loaded"
    return optimizers.learning_rates(names, config.unet_lr, config.text_encoder_lr, config.learning_rate)


def param_group_rates(config: Config, groups: Collection[ParamGroup]) -> dict[str, float]:
    """The learning rate of each of the adapters' parameter groups, by its name."""
    rates = part_rates(config, {group.part for group in groups})
    found = {}
    for group in groups:
        rate = rates[group.part] if group.lr_scale.rate is None else group.lr_scale.rate
        ratio = (group.is_plus and plus_ratio(group.part, config)) or 1.0
        found[group.name] = rate * group.lr_scale.factor * ratio
    return found


def plus_ratio(part: str, config: Config) -> float | None:
    """How many times faster LoRA+ lets the second matrices of a part learn; None: not."""
    own = config.loraplus_unet_lr_ratio if part == "denoiser" else config.loraplus_text_encoder_lr_ratio
    return own or config.loraplus_lr_ratio


def pack_base(family: Family) -> None:
    """Hold the linear layers of the denoiser's transformers in 8 bits."""
    from library.hardware import memory

    for target in family.targets():
        if target.part == "denoiser" and not target.needs_conv_dim:
            memory.to_int8(target.layer)


def is_trained(part: str, config: Config) -> bool:
    """Whether a part of the model, "denoiser" or a text encoder, gets adapters."""
    return trains_denoiser(config) if part == "denoiser" else trains_text_encoder(config)
