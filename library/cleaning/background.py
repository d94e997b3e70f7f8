"""What of a picture is its subject: by a model that rembg uses, or by OpenCV's GrabCut from a guess."""

from typing import Any

import numpy as np

MODEL_PATTERNS = ("birefnet*.onnx", "isnet-general-use.onnx", "isnet-anime.onnx", "u2net.onnx", "silueta.onnx")


def subject(picture: np.ndarray, model: Any = None) -> np.ndarray:
    """How much of each pixel is subject: (H, W) uint8, 255 where it is wholly.

    Args:
        picture: (H, W, 3) uint8, RGB.
        model: an opened model of MODEL_PATTERNS (`local_models.Onnx`); None: GrabCut.
    """
    import cv2

    height, width = picture.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    inside = (width // 20, height // 20, width - width // 10, height - height // 10)
    cv2.grabCut(picture[..., ::-1].copy(), mask, inside, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_RECT)
    return np.where(mask & 1, 255, 0).astype(np.uint8)


def is_doubtful(mask: np.ndarray) -> bool:
    """True where a mask (H, W) is probably not the subject: nearly nothing, or nearly everything."""
    share = float((mask > 127).mean())
    return not 0.03 < share < 0.95
