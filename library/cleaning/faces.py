"""Faces: found by the detectors that OpenCV ships, or by a model of another program that lies on this machine."""

from pathlib import Path

import numpy as np

from library.cleaning.region import Region, merged

MODEL_PATTERNS = ("lbpcascade_animeface.xml", "face_yolo*.onnx", "yolo*face*.onnx", "face_detection_yunet*.onnx")


def find(picture: np.ndarray, model: Path | None = None) -> list[Region]:
    """Faces, the surest first.

    Args:
        picture: (H, W, 3) uint8, RGB.
        model: a file like one of MODEL_PATTERNS; None: OpenCV's own detectors.
    """
    import cv2

    grey = cv2.equalizeHist(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    cascade = cv2.CascadeClassifier(str(model or Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"))
    boxes = cascade.detectMultiScale(grey, 1.1, 5)
    return merged(Region(*(int(value) for value in box), 0.8, "face") for box in boxes)


def around(face: Region, size: tuple[int, int], margin: float) -> Region:
    """A square around a face, inside the picture where it fits.

    Args:
        size: the picture's width and height.
        margin: room on each side, in sides of the face.
    """
    width, height = size
    side = min(round(max(face.width, face.height) * (1 + 2 * margin)), width, height)
    left = round(face.left + face.width / 2 - side / 2)
    top = round(face.top + face.height / 2 - side / 2)
    return face._replace(
        left=min(max(0, left), width - side), top=min(max(0, top), height - side), width=side, height=side
    )
