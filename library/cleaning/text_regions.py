"""Text that lies over a picture: site names, dates, watermarks, in any script, proposed for erasing."""

import numpy as np

from library.cleaning.region import Region, clipped, grown, merged


def find(picture: np.ndarray) -> list[Region]:
    """Where text or a watermark may be.

    Args:
        picture: (H, W, 3) uint8, RGB.
    """
    import cv2

    height, width = picture.shape[:2]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    edges = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    _, strong = cv2.threshold(edges, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    reach = max(3, height // 60)
    lines = cv2.morphologyEx(strong, cv2.MORPH_CLOSE, np.ones((1, reach), np.uint8))
    _, _, boxes, _ = cv2.connectedComponentsWithStats(lines)
    found = []
    for left, top, across, down, filled in boxes[1:]:
        if 0.015 < down / height < 0.12 and across > 2.5 * down and filled > 0.45 * across * down:
            region = clipped(grown(Region(int(left), int(top), int(across), int(down), 0.5, "text"), 2), width, height)
            found += [region] if region else []
    return merged(found)
