"""Which layers of a U-Net and of CLIP can be adapted: the choice of sd-scripts' `networks.lora`, for all families."""

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from library.contracts import Target
from library.families.unet.names import original_unet_name

ALWAYS = ("Transformer2DModel",)  # diffusers' classes; everything linear or 1x1 inside them
WITH_CONV_DIM = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")


def unet_layers(unet: UNet2DConditionModel, prefix: str, *, is_saved_by_original: bool) -> list[Target]:
    """Every linear layer and convolution of a U-Net.

    Args:
        prefix: of the layers' names in the saved file, `Part.prefix`; also below.
        is_saved_by_original: the saved file has the original model's names, not diffusers'.
    """
    targets = []
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            original = original_unet_name(name, unet.config.layers_per_block, unet.config.up_block_types)
            saved_as = prefix + (original if is_saved_by_original else name).replace(".", "_")
            targets.append(
                Target(layer, saved_as, "denoiser", module=f"unet.{name}", original=f"diffusion_model.{original}")
            )
    return targets


def unet_targets(unet: UNet2DConditionModel, prefix: str, *, is_saved_by_original: bool) -> list[Target]:
    """Linear layers and convolutions of the U-Net's attentions, resnets, down- and upsamplers."""
    layers = {target.layer: target for target in unet_layers(unet, prefix, is_saved_by_original=is_saved_by_original)}
    targets = []
    for name, layer, owner in layers_within(unet, (*ALWAYS, *WITH_CONV_DIM)):
        needs_conv_dim = owner in WITH_CONV_DIM
        if isinstance(layer, nn.Linear) or needs_conv_dim or layer.kernel_size == (1, 1):
            own = layers[layer]._replace(needs_conv_dim=needs_conv_dim, shares_input=shared_input(name))
            targets.append(own)
    return targets


def shared_input(name: str) -> str | None:
    """One name for layers of a U-Net that are given the same input: q, k, v of an attention; all that see captions."""
    owner, _, kind = name.rpartition(".")
    if owner.endswith("attn1") and kind in ("to_q", "to_k", "to_v"):
        return owner
    return "captions" if owner.endswith("attn2") and kind in ("to_k", "to_v") else None


def text_targets(text_encoder: nn.Module, prefix: str, part: str) -> list[Target]:
    """The attention's and the MLP's linear layers of a CLIP text encoder."""
    targets = []
    for name, layer, _ in layers_within(text_encoder, TEXT):
        bare = name.removeprefix("text_model.")
        saved_as = f"{prefix}text_model_{bare.replace('.', '_')}"
        targets.append(Target(layer, saved_as, part, module=f"{part}.text_model.{bare}"))
    return targets


def layers_within(module: nn.Module, class_names: tuple[str, ...]) -> list[tuple[str, nn.Linear | nn.Conv2d, str]]:
    """(name, layer, class it lies in) of every linear layer and convolution within modules of these classes."""
    found: list[tuple[str, nn.Linear | nn.Conv2d, str]] = []
    for name, owner in module.named_modules():
        kind = type(owner).__name__
        if kind in class_names:
            found += [
                (f"{name}.{inner}", layer, kind)
                for inner, layer in owner.named_modules()
                if isinstance(layer, nn.Linear | nn.Conv2d)
            ]
    return found
