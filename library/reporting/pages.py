"""Pages that a tool leaves for a person to look at: one HTML file that needs nothing else, on a phone and offline too.

A page is a template (templates/*.html) and a NamedTuple whose fields are what the template names. Python gathers what
is shown and never writes HTML; the template says how it looks. A sentence that a page always says stands in its
template, `say(english, chinese, number=3)` with {number} in both; one that depends on what was found comes as data.

To add a page: a template that extends base.html, and a NamedTuple. What two pages share is a macro in parts.html.
Everything is escaped; what is markup already (a chart) is marked so once, where it is made.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from library import files
from library.messages import UserError, plural, say
from library.reporting.findings import level_name

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL = 320  # pixels: sharp on a phone, about 10 kB an image
MOST_IMAGES = MOST_PICTURES = 120  # in one grid; a page of ten thousand images would not open

Image.init()  # all of Pillow's formats, and those that other packages have taught it
# Nothing else is opened, whatever a file is called: for an EPS file Pillow would run Ghostscript.
FORMATS = sorted({"PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JXL"} & Image.OPEN.keys())

STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")
CHOICES = (TEMPLATES / "slider.js").read_text(encoding="utf-8")


class Html(str):
    """Text that is HTML already."""


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
    return _environment().get_template(template).render(content._asdict())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,  # a name that is spelled wrong is an error, not a gap in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= dict(
        say=_say,
        plural=plural,
        level_name=level_name,
        number_columns=_number_columns,
        grouped=_grouped,
        MOST_IMAGES=MOST_IMAGES,
    )
    return environment


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


# ---- Pages that are not templates yet ----


def html(text: object) -> Html:
    """Text, or what stands for it, as HTML; what is HTML already stays."""
    return text if isinstance(text, Html) else Html(escape(str(text)))


def join(parts: Iterable[str]) -> Html:
    """One after the other."""
    return Html("".join(html(part) for part in parts))


def paragraph(text: str, *, faint: bool = False) -> Html:
    return Html(f"<p{' class=faint' if faint else ''}>{html(text)}</p>")


def code(text: str) -> Html:
    """A command or a few lines as they are typed."""
    return Html(f"<pre>{escape(text)}</pre>")


def facts(values: dict[str, object]) -> Html:
    """The few numbers that matter most: {"pictures": 60, ...}."""
    tiles = (f"<div><b>{html(value)}</b><span>{html(name)}</span></div>" for name, value in values.items())
    return Html(f'<div class="facts">{"".join(tiles)}</div>')


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Rows of cells; numbers stand to the right."""

    def cell(tag: str, value: object, numeric: bool) -> str:
        text = html(f"{value:,}" if is_number(value) and isinstance(value, int) else value)
        return f"<{tag}{' class=number' if numeric else ''}>{text}</{tag}>"

    def is_number(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    rows = [list(row) for row in rows]
    numeric = [bool(rows) and all(is_number(row[at]) for row in rows) for at in range(len(head))]
    top = "".join(cell("th", text, right) for text, right in zip(head, numeric, strict=True))
    lines = ("".join(cell("td", value, right) for value, right in zip(row, numeric, strict=True)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>')


def finding(level: str, text: str, cure: str = "") -> Html:
    """One thing that was found: what it is, and below it what to do.

    Args:
        level: a key of findings.LEVELS.
    """
    words = level_name(level)
    below = f'<div class="cure">{html(cure)}</div>' if cure else ""
    return Html(
        f'<div class="finding {level}"><div class="level">{escape(words)}</div>'
        f'<div class="text">{html(text)}{below}</div></div>'
    )


def picture(picture: Image.Image | Path, name: str = "", note: str = "", boxes: Iterable[Box] = ()) -> Html:
    """A small copy of a picture with its name and a line below, for `pictures`.

    Args:
        picture: a file is read upright; one that cannot be read gives its name alone.
        boxes: frames over it.
    """
    frames = "".join(
        f'<div class="box" title="{escape(box.text)}" style="left:{box.left:.2%};top:{box.top:.2%};'
        f'width:{box.width:.2%};height:{box.height:.2%}"></div>'
        for box in boxes
    )
    return figure(join([image(picture, name), Html(frames)]), name, note)


def image(picture: Image.Image | Path, text: str = "") -> Html:
    """A small copy of a picture; "" where the file cannot be read.

    Args:
        text: what it shows, for those who do not see it.
    """
    address = thumbnail(picture)
    return Html(f'<img alt="{escape(text)}" loading="lazy" src="{address}">' if address else "")


def figure(shown: Html, name: str = "", note: str = "", *, is_chosen: bool = False) -> Html:
    """A picture from `image` with its name and a line below, for `strip`."""
    below = "<br>".join(str(part) for part in (f"<b>{html(name)}</b>" if name else "", html(note)) if part)
    return Html(
        f'<figure{" class=chosen" if is_chosen else ""}><div class="frame"><div class="holder">{html(shown)}</div>'
        f"</div><figcaption>{below}</figcaption></figure>"
    )


def strip(figures: Sequence[Html]) -> Html:
    """Pictures side by side; where the page is narrow they are pushed sideways."""
    return Html(f'<div class="strip" tabindex="0">{"".join(figures)}</div>')


def strips(rows: Iterable[tuple[str, Sequence[Html]]]) -> Html:
    """Several strips, each with a heading; beside one another where there is room."""
    return Html(f'<div class="strips">{join(_headed(heading, figures) for heading, figures in rows)}</div>')


def _headed(heading: str, figures: Sequence[Html]) -> Html:
    return Html(f"<div><h3>{html(heading)}</h3>{strip(figures)}</div>")


def choices(name: str, values: Sequence[str], rows: Sequence[tuple[str, Sequence[Html]]]) -> Html:
    """Pictures of which each row has one for every value; a slider shows those of one value.

    Without CHOICES, or without scripts, all of them are shown side by side.

    Args:
        name: of what the slider moves.
        values: in order; the last is shown first.
        rows: a heading, and a figure from `figure` for each value.
    """
    marks = " | ".join(values)
    last = len(values) - 1
    return Html(
        f'<div class="choices" data-values="{escape(marks)}"><p hidden><label for="choice">{html(name)}</label>'
        f'<input id="choice" type="range" min="0" max="{last}" step="1" value="{last}">'
        f"<output>{html(values[-1])}</output></p>{strips(rows)}</div>"
    )


def pictures(figures: Sequence[Html], *, even: bool = False) -> Html:
    """Pictures in a grid; of very many only the first are shown, and that is said.

    Args:
        even: all with the same room, whatever their size.
    """
    shown = "".join(figures[:MOST_PICTURES])
    rest = len(figures) - MOST_PICTURES
    more = paragraph(say(f"and {rest:,} more", f"另有 {rest:,} 张未显示"), faint=True) if rest > 0 else ""
    return Html(f'<div class="pictures{" even" if even else ""}">{shown}</div>{more}')


def rows(figures: Sequence[Html]) -> Html:
    """Pictures one below the other with their text to the right; of very many only the first are shown."""
    return Html(pictures(figures).replace('class="pictures"', 'class="rows"', 1))


def folded(summary: str, body: str) -> Html:
    """What is shown only when asked for."""
    return Html(f"<details><summary>{html(summary)}</summary>{html(body)}</details>")


def answer(level: str, heading: str, *blocks: str) -> Html:
    """What the page is there to say, above all else.

    Args:
        level: a key of findings.LEVELS: its colour.
    """
    return Html(f'<div class="answer {level}"><b>{html(heading)}</b>{join(blocks)}</div>')


def cards(bodies: dict[str, Html]) -> Html:
    """A few short texts beside one another: {heading: body}."""
    shown = "".join(f"<div><h3>{html(heading)}</h3>{html(body)}</div>" for heading, body in bodies.items())
    return Html(f'<div class="cards">{shown}</div>')


def section(heading: str, *blocks: str) -> Html:
    return Html(f"<section><h2>{html(heading)}</h2>{join(blocks)}</section>")


def page(title: str, *blocks: str, style: str = "", script: str = "") -> str:
    """A whole page, in the language of the messages.

    Args:
        style: more rules.
        script: what makes it handier; nothing may depend on it.
    """
    script = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html><html lang="{say("en", "zh-CN")}"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style><body><h1>{escape(title)}</h1>{join(blocks)}"
        f"{script}</body></html>\n"
    )


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
