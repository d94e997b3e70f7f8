"""One raw image becomes clean ones: trimmed, erased where asked, without its background, at the training size.

Whatever is erased becomes transparent first. So what was there cannot bleed into the rest when the image is resized,
and the mask that keeps it from being learnt is what is transparent in the end. To add a step: put it into `clean`, what
it found into the report, and the options that decide it into `_settings`.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor

from library import text_encoding
from library.data import captions, decoding
from library.data.folders import MASKS
from library.files import JsonObject
from library.images import background, borders, faces, manifest, quality, resizing, text_regions
from library.images.region import Region, clipped, grown, overlap
from library.messages import UserError, say
from library.options.tools import PrepareImages
from library.tooling.raw_images import Raw, on_colour

if TYPE_CHECKING:
    from library.images.faces import Detector
    from library.images.local_models import Onnx

VERSION = 2  # raise it when the same settings give another image: all are then made anew
LARGE = 16_000_000  # pixels; larger images are worked on one at a time, so that memory stays flat
WHOLE = 250  # of 255; an image nowhere more transparent than this counts as opaque
LEAST_OF_FACE = 0.5  # that must be left of a face for cutting it out
AGREED = 0.9  # share of text that a person's own regions cover: it need not be asked about again
ERASED_FACE_MARGIN = 0.15  # sides of the face: chin and hairline, but not the collar
LEAST_SHOWN = 0.02  # share of the image; with less left it is not written
PACKING = 2  # of PNG, 0 to 9: 6, the usual one, takes four times as long for files a tenth smaller


@dataclass(frozen=True)
class Models:
    """Models of other programs that were found; None: those that come along, or Lanczos."""

    face: Detector | None = None
    background: Onnx | None = None
    enlarger: resizing.Enlarger | None = None
    reads_text: bool = True  # rapidocr runs here

    def names(self) -> dict[str, str]:
        """What each is called, for the manifest."""
        return {
            "face": self.face.path.name if self.face else "",
            "background": self.background.path.name if self.background else "",
            "enlarger": self.enlarger.name if self.enlarger else "",
        }


@dataclass
class Made:
    """What one raw image became."""

    files: dict[str, bytes] = field(default_factory=dict)  # path below output_dir -> content; images and masks
    report: JsonObject = field(default_factory=dict)  # see `Cleaner.clean`


class Cleaner:
    """Makes clean images. Threads may share it.

    Args:
        regions: image's name -> further regions to erase, in pixels of the upright image.
    """

    def __init__(self, settings: PrepareImages, models: Models, regions: dict[str, list[Region]]):
        self.settings, self.models, self.regions = settings, models, regions
        red, green, blue, *_ = ImageColor.getrgb(settings.background_colour)
        self.colour = red, green, blue
        self._large, self._enlarging = threading.Lock(), threading.Lock()

    def settings_of(self, raw: Raw) -> str:
        """All that decides what becomes of an image, in short."""
        s = self.settings
        decides: list[object] = [VERSION, s.resolution, s.trim_borders, s.text, s.background, self.colour]
        decides += [s.faces, s.denoise, [list(region)[:4] for region in self.regions.get(raw.name, ())]]
        names = self.models.names()
        decides += [names["background"]] if s.background != "keep" else []
        decides += [names["face"]] if s.faces != "keep" or s.text != "off" else []
        decides += [] if self.models.reads_text else ["no reader"]
        decides += [s.face_margin] if self.cuts_faces else []
        if raw.area < s.resolution**2 or self.cuts_faces:
            decides += [s.upscale != "off", names["enlarger"]]
        if s.faces == "recipe":
            decides += [self.is_poor(raw)]
        return manifest.digest_of(repr(decides).encode())[:16]

    def is_poor(self, raw: Raw) -> bool:
        """Whether an image is too blurred or too small for learning a body by; its face may still be of use."""
        return raw.blur >= quality.BLURRED or raw.area < self.settings.resolution**2

    def full_file(self, stem: str) -> str | None:
        """Where the whole image goes; None: only faces are wanted."""
        folder = {"recipe": "reg/", "cut out": None}.get(self.settings.faces, "")
        return None if folder is None else f"{folder}{stem}.png"

    def face_file(self, stem: str, number: int | str) -> str:
        """Where a cut-out face goes."""
        return f"{'train/' if self.settings.faces == 'recipe' else ''}{stem}_face{number}.png"

    @staticmethod
    def mask_file(file: str) -> str:
        """Where the mask of an image goes."""
        path = PurePosixPath(file)
        return (path.parent / MASKS / path.name).as_posix()

    @property
    def cuts_faces(self) -> bool:
        """Whether faces become images of their own. Captions are not taken along then: they describe the whole."""
        return self.settings.faces in ("cut out", "recipe")

    def area_of(self, raw: Raw) -> float:
        """Pixels that its clean images will have, about."""
        resolution = self.settings.resolution
        least = 0 if self.settings.upscale == "off" else resolution**2
        return min(max(raw.area, least), (resizing.LARGEST * resolution) ** 2)

    def clean(self, raw: Raw, stem: str) -> Made:
        """The clean images of a raw one, and their masks.

        Returns:
            Files, none of which is written yet, and a report for the summary, all of which JSON can hold:
            "trim" (left, top, right, bottom as shares of the raw image), "text" (left, top, width, height as shares
            of the raw image, and score), "asks" (those of them that only a person may have erased, likewise), "faces"
            (how many were found), "face_model" (that looked for them; "": MediaPipe's), "lost" (faces that were
            erased, with the background or by the user's regions, and so not cut out), "size" (width, height by
            file), "enlarged" (times by file), "erased" (share by file), "small" (files below the training size), "by"
            (the model that enlarged), "guessed" (whether no model of the user's removed the background), "doubtful"
            (no subject was found, or one without its face: the background stayed), "gone" (nothing was left).

        Raises:
            BrokenImage: it cannot be read any more.
        """
        if raw.width * raw.height <= LARGE:
            return self._clean(raw, stem)
        with self._large:
            return self._clean(raw, stem)

    def _clean(self, raw: Raw, stem: str) -> Made:
        s, made = self.settings, Made()
        image = decoding.raw(raw.path)[1]
        alpha = np.asarray(image.getchannel("A")) if image.mode == "RGBA" else None
        shown = on_colour(image, self.colour)
        pixels = shown if alpha is None else np.asarray(image.convert("RGB"))
        del image  # of 50 million pixels it takes 150 MB
        height, width = shown.shape[:2]
        trim = borders.find_borders(shown) if s.trim_borders else borders.Trim(0, 0, width, height)
        if trim != (0, 0, width, height):
            made.report["trim"] = [trim.left / width, trim.top / height, trim.right / width, trim.bottom / height]
        part = np.s_[trim.top : trim.bottom, trim.left : trim.right]
        pixels, shown = pixels[part], np.ascontiguousarray(shown[part])
        alpha = np.full(shown.shape[:2], 255, np.uint8) if alpha is None else alpha[part].copy()

        erased = [r._replace(left=r.left - trim.left, top=r.top - trim.top) for r in self.regions.get(raw.name, ())]
        if s.text != "off" and self.models.reads_text:
            text, asks = self._text(shown, erased)
            made.report["text"], made.report["asks"] = (
                [
                    [(r.left + trim.left) / width, (r.top + trim.top) / height, r.width / width, r.height / height]
                    + [r.score]
                    for r in regions
                ]
                for regions in (text, asks)
            )
            erased += [region for region in text if region not in asks] if s.text == "erase" else []
        seen = faces.find_faces(shown, self.models.face) if s.faces != "keep" else []
        if s.faces == "erase":
            erased += [grown(face, round(ERASED_FACE_MARGIN * max(face.width, face.height))) for face in seen]
        elif s.faces == "erase head":
            erased += [faces.head(face) for face in seen]
        if s.background != "keep":
            subject = background.subject(shown, self.models.background)
            if background.is_doubtful(subject) or (seen and not any(_is_left(face, subject) for face in seen)):
                made.report["doubtful"] = True
            else:
                alpha = np.minimum(alpha, subject)
                made.report["guessed"] = self.models.background is None
        for region in erased:
            inside = clipped(region, shown.shape[1], shown.shape[0])
            if inside:
                alpha[inside.top : inside.bottom, inside.left : inside.right] = 0
        if self.cuts_faces:
            left = [face for face in seen if _is_left(face, alpha)]
            made.report["lost"], seen = len(seen) - len(left), left
        if s.faces != "keep":
            made.report["faces"] = len(seen)
            made.report["face_model"] = self.models.names()["face"]

        file = self.full_file(stem)
        if file and not (s.faces == "recipe" and self.is_poor(raw)):
            self._finish(pixels, alpha, file, made)
        if self.cuts_faces:
            for number, face in enumerate(seen, 1):
                square = faces.around(face, (shown.shape[1], shown.shape[0]), s.face_margin)
                cut = np.s_[square.top : square.bottom, square.left : square.right]
                self._finish(pixels[cut], alpha[cut], self.face_file(stem, number), made)
        return made

    def _text(self, shown: np.ndarray, agreed: list[Region]) -> tuple[list[Region], list[Region]]:
        """The text in an image, and which of it only a person may have erased.

        Args:
            agreed: the user's own regions; what they cover need not be asked about.
        """
        text, (height, width) = text_regions.find_text(shown), shown.shape[:2]
        near = faces.find_faces(shown, self.models.face, unsure=True) if text else []
        near = [grown(face, round(ERASED_FACE_MARGIN * max(face.width, face.height))) for face in near]
        asks = [region for region in text if text_regions.needs_a_person(region, near, width, height)]
        asks = [region for region in asks if all(overlap(region, own) < AGREED * region.area for own in agreed)]
        return text, asks

    def _finish(self, pixels: np.ndarray, alpha: np.ndarray, file: str, made: Made) -> None:
        """Bring an image to its size and add it, with its mask, to what was made."""
        s = self.settings
        if alpha.mean() < 255 * LEAST_SHOWN:
            made.report["gone"] = True
            return
        is_opaque = alpha.min() >= WHOLE
        if not is_opaque:  # what a transparent pixel hides must not come to light
            pixels = np.where((alpha == 0)[..., None], np.array(self.colour, np.uint8), pixels)
        height, width = pixels.shape[:2]
        size = resizing.wanted_size(width, height, s.resolution)
        if size[0] < width:
            whole = pixels if is_opaque else np.dstack([pixels, alpha])
            whole = resizing.resize(whole, size)
            pixels, alpha = whole[..., :3], alpha if is_opaque else whole[..., 3]
        if s.denoise:
            pixels = resizing.denoise(np.ascontiguousarray(pixels), s.denoise)
        if size[0] > width and s.upscale != "off":
            with self._enlarging:  # a model fills the device alone
                pixels = resizing.enlarge(pixels, size, self.models.enlarger)
            alpha = alpha if is_opaque else resizing.resize(alpha, size)
            made.report.setdefault("enlarged", {})[file] = size[0] / width
            made.report["by"] = self.models.names()["enlarger"]
        elif width * height < s.resolution**2:
            made.report.setdefault("small", []).append(file)
        if is_opaque:
            image = Image.fromarray(pixels)
        else:
            image = Image.fromarray(np.dstack([pixels, alpha]))
            folder, name = str(PurePosixPath(file).parent), PurePosixPath(file).name
            made.files[f"{MASKS}/{name}" if folder == "." else f"{folder}/{MASKS}/{name}"] = _png(
                Image.fromarray(alpha)
            )
            made.report.setdefault("erased", {})[file] = 1 - float(alpha.mean()) / 255
            if s.background != "transparent":
                image = Image.fromarray(on_colour(image, self.colour))
        made.files[file] = _png(image)
        made.report.setdefault("size", {})[file] = list(image.size)


def _is_left(face: Region, alpha: np.ndarray) -> bool:
    """Whether most of a face is still there, where alpha (H, W) is what is left of an image."""
    return alpha[face.top : face.bottom, face.left : face.right].mean() >= LEAST_OF_FACE * 255


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=PACKING)
    return data.getvalue()


def caption(path: Path) -> bytes:
    """A caption file as UTF-8, or as it is where its encoding is not sure. Raises UserError, naming it."""
    try:
        data = path.read_bytes()
        reading = text_encoding.read(data)
        if reading is None:
            raise ValueError(captions.NO_TEXT)
        return reading.text.encode(errors="replace") if reading.is_sure else data
    except (OSError, ValueError) as error:
        raise UserError(
            say(
                f"{path}: this caption cannot be read ({error}); save it as UTF-8",
                f"{path}：无法读取该标注文件（{error}），请另存为 UTF-8",
            )
        ) from error
