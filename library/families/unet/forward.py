"""The U-Net's forward pass, in one sitting: diffusers' modules, computed by functions that are handed in.

diffusers' own forward pass is right, and is what the tests compare with. This one differs in what it keeps, and in how
often it asks the device for something:

    a norm or an activation before a layer is recomputed: its result is not kept but made again in the backward pass
    layers that share an input are computed together, the captions' keys and values for the whole U-Net at once
    single blocks can be recomputed instead of kept: each is computed by a function that is handed in
    attention is a function that is handed in, too

A package imports no other: `operations` and `recompute` come from `adapters`, `attend` and `run_block` from `hardware`.
"""

from collections.abc import Callable

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from library.contracts import Execution
from library.messages import UserError, say

BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D"}


class UNetForward:
    """A U-Net as the families call it: by diffusers' own forward pass, until `compute_with` hands in functions.

    Args:
        unet: of Stable Diffusion 1.x, 2.x or SDXL.
    """

    def __init__(self, unet: UNet2DConditionModel, execution: Execution | None = None):
        self.unet = unet
        self.execution: Execution | None = None
        if execution:
            self.compute_with(execution)

    def compute_with(self, execution: Execution) -> None:
        unet = self.unet
        refuse_odd_unet(unet)
        self.execution = execution
        self.operations, self.recompute, self.attend, self.run_block = execution
        self.name_of = {module: name for name, module in unet.named_modules()}
        blocks = [module for module in unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
        self.of_captions = [layer for block in blocks for layer in (block.attn2.to_k, block.attn2.to_v)]

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        states: Tensor,
        added: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B, C, h, w), (B,), (B, S, D) -> (B, C, h, w).

        Args:
            added: of SDXL: "text_embeds" (B, D2) and "time_ids" (B, 6).
        """
        unet = self.unet
        if self.execution is None:
            return unet(sample, timestep, encoder_hidden_states=states, added_cond_kwargs=added).sample
        time = unet.time_embedding(unet.get_time_embed(sample, timestep))
        more_time = unet.get_aug_embed(time, states, added)
        time = functional.silu(time if more_time is None else time + more_time)  # every resnet begins with it
        projected = self.operations.project_context(states, self.of_captions)
        captions = dict(zip(self.of_captions, projected, strict=True))

        hidden = self.operations.convolve(sample, unet.conv_in)
        skipped = [hidden]
        for block in unet.down_blocks:
            for index, resnet in enumerate(block.resnets):
                hidden = self.block(self.resnet, resnet, hidden, time)
                if hasattr(block, "attentions"):
                    hidden = self.transformer(block.attentions[index], hidden, captions)
                skipped.append(hidden)
            for downsampler in block.downsamplers or ():
                hidden = self.operations.convolve(hidden, downsampler.conv)
                skipped.append(hidden)

        block = unet.mid_block
        hidden = self.block(self.resnet, block.resnets[0], hidden, time)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            hidden = self.transformer(attention, hidden, captions)
            hidden = self.block(self.resnet, resnet, hidden, time)

        for block in unet.up_blocks:
            for index, resnet in enumerate(block.resnets):
                hidden = torch.cat([hidden, skipped.pop()], dim=1)
                hidden = self.block(self.resnet, resnet, hidden, time)
                if hasattr(block, "attentions"):
                    hidden = self.transformer(block.attentions[index], hidden, captions)
            for upsampler in block.upsamplers or ():
                size = skipped[-1].shape[2:]  # twice, or one less where the sides are odd
                hidden = self.operations.convolve(hidden, upsampler.conv, self.recompute.Enlarge(size))
        end = self.recompute.GroupNormSilu(unet.conv_norm_out)
        return self.operations.convolve(hidden, unet.conv_out, end)

    @property
    def block_functions(self) -> tuple[Callable[..., Tensor], ...]:
        return self.resnet, self.transformer_block

    def resnet(self, resnet: ResnetBlock2D, hidden: Tensor, time: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        convolve, normed = self.operations.convolve, self.recompute.GroupNormSilu
        inner = convolve(hidden, resnet.conv1, normed(resnet.norm1), resnet.time_emb_proj(time))
        inner = convolve(inner, resnet.conv2, normed(resnet.norm2))
        return inner + (hidden if resnet.conv_shortcut is None else convolve(hidden, resnet.conv_shortcut))

    def transformer(self, transformer: Transformer2DModel, hidden: Tensor, captions: dict[nn.Module, Tensor]) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        project = self.operations.project
        (tokens,) = project(hidden, [transformer.proj_in], self.recompute.GroupNormTokens(transformer.norm))
        for block in transformer.transformer_blocks:
            key, value = captions[block.attn2.to_k], captions[block.attn2.to_v]
            tokens = self.block(self.transformer_block, block, tokens, key, value)
        (tokens,) = project(tokens, [transformer.proj_out])
        return hidden + tokens.transpose(1, 2).unflatten(2, hidden.shape[2:])

    def transformer_block(self, block: BasicTransformerBlock, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, T, C) tokens of the image, (B, S, C) keys and values of the captions -> (B, T, C)."""
        project, normed = self.operations.project, self.recompute.LayerNorm
        own = block.attn1
        attended = self.attention(own.heads, *project(tokens, [own.to_q, own.to_k, own.to_v], normed(block.norm1)))
        tokens = tokens + project(attended, [own.to_out[0]])[0]

        cross = block.attn2
        (query,) = project(tokens, [cross.to_q], normed(block.norm2))
        attended = self.attention(cross.heads, query, key, value)
        tokens = tokens + project(attended, [cross.to_out[0]])[0]

        (widened,) = project(tokens, [block.ff.net[0].proj], normed(block.norm3))
        return tokens + project(widened, [block.ff.net[2]], self.recompute.Geglu())[0]

    def attention(self, heads: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, T, C), (B, S, C), (B, S, C) -> (B, T, C)."""
        query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        return self.attend(query, key, value).transpose(1, 2).flatten(2)

    def block(self, function: Callable[..., Tensor], block: nn.Module, *tensors: Tensor) -> Tensor:
        """`function(block, *tensors)`, by `run_block`."""
        return self.run_block(self.name_of[block], function, block, *tensors)


def block_names(unet: UNet2DConditionModel) -> list[str]:
    """Names of what is computed as a block, in the order of the forward pass: resnets and transformer blocks."""
    kinds = ("ResnetBlock2D", "BasicTransformerBlock")
    order = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    names = {module: name for name, module in unet.named_modules()}
    found = []
    for block in order:
        attentions = getattr(block, "attentions", None)
        for index, resnet in enumerate(block.resnets):
            before = block is unet.mid_block and index > 0
            if before:
                found += block.attentions[index - 1].transformer_blocks
            found.append(resnet)
            if attentions is not None and block is not unet.mid_block:
                found += attentions[index].transformer_blocks
    assert {type(module).__name__ for module in found} <= set(kinds)
    return [names[module] for module in found]


def is_supported(unet: UNet2DConditionModel) -> bool:
    """Whether a U-Net has only what Stable Diffusion 1.x, 2.x and SDXL have."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    resnets = [module for module in unet.modules() if type(module).__name__ == "ResnetBlock2D"]
    transformers = [module for module in unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    return (
        {type(block).__name__ for block in blocks} <= BLOCKS
        and unet.class_embedding is None
        and unet.time_embed_act is None
        and unet.encoder_hid_proj is None
        and not unet.config.center_input_sample
        and unet.config.downsample_padding != 0  # with 0, diffusers pads on two sides before the convolution
        and all(
            resnet.time_embedding_norm == "default"
            and not (resnet.up or resnet.down or resnet.skip_time_act)
            and resnet.output_scale_factor == 1
            and isinstance(resnet.nonlinearity, nn.SiLU)
            and resnet.dropout.p == 0
            for resnet in resnets
        )
        and all(
            block.norm_type == "layer_norm"
            and not block.only_cross_attention
            and block.pos_embed is None
            and type(block.ff.net[0]).__name__ == "GEGLU"
            for block in transformers
        )
    )


def refuse_odd_unet(unet: UNet2DConditionModel) -> None:
    """Raise a UserError where a U-Net has parts that none of Stable Diffusion's has."""
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
