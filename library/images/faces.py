"""Faces: by the detectors that OpenCV ships, or by a model of another program that lies on this machine.

OpenCV's own know photographed faces, seen from the front or from the side and upright within 15 degrees or so; drawn
ones need a model. To add a kind of model: a pattern, and a branch of `open_model`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from library.images.region import Region, clipped, merged
from library.messages import UserError, say

if TYPE_CHECKING:
    import cv2

    from library.images.local_models import Onnx, Session

MODEL_PATTERNS = (
    "*anime_face*/*model.onnx",  # deepghs/anime_face_detection: one folder for each version
    "anime*face*.onnx",
    "face_detect_*.onnx",  # deepghs/imgutils-models
    "face_yolo*.onnx",  # ADetailer's, exported
    "yolo*face*.onnx",
    "*yolo-face*/*model.onnx",  # deepghs/yolo-face: photographed and drawn
    "lbpcascade_animeface.xml",  # nagadomi's; a web UI's face editor brings it
    "face_detection_yunet*.onnx",  # OpenCV's model zoo: photographed
)

FRONTAL, PROFILE, EYE = (f"haarcascade_{name}.xml" for name in ("frontalface_alt2", "profileface", "eye"))
# A cascade answers many times around a true face and few times elsewhere. In 43 photos the nine large frontal faces had
# 4 answers and more, other places up to 11; where eyes were found in the upper part too, all were faces.
FRONTAL_ANSWERS, FRONTAL_ANSWERS_WITH_EYES, PROFILE_ANSWERS, ANIME_ANSWERS = 15, 3, 14, 5
FRONTAL_SIDE, PROFILE_SIDE = 800, 480  # of the image they look at: their time grows with its area
SMALLEST = 24  # pixels of a face there
EYES_WIDTH, SMALLEST_EYE = 120, 18  # pixels that a face is brought to for finding its eyes

YOLO_SCORE, YOLO_OVERLAP = 0.3, 0.5  # ADetailer's confidence; boxes that share more are one face
YOLO_SIDE = 640  # where the file leaves the size open
YUNET_SCORE, YUNET_OVERLAP, YUNET_SIDE = 0.7, 0.3, 1024
GREY = 114  # what YOLO is trained to see around an image that is not square

Detect = Callable[[np.ndarray], list[Region]]
_of_thread = threading.local()  # OpenCV's detectors may not be shared by threads


@dataclass(frozen=True)
class Detector:
    """A model of faces. Threads may share it."""

    path: Path
    detect: Detect


def find_faces(image: np.ndarray, model: Detector | None = None) -> list[Region]:
    """Faces, the surest first.

    Args:
        image: (H, W, 3) uint8, RGB.
        model: of `open_model`; None: OpenCV's own detectors.
    """
    height, width = image.shape[:2]
    detect = model.detect if model else _own("haar", _haar)
    inside = [clipped(face, width, height) for face in detect(image)]
    return merged((face for face in inside if face), share=0.5)


def open_model(path: Path, open_onnx: Callable[[Path], Onnx]) -> Detector:
    """The detector in a file like one of MODEL_PATTERNS; what it is shows in its name and in what it gives.

    Args:
        open_onnx: `local_models.open_onnx`, with a device if one is wanted.

    Raises:
        UserError: the file is damaged, or finds no faces.
    """
    import cv2

    try:
        if path.suffix.lower() == ".xml":
            detect = _per_thread(path, lambda: _cascade(path))
        elif "yunet" in path.name.lower():
            detect = _per_thread(path, lambda: _yunet(path))
        else:
            detect = _yolo(open_onnx(path).session)
        detect(np.full((64, 96, 3), GREY, np.uint8))
    except UserError:
        raise
    except Exception as error:  # OpenCV's and onnxruntime's have no common name
        reason = error.err if isinstance(error, cv2.error) else (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            say(
                f"{path}: no face can be found with this file ({reason}). It must be a YOLO v5, v8 or v10 face model "
                "exported as .onnx, face_detection_yunet*.onnx or lbpcascade_animeface.xml; or it is damaged",
                f"{path}：无法用该文件查找人脸（{reason}）。应为导出成 .onnx 的 YOLO v5、v8、v10 人脸模型、"
                "face_detection_yunet*.onnx 或 lbpcascade_animeface.xml；也可能文件已损坏",
            )
        ) from error
    return Detector(path, detect)


def around(face: Region, size: tuple[int, int], margin: float) -> Region:
    """A square around a face, moved into the image where it would hang over, as large as fits.

    Args:
        size: the image's width and height.
        margin: room on each side, in sides of the face.
    """
    width, height = size
    side = max(1, min(round(max(face.width, face.height) * (1 + 2 * margin)), width, height))
    left = round(face.left + (face.width - side) / 2)
    top = round(face.top + (face.height - side) / 2)
    return face._replace(
        left=min(max(0, left), width - side), top=min(max(0, top), height - side), width=side, height=side
    )


def _own(name: Hashable, made: Callable[[], Detect]) -> Detect:
    """This thread's own detector."""
    own: dict[Hashable, Detect] = _of_thread.__dict__.setdefault("detectors", {})
    if name not in own:
        own[name] = made()
    return own[name]


def _per_thread(path: Path, made: Callable[[], Detect]) -> Detect:
    return lambda image: _own(path, made)(image)


# ---- Cascades --------------------------------------------------------------------------------------------------------


def _haar() -> Detect:
    """OpenCV's own: from the front, and from either side."""
    import cv2

    folder = cv2.data.haarcascades
    frontal, profile, eye = (cv2.CascadeClassifier(folder + name) for name in (FRONTAL, PROFILE, EYE))

    def detect(image: np.ndarray) -> list[Region]:
        width = image.shape[1]
        found = [
            face
            for face in _answers(frontal, image, FRONTAL_SIDE, FRONTAL_ANSWERS_WITH_EYES)
            if face.score >= _score(FRONTAL_ANSWERS) or _has_eyes(eye, image, face)
        ]
        found += _answers(profile, image, PROFILE_SIDE, PROFILE_ANSWERS)  # it knows one side only
        mirrored = _answers(profile, image[:, ::-1], PROFILE_SIDE, PROFILE_ANSWERS)
        return found + [face._replace(left=width - face.right) for face in mirrored]

    return detect


def _cascade(path: Path) -> Detect:
    import cv2

    cascade = cv2.CascadeClassifier()
    if not cascade.load(str(path)):
        raise ValueError(say("no cascade of OpenCV", "不是 OpenCV 的级联分类器"))
    return lambda image: _answers(cascade, image, FRONTAL_SIDE, ANIME_ANSWERS)


def _answers(cascade: cv2.CascadeClassifier, image: np.ndarray, side: int, fewest: int) -> list[Region]:
    """Where a cascade answers at least so often, in an image whose longer side is that long."""
    import cv2

    small, factor = _shrunk(image, side)
    grey = cv2.equalizeHist(cv2.cvtColor(np.ascontiguousarray(small), cv2.COLOR_RGB2GRAY))
    boxes, counts = cascade.detectMultiScale2(grey, 1.1, fewest - 1, minSize=(SMALLEST, SMALLEST))
    return [
        _region(box, factor, score=_score(count)) for box, count in zip(boxes, counts, strict=True) if count >= fewest
    ]


def _score(answers: int) -> float:
    """0.5 for as many answers as are enough from the front, towards 1 for more."""
    return float(answers / (answers + FRONTAL_ANSWERS))


def _has_eyes(eye: cv2.CascadeClassifier, image: np.ndarray, face: Region) -> bool:
    """Whether there are two eyes in the upper part of a face."""
    import cv2

    upper = face._replace(height=round(0.6 * face.height))
    inside = clipped(upper, image.shape[1], image.shape[0])
    if not inside:
        return False
    part = np.ascontiguousarray(image[inside.top : inside.bottom, inside.left : inside.right])
    size = (EYES_WIDTH, max(1, round(EYES_WIDTH * inside.height / inside.width)))
    grey = cv2.equalizeHist(cv2.resize(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), size))
    return len(eye.detectMultiScale(grey, 1.05, 2, minSize=(SMALLEST_EYE, SMALLEST_EYE))) >= 2


# ---- Networks --------------------------------------------------------------------------------------------------------


def _yunet(path: Path) -> Detect:
    import cv2

    network = cv2.FaceDetectorYN.create(str(path), "", (YUNET_SIDE, YUNET_SIDE), YUNET_SCORE, YUNET_OVERLAP)

    def detect(image: np.ndarray) -> list[Region]:
        small, factor = _shrunk(image, YUNET_SIDE)
        network.setInputSize((small.shape[1], small.shape[0]))
        rows = network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]  # box, five points, score; None: no face
        return [_region(row[:4], factor, score=float(row[-1])) for row in (rows if rows is not None else ())]

    return detect


def _yolo(session: Session) -> Detect:
    """Of an onnxruntime session, because OpenCV cannot read files whose input may have any size."""
    import cv2

    given = session.get_inputs()[0]
    side = given.shape[2] if isinstance(given.shape[2], int) else YOLO_SIDE
    kind = np.float16 if "float16" in given.type else np.float32

    def detect(image: np.ndarray) -> list[Region]:
        framed, factor = _letterboxed(image, side)
        pixels = (framed.transpose(2, 0, 1)[None] / 255).astype(kind)
        boxes, scores = decoded(session.run(None, {given.name: pixels}))
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), YOLO_SCORE, YOLO_OVERLAP)
        return [_region(boxes[number], factor, score=float(scores[number])) for number in np.ravel(kept).astype(int)]

    return detect


def decoded(outputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) as left, top, width, height in pixels of the input, and scores (N,), of a YOLO face model.

    Args:
        outputs: the one output of version 8 and later: (1, 5, N), middle, size and score, or (1, 20, N) with five
            points after them; of version 5: (1, N, 6), or (1, N, 16) with points before the class, where score and
            class are multiplied; of version 10: (1, 300, 6), corners, score and class, already one box a face.

    Raises:
        ValueError: it is of another shape.
    """
    shapes = ", ".join(str(output.shape) for output in outputs)
    if len(outputs) == 1 and outputs[0].ndim == 3:
        rows = outputs[0][0]
        if rows.shape[0] in (5, 20) and rows.shape[1] not in (6, 16):
            return _from_middles(rows[:4].T), rows[4]
        if rows.shape[1] == 6 and rows.shape[0] <= 300:
            left, top, right, bottom, scores = rows[:, :5].T
            return np.stack([left, top, right - left, bottom - top], 1), scores
        if rows.shape[1] in (6, 16):
            return _from_middles(rows[:, :4]), rows[:, 4] * rows[:, -1]
    raise ValueError(say(f"it gives {shapes}, which is not one kind of face", f"输出形状 {shapes} 不是单一类别的人脸"))


def _from_middles(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)


def _letterboxed(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """A square with the image in its upper left corner, and how much smaller the image is there."""
    import cv2

    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    framed = np.full((side, side, 3), GREY, np.uint8)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    framed[: size[1], : size[0]] = cv2.resize(image, size, interpolation=how)
    return framed, factor


def _shrunk(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The image with its longer side at most that long, and how much smaller it is."""
    import cv2

    height, width = image.shape[:2]
    factor = min(1.0, side / max(height, width))
    if factor == 1:
        return image, 1.0
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), factor


def _region(box: Iterable[float], factor: float, score: float) -> Region:
    left, top, width, height = (round(float(value) / factor) for value in box)
    return Region(left, top, width, height, min(1.0, score), "face")
