"""How a finished LoRA is called up: what to type into a web UI, and what of it cannot be typed.

`tests/training/test_invocation.py` reads it back as the web UI does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from library.messages import say

STRENGTH = 0.8


class Invocation(NamedTuple):
    """What to begin a prompt with."""

    prompt: str  # "<lora:mytag:0.8>, mytag"
    words: str  # the same without the LoRA, for ComfyUI
    notes: list[str]  # what cannot be typed, and what to do


def invocation(file_name: str, texts: Iterable[str], has_weights: bool = False) -> Invocation:
    """How a file is called up.

    Args:
        file_name: without its ending.
        texts: of the training folders.
        has_weights: whether these were read with weights (`weighted_captions`).
    """
    from library.diffusion import prompts

    trained = sorted({trained_text(text, has_weights) for text in texts} - {""})
    typed = {text: prompts.literal(text) for text in trained}
    words = [prompt for prompt in typed.values() if prompt]
    call = prompts.call(file_name, STRENGTH)
    notes = [] if call else [_name_cannot_be_typed(file_name)]
    notes += [word_cannot_be_typed(text) for text in trained if not typed[text]]
    return Invocation(", ".join([call or "<lora:...:0.8>", *words]), ", ".join(words), notes)


def trained_text(text: str, has_weights: bool) -> str:
    """A folder's text as the text encoder got it."""
    from library.data import captions
    from library.diffusion import prompts

    text = "".join(piece for piece, _ in prompts.weights(text)) if has_weights else captions.unescaped(text)
    return text.strip()


# ---- What is said ----


def word_cannot_be_typed(text: str) -> str:
    return say(
        f"`{text}` cannot be typed into a web UI as it was trained: # begins a remark there, <...:...> names a file, "
        "and a number behind a colon at the end is a weight. Choose another trigger word",
        f"`{text}` 无法在 web UI 里原样输入：# 之后会被当作注释，<...:...> 会被当作文件名，"
        "末尾冒号后的数字会被当作权重。"
        "请换一个触发词",
    )


def _name_cannot_be_typed(file_name: str) -> str:
    return say(
        f"the file name {file_name} cannot be typed into a prompt because of : or >. Rename the file",
        f"文件名 {file_name} 含有 : 或 >，无法写进提示词，请改名",
    )
