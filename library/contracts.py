"""The nouns that parts hand to one another. Beside these, `config`, `checks`, `messages` a part imports no other.

Letters of shapes, everywhere in the project:
    B batch            C channels of a latent    h, w latent rows and columns    H, W image rows and columns
    S caption tokens   D width of their states   r rank of an adapter            n, m inputs and outputs of a layer
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # images and captions are read and checked before torch is imported
    from torch import Tensor, nn

    from library.options.training import Config


class Mask(NamedTuple):
    """What of an image is learnt: where its mask file is white and it is not transparent itself."""

    path: Path | None  # of the mask file; None: there is none
    is_alpha: bool  # whether the image's transparent parts are left out
    share: float  # of the image that is learnt, 0 to 1; at most, where both the file and transparency leave parts out
    digest: str = ""  # of the mask file


@dataclass(frozen=True)
class Sample:
    """One image of the training or regularization set and what belongs to it, as found on disk."""

    image_path: Path
    caption: str  # as in the file (all lines), or the folder's text where there is no file
    width: int  # of the upright image: EXIF orientation is applied
    height: int
    folder: str  # base name of its `N_concept` folder
    repeats: int
    is_regularization: bool
    caption_path: Path | None = None  # None: the caption is the folder's text
    mask: Mask | None = None  # None: all of it is learnt
    subset: int = 0  # place of its folder among those that were found
    dataset: int = 0  # whose sizes, batches and balance of regularization images it shares
    options: Config | None = field(default=None, compare=False, repr=False)  # of its subset; None: the run's own


class Fit(NamedTuple):
    """How an image is brought to its bucket: resized to cover it, then cropped. All in pixels, width first."""

    bucket: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int]  # left, top of the bucket within the resized image
    kernel: str | None = None  # what it is resized with, as `resize_interpolation` names it; None: the usual


Conditioning = dict[str, "Tensor"]
"""What a network is told beside the noisy latents: {name: (B, ...)}, under names of the family's own.

A family makes it and its `predict` reads it; everyone between handles a mapping of tensors. Two endings of names are
understood by all: `_ids` are whole numbers (int64); and where captions differ in length, `<name>_length` (B,) int64
says how many entries of each row of `<name>` (B, S, ...) are its own. The rest of the row is padding, zeros.
"""


@dataclass
class Batch:
    """What one forward pass needs. What is cached is not fresh: of each pair below one is None."""

    samples: list[Sample]
    captions: list[str]  # (B) after shuffle, dropout, ...
    weights: Tensor  # (B,) 1.0, or prior_loss_weight for regularization images
    size_conditioning: Conditioning  # what the network is told of the images' sizes; {}: nothing
    latents: Tensor | None = None  # (B, C, h, w) scaled, from the cache
    pixels: Tensor | None = None  # (B, 3, H, W) in [-1, 1]
    text_embeddings: Conditioning | None = None  # of the captions, from the cache; None: encode them
    masks: Tensor | None = None  # (B, 1, h, w) in [0, 1], how much each place is learnt; None: all of every image

    def encoded(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, C, h, w) latents: those of the cache, or what `encode` makes of the pixels."""
        if self.latents is not None:
            return self.latents
        assert self.pixels is not None, "one of the two is there"
        return encode(self.pixels)


@dataclass(frozen=True)
class NoiseSpec:
    """The noise that a family of models was trained to remove."""

    objective: str = "epsilon"  # what the network predicts: "epsilon", "v" or "flow"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    step_count: int = 1000
    zero_terminal_snr: bool = False  # rescaled so that nothing of an image is left at the last step
    timestep_law: str = "uniform"  # of "flow": a key of `diffusion.timesteps.LAWS`
    shift: float = 1.0  # of "flow": how far samplers (and the law "shift") go towards noise
    patch_size: int = 2  # of "flow": rows and columns of a latent that are one token


class LatentSpace(NamedTuple):
    """What a family's VAE makes of an image. The scale of its numbers stands in the VAE's own configuration."""

    channels: int = 4
    factor: int = 8  # pixels to a latent, along a side


class Part(NamedTuple):
    """A network of a family that can be adapted."""

    prefix: str  # of its layers' names in a LoRA file: "lora_unet_"
    folder: str  # its own in a diffusers model: "unet"


class BlockNames(NamedTuple):
    """What the layers of some blocks are called in a saved file, and which blocks these are."""

    pattern: str  # from the beginning of a layer's name; its groups are whole numbers
    first: int  # the block where all of them are 0
    strides: tuple[int, ...] = ()  # blocks that each number counts for


@dataclass(frozen=True)
class BlockLayout:
    """The blocks of a denoiser, in the order of the lists that have a value for each (`block_dims`, ...)."""

    ends: int  # 1: a block before the first and one behind the last, whose learning rate has no factor
    down: int
    middle: int
    up: int
    names: tuple[BlockNames, ...]

    @property
    def count(self) -> int:
        return 2 * self.ends + self.down + self.middle + self.up

    def index(self, name: str) -> int | None:
        """The block of a layer, by its name in the file; None of other layers."""
        for pattern, first, strides in self.names:
            if found := re.match(pattern, name):
                return first + sum(stride * int(number) for stride, number in zip(strides, found.groups(), strict=True))
        return None


@dataclass(frozen=True)
class FamilyFacts:
    """What a family of base models is: one literal in its file. Whoever needs a fact is handed it, or all of them."""

    name: str  # "sd1": how the code calls it
    title: str  # "SD 1.x": how people do
    resolutions: Mapping[str, int]  # what such a model may predict -> side of the usual images in px; the usual first
    size_step: int  # px; the sides of images are multiples of it
    width: int  # channels of the denoiser: of its first block
    latents: LatentSpace
    parts: Mapping[str, Part]  # "text_encoder", "text_encoder_2", "denoiser", in the order of the saved file
    text_embeddings: tuple[str, ...]  # the names of what `Family.encode_captions` gives, in their order
    blocks: BlockLayout
    base_model_version: str  # `ss_base_model_version` of its LoRA files
    version_prefix: str  # how that begins, whoever wrote the file
    noise: NoiseSpec = NoiseSpec()  # that it was trained to remove; a model may have another objective
    context_width: int | None = None  # of the captions' states that its cross attention reads: seen in LoRA files
    lora_marks: str | None = None  # pattern of names of layers that no other family's LoRA files have
    file_marks: tuple[str, ...] = ()  # tensors by which a single file is known; (): see `families.recognise`
    is_v2: bool = False  # `ss_v2` of its LoRA files: SD 2.x
    chunk_tokens: int = 1  # its text encoders see multiples of so many of a caption's tokens
    knows_english_only: bool = False  # its text encoders; other languages are fragments to them
    has_clip_skip: bool = False  # another than the last layer of its text encoder may be asked for
    saved_layout: str = "kohya"  # how its LoRA files are written, a key of `lora_files.layouts.LAYOUTS`


@dataclass(frozen=True)
class ModelInfo:
    """What kind of base model a file or folder is."""

    path: Path
    family: str  # "sd1", "sd2", "sdxl", ...: a row of `families.table.FAMILIES`
    objective: str  # "epsilon", "v" or "flow"
    objective_source: str  # where that was seen, in the user's language
    is_objective_seen: bool  # False: nothing tells it, and the usual is assumed
    layout: str  # "single file" (original names) or "diffusers folder"
    resolution: int  # pixels; the side of the square images it was trained on
    size_step: int  # pixels; images are whole multiples of it
    width: int  # channels of the denoiser's first block: 320 in every Stable Diffusion
    zero_terminal_snr: bool = False  # the model was trained down to pure noise; training should do so too
    metadata: dict[str, str] = field(default_factory=dict)  # of the single file's header


class Target(NamedTuple):
    """A layer to adapt and its names: names are the family's, execution is the adapter's.

    `saved_as` is the one by which it is known in this program, in training states too; it never changes. What files of
    other programs call it follows from it and the two names with dots: see `lora_files/layouts.py`.
    """

    layer: nn.Linear | nn.Conv2d
    saved_as: str  # "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", as kohya writes it
    part: str  # "text_encoder", "text_encoder_2" or "denoiser"
    needs_conv_dim: bool = False  # adapted only where conv_dim is given (resnets, down- and upsamplers)
    shares_input: str | None = None  # layers of one such name are given the same input
    module: str = ""  # in diffusers: "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    original: str = ""  # in the original model: "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    original_row: int | None = None  # of the original's layer, where this one's outputs begin; None: it is all of it


WeightedPrompt = list[list[tuple[str, float]]]
"""A prompt as web UIs weigh it: sections, each to be encoded by itself, of (text, weight of its tokens)."""


Attend = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""Attention: (B, heads, T, d), (B, heads, S, d), (B, heads, S, d) -> (B, heads, T, d)."""

RunBlock = Callable[..., "Tensor"]
"""Computes a block: its name within the denoiser, a function and its arguments, the block first -> what that gives."""


class Operations(NamedTuple):
    """Layers computed with what lies before them: `adapters.linear_ops.FAST` or `PLAIN`."""

    project: Callable[..., list[Tensor]]  # one input, several linear layers
    project_context: Callable[..., list[Tensor]]  # the captions, all layers that see them
    convolve: Callable[..., Tensor]


class Execution(NamedTuple):
    """The functions by which a denoiser is computed: fast, frugal or plain ones, which give the same."""

    operations: Operations
    recompute: ModuleType  # `adapters.recompute`: what comes before a layer and is not kept
    attend: Attend
    run_block: RunBlock  # `hardware.blocks.Blocks.run` recomputes some of them


class Denoiser(Protocol):
    """The network that removes noise: what `Family.predict` calls."""

    execution: Execution | None  # None: by its modules' own functions

    def compute_with(self, execution: Execution) -> None:
        """Be computed so from now on. Raises UserError: the network has parts that cannot be."""

    @property
    def block_functions(self) -> Sequence[Callable[..., Tensor]]:
        """Those that `run_block` is given, each once: what can be compiled."""


class Family(Protocol):
    """A line of base models (SD 1.x, SDXL, ...): everything that differs between them."""

    facts: FamilyFacts
    noise: NoiseSpec
    denoiser: Denoiser
    size_step: int  # images are whole multiples of it: 64 (SD 1.x, 2.x), 32 (SDXL), 16 (the miniature)
    weigh: Callable[[str], list[tuple[str, float]]] | None  # cuts a caption by its weights; None: all count alike
    warnings: list[str]  # what the user should know of the model as it was read

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) scaled latents: the mean of the VAE's distribution."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled -> (B, 3, H, W) in [-1, 1]."""

    def encode_captions(self, captions: list[str]) -> Conditioning:
        """(B) captions -> their part of what `predict` takes. Gradients flow if they are on."""

    def fit_length(self, captions: list[str]) -> None:
        """From now on captions as long as the longest of these are encoded whole, as far as web UIs would."""

    def encode_weighted(self, prompt: WeightedPrompt, *, is_negative: bool = False) -> Conditioning:
        """One prompt -> what AUTOMATIC1111's web UI tells its network for it; of any length."""

    def size_conditioning(self, sizes: Tensor) -> Conditioning:
        """(B, 6) original height, width, crop top, left, target height, width -> the other part; often {}."""

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """(B, C, h, w) noisy latents, (B,) timesteps, both parts in one -> the network's prediction (B, C, h, w)."""

    def token_counts(self, captions: list[str]) -> list[tuple[int, int]]:
        """For each caption: its tokens, and how many of them the text encoder sees (the rest is cut)."""

    def targets(self) -> list[Target]:
        """Every layer that can be adapted, in the order of the saved file."""

    def layers(self) -> list[Target]:
        """Every layer that LoRA files, other trainers' too, may have something for; `targets` are some of them."""

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name, "denoiser", "vae", "text_encoder" (and "text_encoder_2"): to place and to freeze."""

    def metadata(self) -> dict[str, str]:
        """ss_* and modelspec.* entries that say what kind of base model this is."""


class Step(Protocol):
    """The denoiser's forward and backward pass over one batch, as a function of tensors alone.

    Everything that is left to chance is drawn before it. So it can be recorded (`hardware.cuda_graphs`); the plain
    version has nothing to clear or to disable.
    """

    def __call__(self, *inputs: Tensor | None, **conditioning: Tensor) -> Sequence[Tensor | None]:
        """The loss, and the gradients of what came from the text encoders; those of the adapters are added up."""

    def plain(self, *inputs: Tensor | None, **conditioning: Tensor) -> Sequence[Tensor | None]:
        """The same, never recorded: for whoever observes the blocks that it passes through."""

    def clear(self) -> None:
        """Give back the memory that is held between steps; it is taken again when needed."""

    def disable(self) -> bool:
        """Do without that memory from now on; False: none is held, so it would not help."""
