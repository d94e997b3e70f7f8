"""The images and captions of `[repeats]_[concept]` folders, and how many regularization images join each epoch.

Meaning and names are sd-scripts'. Where we differ: sub-folders are taken in sorted order on every system; endings are
found in any mixture of cases; an empty caption file is an empty caption; what is not used is told by name. What is
wrong with an image itself `decoding.inspect` says. Nothing here imports torch: mistakes are told within seconds.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from library import text_encoding
from library.contracts import Sample
from library.data import captions, decoding, image_metadata, masks, sorted_set
from library.data.buckets import pixels_of
from library.data.file_index import facts_of
from library.data.folders import (
    Folder,
    entries,
    images_in,
    is_file,
    is_folder,
    numbered_folders,
    repeats_and_text,
    same,
)
from library.data.image_names import MASKS, folded, holds_companions, is_image, some, sort_out
from library.files import JsonObject
from library.messages import Note, UserError, plural, say
from library.options.training import Config
from library.text_encoding import DecodedText

CAPTION_EXTENSIONS = (".txt", ".caption", ".cap", ".tags", ".tag")  # what tools write beside images
LONGEST_CAPTION = 10_000  # letters; 225 tokens, the most that can be seen, are about 1,000
# What may be wrong with captions that are used all the same: (of one, of several), in Chinese.
CAPTION_FAULTS = {
    "empty": (
        ("caption file is empty: trained without a caption", "caption files are empty: trained without a caption"),
        "个标注文件是空的，按空标注训练",
    ),
    "Chinese commas": (
        (
            "caption contains Chinese commas, which don't separate tags. Replace ， with ,",
            "captions contain Chinese commas, which don't separate tags. Replace ， with ,",
        ),
        "个标注文件含中文逗号，不能分隔标签，请把 ， 换成英文 ,",
    ),
    "invisible": (
        (
            "caption had invisible characters (control characters, zero-width spaces), which were removed",
            "captions had invisible characters (control characters, zero-width spaces), which were removed",
        ),
        "个标注文件含不可见字符（控制符、零宽空格等），已去除",
    ),
    "escaped": (
        (
            r"caption has \( and \), as prompts do: trained as ( and ), which is what web UIs read them as",
            r"captions have \( and \), as prompts do: trained as ( and ), which is what web UIs read them as",
        ),
        r"个标注文件含 \( 和 \)（提示词的写法）：按 ( 和 ) 训练，web UI 也这样读取",
    ),
    "huge": (
        (
            f"caption file is longer than {LONGEST_CAPTION:,} characters, and is cut there",
            f"caption files are longer than {LONGEST_CAPTION:,} characters, and are cut there",
        ),
        f"个标注文件超过 {LONGEST_CAPTION:,} 个字符，超出部分不读取，请检查是否真是标注",
    ),
    "several lines": (
        ("caption has several lines; only the first is read", "captions have several lines; only the first is read"),
        "个标注文件有多行，只读第一行",
    ),
}
INSPECTION = struct.Struct("<II?x")  # decoding.Inspection as it is remembered


@dataclass(frozen=True)
class Samples:
    """Everything usable below the two folders, in sorted order, and what the user should know about the rest."""

    train: list[Sample]
    regularization: list[Sample]
    folders: list[Folder]  # training first
    warnings: list[str] = field(default_factory=list)
    reg_captions: bool = True  # whether caption files of regularization images were read
    overrides: list[JsonObject] = field(default_factory=lambda: [{}])  # of each data set, what it has for itself
    validation: list[Sample] = field(default_factory=list)  # measured, never learnt: see `held_out`

    def configs(self, config: Config) -> list[Config]:
        """The run's configuration as it is for each data set."""
        return [replace(config, **own) for own in self.overrides]


class Reading(NamedTuple):
    """How the files of a folder are read."""

    caption_extension: str
    all_lines: bool = False  # more than the first line of captions is used
    alpha_mask: bool = False  # whether transparent parts of images are a mask, too
    masks: Path | None = None  # the folder that holds the masks; None: masks/ beside the images
    least: int = 0  # pixels; images with no more are left out

    @classmethod
    def of(cls, options: Config) -> "Reading":
        return cls(
            options.caption_extension,
            options.enable_wildcard,
            options.alpha_mask,
            Path(options.conditioning_data_dir) if options.conditioning_data_dir else None,
            pixels_of(options.skip_image_resolution) if options.skip_image_resolution else 0,
        )


def find_samples(
    train_data_dir: str | Path,
    reg_data_dir: str | Path | None = None,
    *,
    caption_extension: str = ".txt",
    reg_captions: bool = True,
    all_lines: bool = False,
    masked_loss: bool | str = "auto",
    alpha_mask: bool = False,
    masks_dir: Path | None = None,
    least: int = 0,
    memory: Path | None = None,
) -> Samples:
    """Find and check all images and captions. Threads decode every image once, to find broken ones.

    Args:
        train_data_dir, reg_data_dir: the folders that hold the `[repeats]_[concept]` folders.
        caption_extension: ending of caption files.
        reg_captions: False gives regularization images their folder's text only.
        all_lines: more than the first line of captions is used.
        masked_loss: "auto" takes the masks that are there, True insists on some, False takes none.
        alpha_mask: whether transparent parts of images are a mask, too.
        masks_dir: the folder that holds the masks; None: masks/ beside the images.
        least: images with no more pixels are left out.
        memory: the cache folder, where images that were found whole are remembered and not decoded again until they
            change; need not exist. None: all are decoded.

    Raises:
        UserError: nothing to train with, nothing in a `reg_data_dir` that was asked for, or captions that cannot be
            read. All problems at once, with what to do.
    """
    problems: list[str] = []
    warnings: list[str] = []
    train = Path(train_data_dir)
    reg = Path(reg_data_dir) if reg_data_dir else None
    if reg and same(train, reg):
        raise UserError(
            say(
                f"reg_data_dir and train_data_dir are the same folder: {train}. Choose the folder of the "
                "regularization images, or None",
                f"reg_data_dir 与 train_data_dir 是同一个目录：{train}。请选择正则化图片的目录，或设为 None",
            )
        )
    samples: dict[str, list[Sample]] = {"train_data_dir": [], "reg_data_dir": []}
    folders: list[Folder] = []
    reading = Reading(caption_extension, all_lines, alpha_mask, masks_dir, least)
    for option, parent, other in (("train_data_dir", train, reg), ("reg_data_dir", reg, train)):
        numbered = numbered_folders(parent, other, option, problems, warnings) if parent else []
        for folder in numbered:
            read_captions = reg_captions or not folder.is_regularization
            how = (reading, read_captions, masked_loss, memory)
            samples[option] += _read_whole(folder, *how, folders, problems, warnings)
        if numbered and not samples[option]:
            names = some([folder.name for folder in numbered])
            problems.append(
                say(
                    f"{option} = {parent}: no usable image in {names}",
                    f"{option} = {parent}：{names} 中没有可用的图片",
                )
            )
    _tell_missing_masks(sum(samples.values(), []), masked_loss, alpha_mask, problems, warnings)
    if problems:  # what was noticed on the way may be the cause
        raise UserError(problems + warnings)
    return Samples(samples["train_data_dir"], samples["reg_data_dir"], folders, warnings, reg_captions)


def read_subsets(
    subsets: list[Folder],
    overrides: list[JsonObject],
    *,
    reg_captions: bool = True,
    masked_loss: bool | str = "auto",
    memory: Path | None = None,
) -> Samples:
    """As `find_samples`, of the folders and metadata files that `dataset_config` or `in_json` names.

    Args:
        subsets: each with its options.
        overrides: of each data set; see `Samples`.

    Raises:
        UserError: as `find_samples`.
    """
    problems: list[str] = []
    warnings: list[str] = []
    folders: list[Folder] = []
    samples: list[Sample] = []
    learnt_from = {subset.dataset for subset in subsets if not subset.is_regularization}
    for subset in subsets:
        if subset.dataset not in learnt_from:
            continue
        read_captions = reg_captions or not subset.is_regularization
        assert subset.options, "every subset has its own"
        reading = Reading.of(subset.options)
        samples += _read_whole(subset, reading, read_captions, masked_loss, memory, folders, problems, warnings)
    train = [sample for sample in samples if not sample.is_regularization]
    trained = {sample.dataset for sample in train}
    regularization = [sample for sample in samples if sample.is_regularization and sample.dataset in trained]
    alone = sorted({subset.dataset for subset in subsets if subset.is_regularization} - trained)
    if not train and not problems:
        names = some([str(subset.metadata_file or subset.path) for subset in subsets])
        problems.append(_nothing_to_train(names, bool(learnt_from)))
    else:
        warnings += [_regularization_alone(dataset + 1) for dataset in alone]
    folders = [
        replace(folder, image_count=0, caption_count=0) if folder.dataset in alone else folder for folder in folders
    ]
    uses_alpha = any(subset.options.alpha_mask for subset in subsets if subset.options)
    _tell_missing_masks(samples, masked_loss, uses_alpha, problems, warnings)
    if problems:
        raise UserError(problems + warnings)
    return Samples(train, regularization, folders, warnings, reg_captions, overrides)


def _read_whole(
    folder: Folder,
    reading: Reading,
    read_captions: bool,
    masked_loss: bool | str,
    memory: Path | None,
    folders: list[Folder],
    problems: list[str],
    warnings: list[str],
) -> list[Sample]:
    """The samples of a folder with their masks; the folder as it was found joins `folders`."""
    extension, place, lines = reading.caption_extension, len(folders), reading.all_lines
    extension = extension if extension.startswith(".") else f".{extension}"
    try:
        if folder.metadata_file:
            entries = image_metadata.read_captions(folder, lines, warnings)
            used, folder = _read_entries(folder, place, entries, memory, warnings)
        else:
            used, folder = _read_folder(folder, place, extension, read_captions, lines, memory, problems, warnings)
        if not folder.is_regularization:
            used = _without_deleted(folder, used, warnings)
            captioned = sum(1 for sample in used if sample.caption_path)
            folder = replace(folder, image_count=len(used), caption_count=captioned)
        if reading.least:
            used = _without_small(folder, used, reading.least, warnings)
            captioned = sum(1 for sample in used if sample.caption_path)
            folder = replace(folder, image_count=len(used), caption_count=captioned)
        wants = (masked_loss is not False, reading.alpha_mask, memory, problems, warnings)
        used = masks.given(folder.path, used, *wants, reading.masks)
    except UserError as error:  # a folder that may not be read
        problems += error.problems
        return []
    folders.append(folder)
    return used


def _without_deleted(folder: Folder, samples: list[Sample], warnings: list[str]) -> list[Sample]:
    """Those that were not deleted in the cleaned set which the folder is a copy of."""
    record = sorted_set.read(folder.path.parent)
    meaning = repeats_and_text(folder.path.name)
    if record is None or meaning is None:
        return samples
    word = meaning[1].strip()
    deleted = [sample.image_path for sample in samples if record.is_deleted(word, sample.image_path.name)]
    if not deleted:
        return samples
    warnings.append(Note(_are_deleted(folder.path, record.images_dir, deleted), topic="pictures", images=deleted))
    return [sample for sample in samples if sample.image_path not in deleted]


def _without_small(folder: Folder, samples: list[Sample], least: int, warnings: list[str]) -> list[Sample]:
    small = [sample.image_path for sample in samples if sample.width * sample.height <= least]
    if not small:
        return samples
    names = some([path.name for path in small])
    line = say(
        f"{folder.path}: {plural(len(small), 'image')} left out by skip_image_resolution: {names}",
        f"{folder.path}：按 skip_image_resolution 跳过 {len(small)} 张图片：{names}",
    )
    warnings.append(Note(line, topic="pictures", images=small))
    return [sample for sample in samples if sample.width * sample.height > least]


def _read_entries(
    folder: Folder, place: int, entries: dict[Path, str], memory: Path | None, warnings: list[str]
) -> tuple[list[Sample], Folder]:
    """The samples of one metadata file, and the subset with its counts.

    Args:
        entries: images and their captions.
    """
    usable = _inspected(list(entries), memory, warnings)
    assert folder.metadata_file
    texts = {path: (entries[path], folder.metadata_file) for path in usable if entries[path]}
    samples = [_sample(folder, place, path, seen, texts) for path, seen in usable.items()]
    return samples, replace(folder, image_count=len(samples), caption_count=len(texts))


def _sample(
    folder: Folder, place: int, path: Path, seen: decoding.Inspection, texts: dict[Path, tuple[str, Path]]
) -> Sample:
    caption, caption_path = texts.get(path, (folder.text, None))
    return Sample(
        path,
        caption,
        seen.width,
        seen.height,
        folder.name,
        folder.repeats,
        folder.is_regularization,
        caption_path,
        None,
        place,
        folder.dataset,
        folder.options,
    )


def _read_folder(
    folder: Folder,
    place: int,
    extension: str,
    read_captions: bool,
    all_lines: bool,
    memory: Path | None,
    problems: list[str],
    warnings: list[str],
) -> tuple[list[Sample], Folder]:
    """The samples of one folder, and the folder with its counts.

    Args:
        place: of the folder among those that are found.
    """
    listed = entries(folder.path)
    paths = {path.name: path for path in folder.path.iterdir()}  # half the time of a Path(entry.path) for each
    listed = [entry for entry in listed if entry.name in paths]  # others were deleted this moment
    images = _images_of(folder, listed, paths, warnings)
    usable = _inspected(images, memory, warnings)
    texts: dict[Path, tuple[str, Path]] = {}
    if read_captions:
        names = [entry.name for entry in listed if is_file(entry)]
        # a name written exactly so goes before one in another case; on Linux both may be there
        files = {folded(name): name for name in names} | dict(zip(names, names, strict=True))
        caption_names = {image: caption_file(image, files, extension) for image in images}
        caption_paths = {image: paths[name] for image in usable if (name := caption_names[image])}
        lines: list[str] = []
        texts = _captions_of(caption_paths, folder, all_lines, problems, lines)
        _tell_missing_captions(list(usable), texts, folder, files, extension, lines)
        _tell_orphans(names, {name for name in caption_names.values() if name}, folder, extension, lines)
        topic = "regularization" if folder.is_regularization else "captions"
        warnings += (line if isinstance(line, Note) else Note(line, topic=topic) for line in lines)
    samples = [_sample(folder, place, path, seen, texts) for path, seen in usable.items()]
    return samples, replace(folder, image_count=len(samples), caption_count=len(texts))


def _tell_missing_masks(
    samples: list[Sample], masked_loss: bool | str, alpha_mask: bool, problems: list[str], warnings: list[str]
) -> None:
    found = [sample.mask for sample in samples if sample.mask]
    if masked_loss is True and not found and samples:
        image = samples[0].image_path
        mask = image.parent / MASKS / f"{image.stem}.png"
        problems.append(
            say(
                f"masked_loss = True: no image has a mask. For {image} it would be {mask}. Make masks, or set "
                'masked_loss = "auto" to train on the whole of images without one',
                f"masked_loss = True：没有一张图片有蒙版。{image} 的蒙版应为 {mask}。"
                '请制作蒙版；没有蒙版的图片要整张学习，请设 masked_loss = "auto"',
            )
        )
    if alpha_mask and not any(mask.is_alpha for mask in found):
        warnings.append(
            say(
                "alpha_mask = True has no effect: no image has transparent parts",
                "alpha_mask = True 不起作用：没有一张图片有透明部分",
            )
        )


def _images_of(
    folder: Folder, listed: list[os.DirEntry[str]], paths: dict[str, Path], warnings: list[str]
) -> list[Path]:
    """The image files of a folder; whatever looks like one and is not read is named."""
    names: list[str] = []
    unreadable: list[str] = []
    inner: list[Path] = []
    for entry in listed:
        path = paths[entry.name]
        ending = os.path.splitext(entry.name)[1].lower()
        if is_folder(entry):
            inner.append(path)
        elif not is_file(entry):
            warnings.append(say(f"{path}: broken link, or not a regular file", f"{path}：链接失效，或不是普通文件"))
        elif ending in decoding.UNREADABLE_EXTENSIONS:
            unreadable.append(entry.name)
        elif ending in decoding.EXTENSIONS:
            names.append(entry.name)
    known = sort_out(folder.path, names)
    warnings += known.lines(folder.path)
    for path in inner:
        if folded(path.name) != MASKS:
            warnings += _inner_folder(path, holds_companions(path, known.images))
    images = [paths[name] for name in known.images]
    if unreadable:
        warnings.append(
            say(
                f"{folder.path}: {plural(len(unreadable), 'file')} in unsupported formats: {some(unreadable)}. "
                "Convert them to .png (for .jxl also: pip install pillow-jxl-plugin)",
                f"{folder.path}：{len(unreadable)} 个文件的格式不支持：{some(unreadable)}。请转换为 .png"
                "（.jxl 也可 pip install pillow-jxl-plugin）",
            )
        )
    if not images:
        warnings.append(say(f"{folder.path}: contains no images", f"{folder.path}：里面没有图片"))
    return images


def _inspected(images: list[Path], memory: Path | None, warnings: list[str]) -> dict[Path, decoding.Inspection]:
    """What `decoding.inspect` says of each usable image; the others are named, by every run anew."""

    def attempt(path: Path) -> bytes | decoding.BrokenImage:
        try:
            return INSPECTION.pack(*decoding.inspect(path))
        except decoding.BrokenImage as broken:
            return broken

    usable: dict[Path, decoding.Inspection] = {}
    kind, thread_count = f"inspected{decoding.INSPECTION_FORMAT}", min(8, os.cpu_count() or 1)
    results = facts_of(images, attempt, folder=memory, kind=kind, thread_count=thread_count)
    for path, result in zip(images, results, strict=True):
        if isinstance(result, decoding.BrokenImage):
            line = say(f"{path}: skipped: {result}", f"{path}：已跳过：{result}")
            warnings.append(Note(line, topic="pictures", images=[path]))
        else:
            usable[path] = decoding.Inspection(*INSPECTION.unpack(result))
    animated = [path.name for path, seen in usable.items() if seen.is_animated]
    if animated:
        warnings.append(
            say(
                f"{images[0].parent}: of animated images only the first frame is used: {some(animated)}",
                f"{images[0].parent}：动图只使用第一帧：{some(animated)}",
            )
        )
    return usable


def caption_file(image: Path, files: dict[str, str], extension: str) -> str | None:
    """The file with an image's caption. Cut-out faces, `name_x_y_w_h`, also take the caption of `name`."""
    stems = [os.path.splitext(image.name)[0]]
    fields = stems[0].split("_")
    if len(fields) >= 5:
        stems.append("_".join(fields[:-4]))
    for stem in stems:
        name = files.get(stem + extension) or files.get(folded(stem + extension))
        if name:
            return name
    return None


def _captions_of(
    paths: dict[Path, Path], folder: Folder, all_lines: bool, problems: list[str], warnings: list[str]
) -> dict[Path, tuple[str, Path]]:
    """Text and file of the caption of each image.

    Args:
        paths: of each image that has a caption file, that file.
    """
    texts: dict[Path, tuple[str, Path]] = {}
    guessed: dict[str, list[tuple[str, str]]] = {}  # encoding -> names and texts
    faulty: dict[str, list[str]] = {fault: [] for fault in CAPTION_FAULTS}  # names of files
    doubtful: list[tuple[str, DecodedText]] = []
    contents: dict[Path, bytes] = {}  # of each image its caption file's
    for image, path in paths.items():
        try:
            with open(path, "rb", buffering=0) as file:  # a fifth faster than read_bytes
                contents[image] = file.read()
        except OSError as error:
            problems.append(_caption_is_unreadable(path, error))
    for image, reading in zip(contents, text_encoding.read_all(list(contents.values())), strict=True):
        path = paths[image]
        if reading is None:
            problems.append(no_text(path))
            continue
        encoding, text = reading.encoding, captions.without_invisible(reading.text)
        if text != reading.text:
            faulty["invisible"].append(path.name)
        if len(text) > LONGEST_CAPTION:
            faulty["huge"].append(f"{path.name} ({len(text):,})")
            text = text.lstrip()[:LONGEST_CAPTION]
        texts[image] = (text.strip(), path)
        line = captions.first_line(text)
        if not reading.is_sure:
            doubtful.append((path.name, reading))
        elif encoding in text_encoding.NAMES:
            guessed.setdefault(encoding, []).append((path.name, line))
        if not line:
            faulty["empty"].append(path.name)
        if captions.unescaped(line) != line:
            faulty["escaped"].append(path.name)
        if "，" in line:
            faulty["Chinese commas"].append(path.name)
        if not all_lines and len(text.strip().splitlines()) > 1:
            faulty["several lines"].append(path.name)
    for encoding, named in guessed.items():
        warnings.append(_encoding_was_guessed(folder, text_encoding.NAMES[encoding], named))
    if doubtful:
        warnings.append(Note(encoding_is_doubtful(folder.path, doubtful), "red", topic="captions"))
    for fault, names in faulty.items():
        if names:
            english, chinese = CAPTION_FAULTS[fault]
            warnings.append(
                say(
                    f"{folder.path}: {plural(len(names), *english)}: {some(names)}",
                    f"{folder.path}：{len(names)} {chinese}：{some(names)}",
                )
            )
    return texts


def _tell_missing_captions(
    images: list[Path],
    texts: dict[Path, tuple[str, Path]],
    folder: Folder,
    files: dict[str, str],
    extension: str,
    warnings: list[str],
) -> None:
    missing = [path for path in images if path not in texts]
    endings = {os.path.splitext(name)[1] for name in files} if missing else ()
    for ending in CAPTION_EXTENSIONS:
        if ending not in endings:
            continue
        names = [path.name for path in missing if caption_file(path, files, ending)]
        if names and ending != extension.lower():
            line = say(
                f"{folder.path}: {plural(len(names), 'image has', 'images have')} captions ending in {ending}, "
                f'which are not read: caption_extension is "{extension}". Set caption_extension = "{ending}"',
                f"{folder.path}：{len(names)} 张图片的标注文件扩展名是 {ending}，而 caption_extension 为 "
                f'"{extension}"，因此没有读取。请设 caption_extension = "{ending}"',
            )
            warnings.append(Note(line, "red", topic="captions"))
    names = some([path.name for path in missing])
    if missing and not folder.text:
        warnings.append(
            say(
                f"{folder.path}: {plural(len(missing), 'image has', 'images have')} neither a caption file nor a "
                f"concept in {folder.source}: trained with an empty caption: {names}",
                f"{folder.path}：{len(missing)} 张图片没有标注文件，{folder.source}里也没有概念，按空标注训练：{names}",
            )
        )
    elif texts and missing:  # where all are missing it is a way of working, and stands in the table
        warnings.append(
            say(
                f"{folder.path}: {len(missing)} of {plural(len(images), 'image')} without a caption file; the "
                f'caption is "{folder.text}": {names}',
                f"{folder.path}：{len(images)} 张图片中有 {len(missing)} 张没有标注文件，以"
                f"{folder.source}“{folder.text}”作标注：{names}",
            )
        )


def _tell_orphans(names: list[str], used: set[str], folder: Folder, extension: str, warnings: list[str]) -> None:
    ending = folded(extension)
    orphans = [name for name in names if folded(name).endswith(ending) and name not in used]
    if orphans:
        stems = {folded(os.path.splitext(name)[0]) for name in names if is_image(name)}
        there = {folded(name) for name in names}
        free, taken = None, None
        for name in orphans:  # "a.png.txt" would be "a.txt"
            image = os.path.splitext(name)[0]
            stem = os.path.splitext(image)[0]
            if is_image(image) and folded(stem) in stems:
                if folded(stem + extension) in there:
                    taken = taken or (name, stem + extension)
                else:
                    free = free or (name, stem + extension)
        cure = say(f". Rename {free[0]} to {free[1]}", f"。请把 {free[0]} 改名为 {free[1]}") if free else ""
        if taken:
            cure += _two_captions(*taken)
        warnings.append(
            say(
                f"{folder.path}: {plural(len(orphans), 'caption file has', 'caption files have')} no image: "
                f"{some(orphans)}{cure}",
                f"{folder.path}：{len(orphans)} 个标注文件没有对应的图片：{some(orphans)}{cure}",
            )
        )


def balance(
    train: list[Sample], regularization: list[Sample], *, rotate: bool = True, epoch: int = 1
) -> list[tuple[Sample, int]]:
    """The regularization images of an epoch, and how often each is used.

    Args:
        rotate: every epoch goes on where the one before stopped, so that all images are used equally often. False:
            every epoch as the first, which is sd-scripts' choice.
        epoch: from 1.
    """
    wanted = sum(sample.repeats for sample in train)
    return next(islice(balanced_epochs(wanted, regularization, rotate=rotate), epoch - 1, None))


def balanced_epochs(
    wanted: int, regularization: list[Sample], *, rotate: bool = True
) -> Iterator[list[tuple[Sample, int]]]:
    """What `balance` gives for epoch 1, 2, ... without end.

    Until there are at least `wanted` samples, each image is taken with its folder's repeats (so the last one may
    overshoot); where all of them are not enough, each is taken once more, in turn.
    """
    count = len(regularization)
    total = sum(sample.repeats for sample in regularization)
    start = 0
    while True:
        in_turn = regularization[start:] + regularization[:start]
        uses: list[tuple[Sample, int]] = []
        moved = 0  # images that had their turn
        if total >= wanted:
            so_far = 0
            while so_far < wanted:
                uses.append((in_turn[moved], in_turn[moved].repeats))
                so_far += in_turn[moved].repeats
                moved += 1
        elif count:
            rounds, moved = divmod(wanted - total, count)
            uses = [(sample, sample.repeats + rounds + (place < moved)) for place, sample in enumerate(in_turn)]
        yield uses
        if rotate and count:
            start = (start + moved) % count


# ---- messages ----


def _regularization_alone(number: int) -> Note:
    line = say(
        f"data set {number}: its regularization images are not used, because it has no training images. As in "
        "sd-scripts, they join the training images of their own data set: move their [[datasets.subsets]] into the "
        "[[datasets]] of those",
        f"第 {number} 个数据集：没有训练图片，其中的正则化图片不会用到。与 sd-scripts 相同，正则化图片只与同一数据集的"
        "训练图片一起使用：请把它的 [[datasets.subsets]] 移到训练图片所在的 [[datasets]] 里",
    )
    return Note(line, "red", topic="regularization")


def _nothing_to_train(names: str, has_subsets: bool) -> str:
    if has_subsets:
        return say(f"there is no usable image in {names}", f"{names} 中没有可用的图片")
    return say(
        f"{names}: only regularization images (is_reg = true), so there is nothing to train. Add a "
        "[[datasets.subsets]] with the training images",
        f"{names}：只有正则化图片（is_reg = true），没有可训练的图片。请加上训练图片的 [[datasets.subsets]]",
    )


def _inner_folder(path: Path, is_of_companions: bool) -> list[str]:
    """What there is to say of a folder within a [repeats]_[concept] folder."""
    inside = images_in(path)
    if inside and is_of_companions:
        return [
            say(
                f"{path}: masks or control images, not used. To use masks whose white is learned, rename the folder to "
                f"{MASKS}, and each to its image's name with .png",
                f"{path}：蒙版或控制图，未使用。如果是白色处要学习的蒙版，请把目录改名为 {MASKS}，"
                "里面的文件与图片同名，扩展名为 .png",
            )
        ]
    if inside:
        return [
            say(
                f"{path}: {plural(len(inside), 'image is', 'images are')} not used, in a folder within a "
                "[repeats]_[concept] folder. Move them one level up",
                f"{path}：[重复次数]_[概念] 目录里的子目录不会读取，其中 {len(inside)} 张图片未使用。请移到上一级",
            )
        ]
    if is_image(path.name):
        return [say(f"{path}: is a folder, not an image", f"{path}：是目录，不是图片")]
    return []


def _caption_is_unreadable(path: Path, error: OSError) -> str:
    reason = error.strerror or error
    return say(
        f"{path}: cannot be read ({reason}). You don't have permission to read this file. Change its permissions, or "
        "delete it",
        f"{path}：无法读取（{reason}）。请修改文件权限，或删除它",
    )


def _encoding_was_guessed(folder: Folder, kind: str, named: list[tuple[str, str]]) -> str:
    name, line = named[0]
    return say(
        f"{folder.path}: {plural(len(named), 'caption is', 'captions are')} not UTF-8 and read as {kind}, e.g. {name}: "
        f'"{line[:40]}". If the text is wrong, save them as UTF-8',
        f"{folder.path}：{len(named)} 个标注文件不是 UTF-8，按 {kind} 读取，如 {name}：“{line[:40]}”。"
        "如果文字不对，请另存为 UTF-8",
    )


def no_text(path: Path) -> str:
    return say(f"{path}: {captions.NO_TEXT}. Save it as UTF-8", f"{path}：无法识别文字编码，请另存为 UTF-8")


def encoding_is_doubtful(folder: Path, doubtful: list[tuple[str, DecodedText]]) -> str:
    """Names of caption files, and how they may be read."""
    name, first = doubtful[0]
    assert first.other_text is not None
    one, other = (captions.first_line(text)[:40] for text in (first.text, first.other_text))
    kind, other_kind = (text_encoding.NAMES.get(code, "UTF-8") for code in (first.encoding, first.other_encoding))
    names = some([name for name, _ in doubtful])
    return say(
        f"{folder}: {plural(len(doubtful), 'caption is', 'captions are')} not UTF-8, and which encoding they are in is "
        f'not certain: {names}. {name} reads "{one}" in {kind} and "{other}" in {other_kind}; the first is taken. Open '
        "them in an editor (VS Code: Reopen with Encoding) and save them as UTF-8",
        f"{folder}：{len(doubtful)} 个标注文件不是 UTF-8，而且无法确定是哪种编码：{names}。{name} 按 {kind} 是“{one}”，"
        f"按 {other_kind} 是“{other}”，这里按前者读取。请用编辑器打开（VS Code：通过编码重新打开），另存为 UTF-8",
    )


def _two_captions(unread: str, read: str) -> str:
    return say(
        f". Compare {unread} with {read}, which exists too and is the one that is read: move what you want to keep "
        f"into {read}, then delete {unread}",
        f"。{unread} 与 {read} 同时存在，实际读取的是 {read}：请把要保留的内容并入 {read}，再删除 {unread}",
    )


def _are_deleted(folder: Path, images_dir: Path, images: list[Path]) -> str:
    names = some([path.name for path in images])
    return say(
        f"{folder}: {plural(len(images), 'image was', 'images were')} deleted in {images_dir} since, so not trained: "
        f"{names}",
        f"{folder}：{len(images)} 张图片已在 {images_dir} 里删除，不参加训练：{names}",
    )
