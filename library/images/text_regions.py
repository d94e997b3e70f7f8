"""Text that lies over an image: site names, dates, watermarks, in any script, proposed for erasing.

A small network of convolutions, run by OpenCV, says of every few pixels whether they are in a line of text; lines
become rectangles. It was trained with text of 30 to 100 % opacity over drawn images and sample photos
(tools/train_text_network.py). Text in steep slants, single signs and letters as light as their ground are not found.
"""

import threading
from pathlib import Path

import numpy as np

from library.images.region import Region, clipped, merged

NETWORK = Path(__file__).parent / "text_network.onnx"
CELL = 4  # pixels across and down that the network judges together
SIDE = 896  # of the image it looks at, the longer one: letters are then 10 to 70 pixels high, as it learnt them
LARGEST_FACTOR = 2.0  # smaller images are enlarged that much at most
SMALLEST = 128  # of the longer side; in a smaller image two eyes look like "oo", and a line could hardly be read
# Of 148 texts over 13 photos and 90 drawings that it was not trained with these find 93 %, and where there is no text
# 0.4 places in a photo. With 0.7 in place of 0.82 it is 95 % and 1.8, with 0.86 89 % and 0.1 (tests/overlaid_text.py)
LIKELY, SURE = 0.5, 0.82  # of a cell, to belong to a line; of a line, in the mean of its cells
FEWEST_CELLS, SHORTEST = 6, 4  # of a line

_of_thread = threading.local()  # OpenCV's networks may not be shared by threads


def find_text(image: np.ndarray) -> list[Region]:
    """Where text or a watermark may be.

    Args:
        image: (H, W, 3) uint8, RGB.
    """
    import cv2

    height, width = image.shape[:2]
    if max(height, width) < SMALLEST:
        return []
    text, factor = likelihood(image)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats((text > LIKELY).astype(np.uint8), connectivity=8)
    sums = np.bincount(labels.ravel(), weights=text.ravel(), minlength=count)
    found = []
    for number in range(1, count):
        left, top, across, down, area = (int(value) for value in boxes[number])
        score = float(sums[number]) / area
        if score < SURE or area < FEWEST_CELLS or max(across, down) < SHORTEST:
            continue
        by = 0.25 * min(across, down) + 0.75  # the network was taught the middle of a line
        box = Region(
            int(np.floor((left - by) * CELL / factor)), int(np.floor((top - by) * CELL / factor)),
            int(np.ceil((across + 2 * by) * CELL / factor)), int(np.ceil((down + 2 * by) * CELL / factor)),
            min(1.0, score), "text",
        )  # fmt: skip
        inside = clipped(box, width, height)
        found += [inside] if inside else []
    return merged(found)


def likelihood(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Of every cell how likely it is in text, and by which factor the image was resized before it was cut into cells.

    Cells (rows, columns) go on below and to the right of the image, up to a multiple of 32 pixels.
    """
    import cv2

    height, width = image.shape[:2]
    factor = min(LARGEST_FACTOR, SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    right, below = -size[0] % 32, -size[1] % 32
    framed = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_REPLICATE)
    if not hasattr(_of_thread, "network"):
        _of_thread.network = cv2.dnn.readNetFromONNX(str(NETWORK))
    _of_thread.network.setInput(cv2.dnn.blobFromImage(framed))
    return _of_thread.network.forward()[0, 0], factor
