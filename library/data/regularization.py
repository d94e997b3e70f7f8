"""Which regularization images a training set wants: what each shows, its size, its seed, its file and its folder.

For every training image one of the same caption without the trigger word, as the base model draws it. What is new in
the training image is then all that is left for the trigger word to mean.

Folders are named `[repeats]_[class words]`, as sd-scripts' guides have it, and not after the concept: each image has
a caption file of its own, but where it is lost or not read (`reg_captions = False`) the folder's name is the caption,
and images by the base model under the trigger word would teach the opposite of what is trained. Which concept a
image belongs to, its file's name says. Nothing here imports torch.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from library.contracts import Fit, Sample
from library.data import captions
from library.data.folders import Folder
from library.data.samples import Samples, folded
from library.files import sha256

LONGEST_NAME = 180  # bytes; systems take 255, and what is behind it needs some
NOT_IN_NAMES = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


class Wanted(NamedTuple):
    """A regularization image."""

    sample: Sample  # the training image it stands beside
    path: Path  # of its file
    caption: str  # what it is drawn from; also the text of its caption file
    size: tuple[int, int]  # pixels, width first: the training image's bucket, so nothing of it is cut off there
    seed: int


class Share(NamedTuple):
    """The user's rule for one concept: training images x repeats >= regularization images x repeats."""

    folder: Folder  # of the training set
    reg_folder: str  # name
    reg_images: int
    reg_repeats: int

    @property
    def train_samples(self) -> int:
        return self.folder.image_count * self.folder.repeats

    @property
    def reg_samples(self) -> int:
        return self.reg_images * self.reg_repeats

    @property
    def holds(self) -> bool:
        return self.train_samples >= self.reg_samples


@lru_cache
def _spelled(word: str) -> re.Pattern[str]:
    """A word in whatever case, with spaces or underscores, with brackets escaped or not, but not within another word.

    Chinese and Japanese have no spaces between words: there it is found anywhere, and spaces in it do not count.
    """
    text = re.sub(r"[\s_]+", " ", unicodedata.normalize("NFC", word).replace("\\", "")).strip()
    spelled = ""
    for at, letter in enumerate(text):
        if letter == " ":
            spelled += r"[\s_]+" if _has_borders(text[at - 1]) or _has_borders(text[at + 1]) else r"[\s_]*"
        else:
            spelled += rf"\\?{re.escape(letter)}"
    before = r"(?<![^\W_])" if _has_borders(text[0]) else ""
    after = r"(?![^\W_])" if _has_borders(text[-1]) else ""
    return re.compile(before + spelled + after, re.IGNORECASE)


def _has_borders(letter: str) -> bool:
    return letter.isalnum() and unicodedata.east_asian_width(letter) not in "WF"


def stands_in(word: str, caption: str) -> bool:
    """Whether a caption holds a word, in whatever spelling."""
    return bool(_words([word])) and bool(
        _spelled(word).search(unicodedata.normalize("NFC", captions.first_line(caption)))
    )


def _words(words: Sequence[str]) -> list[str]:
    """Those that are not blank, the longest first: "my tag" must go before "tag"."""
    return sorted((word for word in words if re.sub(r"[\s_\\]", "", word)), key=len, reverse=True)


def without(caption: str, words: Sequence[str]) -> str:
    """The first line of a caption without some words; unchanged to the letter where none of them stands in it.

    A tag that consists of a word goes; within a longer tag or a sentence the word alone goes.
    """
    line = captions.first_line(caption)
    if not any(stands_in(word, line) for word in words):
        return line
    left = []
    for tag in captions.weighted_tags(unicodedata.normalize("NFC", line)):
        shorter = tag.text
        for word in _words(words):
            shorter = _spelled(word).sub(" ", shorter)
        if shorter != tag.text:
            shorter = re.sub(r"\s+", " ", shorter).strip(" _")
        if shorter:
            left.append(str(tag._replace(text=shorter)))
    return ", ".join(left)


def wanted(
    found: Samples,
    fits: dict[Path, Fit],
    output_dir: Path,
    *,
    class_words: str,
    uses_captions: bool = True,
    remove_words: Sequence[str] = (),
    images_per_caption: int = 1,
    seed: int = 1,
) -> tuple[list[Wanted], list[Share]]:
    """All regularization images of a training set, sorted by concept, then size, then name; and the rule's numbers.

    Args:
        fits: of every training image.
        class_words: in place of a caption that is empty without the words; of all captions unless `uses_captions`.
        remove_words: left out of the captions beside the folders' own texts.
    """
    every_word = [folder.text for folder in found.folders] + list(remove_words)
    images: list[Wanted] = []
    shares: list[Share] = []
    taken: set[tuple[str, str]] = set()
    for folder in (folder for folder in found.folders if folder.image_count):
        repeats = max(1, folder.repeats // images_per_caption)
        name = folder_name(repeats, class_words)
        samples = [sample for sample in found.train if sample.image_path.parent == folder.path]
        own = []
        for sample in samples:
            caption = (without(sample.caption, every_word) if uses_captions else "") or class_words
            for index in range(1, images_per_caption + 1):
                stem = _free(file_stem(folder.text, sample.image_path, index), name, taken)
                path = output_dir / name / f"{stem}.png"
                size = fits[sample.image_path].bucket
                own.append(
                    Wanted(sample, path, caption, size, seed_of(seed, folder.text, sample.image_path.name, index))
                )
        images += sorted(own, key=lambda one: one.size)  # stable: by name within a size
        shares.append(Share(folder, name, len(own), repeats))
    return images, shares


def seed_of(seed: int, concept: str, name: str, index: int) -> int:
    """An image's own seed below 2^32: the same whatever other images there are, and however often it is repeated."""
    identity = "\0".join(
        [str(seed), unicodedata.normalize("NFC", concept), unicodedata.normalize("NFC", name), str(index)]
    )
    return int.from_bytes(sha256(identity.encode(errors="surrogateescape"))[:4], "big")


def folder_name(repeats: int, text: str) -> str:
    """`[repeats]_[text]`, as every system takes it."""
    valid = re.sub(r"\s+", " ", NOT_IN_NAMES.sub(" ", text)).strip(" .")
    return f"{repeats}_{_shortened(valid)}"


def file_stem(concept: str, image: Path, index: int) -> str:
    """The name of a training image, with its concept before it unless it begins so; -2, -3, ... behind the others."""
    stem = os.path.splitext(image.name)[0]
    before = NOT_IN_NAMES.sub(" ", concept).strip(" .")
    if before and not _plain(stem).startswith(_plain(before)):
        stem = f"{before} {stem}"
    return _shortened(stem) + (f"-{index}" if index > 1 else "")


def _free(stem: str, folder: str, taken: set[tuple[str, str]]) -> str:
    """The stem, with something behind it where another image of the folder has it: photo.jpg beside photo.png."""
    free, number = stem, 1
    while (folder, folded(free)) in taken:
        number += 1
        free = f"{stem} ({number})"
    taken.add((folder, folded(free)))
    return free


def _shortened(name: str) -> str:
    data = name.encode(errors="surrogateescape")
    if len(data) <= LONGEST_NAME:
        return name
    mark = sha256(data).hex()[:8]
    return f"{data[:LONGEST_NAME].decode(errors='ignore').rstrip(' .')} {mark}"


def _plain(text: str) -> str:
    return folded(text).replace("_", " ")


def as_samples(images: Sequence[Wanted], shares: Sequence[Share]) -> list[Sample]:
    """The images as the training will find them."""
    repeats = {share.reg_folder: share.reg_repeats for share in shares}
    return [
        Sample(
            one.path,
            one.caption,
            *one.size,
            folder=one.path.parent.name,
            repeats=repeats[one.path.parent.name],
            is_regularization=True,
        )
        for one in sorted(images, key=lambda one: one.path.parts)  # as the training does on every system
    ]
