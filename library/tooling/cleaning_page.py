"""The summary of prepare_images.py: what was made, what was left out and why, and what a person should look at."""

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from library.data import decoding
from library.files import JsonObject
from library.images import quality
from library.messages import say
from library.options.tools import PrepareImages
from library.reporting import pages
from library.reporting.findings import Finding
from library.reporting.pages import Box, Figure
from library.tooling.cleaning_findings import Outcome
from library.tooling.raw_images import Group, Raw

# shown of each: the page must open on a phone
GROUPS, MEMBERS, MIRRORED, TEXTS, WORST, PAIRS, FACES, SKIPPED, NOTES, LINES = 24, 8, 50, 36, 12, 18, 60, 200, 50, 200
FEWEST_RANKED = 3  # images; of fewer none are the worst


class ShownGroup(NamedTuple):
    """Images that show the same."""

    figures: list[Figure]  # the first of them
    image_count: int


class ShownText(NamedTuple):
    """An image that may contain text."""

    figure: Figure
    regions: list[str]  # the surest, as a regions file writes them


class Ranking(NamedTuple):
    """The worst images by one measure."""

    heading: str
    figures: list[Figure]


class PrepareImagesPage(NamedTuple):
    """What templates/prepare_images.html shows."""

    folder: str
    output: str
    numbers: dict[str, object]
    models: list[str]
    findings: list[Finding]
    keeps_duplicates: bool
    groups: list[ShownGroup]
    group_count: int
    mirrored: list[tuple[str, str]]
    mirrored_count: int
    texts: list[ShownText]
    text_count: int
    asks: list[str]  # lines for a regions file: text that is not erased without a person's yes
    faces: list[Figure]
    face_count: int
    most_faces: int
    worst: list[Ranking]
    blurred: float  # from which edges are called so, pixels
    noisy: float
    pairs: list[Figure]  # before, after, before, ...
    has_guessed: bool
    worked_count: int
    most_pairs: int
    skipped: list[tuple[str, str]]  # file, why
    skipped_count: int
    notes: list[str]
    next_steps: list[str]


def build(outcome: Outcome, findings: list[Finding], settings: PrepareImages, output: Path) -> str:
    """The page."""
    survey = outcome.survey
    keeps = settings.duplicates == "keep"
    texts = by_text(outcome)
    faces = [file for file in outcome.files if "_face" in file and not file.startswith("reg/")]
    if settings.faces not in ("cut out", "recipe"):
        faces = []
    content = PrepareImagesPage(
        folder=str(survey.folder),
        output=str(output),
        numbers=numbers(outcome),
        models=outcome.models,
        findings=findings,
        keeps_duplicates=keeps,
        groups=[shown_group(group, keeps) for group in outcome.groups[:GROUPS]],
        group_count=len(outcome.groups),
        mirrored=[(first.name, second.name) for first, second in outcome.mirrored[:MIRRORED]],
        mirrored_count=len(outcome.mirrored),
        texts=[shown_text(raw, outcome.records[raw.name].report) for raw in texts[:TEXTS]],
        text_count=len(texts),
        asks=[region_line(raw, box) for raw in texts for box in outcome.records[raw.name].report.get("asks", ())][
            :LINES
        ],
        faces=[pages.figure_of(output / file, file) for file in faces[:FACES] if (output / file).exists()],
        face_count=len(faces),
        most_faces=FACES,
        worst=rankings(outcome.worked),
        blurred=quality.BLURRED,
        noisy=quality.NOISY,
        pairs=pairs(outcome, output),
        has_guessed=bool(outcome.reporting("guessed")),
        worked_count=len(outcome.worked),
        most_pairs=PAIRS,
        skipped=list(survey.skipped.items())[:SKIPPED],
        skipped_count=len(survey.skipped),
        notes=survey.notes[:NOTES],
        next_steps=outcome.next_steps,
    )
    return pages.render("prepare_images.html", content)


def numbers(outcome: Outcome) -> dict[str, object]:
    """The few that matter most."""
    survey = outcome.survey
    return {
        say("raw images", "原始图片"): len(survey.images) + len(survey.skipped),
        say("clean images", "整理后的图片"): len(outcome.files),
        say("duplicates left out", "去掉的重复图片"): len(outcome.left_out),
        say("skipped", "略过"): len(survey.skipped),
        say("with a mask", "带蒙版"): sum(len(record.report.get("erased", {})) for record in outcome.records.values()),
        say("blurred", "模糊"): len(outcome.blurred),
        say("noisy", "噪点多"): len(outcome.noisy),
    }


def raw_figure(raw: Raw, note: str, boxes: list[Box] | None = None) -> Figure:
    """A small copy of a raw image, read as safely as everything else."""
    image: Image.Image | Path
    try:
        image = decoding.raw(raw.path, area=2 * pages.THUMBNAIL**2)[1]
    except decoding.BrokenImage:  # since it was looked at
        image = Path()
    return pages.figure_of(image, raw.name, note, boxes or [])


def size_of(raw: Raw) -> str:
    return f"{raw.width} × {raw.height}"


def shown_group(group: Group, keeps: bool) -> ShownGroup:
    figures = []
    for raw in group.members[:MEMBERS]:
        word = say("kept", "保留") if keeps or raw.name in group.kept else say("left out", "去掉")
        is_same_file = raw.digest == group.members[0].digest and raw is not group.members[0]
        same = say(" · the same file", " · 文件完全相同") if is_same_file else ""
        figures.append(raw_figure(raw, f"{size_of(raw)} · {word}{same}"))
    return ShownGroup(figures, len(group.members))


def by_text(outcome: Outcome) -> list[Raw]:
    """Images that may contain text: those where a person is asked, and then the surest, first."""

    def rank(raw: Raw) -> tuple[bool, float]:
        report = outcome.records[raw.name].report
        return not report.get("asks"), -max(box[4] for box in report["text"])

    return sorted((raw for raw in outcome.worked if outcome.records[raw.name].report.get("text")), key=rank)


def shown_text(raw: Raw, report: JsonObject) -> ShownText:
    """Args: report: of `Cleaner.clean`."""
    asks = report.get("asks", [])
    surest = sorted(report["text"], key=lambda box: -box[4])[:3]
    frames = [
        Box(left, top, width, height, f"{sureness:.0%}{'?' if [left, top, width, height, sureness] in asks else ''}")
        for left, top, width, height, sureness in report["text"]
    ]
    return ShownText(raw_figure(raw, "", frames), [region_line(raw, box) for box in surest])


def region_line(raw: Raw, box: list[float]) -> str:
    """A line of a regions file. box: left, top, width, height as shares, and more."""
    return f"{raw.name}: " + ", ".join(f"{100 * share:.1f}%" for share in box[:4])


def rankings(worked: list[Raw]) -> list[Ranking]:
    """The smallest, the most blurred and the noisiest images."""
    if len(worked) < FEWEST_RANKED:
        return []
    kinds = (
        (say("Smallest", "最小"), lambda raw: raw.area, size_of),
        (
            say("Most blurred", "最模糊"),
            lambda raw: -raw.blur,
            lambda raw: say(f"edges {raw.blur:.1f} px wide", f"边缘宽 {raw.blur:.1f} 像素"),
        ),
        (
            say("Noisiest", "噪点最多"),
            lambda raw: -raw.noise,
            lambda raw: say(f"noise {raw.noise:.1f} of 255", f"噪声 {raw.noise:.1f}（满 255）"),
        ),
    )
    count = min(WORST, len(worked) // 2)
    return [
        Ranking(heading, [raw_figure(raw, note(raw)) for raw in sorted(worked, key=key)[:count]])
        for heading, key, note in kinds
    ]


def pairs(outcome: Outcome, output: Path) -> list[Figure]:
    """Before and after; first those whose background a guess removed, then those that changed most."""

    def changed(raw: Raw) -> float:
        report = outcome.records[raw.name].report
        left, top, right, bottom = report.get("trim", (0, 0, 1, 1))
        cut = 1 - (right - left) * (bottom - top)
        return cut + max(report.get("erased", {}).values(), default=0)

    guessed = set(outcome.reporting("guessed"))
    figures: list[Figure] = []
    for raw in sorted(outcome.worked, key=lambda raw: (raw.name not in guessed, -changed(raw), raw.name)):
        report = outcome.records[raw.name].report
        file = next((f for f in report.get("size", {}) if (output / f).exists() and "_face" not in f), None)
        if file is None:
            continue
        left, top, right, bottom = report.get("trim", (0, 0, 1, 1))
        boxes = [Box(left, top, right - left, bottom - top)] if "trim" in report else []
        width, height = report["size"][file]
        note = f"{width} × {height}"
        if file in report.get("erased", {}):
            erased = report["erased"][file]
            note += say(f" · {erased:.0%} not trained", f" · {erased:.0%} 不学习")
        figures += [
            raw_figure(raw, say(f"before: {size_of(raw)}", f"整理前：{size_of(raw)}"), boxes),
            pages.figure_of(output / file, file, say(f"after: {note}", f"整理后：{note}")),
        ]
        if len(figures) >= 2 * PAIRS:
            break
    return figures
