"""What of an image is its subject: by a model that rembg uses, or else by MediaPipe's network for people, or GrabCut.

The network comes along and knows people; where it is unsure, OpenCV's GrabCut goes on from a guess: that the colours
along the image's edge are the background's, and that the subject is near the middle and unlike them. That is good for
drawings and things before walls, and poor in crowded rooms: `is_doubtful` tells some of its failures, a person sees the
others. To add a model: a row in MODELS.
"""

from __future__ import annotations

import threading
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from library.images import local_models
from library.messages import UserError, say

if TYPE_CHECKING:
    from library.images.local_models import Onnx

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Model(NamedTuple):
    """How a model wants its pixels; the mask is the first output in any case."""

    pattern: str
    side: int  # of the square that the image is squeezed into, where the file leaves it open
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    gives_logits: bool = False


# As rembg runs them: pixels are divided by the image's largest value, less the mean, by std; the mask is stretched
# from its smallest value to its largest. Source: github.com/danielgatis/rembg, rembg/sessions. The best first.
MODELS = (
    Model("birefnet*.onnx", 1024, *IMAGENET, gives_logits=True),
    Model("bria-rmbg*.onnx", 1024, *IMAGENET),  # version 2
    Model("isnet-anime.onnx", 1024, IMAGENET[0], (1, 1, 1)),
    Model("isnet-general-use.onnx", 1024, IMAGENET[0], (1, 1, 1)),
    Model("u2net_human_seg.onnx", 320, *IMAGENET),
    Model("u2net.onnx", 320, *IMAGENET),
    Model("silueta.onnx", 320, *IMAGENET),
    Model("u2netp.onnx", 320, *IMAGENET),
)
MODEL_PATTERNS = tuple(model.pattern for model in MODELS)  # u2net_cloth_seg.onnx is none: it gives kinds of garments

NETWORK = Path(__file__).parent / "networks" / "selfie_segmentation.tflite"
NETWORK_SIDE = 256
# Of 18 photos it took 12, of which 10 were good and 2 fair; drawings and running animals it leaves to GrabCut
MOST_UNSURE = 0.3  # pixels between 0.2 and 0.8, of those above 0.5

SIDE = 320  # of the image that GrabCut sees, the longer one
ROUNDS = 4  # of GrabCut
EDGE = 0.04  # of the shorter side: how far in from the edge colours are taken for the background's
CORNER = 0.3  # of the width, at the upper edge; between them a hat may be
UPPER = 0.6  # of the height: below that the sides may be shoulders, and people stand on the lower edge
JUMP, JUMP_OVER = 10.0, 4  # steps of CIE L*a*b* within so many rows
COLOURS, LEAST_OF_EDGE = 6, 0.07  # that the background may have; rarer ones may be an arm's that reaches the edge
SMALLEST_PART = 0.1  # of the largest part of the subject; smaller ones are specks
SMALLEST_HOLE = 0.015  # of the image; smaller ones are filled: eyes before a white wall, though gaps under arms too

SMALLEST_SHARE, LARGEST_SHARE, MOST_OF_EDGE = 0.03, 0.95, 0.6

_of_thread = threading.local()  # OpenCV's networks may not be shared by threads


def subject(image: np.ndarray, model: Onnx | None = None) -> np.ndarray:
    """How much of each pixel is subject: (H, W) uint8, 255 where it is wholly.

    Args:
        image: (H, W, 3) uint8, RGB.
        model: an opened model of MODELS (`local_models.Onnx`); None: MediaPipe's network where it is sure, or GrabCut.

    Raises:
        UserError: the model is none of MODELS, or gives no mask.
    """
    if model is not None:
        return _by_model(image, model)
    small = _small(image)
    mask = _person(small)
    return _enlarged(_tidied(_by_grabcut(small) if mask is None else mask), small, image)


def is_doubtful(mask: np.ndarray) -> bool:
    """True where a mask (H, W) is hardly the subject: it is nearly nothing, nearly all, or most of the edge."""
    inside = mask > 127
    edge = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    return not SMALLEST_SHARE < inside.mean() < LARGEST_SHARE or bool(edge.mean() > MOST_OF_EDGE)


# ---- Models ----------------------------------------------------------------------------------------------------------


def _by_model(image: np.ndarray, model: Onnx) -> np.ndarray:
    from PIL import Image

    name = model.path.name.lower()
    kind = next((kind for kind in MODELS if fnmatch(name, kind.pattern)), None)
    if kind is None:
        raise UserError(
            say(
                f"{model.path}: unknown model. Supported: {', '.join(MODEL_PATTERNS)}; rename it to the name rembg "
                "uses",
                f"{model.path}：不认识这个模型，不知道它需要怎样的输入。支持 {'、'.join(MODEL_PATTERNS)}；"
                "请改回 rembg 使用的文件名",
            )
        )
    given = model.session.get_inputs()[0]
    fixed = [size for size in given.shape[2:] if isinstance(size, int)]
    side = fixed[0] if fixed else kind.side
    small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, np.float32)
    pixels = (pixels / max(float(pixels.max()), 1e-6) - kind.mean) / np.array(kind.std)
    dtype = np.float16 if "float16" in given.type else np.float32
    mask = model.session.run(None, {given.name: pixels.transpose(2, 0, 1)[None].astype(dtype)})[0].astype(np.float32)
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise UserError(
            say(
                f"{model.path}: gives {mask.shape} where a mask (1, 1, height, width) was expected; it is a "
                "different model under that name",
                f"{model.path}：输出形状为 {mask.shape}，而不是蒙版 (1, 1, 高, 宽)；文件名对应的不是这个模型",
            )
        )
    mask = mask[0, 0]
    if kind.gives_logits:
        mask = 1 / (1 + np.exp(-mask))
    lowest, highest = float(mask.min()), float(mask.max())
    mask = (mask - lowest) / max(highest - lowest, 1e-6)
    whole = Image.fromarray((mask * 255).astype(np.uint8))
    return np.array(whole.resize(image.shape[1::-1], Image.Resampling.LANCZOS))


# ---- MediaPipe's network ---------------------------------------------------------------------------------------------


def _small(image: np.ndarray) -> np.ndarray:
    """As large as GrabCut needs it."""
    import cv2

    height, width = image.shape[:2]
    factor = min(1.0, SIDE / max(height, width))
    size = (max(8, round(width * factor)), max(8, round(height * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _person(small: np.ndarray) -> np.ndarray | None:
    """Where people are, (h, w) of 0 and 1; None: the network is unsure. What it is: networks/README.md."""
    import cv2

    if not hasattr(_of_thread, "network"):
        _of_thread.network = cv2.dnn.readNetFromTFLite(local_models.content(NETWORK))
    _of_thread.network.setInput(cv2.dnn.blobFromImage(small, 1 / 255, (NETWORK_SIDE, NETWORK_SIDE)))
    person = _of_thread.network.forward().reshape(NETWORK_SIDE, NETWORK_SIDE)
    unsure = ((person > 0.2) & (person < 0.8)).sum()
    if unsure >= MOST_UNSURE * (person > 0.5).sum():  # also where there is nobody
        return None
    return (cv2.resize(person, small.shape[1::-1]) > 0.5).astype(np.uint8)


# ---- GrabCut ---------------------------------------------------------------------------------------------------------


def _by_grabcut(small: np.ndarray) -> np.ndarray:
    """Rother et al. 2004, "GrabCut", from a guess by colour and place; (h, w) of 0 and 1."""
    import cv2

    mask = _guess(*_unlike_edge(small))
    if (mask & 1).any() and not (mask & 1).all():
        cv2.setRNGSeed(0)  # it begins with k-means, and the same image must give the same mask
        models = np.zeros((1, 65)), np.zeros((1, 65))
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        # None is right in spite of its stubs: with a mask there is no rectangle
        cv2.grabCut(bgr, mask, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)  # pyrefly: ignore
    return (mask & 1).astype(np.uint8)


def _unlike_edge(small: np.ndarray) -> tuple[np.ndarray, float]:
    """How unlike the colours along the edge each pixel (h, w) is, in steps of CIE L*a*b*; and how much they vary."""
    import cv2

    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    strip = max(1, round(EDGE * min(lab.shape[:2])))
    corner = max(1, round(CORNER * lab.shape[1]))
    sides = [lab[:, :strip], lab[:, -strip:]]
    edge = [lab[:strip, :corner], lab[:strip, -corner:], *(side[: _reach(side)] for side in sides)]
    colours = np.concatenate([part.reshape(-1, 3) for part in edge])
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    count = min(COLOURS, len(colours))
    # None is right in spite of its stubs: no labels to begin with
    _, labels, centres = cv2.kmeans(colours, count, None, criteria, 2, cv2.KMEANS_PP_CENTERS)  # pyrefly: ignore
    common = np.bincount(labels.ravel(), minlength=count) >= LEAST_OF_EDGE * len(colours)

    def nearest(pixels: np.ndarray) -> np.ndarray:
        return np.min([np.linalg.norm(pixels - centre, axis=-1) for centre in centres[common]], axis=0)

    return nearest(lab), float(np.percentile(nearest(colours[common[labels.ravel()]]), 95))


def _reach(side: np.ndarray) -> int:
    """How far down the background goes along a side (h, w, 3), as far as can be told: through gradients, not jumps."""
    rows = side.mean(axis=1)
    jumps = np.linalg.norm(rows[JUMP_OVER:] - rows[:-JUMP_OVER], axis=1) > JUMP
    least = round(UPPER * len(rows))
    below = np.flatnonzero(jumps[least:])
    return least + int(below[0]) if len(below) else len(rows)


def _guess(unlike: np.ndarray, varies: float) -> np.ndarray:
    """GrabCut's first mask: what is unlike the edge, the more so in the middle."""
    import cv2

    height, width = unlike.shape
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    central = 0.4 + 0.6 * np.exp(-(across**2 + 0.5 * down**2))
    salient = cv2.GaussianBlur(unlike, (0, 0), max(height, width) / 150) * central.astype(np.float32)
    between, _ = cv2.threshold(salient.clip(0, 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    threshold = min(between, max(8.0, 1.2 * varies))
    mask = np.where(salient > threshold, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    strip = max(1, round(EDGE * min(height, width) / 2))
    for part in (mask[:strip], mask[:, :strip], mask[:, -strip:]):
        part[part == cv2.GC_PR_BGD] = cv2.GC_BGD
    return mask


def _tidied(mask: np.ndarray) -> np.ndarray:
    """Without specks and small holes; 0 and 1."""
    import cv2

    for value, smallest in ((1, None), (0, SMALLEST_HOLE * mask.size)):
        count, labels, boxes, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=4)
        areas = boxes[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0
        limit = SMALLEST_PART * areas.max() if smallest is None else smallest
        small = (areas < limit) & (np.arange(count) > 0)
        mask = np.where(small[labels], 1 - value, mask).astype(np.uint8)
    return mask


def _enlarged(mask: np.ndarray, small: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A mask of the small image for the whole one, its edge where the image has one.

    Source: He and Sun 2015, "Fast Guided Filter", arXiv:1505.00996: mask = a * grey + b in every neighbourhood of the
    small image; a and b are smooth, so they may be enlarged.
    """
    import cv2

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (9, 9))

    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    wanted = mask.astype(np.float32)
    covariance = mean(grey * wanted) - mean(grey) * mean(wanted)
    a = covariance / (mean(grey * grey) - mean(grey) ** 2 + 1e-4)
    b = mean(wanted) - a * mean(grey)
    size = image.shape[1::-1]
    a, b = (cv2.resize(mean(values), size, interpolation=cv2.INTER_LINEAR) for values in (a, b))
    whole = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    alpha = (a * whole + b - 0.5) * 1.6 + 0.5  # the filter leaves a wide grey seam
    return (alpha * 255).clip(0, 255).astype(np.uint8)
