"""Prompts as AUTOMATIC1111's web UI writes them: weights, BREAK, and LoRAs by name.

    (word)           weight 1.1; ((word)) 1.21            \\( \\) \\[ \\] \\\\     the letter itself
    (word:1.3)       weight 1.3                           BREAK               a new chunk of 75 tokens
    [word]           weight 1 / 1.1                       # ...               a remark, to the end of its line
    <lora:name:0.6>  a LoRA at strength 0.6; <lora:name:0.6:0.8>: 0.6 in the text encoder, 0.8 in the U-Net

Previews and tools/try_lora.py read the same. What the web UI knows beyond that (prompts that change on the way, AND,
hypernetworks, ...) is refused by name: drawn as plain words it would give another image. Source: the behaviour of
stable-diffusion-webui 1.10 (prompt_parser, extra_networks, its own examples are in the tests); no code.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from library.contracts import WeightedPrompt
from library.messages import UserError, say

STRONGER = 1.1  # what a pair of round brackets multiplies by, and of square ones divides by
LORA_KINDS = ("lora", "lyco")
EXTRA = re.compile(r"<(\w+):([^>]+)>")
TOKEN = re.compile(r"\\[()\[\]\\]|\\|[(\[\])]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|:|[^\\()\[\]:]+")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"


class Lora(NamedTuple):
    """A LoRA that a prompt names."""

    name: str
    text_encoder: float  # strengths
    unet: float


class Prompt(NamedTuple):
    """A prompt that is understood."""

    weighted: WeightedPrompt
    loras: list[Lora]


def parse(text: str, *, is_negative: bool = False) -> Prompt:
    """Read a prompt.

    Args:
        is_negative: of a negative prompt; the web UI reads no LoRA in it.

    Raises:
        UserError: everything in it that we do not draw as the web UI would.
    """
    problems: list[str] = []
    text = re.sub(r"#[^\n]*(\n|$)", "\n", text)
    loras = []
    for match in EXTRA.finditer(text):
        if lora := _lora(match, is_negative, problems):
            loras.append(lora)
    if twice := sorted({lora.name for lora in loras if [other.name for other in loras].count(lora.name) > 1}):
        names = ", ".join(twice)
        problems.append(say(f"{names} is given more than once", f"{names} 写了多次，写一次即可"))
    text = EXTRA.sub("", text)
    problems += _refused(text, is_negative)
    weighted = [] if problems else _weighted(text, problems)
    if problems:
        raise UserError(problems)
    return Prompt(weighted, loras)


def literal(text: str) -> str | None:
    """What to type for the web UI to read just this text, all of it at weight 1; None: there is no way to type it.

    AND and BREAK in small letters are the same tokens. Not to be typed: # (begins a remark), <...:...>, and a number
    behind a colon at the end.
    """
    small = re.sub(r"\b(AND|BREAK)\b", lambda match: match[0].lower(), text)
    typed = re.sub(r"[\\()\[\]]", r"\\\g<0>", small)
    try:
        is_same = parse(typed) == Prompt([[(small, 1.0)] if small else []], [])
    except UserError:
        return None
    return typed if is_same else None


def typed(words: Iterable[str]) -> str:
    """Words as they are typed into a web UI, with a comma between two; where there is no way, that is said."""
    cannot = say("(cannot be typed)", "（无法输入）")
    return ", ".join(literal(word) or f"{word} {cannot}" for word in words)


def nearest_literal(text: str) -> str:
    """As `literal`, without what cannot be typed."""
    return literal(text) or literal(re.sub(r"[#<>:]", " ", text)) or ""


def call(name: str, strength: float) -> str | None:
    """What to type to apply a LoRA file; None: its name cannot be typed."""
    typed = f"<lora:{name}:{strength:g}>"
    try:
        is_same = parse(typed) == Prompt([[]], [Lora(name, strength, strength)])
    except UserError:
        return None
    return typed if is_same else None


def loras(text: str) -> list[str]:
    """The LoRAs that a prompt names, as they stand there."""
    return [match[0] for match in EXTRA.finditer(text) if match[1] in LORA_KINDS]


def without_loras(text: str) -> str:
    return EXTRA.sub(lambda match: "" if match[1] in LORA_KINDS else match[0], text)


def weights(caption: str) -> list[tuple[str, float]]:
    """A training caption's pieces of one weight each. Only brackets are read; all else are words, as in sd-scripts."""
    return [piece for section in _weighted(caption, []) for piece in section]


def _lora(match: re.Match[str], is_negative: bool, problems: list[str]) -> Lora | None:
    """The LoRA of one <...>, or what is wrong with it added to the problems."""
    kind, whole = match[1], match[0]
    name, *values = match[2].split(":")
    named = dict(value.split("=", 1) for value in values if "=" in value)
    plain = [value for value in values if "=" not in value]
    if kind not in LORA_KINDS:
        problems.append(
            say(
                f"{whole}: this is a {kind}, not a LoRA, and is not supported here. Remove it",
                f"{whole}：这不是 LoRA，而是 {kind}，这里不支持。请去掉",
            )
        )
    elif is_negative:
        problems.append(
            say(
                f"{whole}: a LoRA has no effect in the negative prompt (in the web UI too). Put it in the prompt",
                f"{whole}：LoRA 写在反向提示词里不起作用（web UI 也一样）。请写到提示词里",
            )
        )
    elif len(plain) > 2 or set(named) - {"te", "unet"}:
        problems.append(
            say(
                f"{whole}: only its strengths can be set, as in <{kind}:{name}:0.6> or <{kind}:{name}:0.6:0.8>",
                f"{whole}：只能填强度，如 <{kind}:{name}:0.6> 或 <{kind}:{name}:0.6:0.8>",
            )
        )
    else:
        given = [*plain, named.get("te"), named.get("unet")]
        if wrong := [value for value in given if value is not None and not re.fullmatch(rf"\s*{NUMBER}\s*", value)]:
            problems.append(
                say(f'{whole}: "{wrong[0]}" is not a number', f'{whole}："{wrong[0]}" 不是数字')
                + (say(". Write 0.6", "，请写 0.6") if "," in wrong[0] else "")
            )
            return None
        text_encoder = float(named.get("te", plain[0] if plain else 1))
        unet = float(named.get("unet", plain[1] if len(plain) > 1 else text_encoder))
        return Lora(name, text_encoder, unet)
    return None


def _refused(text: str, is_negative: bool) -> list[str]:
    """What the web UI would do something with that we do not do."""
    problems = []
    if not is_negative and re.search(r"\bAND\b", text):
        problems.append(
            say(
                "AND combines several prompts, which is not supported here. Use a comma, or a lowercase and",
                "AND 表示混合多条提示词，这里不支持。请改用逗号或小写 and",
            )
        )
    if not is_negative and (whole := re.search(rf":\s*{NUMBER}\s*$", text)):
        problems.append(
            say(
                f'"{whole[0].strip()}" at the end weights the whole prompt, which is not supported here. Remove it, '
                "or close the bracket after it",
                f"末尾的“{whole[0].strip()}”表示整条提示词的权重，这里不支持。请去掉，或补上后括号",
            )
        )
    opened: list[int] = []  # places of brackets
    for match in re.finditer(r"\\.|[()\[\]|]", text):
        mark, at = match[0], match.start()
        if mark in "([":
            opened.append(at)
        elif mark == "|" and opened and text[opened[-1]] == "[":
            end = text.find("]", at)
            part = text[opened[-1] : end + 1 if end >= 0 else None]
            problems.append(
                say(
                    f"{part}: alternating words are not supported here. Choose one; for a plain | remove the brackets",
                    f"{part}：这里不支持交替词。请选定一个；若只是普通的 |，请去掉方括号",
                )
            )
        elif mark in ")]" and opened and text[opened[-1]] + mark in ("()", "[]"):
            inner = text[opened.pop() + 1 : at]
            if mark == "]" and re.search(rf":\s*{NUMBER}\s*$", inner):
                problems.append(
                    say(
                        f"[{inner}]: prompt scheduling is not supported here. To weaken a word: (word:0.8)",
                        f"[{inner}]：这里不支持中途换词。要减弱某个词请写 (词:0.8)",
                    )
                )
    return list(dict.fromkeys(problems))


def _weighted(text: str, problems: list[str]) -> WeightedPrompt:
    """Sections of (text, weight); neighbours of one weight are one piece, because each piece is tokenized by itself."""
    pieces: list[list[Any]] = []  # [text, weight], or [None, 1.0] for BREAK
    round_ones: list[int] = []  # at which piece each open bracket begins
    square_ones: list[int] = []

    def multiply(begin: int, factor: float) -> None:
        for piece in pieces[begin:]:
            piece[1] *= factor

    for match in TOKEN.finditer(text):
        token, weight = match[0], match["weight"]
        if token.startswith("\\"):
            pieces.append([token[1:], 1.0])  # a single \ is left out
        elif token == "(":
            round_ones.append(len(pieces))
        elif token == "[":
            square_ones.append(len(pieces))
        elif weight is not None and round_ones:
            if not re.fullmatch(NUMBER, weight) or not math.isfinite(float(weight)):
                problems.append(say(f'the weight "{weight}" is not a number', f"权重“{weight}”不是数字"))
                weight = 1
            multiply(round_ones.pop(), float(weight))
        elif token == ")" and round_ones:
            multiply(round_ones.pop(), STRONGER)
        elif token == "]" and square_ones:
            multiply(square_ones.pop(), 1 / STRONGER)
        else:
            first, *others = BREAK.split(token)
            pieces.append([first, 1.0])
            for other in others:
                if round_ones or square_ones:
                    problems.append(
                        say(
                            "BREAK inside brackets is read as a plain word (in the web UI too). Close the brackets "
                            "before it",
                            "括号里的 BREAK 会被当成普通单词（web UI 也一样）。请在 BREAK 之前闭合括号",
                        )
                    )
                pieces += [[None, 1.0], [other, 1.0]]
    for begin in round_ones:  # never closed
        multiply(begin, STRONGER)
    for begin in square_ones:
        multiply(begin, 1 / STRONGER)

    sections: WeightedPrompt = [[]]
    for piece, weight in pieces:
        if piece is None:
            sections.append([])
        elif sections[-1] and sections[-1][-1][1] == weight:
            sections[-1][-1] = (sections[-1][-1][0] + piece, weight)
        else:
            sections[-1].append((piece, weight))
    return sections
