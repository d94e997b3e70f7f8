"""Images into [repeats]_[concept] folders: which belongs where, how often each is repeated, and getting them there.

Nothing is ever written over. What is there with the same content is done already, so a run that was killed, and a
second run, go on where the one before stopped. Files are moved by first being in both places: only when all are in the
new one the old ones go, so at any moment one place at least has everything.
"""

import filecmp
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from library.data import image_folder
from library.data.folders import (
    MANY_REPEATS,
    entries,
    images_in,
    is_file,
    masks_in,
    repeats_and_text,
    subfolders,
)
from library.data.image_names import MASKS, folded
from library.data.tag_statistics import has_word
from library.files import replacing

MOST_UNEVEN = 5  # how much more often an image of a small concept is used than one of the largest


class File(NamedTuple):
    """A file and where it shall be, below its concept's folder."""

    source: Path
    name: str  # "a.png", "a.txt", "masks/a.png"
    is_image: bool


@dataclass
class Concept:
    """The images that one word stands for."""

    word: str
    images: list[image_folder.CaptionedImage] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the images, in the new folder
    repeats: int | None = None  # that of a [repeats]_[concept] folder they come from
    joined: list[str] = field(default_factory=list)  # sub-folders that are no concepts, as their captions say


class Numbered(NamedTuple):
    """A [repeats]_[concept] folder that is there already."""

    path: Path
    repeats: int
    word: str
    images: list[str]  # names


# ---- what belongs where ----


def concepts(found: image_folder.ImageFolder, concept: str, sub_folders: str) -> list[Concept]:
    """The concepts of a folder of images, sorted by the way their folders come.

    Args:
        concept: the word of images that lie directly in it.
        sub_folders: "concepts": each first sub-folder is one of its own; "together": all belong to `concept`; "auto": a
            sub-folder belongs to `concept` where all its captions hold that word: it says where the images came from,
            such as a phone. One that is named [repeats]_[concept] is always a concept.
    """
    by_folder: dict[str, list[image_folder.CaptionedImage]] = {}
    for image in found.images:
        parts = image.path.relative_to(found.folder).parts
        by_folder.setdefault(parts[0] if len(parts) > 1 else "", []).append(image)
    made: dict[str, Concept] = {}
    for name, images in by_folder.items():
        meaning = repeats_and_text(name)
        is_numbered = bool(meaning) and meaning[0] >= 1
        word = (meaning[1].strip() if is_numbered else name) or concept
        is_joined = bool(name) and not is_numbered and _joins(images, concept, sub_folders)
        one = made.setdefault(folded(concept if is_joined else word), Concept(concept if is_joined else word))
        one.images += images
        one.repeats = meaning[0] if is_numbered else one.repeats
        one.joined += [name] if is_joined else []
    for one in made.values():
        one.names = _names(found.folder, one.images)
    return list(made.values())


def _joins(images: list[image_folder.CaptionedImage], concept: str, sub_folders: str) -> bool:
    if sub_folders != "auto":
        return sub_folders == "together"
    texts = [image.caption for image in images if image.caption and image.caption.strip()]
    return bool(texts) and all(has_word(text, concept) for text in texts)


def _names(folder: Path, images: list[image_folder.CaptionedImage]) -> list[str]:
    """The images' new names: those from a folder within another begin with its name, as they could be the same."""
    places = {image.path: image.path.relative_to(folder).parent for image in images}
    first = min(places.values(), key=lambda place: (len(place.parts), place))
    starts = {place: "" if place == first else " ".join([*place.parts, ""]) for place in places.values()}
    return [starts[places[image.path]] + image.path.name for image in images]


def files(concept: Concept) -> list[File]:
    """All that goes into a concept's folder: each image, its caption and its mask."""
    found: dict[str, File] = {}
    masks: dict[Path, dict[str, Path]] = {}  # image's folder -> folded name -> mask
    labels: dict[Path, dict[str, Path]] = {}  # image's folder -> folded stem -> mask beside it
    for image, name in zip(concept.images, concept.names, strict=True):
        parent, start = image.path.parent, name.removesuffix(image.path.name)
        if parent not in masks:
            places = [path for path in subfolders(parent) if folded(path.name) == MASKS]
            those = [entry for place in places for entry in entries(place) if is_file(entry)]
            masks[parent] = {folded(entry.name): Path(entry.path) for entry in those}
            labels[parent] = masks_in(parent)
        found[name] = File(image.path, name, True)
        if image.caption is not None:
            caption = start + image.caption_path.name
            found[caption] = File(image.caption_path, caption, False)
        mask = masks[parent].get(folded(f"{image.path.stem}.png"))
        if mask:
            found[f"{MASKS}/{start}{mask.name}"] = File(mask, f"{MASKS}/{start}{mask.name}", False)
        if label := labels[parent].get(folded(image.path.stem)):
            found[start + label.name] = File(label, start + label.name, False)
    return list(found.values())


def numbered(folder: Path) -> list[Numbered]:
    """The [repeats]_[concept] folders that are there. Raises UserError where one cannot be read."""
    there = []
    for path in subfolders(folder) if folder.is_dir() else []:
        meaning = repeats_and_text(path.name)
        if meaning and meaning[0] >= 1:
            there.append(Numbered(path, meaning[0], meaning[1].strip(), images_in(path)))
    return there


# ---- how often ----


def proposed(
    counts: dict[str, int], fixed: dict[str, int], *, steps: int, epochs: int, batch_size: int
) -> dict[str, int]:
    """Repeats of each concept with which the training has about so many steps.

    Each concept weighs alike, but no image is used more than MOST_UNEVEN times as often as those of the largest one: a
    single image that strayed into a folder of its own must not become half of the training.

    Args:
        counts: word -> images.
        fixed: word -> repeats of those that are given: their share of the steps is taken off first.
    """
    free = [word for word in counts if word not in fixed]
    samples = steps * batch_size / epochs - sum(counts[word] * number for word, number in fixed.items())
    largest = max((counts[word] for word in free), default=0)
    uses = {word: min(MOST_UNEVEN, largest / max(1, counts[word])) for word in free}  # against one of the largest's
    each = max(0.0, samples) / max(1.0, sum(uses[word] * counts[word] for word in free))
    return fixed | {word: min(MANY_REPEATS, max(1, round(each * uses[word]))) for word in free}


def step_count(samples: int, epochs: int, batch_size: int) -> int:
    """Steps of a training with so many samples an epoch; of each bucket the last batch may be a short one more."""
    return -(-samples // batch_size) * epochs


# ---- getting them there ----


def differing(wanted: Iterable[File], folder: Path) -> list[File]:
    """Those in whose place something else is."""
    return [
        file for file in wanted if os.path.lexists(folder / file.name) and not same(file.source, folder / file.name)
    ]


def same(first: Path, second: Path) -> bool:
    """Whether two files have the same content; sizes and times are compared first, as copies keep them."""
    try:
        return second.is_file() and (os.path.samefile(first, second) or filecmp.cmp(first, second))
    except OSError:
        return False


def put(file: File, folder: Path, *, is_link: bool) -> bool:
    """Have a file in its place too, whole or not at all; whether that was to do. Raises OSError.

    Args:
        is_link: as a second name of the same file, which takes no room; a copy where the disk cannot do that.
    """
    target = folder / file.name
    if target.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_link and not file.source.is_symlink():
        try:
            os.link(file.source, target)
            return True
        except OSError:
            pass  # another disk, or one that knows no links: copying says what is wrong
    with replacing(target) as half:
        shutil.copy2(file.source, half)
    return True


def take_away(files: list[tuple[Path, File]], images_dir: Path) -> int:
    """Delete what was put into its folder from where it was, and sub-folders that are empty then; how many files.

    An image goes before what belongs to it: one that is left by a kill is left whole.

    Args:
        files: with the folder that each was put into.
        images_dir: where they were, below it or in it; it stays.
    """
    count = 0
    for folder, file in sorted(files, key=lambda pair: not pair[1].is_image):
        if file.source.exists() and same(file.source, folder / file.name):
            file.source.unlink()
            count += 1
    emptied = {file.source.parent for _, file in files} - {images_dir}
    for place in sorted(emptied, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # it has something else in it
            place.rmdir()
    return count
