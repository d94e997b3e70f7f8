"""Images that are measured and never learnt: a share of the training images, or a folder of their own.

They are used without anything that is left to chance: never mirrored or cut at random, with their whole caption.
"""

import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from library.contracts import Sample
from library.data import captions
from library.data.folders import Folder, images_in, numbered_folders, repeats_and_text, some, subfolders
from library.data.samples import Samples, read_subsets
from library.files import sha256_of_file
from library.messages import Note, UserError, plural, say
from library.options.training import Config

AUTO_LEAST = 10  # of fewer images each one is missed
AUTO_MOST = 16  # more would tell no more of an epoch
LEAST_TIMESTEPS, MOST_TIMESTEPS = 4, 16  # of each image; 4 as in sd-scripts, where there is time a multiple of it
TIME_SHARE = 0.03  # of the arithmetic; small batches take longer, and so it stays below 5 % of the time
PASSES_OF_A_SAMPLE = 3  # forward passes that a step's forward and backward take for each sample, about

WITHOUT_CHANCE = dict(
    flip_aug=False, color_aug=False, random_crop=False, face_crop_aug_range=None, shuffle_caption=False,
    caption_dropout_rate=0.0, caption_dropout_every_n_epochs=None, caption_tag_dropout_rate=0.0, token_warmup_step=0,
)  # fmt: skip
ALREADY_DONE = dict(  # by `captions.whole`
    caption_prefix=None, caption_suffix=None, keep_tokens_separator=None, secondary_separator=None,
    enable_wildcard=False,
)  # fmt: skip


class Scope(NamedTuple):
    """How much is measured."""

    held_out: int  # images; as many of the training beside them
    regularization: int  # images
    timesteps: int  # of each image
    every: int  # so many epochs


def scope(held_out: int, regularization: int, samples: float, every: int | None) -> Scope:
    """As much as there is time for: rather fewer images than fewer epochs, but no fewer than 8 for that.

    Args:
        held_out, regularization: images that there are.
        samples: that an epoch trains.
        every: epochs between two measurements, if the user says so: then all that is held out is measured.
    """
    passes = TIME_SHARE * PASSES_OF_A_SAMPLE * samples  # for one epoch's measurement
    if every is None:
        room = int(passes / (3 * LEAST_TIMESTEPS))
        held_out = max(min(held_out, 8), min(held_out, room))
    regularization = min(regularization, held_out)
    images = 2 * held_out + regularization
    count = LEAST_TIMESTEPS * int(passes / (images * LEAST_TIMESTEPS))
    count = max(LEAST_TIMESTEPS, min(count, MOST_TIMESTEPS))
    return Scope(held_out, regularization, count, every or max(1, math.ceil(images * count / passes)))


def of_subject(found: Samples, config: Config) -> list[Sample]:
    """The user's images, learnt or held out of them: what is to be said of a set is said of all."""
    return found.train + ([] if config.validation_data_dir else found.validation)


def fixed(samples: list[Sample], config: Config) -> list[Sample]:
    """The same images with nothing left to chance.

    Args:
        config: the run's; a subset may have options of its own.
    """
    options: dict[int, Config] = {}  # one for all of a subset, by the identity of its own

    def of(sample: Sample) -> Config:
        own = sample.options or config
        if id(own) not in options:
            options[id(own)] = replace(own, **WITHOUT_CHANCE, **ALREADY_DONE)
        return options[id(own)]

    return [replace(sample, caption=captions.whole_of(sample, config), options=of(sample)) for sample in samples]


def split(found: Samples, share: float | str, seed: int) -> Samples:
    """Move a share of the training images to `Samples.validation`; never regularization images.

    Whole images leave: all their repeats, and copies of them. Each folder gives its share of them, and keeps at least
    one. The choice follows from the names of folders and images and from the seed: it is the same on every system.

    Args:
        share: more than 0, less than 1; "auto": of AUTO_LEAST images and more a tenth, at most AUTO_MOST.

    Returns:
        What was found, with a warning where a share that was asked for is less than an image.
    """
    same = identities([sample.image_path for sample in found.train])
    folders: dict[int, list[Path]] = defaultdict(list)
    for sample in found.train:
        folders[sample.subset].append(same[sample.image_path])
    rng = random.Random(f"{seed} held out")
    kept: set[Path] = set()
    in_turn: list[Path] = []  # those of one folder after another
    for subset in sorted(folders):
        own = sorted(set(folders[subset]), key=lambda path: (path.name, path))
        rng.shuffle(own)
        kept.add(own[0])
        in_turn += own
    candidates = [path for path in dict.fromkeys(in_turn) if path not in kept]
    total = len(candidates) + len(kept)
    wanted = automatic_count(total) if isinstance(share, str) else round(total * share)
    count = min(wanted, len(candidates))
    if count == 0:
        if isinstance(share, str):
            return found
        return replace(found, warnings=[*found.warnings, _too_few(share, total, bool(candidates))])
    begin = rng.random()
    chosen = {candidates[int((place + begin) * len(candidates) / count)] for place in range(count)}
    gone = [sample for sample in found.train if same[sample.image_path] in chosen]
    images = Counter(sample.subset for sample in gone)
    captioned = Counter(sample.subset for sample in gone if sample.caption_path)
    once: dict[tuple[Path, int], Sample] = {}
    for sample in gone:
        once.setdefault((same[sample.image_path], sample.dataset), sample)
    return replace(
        found,
        train=[sample for sample in found.train if same[sample.image_path] not in chosen],
        validation=list(once.values()),
        folders=[
            replace(
                folder,
                image_count=folder.image_count - images[place],
                caption_count=folder.caption_count - captioned[place],
            )
            for place, folder in enumerate(found.folders)
        ],
    )


def automatic_count(images: int) -> int:
    """How many of so many images are held out where the user says nothing."""
    return 0 if images < AUTO_LEAST else min(round(images / 10), AUTO_MOST)


def _too_few(share: float, total: int, can_be_more: bool) -> Note:
    least = (50 // total + 1) / 100
    english = f"Set it to at least {least:.2f}, or give" if can_be_more else "Add pictures, or give"
    chinese = f"请至少设为 {least:.2f}，或" if can_be_more else "请增加图片，或"
    line = say(
        f"validation_split = {share:g} holds out none of {plural(total, 'image')} (each folder keeps at least one), "
        f"so there is no validation. {english} a folder of other images as validation_data_dir",
        f"validation_split = {share:g}：训练图片只有 {total} 张（每个目录至少留一张），分不出验证图片，因此不做验证。"
        f"{chinese}用 validation_data_dir 另给一个图片目录",
    )
    return Note(line, "red")


def find_held_out(folder: str, found: Samples, config: Config, memory: Path | None) -> Samples:
    """Read the images of `validation_data_dir` into `Samples.validation`.

    Args:
        folder: holds `[repeats]_[concept]` folders (repeats do not count), or images directly.
        memory: see `samples.find_samples`.

    Raises:
        UserError: there is none, or some of them are learnt.
    """
    parent, option = Path(folder), "validation_data_dir"
    problems: list[str] = []
    warnings: list[str] = []
    direct = os.path.isdir(parent) and images_in(parent)
    if direct and not any(repeats_and_text(path.name) for path in subfolders(parent)):
        meant = repeats_and_text(parent.resolve().name)
        subsets = [Folder(parent, 1, meant[1] if meant else "", False, options=config)]
    else:
        numbered = numbered_folders(parent, None, option, problems, warnings)
        subsets = [replace(one, repeats=1, options=config) for one in numbered]
    if problems:
        raise UserError(problems)
    masked_loss = "auto" if config.masked_loss else False  # there need not be masks among these
    read = read_subsets(subsets, [{}], masked_loss=masked_loss, memory=memory)
    learnt = [sample.image_path for sample in found.train + found.regularization]
    same = identities(learnt + [sample.image_path for sample in read.train])
    names = {same[path]: f"{path.parent.name}/{path.name}" for path in learnt}
    own = [sample.image_path for sample in read.train]
    if twins := [f"{path.name} = {names[same[path]]}" for path in own if same[path] in names]:
        raise UserError(
            say(
                f"{option} = {parent}: {len(twins)} of its images are also trained on, so they can't be used for "
                f"validation: {some(twins)}. Choose others, or use validation_split instead",
                f"{option} = {parent}：其中 {len(twins)} 张图片也在本次训练中，不能用来验证：{some(twins)}。"
                "请换成其他图片，或改用 validation_split",
            )
        )
    told = [_of_option(option, line) for line in warnings + read.warnings]
    return replace(found, validation=read.train, warnings=[*found.warnings, *told])


def _of_option(option: str, line: str) -> str:
    text = say(f"{option}: {line}", f"{option}：{line}")
    return Note(text, line.level, topic=line.topic, images=line.images) if isinstance(line, Note) else text


def identities(paths: list[Path]) -> dict[Path, Path]:
    """Of each image the first file with the same bytes. Only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_size[path.stat().st_size].append(path)
    same: dict[Path, Path] = {}
    for alike in by_size.values():
        first: dict[bytes, Path] = {}
        for path in alike:
            digest = sha256_of_file(path) if len(alike) > 1 else b""
            same[path] = first.setdefault(digest, path)
    return same


def beside(held: list[Sample], train: list[Sample], bucket: Callable[[Sample], object], seed: int) -> list[Sample]:
    """For each held-out image a training image to compare it with.

    One of the same bucket and folder where there is one, then of the same bucket, then any; none twice before all
    others have been taken.

    Args:
        bucket: of an image.
    """
    rng = random.Random(f"{seed} beside")
    kinds: list[Callable[[Sample], object]] = [
        lambda one: (bucket(one), one.folder),
        lambda one: bucket(one),
        lambda one: None,
    ]
    taken: set[int] = set()
    pools: list[dict[object, list[int]]] = []

    def refill() -> None:
        order = list(range(len(train)))
        rng.shuffle(order)
        taken.clear()
        pools[:] = [defaultdict(list) for _ in kinds]
        for place in order:
            for pool, kind in zip(pools, kinds, strict=True):
                pool[kind(train[place])].append(place)

    def take(sample: Sample) -> Sample | None:
        for pool, kind in zip(pools, kinds, strict=True):
            own = pool.get(kind(sample), [])
            while own and own[-1] in taken:
                own.pop()
            if own:
                taken.add(own[-1])
                return train[own.pop()]
        return None

    refill()
    partners = []
    for sample in held:
        partner = take(sample)
        if partner is None:
            refill()
            partner = take(sample)
        assert partner is not None, "there are training images"
        partners.append(partner)
    return partners
