"""Stable Diffusion 1.x and 2.x: one text encoder, latents scaled by 0.18215.

They differ in the text encoder (OpenAI's CLIP-L; OpenCLIP-H up to its last layer but one), in the padding of captions
and in linear or 1x1 projections, which the configuration tells. SD 2.x comes with the epsilon and the v objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from library.families.configs import read_configs as read_configs  # of both families
from library.families.lazily import lazily
from library.families.recognise import image_step
from library.messages import say

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor, nn
    from transformers import CLIPTokenizer

    from library.families import unet, vae_kl
    from library.families.loading import LoadOptions, Sources
    from library.families.unet import forward, targets
else:
    names = ("unet", "unet.forward", "unet.targets", "vae_kl")
    unet, forward, targets, vae_kl = lazily(*(f"library.families.{name}" for name in names))

# As sd-scripts counts them: 12 down, 1 middle, 12 up; the first, conv_in, has nothing to adapt.
BLOCKS = BlockLayout(
    ends=0,
    down=12,
    middle=1,
    up=12,
    names=(
        BlockNames(r"lora_unet_down_blocks_(\d+)_(?:resnets|attentions)_(\d+)_", 1, (3, 1)),
        BlockNames(r"lora_unet_down_blocks_(\d+)_downsamplers_", 3, (3,)),
        BlockNames(r"lora_unet_mid_block_", 12),
        BlockNames(r"lora_unet_up_blocks_(\d+)_(?:resnets|attentions)_(\d+)_", 13, (3, 1)),
        BlockNames(r"lora_unet_up_blocks_(\d+)_upsamplers_", 15, (3,)),
    ),
)
SD1 = FamilyFacts(
    name="sd1",
    title="SD 1.x",
    resolutions={"epsilon": 512, "v": 512},
    size_step=64,
    width=320,
    latents=LatentSpace(channels=4, factor=8),
    parts={"text_encoder": Part("lora_te_", "text_encoder"), "denoiser": Part("lora_unet_", "unet")},
    text_embeddings=("states",),  # (B, S, D)
    blocks=BLOCKS,
    base_model_version="sd_v1",
    version_prefix="sd_v1",
    context_width=768,
    chunk_tokens=clip_text.CHUNK,
    knows_english_only=True,
    has_clip_skip=True,
)
SD2 = replace(
    SD1,
    name="sd2",
    title="SD 2.x",
    resolutions={"v": 768, "epsilon": 512},
    base_model_version="sd_v2",
    version_prefix="sd_v2",
    context_width=1024,
    is_v2=True,
)
FACTS = {"sd1": SD1, "sd2": SD2}
PAD_TOKEN = {"sd1": "<|endoftext|>", "sd2": "!"}
TINY_TEXT = dict(vocab_size=770, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
TINY_TEXT |= dict(max_position_embeddings=77, projection_dim=16, bos_token_id=768, eos_token_id=769)
TINY_UNET = dict(in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4, block_out_channels=[8, 16])
TINY_UNET |= dict(cross_attention_dim=16, attention_head_dim=2)
TINY_UNET |= dict(down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"])
TINY_UNET |= dict(up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"])
TINY_VAE = dict(in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, block_out_channels=[8] * 4)
TINY_VAE |= dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
TINY_VAE |= dict(norm_num_groups=4, scaling_factor=0.18215)
TINY = {
    "sd1": {"unet": TINY_UNET, "vae": TINY_VAE, "text_encoder": TINY_TEXT | {"hidden_act": "quick_gelu"}},
    "sd2": {
        "unet": TINY_UNET | {"use_linear_projection": True},
        "vae": TINY_VAE,
        "text_encoder": TINY_TEXT | {"hidden_act": "gelu"},
    },
}


@dataclass
class StableDiffusion:
    """The family of SD 1.x ("sd1") and SD 2.x ("sd2"); see `contracts.Family`."""

    facts: FamilyFacts
    noise: NoiseSpec
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: clip_text.TextEncoder
    tokenizer: CLIPTokenizer
    clip_skip: int | None = None  # which layer of the text encoder, counted from the last; None: the last
    chunk_count: int = 1  # of 75 tokens
    info: ModelInfo | None = None  # None: not from a file
    weigh: Callable[[str], list[tuple[str, float]]] | None = None  # see `clip_text.encode_captions`
    warnings: list[str] = field(default_factory=list)  # what the user should know, in their language

    def __post_init__(self) -> None:
        self.size_step = image_step(self.vae.config, self.unet.config)
        self.denoiser = forward.UNetForward(self.unet)
        clip_text.refuse_deep_skip(self.clip_skip, self.text_encoder.config.num_hidden_layers)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return vae_kl.encode_images(self.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return vae_kl.decode_latents(self.vae, latents)

    def encode_captions(self, captions: list[str]) -> Conditioning:
        encoded = clip_text.encode_captions(
            self.text_encoder, self.tokenizer, captions, self.chunk_count, self.clip_skip or 1, weigh=self.weigh
        )
        return {"states": encoded.states}

    def fit_length(self, captions: list[str]) -> None:
        self.chunk_count = clip_text.chunks_of([tokens for tokens, _ in self.token_counts(captions)])

    def encode_weighted(self, prompt: WeightedPrompt, *, is_negative: bool = False) -> Conditioning:
        encoded = clip_text.encode_weighted(self.text_encoder, self.tokenizer, prompt, self.clip_skip or 1)
        return {"states": encoded.states}

    def size_conditioning(self, sizes: Tensor) -> Conditioning:
        return {}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.unet.conv_in.weight.dtype
        return self.denoiser(noisy.to(dtype), t, conditioning["states"].to(dtype))

    def token_counts(self, captions: list[str]) -> list[tuple[int, int]]:
        room = self.chunk_count * (self.text_encoder.config.max_position_embeddings - 2)
        return [(len(ids), min(len(ids), room)) for ids in clip_text.caption_tokens(self.tokenizer, captions)]

    def targets(self) -> list[Target]:
        prefix = self.facts.parts["denoiser"].prefix
        return self._text_targets() + targets.unet_targets(self.unet, prefix, is_saved_by_original=False)

    def layers(self) -> list[Target]:
        prefix = self.facts.parts["denoiser"].prefix
        return self._text_targets() + targets.unet_layers(self.unet, prefix, is_saved_by_original=False)

    def _text_targets(self) -> list[Target]:
        part = "text_encoder"
        return targets.text_targets(self.text_encoder, self.facts.parts[part].prefix, part)

    def modules(self) -> dict[str, nn.Module]:
        return {"denoiser": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def metadata(self) -> dict[str, str]:
        is_v2, is_v = self.facts.is_v2, self.noise.objective == "v"
        line = "v1" if not is_v2 else "v2-768-v" if is_v else "v2-512"
        side = self.info.resolution if self.info else self.facts.resolutions[self.noise.objective]
        return {
            "ss_v2": str(is_v2),
            "ss_base_model_version": self.facts.base_model_version + ("_v" if is_v else ""),
            "modelspec.architecture": f"stable-diffusion-{line}/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": self.noise.objective,
            "modelspec.resolution": f"{side}x{side}",
        }


def load(info: ModelInfo, noise: NoiseSpec, configs: Configs, options: LoadOptions) -> StableDiffusion:
    """The model that `inspect` has found."""
    path, is_folder, warnings = info.path, info.path.is_dir(), []
    place, clip_skip = options.place, options.clip_skip
    chunk_count = clip_text.chunks_for(options.max_token_length)
    text_config = configs["text_encoder"]
    clip_text.refuse_deep_skip(clip_skip, text_config["num_hidden_layers"])  # before gigabytes are read
    if info.family == "sd2" and (clip_skip or 1) > 1:
        warnings.append(
            say(
                f"clip_skip = {clip_skip} with SD 2.x: its text encoder already ends at the last layer but one; "
                "None is usual.",
                f"SD 2.x 使用了 clip_skip = {clip_skip}：它的文本编码器本来就只到倒数第二层，通常填 None。",
            )
        )
    vae_place = place._replace(dtype=options.vae_dtype or place.dtype)
    vae = vae_kl.load_vae(options.vae_path or path, configs["vae"], vae_place)
    unused = f"cond_stage_model.model.transformer.resblocks.{text_config['num_hidden_layers']}."  # SD 2.x: the last one
    ignored = (unused,) if info.family == "sd2" else ()
    return StableDiffusion(
        facts=FACTS[info.family],
        noise=noise,
        unet=unet.load_unet(path / "unet" if is_folder else path, configs["unet"], place),
        vae=vae,
        text_encoder=clip_text.load_text_encoder(
            path / "text_encoder" if is_folder else path,
            text_config,
            sources(info.family, configs)["text_encoder"],
            place,
            scope="cond_stage_model.",
            ignored=ignored,
        ),
        tokenizer=clip_text.folder_tokenizer(path / "tokenizer", text_config["vocab_size"], PAD_TOKEN[info.family]),
        clip_skip=clip_skip,
        chunk_count=chunk_count,
        info=info,
        warnings=warnings,
    )


def token_counts(info: ModelInfo, configs: Configs, captions: list[str]) -> list[int]:
    tokenizer = clip_text.folder_tokenizer(info.path / "tokenizer", configs["text_encoder"]["vocab_size"])
    return [len(ids) for ids in clip_text.caption_tokens(tokenizer, captions)]


def sources(name: str, configs: Configs) -> Sources:
    """Where a checkpoint in the original layout keeps the parameters of the networks that can be adapted."""
    if name == "sd2":
        text = partial(clip_text.open_clip_sources, prefix="cond_stage_model.model.")
    else:
        text = partial(clip_text.clip_sources, prefix="cond_stage_model.transformer.")
    return {"text_encoder": text, "denoiser": partial(unet.original_sources, config=configs["unet"])}


def create(
    name: str, noise: NoiseSpec, configs: Configs, device: str, max_token_length: int | None = None
) -> StableDiffusion:
    """A model from configurations alone: random, or of true size without memory on the "meta" device."""
    text_config = configs["text_encoder"]
    merges = clip_text.clip_merges()[: text_config["vocab_size"] - 514]
    return StableDiffusion(
        facts=FACTS[name],
        noise=noise,
        unet=unet.build_unet(configs["unet"], device),
        vae=vae_kl.build_vae(configs["vae"], device),
        text_encoder=clip_text.build_text_encoder(text_config, device),
        tokenizer=clip_text.build_tokenizer(merges, PAD_TOKEN[name]),
        chunk_count=clip_text.chunks_for(max_token_length),
    )
