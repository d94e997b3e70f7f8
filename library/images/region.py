"""Rectangles of an image: what was found in it, where, how surely."""

from collections.abc import Iterable
from typing import NamedTuple


class Region(NamedTuple):
    """A rectangle in pixels of the upright image."""

    left: int
    top: int
    width: int
    height: int
    score: float = 1.0  # 0 to 1; how surely it is what `kind` says
    kind: str = ""  # "text", "watermark", "face"

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def area(self) -> int:
        return self.width * self.height


def grown(region: Region, by: int) -> Region:
    """With so many more pixels on each side; it may then hang over the image's edge."""
    return region._replace(
        left=region.left - by, top=region.top - by, width=region.width + 2 * by, height=region.height + 2 * by
    )


def clipped(region: Region, width: int, height: int) -> Region | None:
    """The part inside an image of that size; None: there is none."""
    left, top = max(0, region.left), max(0, region.top)
    right, bottom = min(width, region.right), min(height, region.bottom)
    if right <= left or bottom <= top:
        return None
    return region._replace(left=left, top=top, width=right - left, height=bottom - top)


def overlap(one: Region, other: Region) -> int:
    """Pixels that lie in both."""
    across = min(one.right, other.right) - max(one.left, other.left)
    down = min(one.bottom, other.bottom) - max(one.top, other.top)
    return max(0, across) * max(0, down)


def union(one: Region, other: Region) -> Region:
    """The smallest rectangle around both, with the surer one's score and kind."""
    left, top = min(one.left, other.left), min(one.top, other.top)
    right, bottom = max(one.right, other.right), max(one.bottom, other.bottom)
    surer = max(one, other, key=lambda region: region.score)
    return surer._replace(left=left, top=top, width=right - left, height=bottom - top)


def merged(regions: Iterable[Region], share: float = 0.3) -> list[Region]:
    """Regions that cover one another united, until none do, the surest first.

    Args:
        share: of the smaller one's area that must lie in the other.
    """
    left = list(regions)
    done: list[Region] = []
    while left:
        one = left.pop()
        for number, other in enumerate(left):
            if overlap(one, other) >= share * max(1, min(one.area, other.area)):
                left[number] = union(one, other)  # looked at again: it may cover more by now
                break
        else:
            done.append(one)
    again = len(done) > 1 and any(
        overlap(one, other) >= share * max(1, min(one.area, other.area))
        for number, one in enumerate(done)
        for other in done[:number]
    )
    return merged(done, share) if again else sorted(done, key=lambda region: -region.score)
