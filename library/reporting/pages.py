"""Pages that a tool leaves for a person to look at: one HTML file that needs nothing else, on a phone and offline too.

Everything that is given as `str` is text and is escaped; `Html` is what the functions here have made. To add a kind of
block: write a function that gives `Html`, and its rules in STYLE.
"""

import base64
import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from library.messages import UserError, say

THUMBNAIL = 320  # pixels: sharp on a phone, about 10 kB a picture
MOST_PICTURES = 120  # in one grid; a page of ten thousand pictures would not open

Image.init()  # all of Pillow's formats, and those that other packages have taught it
# Nothing else is opened, whatever a file is called: for an EPS file Pillow would run Ghostscript.
FORMATS = sorted({"PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JXL"} & Image.OPEN.keys())

LEVELS = {  # how a finding is marked: key -> words for it
    "red": ("must be cured", "必须解决"),
    "amber": ("worth a look", "值得留意"),
    "green": ("fine", "正常"),
}

STYLE = """
:root { color-scheme: light dark; --ground: #fbfaf8; --card: #fff; --ink: #22201d; --faint: #6d6862; --line: #e2ded8;
  --red: #b3261e; --amber: #9a6700; --green: #2e7d32; --link: #2257a8; }
@media (prefers-color-scheme: dark) { :root { --ground: #191816; --card: #232120; --ink: #ece9e4; --faint: #a39d95;
  --line: #3a3734; --red: #ff8a80; --amber: #e8b34b; --green: #81c784; --link: #8ab4f8; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif }
h1, h2, h3 { overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line) }
p { margin: .5rem 0; max-width: 60rem; overflow-wrap: anywhere }
a { color: var(--link) }
code, pre { font: .88em/1.5 ui-monospace, "Cascadia Mono", Menlo, monospace; overflow-wrap: anywhere }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem; overflow-x: auto }
.faint { color: var(--faint) }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; padding: 0 }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums }
.facts span { color: var(--faint); font-size: .85rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .93rem }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.pictures { margin: .6rem 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
figure .frame { position: relative; display: flex; justify-content: center;
  background: repeating-conic-gradient(#9993 0 25%, #0000 0 50%) 0 0 / 16px 16px }
figure .holder { position: relative; line-height: 0 }
figure img { max-width: 100%; max-height: 15rem; display: block }
figure .box { position: absolute; border: 2px solid #ff2d6f; box-shadow: 0 0 0 1px #fff9 }
figcaption { padding: .45rem .6rem; font-size: .82rem; overflow-wrap: anywhere; line-height: 1.4 }
figcaption b { font-weight: 600 }
td figure, td figure img { width: 10rem; max-height: none }
.rows { display: grid; gap: .6rem }
.rows figure { display: flex; align-items: flex-start }
.rows figure .frame { flex: 0 0 7rem; min-height: 3rem }
.rows figure img { max-height: 7rem }
.rows figcaption { font-size: .9rem; line-height: 1.6 }
ins { color: var(--green); text-decoration: none; border-bottom: 2px solid var(--green) }
del { color: var(--red) }
.finding { display: flex; gap: .7rem; margin: .5rem 0; padding: .6rem .8rem; background: var(--card);
  border: 1px solid var(--line); border-left: 5px solid var(--tone); border-radius: 6px }
.finding .level { flex: 0 0 6.5em; color: var(--tone); font-weight: 600; font-size: .85rem; padding-top: .1rem }
.finding .text { overflow-wrap: anywhere; min-width: 0 }
.finding .cure { color: var(--faint) }
.red { --tone: var(--red) } .amber { --tone: var(--amber) } .green { --tone: var(--green) }
details > summary { cursor: pointer; margin: .6rem 0 }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
.answer { background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--tone); border-radius: 8px;
  padding: .4rem 1rem .7rem; margin: 1rem 0 }
.answer > b { display: block; font-size: 1.5rem; line-height: 1.3; margin: .4rem 0 .2rem; overflow-wrap: anywhere }
.answer p { margin: .3rem 0 }
.cards { display: grid; gap: .8rem; margin: .6rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)) }
.cards > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .1rem .9rem .6rem }
.cards h3 { margin: .6rem 0 .2rem } .cards pre { background: var(--ground); padding: .45rem .6rem; margin: .4rem 0;
  white-space: pre-wrap }
.strip { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(6.7rem, 1fr); gap: .5rem; overflow-x: auto;
  padding: 2px 2px .4rem; max-width: max-content }
.strip figure { width: 100%; max-width: 11rem } .strip img, .strip .holder { width: 100%; max-height: none }
.strip figcaption { padding: .3rem .45rem; overflow-wrap: normal }
.strips { display: flex; flex-wrap: wrap; align-items: flex-end; gap: .2rem 1.6rem }
.strips > div { max-width: 100%; min-width: min(11rem, 100%) }
.strips h3 { width: 0; min-width: 100%; font-weight: 500; font-size: .92rem; line-height: 1.4; margin: .8rem 0 .25rem }
figure.chosen { border-color: var(--green); box-shadow: 0 0 0 1px var(--green) }
figure.chosen figcaption b { color: var(--green) }
.choices > p { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem .8rem; margin: .6rem 0 }
.choices > p[hidden] { display: none }
.choices input { width: min(20rem, 44vw); accent-color: var(--link); height: 2rem; margin: 0 }
.choices output { font-weight: 600; font-variant-numeric: tabular-nums; min-width: 3em }
.choices.one > div { display: grid; align-items: start; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 10.5rem)) }
.choices.one .strip { display: block; max-width: none; padding: 2px; overflow: hidden }
.choices.one h3 { width: auto; min-width: 0; font-size: .82rem; margin: 0 .1rem .2rem }
.choices.one .strips > div { display: flex; flex-direction: column-reverse; justify-content: flex-end }
.choices.one figure, .choices.one figcaption { display: none } .choices.one figure.shown { display: block }
.even .frame { height: 9rem; align-items: center } .even img { max-height: 9rem }
@media (max-width: 32rem) { body { padding: .8rem } .finding { flex-direction: column; gap: .1rem }
  .finding .level { flex: none } table { font-size: .86rem } th, td { padding-right: .55rem }
  .pictures, .choices.one > div { grid-template-columns: repeat(2, 1fr); gap: .5rem } }
"""
CHOICES = """
for (const all of document.querySelectorAll(".choices")) {
  const values = all.dataset.values.split(" | ");
  const slider = all.querySelector("input"), told = all.querySelector("output");
  const show = () => {
    told.textContent = values[slider.value];
    slider.setAttribute("aria-valuetext", values[slider.value]);
    for (const strip of all.querySelectorAll(".strip"))
      [...strip.children].forEach((figure, at) => figure.classList.toggle("shown", at == slider.value));
  };
  all.classList.add("one");
  all.querySelector("p").hidden = false;
  slider.addEventListener("input", show);
  show();
}
"""  # a script for `choices`


class Html(str):
    """Text that is HTML already."""


class Box(NamedTuple):
    """A frame drawn over a picture; all in shares of its width and height, 0 to 1."""

    left: float
    top: float
    width: float
    height: float
    text: str = ""  # shown when the pointer rests on it


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
        level: a key of LEVELS.
    """
    words = say(*LEVELS[level])
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
    address = _thumbnail(picture)
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


def difference(before: Sequence[str], after: Sequence[str]) -> Html:
    """A list as it was and as it is: what went is struck through, what came is underlined."""
    parts = []
    for kind, left, right, start, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            parts += [escape(text) for text in after[start:end]]
        else:
            parts += [f"<del>{escape(text)}</del>" for text in before[left:right]]
            parts += [f"<ins>{escape(text)}</ins>" for text in after[start:end]]
    return Html(", ".join(parts))


def folded(summary: str, body: str) -> Html:
    """What is shown only when asked for."""
    return Html(f"<details><summary>{html(summary)}</summary>{html(body)}</details>")


def answer(level: str, heading: str, *blocks: str) -> Html:
    """What the page is there to say, above all else.

    Args:
        level: a key of LEVELS: its colour.
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
    half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(content, encoding="utf-8", errors="replace")
        half.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            say(
                f"{path} cannot be written ({reason}). Choose another output_dir",
                f"{path} 无法写入（{reason}）。请换一个 output_dir",
            )
        ) from error
    finally:
        with suppress(OSError):  # it was moved, or never came into being
            half.unlink()
    return path


def _thumbnail(image: Image.Image | Path) -> str:
    """A data: address of a small copy; "" where the file cannot be read."""
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
