"""A model with what is trained hooked in: the same for the real one and for the one whose memory is counted."""

from collections.abc import Collection
from typing import Any

from library.config import Config, trains_text_encoder, trains_unet
from library.contracts import Family
from library.messages import UserError, say


def optimizer_of(config: Config) -> str:
    return "AdamW8bit" if config.use_8bit_adam else config.optimizer_type


def attach(config: Config, family: Family, attend: Any, seed: int, checkpointed: Collection[str]) -> tuple[Any, Any]:
    """Hook the adapters into a model, and its U-Net's forward pass into the fast functions.

    Raises:
        UserError: the U-Net is none of Stable Diffusion's.
    """
    from library import adapters, optimizers
    from library.adapters import linear_ops, recipes
    from library.families.unet_forward import UNetForward

    parts = family.modules()
    refuse_odd_unet(parts["unet"])
    rates = optimizers.learning_rates(
        [name for name in parts if name != "vae" and is_trained(name, config)],
        config.unet_lr,
        config.text_encoder_lr,
        config.learning_rate,
    )
    attached = adapters.attach(
        [target for target in family.targets() if target.part in rates],
        module=config.network_module,
        rank=config.network_dim,
        alpha=config.network_alpha,
        conv_rank=config.conv_dim,
        conv_alpha=config.conv_alpha,
        dropout=config.network_dropout or 0.0,
        rank_stabilized=config.rs_lora,
        factor=config.lokr_factor,
        seed=seed,
    )
    forward = UNetForward(
        parts["unet"],
        linear_ops.FAST,
        recipes,
        attend,
        checkpointed=checkpointed,
        is_random=bool(config.network_dropout),
    )
    parts["unet"].forward = forward
    return attached, forward


def refuse_odd_unet(unet: Any) -> None:
    """Raise a UserError where a U-Net has parts that none of Stable Diffusion's has."""
    from library.families.unet_forward import is_supported

    if is_supported(unet):
        return
    raise UserError(
        say(
            "the base model's unet/config.json asks for parts that no Stable Diffusion 1.x, 2.x or XL has: it "
            "cannot be trained. Take the original model, or put its config.json back.",
            "底模的 unet/config.json 含有 Stable Diffusion 1.x、2.x、XL 都没有的部件，不支持训练。"
            "请换用原版模型，或恢复原来的 config.json。",
        )
    )


def pack_base(family: Family) -> None:
    """Hold the linear layers of the U-Net's transformers in 8 bits."""
    from library import memory

    for target in family.targets():
        if target.part == "unet" and not target.needs_conv_dim:
            memory.to_int8(target.layer)


def is_trained(part: str, config: Config) -> bool:
    """Whether a part of the model, "unet" or a text encoder, gets adapters."""
    return trains_unet(config) if part == "unet" else trains_text_encoder(config)
