"""CLIP text encoders: the vocabulary that travels with the project, long captions in chunks, clip skip.

The vocabulary is the byte-pair table that OpenAI published with CLIP (MIT licence, beside the file). With it no run
ever needs the network: 256 bytes + 256 bytes that end a word + one token per merge + two marks.

The encoder sees 77 tokens: a start mark, 75 of the caption, an end mark. A longer caption is cut into chunks of 75 that
are encoded each by itself and laid end to end. torch is imported only where captions become tensors, so that
`is_everyday_word` may be asked before.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from library.files import JsonObject
from library.messages import UserError, say

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from library.contracts import WeightedPrompt
    from library.families.loading import Place, Source

    TextEncoder = CLIPTextModel | CLIPTextModelWithProjection

CHUNK = 75  # tokens of a caption that the text encoder sees at once
MOST_CHUNKS = 3
CLIP_MERGE_COUNT = 48_894  # 49,408 tokens in all
EVERYDAY_MERGE_COUNT = 40_000  # the rest is rare: among it "sks" and "ohwx", which guides recommend as triggers
VOCABULARY_FILE = Path(__file__).parent / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"


def byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of CLIP's vocabulary (as GPT-2's byte-level BPE)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _pair(merge: str) -> tuple[str, str]:
    first, second = merge.split()
    return first, second


@lru_cache(maxsize=1)
def clip_merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 merges of CLIP's tokenizer, most frequent first."""
    with gzip.open(VOCABULARY_FILE, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return tuple(_pair(line) for line in lines[1 : 1 + CLIP_MERGE_COUNT])


@lru_cache(maxsize=4)  # half a second each, and one run needs the same several times
def build_tokenizer(merges: tuple[tuple[str, str], ...], pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer from byte-pair merges; ids in CLIP's order, so all merges give CLIP's own 49,408 ids.

    Args:
        merges: pairs of pieces, most frequent first; a part of `clip_merges()` gives a smaller vocabulary.
        pad_token: what fills a caption up: "<|endoftext|>" (SD 1.x, SDXL's first encoder) or "!" (id 0: SD 2.x and
            SDXL's second encoder).
    """
    letters = byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return _tokenizer(vocabulary, list(merges), pad_token)


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], pad_token: str) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    # pyrefly: ignore[bad-argument-type]  # pairs are right: transformers names the type of the file's lines
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    tokenizer.pad_token = pad_token  # not at once: a "!" in a caption would become what fills up, and no longer a word
    return tokenizer


@lru_cache(maxsize=1)
def everyday_words() -> frozenset[str]:
    """Whole words among CLIP's more frequent tokens: "girl", "anime", "naruto"; not "sks"."""
    merges = clip_merges()[:EVERYDAY_MERGE_COUNT]
    return frozenset((first + second)[:-4] for first, second in merges if second.endswith("</w>"))


def is_everyday_word(word: str) -> bool:
    """Whether CLIP knows this word, or every word of this phrase, as one frequent token.

    Such a concept ("girl", "red fox") has a strong meaning of its own, which the training would bend or lean on.
    """
    words = re.findall(r"[^\s_-]+", word.lower())
    return bool(words) and all(part in everyday_words() for part in words)


def folder_tokenizer(folder: Path, vocab_size: int, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """The tokenizer that lies in a diffusers folder, read without asking any network; CLIP's own if there is none.

    Args:
        vocab_size: of the text encoder that will see the ids.
        pad_token: used if the folder does not name one.

    Raises:
        UserError: the files are damaged, or the vocabulary does not fit the text encoder.
    """
    try:
        vocabulary, merges = read_vocabulary(folder)
        if vocabulary is None:
            tokenizer = build_tokenizer(clip_merges(), pad_token)
        else:
            for name in ("special_tokens_map.json", "tokenizer_config.json"):
                if (folder / name).is_file():
                    named = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
                    named = named.get("content") if isinstance(named, dict) else named
                    pad_token = named if named in vocabulary else pad_token
            tokenizer = _tokenizer(vocabulary, merges, pad_token)
    except Exception as error:  # the tokenizers library raises no narrower one for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            say(
                f"{folder}: this tokenizer cannot be read ({reason}); it is damaged. Download the folder again.",
                f"{folder}：无法读取分词器（{reason}），文件已损坏，请重新下载整个文件夹。",
            )
        ) from error
    if len(tokenizer) > vocab_size:
        raise UserError(_other_tokenizer(folder, len(tokenizer), vocab_size))
    return tokenizer


def read_vocabulary(folder: Path) -> tuple[dict[str, int] | None, list[tuple[str, str]]]:
    """Ids and merges from vocab.json and merges.txt, or from tokenizer.json (which transformers 5 writes instead)."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        return vocabulary, cast(list[tuple[str, str]], merges)
    if (folder / "tokenizer.json").is_file():
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        merges = [tuple(merge.split() if isinstance(merge, str) else merge) for merge in model["merges"]]
        return model["vocab"], cast(list[tuple[str, str]], merges)
    return None, []


# ---- Captions into tokens ----


def caption_tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> list[list[int]]:
    """The ids of each caption, without marks and uncut."""
    if not captions:
        return []
    return tokenizer([clean(caption) for caption in captions], add_special_tokens=False, verbose=False)["input_ids"]


def clean(caption: str) -> str:
    """A caption as CLIP's own tokenizer, sd-scripts and the web UI prepare it: by ftfy, which CLIP was trained with.

    Curly quotes become straight ones, full-width letters and ligatures plain ones, &amp; an &, mojibake the letters
    that it was made of. The tokenizer of transformers 5 leaves that out.
    """
    from ftfy import fix_text

    return re.sub(r"\s+", " ", fix_text(caption)).strip().lower()


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], chunk_count: int, positions: int = 77) -> Tensor:
    """Captions in chunks, each between a start and an end mark and filled up; what does not fit is cut.

    Args:
        positions: tokens the encoder sees at once: 77 in every Stable Diffusion.

    Returns:
        (B, chunk_count, positions) ids. A chunk without caption tokens is start, end, padding.
    """
    import torch

    room = positions - 2
    rows = []
    for ids in caption_tokens(tokenizer, captions):
        for begin in range(0, chunk_count * room, room):
            row = [tokenizer.bos_token_id, *ids[begin : begin + room]]
            row.append(tokenizer.eos_token_id)
            rows.append(row + [tokenizer.pad_token_id] * (positions - len(row)))
    return torch.tensor(rows, dtype=torch.long).reshape(len(captions), chunk_count, positions)


def tokenize_weighted(
    tokenizer: CLIPTokenizer, captions: list[list[tuple[str, float]]], chunk_count: int, positions: int = 77
) -> tuple[Tensor, Tensor]:
    """As `tokenize`, of captions whose words have weights; each piece of one weight is tokenized by itself.

    Args:
        captions: of each its pieces: (text, weight).

    Returns:
        (B, chunk_count, positions) ids, and the same of weights: 1 of marks and of what fills up.
    """
    import torch

    room = positions - 2
    rows, weights = [], []
    for pieces in captions:
        tokens = [
            (token, weight)
            for ids, (_, weight) in zip(caption_tokens(tokenizer, [text for text, _ in pieces]), pieces, strict=True)
            for token in ids
        ]
        for begin in range(0, chunk_count * room, room):
            chunk = tokens[begin : begin + room]
            row = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (positions - len(row)))
            weights.append([1.0, *(weight for _, weight in chunk), *[1.0] * (positions - 1 - len(chunk))])
    shape = (len(captions), chunk_count, positions)
    return torch.tensor(rows, dtype=torch.long).reshape(shape), torch.tensor(weights).reshape(shape)


def chunks_for(max_token_length: int | None) -> int:
    """How many chunks of 75 tokens `max_token_length` means.

    Raises:
        UserError: it is not None, 75, 150 or 225.
    """
    if max_token_length not in (None, 75, 150, 225):
        raise UserError(
            say(
                f"max_token_length = {max_token_length}: it can be 75, 150 or 225.",
                f"max_token_length = {max_token_length}：只能是 75、150 或 225。",
            )
        )
    return (max_token_length or 75) // 75


def chunks_of(token_counts: list[int]) -> int:
    """How many chunks the longest caption takes, up to what `max_token_length` allows."""
    return min(MOST_CHUNKS, max(1, -(-max(token_counts) // CHUNK)))


# ---- Tokens into states ----


class Encoded(NamedTuple):
    """What a text encoder says of captions."""

    states: Tensor  # (B, S, D) S = 75 chunk_count + 2
    pooled: Tensor | None  # (B, D2) projected; None if the encoder has no projection


def encode_captions(
    model: TextEncoder,
    tokenizer: CLIPTokenizer,
    captions: list[str],
    chunk_count: int,
    skip: int = 1,
    is_normed: bool = True,
    weigh: Callable[[str], list[tuple[str, float]]] | None = None,
) -> Encoded:
    """Captions of a batch, of the same length; see `encode`.

    Args:
        weigh: from a caption to its pieces, (text, weight). The states of a piece's tokens are multiplied by its
            weight, and nothing gives them their mean back: so sd-scripts reads `weighted_captions`.
    """
    positions = model.config.max_position_embeddings
    if weigh is None:
        ids, weights = tokenize(tokenizer, captions, chunk_count, positions), None
    else:
        ids, weights = tokenize_weighted(tokenizer, [weigh(caption) for caption in captions], chunk_count, positions)
    return encode(model, ids, tokenizer.eos_token_id, skip, is_normed, weights)


def encode(
    model: TextEncoder,
    ids: Tensor,
    eos_token_id: int,
    skip: int = 1,
    is_normed: bool = True,
    weights: Tensor | None = None,
) -> Encoded:
    """Encode chunks each by itself and lay their states end to end: one start mark, the captions' tokens, one end mark.

    Args:
        model: CLIPTextModel or CLIPTextModelWithProjection.
        ids: (B, chunks, 77) from `tokenize`.
        skip: which layer's states are taken, counted from the last: 1 the last, 2 the one before (clip skip 2).
        is_normed: whether the final layer norm follows also where layers are skipped. SD does so, SDXL does not.
        weights: (B, chunks, 77) that the states are multiplied by; None: 1.

    Returns:
        The states, and the projection of the last layer at the first end mark of the first chunk.
    """
    import torch

    batch, chunks, positions = ids.shape
    states, pooled = _encode_chunks(model, ids.reshape(batch * chunks, positions), eos_token_id, skip, is_normed)
    states = states.reshape(batch, chunks, positions, -1)
    if weights is not None:
        states = states * weights.to(states.device, states.dtype)[..., None]
    inner = states[:, :, 1:-1].reshape(batch, chunks * (positions - 2), -1)
    states = torch.cat([states[:, 0, :1], inner, states[:, -1, -1:]], dim=1)
    if pooled is None:
        return Encoded(states, None)
    return Encoded(states, _projection(model)(pooled.reshape(batch, chunks, -1)[:, 0]))


def _projection(model: TextEncoder) -> nn.Module:
    return cast("nn.Module", model.text_projection)


def _encode_chunks(
    model: TextEncoder, ids: Tensor, eos_token_id: int, skip: int, is_normed: bool
) -> tuple[Tensor, Tensor | None]:
    """(N, 77) ids -> (N, 77, D) states, and (N, D) of the last layer at the first end mark if there is a projection."""
    import torch

    text_model: Any = getattr(model, "text_model", model)  # the wrapper went away in transformers 5.6
    ids = ids.to(text_model.embeddings.token_embedding.weight.device)
    output = text_model(input_ids=ids, output_hidden_states=True)
    if skip == 1 and is_normed:
        states = output.last_hidden_state
    else:
        states = output.hidden_states[-skip]
        if is_normed:
            states = text_model.final_layer_norm(states)
    if not hasattr(model, "text_projection"):
        return states, None
    end = (ids == eos_token_id).int().argmax(dim=-1)  # argmax: the first of them
    return states, output.last_hidden_state[torch.arange(len(ids), device=ids.device), end]


# ---- Prompts with weights, as AUTOMATIC1111's web UI encodes them ----

BACKTRACK = 20  # tokens; the web UI's default for its "Prompt word wrap length limit"


def weighted_chunks(tokenizer: CLIPTokenizer, prompt: WeightedPrompt, room: int = 75) -> list[list[tuple[int, float]]]:
    """Cut a prompt into chunks of (id, weight), as the web UI does.

    A section begins a new chunk. Where a chunk is full in the middle of a phrase, what stands behind its last comma
    goes to the next one, if that is less than 20 tokens. Each run of one weight is tokenized by itself.

    Returns:
        At least one chunk; those that end early are to be filled up.
    """
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks, chunk = [], []
    for number, section in enumerate(prompt):
        if number:
            chunks.append(chunk)
            chunk = []
        behind_comma = None  # place in the chunk behind its last comma
        for ids, (_, weight) in zip(caption_tokens(tokenizer, [text for text, _ in section]), section, strict=True):
            for token in ids:
                if len(chunk) == room:
                    is_near = behind_comma is not None and room - behind_comma < BACKTRACK
                    cut = behind_comma if is_near and token != comma else room
                    chunks.append(chunk[:cut])
                    chunk, behind_comma = chunk[cut:], None
                chunk.append((token, weight))
                if token == comma:
                    behind_comma = len(chunk)
    return [*chunks, chunk] if chunk or not chunks else chunks


def encode_weighted(
    model: TextEncoder, tokenizer: CLIPTokenizer, prompt: WeightedPrompt, skip: int = 1, is_normed: bool = True
) -> Encoded:
    """Encode a prompt as the web UI does with its emphasis mode "Original".

    Every chunk's states are multiplied by their tokens' weights and then, all of them, by one number that gives back
    the chunk's mean. Chunks are laid end to end with their marks, 77 states each. (In training a long caption has one
    start and one end mark; so has `encode`.)

    Args:
        skip, is_normed: as for `encode`.

    Returns:
        (1, 77 chunks, D) float32 states, and the projection of the first chunk, without weights.

    Source: the behaviour of stable-diffusion-webui 1.10 (sd_hijack_clip, sd_emphasis); formula only.
    """
    import torch

    positions = model.config.max_position_embeddings
    chunks = weighted_chunks(tokenizer, prompt, positions - 2)
    rows = [[tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id] for chunk in chunks]
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (positions - len(row)) for row in rows])
    states, pooled = _encode_chunks(model, ids, tokenizer.eos_token_id, skip, is_normed)
    weights = torch.ones(len(chunks), positions, 1)
    for row, chunk in zip(weights, chunks, strict=True):
        row[1 : 1 + len(chunk), 0] = torch.tensor([weight for _, weight in chunk])
    states = states.float()
    weighted = states * weights.to(states.device)
    mean = partial(torch.mean, dim=(1, 2), keepdim=True)
    if not bool((weights == 1).all()):  # else the means are the same, and may be 0
        weighted = weighted * (mean(states) / mean(weighted))
    joined = weighted.reshape(1, len(chunks) * positions, -1)
    return Encoded(joined, None if pooled is None else _projection(model)(pooled[:1]))


def refuse_deep_skip(clip_skip: int | None, layer_count: int) -> None:
    """Raise a UserError where clip_skip goes beyond the encoder's layers."""
    if clip_skip is not None and not 1 <= clip_skip <= layer_count:
        raise UserError(_skips_too_much(clip_skip, layer_count))


# ---- Where files keep a text encoder ----


def folder_sources(name: str) -> Iterable[Source]:
    """In a folder of transformers: the same name, with or without the wrapper that transformers 5.6 dropped."""
    from library.families.loading import Source

    bare = name.removeprefix("text_model.")
    return Source(name), Source("text_model." + bare), Source(bare)


def clip_sources(name: str, prefix: str) -> Iterable[Source]:
    """OpenAI's CLIP in a checkpoint: transformers' names behind a prefix; NovelAI's first model lacks the wrapper."""
    from library.families.loading import Source

    bare = name.removeprefix("text_model.")
    return Source(f"{prefix}text_model.{bare}"), Source(prefix + bare)


OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
JOINT_ROWS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


def open_clip_sources(name: str, prefix: str) -> Iterable[Source]:
    """OpenCLIP in a checkpoint (SD 2.x, SDXL's second encoder): query, key and value are one matrix there."""
    from library.families.loading import Source

    bare = name.removeprefix("text_model.")
    if bare == "text_projection.weight":
        return (Source(prefix + "text_projection", is_transposed=True),)
    for ours, theirs in OPEN_CLIP.items():
        if bare.startswith(ours):
            return (Source(prefix + theirs + bare.removeprefix(ours)),)
    _, _, layer, rest = bare.split(".", 3)  # encoder.layers.N.rest
    beginning = f"{prefix}transformer.resblocks.{layer}."
    joint = re.fullmatch(r"self_attn\.([qkv]_proj)\.(weight|bias)", rest)
    if joint:
        return (Source(f"{beginning}attn.in_proj_{joint[2]}", third=JOINT_ROWS[joint[1]]),)
    layer_name, _, kind = rest.rpartition(".")
    return (Source(f"{beginning}{OPEN_CLIP_LAYER.get(layer_name, layer_name)}.{kind}"),)


def build_text_encoder(config: JsonObject, device: str, has_projection: bool = False) -> TextEncoder:
    """A frozen CLIP text encoder from its configuration, on the meta device or with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from library.families.loading import build

    kind = CLIPTextModelWithProjection if has_projection else CLIPTextModel
    return build(lambda: kind(CLIPTextConfig.from_dict(config)), device)


def load_text_encoder(
    path: Path,
    config: JsonObject,
    sources: Callable[[str], Iterable[Source]],
    place: Place,
    *,
    has_projection: bool = False,
    scope: str = "",
    ignored: tuple[str, ...] = (),
) -> TextEncoder:
    """A text encoder from a checkpoint, or from its own folder in a diffusers model (whose config.json then counts)."""
    from library.families.loading import fill, folder_tensors
    from library.families.weights_file import open_tensors

    part = say("text encoder", "文本编码器")
    if path.is_dir():
        tensors, sources, scope, ignored = folder_tensors(path, part), folder_sources, "", ()
    else:
        tensors = open_tensors([path])
    model = build_text_encoder(config, "meta", has_projection)
    return fill(model, tensors, sources, place, part=part, path=path, scope=scope, ignored=ignored)


def _other_tokenizer(folder: Path, count: int, vocab_size: int) -> str:
    return say(
        f"{folder}: the tokenizer has {count:,} tokens, the text encoder knows {vocab_size:,}. They "
        "are not of the same model; download the folder again.",
        f"{folder}：分词器有 {count:,} 个词元，而文本编码器只认识 {vocab_size:,} 个，"
        "二者不是同一个模型的，请重新下载。",
    )


def _skips_too_much(clip_skip: int, layer_count: int) -> str:
    return say(
        f"clip_skip = {clip_skip}: it can be 1 to {layer_count}, the layers of this text encoder; usual are 1 "
        "and, for anime models of SD 1.x, 2.",
        f"clip_skip = {clip_skip}：这个文本编码器有 {layer_count} 层，只能填 1～{layer_count}；"
        "常用 1，SD 1.x 的动漫模型常用 2。",
    )
