"""CLIP text encoders: the vocabulary that travels with the project, long captions in chunks, clip skip.

The vocabulary is the byte-pair table that OpenAI published with CLIP (MIT licence, beside the file). With it no run
ever needs the network: 256 bytes + 256 bytes that end a word + one token per merge + two marks.
"""

import gzip
from functools import lru_cache
from pathlib import Path

from transformers import CLIPTokenizer

CLIP_MERGE_COUNT = 48_894  # 49,408 tokens in all
VOCABULARY_FILE = Path(__file__).parent / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"


def byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of CLIP's vocabulary (as GPT-2's byte-level BPE)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


@lru_cache(maxsize=1)
def clip_merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 merges of CLIP's tokenizer, most frequent first."""
    with gzip.open(VOCABULARY_FILE, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return tuple(tuple(line.split()) for line in lines[1 : 1 + CLIP_MERGE_COUNT])


def build_tokenizer(merges: list[tuple[str, str]], pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
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
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), pad_token=pad_token, model_max_length=77)
