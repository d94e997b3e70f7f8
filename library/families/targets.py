"""Which layers of a U-Net and of CLIP can be adapted: the choice of sd-scripts' `networks.lora`, for all families."""

from collections.abc import Callable

from torch import nn

from library.contracts import Target

ALWAYS = ("Transformer2DModel",)  # diffusers' classes; everything linear or 1x1 inside them
WITH_CONV_DIM = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")


def unet_targets(unet: nn.Module, saved_name: Callable[[str], str]) -> list[Target]:
    """Linear layers and convolutions of the U-Net's attentions, resnets, down- and upsamplers.

    Args:
        saved_name: from diffusers' name of a layer to its name in the saved file, with dots.
    """
    targets = []
    for name, layer, owner in layers_within(unet, (*ALWAYS, *WITH_CONV_DIM)):
        needs_conv_dim = owner in WITH_CONV_DIM
        if isinstance(layer, nn.Linear) or needs_conv_dim or layer.kernel_size == (1, 1):
            saved_as = "lora_unet_" + saved_name(name).replace(".", "_")
            targets.append(Target(layer, saved_as, "unet", needs_conv_dim, shared_input(name)))
    return targets


def shared_input(name: str) -> str | None:
    """One name for layers of a U-Net that are given the same input: q, k, v of an attention; all that see captions."""
    owner, _, kind = name.rpartition(".")
    if owner.endswith("attn1") and kind in ("to_q", "to_k", "to_v"):
        return owner
    return "captions" if owner.endswith("attn2") and kind in ("to_k", "to_v") else None


def text_targets(text_encoder: nn.Module, prefix: str, part: str) -> list[Target]:
    """The attention's and the MLP's linear layers of a CLIP text encoder."""
    return [
        Target(layer, f"{prefix}_text_model_{name.removeprefix('text_model.').replace('.', '_')}", part)
        for name, layer, _ in layers_within(text_encoder, TEXT)
    ]


def layers_within(module: nn.Module, class_names: tuple[str, ...]) -> list[tuple[str, nn.Module, str]]:
    """(name, layer, class it lies in) of every linear layer and convolution within modules of these classes."""
    found = []
    for name, owner in module.named_modules():
        kind = type(owner).__name__
        if kind in class_names:
            found += [
                (f"{name}.{inner}", layer, kind)
                for inner, layer in owner.named_modules()
                if isinstance(layer, nn.Linear | nn.Conv2d)
            ]
    return found
