"""The user's file of further regions to erase: one a line, `photo 1.jpg: left, top, width, height`.

Numbers are pixels of the upright image, or shares of it with %. `*` and `?` in the name stand for any letters, so one
line erases the same stamp on all screenshots. Chinese punctuation is understood; # begins a remark.
"""

import difflib
import re
import unicodedata
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from library.images.region import Region, clipped
from library.messages import UserError, plural, say

NUMBER = re.compile(r"(-?\d+(?:[.．]\d+)?)\s*(%|％|px|像素)?", re.IGNORECASE)


def read_regions(
    text: str, names: Sequence[str], size_of: Callable[[str], tuple[int, int]], file: str
) -> dict[str, list[Region]]:
    """The regions of each image that has some.

    Args:
        text: of the file.
        names: all images, as paths below their folder with "/".
        size_of: width and height of an image.
        file: its name, for the messages.

    Raises:
        UserError: every line that cannot be followed, with its number.
    """
    regions: dict[str, list[Region]] = {}
    problems: list[str] = []
    known = _Names(names)
    for number, line in enumerate(text.splitlines(), 1):
        line = unicodedata.normalize("NFC", line.replace("\ufeff", "")).strip()
        if not line or line.startswith(("#", "＃")):
            continue
        try:
            name, values = _parts(line)
            for image in known.meant(name):
                region = _region(values, *size_of(image))
                if region:
                    regions.setdefault(image, []).append(region)
                elif not known.is_pattern(name):
                    width, height = size_of(image)
                    raise ValueError(
                        say(
                            f"this lies outside the image, which is {width} x {height}",
                            f"该区域在图片之外，图片为 {width} x {height}",
                        )
                    )
        except ValueError as error:
            problems.append(f"{file}:{number}: {error}")
    if problems:
        count = len(problems)
        raise UserError(problems, say(f"{plural(count, 'problem')} in the regions:", f"区域文件有 {count} 处问题："))
    return regions


def _parts(line: str) -> tuple[str, list[tuple[float, bool]]]:
    """The name, and four numbers with whether each is a percentage."""
    form = say("write: name: left, top, width, height", "应写成：文件名: 左, 上, 宽, 高")
    split = re.fullmatch(r"(.+?)\s*[:：]\s*([^:：]*)", line)
    if not split:
        raise ValueError(say(f"no name followed by a colon; {form}", f"没有“文件名加冒号”；{form}"))
    name, rest = split[1].strip().strip("\"'“”"), split[2]
    values = [(float(value.replace("．", ".")), unit in ("%", "％")) for value, unit in NUMBER.findall(rest)]
    left_over = re.sub(r"[\s,，、;；]+", "", NUMBER.sub("", rest))
    if left_over:
        raise ValueError(say(f'"{left_over}" is not a number; {form}', f"“{left_over}”不是数字；{form}"))
    if len(values) != 4:
        count = len(values)
        raise ValueError(
            say(f"{plural(count, 'number')} instead of 4; {form}", f"有 {count} 个数字，应为 4 个；{form}")
        )
    if min(values[2][0], values[3][0]) <= 0:
        raise ValueError(say("width and height must be above 0", "宽和高必须大于 0"))
    return name, values


def _region(values: list[tuple[float, bool]], width: int, height: int) -> Region | None:
    left, top, across, down = (
        number / 100 * side if is_share else number
        for (number, is_share), side in zip(values, (width, height, width, height), strict=True)
    )
    right, bottom = round(left + across), round(top + down)
    left, top = round(left), round(top)
    return clipped(Region(left, top, max(1, right - left), max(1, bottom - top), kind="region"), width, height)


class _Names:
    """The images, found by what a person writes."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self.by_spelling: dict[str, list[str]] = {}
        for name in names:
            path = PurePosixPath(name)
            spellings = {name, path.name, path.with_suffix("").as_posix(), path.stem}
            for spelling in {_folded(spelling) for spelling in spellings}:
                self.by_spelling.setdefault(spelling, []).append(name)

    @staticmethod
    def is_pattern(name: str) -> bool:
        return "*" in name or "?" in name

    def meant(self, name: str) -> list[str]:
        """The images of that name; with the whole path, without folders, or without ending."""
        written = _folded(name).removeprefix("./")
        found = self.by_spelling.get(written, [])
        exact = [one for one in found if _folded(one) == written] or [
            one for one in found if _folded(PurePosixPath(one).name) == written
        ]
        found = exact or found
        if not found and self.is_pattern(name):
            pattern = written.replace("[", "[[]")
            found = [
                one
                for one in self.names
                if fnmatchcase(_folded(one), pattern) or fnmatchcase(_folded(PurePosixPath(one).name), pattern)
            ]
            if not found:
                raise ValueError(say(f'no image matches "{name}"', f"没有名称符合“{name}”的图片"))
            return found
        if not found:
            near = difflib.get_close_matches(written, self.by_spelling, n=1, cutoff=0.6)
            meant = self.by_spelling[near[0]][0] if near else ""
            english = f' Did you mean "{meant}"?' if meant else ""
            chinese = f"是不是“{meant}”？" if meant else ""
            raise ValueError(say(f'no image is named "{name}".{english}', f"没有图片“{name}”。{chinese}"))
        if len(found) > 1:
            listed = say(", ", "、").join(found[:5])
            raise ValueError(
                say(
                    f'several images are named "{name}": {listed}. Include the folder',
                    f"有多张图片叫“{name}”：{listed}。请连目录一起写",
                )
            )
        return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
