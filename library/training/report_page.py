"""The page of a training run: which epoch to use and how, what was learnt, and what to change. One HTML file.

All that changes comes from run.jsonl (`report_history`), so the page can be made again from it at any time; what does
not change is in `report_facts`. While a run goes on the page is written anew after each epoch, validation, preview and
save, and once a minute, but never takes more than COST of the time: what a writing took decides how long the next one
waits. Each section is a NamedTuple and the function that fills it; to add one, name it in `content_of`, and show it in
templates/report.html.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from library.messages import say
from library.options.checks import is_delivered
from library.reporting import best_epoch, pages
from library.reporting.best_epoch import Recommendation
from library.reporting.charts import Chart
from library.reporting.pages import Figure
from library.training.caption_mismatch import Ranked, ranked
from library.training.invocation import invocation
from library.training.report_charts import curves
from library.training.report_facts import Facts, TagRow
from library.training.report_history import History

if TYPE_CHECKING:
    import torch

    from library.reporting.run_log import Event

COST = 0.005  # share of the time that writing the page may take
EVERY_SECONDS = 60.0  # while nothing but steps happens
MOST_MOMENTS = 16  # of previews beside one another
FIRST_TAGS = 12  # the others are folded
FIRST_IMAGES = 12  # of the ranking; the others are folded

Thumbnail = Callable[[Path], str]  # the address of a small copy of an image


class ReportPage:
    """The page of a run, kept up to date.

    Args:
        path: of the page.
        events: run.jsonl.
        device: whose memory is told.
    """

    def __init__(self, path: Path, events: Path, facts: Facts, device: torch.device):
        self.path, self.facts, self.device = path, facts, device
        self.history = History(events)
        self.thumbnail = cache(pages.thumbnail)  # previews stay as they are
        self.event_count = -1  # of events other than steps, when it was written
        self.written = -float("inf")
        self.seconds = 0.0  # that writing it took

    def write(self, event_count: int, *, is_due: bool = False) -> None:
        """Write it, if it is time.

        Args:
            event_count: how many events other than steps there are.
            is_due: whether it must be, whatever it costs.

        Raises:
            UserError: it cannot be written.
        """
        from library.hardware import memory

        began = time.monotonic()
        waited = began - self.written
        is_new = event_count != self.event_count or waited >= EVERY_SECONDS
        if not is_due and (waited < self.seconds / COST or not is_new):
            return
        self.history.read()
        peak = None if self.device is None else memory.peak(self.device)
        pages.write(self.path, compose(self.facts, self.history, self.thumbnail, time.time(), peak))
        self.event_count, self.written = event_count, time.monotonic()
        self.seconds = self.written - began


# ---- What is on the page ----


class Answer(NamedTuple):
    """What the page is there to say, above all else."""

    level: str  # a key of findings.LEVELS: its colour
    heading: str
    lines: list[str]
    file: str  # which to use, in small letters


class Usage(NamedTuple):
    """How to use the LoRA."""

    file: str
    prompt: str  # in AUTOMATIC1111
    trigger_words: str
    notes: list[str]  # what cannot be typed


class PreviewRow(NamedTuple):
    """A prompt, drawn several times."""

    prompt: str
    figures: list[Figure]


class Previews(NamedTuple):
    """The prompts over the epochs."""

    rows: list[PreviewRow]
    shown_count: int  # times that are shown
    count: int  # times that they were drawn
    reason_for_none: str


class Strengths(NamedTuple):
    """The prompts at several strengths, at one time."""

    moment: str
    values: list[str]
    rows: list[PreviewRow]


class RankedImage(NamedTuple):
    """A training image with what its caption does."""

    figure: Figure
    help: str
    is_odd: bool
    caption: str
    file: str


class Ranking(NamedTuple):
    """The training images, those first whose captions help least."""

    images: list[RankedImage]  # the first
    others: list[tuple[str, str, str]]  # file, what its caption does, caption
    count: int
    total: int  # images of which these are a part
    odd_count: int


class Table(NamedTuple):
    head: list[str]
    rows: list[list[str | int]]


class Report(NamedTuple):
    """What templates/report.html shows."""

    name: str
    family: str
    model: str
    is_running: bool
    is_finished: bool
    answer: Answer
    progress: dict[str, str]
    usage: Usage
    is_of_miniature: bool  # no other program can use it
    trigger_word_count: int
    previews: Previews
    strengths: Strengths | None
    curves: list[Chart]
    marks_epoch: bool  # in the curves
    marks_overfitting: bool
    reason_for_no_validation: str  # "": there is one
    ranking: Ranking | None
    tags: list[TagRow]
    first_tags: int
    tag_count: int
    speed: dict[str, str]
    machine: str
    memory: str
    notes: list[str]
    folders: Table
    plan: list[str]
    buckets: Table
    command: str
    written: str  # when


def compose(facts: Facts, history: History, thumbnail: Thumbnail, now: float, peak: int | None = None) -> str:
    """The whole page.

    Args:
        now: seconds since 1970.
        peak: bytes of the device that were taken at most; None: not known.
    """
    return pages.render("report.html", content_of(facts, history, thumbnail, now, peak))


def content_of(facts: Facts, history: History, thumbnail: Thumbnail, now: float, peak: int | None) -> Report:
    advice = best_epoch.recommend(history.validations)
    is_compared = bool(advice and len(advice.epochs) > 1)
    return Report(
        name=facts.name,
        family=facts.family,
        model=facts.model,
        is_running=history.state == "running",
        is_finished=history.state == "finished",
        answer=answer(facts, history, advice),
        progress=progress(facts, history),
        usage=usage(facts, history, advice),
        is_of_miniature=is_delivered("pretrained_model_name_or_path", facts.settings.pretrained_model_name_or_path),
        trigger_word_count=len(facts.trigger_words),
        previews=previews(facts, history, advice, thumbnail),
        strengths=strengths(facts, history, thumbnail),
        curves=curves(facts, history, advice),
        marks_epoch=is_compared,
        marks_overfitting=bool(is_compared and advice and advice.overfitted_from),
        reason_for_no_validation="" if facts.held_out_count else why_not_measured(facts),
        ranking=ranking(facts, history.captions_compared, thumbnail) if history.captions_compared else None,
        tags=facts.tags,
        first_tags=FIRST_TAGS,
        tag_count=facts.tag_count,
        speed=speed(history, peak),
        machine=facts.machine,
        memory=facts.memory,
        notes=[*history.incidents, *facts.notes],
        folders=table(facts.plan.folders),
        plan=facts.plan.lines,
        buckets=table(facts.plan.buckets),
        command=facts.command,
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
    )


# ---- Where the run stands, and which epoch to use ----


def progress(facts: Facts, history: History) -> dict[str, str]:
    """Where the run stands."""
    states = {
        "running": say("training", "训练中"),
        "stopped": say("stopped, can be resumed", "已停止，可续训"),
        "finished": say("finished", "已完成"),
    }
    tiles = {
        say("state", "状态"): states[history.state],
        say("epoch", "轮"): f"{max(1, math.ceil(facts.epoch_at(history.step)))} / {facts.epoch_count}",
        say("step", "步"): f"{history.step:,} / {facts.step_count:,}",
    }
    if history.state == "running" and history.seconds_per_step:
        left = (facts.step_count - history.step) * history.seconds_per_step
        tiles[say("left, about", "大约还需")] = duration(left)
    elif history.state == "finished":
        tiles[say("from start to end", "从开始到结束")] = duration(history.last_time - history.first_time)
    return tiles


def duration(seconds: float) -> str:
    """12 s, 4 min, 1 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return say(f"{seconds:.0f} s", f"{seconds:.0f} 秒")
    if minutes < 90:
        return say(f"{minutes} min", f"{minutes} 分钟")
    return say(f"{minutes // 60} h {minutes % 60:02} min", f"{minutes // 60} 小时 {minutes % 60:02} 分")


def answer(facts: Facts, history: History, advice: Recommendation | None) -> Answer:
    """Which epoch to use, and why."""
    if not advice:
        return no_answer(facts, history)
    lines = advice.lines()
    file = file_of(facts, history, advice.epoch)
    heading = say(f"Epoch {advice.epoch}", f"第 {advice.epoch} 轮")
    if history.state == "running":
        heading = say(f"{heading} so far", f"目前是{heading}")
        lines.append(say("Training is still running; this may change.", "训练尚未结束，结论可能改变。"))
    if file:
        heading += say(": ", "：") + file.name
    return Answer("amber" if advice.overfitted_from else "green", heading, lines, str(file or ""))


def no_answer(facts: Facts, history: History) -> Answer:
    """Why no epoch is recommended (yet), and what to do in place of it."""
    if history.state == "running":
        first = say("The first measurement comes at the end of an epoch.", "第一次测量在一轮结束时进行。")
        why = first if facts.held_out_count else why_not_measured(facts)
        return Answer("green", say("Which epoch to use is not known yet", "还不知道该用哪一轮"), [why], "")
    pick = say(
        "Compare the previews and use the earliest epoch in which the subject is right.",
        "请对比预览图，选用主体已经画对的最早一轮。",
    )
    file = facts.folder / (history.final_file or f"{facts.name}.{facts.suffix}")
    last = say(f"File of the last epoch: {file}", f"最后一轮的文件：{file}")
    return Answer(
        "amber", say("Choose the epoch from the previews", "请凭预览图选择"), [why_not_measured(facts), pick], last
    )


def why_not_measured(facts: Facts) -> str:
    """Why there is no validation."""
    if facts.held_out_count:
        return say("No measurement was completed in this run.", "本次训练没有完成任何一次验证。")
    if facts.settings.validation_split == "auto":
        return too_few_to_hold_out(len(facts.images))
    return say(
        "No images were held out (validation_split), so nothing was measured.",
        "没有留出图片（validation_split），因此没有测量。",
    )


def file_of(facts: Facts, history: History, epoch: int) -> Path | None:
    """The file of the recommended epoch, if it is there."""
    from library.storage import saves

    names = [f"{facts.name}-best.{facts.suffix}"] if facts.settings.keep_best else []  # of the one recommended so far
    names.append(saves.file_name(facts.name, facts.suffix, epoch=epoch))
    if history.state == "finished" and epoch == math.ceil(facts.epoch_at(history.step)):
        names.append(history.final_file)
    return next((facts.folder / name for name in names if (facts.folder / name).exists()), None)


def usage(facts: Facts, history: History, advice: Recommendation | None) -> Usage:
    file = (advice and file_of(facts, history, advice.epoch)) or facts.folder / f"{facts.name}.{facts.suffix}"
    return Usage(file.name, *invocation(file.stem, facts.trigger_words, facts.settings.weighted_captions))


# ---- Previews ----


def previews(facts: Facts, history: History, advice: Recommendation | None, thumbnail: Thumbnail) -> Previews:
    """The prompts over the epochs, at full strength."""
    if not history.previews:
        return Previews([], 0, 0, why_no_previews(facts, history))
    moments = list({event["step"]: event for event in history.previews if files_at(event, 1.0)}.values())
    recommended = advice.epoch if advice else None
    shown = evenly(moments, MOST_MOMENTS, lambda event: is_end_of(facts, event, recommended))
    rows = [(event, files_at(event, 1.0) or []) for event in shown]

    def figure(event: Event, file: str, prompt: str) -> Figure:
        is_recommended = is_end_of(facts, event, recommended)
        name, note = moment_name(facts, event), say("use this", "推荐") if is_recommended else ""
        return Figure(
            thumbnail(facts.folder / file), name, note, description=f"{prompt} ({name})", is_recommended=is_recommended
        )

    prompts = facts.prompts[: min((len(files) for _, files in rows), default=0)]
    drawn = [
        PreviewRow(prompt, [figure(event, files[place], prompt) for event, files in rows])
        for place, prompt in enumerate(prompts)
    ]
    return Previews(drawn, len(shown), len(moments), "")


def why_no_previews(facts: Facts, history: History) -> str:
    if facts.settings.sample_every_n_epochs == 0:
        return say("Previews are off: sample_every_n_epochs = 0.", "未要求画预览图：sample_every_n_epochs = 0。")
    if history.state == "running":
        return say("None yet.", "还没有画。")
    return say("None were generated.", "没有画。")


def strengths(facts: Facts, history: History, thumbnail: Thumbnail) -> Strengths | None:
    """The prompts at several strengths; None where they were drawn at one only."""
    event = next((event for event in reversed(history.previews) if len(event["strengths"]) > 1), None)
    if not event:
        return None
    values = [f"{strength:g}" for strength in event["strengths"]]
    rows = []
    for prompt, files in zip(facts.prompts, zip(*event["files"], strict=True), strict=False):
        figures = [
            Figure(thumbnail(facts.folder / file), value, description=f"{prompt} ({value})")
            for file, value in zip(files, values, strict=True)
        ]
        rows.append(PreviewRow(prompt, figures))
    return Strengths(moment_name(facts, event), values, rows)


def files_at(event: Event, strength: float) -> list[str] | None:
    """The images of one strength, by prompt."""
    return next((files for at, files in zip(event["strengths"], event["files"], strict=True) if at == strength), None)


def is_end_of(facts: Facts, event: Event, epoch: int | None) -> bool:
    return facts.epoch_at(event["step"]) == epoch


def moment_name(facts: Facts, event: Event) -> str:
    if event["step"] == 0:
        return say("before", "训练前")
    epoch = facts.epoch_at(event["step"])
    if epoch == int(epoch):
        return say(f"epoch {epoch:g}", f"第 {epoch:g} 轮")
    return say(f"step {event['step']}", f"第 {event['step']} 步")


def evenly(events: list[Event], most: int, must: Callable[[Event], bool]) -> list[Event]:
    """At most about so many, the first and the last among them, and those that must be."""
    if len(events) <= most:
        return events
    places = {round(at * (len(events) - 1) / (most - 1)) for at in range(most)}
    return [one for place, one in enumerate(events) if place in places or must(one)]


# ---- What was learnt from, and how ----


def ranking(facts: Facts, compared: Event, thumbnail: Thumbnail) -> Ranking:
    images = ranked(compared)
    first, others = images[:FIRST_IMAGES], images[FIRST_IMAGES:]
    return Ranking(
        images=[ranked_image(facts, one, thumbnail) for one in first],
        others=[(one.image, caption_help(one), caption_of(facts, one)) for one in others],
        count=len(images),
        total=compared["of"],
        odd_count=sum(one.is_odd for one in images),
    )


def ranked_image(facts: Facts, one: Ranked, thumbnail: Thumbnail) -> RankedImage:
    image = facts.images.get(one.image)  # it may be another set by now
    return RankedImage(
        figure=Figure(thumbnail(image.path) if image else "", description=one.image),
        help=caption_help(one),
        is_odd=one.is_odd,
        caption=caption_of(facts, one),
        file=one.image.rpartition("/")[2],
    )


def caption_of(facts: Facts, one: Ranked) -> str:
    return facts.images[one.image].caption if one.image in facts.images else ""


def caption_help(one: Ranked) -> str:
    """What its caption does to an image's loss."""
    share = abs(one.help)
    if one.help >= 0:
        return say(f"helps {share:.0%}", f"降低损失 {share:.0%}")
    return say(f"harms {share:.0%}", f"反升损失 {share:.0%}")


def speed(history: History, peak: int | None) -> dict[str, str]:
    """How fast it was, and what it held at most."""
    tiles = {}
    if history.seconds_per_step:
        tiles[say("s/step", "秒/步")] = f"{history.seconds_per_step:.3g}"
    if peak:
        tiles[say("peak memory", "内存峰值")] = f"{peak / 2**30:.2f} GiB"
    return tiles


def table(rows: Sequence[Sequence[str]]) -> Table:
    """A table of the plan, with its numbers as numbers."""
    head, *body = rows
    return Table(list(head), [[int(cell) if cell.isdecimal() else cell for cell in row] for row in body])


# ---- Long texts ----


def too_few_to_hold_out(count: int) -> str:
    return say(
        f"No images were held out: with only {count}, none can be spared (from 10 on this is automatic). Put "
        "other images of the same subject in validation_data_dir to find the best epoch.",
        f"没有留出图片做验证：总共只有 {count} 张（10 张起自动留出）。可在 validation_data_dir 中另放几张同一主"
        "题的图片，就能测出哪一轮最好。",
    )
