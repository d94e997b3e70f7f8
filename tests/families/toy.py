"""A family of another kind: a flow transformer of kilobytes, with a text encoder of 2 blocks over letters.

Nothing in it is Stable Diffusion's: latents of 8 channels at a quarter of the image's sides, captions of any length,
"flow" as objective, its own names in files. It shows what a family's file has to say, and that nothing else needs to
know of it; `test_toy.py` adds its row to the table. That it imports torch at once is the only liberty it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from library.contracts import (
    BlockLayout,
    BlockNames,
    Conditioning,
    Execution,
    FamilyFacts,
    LatentSpace,
    ModelInfo,
    NoiseSpec,
    Part,
    Target,
    WeightedPrompt,
)
from library.families import vae_kl
from library.families.loading import LoadOptions, Source, Sources, build, fill
from library.families.weights_file import open_tensors

TOY = FamilyFacts(
    name="toy",
    title="Toy",
    resolutions={"flow": 64},
    size_step=8,
    width=16,
    latents=LatentSpace(channels=8, factor=4),
    parts={
        "text_encoder": Part("lora_te_", "text_encoder"),
        "denoiser": Part("lora_unet_", "transformer"),
    },
    text_embeddings=("states", "states_length"),  # (B, S, 16) and (B,): captions differ in length
    blocks=BlockLayout(ends=0, down=0, middle=2, up=0, names=(BlockNames(r"lora_unet_layers_(\d+)_", 0, (1,)),)),
    base_model_version="toy_v1",
    version_prefix="toy",
    noise=NoiseSpec("flow", timestep_law="shift", shift=3.0),
    lora_marks=r"lora_unet_layers_\d+_to_",
    file_marks=("toy.transformer.patches.weight", "toy.text_encoder.letters.weight"),
)
FACTS = {"toy": TOY}
TINY = {
    "toy": {
        "denoiser": dict(width=16, channels=8, patch=2, text_width=16),
        "text_encoder": dict(width=16),
        "vae": dict(in_channels=3, out_channels=3, latent_channels=8, layers_per_block=1, norm_num_groups=4)
        | dict(block_out_channels=[8] * 3, scaling_factor=0.5)
        | dict(down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3),
    }
}
PREFIXES = {"denoiser": "toy.transformer.", "text_encoder": "toy.text_encoder.", "vae": "toy.vae."}
MOST_LETTERS = 225


class Layer(nn.Module):
    """A transformer block: attention over tokens, or from tokens to a caption's states; then an MLP."""

    def __init__(self, width: int, context_width: int | None = None, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(context_width or width, width)
        self.to_v = nn.Linear(context_width or width, width)
        self.to_out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, context: Tensor | None, is_own: Tensor | None) -> Tensor:
        """(B, T, D) tokens, (B, S, D2) to attend to (None: the tokens), (B, S) which of it counts -> (B, T, D)."""
        normed = self.norm1(tokens)
        seen = normed if context is None else context
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.to_q(normed), self.to_k(seen), self.to_v(seen))
        )
        mask = None if is_own is None else is_own[:, None, None, :]
        attended = functional.scaled_dot_product_attention(query, key, value, mask)
        tokens = tokens + self.to_out(attended.transpose(1, 2).flatten(2))
        return tokens + self.down(functional.silu(self.up(self.norm2(tokens))))


def call(layer: Layer, *arguments: Tensor | None) -> Tensor:
    """The block function of a layer: its own forward pass."""
    return layer(*arguments)


class ToyTransformer(nn.Module):
    """The denoiser: patches of latents and the time as tokens, a layer that sees them, a layer that sees the text."""

    def __init__(self, width: int, channels: int, patch: int, text_width: int):
        super().__init__()
        self.patch = patch
        self.patches = nn.Linear(channels * patch**2, width)
        self.time = nn.Linear(2, width)
        self.layers = nn.ModuleList([Layer(width), Layer(width, text_width)])
        self.out = nn.Linear(width, channels * patch**2)
        self.execution: Execution | None = None

    def compute_with(self, execution: Execution) -> None:
        self.execution = execution

    @property
    def block_functions(self) -> tuple[Callable[..., Tensor], ...]:
        return (call,)

    def forward(self, noisy: Tensor, time: Tensor, states: Tensor, is_own: Tensor) -> Tensor:
        """(B, C, h, w), (B,) from 0 (an image) to 1 (noise), (B, S, D), (B, S) -> (B, C, h, w)."""
        rows, columns = noisy.shape[2] // self.patch, noisy.shape[3] // self.patch
        tokens = self.patches(functional.pixel_unshuffle(noisy, self.patch).flatten(2).transpose(1, 2))
        clock = self.time(torch.stack([torch.cos(3 * time), torch.sin(3 * time)], -1).to(tokens.dtype))
        tokens = tokens + clock[:, None]
        for number, (context, mask) in enumerate([(None, None), (states, is_own)]):
            layer = self.layers[number]
            if self.execution is None:
                tokens = call(layer, tokens, context, mask)
            else:
                tokens = self.execution.run_block(f"layers.{number}", call, layer, tokens, context, mask)
        patches = self.out(tokens).transpose(1, 2).unflatten(2, (rows, columns))
        return functional.pixel_shuffle(patches, self.patch)


class ToyTextEncoder(nn.Module):
    """Two blocks over the letters of a caption."""

    def __init__(self, width: int):
        super().__init__()
        self.letters = nn.Embedding(257, width)  # bytes; 256 begins a caption
        self.layers = nn.ModuleList([Layer(width), Layer(width)])

    def forward(self, ids: Tensor, is_own: Tensor) -> Tensor:
        """(B, S) ids, (B, S) which of them are the caption's -> (B, S, D), zeros behind it."""
        states = self.letters(ids)
        for layer in self.layers:
            states = layer(states, None, is_own)
        return states * is_own[..., None]


@dataclass
class Toy:
    """See `contracts.Family`."""

    facts: FamilyFacts
    noise: NoiseSpec
    denoiser: ToyTransformer
    vae: nn.Module
    text_encoder: ToyTextEncoder
    max_token_length: int = MOST_LETTERS
    info: ModelInfo | None = None
    warnings: list[str] = field(default_factory=list)
    size_step: int = TOY.size_step

    def encode_images(self, pixels: Tensor) -> Tensor:
        return vae_kl.encode_images(self.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return vae_kl.decode_latents(self.vae, latents)

    def encode_captions(self, captions: list[str]) -> Conditioning:
        rows = [[256, *caption.encode()][: self.max_token_length] for caption in captions]
        longest = max(map(len, rows))
        device = self.text_encoder.letters.weight.device
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows]).to(device)
        lengths = torch.tensor([len(row) for row in rows]).to(device)
        return {"states": self.text_encoder(ids, _is_own(ids, lengths)), "states_length": lengths}

    def fit_length(self, captions: list[str]) -> None:
        self.max_token_length = MOST_LETTERS

    def encode_weighted(self, prompt: WeightedPrompt, *, is_negative: bool = False) -> Conditioning:
        return self.encode_captions([" ".join(text for section in prompt for text, _ in section)])

    def size_conditioning(self, sizes: Tensor) -> Conditioning:
        return {}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.denoiser.patches.weight.dtype
        states = conditioning["states"].to(dtype)
        is_own = _is_own(states, conditioning["states_length"])
        return self.denoiser(noisy.to(dtype), t.float() / self.noise.step_count, states, is_own)

    def token_counts(self, captions: list[str]) -> list[tuple[int, int]]:
        counts = [1 + len(caption.encode()) for caption in captions]
        return [(count, min(count, self.max_token_length)) for count in counts]

    def targets(self) -> list[Target]:
        text = [
            Target(layer, f"lora_te_{_flat(name)}", "text_encoder", module=f"text_encoder.{name}")
            for name, layer in _linear(self.text_encoder)
        ]
        return text + [
            Target(
                layer,
                f"lora_unet_{_flat(name)}",
                "denoiser",
                module=f"transformer.{name}",
                original=f"diffusion_model.{name}",
            )
            for name, layer in _linear(self.denoiser)
        ]

    def layers(self) -> list[Target]:
        return self.targets()

    def modules(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser, "vae": self.vae, "text_encoder": self.text_encoder}

    def metadata(self) -> dict[str, str]:
        return {"ss_base_model_version": self.facts.base_model_version, "modelspec.architecture": "toy/lora"}


def _is_own(rows: Tensor, lengths: Tensor) -> Tensor:
    """(B, S) which places of rows (B, S, ...) are not padding."""
    return torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]


def _linear(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The linear layers within the blocks: what is adapted."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and "." in name]


def _flat(name: str) -> str:
    return name.replace(".", "_")


def read_configs(name: str) -> dict[str, dict]:
    return TINY[name]


def token_counts(info: ModelInfo, configs: dict[str, dict], captions: list[str]) -> list[int]:
    return [1 + len(caption.encode()) for caption in captions]


def sources(name: str, configs: dict[str, dict]) -> Sources:
    return {part: partial(_source, prefix=PREFIXES[part]) for part in TOY.parts}


def _source(name: str, prefix: str) -> list[Source]:
    return [Source(prefix + name)]


def load(info: ModelInfo, noise: NoiseSpec, configs: dict[str, dict], options: LoadOptions) -> Toy:
    family = create(info.family, noise, configs, "meta", options.max_token_length)
    family.info = info
    tensors = open_tensors([info.path])
    for part, module in family.modules().items():
        prefix = PREFIXES[part]
        place = options.place
        if part == "vae":
            place = place._replace(dtype=options.vae_dtype or place.dtype)
        fill(module, tensors, partial(_source, prefix=prefix), place, part=part, path=info.path, scope=prefix)
    return family


def create(
    name: str, noise: NoiseSpec, configs: dict[str, dict], device: str, max_token_length: int | None = None
) -> Toy:
    return Toy(
        FACTS[name],
        noise,
        build(lambda: ToyTransformer(**configs["denoiser"]), device),
        vae_kl.build_vae(configs["vae"], device),
        build(lambda: ToyTextEncoder(**configs["text_encoder"]), device),
        max_token_length or MOST_LETTERS,
    )


def save(family: Toy, path: Path) -> Path:
    """A file such as people would have."""
    from safetensors.torch import save_file

    save_file(
        {
            PREFIXES[part] + name: tensor
            for part, module in family.modules().items()
            for name, tensor in module.state_dict().items()
        },
        path,
    )
    return path
