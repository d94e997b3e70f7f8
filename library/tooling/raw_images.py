"""The raw images of a folder: which there are, what is known of each after one quick look, and which are the same.

The look decodes JPEGs at a fraction of their size, and what was found is remembered, so that the second run over ten
thousand images reads none of them.
"""

import io
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from library.data import decoding
from library.data.file_index import facts_of
from library.data.folders import entries, is_file, is_folder
from library.data.image_names import folded, holds_companions, some, sort_out
from library.data.samples import CAPTION_EXTENSIONS
from library.data.threads import in_order
from library.images import borders, duplicates, quality, video_frames
from library.images.manifest import Manifest, digest_of
from library.messages import UserError, plural, say

DETAIL_AREA = duplicates.DETAIL_SIDE**2  # pixels that are enough to compare two images in detail
FACTS = struct.Struct("<32s2I?4f2fQQ192sx")
FACTS_FORMAT = 1  # raise it when a look finds out something else

NO_IMAGES = {  # endings that are not tried
    *CAPTION_EXTENSIONS, ".json", ".jsonl", ".csv", ".html", ".htm", ".md", ".py", ".ini", ".db", ".npz", ".pt", ".log",
    ".zip", ".rar", ".7z", ".tar", ".gz", ".mp3", ".pdf", ".svg", ".eps",
    ".psb", ".xmp", ".safetensors", ".ckpt", ".doc", ".docx", ".exe", ".url", ".lnk", *video_frames.EXTENSIONS,
}  # fmt: skip
PLUGINS = {  # what teaches Pillow these
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin", ".avif": "pillow-avif-plugin",
}  # fmt: skip
CAMERA = {".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".rw2", ".orf"}


class Raw(NamedTuple):
    """A raw image after a look at it."""

    path: Path
    name: str  # path below the folder, with "/"
    digest: str  # of the file's bytes
    width: int  # of the whole image, upright
    height: int
    is_animated: bool
    trim: tuple[float, float, float, float]  # left, top, right, bottom of what is within borders, as shares
    blur: float  # see `quality`; at the training size
    noise: float
    fingerprint: duplicates.Fingerprint

    @property
    def area(self) -> float:
        """Pixels within borders."""
        left, top, right, bottom = self.trim
        return (right - left) * self.width * (bottom - top) * self.height


@dataclass
class Group:
    """Images that show the same."""

    members: list[Raw]  # the best first
    kept: set[str]  # names of those that no better one is like


@dataclass
class Survey:
    """A folder of raw images."""

    folder: Path
    images: list[Raw] = field(default_factory=list)  # sorted by name
    skipped: dict[str, str] = field(default_factory=dict)  # name -> why
    notes: list[str] = field(default_factory=list)
    captions: dict[str, Path] = field(default_factory=dict)  # image's name -> its caption file
    videos: list[str] = field(default_factory=list)
    paths: dict[str, Path] = field(default_factory=dict)  # of images that do not lie in the folder: a video's frames

    def path(self, name: str) -> Path:
        """Where an image lies."""
        return self.paths.get(name, self.folder / name)


def find_raw_images(folder: Path) -> tuple[list[str], Survey]:
    """Names of all files that may be images, sorted, and a survey with their captions and what is passed over.

    Raises:
        UserError: there is none, and no video either.
    """
    survey, names, passed = Survey(folder), [], {}
    _collect(folder, "", names, survey, passed)
    if passed:
        listed = ", ".join(f"{ending or '-'} ({count})" for ending, count in sorted(passed.items()))
        survey.notes.append(say(f"skipped, not images: {listed}", f"以下文件不是图片，未处理：{listed}"))
    if not names and not survey.videos:
        raise UserError([say(f"images_dir: no images in {folder}", f"images_dir：{folder} 里没有图片"), *survey.notes])
    return names, survey


def _collect(folder: Path, below: str, names: list[str], survey: Survey, passed: dict[str, int]) -> None:
    try:
        listed = entries(folder)
    except UserError as error:  # of one sub-folder; the others are still of use
        survey.notes += error.problems
        return
    files = {folded(entry.name): entry.name for entry in listed if is_file(entry)}
    endings = {entry.name: os.path.splitext(entry.name)[1].lower() for entry in listed if is_file(entry)}
    known = sort_out(folder, [name for name, ending in endings.items() if ending not in NO_IMAGES])
    survey.notes += known.lines(folder)
    if known.masks:
        survey.notes.append(_masks_are_not_taken(folder, sorted(known.masks.values())))
    images = set(known.images)
    stems = {folded(os.path.splitext(name)[0]) for name in images}
    for entry in listed:
        if not is_file(entry) or (endings[entry.name] not in NO_IMAGES and entry.name not in images):
            continue
        name, ending = below + entry.name, os.path.splitext(entry.name)[1].lower()
        if ending in CAMERA or ending in decoding.UNREADABLE_EXTENSIONS - decoding.RAW_EXTENSIONS:
            plugin = PLUGINS.get(ending)
            english, chinese = (f"pip install {plugin}, or ", f"请 pip install {plugin}，或") if plugin else ("", "请")
            survey.skipped[name] = say(
                f"{ending} cannot be read here: {english}save it as .png or .jpg",
                f"无法读取 {ending}：{chinese}另存为 .png 或 .jpg",
            )
        elif ending in video_frames.EXTENSIONS:
            if folded(os.path.splitext(entry.name)[0]) in stems:
                survey.notes.append(_moving_photo(name))
            else:
                survey.videos.append(name)
        elif ending in NO_IMAGES:
            if ending not in CAPTION_EXTENSIONS:
                passed[ending] = passed.get(ending, 0) + 1
        else:  # also endings never heard of: browsers save "photo.jpg_large", and files without any
            names.append(name)
            stem = os.path.splitext(entry.name)[0]
            caption = next((files[c] for e in CAPTION_EXTENSIONS if (c := folded(stem + e)) in files), None)
            if caption:
                survey.captions[name] = folder / caption
    for entry in listed:
        if is_folder(entry) and holds_companions(folder / entry.name, images):
            survey.notes.append(_masks_are_not_taken(folder, [entry.name]))
        elif is_folder(entry) and not entry.is_symlink():
            _collect(folder / entry.name, f"{below}{entry.name}/", names, survey, passed)


def take_frames(names: list[str], survey: Survey, *, count: int, resolution: int, memory: Path) -> list[str]:
    """Images of the videos join the others; they are kept, so that the next run has them at once.

    Args:
        count: of each video at most.
        memory: folder for the frames.

    Returns:
        What became of each video.

    Raises:
        UserError: there is no image, nor a frame of a video.
    """
    lines = []
    for name in survey.videos if count else ():
        path = survey.folder / name
        below, ending = os.path.splitext(name)
        try:
            facts = path.stat()
            key = digest_of(repr((name, facts.st_size, facts.st_mtime_ns, count, resolution)).encode())
            made = _frames(path, memory / key, count, resolution)
        except (OSError, ValueError) as error:
            survey.skipped[name] = str(error)
            continue
        lines.append(_frames_of(name, len(made)))
        own = {f"{below}_{ending[1:]}_{file.stem}.png": file for file in made}
        survey.paths |= own
        names += own
    if survey.videos and not count:
        lines.append(_no_frames(len(survey.videos)))
    survey.notes += lines
    names.sort()
    if not names:
        reasons = [f"{name}: {why}" for name, why in survey.skipped.items()]
        raise UserError([*reasons, *survey.notes], say("no usable images:", "没有可用的图片："))
    return lines


def _frames(video: Path, folder: Path, count: int, resolution: int) -> list[Path]:
    """The files of a video's frames, made where they are not there."""
    from library import files

    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for frame in video_frames.frames(video, count, resolution):
            data = io.BytesIO()
            decoding.Image.fromarray(frame.image).save(data, "PNG", compress_level=1)
            files.write(folder / f"{frame.number:06}.png", data.getvalue())
        files.write(done, b"")
    return sorted(folder.glob("*.png"))


def inspect(
    names: list[str],
    survey: Survey,
    *,
    resolution: int,
    trims: bool,
    memory: Path,
    thread_count: int,
    told: Callable[[], object],
) -> None:
    """Look at every image once and put it into the survey, with what is known of it or why it is skipped.

    Args:
        trims: whether borders will be cut, and so do not count when images are compared.
        memory: where what was found out is remembered.
        told: called for each image that is looked at; one that is remembered is not.
    """

    def facts(path: Path) -> bytes | str:
        try:
            return _facts(path, resolution, trims)
        except decoding.BrokenImage as error:
            return str(error)
        except MemoryError:
            return say("too large for this machine's memory; make it smaller", "内存不足，无法打开，请先缩小")
        except Exception as error:  # one strange file must not end the work on ten thousand
            return say(f"cannot be read ({error})", f"无法读取（{error}）")
        finally:
            told()

    paths = [survey.path(name) for name in names]
    kind = f"raw{FACTS_FORMAT}x{resolution}x{int(trims)}"
    found = facts_of(paths, facts, folder=memory, kind=kind, thread_count=thread_count)
    unknown: dict[str, int] = {}
    for name, path, packed in zip(names, paths, found, strict=True):
        if isinstance(packed, bytes):
            survey.images.append(_raw(path, name, packed))
        elif os.path.splitext(name)[1].lower() in decoding.RAW_EXTENSIONS:
            survey.skipped[name] = packed
        else:  # no image by its name, nor by what is in it
            ending = os.path.splitext(name)[1].lower()
            unknown[ending] = unknown.get(ending, 0) + 1
    if unknown:
        listed = ", ".join(f"{ending or name} ({count})" for ending, count in sorted(unknown.items()))
        survey.notes.append(say(f"skipped, no image inside: {listed}", f"以下文件里没有图片：{listed}"))


def _facts(path: Path, resolution: int, trims: bool) -> bytes:
    import cv2

    with open(path, "rb") as file:
        digest = digest_of(file.read())
    area = resolution**2
    seen, image = decoding.raw(path, area=area)
    pixels = on_colour(image, (255, 255, 255))
    height, width = pixels.shape[:2]
    whole = borders.Trim(0, 0, width, height)
    trim = borders.find_borders(pixels) if trims else whole
    frame = (
        borders.find_borders(pixels, ground=False) if trims and trim != whole else whole
    )  # where ground ends depends on size
    framed = np.ascontiguousarray(pixels[frame.top : frame.bottom, frame.left : frame.right])
    inside = pixels[trim.top : trim.bottom, trim.left : trim.right]
    scale = (area / (inside.shape[0] * inside.shape[1])) ** 0.5
    if scale < 1:
        size = [max(3, round(side * scale)) for side in inside.shape[1::-1]]
        inside = cv2.resize(inside, size, interpolation=cv2.INTER_AREA)
    grey = quality.grey_of(inside)
    shares = (trim.left / width, trim.top / height, trim.right / width, trim.bottom / height)
    noise = quality.noise(grey) if min(grey.shape) >= 3 else 0.0
    return FACTS.pack(
        digest.encode(), seen.width, seen.height, seen.is_animated, *shares, quality.blur(grey), noise,
        *duplicates.fingerprint(framed),
    )  # fmt: skip


def _raw(path: Path, name: str, packed: bytes) -> Raw:
    digest, width, height, is_animated, *trim, blur, noise, bits, mirrored, colours = FACTS.unpack(packed)
    fingerprint = duplicates.Fingerprint(bits, mirrored, colours)
    return Raw(path, name, digest.decode(), width, height, is_animated, tuple(trim), blur, noise, fingerprint)


def on_colour(image: decoding.Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """An image RGB or RGBA as (H, W, 3) uint8; where it is transparent the colour shows."""
    if image.mode == "RGBA":
        ground = decoding.Image.new("RGBA", image.size, colour)
        image = decoding.Image.alpha_composite(ground, image).convert("RGB")
    return np.asarray(image)


def groups(survey: Survey, similarity: int, manifest: Manifest) -> list[Group]:
    """The images that are the same, the best of each group first.

    Better is what has more pixels, unless they were only blown up; then what was compressed less, and lies higher
    up. A best one without caption gets that of the next.

    Args:
        manifest: remembers which images were found to be blown up.
    """
    images = survey.images
    fingerprints = duplicates.Fingerprints([raw.fingerprint for raw in images])
    pairs, left = duplicates.candidates(fingerprints, similarity)
    if left:
        survey.notes.append(_pairs_are_left(len(pairs), left))
    also = _same_in_detail(images, pairs, manifest)
    found = []
    for numbers in duplicates.groups(fingerprints, similarity, also):
        best_first = _best_first([images[number] for number in numbers], manifest)
        of = {raw.name: number for raw, number in zip([images[n] for n in numbers], numbers, strict=True)}
        kept = duplicates.kept(fingerprints, [of[raw.name] for raw in best_first], similarity, also)
        caption = next((survey.captions[raw.name] for raw in best_first if raw.name in survey.captions), None)
        if caption:
            survey.captions.setdefault(best_first[0].name, caption)
        found.append(Group(best_first, {images[number].name for number in kept}))
    return found


def _same_in_detail(images: list[Raw], pairs: list[duplicates.Pair], manifest: Manifest) -> list[duplicates.Pair]:
    """Those of the pairs that are copies, though one is cut or bears a watermark; what was found out is remembered."""

    def details(number: int) -> duplicates.Details | None:
        try:
            return duplicates.details(_inside(images[number], DETAIL_AREA))
        except decoding.BrokenImage:  # changed since it was looked at; it will be told when it is worked on
            return None

    questions = {pair: "copies " + " ".join(sorted(images[number].digest for number in pair)) for pair in pairs}
    new = [pair for pair in pairs if questions[pair] not in manifest.answers]
    wanted = sorted({number for pair in new for number in pair})
    threads = min(8, os.cpu_count() or 1)
    known: dict[int, duplicates.Details | None] = {}
    with tqdm(total=len(wanted), disable=None, leave=False, desc=say("comparing", "比对")) as bar:
        for number, found in zip(wanted, in_order(details, wanted, threads), strict=True):
            known[number] = found
            bar.update()
    for pair in new:
        one, other = (known[number] for number in pair)
        is_same = one is not None and other is not None and duplicates.show_the_same(one, other)
        manifest.remember(questions[pair], is_same)
    return [pair for pair in pairs if manifest.answers[questions[pair]]]


def _best_first(members: list[Raw], manifest: Manifest) -> list[Raw]:
    def rank(raw: Raw) -> tuple[float, int, int, str]:
        return -round(raw.area, -3), -raw.path.stat().st_size, raw.name.count("/"), raw.name

    members = sorted(members, key=rank)
    blown_up = []
    while len(members) > 1 and _was_enlarged(members[0], members[1:], manifest):
        blown_up.append(members.pop(0))
    return members + blown_up


def _was_enlarged(larger: Raw, others: Iterable[Raw], manifest: Manifest) -> bool:
    smaller = next((raw for raw in others if raw.area * quality.LEAST_ENLARGEMENT**2 <= 1.02 * larger.area), None)
    if smaller is None:
        return False
    question = f"damped {larger.digest} {smaller.digest}"
    if question not in manifest.answers:
        try:
            manifest.remember(question, quality.was_enlarged(*(_inside(raw) for raw in (larger, smaller))))
        except decoding.BrokenImage:  # changed since it was looked at; it will be told when it is worked on
            return False
    return manifest.answers[question]


def _inside(raw: Raw, area: int | None = None) -> np.ndarray:
    """An image within its borders; see `decoding.raw`."""
    pixels = on_colour(decoding.raw(raw.path, area=area)[1], (255, 255, 255))
    height, width = pixels.shape[:2]
    left, top, right, bottom = (
        round(share * side) for share, side in zip(raw.trim, (width, height, width, height), strict=True)
    )
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def mirrored(images: list[Raw], similarity: int) -> list[tuple[Raw, Raw]]:
    """Pairs of which one is the other mirrored."""
    pairs = duplicates.mirrored_pairs(duplicates.Fingerprints([raw.fingerprint for raw in images]), similarity)
    return [(images[first], images[second]) for first, second in pairs]


# ---- messages ----


def _masks_are_not_taken(folder: Path, names: list[str]) -> str:
    return say(
        f"{folder}: masks and control images are left out: {some(names)}. A mask fits an image as it is: after "
        "cleaning, put those you still need beside the clean images",
        f"{folder}：蒙版和控制图未处理：{some(names)}。蒙版只适用于原样的图片，仍然需要的请在整理之后放到新图片旁边",
    )


def _moving_photo(name: str) -> str:
    return say(
        f"{name}: skipped: it has the name of an image, as the moving part of a phone's photo",
        f"{name}：未处理：与同名图片一起，是手机实况照片的动态部分",
    )


def _frames_of(name: str, count: int) -> str:
    if not count:
        return say(f"{name}: no sharp frame was found in this video", f"{name}：该视频里没有找到清晰的画面")
    return say(f"{name}: {plural(count, 'frame')} of this video taken", f"{name}：从该视频取了 {count} 张画面")


def _no_frames(count: int) -> str:
    return say(
        f"{plural(count, 'video')} not used, because frames_per_video = 0",
        f"有 {count} 个视频未使用（frames_per_video = 0）",
    )


def _pairs_are_left(count: int, left: int) -> str:
    return say(
        f"duplicates: cropped or watermarked copies were looked for among the {count:,} most similar pairs of images; "
        f"{left:,} others were not compared. Smaller folders are searched completely",
        f"重复图片：裁剪过或带水印的副本只在最相近的 {count:,} 对图片里查找，另有 {left:,} 对没有比对。"
        "图片少一些就会全部比对",
    )
