"""Masks: what of an image is learnt, so that regions that were erased are not.

Beside `photo.jpg` the grey image `masks/photo.png` is white where it is learnt, black where not, grey where in part.
A coloured one counts by its red, as in sd-scripts. OneTrainer's `photo-masklabel.png` beside the image means the same.
It is of the upright image, at any size of the same shape, and goes the image's way: resized, cropped, mirrored.
Each place of the latents then has the exact mean of the mask over the area that it stands for, a factor of its loss.
Where an image's own transparency counts too (`alpha_mask`), the two are multiplied. sd-scripts' users keep them in a
folder of their own (`conditioning_data_dir`).

A mask is no part of the cached latents, so a mask that changed acts at the next start, and no image is encoded anew.
Nothing here imports torch.
"""

import os
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from library.contracts import Fit, Mask, Sample
from library.data import decoding
from library.data.file_index import facts_of
from library.data.folders import entries, is_file, masks_in
from library.data.image_names import MASKS, folded, is_image, some
from library.files import sha256_of_file
from library.messages import Note, UserError, plural, say

LOOKED = struct.Struct("<IIf32s")  # width, height, share that is learnt, digest of a mask file as they are remembered
OPACITY = struct.Struct("<f")
LOOKED_FORMAT = 2  # raise it when a mask is read otherwise: what was remembered is then forgotten

# Masks that were read stay in memory up to this: 4,096 of images of 512 x 512 pixels, 1,024 of 1024 x 1024. Others
# are read at each use, by the threads that read ahead; one thread takes 8 ms at 512 x 512 and 23 ms at 1024 x 1024.
KEPT_BYTES = 64 << 20


def read_mask(path: Path) -> np.ndarray:
    """A mask file, upright: (H, W) uint8, 255 where it is learnt. Of colours only red counts, as if on black.

    Raises:
        BrokenImage: it cannot be read.
    """
    image = decoding.raw(path)[1]
    red = np.asarray(image.getchannel("R"))
    return red if image.mode == "RGB" else (red * (_alpha(image) / 255) + 0.5).astype(np.uint8)


def opacity(path: Path) -> np.ndarray | None:
    """How opaque an image is, upright: (H, W) uint8; None: nothing of it is transparent. Raises BrokenImage."""
    image = decoding.raw(path)[1]
    return None if image.mode == "RGB" else _alpha(image)


def _alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image.getchannel("A"))


def averaged(values: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Exact means over the cells of a grid, whose edges may lie within pixels: (H, W) -> (rows, columns) float64.

    Args:
        box: left, top, right, bottom of the grid, in pixels of `values`.
        size: columns, rows.
    """
    left, top, right, bottom = box
    return _averaged_down(_averaged_down(values, top, bottom, size[1]).T, left, right, size[0]).T


def _averaged_down(values: np.ndarray, start: float, stop: float, count: int) -> np.ndarray:
    """Differences of the running sum, which rises evenly within a pixel."""
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    edges = np.linspace(start, stop, count + 1)
    pixels = np.minimum(edges.astype(int), len(values) - 1)
    at_edges = sums[pixels] + (edges - pixels)[:, None] * values[pixels]
    return np.diff(at_edges, axis=0) / np.diff(edges)[:, None]


def load(sample: Sample, fit: Fit, scale: int) -> np.ndarray:
    """How much each place of an image's latents is learnt, not mirrored: (h, w) float32 in [0, 1].

    Args:
        sample: one with a mask.
        fit: as the image's own: bucket, resized size and crop.
        scale: pixels to a latent, along a side.

    Raises:
        UserError: the mask or the image cannot be read any more; names it.
    """
    assert sample.mask
    mask, path = None, sample.mask.path or sample.image_path
    try:
        if sample.mask.path:
            mask = read_mask(path)
        if sample.mask.is_alpha:
            path = sample.image_path
            alpha = opacity(path)
            if mask is not None and alpha is not None and mask.shape != alpha.shape:
                mask = averaged(mask, (0, 0, mask.shape[1], mask.shape[0]), (alpha.shape[1], alpha.shape[0]))
            mask = alpha if mask is None else mask if alpha is None else mask * (alpha / 255)
    except decoding.BrokenImage as error:
        raise UserError(
            say(
                f"{path}: cannot be read: {error}. It was changed or moved during the run; start again",
                f"{path}：无法读取：{error}。它在训练开始后被改动或移走了，请重新开始训练",
            )
        ) from error
    (left, top), (width, height) = fit.crop, fit.bucket
    size = width // scale, height // scale
    if mask is None:  # the image was transparent when it was found, and is no more
        return np.ones(size[::-1], np.float32)
    across, down = mask.shape[1] / fit.resized[0], mask.shape[0] / fit.resized[1]
    right, bottom = min((left + width) * across, mask.shape[1]), min((top + height) * down, mask.shape[0])
    means = averaged(mask, (left * across, top * down, right, bottom), size)
    return (means / 255).clip(0, 1).astype(np.float32)  # a running sum may miss 0 or 1 by its rounding


def kept_count(sizes: Iterable[tuple[int, int]], scale: int) -> int:
    """How many masks stay in memory: all fit into KEPT_BYTES.

    Args:
        sizes: of the buckets, in pixels.
    """
    largest = max((width // scale) * (height // scale) for width, height in sizes)
    return KEPT_BYTES // (4 * largest)


def given(
    folder: Path,
    samples: list[Sample],
    uses_files: bool,
    uses_alpha: bool,
    memory: Path | None,
    problems: list[str],
    warnings: list[str],
    masks_dir: Path | None = None,
) -> list[Sample]:
    """The samples of a `[repeats]_[concept]` folder with their masks.

    Args:
        uses_files, uses_alpha: whether mask files count, and the transparency of the images themselves.
        memory: the cache folder, where it is remembered how much of each image is learnt; None: nowhere.
        problems, warnings: what is found is added to them.
        masks_dir: the folder that holds the masks, or sub-folders with them named as the images' folders; None:
            masks/ beside the images.
    """
    files = _files(folder, samples, memory, problems, warnings, masks_dir) if uses_files and samples else {}
    shares = _opaque_shares([sample.image_path for sample in samples], memory) if uses_alpha else {}
    if not files and not shares:
        return samples
    found: list[Sample] = []
    for sample in samples:
        path, learnt, digest = files.get(sample.image_path, (None, 1.0, ""))
        opaque = shares.get(sample.image_path, 1.0)
        mask = Mask(path, opaque < 1, min(learnt, opaque), digest) if path or opaque < 1 else None
        found.append(replace(sample, mask=mask))
    black = [sample.image_path for sample in found if sample.mask and sample.mask.share == 0]
    if black:
        names = some([path.name for path in black])
        line = say(
            f"{folder}: {plural(len(black), 'image teaches', 'images teach')} nothing: completely black mask: "
            f"{names}. Make the masks again, or delete the images",
            f"{folder}：{len(black)} 张图片的蒙版全黑，什么也学不到：{names}。请重做蒙版，或删除这些图片",
        )
        warnings.append(Note(line, "red", topic="pictures", images=black))
    return found


def _files(
    folder: Path,
    samples: list[Sample],
    memory: Path | None,
    problems: list[str],
    warnings: list[str],
    masks_dir: Path | None,
) -> dict[Path, tuple[Path, float, str]]:
    """Mask file, share that is learnt and digest of each image that has a file."""
    beside = _labels(samples)
    parent, name = (folder, MASKS) if masks_dir is None else (masks_dir, folded(folder.name))
    place = next((parent / entry.name for entry in entries(parent) if folded(entry.name) == name), masks_dir)
    inside: dict[Path, Path] = {}
    if place and place.is_dir():
        file_names = [entry.name for entry in entries(place) if is_file(entry)]
        if masks_dir is None:
            names = {folded(name): name for name in file_names}
            wanted = {sample.image_path: folded(f"{sample.image_path.stem}.png") for sample in samples}
        else:  # of any kind, as sd-scripts has it
            names = {folded(os.path.splitext(name)[0]): name for name in file_names if is_image(name)}
            wanted = {sample.image_path: folded(sample.image_path.stem) for sample in samples}
        inside = {path: place / names[name] for path, name in wanted.items() if name in names}
        if place != masks_dir:  # which may hold those of other folders, too
            _tell_orphans(place, sorted(set(names.values()) - {path.name for path in inside.values()}), warnings)
        if twice := [beside[path].name for path in beside if path in inside]:
            warnings.append(_have_two(folder, place, twice))
    return _looked_at(beside | inside, samples, memory, problems)


def _labels(samples: list[Sample]) -> dict[Path, Path]:
    """The mask that lies beside each image in OneTrainer's way."""
    by_folder: dict[Path, list[Path]] = {}
    for sample in samples:
        by_folder.setdefault(sample.image_path.parent, []).append(sample.image_path)
    found: dict[Path, Path] = {}
    for parent, images in by_folder.items():
        masks = masks_in(parent)
        stems = {path: folded(os.path.splitext(path.name)[0]) for path in images} if masks else {}
        found |= {path: masks[stem] for path, stem in stems.items() if stem in masks}
    return found


def _looked_at(
    paths: dict[Path, Path], samples: list[Sample], memory: Path | None, problems: list[str]
) -> dict[Path, tuple[Path, float, str]]:
    """What is known of each image's mask: its file, the share that is learnt, its digest.

    Args:
        paths: of each image that has one, its mask.
    """

    def attempt(path: Path) -> bytes | decoding.BrokenImage:
        try:
            mask = read_mask(path)
            digest = sha256_of_file(path)
        except decoding.BrokenImage as broken:
            return broken
        except OSError as error:  # gone this moment
            return decoding.BrokenImage(error.strerror or error)
        return LOOKED.pack(mask.shape[1], mask.shape[0], mask.mean() / 255, digest)

    unique = list(dict.fromkeys(paths.values()))  # a.png and a.jpg have the same
    threads = min(8, os.cpu_count() or 1)
    facts = facts_of(unique, attempt, folder=memory, kind=f"masks{LOOKED_FORMAT}", thread_count=threads)
    known = dict(zip(unique, facts, strict=True))
    found: dict[Path, tuple[Path, float, str]] = {}
    broken: dict[Path, list[str]] = {}  # of each folder of masks
    other_shape: dict[Path, list[str]] = {}
    for path, fact in known.items():
        if isinstance(fact, decoding.BrokenImage):
            broken.setdefault(path.parent, []).append(f"{path.name} ({fact})")
    for sample in samples:
        path = paths.get(sample.image_path)
        fact = known[path] if path else None
        if path is None or not isinstance(fact, bytes):
            continue
        width, height, share, digest = LOOKED.unpack(fact)
        if abs(width * sample.height - height * sample.width) > sample.width + sample.height:  # a pixel of the mask
            own = f"{sample.image_path.name}: {sample.width}x{sample.height}"
            other_shape.setdefault(path.parent, []).append(f"{path.name} ({width}x{height}, {own})")
        found[sample.image_path] = path, share, digest.hex()
    problems += [_cannot_be_read(place, names) for place, names in broken.items()]
    problems += [_are_of_another_shape(place, names) for place, names in other_shape.items()]
    return found


def _tell_orphans(place: Path, names: list[str], warnings: list[str]) -> None:
    orphans = [name for name in names if is_image(name)]
    if not orphans:
        return
    cure = ""
    wrong = next((name for name in orphans if is_image(os.path.splitext(name)[0])), None)  # "a.jpg.png"
    if wrong:
        right = f"{os.path.splitext(os.path.splitext(wrong)[0])[0]}.png"
        cure = say(f", such as {right} instead of {wrong}", f"，如 {wrong} 应为 {right}")
    line = say(
        f"{place}: {plural(len(orphans), 'mask has', 'masks have')} no matching image: {some(orphans)}. A mask has "
        f"its image's name and ends in .png{cure}",
        f"{place}：{len(orphans)} 个蒙版没有对应的可用图片：{some(orphans)}。蒙版与图片同名，扩展名为 .png{cure}",
    )
    warnings.append(Note(line, topic="pictures", images=[place / name for name in orphans]))


def _opaque_shares(images: list[Path], memory: Path | None) -> dict[Path, float]:
    """How much of each image is opaque, 0 to 1; only those are decoded that may be transparent."""

    def attempt(path: Path) -> bytes | None:
        try:
            alpha = opacity(path) if decoding.nature(path).transparent else None
        except (OSError, decoding.BrokenImage):  # gone this moment: whoever loads it says so
            return None
        return OPACITY.pack(1.0 if alpha is None else alpha.mean() / 255)

    threads = min(8, os.cpu_count() or 1)
    facts = facts_of(images, attempt, folder=memory, kind=f"opacity{LOOKED_FORMAT}", thread_count=threads)
    return {image: OPACITY.unpack(fact)[0] for image, fact in zip(images, facts, strict=True) if fact is not None}


# ---- messages ----


def _have_two(folder: Path, place: Path, names: list[str]) -> str:
    return say(
        f"{folder}: {plural(len(names), 'image has', 'images have')} a mask in {place.name}/, too, which is used "
        f"instead of {some(names)}. Delete one of the two",
        f"{folder}：{len(names)} 张图片在 {place.name}/ 里也有蒙版，使用那里的，不用 {some(names)}。请删除其中一个",
    )


def _cannot_be_read(place: Path, broken: list[str]) -> str:
    return say(
        f"{place}: {plural(len(broken), 'mask')} cannot be read: {some(broken)}. Make them again, or delete "
        "them to train on the whole images",
        f"{place}：{len(broken)} 个蒙版无法读取：{some(broken)}。请重做，或删除（相应图片就会整张学习）",
    )


def _are_of_another_shape(place: Path, names: list[str]) -> str:
    return say(
        f"{place}: {plural(len(names), 'mask is', 'masks are')} of another shape than their image: {some(names)}. A "
        "mask must match the image as displayed, after EXIF rotation. Make them again, or set masked_loss = False",
        f"{place}：{len(names)} 个蒙版与图片的长宽比不同：{some(names)}。蒙版应与摆正后的图片一致。请重做，或设 "
        "masked_loss = False",
    )
