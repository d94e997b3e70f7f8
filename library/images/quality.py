"""How good an image is as a trainer sees it: how blurred, how noisy, and whether it was enlarged from a smaller one.

Measure images at about the training size: a phone's twelve megapixels may be soft at their own size and are sharp at
512, and noise is averaged away by shrinking.
"""

import math

import numpy as np

BLURRED = 2.0  # pixels at the training size from which an image is told to be blurred
NOISY = 8.0  # grey levels at the training size; film grain has 2 to 5, a phone in the dark 5 to 15

LEAST_ENLARGEMENT = 1.4  # times in each direction; of less a copy keeps too much to tell
MOST_DAMPED = -0.2  # see `was_enlarged`: -0.05 and more for genuine images, -0.4 and less for enlarged ones

EDGE_SHARE = 0.002  # of the pixels are steeper than what counts as the strongest edge
LEAST_EDGE = 1.5  # grey levels a pixel: less than the noise of a JPEG is no edge


def grey_of(image: np.ndarray) -> np.ndarray:
    """Brightness of an image (H, W, 3) uint8 as (H, W) float32, 0 to 255."""
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def blur(grey: np.ndarray) -> float:
    """How wide the strongest edges are: the standard deviation, in pixels, of the blur that would make them so.

    A sharp image has 0.8, the width that the measuring itself has. It depends neither on contrast nor on how many
    edges there are, as the usual variance of the Laplacian does, which calls every flat drawing blurred. Infinity where
    there is no edge at all.

    Args:
        grey: (H, W) float32, 0 to 255.

    Source: Zhuo & Sim 2011, "Defocus map estimation from a single image", eq. 4 and 5: an edge that is blurred once
    more by sigma loses the more of its slope the sharper it was.
    """
    import cv2

    sigma = 2.0
    softer = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    slope = _slope(grey)[1]
    is_across, softer_slope = _slope(softer)
    few = max(1, round(EDGE_SHARE * slope.size))
    strongest = float(np.partition(softer_slope, -few, axis=None)[-few])  # but for a few: glints, dust
    edges = (softer_slope >= max(LEAST_EDGE, strongest / 3)) & _is_ridge(is_across, softer_slope)
    if not edges.any():
        return float("inf")
    ratio = float(np.median(slope[edges] / softer_slope[edges]))
    return sigma / math.sqrt(ratio * ratio - 1) if ratio > 1 else float("inf")


def _slope(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each pixel's slope lies rather across than down, and how steep it is, in grey levels a pixel."""
    import cv2

    across = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8, borderType=cv2.BORDER_REPLICATE)
    down = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8, borderType=cv2.BORDER_REPLICATE)
    return np.abs(across) > np.abs(down), cv2.magnitude(across, down)


def _is_ridge(is_across: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The pixels on the middle of an edge: no neighbour in the slope's direction is steeper."""
    padded = np.pad(strength, 1, mode="edge")
    beside = np.maximum(padded[1:-1, :-2], padded[1:-1, 2:])
    above = np.maximum(padded[:-2, 1:-1], padded[2:, 1:-1])
    return strength >= np.where(is_across, beside, above)


def noise(grey: np.ndarray) -> float:
    """Standard deviation of the noise in grey levels.

    Args:
        grey: (H, W) float32, 0 to 255; at least 3 x 3.

    Source: Immerkaer 1996, "Fast Noise Variance Estimation": the difference of two Laplacians answers to neither flat
    areas nor straight edges. The median of its answers is taken in place of their mean: texture has little say then.
    """
    import cv2

    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    answer = cv2.filter2D(grey, cv2.CV_32F, kernel)[1:-1, 1:-1]
    return float(np.median(np.abs(answer))) / 0.6745 / 6  # median of |normal| = 0.6745 sigma; 36 = the kernel's squares


def was_enlarged(larger: np.ndarray, smaller: np.ndarray) -> bool:
    """Whether the larger of two copies was made from the smaller, and so holds nothing more.

    Shrinking damps a copy just below its own limit, enlarging damps the enlarged one there. So at the same frequencies,
    up to the smaller copy's limit, the spectrum of the copy that was made is the steeper one. One image alone cannot
    tell: what is soft, or was saved as JPEG, is steep as well.

    Args:
        larger, smaller: (H, W, 3) uint8, the same image; False where they differ by less than LEAST_ENLARGEMENT.
    """
    high, wide = smaller.shape[:2]
    if min(larger.shape[0] / high, larger.shape[1] / wide) < LEAST_ENLARGEMENT:
        return False
    return _steepness(grey_of(larger), (wide, high)) - _steepness(grey_of(smaller), (wide, high)) < MOST_DAMPED


def _steepness(grey: np.ndarray, limit: tuple[int, int]) -> float:
    """How much more power an image has just below a limit than at less than half of it, as a logarithm.

    Args:
        grey: (H, W) float32.
        limit: width and height in pixels of the copy whose highest frequency is meant.
    """
    high, wide = grey.shape
    window = np.hanning(high)[:, None] * np.hanning(wide)
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window.astype(np.float32))) ** 2
    down = np.fft.fftfreq(high, 1 / high)[:, None] / (limit[1] / 2)
    across = np.fft.rfftfreq(wide, 1 / wide) / (limit[0] / 2)
    radius = np.hypot(across, down)  # 1: the limit
    low, near = ((radius >= start) & (radius < stop) for start, stop in ((0.3, 0.5), (0.75, 0.95)))
    if not (low.any() and near.any()):  # a few pixels
        return 0.0
    return float(np.log(power[near].mean() + 1e-6) - np.log(power[low].mean() + 1e-6))
