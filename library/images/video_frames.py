"""Images of a video: spread over it, sharp, and no two alike.

A video is cut into as many stretches as images are wanted. In the middle of each about a second is looked at, and the
sharpest frame of it is taken that is like none before: blur of motion comes and goes within a second, the scene does
not. A stretch without a sharp or new frame gives none. OpenCV decodes; a phone's upright video comes upright.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from library.images import duplicates, quality
from library.messages import say

if TYPE_CHECKING:
    import cv2

EXTENSIONS = frozenset((".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".wmv", ".flv", ".mpg", ".mpeg", ".ts"))
LOOK_SECONDS, LOOKS = 1.0, 6  # how long each stretch is looked at, and at how many frames
ALIKE = 10  # of 64 bits; what differs by fewer shows the same, a little later


class Frame(NamedTuple):
    """One image of a video."""

    number: int  # from 0
    image: np.ndarray  # (H, W, 3) uint8, RGB


def frames(path: Path, count: int, resolution: int) -> Iterator[Frame]:
    """At most so many images of a video, in its order.

    Args:
        resolution: training resolution, at which blur is measured.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        if capture.isOpened() and total <= 0:  # some .webm do not say
            while capture.grab():
                total += 1
        if total <= 0:
            raise ValueError(say("no video that OpenCV can read", "OpenCV 无法读取该视频"))
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        taken: list[int] = []  # bits
        for stretch in range(count):
            start, end = stretch * total // count, (stretch + 1) * total // count
            for blur, number, image in sorted(_looks(capture, start, end, rate, resolution), key=lambda look: look[:2]):
                bits = duplicates.fingerprint(image).bits
                if blur < quality.BLURRED and all((bits ^ other).bit_count() > ALIKE for other in taken):
                    taken.append(bits)
                    yield Frame(number, image)
                    break
    finally:
        capture.release()


def _looks(
    capture: cv2.VideoCapture, start: int, end: int, rate: float, resolution: int
) -> Iterator[tuple[float, int, np.ndarray]]:
    """Blur, number and pixels of a few frames in the middle of a stretch."""
    import cv2

    length = min(end - start, round(LOOK_SECONDS * rate))
    first = (start + end - length) // 2
    step = max(1, length // LOOKS)
    capture.set(cv2.CAP_PROP_POS_FRAMES, first)
    for number in range(first, first + length):
        if not capture.grab():
            return
        if (number - first) % step == 0 and (read := capture.retrieve())[0]:
            image = cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
            scale = min(1.0, resolution / (image.shape[0] * image.shape[1]) ** 0.5)
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            yield quality.blur(quality.grey_of(small)), number, image
