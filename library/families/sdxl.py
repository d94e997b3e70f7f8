"""Stable Diffusion XL (and Pony, Illustrious, NoobAI): two text encoders, image sizes as a condition.

The U-Net sees the states of both encoders side by side, each from its last layer but one and without the final norm;
and a vector of the second encoder's pooled caption and six numbers: original size, crop corner, target size. LoRA files
use the U-Net's original names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from library.contracts import (
    BlockLayout,
    BlockNames,
    Conditioning,
    FamilyFacts,
    LatentSpace,
    ModelInfo,
    NoiseSpec,
    Part,
    Target,
    WeightedPrompt,
)
from library.families import clip_text
from library.families.configs import Configs
from library.families.configs import read_configs as read_configs
from library.families.lazily import lazily
from library.families.recognise import image_step
from library.families.sd import TINY_TEXT, TINY_UNET, TINY_VAE
from library.families.sd import token_counts as token_counts  # both text encoders have CLIP's
from library.messages import say

if TYPE_CHECKING:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor, nn
    from transformers import CLIPTokenizer

    from library.families import unet, vae_kl
    from library.families.loading import LoadOptions, Sources
    from library.families.unet import forward, targets
else:
    names = ("unet", "unet.forward", "unet.targets", "vae_kl")
    torch, unet, forward, targets, vae_kl = lazily("torch", *(f"library.families.{name}" for name in names))

SDXL = FamilyFacts(
    name="sdxl",
    title="SDXL",
    resolutions={"epsilon": 1024, "v": 1024},
    size_step=32,
    width=320,
    latents=LatentSpace(channels=4, factor=8),
    parts={
        "text_encoder": Part("lora_te1_", "text_encoder"),
        "text_encoder_2": Part("lora_te2_", "text_encoder_2"),
        "denoiser": Part("lora_unet_", "unet"),
    },
    text_embeddings=("states", "pooled"),  # (B, S, D1 + D2), (B, D2)
    # As sd-scripts counts them: embeddings, 9 down, 3 middle, 9 up, out; the first and last have nothing to adapt.
    blocks=BlockLayout(
        ends=1,
        down=9,
        middle=3,
        up=9,
        names=(
            BlockNames(r"lora_unet_input_blocks_(\d+)_", 1, (1,)),
            BlockNames(r"lora_unet_middle_block_(\d+)_", 10, (1,)),
            BlockNames(r"lora_unet_output_blocks_(\d+)_", 13, (1,)),
        ),
    ),
    base_model_version="sdxl_base_v1-0",
    version_prefix="sdxl",
    context_width=2048,
    chunk_tokens=clip_text.CHUNK,
    knows_english_only=True,
    lora_marks=r"lora_te2_|text_encoder_2\.|lora_unet_(input|output)_blocks_",
)
FACTS = {"sdxl": SDXL}
PAD_TOKENS = ("<|endoftext|>", "!")  # of the first and the second text encoder
STATES_FROM = 2  # the layer whose states are used, counted from the last
TINY = {
    "sdxl": {
        "unet": TINY_UNET
        | dict(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"])
        | dict(up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], transformer_layers_per_block=[1, 2])
        | dict(use_linear_projection=True, cross_attention_dim=40, addition_embed_type="text_time")
        | dict(addition_time_embed_dim=8, projection_class_embeddings_input_dim=20 + 6 * 8),
        "vae": TINY_VAE | {"scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": TINY_TEXT | {"hidden_act": "quick_gelu"},
        "text_encoder_2": TINY_TEXT | dict(hidden_size=24, hidden_act="gelu", projection_dim=20),
    }
}


@dataclass
class StableDiffusionXL:
    """The family of SDXL ("sdxl"); see `contracts.Family`."""

    facts: FamilyFacts
    noise: NoiseSpec
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: clip_text.TextEncoder
    text_encoder_2: clip_text.TextEncoder
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    chunk_count: int = 1  # of 75 tokens
    info: ModelInfo | None = None  # None: not from a file
    weigh: Callable[[str], list[tuple[str, float]]] | None = None  # see `clip_text.encode_captions`
    warnings: list[str] = field(default_factory=list)  # what the user should know, in their language

    def __post_init__(self) -> None:
        self.size_step = image_step(self.vae.config, self.unet.config)
        self.denoiser = forward.UNetForward(self.unet)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return vae_kl.encode_images(self.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return vae_kl.decode_latents(self.vae, latents)

    def encode_captions(self, captions: list[str]) -> Conditioning:
        encoded = []
        for tokenizer, model in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            own = (model, tokenizer, captions, self.chunk_count, STATES_FROM)
            encoded.append(clip_text.encode_captions(*own, is_normed=False, weigh=self.weigh))
        states = torch.cat([encoded[0].states, encoded[1].states], dim=-1)  # (B, S, 768 + 1280)
        assert encoded[1].pooled is not None
        return {"states": states, "pooled": encoded[1].pooled}

    def fit_length(self, captions: list[str]) -> None:
        self.chunk_count = clip_text.chunks_of([tokens for tokens, _ in self.token_counts(captions)])

    def encode_weighted(self, prompt: WeightedPrompt, *, is_negative: bool = False) -> Conditioning:
        """As the web UI does: each encoder's states get their mean back, and an empty negative prompt is all zeros."""
        first, second = (
            clip_text.encode_weighted(model, tokenizer, prompt, STATES_FROM, is_normed=False)
            for tokenizer, model in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        )
        states, pooled = torch.cat([first.states, second.states], dim=-1), second.pooled
        assert pooled is not None
        if is_negative and not "".join(text for section in prompt for text, _ in section):
            states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
        return {"states": states, "pooled": pooled}

    def size_conditioning(self, sizes: Tensor) -> Conditioning:
        return {"sizes": sizes}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.unet.conv_in.weight.dtype
        vector = {
            "text_embeds": conditioning["pooled"].to(dtype),
            "time_ids": conditioning["sizes"].to(noisy.device, torch.float32),  # half precision would round 1023 pixels
        }
        return self.denoiser(noisy.to(dtype), t, conditioning["states"].to(dtype), vector)

    def token_counts(self, captions: list[str]) -> list[tuple[int, int]]:
        room = self.chunk_count * (self.text_encoder.config.max_position_embeddings - 2)
        return [(len(ids), min(len(ids), room)) for ids in clip_text.caption_tokens(self.tokenizer, captions)]

    def targets(self) -> list[Target]:
        prefix = self.facts.parts["denoiser"].prefix
        return self._text_targets() + targets.unet_targets(self.unet, prefix, is_saved_by_original=True)

    def layers(self) -> list[Target]:
        prefix = self.facts.parts["denoiser"].prefix
        return self._text_targets() + targets.unet_layers(self.unet, prefix, is_saved_by_original=True)

    def _text_targets(self) -> list[Target]:
        encoders = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return [
            target
            for part, encoder in encoders.items()
            for target in targets.text_targets(encoder, self.facts.parts[part].prefix, part)
        ]

    def modules(self) -> dict[str, nn.Module]:
        return {
            "denoiser": self.unet,
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }

    def metadata(self) -> dict[str, str]:
        side = self.info.resolution if self.info else self.facts.resolutions[self.noise.objective]
        return {
            "ss_v2": "False",
            "ss_base_model_version": self.facts.base_model_version,
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.prediction_type": self.noise.objective,
            "modelspec.resolution": f"{side}x{side}",
        }


def load(info: ModelInfo, noise: NoiseSpec, configs: Configs, options: LoadOptions) -> StableDiffusionXL:
    """The model that `inspect` has found."""
    path, is_folder, warnings = info.path, info.path.is_dir(), []
    place, vae_dtype, clip_skip = options.place, options.vae_dtype, options.clip_skip
    chunk_count = clip_text.chunks_for(options.max_token_length)
    if clip_skip is not None:
        warnings.append(
            say(
                f"clip_skip = {clip_skip} has no effect with SDXL: it always takes the last layer but one.",
                f"clip_skip = {clip_skip} 对 SDXL 不起作用：SDXL 固定使用倒数第二层。",
            )
        )
    if vae_dtype is None:
        overflows = place.dtype == torch.float16 and configs["vae"].get("force_upcast", True)
        vae_dtype = torch.float32 if overflows else place.dtype
    vae = vae_kl.load_vae(options.vae_path or path, configs["vae"], place._replace(dtype=vae_dtype))
    first, second = configs["text_encoder"], configs["text_encoder_2"]
    places = sources(info.family, configs)
    return StableDiffusionXL(
        facts=SDXL,
        noise=noise,
        unet=unet.load_unet(path / "unet" if is_folder else path, configs["unet"], place),
        vae=vae,
        text_encoder=clip_text.load_text_encoder(
            path / "text_encoder" if is_folder else path,
            first,
            places["text_encoder"],
            place,
            scope="conditioner.embedders.0.",
        ),
        text_encoder_2=clip_text.load_text_encoder(
            path / "text_encoder_2" if is_folder else path,
            second,
            places["text_encoder_2"],
            place,
            has_projection=True,
            scope="conditioner.embedders.1.",
        ),
        tokenizer=clip_text.folder_tokenizer(path / "tokenizer", first["vocab_size"], PAD_TOKENS[0]),
        tokenizer_2=clip_text.folder_tokenizer(path / "tokenizer_2", second["vocab_size"], PAD_TOKENS[1]),
        chunk_count=chunk_count,
        info=info,
        warnings=warnings,
    )


def sources(name: str, configs: Configs) -> Sources:
    """Where a checkpoint in the original layout keeps the parameters of the networks that can be adapted."""
    return {
        "text_encoder": partial(clip_text.clip_sources, prefix="conditioner.embedders.0.transformer."),
        "text_encoder_2": partial(clip_text.open_clip_sources, prefix="conditioner.embedders.1.model."),
        "denoiser": partial(unet.original_sources, config=configs["unet"]),
    }


def create(
    name: str, noise: NoiseSpec, configs: Configs, device: str, max_token_length: int | None = None
) -> StableDiffusionXL:
    """A model from configurations alone: random, or of true size without memory on the "meta" device."""
    first, second = configs["text_encoder"], configs["text_encoder_2"]
    merges = clip_text.clip_merges()[: first["vocab_size"] - 514]
    return StableDiffusionXL(
        facts=SDXL,
        noise=noise,
        unet=unet.build_unet(configs["unet"], device),
        vae=vae_kl.build_vae(configs["vae"], device),
        text_encoder=clip_text.build_text_encoder(first, device),
        text_encoder_2=clip_text.build_text_encoder(second, device, has_projection=True),
        tokenizer=clip_text.build_tokenizer(merges, PAD_TOKENS[0]),
        tokenizer_2=clip_text.build_tokenizer(merges, PAD_TOKENS[1]),
        chunk_count=clip_text.chunks_for(max_token_length),
    )
