"""Which files of a folder are images of the subject, by their names alone.

Beside `photo.jpg` may lie what other programs have made of it, such as OneTrainer's mask `photo-masklabel.png` or a
control image `photo_depth.png`, and in our own output folders lie previews and grids. Trained, they would teach the
trigger word what no photo shows. Everything that lists images asks `sort_out`. To have another name known: add its word
to MASK_WORDS or CONTROL_WORDS.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from library.data import decoding
from library.messages import plural, say

MASKS = "masks"  # folder beside images: for `photo.jpg` its `photo.png` is white where it is learnt, black where not
MASK_LABEL = "-masklabel"  # OneTrainer's ending, which says what white means: it is learnt
CONDITION_LABEL = "-condlabel"  # its ending of control images; neither of the two is ever an image of its own there

MASK_WORDS = (  # most programs paint white what is learnt, some what is not: so they are named and not used
    "masklabel", "mask", "masks", "matte", "alpha", "trimap", "蒙版", "遮罩", "掩码",
)  # fmt: skip
CONTROL_WORDS = (
    "condlabel", "cond", "condition", "conditioning", "control", "controlnet", "canny", "depth", "depthmap", "midas",
    "normal", "normals", "normalmap", "normalbae", "pose", "openpose", "dwpose", "densepose", "skeleton",
    "keypoints", "lineart", "line", "lines", "edge", "edges", "softedge", "hed", "pidinet", "mlsd", "scribble",
    "seg", "segm", "segmentation", "segment", "oneformer", "ofade20k", "深度", "深度图", "姿势", "骨架", "线稿",
)  # fmt: skip
FOLDER_WORDS = {*MASK_WORDS, *CONTROL_WORDS, "poses", "depths", "controls", "conditions"}

_SUFFIX = re.compile(
    rf"(.+?)[ ._-]+(?:{'|'.join(MASK_WORDS + CONTROL_WORDS)})(?:[ ._-]?(?:map|image|img))?(?:[ ._-]?\d{{1,3}})?"
)
_OURS = re.compile(  # what a run and try_lora.py draw; sd-scripts' previews have the same names
    r".*\.(?:comparison|preview)\.png|grid-\d{4,}-\d+\.png|.+_(?:e?\d{6}|end)_\d\d(?:_x[\d.]+)?_\d{14}(?:_-?\d+)?\.png"
)
_GRID = re.compile(r"grid-\d{4,}-\d+\.png")
_TRIED = re.compile(r"\d{5,}-\d+\.png")


def folded(name: str) -> str:
    """A file name as Windows and macOS compare it: the same files belong together on every system."""
    return unicodedata.normalize("NFC", name).casefold()


def is_image(name: str) -> bool:
    """Whether a file's ending, in any mixture of cases, is that of an image we read."""
    return os.path.splitext(name)[1].lower() in decoding.EXTENSIONS


def some(names: list[str], limit: int = 5) -> str:
    """The first few of many names."""
    shown = say(", ", "、").join(names[:limit])
    rest = len(names) - limit
    return shown + (say(f" and {rest} more", f" 等 {len(names)} 个") if rest > 0 else "")


class Sorted(NamedTuple):
    """The images of a folder by what they are; names."""

    images: list[str]  # of the subject, in the order given
    masks: dict[str, str]  # folded stem of an image -> its mask, of a convention that says what white means
    left_out: list[str]  # masks and control images of others, whose use is not known
    orphans: list[str]  # masks of no image
    ours: list[str]  # drawn by a run or a tool of ours

    def lines(self, folder: Path | str) -> list[str]:
        """What there is to say of what is not taken."""
        lines = []
        if self.left_out:
            lines.append(_are_companions(folder, self.left_out))
        if self.orphans:
            lines.append(_have_no_image(folder, self.orphans))
        if self.ours:
            lines.append(_are_ours(folder, self.ours))
        return lines


def sort_out(folder: Path, names: Iterable[str]) -> Sorted:
    """Tell images of the subject from what else looks like images.

    Args:
        folder: where they lie.
        names: of all images directly in it.
    """
    names = list(names)
    of_stem: dict[str, str] = {}
    for name in names:
        stem = folded(os.path.splitext(name)[0])
        for key in (stem, folded(name), stem.removesuffix(".src")):  # 0.src.jpg has 0.mask.png
            of_stem.setdefault(key, stem)
    is_of_grid = folder.name == "pictures" and _has_grid(folder.parent)
    found = Sorted([], {}, [], [], [])
    for name in names:
        stem = folded(os.path.splitext(name)[0])
        if _OURS.fullmatch(name) or (is_of_grid and _TRIED.fullmatch(name)):
            found.ours.append(name)
        elif image := _image_of(stem, of_stem):
            if stem.endswith(MASK_LABEL):
                found.masks[image] = name
            else:
                found.left_out.append(name)
        elif stem.endswith((MASK_LABEL, CONDITION_LABEL)):
            found.orphans.append(name)
        else:
            found.images.append(name)
    return found


def _image_of(stem: str, of_stem: dict[str, str]) -> str | None:
    """The folded stem of the image that a mask or control image was made of; None: it is an image of its own."""
    rest = stem
    while match := _SUFFIX.fullmatch(rest):  # photo_control_depth is photo's
        rest = match[1]
        if of_stem.get(rest, stem) != stem:
            return of_stem[rest]
    return None


def holds_companions(folder: Path, beside: Iterable[str]) -> bool:
    """Whether a sub-folder holds masks or control images of the images beside it: masks/, or depth/ with their names.

    Args:
        beside: names of the images directly in the folder above.
    """
    if folded(folder.name) == MASKS:
        return True
    if folded(folder.name) not in FOLDER_WORDS:
        return False
    try:
        own = {folded(os.path.splitext(name)[0]) for name in os.listdir(folder) if is_image(name)}
    except OSError:  # whoever goes into it says so
        return False
    stems = {folded(os.path.splitext(name)[0]) for name in beside}
    return bool(own) and all(stem in stems or _image_of(stem, dict.fromkeys(stems, "")) is not None for stem in own)


def _has_grid(folder: Path) -> bool:
    try:
        return any(_GRID.fullmatch(name) for name in os.listdir(folder))
    except OSError:
        return False


# ---- messages ----


def _are_companions(folder: Path | str, names: list[str]) -> str:
    return say(
        f"{folder}: {plural(len(names), 'image is a mask or control image', 'images are masks or control images')} of "
        f"another, left out: {some(names)}. A mask whose white is learned is used as photo{MASK_LABEL}.png beside "
        f"photo.jpg, or as {MASKS}/photo.png. If one is an image of its own, rename it",
        f"{folder}：{len(names)} 张是其他图片的蒙版或控制图，不作为图片使用：{some(names)}。白色表示要学习的蒙版，"
        f"请命名为 photo{MASK_LABEL}.png 放在 photo.jpg 旁边，或放到 {MASKS}/photo.png。如果它本身就是图片，请改名",
    )


def _have_no_image(folder: Path | str, names: list[str]) -> str:
    return say(
        f"{folder}: {plural(len(names), 'mask or control image has', 'masks or control images have')} no matching "
        f"image, left out: {some(names)}. photo{MASK_LABEL}.png belongs to photo.jpg",
        f"{folder}：{len(names)} 个蒙版或控制图没有对应的图片，未使用：{some(names)}。"
        f"photo{MASK_LABEL}.png 对应的图片应为 photo.jpg",
    )


def _are_ours(folder: Path | str, names: list[str]) -> str:
    return say(
        f"{folder}: {plural(len(names), 'preview or grid', 'previews and grids')} drawn by a training or a tool, left "
        f"out: {some(names)}",
        f"{folder}：{len(names)} 张是训练或工具画出的预览图、对比图，未使用：{some(names)}",
    )
