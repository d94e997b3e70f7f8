"""Faces: by MediaPipe's network, which comes along, or by a model of another program that lies on this machine.

The network knows photographed faces, upright within 30 degrees or so; drawn ones need a model. It looks at 192 pixels,
so it is shown the image three times: whole, with room around it (it misses faces that fill what it sees), and in parts
(for faces of people seen from head to foot). To add a kind of model: a pattern, and a branch of `open_model`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from library.images import local_models
from library.images.region import Region, clipped, merged, overlap
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

NETWORK = Path(__file__).parent / "networks" / "face_detection_full_range.tflite"
NETWORK_SIDE, CELLS = 192, 48  # pixels of the square that it sees, and how many places along a side may hold a face
SURE, UNSURE = 0.6, 0.5  # of 25 faces in 9 photos it finds 17 and 21, and 1 and 2 that are none in 48
# Close-ups are found with room around the image, where it is half as large; there only faces count of so much of its
# shorter side. Small ones are found in parts of so much of width and height, where hubs and stars reach 0.70
ROOM, CLOSE_UP, PART, SURE_IN_PART = 2, 0.3, 0.4, 0.75
FOREHEAD = 0.15  # of a box's height, put above it: the network's reach from brows to chin
NETWORK_OVERLAP = 0.3  # of the smaller box: two that share more are one face, the surer one

HEAD = 0.5, 0.75, 0.1  # sides of a face to each side of it, above and below: hair, a bun, the chin

ANIME_ANSWERS, ANIME_SIDE, SMALLEST = 5, 800, 24  # of the cascade: answers around a face, the image's side, the face's

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


def find_faces(image: np.ndarray, model: Detector | None = None, *, unsure: bool = False) -> list[Region]:
    """Faces, the surest first.

    Args:
        image: (H, W, 3) uint8, RGB.
        model: of `open_model`; None: MediaPipe's network.
        unsure: also what the network only thinks possible, whatever a model says: for what must not harm a face.
    """
    height, width = image.shape[:2]
    faces = model.detect(image) if model else []
    if unsure or not model:
        likely = _own("mediapipe", _mediapipe)(image)
        faces = faces + [face for face in likely if unsure or face.score >= SURE]
    inside = [clipped(face, width, height) for face in faces]
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


def head(face: Region) -> Region:
    """The head with its hair, down to the chin; it may hang over the image. Hair on the shoulders is not in it."""
    aside, above, below = (round(share * max(face.width, face.height)) for share in HEAD)
    return face._replace(
        left=face.left - aside,
        top=face.top - above,
        width=face.width + 2 * aside,
        height=face.height + above + below,
    )


def _own(name: Hashable, made: Callable[[], Detect]) -> Detect:
    """This thread's own detector."""
    own: dict[Hashable, Detect] = _of_thread.__dict__.setdefault("detectors", {})
    if name not in own:
        own[name] = made()
    return own[name]


def _per_thread(path: Path, made: Callable[[], Detect]) -> Detect:
    return lambda image: _own(path, made)(image)


# ---- MediaPipe's network ---------------------------------------------------------------------------------------------


def _mediapipe() -> Detect:
    """Bazarevsky et al. 2019, "BlazeFace", arXiv:1907.05047, in its full-range form; see networks/README.md."""
    import cv2

    network = cv2.dnn.readNetFromTFLite(local_models.content(NETWORK))
    names = network.getUnconnectedOutLayersNames()
    place = (np.arange(CELLS) + 0.5) * NETWORK_SIDE / CELLS
    middles = np.stack([np.tile(place, CELLS), np.repeat(place, CELLS)], 1)  # (2304, 2) x, y

    def answers(image: np.ndarray, side: int, least: float) -> list[Region]:
        """Faces in an image that is that long in the square which the network sees."""
        framed, factor = _letterboxed(image, side, NETWORK_SIDE)
        network.setInput(cv2.dnn.blobFromImage(framed, 1 / 127.5, mean=(127.5,) * 3))
        outputs = {output.shape[-1]: output[0] for output in network.forward(names)}
        scores = 1 / (1 + np.exp(-outputs[1][:, 0].clip(-50, 50)))
        likely = scores >= least
        boxes = outputs[16][likely, :4]  # then six points
        boxes[:, :2] += middles[likely]
        boxes[:, 1] -= FOREHEAD / 2 * boxes[:, 3]
        boxes[:, 3] *= 1 + FOREHEAD
        pairs = zip(_from_middles(boxes), scores[likely], strict=True)
        return [_region(box, factor, score=float(score)) for box, score in pairs]

    def detect(image: np.ndarray) -> list[Region]:
        height, width = image.shape[:2]
        found = answers(image, NETWORK_SIDE, UNSURE)
        close = answers(image, NETWORK_SIDE // ROOM, UNSURE)
        found += [face for face in close if face.width >= CLOSE_UP * min(height, width)]
        across, down = (max(1, round(PART * side)) for side in (width, height))
        for top in sorted({0, (height - down) // 2, height - down}):
            for left in sorted({0, (width - across) // 2, width - across}):
                part = np.ascontiguousarray(image[top : top + down, left : left + across])
                faces = answers(part, NETWORK_SIDE, SURE_IN_PART)
                found += [face._replace(left=face.left + left, top=face.top + top) for face in faces]
        return _surest(found)

    return detect


def _surest(faces: list[Region]) -> list[Region]:
    """One box for each face."""
    kept: list[Region] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(overlap(face, other) < NETWORK_OVERLAP * min(face.area, other.area) for other in kept):
            kept.append(face)
    return kept


# ---- Cascades --------------------------------------------------------------------------------------------------------


def _cascade(path: Path) -> Detect:
    import cv2

    cascade = cv2.CascadeClassifier()
    text = path.read_text(encoding="utf-8", errors="replace")
    is_read = False
    with contextlib.suppress(cv2.error, SystemError):  # the latter where it is no XML
        storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        is_read = cascade.read(storage.getFirstTopLevelNode())
    if not is_read:
        raise ValueError(say("no cascade of OpenCV", "不是 OpenCV 的级联分类器"))
    return lambda image: _answers(cascade, image)


def _answers(cascade: cv2.CascadeClassifier, image: np.ndarray) -> list[Region]:
    """Where a cascade answers often enough: many times around a true face, few times elsewhere."""
    import cv2

    small, factor = _shrunk(image, ANIME_SIDE)
    grey = cv2.equalizeHist(cv2.cvtColor(np.ascontiguousarray(small), cv2.COLOR_RGB2GRAY))
    boxes, counts = cascade.detectMultiScale2(grey, 1.1, ANIME_ANSWERS - 1, minSize=(SMALLEST, SMALLEST))
    return [
        _region(box, factor, score=float(count / (count + ANIME_ANSWERS)))
        for box, count in zip(boxes, counts, strict=True)
        if count >= ANIME_ANSWERS
    ]


# ---- Models of others ------------------------------------------------------------------------------------------------


def _yunet(path: Path) -> Detect:
    import cv2

    size = (YUNET_SIDE, YUNET_SIDE)
    network = cv2.FaceDetectorYN.create(
        "onnx", local_models.content(path), np.zeros(0, np.uint8), size, YUNET_SCORE, YUNET_OVERLAP
    )

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
        framed, factor = _letterboxed(image, side, side)
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


def _letterboxed(image: np.ndarray, longer: int, side: int) -> tuple[np.ndarray, float]:
    """A square with the image, that long, in its upper left corner, and how much smaller the image is there."""
    import cv2

    height, width = image.shape[:2]
    factor = longer / max(height, width)
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
