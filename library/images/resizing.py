"""Sizes: images brought to about what a trainer needs, and removing noise.

A trainer shrinks every image to a bucket of about resolution x resolution pixels. More than the image needs costs
disk and time at every start; less is enlarged, be it here or there, and only here by a model that adds detail.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from library.messages import UserError, say

LARGEST = 1.5  # times the resolution, as the side of a square: room for random crops and a next larger resolution
TILE, OVERLAP = 256, 16  # pixels of an image that a model enlarges at once, and how far tiles reach into one another

# Files of super-resolution models, for local_models.find_models: RealESRGAN and others that spandrel opens.
MODEL_PATTERNS = (
    "*realesrgan*.pth", "*real-esrgan*.pth", "*realesrgan*.safetensors", "*realesr*.pth", "*ultrasharp*.pth",
    "*ultrasharp*.safetensors", "[24]x[-_]*.pth", "[24]x[-_]*.safetensors", "*/esrgan/*.pth", "*/upscale_models/*.pth",
    "*/upscale_models/*.safetensors", "*swinir*.pth",
)  # fmt: skip


def wanted_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The size an image should have: its area between resolution^2 and (LARGEST x resolution)^2, its shape kept.

    An image between the two keeps its pixels as they are.
    """
    area = width * height
    least, most = resolution**2, (LARGEST * resolution) ** 2
    if least <= area <= most:
        return width, height
    scale = math.sqrt((most if area > most else least) / area)
    round_to = math.floor if scale < 1 else math.ceil  # so that the result lies within and stays as it is next time
    return max(1, round_to(width * scale)), max(1, round_to(height * scale))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3 or 4) uint8 at (width, height) by Lanczos; transparent colours do not bleed into the rest."""
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def denoise(image: np.ndarray, strength: float) -> np.ndarray:
    """An image (H, W, 3) uint8 with less noise.

    Args:
        strength: 3 to 10; as large as the noise's standard deviation, or a little less.

    Source: Buades, Coll & Morel 2011, "Non-Local Means Denoising", in OpenCV.
    """
    import cv2

    return cv2.fastNlMeansDenoisingColored(image, None, strength, strength)


class Enlarger(NamedTuple):
    """A super-resolution model."""

    name: str
    factor: int
    enlarge: Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 -> (factor x H, factor x W, 3)


def open_model(path: Path, device: str) -> Enlarger:
    """A super-resolution model from a file, by spandrel.

    Args:
        device: "cpu", "cuda", ... as torch names it.

    Raises:
        UserError: spandrel is missing, or cannot open the file.
    """
    try:
        import spandrel
        import torch
    except ImportError as error:
        raise UserError(
            say(
                f"{path.name} needs {error.name}: pip install {error.name}",
                f"{path.name} 需要 {error.name}：请 pip install {error.name}",
            )
        ) from None
    except Exception as error:  # a torchvision that does not belong to this torch
        raise UserError(
            say(
                f"{path.name} needs spandrel, which does not start ({error}): pip install spandrel and the torchvision "
                "that belongs to your torch",
                f"{path.name} 需要 spandrel，但它无法启动（{error}）："
                "请 pip install spandrel 以及与 torch 配套的 torchvision",
            )
        ) from error
    try:
        model = spandrel.ModelLoader(device).load_from_file(path)
        if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.scale) < (3, 2):
            raise ValueError(say("it is not a model that upscales color images", "它不是放大彩色图片的模型"))
    except Exception as error:  # spandrel and torch's loading may raise anything on a strange file
        raise UserError(
            say(
                f"{path}: this model cannot be used ({error}). Choose another file for upscale",
                f"{path}：无法使用该模型（{error}）。请为 upscale 另选一个文件",
            )
        ) from error
    model.eval()

    def enlarge(tile: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(tile.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            larger = model(pixels)
        return (larger[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()

    return Enlarger(path.name, model.scale, lambda image: by_tiles(image, enlarge, model.scale))


def by_tiles(image: np.ndarray, enlarge: Callable[[np.ndarray], np.ndarray], factor: int) -> np.ndarray:
    """Enlarge an image piece by piece, so that memory does not grow with it; each piece sees a rim of its neighbours.

    Args:
        image: (H, W, C) uint8.
        enlarge: makes (h, w, C) into (factor x h, factor x w, C).
    """
    height, width, channels = image.shape
    result = np.empty((height * factor, width * factor, channels), np.uint8)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            above, before = min(OVERLAP, top), min(OVERLAP, left)
            tile = image[top - above : top + TILE + OVERLAP, left - before : left + TILE + OVERLAP]
            larger = enlarge(tile)[above * factor :, before * factor :]
            room = result[top * factor : (top + TILE) * factor, left * factor : (left + TILE) * factor]
            room[:] = larger[: room.shape[0], : room.shape[1]]
    return result


def enlarge(image: np.ndarray, size: tuple[int, int], enlarger: Enlarger | None) -> np.ndarray:
    """An image (H, W, 3) uint8 at a larger (width, height): by the model if there is one, the rest by Lanczos.

    Once only: what a model makes of its own inventions is a pattern.
    """
    return resize(enlarger.enlarge(image) if enlarger else image, size)
