"""Stable Diffusion XL (and Pony, Illustrious, NoobAI): two text encoders, picture sizes as a condition.

The U-Net sees the states of both encoders side by side, each from its last layer but one and without the final norm;
and a vector of the second encoder's pooled caption and six numbers: original size, crop corner, target size. LoRA files
use the U-Net's original names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from library.contracts import Conditioning, NoiseSpec, Target, WeightedPrompt
from library.families import clip_text
from library.families.loading import Place, Sources
from library.families.recognise import ModelInfo, picture_step, usual_resolution
from library.families.sd import TINY_TEXT, TINY_UNET, TINY_VAE
from library.families.unet import build_unet, load_unet, original_sources
from library.families.unet.targets import text_targets, unet_layers, unet_targets
from library.families.vae import build_vae, decode_latents, encode_images, load_vae
from library.messages import say

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

    name: str
    noise: NoiseSpec
    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    text_encoder_2: nn.Module
    tokenizer: object
    tokenizer_2: object
    chunk_count: int = 1  # of 75 tokens
    info: ModelInfo | None = None  # None: not from a file
    weigh: Callable[[str], list[tuple[str, float]]] | None = None  # see `clip_text.encode_captions`
    warnings: list[str] = field(default_factory=list)  # what the user should know, in their language

    text_embeddings = ("states", "pooled")  # (B, S, D1 + D2), (B, D2)

    def __post_init__(self):
        self.size_step = picture_step(self.vae.config, self.unet.config)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return encode_images(self.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)

    def encode_captions(self, captions: list[str]) -> Conditioning:
        encoded = []
        for tokenizer, model in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            own = (model, tokenizer, captions, self.chunk_count, STATES_FROM)
            encoded.append(clip_text.encode_captions(*own, is_normed=False, weigh=self.weigh))
        states = torch.cat([encoded[0].states, encoded[1].states], dim=-1)  # (B, S, 768 + 1280)
        return {"states": states, "pooled": encoded[1].pooled}

    def encode_weighted(self, prompt: WeightedPrompt, *, is_negative: bool = False) -> Conditioning:
        """As the web UI does: each encoder's states get their mean back, and an empty negative prompt is all zeros."""
        first, second = (
            clip_text.encode_weighted(model, tokenizer, prompt, STATES_FROM, is_normed=False)
            for tokenizer, model in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2))
        )
        states, pooled = torch.cat([first.states, second.states], dim=-1), second.pooled
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
        states = conditioning["states"].to(dtype)
        return self.unet(noisy.to(dtype), t, encoder_hidden_states=states, added_cond_kwargs=vector).sample

    def token_counts(self, captions: list[str]) -> list[tuple[int, int]]:
        room = self.chunk_count * (self.text_encoder.config.max_position_embeddings - 2)
        return [(len(ids), min(len(ids), room)) for ids in clip_text.caption_tokens(self.tokenizer, captions)]

    def targets(self) -> list[Target]:
        return self._text_targets() + unet_targets(self.unet, is_saved_by_original=True)

    def layers(self) -> list[Target]:
        return self._text_targets() + unet_layers(self.unet, is_saved_by_original=True)

    def _text_targets(self) -> list[Target]:
        return [
            *text_targets(self.text_encoder, "lora_te1", "text_encoder"),
            *text_targets(self.text_encoder_2, "lora_te2", "text_encoder_2"),
        ]

    def modules(self) -> dict[str, nn.Module]:
        return {
            "unet": self.unet,
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
        }

    def metadata(self) -> dict[str, str]:
        side = self.info.resolution if self.info else usual_resolution(self.name, self.noise.objective)
        return {
            "ss_v2": "False",
            "ss_base_model_version": "sdxl_base_v1-0",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.prediction_type": self.noise.objective,
            "modelspec.resolution": f"{side}x{side}",
        }


def load(
    info: ModelInfo,
    noise: NoiseSpec,
    configs: dict[str, dict],
    *,
    place: Place,
    vae_path: Path | None,
    vae_dtype: torch.dtype | None,
    clip_skip: int | None,
    chunk_count: int,
) -> StableDiffusionXL:
    """The model that `inspect` has found; arguments as in `families.open_model`."""
    path, is_folder, warnings = info.path, info.path.is_dir(), []
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
    vae = load_vae(vae_path or path, configs["vae"], place._replace(dtype=vae_dtype))
    first, second = configs["text_encoder"], configs["text_encoder_2"]
    places = sources(info.family, configs)
    return StableDiffusionXL(
        name=info.family,
        noise=noise,
        unet=load_unet(path / "unet" if is_folder else path, configs["unet"], place),
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


def sources(name: str, configs: dict[str, dict]) -> Sources:
    """Where a checkpoint in the original layout keeps the parameters of the networks that can be adapted."""
    return {
        "text_encoder": partial(clip_text.clip_sources, prefix="conditioner.embedders.0.transformer."),
        "text_encoder_2": partial(clip_text.open_clip_sources, prefix="conditioner.embedders.1.model."),
        "unet": partial(original_sources, config=configs["unet"]),
    }


def create(
    name: str, noise: NoiseSpec, configs: dict[str, dict], device: str, chunk_count: int = 1
) -> StableDiffusionXL:
    """A model from configurations alone: random, or of true size without memory on the "meta" device."""
    first, second = configs["text_encoder"], configs["text_encoder_2"]
    merges = clip_text.clip_merges()[: first["vocab_size"] - 514]
    return StableDiffusionXL(
        name=name,
        noise=noise,
        unet=build_unet(configs["unet"], device),
        vae=build_vae(configs["vae"], device),
        text_encoder=clip_text.build_text_encoder(first, device),
        text_encoder_2=clip_text.build_text_encoder(second, device, has_projection=True),
        tokenizer=clip_text.build_tokenizer(merges, PAD_TOKENS[0]),
        tokenizer_2=clip_text.build_tokenizer(merges, PAD_TOKENS[1]),
        chunk_count=chunk_count,
    )
