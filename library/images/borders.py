"""Borders: letterboxes, frames and the empty ground around a subject, found so that no subject is cut.

What makes a border a border is not that its lines are plain (a clear sky is plain too) but how it ends: all along one
straight line, beyond which nearly everything is of another colour. A sky ends at heads and hills, the white paper of a
drawing at the tip of a shoe. Such ground is not a border; only where all four sides have it, in one colour, as around a
sticker, is it cut, and not to the subject but to a margin.
"""

from typing import NamedTuple

import numpy as np

TOLERANCE = 10  # grey levels from the border's colour; JPEGs keep plain areas within 3
MOST_UNREST = 20  # grey levels; a thin border in a JPEG of low quality rings as much
MOST_SPECKS = 0.005  # share of a line that may differ: dust, compression
STRAIGHT = 0.6  # share of a line that changes where a border ends; of a circle's outline it is below a quarter
FRINGE = 20  # pixels within which a border ends: the ringing of a JPEG reaches over 16, resizing smears a few
TRACES = 2  # lines that are cut beyond a smeared end
REACH = 0.08  # of the size of what is inside: deeper in, also the outline of a ball is long and would pass for straight
ARRIVED = 0.6  # of the image's distance from the border's colour: a line that is as far belongs to the image
DEEP = 3  # pixels beyond the end at which the image is compared with the border
PLAIN_INSIDE = 0.8  # share of one colour: a line inside that is as plain itself may be the next stripe of a wallpaper
LEAST_LEFT = 0.15  # of each side: of less the rest would not be the image; upright video in a wide frame leaves 0.32
MARGIN = 0.25  # of the subject's longer side, left around a subject on empty ground
MOST_FRAMES = 4  # one within the other

OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}
SIDES = tuple(OPPOSITE)


class Trim(NamedTuple):
    """The part of an image that stays, in pixels; right and bottom are the first that do not."""

    left: int
    top: int
    right: int
    bottom: int


def find_borders(image: np.ndarray, *, ground: bool = True) -> Trim:
    """The part within all borders; the whole image where there are none.

    Args:
        image: (H, W, 3) uint8.
        ground: whether empty ground around a subject is cut to a margin too.
    """
    height, width = image.shape[:2]
    trim = Trim(0, 0, width, height)
    for _ in range(MOST_FRAMES):
        inside = _without_frame(image, trim)
        if inside == trim:
            break
        trim = inside
    if ground:
        trim = _ground_cut(image, trim)
    if trim.right - trim.left < LEAST_LEFT * width or trim.bottom - trim.top < LEAST_LEFT * height:
        return Trim(0, 0, width, height)
    return trim


class _Band(NamedTuple):
    """A plain strip along a side."""

    colour: np.ndarray  # (3,)
    end: int  # lines that are cut
    is_straight: bool  # it ends along a line
    is_rich: bool  # and what lies beyond is not plain itself


def _without_frame(image: np.ndarray, trim: Trim) -> Trim:
    """One frame or letterbox less."""
    part = image[trim.top : trim.bottom, trim.left : trim.right]
    sides = {"top": part, "bottom": part[::-1], "left": part.swapaxes(0, 1), "right": part[:, ::-1].swapaxes(0, 1)}
    bands = {side: band for side, view in sides.items() if (band := _band(view))}
    straight = {side: band for side, band in bands.items() if band.is_straight}

    def matches(side: str, other: str) -> bool:
        return side in straight and other in bands and _is_same(bands[side].colour, bands[other].colour)

    is_frame = len(straight) == 4 and all(matches("top", side) for side in SIDES)
    cut = {}
    for side, band in straight.items():
        other = OPPOSITE[side]
        is_pair = _is_bar(band.colour) and other in straight and matches(side, other)
        is_pair = is_pair and abs(band.end - straight[other].end) <= FRINGE
        if band.is_rich or is_frame or is_pair:
            cut[side] = band.end
    for side in list(cut):  # at a dark part of the image a black bar has no visible end
        other = OPPOSITE[side]
        if other not in cut and matches(side, other) and bands[other].end >= cut[side] - FRINGE:
            cut[other] = min(cut[side], bands[other].end)
    return Trim(
        trim.left + cut.get("left", 0),
        trim.top + cut.get("top", 0),
        trim.right - cut.get("right", 0),
        trim.bottom - cut.get("bottom", 0),
    )


def _is_same(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.abs(first - second).max() <= TOLERANCE)


def _is_bar(colour: np.ndarray) -> bool:
    """Whether it is the black or white of letterboxes."""
    return bool(colour.max() <= 32 or colour.min() >= 235)


def _difference(lines: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """How far each pixel is from a colour: the largest of its channels, uint8."""
    import cv2

    scalar = (*colour.astype(int).tolist(), 0)  # OpenCV takes one, though its stubs know only arrays
    return cv2.absdiff(np.ascontiguousarray(lines), scalar).max(axis=2)  # pyrefly: ignore


def _band(lines: np.ndarray) -> _Band | None:
    """The strip at the beginning of the first axis (H, W, 3), if the first line is plain and some other is not."""
    colour = np.median(lines[0], axis=0)
    unrest = float(np.quantile(_difference(lines[:1], colour), 1 - MOST_SPECKS))
    if unrest > MOST_UNREST:
        return None
    tolerance = max(TOLERANCE, 1.5 * unrest)
    differs = _difference(lines, colour) > tolerance
    shares = differs.mean(axis=1)
    depth = int(np.argmax(shares > MOST_SPECKS))
    if depth == 0:
        return None
    # Where the image is framed on all sides, the lines' ends are border too and do not count.
    across = np.flatnonzero(differs[depth:].mean(axis=0) > MOST_SPECKS)
    first, last = int(across[0]), int(across[-1]) + 1
    span = min(last - first, int(np.flatnonzero(shares > MOST_SPECKS)[-1]) + 1 - depth)
    reach = int(REACH * span)
    deep = max(1, min(DEEP, reach // 2))
    fringe = max(1, min(FRINGE, reach - deep - TRACES))
    distances = _difference(lines[depth : depth + fringe, first:last], colour).mean(axis=1)
    typical = np.quantile(distances, 0.75)  # of the image, also where most lines looked at are fringe
    smeared = int(np.argmax(distances >= ARRIVED * typical))
    end = depth + (smeared + TRACES if smeared else 0)
    beyond = lines[end : end + deep, first:last]
    changed = (_difference(beyond, colour) > tolerance).any(axis=0).mean()
    own = np.median(beyond.reshape(-1, 3), axis=0)
    alike = (_difference(beyond, own) <= TOLERANCE).mean()
    return _Band(colour, end, bool(changed >= STRAIGHT), bool(alike < PLAIN_INSIDE))


def _ground_cut(image: np.ndarray, trim: Trim) -> Trim:
    """Less of the empty ground around a subject, where it has the same colour on all four sides."""
    import cv2

    part = cv2.medianBlur(np.ascontiguousarray(image[trim.top : trim.bottom, trim.left : trim.right]), 3)  # no grain
    edges = (part[0], part[-1], part[:, 0], part[:, -1])
    colours = [np.median(edge, axis=0) for edge in edges]
    if not all(_is_same(colours[0], colour) for colour in colours):
        return trim
    differs = _difference(part, colours[0]) > TOLERANCE
    down, across = np.flatnonzero(differs.sum(axis=1) >= 2), np.flatnonzero(differs.sum(axis=0) >= 2)
    if not len(down) or not len(across):
        return trim  # a blank page
    top, bottom, left, right = int(down[0]), int(down[-1]) + 1, int(across[0]), int(across[-1]) + 1
    margin = round(MARGIN * max(bottom - top, right - left))
    return Trim(
        trim.left + max(0, left - margin),
        trim.top + max(0, top - margin),
        trim.left + min(part.shape[1], right + margin),
        trim.top + min(part.shape[0], bottom + margin),
    )
