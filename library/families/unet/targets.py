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


def named_layers(
    unet: nn.Module, saved_name: Callable[[str], str], targets: list[Target], **text_encoders: nn.Module
) -> dict[str, Target]:
    """Layers under the names that LoRA files have for them, by whichever trainer; more than we adapt ourselves.

    `lora_unet_...` with the saved name or diffusers' (which some trainers use for SDXL too), `lora_te...`, and the
    names with dots of diffusers' and peft's own files: `unet.mid_block....`, `text_encoder.text_model....`.

    Args:
        saved_name: as for `unet_targets`.
        targets: the family's; those of text encoders are taken from there.
        text_encoders: by the name of the part.
    """
    names = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            saved_as = "lora_unet_" + saved_name(name).replace(".", "_")
            target = Target(layer, saved_as, "unet")
            names |= dict.fromkeys((saved_as, "lora_unet_" + name.replace(".", "_"), f"unet.{name}"), target)
    names |= {target.saved_as: target for target in targets if target.part != "unet"}
    target_of = {target.layer: target for target in targets}
    for part, module in text_encoders.items():
        for name, layer in module.named_modules():
            if layer in target_of:
                bare = name.removeprefix("text_model.")
                names |= dict.fromkeys((f"{part}.text_model.{bare}", f"{part}.{bare}"), target_of[layer])
    return names


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
