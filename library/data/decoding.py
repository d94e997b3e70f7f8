"""Images: upright, in sRGB, on white, and brought to their bucket.

Differences from sd-scripts, all because a trainer should see what the user sees: EXIF orientation is applied (phone
photos lie on their side otherwise), transparency becomes white (hidden colours appear otherwise), 16-bit greys are
scaled, and colours of another space (Display P3, Adobe RGB, CMYK) are converted by their ICC profile.

Resizing: sd-scripts shrinks with OpenCV's INTER_AREA (exact area averaging) and enlarges with Pillow's Lanczos. Of
Pillow's antialiased kernels Hamming is the closest to area averaging: on noisy test images, shrunk 1.3 to 6.7 times,
it differs by 0.8 to 1.7 grey levels on average, Lanczos by 2.6 to 3.1, bilinear by 1.2 to 4.2. So Hamming shrinks and
Lanczos enlarges. No torch is imported with this file: images are checked before it is there.

`load` is for training. `raw` is for the tools that make training images of whatever was collected: it takes more
formats and keeps transparency.
"""

import io
import math
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, features

from library.contracts import Fit
from library.messages import UserError, say

if TYPE_CHECKING:
    from torch import Tensor

for plugin in ("pillow_jxl", "pillow_avif", "pi_heif", "pillow_heif"):  # they teach Pillow further formats
    try:
        getattr(__import__(plugin), "register_heif_opener", lambda: None)()  # the first two do it by being imported
    except ImportError:
        continue

EXTENSIONS = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp"}  # compared in lower case
EXTENSIONS |= {".avif", ".jxl"} & set(Image.registered_extensions())  # where this Pillow can read them
UNREADABLE_EXTENSIONS = {".avif", ".jxl", ".gif", ".heic", ".heif", ".tif", ".tiff"} - EXTENSIONS

# Nothing else is opened, whatever a file is called: Pillow would run Ghostscript for an EPS file named .png.
READABLE = sorted({Image.registered_extensions()[ending] for ending in EXTENSIONS} | {"GIF", "TIFF"})

RAW_EXTENSIONS = EXTENSIONS | {  # further ones that `raw` reads: Pillow decodes them by itself, or by a plugin of above
    ".gif", ".tif", ".tiff", ".heic", ".heif", ".hif", ".jpe", ".jp2", ".j2k", ".jpx", ".tga", ".psd", ".ico", ".dds",
    ".qoi", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".dib", ".apng",
} & set(Image.registered_extensions())  # fmt: skip
RAW_READABLE = sorted({Image.registered_extensions()[ending] for ending in RAW_EXTENSIONS})

INSPECTION_FORMAT = 1  # raise it when `inspect` refuses more or answers otherwise: earlier answers are then forgotten

MOST_ELONGATED = 16  # times; of longer images a bucket would show less than a quarter

# An image that is larger and emptier than this is a bomb. Not measured but guessed with room: a blank page has
# thousands of pixels to a byte, a photo few, and what is drawn lies between.
BOMB_PIXELS = 30_000_000
BOMB_PIXELS_PER_BYTE = 200

# A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves this many times the size needed; other large images are
# shrunk in two goes. A 12 MP photo is read 1.6 times as fast and differs by half a grey level on average.
SHRINK_AT_MOST_TO = 2.0

KERNELS = {  # of `resize_interpolation`; all but "nearest" average over what they shrink
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,  # exact area averaging where it shrinks
    "box": Image.Resampling.BOX,
}

TURNS = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Between Pillow's limit and twice that it only warns; those images are read. Beyond, it raises and we name the file.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class BrokenImage(ValueError):
    """An image that cannot be used; the message says why, in the user's language."""


class Inspection(NamedTuple):
    """What is known of an image after it was decoded once."""

    width: int  # upright
    height: int
    is_animated: bool  # only its first frame is used


def inspect(path: Path) -> Inspection:
    """Decode a whole image: only that finds truncated files. JPEGs at an eighth of their size, which is fast.

    Raises:
        BrokenImage: empty, truncated or zeroed at its end, not an image, much too elongated, a decompression
            bomb, or beyond Pillow's limit of pixels.
    """
    return _decoded(path, READABLE, lambda width, height: (width // 8, height // 8), lambda image: image.load())[0]


def raw(path: Path, area: int | None = None) -> tuple[Inspection, Image.Image]:
    """An image of any kind that is decoded without running other programs: upright, in sRGB, RGB or RGBA of 8 bits.

    RGBA only where something is transparent. Of an animation it is the first frame.

    Args:
        area: pixels that are enough; a JPEG is then decoded at 1/2, 1/4 or 1/8 where that leaves as many. What is
            known of it is still of the whole. None: the whole image.

    Raises:
        BrokenImage: as `inspect`.
    """

    def enough(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, math.sqrt(area / (width * height))) if area else 1.0
        return math.ceil(scale * width), math.ceil(scale * height)

    def upright(source: Image.Image) -> Image.Image:
        orientation, profile = _orientation(source), source.info.get("icc_profile")
        image = _eight_bits(source)
        alpha = None
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
        if image.mode not in ("RGB", "L", "CMYK"):
            image = image.convert("RGB")
        image.load()
        image = _to_srgb(image, profile)
        if alpha and np.asarray(alpha).min() < 255:
            image.putalpha(alpha)
        return image.transpose(TURNS[orientation]) if orientation in TURNS else image

    return _decoded(path, RAW_READABLE, enough, upright)


Use = TypeVar("Use")


def _decoded(
    path: Path, formats: list[str], size: Callable[[int, int], tuple[int, int]], use: Callable[[Image.Image], Use]
) -> tuple[Inspection, Use]:
    """What is known of an image, and what `use` gives, which must decode it. Raises BrokenImage.

    Args:
        size: of width and height as they lie in the file, what is enough of a JPEG.
    """
    try:
        byte_count = path.stat().st_size
        if byte_count == 0:
            raise BrokenImage(say("the file is empty (0 bytes); delete it", "文件是空的（0 字节），请删除"))
        with Image.open(path, formats=formats) as image:
            if image.format == "PNG":
                image.verify()  # the checksums of its parts, which decoding passes over
        with Image.open(path, formats=formats) as image:
            width, height = image.size
            if _orientation(image) >= 5:  # lies on its side
                width, height = height, width
            if max(width, height) > MOST_ELONGATED * min(width, height):
                raise BrokenImage(
                    say(
                        f"{width} x {height} pixels are too elongated to train on; crop it, or cut it into pieces",
                        f"{width} x {height} 像素过于狭长，无法用于训练，请裁剪或切成几张",
                    )
                )
            if width * height > max(BOMB_PIXELS, BOMB_PIXELS_PER_BYTE * byte_count):
                raise BrokenImage(
                    say(
                        f"{width} x {height} pixels in a file of {byte_count:,} bytes: blank, but large enough to "
                        "fill the memory; delete it, or make it smaller",
                        f"{width} x {height} 像素，而文件只有 {byte_count:,} 字节："
                        "内容空白却足以占满内存，请删除或缩小",
                    )
                )
            # phones store a second image in MPO files; that is no animation
            is_animated = image.format != "MPO" and getattr(image, "is_animated", False)
            draft_width, draft_height = size(image.width, image.height)
            image.draft(None, (max(1, draft_width), max(1, draft_height)))
            used = use(image)
            if image.format in ("JPEG", "MPO", "WEBP") and _ends_in_zeros(path):
                raise BrokenImage(
                    say(
                        "its end is missing (all zeros), as after an interrupted download; download it again",
                        "结尾缺失，只有一片零字节，多半是下载中断所致，请重新获取",
                    )
                )
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise BrokenImage(
            say(f"more than {limit} million pixels; make it smaller", f"超过 {limit} 百万像素，请先缩小")
        ) from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(
            say(
                "not a supported image format, or its header is damaged; open it in an editor and save it again as "
                ".png",
                "不是可读取的图片格式，或文件头已损坏，请另存为 .png",
            )
        ) from error
    except PermissionError as error:
        raise BrokenImage(
            say("no permission to read it; change its permissions", "没有读取权限，请修改文件权限")
        ) from error
    except Exception as error:  # a decoder that meets a broken file may raise anything
        raise BrokenImage(
            say(
                f"damaged or truncated ({error}); open it in an editor and save it again",
                f"已损坏或不完整（{error}），请重新保存",
            )
        ) from error
    return Inspection(width, height, is_animated), used


def _ends_in_zeros(path: Path) -> bool:
    """Whether a file has its size but not its end: JPEG and WebP decoders make something up for the rest, silently.

    Some cameras fill up their JPEGs with zeros too, but behind the mark of the end.
    """
    with open(path, "rb") as file:
        file.seek(-min(path.stat().st_size, 2**16), os.SEEK_END)
        tail = file.read()
    written = tail.rstrip(b"\0")
    return len(tail) - len(written) >= 512 and not written.endswith(b"\xff\xd9")


class Nature(NamedTuple):
    """What `load` does to an image so that training sees it as its viewer does."""

    is_turned: bool  # EXIF says that it lies on its side, on its head or mirrored
    transparent: float  # share of its pixels that are transparent, wholly or in part, and become white
    is_other_colour: bool  # its profile is of another colour space than sRGB


def nature(path: Path) -> Nature:
    """Look at an image that `inspect` has found whole. Decodes it only where it may be transparent."""
    with Image.open(path, formats=READABLE) as image:
        is_turned = _orientation(image) in TURNS
        own = _other_profile(image.info.get("icc_profile"))
        transparent = 0.0
        if image.has_transparency_data:
            shares = image.convert("RGBA").getchannel("A").histogram()
            transparent = 1 - shares[255] / sum(shares)
    return Nature(is_turned, transparent, own is not None)


class ColourChange(NamedTuple):
    """A small change of colours, `color_aug`. Factors are about 1, hue is a share of a full turn."""

    brightness: float
    contrast: float
    saturation: float
    hue: float

    @classmethod
    def draw(cls, rng: random.Random) -> "ColourChange":
        """Brightness, contrast and saturation within 10 %, hue within 7 degrees: small enough for a character to keep
        its colours."""
        return cls(rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), rng.uniform(-0.02, 0.02))

    def matrix(self) -> np.ndarray:
        """(3, 4) what to multiply (r, g, b, 1) with."""
        grey = np.full((3, 3), 1 / 3)
        turn = 2 * math.pi * self.hue
        around_grey = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        rotation = math.cos(turn) * (np.eye(3) - grey) + grey + math.sin(turn) * around_grey  # Rodrigues' formula
        luma = np.tile([0.299, 0.587, 0.114], (3, 1))
        colours = (self.saturation * np.eye(3) + (1 - self.saturation) * luma) @ rotation
        factor = self.brightness * self.contrast
        offset = self.brightness * 127.5 * (1 - self.contrast)  # contrast turns about the middle grey
        return np.hstack([factor * colours, np.full((3, 1), offset)])


def load(
    path: Path, fit: Fit, *, flip: bool = False, colours: ColourChange | None = None, data: bytes | None = None
) -> np.ndarray:
    """An image as its bucket shows it: (H, W, 3) uint8.

    Args:
        fit: bucket, resized size and crop, all for the upright image.
        flip: mirrored, after cropping.
        colours: changed last.
        data: the file's bytes, where they were read already.

    Raises:
        UserError: the file cannot be read any more; names it.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=READABLE) as file:
            orientation = _orientation(file)
            least_width, least_height = (math.ceil(SHRINK_AT_MOST_TO * side) for side in fit.resized)
            is_turned = orientation >= 5
            file.draft(None, (least_height, least_width) if is_turned else (least_width, least_height))
            profile = file.info.get("icc_profile")
            image = _on_white(file)
            image.load()
    except Exception as error:  # whole when it was inspected; a decoder that meets a broken file may raise anything
        raise UserError(
            say(
                f"{path}: cannot be read: {error}. It was changed or moved during the run; start again",
                f"{path}：无法读取：{error}。它在训练开始后被改动或移走了，请重新开始训练",
            )
        ) from error
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    # Only the part that stays is resized: a panorama enlarged as a whole could take gigabytes.
    (left, top), (width, height) = fit.crop, fit.bucket
    across, down = image.width / fit.resized[0], image.height / fit.resized[1]
    right, bottom = min((left + width) * across, image.width), min((top + height) * down, image.height)
    box = (left * across, top * down, right, bottom)
    usual = Image.Resampling.HAMMING if across >= 1 and down >= 1 else Image.Resampling.LANCZOS
    kernel = KERNELS[fit.kernel] if fit.kernel else usual
    image = image.resize(fit.bucket, kernel, box=box, reducing_gap=SHRINK_AT_MOST_TO)
    image = _to_srgb(image, profile)
    if flip:
        image = ImageOps.mirror(image)
    if colours:
        image = image.convert("RGB", tuple(colours.matrix().ravel()))
    return np.asarray(image)


def to_pixels(images: list[np.ndarray]) -> "Tensor":
    """Images (H, W, 3) uint8 of one size -> (B, 3, H, W) float32 in [-1, 1]."""
    import torch  # here: whoever only checks images must not wait for it

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _orientation(image: Image.Image) -> int:
    """1 (upright) to 8, as EXIF counts."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if orientation in TURNS else 1
    except Exception:  # damaged EXIF data, which every viewer ignores too, may raise anything
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, L or CMYK of 8 bits without transparency."""
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the image's ICC profile. Done after resizing, which is cheaper and looks the same."""
    own = _other_profile(profile)
    if own:
        try:
            converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted, "it is None only in place"
            return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile of another kind of image: viewers ignore it too
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _other_profile(profile: bytes | None) -> "ImageCms.ImageCmsProfile | None":
    """The ICC profile where it is whole and of another space than sRGB."""
    if profile and features.check("littlecms2"):
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return None if "srgb" in ImageCms.getProfileDescription(own).lower() else own
        except (ImageCms.PyCMSError, OSError):
            pass  # damaged: viewers ignore it too
    return None
