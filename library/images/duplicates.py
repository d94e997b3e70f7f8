"""Images that are the same: copies at other sizes, saved harder or in other formats; mirrored ones are told apart.

An image is compared by 64 bits of its coarsest light and dark, which survive resizing and compression, and, because
those bits are blind to colour, by the mean colours of an 8 x 8 grid: the same drawing with other hair is another
image. A copy that was cut or bears a watermark differs in both: of the pairs whose bits are not too far apart, it is
found by laying one image over the other (`show_the_same`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

GRID = 8  # cells across and down whose mean colours are kept
COLOUR_STEP = 20  # grey levels by which a cell's channel may differ; saving a JPEG at quality 40 changes 3
MOST_BITS = 22  # of pairs that are laid over one another: 40 of 41 cut copies, and 1 of 80 other pairs, are as near
MOST_PAIRS = 20_000  # of them, the nearest; about a minute
DETAIL_SIDE = 480  # pixels of the longer side, in detail
LEAST_POINTS = 35  # that lie on one another in copies; of 820 other pairs none had as many
LEAST_COMMON = 0.5  # of the larger image's area; less is a close-up
MOST_TURNED, MARGIN, CELL = 3, 0.15, 20  # degrees; share of each side where a banner may be; pixels
MOST_OTHER = 0.03  # of the cells within the margin may have another colour
MOST_CHANGED = 9  # of the grid's 192 values may differ more, as at contrasty edges that moved by a few pixels


Pair = tuple[int, int]  # numbers of two images


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


def groups(fingerprints: Fingerprints, most_bits: int, also: Iterable[Pair] = ()) -> list[list[int]]:
    """Numbers of images that hang together by likeness, two or more in each group, in order.

    One pass of numpy for each image: 10,000 take about a second, and as many pairs as there may be are never listed.

    Args:
        also: pairs that are alike, though their fingerprints are not.
    """
    partners = _partners(also)
    left = np.arange(len(fingerprints.bits))
    found = []
    while len(left):
        group, waiting = [], [int(left[0])]
        left = left[1:]
        while waiting:
            number = waiting.pop()
            group.append(number)
            near = fingerprints.like(number, left, most_bits)
            near = np.union1d(near, np.intersect1d(left, partners.get(number, [])).astype(left.dtype))
            if len(near):
                waiting += near.tolist()
                left = left[~np.isin(left, near, assume_unique=True)]
        if len(group) > 1:
            found.append(sorted(group))
    return found


def _partners(pairs: Iterable[Pair]) -> dict[int, list[int]]:
    partners: dict[int, list[int]] = {}
    for one, other in pairs:
        partners.setdefault(one, []).append(other)
        partners.setdefault(other, []).append(one)
    return partners


def kept(fingerprints: Fingerprints, group: Sequence[int], most_bits: int, also: Iterable[Pair] = ()) -> list[int]:
    """Which of a group stay, so that every other is like one of them.

    A group may be a chain, as the frames of a film are: its ends are not alike, and leaving out all but one would lose
    images that have no copy.

    Args:
        group: the best first.
        also: as in `groups`.
    """
    partners = _partners(also)
    stay, left = [], np.array(group)
    while len(left):
        best = int(left[0])
        stay.append(best)
        near = fingerprints.like(best, left, most_bits)
        left = left[~np.isin(left, [*near.tolist(), *partners.get(best, []), best])]
    return stay


def candidates(fingerprints: Fingerprints, most_bits: int) -> tuple[list[Pair], int]:
    """Pairs that may be copies though they are not alike by `most_bits`, the nearest first.

    Returns:
        The pairs, and how many more there are: at most about MOST_PAIRS can be compared in reasonable time.
    """
    bits = fingerprints.bits
    counts = np.zeros(65, np.int64)  # pairs by how many bits differ
    for number in range(len(bits)):
        counts += np.bincount(np.bitwise_count(bits[number + 1 :] ^ bits[number]), minlength=65)
    within = np.cumsum(counts[: MOST_BITS + 1])
    reach = int(np.searchsorted(within, MOST_PAIRS, side="right")) - 1
    pairs: list[tuple[int, int, int]] = []
    for number in range(len(bits)):
        after = np.arange(number + 1, len(bits))
        distances = np.bitwise_count(bits[after] ^ bits[number])
        near = after[distances <= reach] if reach >= 0 else after[:0]
        for other in np.setdiff1d(near, fingerprints.like(number, near, most_bits)).tolist():
            pairs.append((int(distances[other - number - 1]), number, other))
    left = int(within[-1] - within[reach]) if reach >= 0 else int(within[-1])
    return [(one, other) for _, one, other in sorted(pairs)], left


class Details(NamedTuple):
    """What of an image is laid over another one."""

    image: np.ndarray  # (H, W, 3) uint8, the longer side DETAIL_SIDE at most
    points: np.ndarray  # (N, 2) float32, where something is recognised
    marks: np.ndarray  # (N, 32) uint8, by what


def details(image: np.ndarray) -> Details:
    """What is needed to lay an image (H, W, 3) uint8 over another one.

    Source: Rublee et al. 2011, "ORB: an efficient alternative to SIFT or SURF", as in OpenCV.
    """
    import cv2

    scale = min(1.0, DETAIL_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    finder = cv2.ORB.create(nfeatures=500, fastThreshold=5)  # 5: also what is soft has corners
    points, marks = finder.detectAndCompute(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), None)
    if marks is None:
        return Details(small, np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))
    return Details(small, np.array([point.pt for point in points], np.float32), marks)


def show_the_same(one: Details, other: Details) -> bool:
    """Whether two images are copies, one of them cut or with something written at its edge.

    The second is laid over the first by what is recognised in both. Enough of it must fit, upright, at most half of an
    image may be missing, and within a margin the colours must agree, but for brightness and contrast of the whole.
    """
    import cv2

    if min(len(one.points), len(other.points)) < LEAST_POINTS:
        return False
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(other.marks, one.marks)
    if len(matches) < LEAST_POINTS:
        return False
    ours = one.points[[match.trainIdx for match in matches]]
    theirs = other.points[[match.queryIdx for match in matches]]
    cv2.setRNGSeed(0)
    over, fits = cv2.estimateAffinePartial2D(theirs, ours, method=cv2.RANSAC, ransacReprojThreshold=3)
    if over is None or int(fits.sum()) < LEAST_POINTS:
        return False
    turned = abs(np.degrees(np.arctan2(over[1, 0], over[0, 0])))
    return bool(turned <= MOST_TURNED) and _colours_agree(one.image, other.image, over)


def _colours_agree(one: np.ndarray, other: np.ndarray, over: np.ndarray) -> bool:
    import cv2

    height, width = one.shape[:2]
    whole = np.full(other.shape[:2], 255, np.uint8)
    laid, there = (cv2.warpAffine(image, over, (width, height)) for image in (other, whole))
    scaled = other.shape[0] * other.shape[1] * float(np.linalg.det(over[:, :2]))
    if np.count_nonzero(there) < LEAST_COMMON * max(scaled, height * width):
        return False
    rows, columns = (np.flatnonzero(there.max(axis=axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    down, across = round(MARGIN * (bottom - top)), round(MARGIN * (right - left))
    part = np.s_[top + down : bottom - down, left + across : right - across]
    size = [max(1, side // CELL) for side in one[part].shape[1::-1]]
    cells = [cv2.resize(image[part], size, interpolation=cv2.INTER_AREA).astype(np.float32) for image in (one, laid)]
    ours, theirs = (cell.reshape(-1, 3) for cell in cells)
    contrast = ours.std(0).mean() / max(1e-3, theirs.std(0).mean())
    theirs = (theirs - theirs.mean(0)) * contrast + ours.mean(0)
    return bool((np.abs(ours - theirs).max(1) > COLOUR_STEP).mean() <= MOST_OTHER)


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
