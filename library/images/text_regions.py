"""Text that lies over an image: site names, dates, watermarks, in any script, proposed for erasing.

RapidOCR's detector proposes lines, and its recogniser reads them: what nobody can read is no text. Without the reading
fur, eyes and cups are taken for text; with it hardly anything is, but for drawn eyes (`EYES`). Its models lie in its
package (PP-OCRv6, Apache-2.0), so nothing is downloaded; `open_reader` is the only place that knows it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from library.images.region import Region, clipped, grown, merged, overlap
from library.messages import UserError, say

Reader = Any  # rapidocr.RapidOCR; what it gives is declared as a union of which one kind comes

SIDE = 960  # of the image it looks at, the longer one
LARGEST_FACTOR = 2.0  # smaller images are enlarged that much at most
SMALLEST = 32  # of the shorter side; of a smaller image nobody could read a line
SURE = 0.5  # of a line's reading
FEWEST_LETTERS = 2  # letters or digits: the stars of a flag are read as "***"
EYES, EYES_LENGTH = frozenset("0o〇69qcgdea8"), 3  # two drawn eyes are read as "00", "60"; so short and of these alone
MARGIN = 0.1  # of a line's height: its shadow and outline lie outside the letters
LARGEST = 0.05  # share of the image: what covers more is left to a person

_opening = threading.Lock()


def find_text(image: np.ndarray) -> list[Region]:
    """Where text or a watermark is.

    Args:
        image: (H, W, 3) uint8, RGB.

    Raises:
        UserError: rapidocr or onnxruntime is missing or cannot run.
    """
    import cv2

    height, width = image.shape[:2]
    if min(height, width) < SMALLEST:
        return []
    with _opening:
        reader = open_reader()
    factor = min(LARGEST_FACTOR, SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    read = reader(cv2.cvtColor(resized, cv2.COLOR_RGB2BGR))
    found = []
    for corners, words, score in zip(_listed(read.boxes), _listed(read.txts), _listed(read.scores), strict=True):
        if score < SURE or not _is_text(words):
            continue
        left, top = (int(value) for value in np.floor(np.min(corners, axis=0) / factor))
        right, bottom = (int(value) for value in np.ceil(np.max(corners, axis=0) / factor))
        box = Region(left, top, right - left, bottom - top, min(1.0, float(score)), "text")
        inside = clipped(grown(box, round(MARGIN * min(box.width, box.height))), width, height)
        found += [inside] if inside else []
    return merged(found)


def _is_text(words: str) -> bool:
    letters = [letter for letter in words.casefold() if letter.isalnum()]
    return len(letters) >= FEWEST_LETTERS and not (len(letters) <= EYES_LENGTH and EYES.issuperset(letters))


def needs_a_person(text: Region, faces: list[Region], width: int, height: int) -> bool:
    """Whether erasing it might spoil the image, whatever it is: it covers much of it, or part of a face."""
    return text.area > LARGEST * width * height or any(overlap(text, face) for face in faces)


@cache
def open_reader() -> Reader:
    """The detector and the recogniser, which threads share.

    Raises:
        UserError: rapidocr or onnxruntime is missing or cannot run.
    """
    try:
        import rapidocr

        models = Path(rapidocr.__file__).parent / "models"
        files = {part: next(models.glob(f"*_{part.lower()}_*.onnx")) for part in ("Det", "Cls", "Rec")}
        options = {f"{part}.model_path": str(file) for part, file in files.items()}  # or it would download them
        options |= {"Global.log_level": "critical", "Global.text_score": SURE, "Global.max_side_len": SIDE}
        options |= {"Det.limit_type": "max", "Det.limit_side_len": SIDE}
        options |= {"EngineConfig.onnxruntime.intra_op_num_threads": 1}  # there is a thread for each image
        reader = rapidocr.RapidOCR(params=options)
        reader(np.zeros((SMALLEST, SMALLEST, 3), np.uint8))  # only now it looks for onnxruntime
    except StopIteration:
        raise UserError(_without_reader(say("its models are missing", "缺少模型文件"))) from None
    except Exception as error:  # also of a build of onnxruntime that does not fit this machine
        raise UserError(_without_reader((str(error).splitlines() or [type(error).__name__])[0])) from error
    return reader


def _listed(values: Iterable[Any] | None) -> list[Any]:
    return [] if values is None else list(values)


def _without_reader(reason: str) -> str:
    return say(
        f"text cannot be looked for, because rapidocr does not run here ({reason}): pip install -r requirements.txt, "
        'or set text = "off"',
        f'无法查找文字：rapidocr 不能运行（{reason}）。请 pip install -r requirements.txt，或设 text = "off"',
    )
