"""What a U-Net's layers are called in the original layout (the names of Stability's code), from diffusers' names.

The original counts its blocks through: with L layers to a block (2 in Stable Diffusion),

    down block b, layer l    input_blocks.{1 + (L+1) b + l}     .0 resnet   .1 attention
    its downsampler          input_blocks.{(L+1) (b+1)}         .0.op
    middle                   middle_block                       .0 resnet   .1 attention   .2 resnet
    up block b, layer l      output_blocks.{(L+1) b + l}        .0 resnet   .1 attention
    its upsampler            output_blocks.{(L+1) b + L}        .2.conv, or .1.conv in a block without attention

Checkpoints are stored under these names; and for SDXL, LoRA files are too. Inside an attention the names are the same.
"""

import re
from collections.abc import Sequence

ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_unet_name(name: str, layers_per_block: int, up_block_types: Sequence[str]) -> str:
    """The original name of a U-Net's layer or parameter.

    Args:
        name: diffusers' name: "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", with or without ".weight".
        layers_per_block: of the U-Net's configuration, as is `up_block_types`.

    Returns:
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q", with what followed `name`.
    """
    for ours, original in ENDS.items():
        if name == ours or name.startswith(ours + "."):
            return original + name.removeprefix(ours)
    found = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", name)
    if not found:
        return name  # no such layer in the original: whoever looks for it will not find it, and say so
    side, block, kind, layer, rest = found.groups()
    block, layer = int(block or 0), int(layer)
    if kind == "resnets":
        first, dot, last = rest.partition(".")
        rest = RESNET.get(first, first) + dot + last
    if side is None:
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{rest}"
    place = (layers_per_block + 1) * block
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{place + layers_per_block + 1}.0.{rest.replace('conv', 'op', 1)}"
        return f"input_blocks.{1 + place + layer}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{place + layers_per_block}.{2 if 'CrossAttn' in up_block_types[block] else 1}.{rest}"
    return f"output_blocks.{place + layer}.{int(kind == 'attentions')}.{rest}"
