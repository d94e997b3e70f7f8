"""Pages that a tool leaves for a person to look at: one HTML file that needs nothing else, on a phone and offline too.

A page is a template (templates/*.html) and a NamedTuple whose fields are what the template names. Python gathers what
is shown and never writes HTML; the template says how it looks. A sentence that a page always says stands in its
template, `say(english, chinese, number=3)` with {number} in both; one that depends on what was found comes as data.

To add a page: a template that extends base.html, and a NamedTuple. What two pages share is a macro in parts.html.
Everything is escaped; what is markup already (a chart) is marked so once, where it is made.
"""

import base64
import io
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from library import files
from library.messages import UserError, plural, say
from library.reporting.findings import level_name

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL = 320  # pixels: sharp on a phone, about 10 kB an image
MOST_IMAGES = 120  # in one grid; a page of ten thousand images would not open

Image.init()  # all of Pillow's formats, and those that other packages have taught it
# Nothing else is opened, whatever a file is called: for an EPS file Pillow would run Ghostscript.
FORMATS = sorted({"PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JXL"} & Image.OPEN.keys())


class Box(NamedTuple):
    """A frame drawn over an image; all in shares of its width and height, 0 to 1."""

    left: float
    top: float
    width: float
    height: float
    text: str = ""  # shown when the pointer rests on it

    @property
    def style(self) -> str:
        """Where it lies, in CSS."""
        return f"left:{self.left:.2%};top:{self.top:.2%};width:{self.width:.2%};height:{self.height:.2%}"


class Figure(NamedTuple):
    """A small copy of an image, with what stands below it."""

    address: str  # data:..., from `thumbnail`; "": nothing but the text is shown
    name: str = ""
    note: str = ""
    boxes: Sequence[Box] = ()
    description: str = ""  # for those who do not see it; "": its name
    is_recommended: bool = False


def figure_of(image: Image.Image | Path, name: str = "", note: str = "", boxes: Sequence[Box] = ()) -> Figure:
    """An image with its name and a line below; of a file that cannot be read the text alone.

    Args:
        boxes: frames over it.
    """
    return Figure(thumbnail(image), name, note, boxes)


class Piece(NamedTuple):
    """One entry of a list that was changed."""

    text: str
    change: str  # "removed", "added" or "none"


def difference(before: Sequence[str], after: Sequence[str]) -> list[Piece]:
    """A list as it was and as it is, in one."""
    pieces: list[Piece] = []
    for kind, left, right, start, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces += [Piece(text, "none") for text in after[start:end]]
        else:
            pieces += [Piece(text, "removed") for text in before[left:right]]
            pieces += [Piece(text, "added") for text in after[start:end]]
    return pieces


def render(template: str, content: NamedTuple) -> str:
    """A whole page, in the language of the messages.

    Args:
        template: the name of a file in TEMPLATES.
        content: its fields are the names that the template uses.
    """
    return environment().get_template(template).render(content._asdict())


@cache
def environment() -> Environment:
    """Where templates are looked up, and what they may call."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,  # a name that is spelled wrong is an error, not a gap in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names: dict[str, Any] = dict(  # jinja2 declares no type for what users add
        say=_say,
        plural=plural,
        level_name=level_name,
        number_columns=_number_columns,
        grouped=_grouped,
        MOST_IMAGES=MOST_IMAGES,
    )
    made.globals.update(names)
    return made


def _say(english: str, chinese: str, **values: object) -> str:
    """`say`, for templates: values are filled in by their names."""
    return say(english, chinese).format(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number_columns(rows: Sequence[Sequence[object]], count: int) -> list[bool]:
    """Which columns of a table hold numbers alone."""
    return [bool(rows) and all(_is_number(row[at]) for row in rows) for at in range(count)]


def _grouped(value: object) -> object:
    """A whole number with its thousands apart: 12,345."""
    return f"{value:,}" if _is_number(value) and isinstance(value, int) else value


def write(path: Path, content: str) -> Path:
    """Write a page over its earlier version, at once or not at all. Raises UserError."""
    try:
        files.write(path, content.encode("utf-8", errors="replace"))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            say(
                f"{path} cannot be written ({reason}). Choose another output_dir",
                f"{path} 无法写入（{reason}）。请换一个 output_dir",
            )
        ) from error
    return path


def thumbnail(image: Image.Image | Path) -> str:
    """A data: address of a small copy; a file is read upright; "" where it cannot be read."""
    try:
        if isinstance(image, Path):
            with Image.open(image, formats=FORMATS) as opened:
                opened.draft("RGB", (THUMBNAIL, THUMBNAIL))
                image = ImageOps.exif_transpose(opened)
                image.load()
        if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
            image = image.convert("F").point(lambda grey: grey * (1 / 257)).convert("L")
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        image.save(data, "WEBP", quality=75)
    except Exception:  # a decoder that meets a broken file may raise anything
        return ""
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
