"""Captions: read whatever their encoding, and made into what the text encoder gets at each use.

The order of processing is sd-scripts'. To add a step: add it to `process` at its place in that order, and to `possible`
if it makes captions that cannot be listed beforehand.
"""

import random
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

from library import text_encoding
from library.contracts import Sample
from library.options.training import Config

NO_TEXT = "neither UTF-8, UTF-16 nor text in another encoding"

# What nobody sees but the tokenizer does, as web pages and word processors leave it: soft hyphens, zero-width spaces,
# marks of writing direction, tags. Joiners stay between letters beyond ASCII: Persian and some emoji are spelt so.
INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0001-\U000e007f]"
)
JOINERS = re.compile("(?<![^\\x00-\\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\\x00-\\x7f])")
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tab and line breaks

WILDCARD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
BRACES = {"{{": "{", "}}": "}"}

SCRIPTS = (  # the first that is met names the language
    ("[\u3041-\u30fa]{2}|[\u3041-\u30fa][\u4e00-\u9fff]|[\u4e00-\u9fff][\u3041-\u30fa]", ("Japanese", "日文")),
    ("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]", ("Korean", "韩文")),
    ("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]", ("Chinese", "中文")),
    ("[\u0400-\u052f]{2}", ("Cyrillic letters", "西里尔字母")),
)
CLOSED = {")": "(", "]": "["}
BRACKET = re.compile(r"\\.|[()\[\]]")  # or an escaped letter
WEIGHT = r":\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*"
WEIGHT_AT_END = re.compile(rf"{WEIGHT}$")
CLOSINGS = re.compile(rf"(?:\s*(?:{WEIGHT})?[)\]])*\s*")  # all that may follow a bracket which encloses a tag


def decode(data: bytes) -> tuple[str, str]:
    """The text of a single file, and the encoding it was read in. Of a folder's captions see `text_encoding.read_all`.

    Raises:
        ValueError: no text in any encoding.
    """
    reading = text_encoding.read(data)
    if reading is None:
        raise ValueError(NO_TEXT)
    return reading.text, reading.encoding


def without_invisible(text: str) -> str:
    """The text without characters that nobody sees; control characters become spaces, as some separate words."""
    return JOINERS.sub("", INVISIBLE.sub("", CONTROLS.sub(" ", text)))


def foreign_script(text: str) -> tuple[str, str] | None:
    """What a text with words beyond the Latin letters is written in, in both languages; None: it has none.

    A single letter, as in (ﾟДﾟ) or μ's, is no word.
    """
    plain = unicodedata.normalize("NFKC", text)  # of full-width letters the usual ones
    for pattern, names in SCRIPTS:
        if re.search(pattern, plain):
            return names
    for word in re.findall(r"[^\W\d_]{2,}", plain):
        if sum(not unicodedata.name(letter, "LATIN").startswith("LATIN") for letter in word) > 1:
            return "a script other than Latin", "非拉丁文字"
    return None


def first_line(caption: str) -> str:
    """The first line that is not blank; "" where there is none."""
    return next((line.strip() for line in caption.splitlines() if line.strip()), "")


def tags(caption: str) -> list[str]:
    """The comma-separated parts, without blank ones."""
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


class WeightedTag(NamedTuple):
    """A tag and the weight around it: "(", "red hair", ":1.2)"."""

    before: str
    text: str
    after: str

    def __str__(self) -> str:
        return f"{self.before}{self.text}{self.after}"


def weighted_tags(caption: str) -> list[WeightedTag]:
    """The tags of a caption, each with its own weight: `(red hair, hat:1.2)` gives both of them 1.2.

    Brackets are a weight where they enclose whole tags; in `mash (arknights)` and `\\(x\\)` they are letters.
    """
    parts = tags(caption)
    cuts: list[list[slice]] = [[] for _ in parts]  # what is no letter of a tag
    around: list[list[tuple[int, str, str]]] = [[] for _ in parts]  # depth, opening, closing
    opened: list[tuple[str, int, int]] = []  # bracket, its tag, its place there
    for at, part in enumerate(parts):
        for match in BRACKET.finditer(part):
            mark, place = match[0], match.start()
            if mark in CLOSED.values():
                opened.append((mark, at, place))
            elif opened and CLOSED.get(mark) == opened[-1][0]:
                bracket, first, begin = opened.pop()
                if not parts[first][:begin].strip("([ ") and CLOSINGS.fullmatch(part, place + 1):
                    weight = WEIGHT_AT_END.search(part[:place])
                    number = weight[0] if weight and mark == ")" else ""
                    cuts[first].append(slice(begin, begin + 1))
                    cuts[at].append(slice(place - len(number), place + 1))
                    for one in around[first : at + 1]:
                        one.append((len(opened), bracket, number + mark))
    found = []
    for part, spans, weights in zip(parts, cuts, around, strict=True):
        letters = list(part)
        for span in sorted(spans, key=lambda span: -span.start):
            del letters[span]
        before = "".join(opening for _, opening, _ in sorted(weights))
        after = "".join(closing for _, _, closing in sorted(weights, reverse=True))
        found.append(WeightedTag(before, "".join(letters).strip(), after))
    return [tag for tag in found if tag.text]


def unweighted(caption: str) -> str:
    """The same tags without weights: what they are compared by."""
    return ", ".join(tag.text for tag in weighted_tags(caption)) if re.search(r"[(\[]", caption) else caption


def unescaped(text: str) -> str:
    """`\\(` and `\\)`, with which taggers and web UIs write brackets, as the letters that they stand for."""
    return re.sub(r"\\([()])", r"\1", text) if "\\(" in text and "\\)" in text else text


def whole(caption: str, config: Config) -> str:
    """The caption as it is before anything is left to chance; of several lines or alternatives the first."""
    fixed, loose, end = _parts(_chosen(caption, config, lambda options: options[0]), config)
    return _joined([*fixed, *loose, *end], config)


def whole_of(sample: Sample, config: Config) -> str:
    """The caption of an image as it is before anything is left to chance.

    Args:
        config: the run's; a subset may have options of its own.
    """
    return whole(sample.caption, sample.options or config)


def compared(sample: Sample, config: Config) -> str:
    """The caption of an image as its tags are compared: whole, without weights, a comma between two tags."""
    return unescaped(unweighted(_with_commas(whole_of(sample, config), sample.options or config)))


def _with_commas(text: str, config: Config) -> str:
    """The same tags with commas between them, whatever separates them."""
    if config.caption_separator == ",":
        return text
    return ", ".join(tag.replace(",", " ") for tag in _split(text, config))


def process(caption: str, config: Config, *, rng: random.Random, epoch: int, warmup: float = 1.0) -> str:
    """What the text encoder gets at one use of an image.

    Order: dropout of the whole caption (then nothing else happens); one line and one of each `{a|b}`, with
    `enable_wildcard`; prefix and suffix; warmup, shuffling and dropout of the tags that are not kept; separators.

    Args:
        rng: this use's own stream of chance.
        epoch: from 1; with `caption_dropout_every_n_epochs` = n the epochs n, 2n, ... have empty captions.
        warmup: how much of `token_warmup_step` lies behind, 0 to 1.
    """
    every = config.caption_dropout_every_n_epochs
    if (every and epoch % every == 0) or rng.random() < config.caption_dropout_rate:
        return ""
    fixed, loose, end = _parts(_chosen(caption, config, rng.choice), config)
    if warmup < 1:
        fewest = config.token_warmup_min
        loose = loose[: int(warmup * (len(loose) - fewest)) + fewest]
    if config.shuffle_caption:
        rng.shuffle(loose)
    if config.caption_tag_dropout_rate:
        loose = [tag for tag in loose if rng.random() >= config.caption_tag_dropout_rate]
    return _joined([*fixed, *loose, *end], config)


def changes_tags(config: Config) -> bool:
    """Whether the tags of a caption are moved or left out from one use to the next."""
    return bool(config.shuffle_caption or config.caption_tag_dropout_rate or config.token_warmup_step)


def _chosen(caption: str, config: Config, choose: Callable[[list[str]], str]) -> str:
    r"""One line with prefix and suffix; with `enable_wildcard`, of each `{a|b|c}` one, `{{` and `}}` as braces.

    `\(` is read as `(`: so web UIs read the prompt that shall call it up. With weights that is done with them.
    """
    lines = [line.strip() for line in caption.splitlines() if line.strip()] or [""]
    line = choose(lines) if config.enable_wildcard and len(lines) > 1 else lines[0]
    text = " ".join(part for part in (config.caption_prefix, line, config.caption_suffix) if part)
    if config.enable_wildcard:
        text = WILDCARD.sub(lambda found: BRACES.get(found[0]) or choose(found[1].split("|")), text)
    return text if config.weighted_captions else unescaped(text)


def _parts(text: str, config: Config) -> tuple[list[str], list[str], list[str]]:
    """Tags that keep their place at the beginning, those that may be moved, and those that keep it at the end.

    A caption of which nothing is moved is one single part: it keeps its own spacing.
    """
    mark = config.keep_tokens_separator
    if mark and mark in text:
        fixed, loose, *end = text.split(mark, 2)
        return _split(fixed, config), _split(loose, config), _split(end[0], config) if end else []
    if not changes_tags(config):
        return [text], [], []
    tags = _split(text, config)
    return tags[: config.keep_tokens], tags[config.keep_tokens :], []


def _split(text: str, config: Config) -> list[str]:
    return [tag.strip() for tag in text.split(config.caption_separator) if tag.strip()]


def _joined(parts: list[str], config: Config) -> str:
    text = f"{config.caption_separator.rstrip()} ".join(parts)
    return text.replace(config.secondary_separator, config.caption_separator) if config.secondary_separator else text


def possible(captions: Iterable[str], config: Config) -> list[str] | None:
    """Every caption that `process` can make of these, sorted; None where chance makes too many to encode beforehand."""
    captions = list(captions)
    texts = [*captions, config.caption_prefix or "", config.caption_suffix or ""]
    if changes_tags(config) or (config.enable_wildcard and any(map(_has_choice, texts))):
        return None
    found = {whole(caption, config) for caption in captions}
    if config.caption_dropout_rate or config.caption_dropout_every_n_epochs:
        found.add("")
    return sorted(found)


def _has_choice(caption: str) -> bool:
    is_choice = any(found[1] and "|" in found[1] for found in WILDCARD.finditer(caption))
    return is_choice or sum(1 for line in caption.splitlines() if line.strip()) > 1


def tag_frequency(samples: Iterable[Sample], config: Config | None = None) -> dict[str, dict[str, int]]:
    """{folder: {tag: images with it}} in lower case, whatever the repeats: ss_tag_frequency.

    Args:
        config: the run's, which may have a separator of its own; None: a comma.
    """
    config = config or Config()
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        folder = counts.setdefault(sample.folder, {})
        line = _with_commas(first_line(sample.caption), sample.options or config)
        for tag in weighted_tags(line.lower()):
            text = unescaped(tag.text)
            folder[text] = folder.get(text, 0) + 1
    return counts


def count_table(frequency: dict[str, dict[str, int]], is_alphabetical: bool = False) -> str:
    """Every tag and in how many captions of all folders it stands, a line each; the most frequent first."""
    totals: dict[str, int] = {}
    for counts in frequency.values():
        for tag, count in counts.items():
            totals[tag] = totals.get(tag, 0) + count
    ordered = sorted(totals) if is_alphabetical else sorted(totals, key=lambda tag: (-totals[tag], tag))
    return "".join(f"{totals[tag]:6}  {tag}\n" for tag in ordered)
