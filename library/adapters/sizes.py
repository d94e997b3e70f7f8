"""What a layer may have of its own: rank, alpha, and the learning rate.

By block of the denoiser (`block_dims`, `down_lr_weight`, ...), by patterns of names (`network_reg_dims`, ...), or as a
LoRA file has them (`dim_from_weights`). What is not said here is as `adapters.attach` gives it to every layer. How the
blocks are counted is a fact of the family, a `contracts.BlockLayout`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from library.contracts import BlockLayout, Target
from library.messages import UserError, plural, say
from library.options.training import Config

if TYPE_CHECKING:
    from torch import Tensor


class LrScale(NamedTuple):
    """How fast layers learn that learn alike."""

    name: str = ""  # "block5", "reg0"; "": as the part of the model does
    factor: float = 1.0  # of the part's learning rate
    rate: float | None = None  # a learning rate instead of the part's


class ParamGroup(NamedTuple):
    """What learns at one rate."""

    part: str  # of the model
    lr_scale: LrScale
    is_plus: bool  # what LoRA+ lets learn faster

    @property
    def name(self) -> str:
        """ "unet", "unet_block5", "unet_block5 plus": as sd-scripts names the curves of its learning rates."""
        own = f"_{self.lr_scale.name}" if self.lr_scale.name else ""
        part = "unet" if self.part == "denoiser" else self.part
        return f"{part}{own}{' plus' if self.is_plus else ''}"


class Size(NamedTuple):
    """What a layer has of its own."""

    rank: int | None = None  # 0: it is left out; None: as its like
    alpha: float | None = None  # None: as its like
    lr_scale: LrScale = LrScale()


BLOCK_NAMES = ("BASE", "IN", "MID", "OUT", "BLOCK", "TIME")  # how they begin, in their order


def part_of(name: str) -> str:
    """The part of the model that a layer is of, by its name in a file of any trainer."""
    found = re.match(r"(?:lora_te|text_encoder_?)(\d*)[._]", name)
    if not found:
        return "denoiser"
    return "text_encoder" if found[1] in ("", "1") else f"text_encoder_{found[1]}"


def block_name(name: str) -> str:
    """The block of a layer as tools for block weights call it: BASE (text), IN00~11, MID, OUT00~11; else BLOCK00~99.

    In diffusers' names they are counted as in a Stable Diffusion of true size: two layers to a block.
    """
    part = part_of(name)
    if part != "denoiser":
        return f"BASE {part.removeprefix('text_encoder_')}" if part != "text_encoder" else "BASE"
    if found := re.search(r"(input|output)_blocks[._](\d+)[._]", name):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02d}"
    if re.search(r"middle_block|mid_block", name):
        return "MID"
    if found := re.search(r"(down|up)_blocks[._](\d+)[._](\w+?)[._](\d+)[._]", name):
        side, place, kind, layer = found[1], int(found[2]), found[3], int(found[4])
        if side == "down":
            return f"IN{3 * (place + 1) if kind == 'downsamplers' else 1 + 3 * place + layer:02d}"
        return f"OUT{3 * place + (2 if kind == 'upsamplers' else layer):02d}"
    if found := re.search(r"(?:blocks|layers)[._](\d+)[._]", name):  # of a transformer, which has no sides
        return f"BLOCK{int(found[1]):02d}"
    return "IN00" if re.search(r"conv_in$", name) else "OUT" if re.search(r"conv_out$|_out_2$", name) else "TIME"


def block_order(name: str) -> tuple[int, str]:
    """To sort names of blocks by: from the text to the last block of the denoiser."""
    return next(at for at, place in enumerate(BLOCK_NAMES) if name.startswith(place)), name


# ---- Blocks ----


class Blocks(NamedTuple):
    """Values for each block, in order; None: nothing of that kind was asked for."""

    dims: list[int] | None = None
    alphas: list[float] | None = None
    conv_dims: list[int] | None = None
    conv_alphas: list[float] | None = None
    factors: list[float] | None = None  # of the learning rate; 0: the block is left out


def read_blocks(config: Config, layout: BlockLayout) -> tuple[Blocks, list[str]]:
    """The lists of a configuration, and what the user should know about them.

    Raises:
        UserError: a list has not as many values as the model has blocks; all of them.
    """
    problems, notes = [], []
    lists = {name: getattr(config, name) for name in ("block_dims", "block_alphas", "conv_block_dims")}
    lists["conv_block_alphas"] = config.conv_block_alphas
    for name, values in lists.items():
        if values is not None and len(values) != layout.count:
            problems.append(
                say(
                    f"{name} has {plural(len(values), 'value')}; this base model has {layout.count} blocks: "
                    f"{_told(layout)}",
                    f"{name} 有 {len(values)} 个值；此底模有 {layout.count} 块：{_told(layout)}",
                )
            )
    sides = []
    for name, count in (
        ("down_lr_weight", layout.down),
        ("mid_lr_weight", layout.middle),
        ("up_lr_weight", layout.up),
    ):
        weights = read_weights(getattr(config, name), count)
        given = [] if weights is None else weights
        if weights is not None and len(given) != count:
            is_long = len(given) > count
            what_en, what_zh = (
                ("the last are ignored", "多出的不用") if is_long else ("1 for the others", "其余按 1 计")
            )
            notes.append(
                say(
                    f"{name} has {plural(len(given), 'value')} for {plural(count, 'block')}: {what_en}",
                    f"{name} 有 {len(given)} 个值，应为 {count} 个：{what_zh}",
                )
            )
        given = (given + [1.0] * count)[:count]
        lowest = config.block_lr_zero_threshold if weights is not None else -math.inf
        sides += [weight if weight > lowest else 0.0 for weight in given]
    if problems:
        raise UserError(problems)
    is_weighted = any(getattr(config, f"{side}_lr_weight") is not None for side in ("down", "mid", "up"))
    factors = [*[1.0] * layout.ends, *sides, *[1.0] * layout.ends] if is_weighted else None
    own = Blocks(config.block_dims, config.block_alphas, config.conv_block_dims, config.conv_block_alphas, factors)
    return own, notes


def _told(layout: BlockLayout) -> str:
    ends = say("the embeddings, ", "嵌入、") if layout.ends else ""
    last = say(", the output", "、输出") if layout.ends else ""
    down, middle, up = layout.down, layout.middle, layout.up
    return say(f"{ends}{down} down, {middle} middle, {up} up{last}", f"{ends}下 {down}、中 {middle}、上 {up}{last}")


PRESETS = {  # share of the way along one side, from 0 to 1 -> factor of the learning rate
    "cosine": lambda share: math.sin(math.pi / 2 * (1 - share)),
    "sine": lambda share: math.sin(math.pi / 2 * share),
    "linear": lambda share: share,
    "reverse_linear": lambda share: 1 - share,
    "zeros": lambda share: 0.0,
}


def read_weights(text: str | None, count: int) -> list[float] | None:
    """The factors that "0.5,1,1", "cosine" or "linear+0.25" stand for. A value left empty is 0, as in sd-scripts.

    Args:
        text: as `checks` lets it through.
        count: blocks of the side.
    """
    if text is None:
        return None
    name, _, base = text.partition("+")
    if name in PRESETS:
        return [PRESETS[name](index / (count - 1)) + float(base or 0) for index in range(count)]
    return [float(value or 0) for value in text.split(",")]


# ---- Patterns ----


def pairs(lines: list[str] | None) -> list[tuple[str, float]]:
    """["a.*=8"] -> [("a.*", 8.0)]."""
    return [(pattern, float(number)) for pattern, _, number in (line.rpartition("=") for line in lines or [])]


def compiled(pattern: str) -> re.Pattern[str]:
    r"""A pattern of names. Where the model has dots the file has underscores, so `\.` is read as one."""
    return re.compile(pattern.replace(r"\.", "_"))


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern is the whole name of a layer in the file, with or without `lora_unet_` and the like."""
    bare = re.sub(r"^lora_[a-z0-9]+_", "", name)
    return any(compiled(pattern).fullmatch(text) for text in (name, bare))


# ---- All together ----


def choose(
    targets: Iterable[Target], config: Config, layout: BlockLayout, file_sizes: Mapping[str, Size] | None = None
) -> dict[str, Size]:
    """What layers have of their own, by name in the file; {}: nothing was asked for.

    Args:
        targets: those that are to be trained.
        layout: of the base model's blocks.
        file_sizes: ranks and alphas of a file, from `of_file`: its layers, and no others, are adapted.

    Raises:
        UserError: a pattern fits no layer, or no layer is left.
    """
    targets = list(targets)
    names = [target.saved_as for target in targets]
    blocks, _ = read_blocks(config, layout)
    dims, rates = pairs(config.network_reg_dims), pairs(config.network_reg_lrs)
    problems = [
        say(
            f"{option}: {pattern} is the name of no layer that is trained; names are such as {names[0]}",
            f"{option}：{pattern} 与训练的任何一层都不相符；层名形如 {names[0]}",
        )
        for option, patterns in (
            ("network_reg_dims", [pattern for pattern, _ in dims]),
            ("network_reg_lrs", [pattern for pattern, _ in rates]),
            ("exclude_patterns", config.exclude_patterns or []),
            ("include_patterns", config.include_patterns or []),
        )
        for pattern in patterns
        if not any(matches(pattern, name) for name in names)
    ]
    if problems:
        raise UserError(problems)
    takes_conv = bool(config.conv_dim or config.conv_block_dims)
    sizes = {}
    for target in targets:
        name = target.saved_as
        size = _of_block(target, config, layout.index(name), blocks)
        if file_sizes is not None:
            size = _as_asked(file_sizes.get(name, Size(rank=0)), config)._replace(lr_scale=size.lr_scale)
        elif (rank := _first(dims, name)) is not None and (takes_conv or not target.needs_conv_dim):
            size = size._replace(rank=int(rank), alpha=config.network_alpha)
        if (rate := _first(rates, name)) is not None:
            place = next(place for place, (pattern, _) in enumerate(rates) if matches(pattern, name))
            size = size._replace(lr_scale=LrScale(f"reg{place}", rate=rate), rank=size.rank if rate else 0)
        if _any(config.exclude_patterns, name) and not _any(config.include_patterns, name):
            size = Size(rank=0)
        if size != Size():
            sizes[name] = size
    adapted = [
        target
        for target in targets
        if sizes.get(target.saved_as, Size()).rank != 0
        and not (target.needs_conv_dim and config.conv_dim is None and sizes.get(target.saved_as, Size()).rank is None)
    ]
    if not adapted:
        raise UserError(
            say(
                "no layer is left to train: the ranks and weights of blocks and patterns leave all of them out",
                "没有可训练的层：各块与各模式的秩、权重把所有层都排除了",
            )
        )
    return sizes


def _as_asked(size: Size, config: Config) -> Size:
    """A file's size with the alpha that was asked for when it was trained."""
    if not (config.rs_lora and size.rank and size.alpha):
        return size
    return size._replace(alpha=size.alpha / math.sqrt(size.rank))


def _of_block(target: Target, config: Config, place: int | None, blocks: Blocks) -> Size:
    if place is None:
        return Size()
    is_conv = is_large(target)
    dims, alphas = (blocks.conv_dims, blocks.conv_alphas) if is_conv else (blocks.dims, blocks.alphas)
    rank = dims[place] if dims else None
    if rank is None and not is_conv and target.needs_conv_dim and blocks.conv_dims:
        rank = config.network_dim  # beside convolutions that only conv_block_dims asks for
    if rank and target.needs_conv_dim and not (config.conv_dim or blocks.conv_dims):
        return Size()  # resnets are adapted where convolutions are
    lr_scale = LrScale()
    if blocks.factors:
        factor = blocks.factors[place]
        rank, lr_scale = (rank if factor else 0), LrScale(f"block{place}", factor)
    return Size(rank, alphas[place] if alphas else None, lr_scale)


def is_large(target: Target) -> bool:
    """Whether it is a convolution of more than one pixel, which has conv_dim."""
    return tuple(target.layer.weight.shape[2:]) not in {(), (1, 1)}


def _first(pairs: list[tuple[str, float]], name: str) -> float | None:
    return next((number for pattern, number in pairs if matches(pattern, name)), None)


def _any(patterns: list[str] | None, name: str) -> bool:
    return any(matches(pattern, name) for pattern in patterns or [])


def of_file(tensors: Mapping[str, Tensor]) -> dict[str, Size]:
    """The rank and alpha of each layer of a LoRA file (or a LoHa, DoRA), as `lora_file.load_adapter` gives it.

    Raises:
        UserError: it is a LoKr, whose whole matrices do not tell a rank.
    """
    first = {"lora_down.weight": 0, "hada_w1_b": 0}
    ranks = {
        layer: tensor.shape[first[ending]]
        for layer, _, ending, tensor in ((*name.partition("."), tensor) for name, tensor in tensors.items())
        if ending in first
    }
    if not ranks:
        raise UserError(_ranks_unknown())
    return {layer: Size(rank, float(tensors.get(f"{layer}.alpha", rank))) for layer, rank in ranks.items()}


def most_common(tensors: Mapping[str, Tensor], config: Config) -> Size:
    """The rank and alpha that most layers of a file have: what its metadata can say in two numbers."""
    return Counter(_as_asked(size, config) for size in of_file(tensors).values()).most_common(1)[0][0]


def _ranks_unknown() -> str:
    return say(
        "dim_from_weights: the file does not tell its ranks. Set network_dim and conv_dim as its training had "
        "them, and dim_from_weights to False",
        "dim_from_weights：无法从该文件得知秩。请按它训练时的值填写 network_dim 与 conv_dim，"
        "并把 dim_from_weights 设为 False",
    )
