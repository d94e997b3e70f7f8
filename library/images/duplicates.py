"""Images that are the same: copies at other sizes, saved harder or in other formats; mirrored ones are told apart.

An image is compared by 64 bits of its coarsest light and dark, which survive resizing and compression, and, because
those bits are blind to colour, by the mean colours of an 8 x 8 grid: the same drawing with other hair is another
image. A copy that was cut differs in both and is not found.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GRID = 8  # cells across and down whose mean colours are kept
COLOUR_STEP = 20  # grey levels by which a cell's channel may differ; saving a JPEG at quality 40 changes 3
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


def groups(fingerprints: Fingerprints, most_bits: int) -> list[list[int]]:
    """Numbers of images that hang together by likeness, two or more in each group, in order.

    One pass of numpy for each image: 10,000 take about a second, and as many pairs as there may be are never listed.
    """
    left = np.arange(len(fingerprints.bits))
    found = []
    while len(left):
        group, waiting = [], [int(left[0])]
        left = left[1:]
        while waiting:
            number = waiting.pop()
            group.append(number)
            near = fingerprints.like(number, left, most_bits)
            if len(near):
                waiting += near.tolist()
                left = left[~np.isin(left, near, assume_unique=True)]
        if len(group) > 1:
            found.append(sorted(group))
    return found


def kept(fingerprints: Fingerprints, group: Sequence[int], most_bits: int) -> list[int]:
    """Which of a group stay, so that every other is like one of them.

    A group may be a chain, as the frames of a film are: its ends are not alike, and leaving out all but one would lose
    images that have no copy.

    Args:
        group: the best first.
    """
    stay, left = [], np.array(group)
    while len(left):
        best = int(left[0])
        stay.append(best)
        near = fingerprints.like(best, left, most_bits)
        left = left[~np.isin(left, [*near.tolist(), best])]
    return stay


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
