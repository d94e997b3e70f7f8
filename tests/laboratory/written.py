"""What the laboratory found, as a table and as docs/laboratory.md with an image for each claim.

The page holds a part for each claim between two marks, so that claims can be run, and written, a few at a time.
"""

import re
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from tests.laboratory import CLAIMS
from tests.laboratory.experiment import Claim, Comparison, Effect, effect, shown_images, verdict

HEAD = """# The laboratory

Sentences of the text that this project began with, tried on the built-in miniature model, each against its opposite.
Written by `python -m tests.laboratory`; how each is tried stands in `tests/laboratory/`.

A seed stands for other training pictures, another order and other noise, the same in all trainings of a claim, so
differences are paired. `±` is the 95 % interval of the mean difference over seeds (Student's t); `d` is Cohen's effect
size of paired differences (mean / standard deviation). *Confirmed* and *contradicted* need an interval without 0 and a
mean beyond the margin, or, where a difference is denied, an interval within the margin; anything else is *not shown*.
Most measures are shares of pictures: 0.00 ± 0.00 means that all pictures of all seeds agreed, not that none ever would
differ.
The miniature is a Stable Diffusion of a few megabytes that knows a world of shapes and simple figures at 64 pixels:
what it shows is how training moves features between words, not how a photograph will look.

"""
LARGEST_IMAGE = 80_000  # bytes


class Study(NamedTuple):
    """A claim and what was found."""

    name: str
    claim: Claim
    results: list[dict[str, dict[str, float]]]  # of each seed: condition -> measure -> number

    def values(self, condition: str, measure: str) -> list[float]:
        return [result[condition][measure] for result in self.results]

    def outcome(self, comparison: Comparison) -> tuple[Effect, str]:
        found = effect(self.values(*comparison.first), self.values(*comparison.second))
        return found, verdict(found, comparison.expected, comparison.margin)


def table(studies: list[Study]) -> str:
    """Every comparison in a line, and what every condition measured."""
    lines = []
    for study in studies:
        lines.append(f"\n{study.claim.title}  ({len(study.results)} seeds)")
        measures = list(study.results[0][next(iter(study.results[0]))])
        for condition in study.results[0]:
            told = "  ".join(f"{measure} {mean(study.values(condition, measure)):.3f}" for measure in measures)
            lines.append(f"    {condition:<24} {told}")
        for comparison in study.claim.comparisons:
            found, word = study.outcome(comparison)
            lines.append(f"  {word:<13} {found!s:<32} {comparison.words}")
        lines += [f"  {study.claim.note(study.results)}"] if study.claim.note else []
    return "\n".join(lines)


def write(studies: list[Study], docs: Path, folder: Path) -> None:
    """Put the studies into docs/laboratory.md, beside those that stand in it already, and write their images."""
    page = docs / "laboratory.md"
    parts = _parts(page.read_text(encoding="utf-8")) if page.exists() else {}
    for study in studies:
        if study.claim.shown:
            image = docs / "images" / "laboratory" / f"{study.name}.webp"
            image.parent.mkdir(parents=True, exist_ok=True)
            rows = shown_images(study.name, study.claim, study.claim.seeds[0], folder)
            _save_small(labelled(list(study.claim.all_conditions()), rows), image)
        parts[study.name] = _part(study)
    known = [parts[name] for name in CLAIMS if name in parts]
    page.write_text(HEAD + _overview(known) + "\n" + "\n".join(known), encoding="utf-8")


def _overview(parts: list[str]) -> str:
    """How often each verdict was given, by claim."""
    words = ("confirmed", "contradicted", "not shown")
    lines = [f"| claim | {' | '.join(words)} |", "|---|---|---|---|"]
    for part in parts:
        title = re.search(r"^## (.*)$", part, re.MULTILINE)[1]
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        counts = [part.count(f"| **{word}** |") for word in words]
        lines.append(f"| [{title}](#{anchor}) | {' | '.join(str(count or '') for count in counts)} |")
    return "\n".join([*lines, ""])


def _parts(page: str) -> dict[str, str]:
    found = re.finditer(r"<!-- (\w+) -->\n.*?<!-- end -->\n", page, re.DOTALL)
    return {match[1]: match[0] for match in found}


def _part(study: Study) -> str:
    claim, count = study.claim, len(study.results)
    lines = [f"<!-- {study.name} -->", f"## {claim.title}", ""]
    lines += [f"> {claim.sentence}", ""] if claim.sentence else []
    lines += [claim.method, ""]
    lines += [f"| expected ({count} seeds) | found | difference | d |", "|---|---|---|---|"]
    for comparison in claim.comparisons:
        found, word = study.outcome(comparison)
        size = "∞" if abs(found.size) == float("inf") else f"{found.size:+.1f}"
        interval = f"{found.difference:+.2f} ± {found.half_width:.2f}"
        lines.append(f"| {comparison.words} | **{word}** | {interval} | {size} |")
    measures = list(study.results[0][next(iter(study.results[0]))])
    lines += ["", f"| mean ± standard deviation | {' | '.join(measures)} |", "|---|" + "---|" * len(measures)]
    for condition in study.results[0]:
        values = [study.values(condition, measure) for measure in measures]
        told = " | ".join(f"{mean(numbers):.2f} ± {stdev(numbers):.2f}" for numbers in values)
        lines.append(f"| {condition} | {told} |")
    lines += ["", claim.note(study.results)] if claim.note else []
    if claim.shown:
        asked = "; ".join(f"`{claim.questions[question][index]}`" for question, index in claim.shown)
        lines += ["", f"![{claim.title}](images/laboratory/{study.name}.webp)", "", f"Columns: {asked}."]
    lines += ["", claim.limits] if claim.limits else []
    return "\n".join([*lines, "", "<!-- end -->", ""])


def labelled(names: list[str], rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Rows of images with the condition's name at the left."""
    width, height = rows[0][0].size
    margin = 12 + int(max(ImageFont.load_default().getlength(name) for name in names))
    size = (margin + len(rows[0]) * (width + gap), len(rows) * (height + gap))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        top = index * (height + gap)
        pen.text((4, top + height // 2 - 6), name, fill="black")
        for column, image in enumerate(row):
            sheet.paste(image, (margin + column * (width + gap), top))
    return sheet


def _save_small(image: Image.Image, path: Path) -> None:
    for quality in (90, 80, 70, 50, 30):
        image.save(path, quality=quality, method=6)
        if path.stat().st_size < LARGEST_IMAGE:
            return
