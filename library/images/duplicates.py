"""Images that are the same: copies at other sizes, saved harder or in other formats; mirrored ones are told apart.

An image is compared by 64 bits of its coarsest light and dark, which survive resizing and compression, and, because
those bits are blind to colour, by the mean colours of an 8 x 8 grid: the same drawing with other hair is another
image. A copy that was cut or bears a watermark differs in both. Of such pairs the nearest by their bits are compared in
detail: features that lie alike, and the same colours there.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

GRID = 8  # cells across and down whose mean colours are kept
COLOUR_STEP = 20  # grey levels by which a cell's channel may differ; saving a JPEG at quality 40 changes 3
FAR_BITS = 26  # of 64 may differ where images are compared in detail: 16 to 28 do if a tenth is cut on all sides
MOST_PAIRS = 10_000  # are compared in detail, the nearest first: half a minute of one core
DETAIL_SIDE = 480  # pixels of the longer side at which features are looked for
LEAST_ALIKE = 35  # features that lie alike; 820 pairs of other photos had 31 at most, cut copies 100 and more
CELLS, CELL = 12, 8  # cells across and down in which colours are compared, and pixels of a cell
LEAST_COMMON = 0.6  # share of each image that both show: cut by a tenth on all sides 0.64 is left; a close-up has less
BAND = 2  # rows of cells at top and bottom, a sixth of the height each, where a copy may show something else
PLAIN = 3  # grey levels: a cell that varies less shows nothing
MOST_COVERED = 0.02  # share of the other cells, but for plain ones: more is another pose or expression
MOST_RECOLOURED = 0.02  # with the same edges in another colour: other hair is another image
MOST_TURNED = 10  # degrees
MOST_CHANGED = 9  # of the grid's 192 values may differ more, as at contrasty edges that moved by a few pixels


class Fingerprint(NamedTuple):
    """What of an image is compared."""

    bits: int  # 64
    mirrored_bits: int  # of the mirrored image
    colours: bytes  # GRID x GRID x RGB


def fingerprint(image: np.ndarray) -> Fingerprint:
    """What of an image (H, W, 3) uint8 is compared.

    Source of the bits: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", the hash by
    the discrete cosine transform: 32 x 32 grey, the 8 x 8 lowest frequencies, each above or below their median.
    """
    import cv2

    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    colours = cv2.resize(small, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return Fingerprint(_bits(grey), _bits(np.ascontiguousarray(grey[:, ::-1])), colours.tobytes())


def _bits(grey: np.ndarray) -> int:
    import cv2

    lowest = cv2.dct(grey)[:8, :8].ravel()
    above = lowest > np.median(lowest[1:])  # the first is the mean brightness, which says nothing of the shape
    return int.from_bytes(np.packbits(above).tobytes(), "big")


class Fingerprints:
    """What is compared of many images, as arrays: 10,000 take 2 MB, and each is compared with all others at once."""

    def __init__(self, fingerprints: Sequence[Fingerprint]):
        self.bits = np.array([one.bits for one in fingerprints], np.uint64)
        self.mirrored_bits = np.array([one.mirrored_bits for one in fingerprints], np.uint64)
        colours = np.frombuffer(b"".join(one.colours for one in fingerprints), np.uint8)
        self.colours = colours.reshape(len(fingerprints), GRID, GRID, 3)

    def like(self, number: int, among: np.ndarray, most_bits: int, *, mirrored: bool = False) -> np.ndarray:
        """Which of `among` (numbers) show the same as one image, or the same mirrored.

        Args:
            most_bits: how many of the 64 bits may differ.
        """
        bits = self.mirrored_bits[number] if mirrored else self.bits[number]
        near = among[np.bitwise_count(self.bits[among] ^ bits) <= most_bits]
        if not len(near):
            return near
        colours = self.colours[number].astype(np.int16)
        change = np.abs(self.colours[near] - (colours[:, ::-1] if mirrored else colours))
        return near[(change > COLOUR_STEP).sum(axis=(1, 2, 3)) <= MOST_CHANGED]

    def bits_between(self, one: int, other: int) -> int:
        """How many of the 64 bits differ."""
        return int(np.bitwise_count(self.bits[one] ^ self.bits[other]))


class Details(NamedTuple):
    """What is compared of two images that may be cut, or bear a watermark."""

    size: tuple[int, int]  # width and height at which the features were found
    points: np.ndarray  # (N, 2) float32
    features: np.ndarray | None  # (N, 32) uint8; None: it has none
    small: np.ndarray  # (CELLS * CELL, CELLS * CELL, 3) uint8, the whole image


def details(image: np.ndarray) -> Details:
    """What is compared in detail of an image (H, W, 3) uint8."""
    import cv2

    scale = min(1.0, DETAIL_SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    points, features = cv2.ORB.create(500).detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    small = cv2.resize(image, (CELLS * CELL, CELLS * CELL), interpolation=cv2.INTER_AREA)
    return Details(size, np.array([point.pt for point in points], np.float32).reshape(-1, 2), features, small)


def show_the_same(one: Details, other: Details) -> bool:
    """Whether two images are copies of one, though one is cut or bears a watermark or a banner.

    Source: Rublee et al. 2011, "ORB: an efficient alternative to SIFT or SURF", with the similarity of most matches.
    """
    import cv2

    if one.features is None or other.features is None:
        return False
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(one.features, other.features)
    if len(matches) < LEAST_ALIKE:
        return False
    here = one.points[[match.queryIdx for match in matches]]
    there = other.points[[match.trainIdx for match in matches]]
    cv2.setRNGSeed(0)
    move, is_alike = cv2.estimateAffinePartial2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=3)
    if move is None or is_alike.sum() < LEAST_ALIKE:
        return False
    if abs(math.degrees(math.atan2(move[1, 0], move[0, 0]))) > MOST_TURNED:
        return False
    return _same_colours(one, other, move)


def _same_colours(one: Details, other: Details, move: np.ndarray) -> bool:
    """Whether what both show has the same colours, but for what was laid over it.

    Args:
        move: (2, 3) from a place in `one` to that in `other`, at the size of their features.
    """
    import cv2

    side = CELLS * CELL
    to_one, to_other = (np.diag([side / width, side / height, 1.0]) for width, height in (one.size, other.size))
    whole = np.vstack([move, [0, 0, 1]])
    small_move = (to_other @ whole @ np.linalg.inv(to_one))[:2]
    how = dict(flags=cv2.INTER_AREA | cv2.WARP_INVERSE_MAP)
    seen = cv2.warpAffine(np.full((side, side), 255, np.uint8), small_move, (side, side), **how)
    shown = cv2.warpAffine(other.small, small_move, (side, side), **how).astype(np.float32)
    own = one.small.astype(np.float32)
    is_common = _cells(seen[..., None]).mean(axis=(2, 3))[..., 0] > 250
    common = float((seen > 250).mean())  # of `one`; of `other` it is as much larger or smaller as a pixel is
    growth = abs(float(np.linalg.det(small_move[:, :2])))
    if not is_common.any() or common < LEAST_COMMON or common * growth < LEAST_COMMON:
        return False
    first, second = _cells(own), _cells(shown)
    brighter = np.median((first.mean(axis=(2, 3, 4)) / (second.mean(axis=(2, 3, 4)) + 1))[is_common])
    second = second * np.clip(brighter, 0.75, 1.33)  # one that was lightened is a copy, too
    change = np.abs(first.mean(axis=(2, 3)) - second.mean(axis=(2, 3))).max(axis=-1)
    is_other = is_common & (change > COLOUR_STEP)
    has_same_edges = _likeness(first.mean(axis=-1), second.mean(axis=-1)) > 0.7
    covered = is_other & ~has_same_edges
    rows = np.flatnonzero(is_common.any(axis=1))
    covered[rows[:BAND]] = covered[rows[-BAND:]] = False  # where banners and site names are
    is_plain = np.maximum(first.std(axis=(2, 3)).max(axis=-1), second.std(axis=(2, 3)).max(axis=-1)) < PLAIN
    telling = int((is_common & ~(is_plain & ~is_other)).sum())  # a ground of one colour proves nothing
    return bool(
        (is_other & has_same_edges).sum() <= MOST_RECOLOURED * telling and covered.sum() <= MOST_COVERED * telling
    )


def _cells(image: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (CELLS, CELLS, CELL, CELL, C)."""
    return image.reshape(CELLS, CELL, CELLS, CELL, -1).swapaxes(1, 2)


def _likeness(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(CELLS, CELLS) correlation of the cells of two grey images; 1 where both are flat."""
    first, second = (cells - cells.mean(axis=(2, 3), keepdims=True) for cells in (first, second))
    powers = [(cells**2).mean(axis=(2, 3)) for cells in (first, second)]
    is_flat = np.maximum(*powers) < 9
    return np.where(is_flat, 1.0, (first * second).mean(axis=(2, 3)) / np.sqrt(powers[0] * powers[1] + 1e-3))


Pair = tuple[int, int]


def candidates(fingerprints: Fingerprints, most_bits: int) -> tuple[list[Pair], int]:
    """The pairs that are worth a comparison in detail, the nearest first, and how many more there would be.

    Those that are the same by their fingerprints are not among them.
    """
    bits = fingerprints.bits
    counts = np.zeros(65, np.int64)
    for number in range(len(bits)):
        counts += np.bincount(np.bitwise_count(bits[number + 1 :] ^ bits[number]), minlength=65)
    so_far = counts.cumsum()
    limit = max(-1, int((so_far[: FAR_BITS + 1] <= MOST_PAIRS).sum()) - 1)
    pairs: list[tuple[int, int, int]] = []
    for number in range(len(bits)) if limit >= 0 else ():
        rest = np.arange(number + 1, len(bits))
        distances = np.bitwise_count(bits[rest] ^ bits[number])
        near = rest[distances <= limit]
        same = set(fingerprints.like(number, near, most_bits).tolist())
        pairs += [(int(distances[at - number - 1]), number, int(at)) for at in near if at not in same]
    return [(first, second) for _, first, second in sorted(pairs)], int(so_far[FAR_BITS] - so_far[limit] * (limit >= 0))


def groups(fingerprints: Fingerprints, most_bits: int, pairs: Collection[Pair] = ()) -> list[list[int]]:
    """Numbers of images that hang together by likeness, two or more in each group, in order.

    One pass of numpy for each image: 10,000 take about a second, and as many pairs as there may be are never listed.

    Args:
        pairs: numbers of further images that are the same.
    """
    left = np.arange(len(fingerprints.bits))
    others = _others(pairs)
    found = []
    while len(left):
        group, waiting = [], [int(left[0])]
        left = left[1:]
        while waiting:
            number = waiting.pop()
            group.append(number)
            near = _near(fingerprints, number, left, most_bits, others)
            if len(near):
                waiting += near.tolist()
                left = left[~np.isin(left, near, assume_unique=True)]
        if len(group) > 1:
            found.append(sorted(group))
    return found


def kept(fingerprints: Fingerprints, group: Sequence[int], most_bits: int, pairs: Collection[Pair] = ()) -> list[int]:
    """Which of a group stay, so that every other is like one of them.

    A group may be a chain, as the frames of a film are: its ends are not alike, and leaving out all but one would lose
    images that have no copy.

    Args:
        group: the best first.
        pairs: as for `groups`.
    """
    stay, left = [], np.array(group)
    others = _others(pairs)
    while len(left):
        best = int(left[0])
        stay.append(best)
        near = _near(fingerprints, best, left, most_bits, others)
        left = left[~np.isin(left, [*near.tolist(), best])]
    return stay


def _others(pairs: Collection[Pair]) -> dict[int, list[int]]:
    others: dict[int, list[int]] = {}
    for first, second in pairs:
        others.setdefault(first, []).append(second)
        others.setdefault(second, []).append(first)
    return others


def _near(
    fingerprints: Fingerprints, number: int, among: np.ndarray, most_bits: int, others: dict[int, list[int]]
) -> np.ndarray:
    near = fingerprints.like(number, among, most_bits)
    also = others.get(number)
    return near if also is None else np.union1d(near, among[np.isin(among, also)])


def mirrored_pairs(fingerprints: Fingerprints, most_bits: int) -> list[tuple[int, int]]:
    """Pairs (first, second) of which one is the other mirrored; each image in one pair at most.

    Images that are like their own mirror image are in none.
    """
    numbers = np.arange(len(fingerprints.bits))
    own = np.bitwise_count(fingerprints.bits ^ fingerprints.mirrored_bits) <= 2 * most_bits
    free = numbers[~own]
    pairs = []
    while len(free):
        number, free = int(free[0]), free[1:]
        near = fingerprints.like(number, free, most_bits, mirrored=True)
        if len(near):
            pairs.append((number, int(near[0])))
            free = free[free != near[0]]
    return pairs
