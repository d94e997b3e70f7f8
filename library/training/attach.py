"""A model with what is trained hooked in: the same for the real one and for the one whose memory is counted."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from library.contracts import Family
from library.messages import UserError, say
from library.options.derived import trains_denoiser, trains_text_encoder
from library.options.training import Config

if TYPE_CHECKING:
    from torch import Tensor

    from library.adapters import Adapters, ParamGroup
    from library.families.unet.forward import UNetForward
    from library.hardware.attention import Attention
    from library.hardware.blocks import Blocks


def attach(
    config: Config,
    family: Family,
    attend: Attention,
    seed: int,
    blocks: Blocks,
    start: dict[str, Tensor] | None = None,
) -> tuple[Adapters, UNetForward]:
    """Hook the adapters into a model, and its U-Net's forward pass into the fast functions.

    Args:
        blocks: computes the U-Net's blocks, a `hardware.blocks.Blocks`.
        start: tensors of the file to begin with.

    Raises:
        UserError: the U-Net is none of Stable Diffusion's, or no layer is left to train.
    """
    from library import adapters
    from library.adapters import linear_ops, recompute, sizes
    from library.families.unet.forward import UNetForward

    parts = family.modules()
    refuse_odd_unet(parts["unet"])
    rates = part_rates(config, parts)
    targets = [target for target in family.targets() if target.part in rates]
    from_file = sizes.of_file(start) if config.dim_from_weights and start else None
    attached = adapters.attach(
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
    forward = UNetForward(parts["unet"], linear_ops.FAST, recompute, attend, blocks.run)
    parts["unet"].forward = forward
    return attached, forward


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
        ratio = plus_ratio(group.part, config) if group.is_plus else 1.0
        found[group.name] = rate * group.lr_scale.factor * ratio
    return found


def plus_ratio(part: str, config: Config) -> float | None:
    """How many times faster LoRA+ lets the second matrices of a part learn; None: not."""
    own = config.loraplus_unet_lr_ratio if part == "unet" else config.loraplus_text_encoder_lr_ratio
    return own or config.loraplus_lr_ratio


def refuse_odd_unet(unet: Any) -> None:
    """Raise a UserError where a U-Net has parts that none of Stable Diffusion's has."""
    from library.families.unet.forward import is_supported

    if is_supported(unet):
        return
    raise UserError(
        say(
            "the base model's unet/config.json asks for parts that no Stable Diffusion 1.x, 2.x or XL has: it "
            "cannot be trained. Use the original model, or restore its config.json.",
            "底模的 unet/config.json 含有 Stable Diffusion 1.x、2.x、XL 都没有的部件，不支持训练。"
            "请换用原版模型，或恢复原来的 config.json。",
        )
    )


def pack_base(family: Family) -> None:
    """Hold the linear layers of the U-Net's transformers in 8 bits."""
    from library.hardware import memory

    for target in family.targets():
        if target.part == "unet" and not target.needs_conv_dim:
            memory.to_int8(target.layer)


def is_trained(part: str, config: Config) -> bool:
    """Whether a part of the model, "unet" or a text encoder, gets adapters."""
    return trains_denoiser(config) if part == "unet" else trains_text_encoder(config)
