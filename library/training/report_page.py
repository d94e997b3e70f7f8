"""The page of a training run: which epoch to use and how, what was learnt, and what to change. One HTML file.

All that changes comes from run.jsonl, so that a run which was interrupted has its whole history, and the page can be
made again from it at any time; what does not change is in `Facts`. While a run goes on the page is written anew after
each epoch, validation, preview and save, and once a minute, but never takes more than COST of the time: what a writing
took decides how long the next one waits. Each section is a function that gives its blocks, none where it has nothing
to say; to add one, write it and name it in `compose`.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from library.messages import plural, say
from library.options import command_line
from library.options.training import Config
from library.reporting import charts, pages
from library.training.caption_mismatch import Ranked, ranked
from library.training.dataset_findings import statistics_of
from library.training.run import Run

COST = 0.005  # share of the time that writing the page may take
EVERY_SECONDS = 60.0  # while nothing but steps happens
PACE_SECONDS = 2.0  # over which the pace is averaged
AT_ONCE_SECONDS = 0.05  # within which steps are told that were read together
MOST_POINTS = 240  # of a curve
MOST_LINES = 4  # of losses by timestep
MOST_MOMENTS = 16  # of previews beside one another
FIRST_TAGS, MOST_TAGS = 12, 60
FIRST_PICTURES = 12  # of the ranking; the others are folded
PAGE_SCRIPT = """
if (document.querySelector("[data-running]"))
  setInterval(() => document.querySelector("details[open]") || location.reload(), 60000);
"""  # not while something is unfolded: that may be being read


# ---- What the page is made of ----


@dataclass
class Facts:
    """What does not change in a run."""

    name: str  # of all its files
    folder: Path  # where they lie
    suffix: str  # of the LoRA files
    config: Config
    step_counts: list[int]  # of each epoch
    measured: int  # pictures that are held out
    line: str  # of base models: "SD 1.x"
    model: str  # file or folder of the base model
    machine: str
    memory: str  # the table of what the run was to hold
    plan: Any  # data.plan.Overview
    words: list[str]  # trigger words
    prompts: list[str]
    tags: list[list[Any]]  # rows: tag, pictures, share, what becomes of it
    tag_count: int
    pictures: dict[str, tuple[Path, str]]  # "10_mytag/003.png" -> its file and caption
    notes: list[str]  # what was said at the start; grows with the run
    command: str

    def epoch_at(self, step: float) -> float:
        """A step as a place among the epochs: 2.5 in the middle of the third."""
        done = 0
        for epoch, count in enumerate(self.step_counts):
            if step <= done + count:
                return epoch + (step - done) / count
            done += count
        return float(len(self.step_counts))

    def over_epochs(self, values: Sequence[tuple[int, float]], most: int) -> list[tuple[float, float]]:
        """Values by step as at most so many points over the epochs."""
        return [(self.epoch_at(step), value) for step, value in charts.thinned(values, most)]


def facts_of(run: Run, memory: str) -> Facts:
    """From what was run.

    Args:
        memory: the table of what the run is to hold.
    """
    from library import families
    from library.data import captions, held_out, plan

    config, planned = run.settings, run.plan
    folders = [folder for folder in planned.found.folders if not folder.is_regularization]
    statistics = statistics_of(planned, config)
    rows = tag_rows(statistics, {folder.name: folder.text.strip() or None for folder in folders}) if statistics else []
    return Facts(
        name=run.name,
        folder=Path(config.output_dir),
        suffix=config.save_model_as,
        config=config,
        step_counts=list(planned.step_counts),
        measured=len(planned.found.validation),
        line=families.facts_of(run.model.family).title,
        model="/".join(run.model.path.resolve().parts[-2 if run.model.path.is_dir() else -1 :]),
        machine=run.machine.description,
        memory=memory,
        plan=plan.overview(planned, config),
        words=sorted({folder.text.strip() for folder in folders} - {""}),
        prompts=[prompt.text for prompt in run.prompts],
        tags=rows,
        tag_count=len(statistics.tags) if statistics else 0,
        pictures={
            f"{one.folder}/{one.image_path.name}": (one.image_path, captions.whole_of(one, config))
            for one in held_out.of_subject(planned.found, config)
        },
        notes=run.notes,
        command=command_line.command(config),
    )


def tag_rows(statistics: Any, words: dict[str, str | None]) -> list[list[Any]]:
    """The most frequent tags, and where the feature of each goes; each judged in the folder where it stands most."""
    from library.data import tag_statistics

    rows = []
    for tag in list(statistics.tags.values())[:MOST_TAGS]:
        folder = max(statistics.folders, key=lambda name, tag=tag: statistics.share(tag, name))
        fate = tag_statistics.fate(statistics, tag, words.get(folder), folder)
        rows.append([tag.text, statistics.count(tag), f"{statistics.share(tag, folder):.0%}", fate])
    return rows


@dataclass
class Told:
    """What run.jsonl tells; `read` takes up what it has grown by."""

    path: Path
    offset: int = 0
    first_time: float = 0.0
    state: str = "running"  # or "stopped", "finished"
    step: int = 0
    file: str = ""  # the final one
    losses: list[tuple[int, float]] = field(default_factory=list)  # step, loss
    rates: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    epochs: dict[int, float] = field(default_factory=dict)  # mean losses
    validations: list[dict] = field(default_factory=list)
    norms: dict[int, dict[str, float]] = field(default_factory=dict)
    previews: list[dict] = field(default_factory=list)
    pictures: dict | None = None
    mishaps: list[str] = field(default_factory=list)
    paces: list[tuple[int, float]] = field(default_factory=list)  # step, seconds of each about there
    timed_from: tuple[int, float] | None = None  # a step and its time, since when nothing but steps happened
    last_time: float = 0.0
    last_kind: str = ""

    def read(self) -> None:
        """Take up the lines that were written since; a line that is not whole yet waits."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                try:
                    event = json.loads(line)
                except ValueError:  # damaged by something else
                    continue
                if isinstance(event, dict) and "event" in event:
                    self._take(event)

    def _take(self, event: dict) -> None:
        kind, now = event["event"], event.get("time", 0.0)
        self.first_time = self.first_time or now
        if kind == "step":
            if self.last_kind == "step" and now - self.last_time > AT_ONCE_SECONDS:
                self._time()
            step = self.step = event["step"]
            self.losses.append((step, event["loss"]))
            for name, rate in event.items():
                if name.startswith("lr/"):
                    self.rates.setdefault(name[3:], []).append((step, rate))
        elif kind == "start":
            self.state = "running"
        elif kind == "epoch":
            self.epochs[event["epoch"]] = event["loss"]
        elif kind == "validation":
            self.validations.append(event)
        elif kind == "norms":
            self.norms[event["epoch"]] = event["blocks"]
        elif kind == "preview":
            self.previews.append(event)
        elif kind == "pictures":
            self.pictures = event
        elif kind == "stopped":
            self.state = "stopped"
        elif kind == "end":
            self.state, self.file = "finished", event["file"]
        elif kind == "skipped":
            self.mishaps.append(
                say(f"step {event['step']} was skipped: NaN or infinity", f"跳过第 {event['step']} 步：NaN 或无穷大")
            )
        elif kind == "out of memory":
            self.mishaps.append(
                say(
                    f"out of memory after step {event['step']}: {event['done']}",
                    f"第 {event['step']} 步后显存不足：{event['done']}",
                )
            )
        if kind != "step":
            self.timed_from = None
        self.last_time, self.last_kind = now, kind

    def _time(self) -> None:
        """The steps up to the last were told, at `last_time`: several at once, as their losses are read so."""
        if self.timed_from is None:
            self.timed_from = self.step, self.last_time
        first, since = self.timed_from
        if self.step > first and self.last_time - since > PACE_SECONDS:
            self.paces.append((self.step, (self.last_time - since) / (self.step - first)))
            self.timed_from = self.step, self.last_time

    @property
    def pace(self) -> float | None:
        """Seconds of a step, without saves, previews and validations; None: not known yet."""
        return median(seconds for _, seconds in self.paces) if self.paces else None


class ReportPage:
    """The page of a run, kept up to date.

    Args:
        path: of the page.
        events: run.jsonl.
        device: whose memory is told, a torch.device.
    """

    def __init__(self, path: Path, events: Path, facts: Facts, device: Any):
        self.path, self.facts, self.device = path, facts, device
        self.told = Told(events)
        self.thumbnails: dict[tuple[Path, str], pages.Html] = {}
        self.news = -1  # how many events other than steps were told when it was written
        self.written = -float("inf")
        self.cost = 0.0  # seconds that writing it took

    def write(self, news: int, *, is_due: bool = False) -> None:
        """Write it, if it is time.

        Args:
            news: how many events other than steps there are.
            is_due: whether it must be, whatever it costs.

        Raises:
            UserError: it cannot be written.
        """
        from library.hardware import memory

        began = time.monotonic()
        waited = began - self.written
        if not is_due and (waited < self.cost / COST or (news == self.news and waited < EVERY_SECONDS)):
            return
        self.told.read()
        pages.write(self.path, compose(self.facts, self.told, self.thumbnail, time.time(), memory.peak(self.device)))
        self.news, self.written = news, time.monotonic()
        self.cost = self.written - began

    def thumbnail(self, path: Path, text: str) -> pages.Html:
        """A small copy of a picture, made once."""
        if (path, text) not in self.thumbnails:
            self.thumbnails[path, text] = pages.image(path, text)
        return self.thumbnails[path, text]


Thumbnail = Callable[[Path, str], pages.Html]


def compose(facts: Facts, told: Told, thumbnail: Thumbnail, now: float, peak: int | None = None) -> str:
    """The whole page.

    Args:
        thumbnail: a small copy of a picture, with words for it.
        now: seconds since 1970.
        peak: bytes of the device that were taken at most; None: not known.
    """
    from library.reporting import best_epoch

    advice = best_epoch.recommend(told.validations)
    sections = [
        which_epoch(facts, told, advice),
        how_to_use(facts, told, advice),
        previews(facts, told, advice, thumbnail),
        curves(facts, told, advice),
        odd_ones(facts, told, thumbnail),
        tags(facts),
        speed(facts, told, peak),
        plan_and_warnings(facts, told),
        again(facts),
    ]
    clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    footer = pages.paragraph(say(f"Written {clock}.", f"生成于 {clock}。"), faint=True)
    script = charts.SCRIPT + pages.CHOICES + PAGE_SCRIPT
    return pages.page(facts.name, *sections, footer, style=charts.STYLE, script=script)


# ---- The sections ----


def which_epoch(facts: Facts, told: Told, advice: Any) -> pages.Html:
    """Where the run stands, and the recommendation with its uncertainty and its file."""
    total, epochs = sum(facts.step_counts), len(facts.step_counts)
    state = {
        "running": say("training", "训练中"),
        "stopped": say("stopped, can be resumed", "已停止，可续训"),
        "finished": say("finished", "已完成"),
    }[told.state]
    tiles = {
        say("state", "状态"): state,
        say("epoch", "轮"): f"{max(1, math.ceil(facts.epoch_at(told.step)))} / {epochs}",
        say("step", "步"): f"{told.step:,} / {total:,}",
    }
    if told.state == "running" and told.pace:
        tiles[say("left, about", "大约还需")] = duration((total - told.step) * told.pace)
    elif told.state == "finished":
        tiles[say("from start to end", "从开始到结束")] = duration(told.last_time - told.first_time)
    trained_on = say(f"A LoRA for {facts.line}, trained on {facts.model}", f"{facts.line} 的 LoRA，底模 {facts.model}")
    running = pages.Html("<span data-running></span>") if told.state == "running" else ""
    return pages.join(
        [pages.paragraph(trained_on, faint=True), running, verdict(facts, told, advice), pages.facts(tiles)]
    )


def verdict(facts: Facts, told: Told, advice: Any) -> pages.Html:
    """Which epoch to use, and why."""
    if not advice:
        return no_verdict(facts, told)
    lines = list(map(pages.paragraph, advice.lines()))
    file = file_of(facts, told, advice.epoch)
    heading = say(f"Epoch {advice.epoch}", f"第 {advice.epoch} 轮")
    if told.state == "running":
        heading = say(f"{heading} so far", f"目前是{heading}")
        lines.append(
            pages.paragraph(say("Training is still running; this may change.", "训练尚未结束，结论可能改变。"))
        )
    if file:
        heading += say(": ", "：") + file.name
        lines.append(pages.paragraph(str(file), faint=True))
    return pages.answer("amber" if advice.overfitted_from else "green", heading, *lines)


def no_verdict(facts: Facts, told: Told) -> pages.Html:
    """Why no epoch is recommended (yet), and what to do in place of it."""
    if told.state == "running":
        first = say("The first measurement comes at the end of an epoch.", "第一次测量在一轮结束时进行。")
        why = first if facts.measured else why_not_measured(facts)
        heading = say("Which epoch to use is not known yet", "还不知道该用哪一轮")
        return pages.answer("green", heading, pages.paragraph(why))
    pick = say(
        "Compare the previews and use the earliest epoch in which the subject is right.",
        "请对比预览图，选用主体已经画对的最早一轮。",
    )
    file = facts.folder / (told.file or f"{facts.name}.{facts.suffix}")
    last = say(f"File of the last epoch: {file}", f"最后一轮的文件：{file}")
    texts = [pages.paragraph(why_not_measured(facts)), pages.paragraph(pick), pages.paragraph(last, faint=True)]
    return pages.answer("amber", say("Choose the epoch from the previews", "请凭预览图选择"), *texts)


def why_not_measured(facts: Facts) -> str:
    """Why there is no validation."""
    if facts.measured:
        return say("No measurement was completed in this run.", "本次训练没有完成任何一次验证。")
    if facts.config.validation_split == "auto":
        count = len(facts.pictures)
        return say(
            f"No images were held out: with only {count}, none can be spared (from 10 on this is automatic). Put "
            "other images of the same subject in validation_data_dir to find the best epoch.",
            f"没有留出图片做验证：总共只有 {count} 张（10 张起自动留出）。可在 validation_data_dir 中另放几张同一主"
            "题的图片，就能测出哪一轮最好。",
        )
    return say(
        "No images were held out (validation_split), so nothing was measured.",
        "没有留出图片（validation_split），因此没有测量。",
    )


def file_of(facts: Facts, told: Told, epoch: int) -> Path | None:
    """The file of the recommended epoch, if it lies there."""
    from library.storage import saves

    names = [f"{facts.name}-best.{facts.suffix}"] if facts.config.keep_best else []  # of the epoch recommended so far
    names.append(saves.file_name(facts.name, facts.suffix, epoch=epoch))
    if told.state == "finished" and epoch == math.ceil(facts.epoch_at(told.step)):
        names.append(told.file)
    return next((facts.folder / name for name in names if (facts.folder / name).exists()), None)


def how_to_use(facts: Facts, told: Told, advice: Any) -> pages.Html:
    """The file in each web UI."""
    file = (advice and file_of(facts, told, advice.epoch)) or facts.folder / f"{facts.name}.{facts.suffix}"
    words = ", ".join(facts.words)
    prompt = ", ".join(filter(None, [f"<lora:{file.stem}:0.8>", words]))
    by_prompt = say(
        f"Copy {file.name} to models/Lora. Start the prompt with:",
        f"把 {file.name} 复制到 models/Lora，提示词以此开头：",
    )
    by_node = say(
        f"Copy {file.name} to models/loras. Add a Load LoRA node after the checkpoint loader, with both strengths "
        "at 0.8. Start the prompt with:",
        f"把 {file.name} 复制到 models/loras。在加载底模的节点后接一个“加载 LoRA”（Load LoRA）节点，"
        "两个强度都填 0.8，提示词以此开头：",
    )
    cards = {
        say("AUTOMATIC1111 and Forge", "AUTOMATIC1111、Forge"): [by_prompt, prompt],
        "ComfyUI": [by_node, words or say("(anything: there is no trigger word)", "（任意内容：没有触发词）")],
    }
    shown = {name: pages.join([pages.paragraph(text), pages.code(typed)]) for name, (text, typed) in cards.items()}
    notes = say(
        "Start with a strength of 0.8: lower it if images get stiff or the prompt is not followed. It works with "
        f"{facts.line} models, best with {facts.model} and its relatives.",
        f"强度可从 0.8 开始，画面僵硬或不听提示词时调低。适用于 {facts.line} 模型，与 {facts.model} 同源的效果最好。",
    )
    if len(facts.words) > 1:
        notes += say(
            " Each word triggers its own concept: use the ones you want.", "每个词对应一个训练目录，按需选用。"
        )
    heading = say("How to use the file", "如何使用")
    return pages.section(heading, pages.cards(shown), pages.paragraph(notes, faint=True))


def previews(facts: Facts, told: Told, advice: Any, thumbnail: Thumbnail) -> pages.Html:
    """The prompts over the epochs, and at the end over the strengths."""
    heading = say("Previews", "预览图")
    if not told.previews:
        never = facts.config.sample_every_n_epochs == 0
        text = say("None yet.", "还没有画。") if told.state == "running" else say("None were generated.", "没有画。")
        asked = say("Previews are off: sample_every_n_epochs = 0.", "未要求画预览图：sample_every_n_epochs = 0。")
        return pages.section(heading, pages.paragraph(asked if never else text, faint=True))
    moments = list({event["step"]: (event, row) for event in told.previews if (row := row_at(event, 1.0))}.values())
    chosen = advice.epoch if advice else None
    shown = evenly(moments, MOST_MOMENTS, lambda one: is_end_of(facts, one[0], chosen))
    about = say(
        "Same prompt, same noise each time: what differs is what was learned.",
        "每次用同一提示词、同一噪声：不同之处就是学到的东西。",
    )
    if len(shown) < len(moments):
        count = len(moments)
        about += say(f" {len(shown)} of {count} times are shown.", f"共 {count} 次，显示其中 {len(shown)} 次。")

    def figures(place: int, prompt: str) -> list[pages.Html]:
        found = []
        for event, row in shown:
            name, is_chosen = moment_name(facts, event), is_end_of(facts, event, chosen)
            image = thumbnail(facts.folder / row[place], f"{prompt} ({name})")
            found.append(pages.figure(image, name, say("use this", "推荐") if is_chosen else "", is_chosen=is_chosen))
        return found

    prompts = facts.prompts[: min(len(row) for _, row in moments)] if moments else []
    rows = [(prompt, figures(place, prompt)) for place, prompt in enumerate(prompts)]
    blocks = [pages.paragraph(about, faint=True), pages.strips(rows)]
    return pages.section(heading, *blocks, strengths(facts, told, thumbnail))


def strengths(facts: Facts, told: Told, thumbnail: Thumbnail) -> pages.Html:
    """The prompts at several strengths, with a slider; nothing where they were drawn at one only."""
    event = next((event for event in reversed(told.previews) if len(event["strengths"]) > 1), None)
    if not event:
        return pages.Html("")
    values = [f"{strength:g}" for strength in event["strengths"]]
    rows = []
    for prompt, files in zip(facts.prompts, zip(*event["files"], strict=True), strict=False):
        images = [thumbnail(facts.folder / file, f"{prompt} ({at})") for file, at in zip(files, values, strict=True)]
        rows.append((prompt, [pages.figure(image, at) for image, at in zip(images, values, strict=True)]))
    about = say(
        f"After {moment_name(facts, event)}, at several strengths; 0 is the base model alone.",
        f"{moment_name(facts, event)}在不同强度下的结果；0 即只有底模。",
    )
    return pages.join(
        [pages.paragraph(about, faint=True), pages.choices(say("LoRA strength", "LoRA 强度"), values, rows)]
    )


def row_at(event: dict, strength: float) -> list[str] | None:
    """The pictures of one strength, by prompt."""
    return next((row for at, row in zip(event["strengths"], event["files"], strict=True) if at == strength), None)


def is_end_of(facts: Facts, event: dict, epoch: int | None) -> bool:
    return facts.epoch_at(event["step"]) == epoch


def moment_name(facts: Facts, event: dict) -> str:
    at = facts.epoch_at(event["step"])
    if event["step"] == 0:
        return say("before", "训练前")
    return (
        say(f"epoch {at:g}", f"第 {at:g} 轮")
        if at == int(at)
        else say(f"step {event['step']}", f"第 {event['step']} 步")
    )


def evenly(moments: list, most: int, must: Callable[[Any], bool]) -> list:
    """At most about so many, the first and the last among them, and those that must be."""
    if len(moments) <= most:
        return moments
    places = {round(at * (len(moments) - 1) / (most - 1)) for at in range(most)}
    return [one for place, one in enumerate(moments) if place in places or must(one)]


# ---- Curves ----


def curves(facts: Facts, told: Told, advice: Any) -> pages.Html:
    """What was measured, over the epochs."""
    mark = worse = None
    if advice and len(advice.epochs) > 1:
        text = say(f"epoch {advice.epoch}", f"第 {advice.epoch} 轮")
        mark, worse = charts.Mark(advice.epoch, text, advice.equal[0], advice.equal[-1]), advice.overfitted_from
    draw = partial(charts.lines_chart, x_name=say("epoch", "轮"), x_range=(0.0, float(len(facts.step_counts))))
    judge = partial(draw, mark=mark, worse_from=worse)
    # in columns of three: the norms are as high as two others
    shown = [loss_chart(facts, told, judge), held_out_chart(facts, told, judge), norm_chart(told)]
    shown += [gap_chart(facts, told, judge), timestep_chart(facts, told, judge), drift_chart(facts, told, judge)]
    shown += [rate_chart(facts, told, draw), pace_chart(facts, told, draw)]
    notes = []
    if mark:
        notes.append(say("Green: the epoch to use, and those just as good.", "绿色：推荐的一轮及与它相当的各轮。"))
    if worse:
        notes.append(say("Amber: overfitted.", "黄色：已过拟合。"))
    if any(shown):
        notes.append(say("Hover over or tap a curve for its values.", "指向或轻触曲线可读数值。"))
    else:
        notes.append(say("Nothing was measured yet.", "还没有数据。"))
    if not facts.measured:
        notes.append(why_not_measured(facts))
    grid = pages.Html(f'<div class="charts">{"".join(shown)}</div>')
    return pages.section(say("Curves", "曲线"), pages.paragraph(say(" ", "").join(notes), faint=True), grid)


Draw = Callable[..., str]  # `charts.lines_chart` with what all share


def loss_chart(facts: Facts, told: Told, draw: Draw) -> str:
    """The training loss, smoothed, and its mean of each epoch."""
    window = max(20, len(told.losses) // 25)
    smooth = charts.smoothed(told.losses, window)[window // 2 :]
    lines = [
        charts.Line(say("step", "单步"), facts.over_epochs(told.losses, MOST_POINTS), 0, is_cloud=True),
        charts.Line(say("smoothed", "平滑"), facts.over_epochs(smooth, MOST_POINTS), 0),
        charts.Line(say("epoch", "每轮"), sorted(told.epochs.items()), 1),
    ]
    return draw(
        say("Training loss", "训练损失"),
        lines,
        y_name=say("noisy by nature; follow the smoothed curve", "噪声随机，单点会波动，请看平滑线"),
        below=say("A falling training loss alone doesn't mean a good epoch.", "损失下降不代表这一轮就好。"),
    )


def over_epochs(facts: Facts, told: Told, value: str) -> list[tuple[float, float]]:
    return [(facts.epoch_at(event["step"]), event[value]) for event in told.validations]


def held_out_chart(facts: Facts, told: Told, draw: Draw) -> str:
    lines = [
        charts.Line(say("held out", "留出"), over_epochs(facts, told, "loss"), 0),
        charts.Line(say("learned", "训练"), over_epochs(facts, told, "training_loss"), 1),
    ]
    return draw(
        say("Held-out images", "留出的图片"),
        lines,
        y_name=say("loss, on the same noise each time", "损失，每次用相同噪声"),
        below=say(
            "Both falling: it is learning. Held-out rising: it is overfitting.", "都下降：在学习；留出的上升：过拟合。"
        ),
    )


def gap_chart(facts: Facts, told: Told, draw: Draw) -> str:
    return draw(
        say("Gap", "差距"),
        [charts.Line(say("gap", "差距"), over_epochs(facts, told, "gap"), 3)],
        with_zero=True,
        y_name=say("held-out loss minus training loss", "留出的损失减训练的损失"),
        below=say("The wider the gap, the more it overfits.", "差距越大，过拟合越严重。"),
    )


def timestep_chart(facts: Facts, told: Told, draw: Draw) -> str:
    return draw(
        say("Held-out loss by timestep", "留出损失，按时间步"),
        timestep_lines(told.validations, [facts.epoch_at(event["step"]) for event in told.validations]),
        tell=charts.percent,
        with_zero=True,
        y_name=say("relative to the unchanged model", "与原底模相比"),
        below=say("High timesteps: composition. Low ones: fine detail.", "高时间步：构图；低时间步：细节。"),
    )


def drift_chart(facts: Facts, told: Told, draw: Draw) -> str:
    points = drift(told.validations, [facts.epoch_at(event["step"]) for event in told.validations])
    return draw(
        say("Drift from the base model", "与底模的偏离"),
        [charts.Line(say("drift", "偏移"), points, 2)],
        tell=charts.percent,
        with_zero=True,
        y_name=say("loss on regularization images, relative to the unchanged model", "正则化图片的损失，与原底模相比"),
        below=say("Above zero: forgetting. Below: learning these too.", "高于零：在遗忘；低于零：连它们也学进去了。"),
    )


def timestep_lines(events: list[dict], at: list[float]) -> list[charts.Line]:
    """The loss of the held-out pictures at each timestep, several joined, as its change from the first measurement."""
    if not events:
        return []
    times = events[-1]["timesteps"]
    alike = [(x, event) for x, event in zip(at, events, strict=True) if event["timesteps"] == times]
    size = -(-len(times) // MOST_LINES)
    lines = []
    for place, start in enumerate(range(0, len(times), size)):
        bins = range(start, min(start + size, len(times)))
        means = [fmean(row[at] for row in event["rows"]["held_out"] for at in bins) for _, event in alike]
        name = str(times[bins[0]]) + (f"-{times[bins[-1]]}" if len(bins) > 1 else "")
        if means[0]:
            points = [(x, mean / means[0] - 1) for (x, _), mean in zip(alike, means, strict=True)]
            lines.append(charts.Line(name, points, place))
    return lines


def drift(events: list[dict], at: list[float]) -> list[tuple[float, float]]:
    """By how much the loss of the regularization pictures has changed, as a share of the unchanged model's."""
    first = next((event for event in events if event["step"] == 0), None)
    if not first or not first["rows"]["regularization"]:
        return []
    before = first["rows"]["regularization"]
    whole = fmean(loss for row in before for loss in row)
    found = []
    for x, event in zip(at, events, strict=True):
        rows = event["rows"]["regularization"]
        if [len(row) for row in rows] == [len(row) for row in before] and whole:
            found.append((x, fmean(loss for row in rows for loss in row) / whole - 1))
    return found


def rate_chart(facts: Facts, told: Told, draw: Draw) -> str:
    """Learning rates; those that are the same share a line."""
    lines: list[charts.Line] = []
    for name, rates in told.rates.items():
        points = facts.over_epochs(rates, MOST_POINTS // 4)
        twin = next((at for at, line in enumerate(lines) if line.points == points), None)
        if twin is None:
            lines.append(charts.Line(name, points, len(lines)))
        else:
            lines[twin] = lines[twin]._replace(name=f"{lines[twin].name}, {name}")
    names = "; ".join(line.name for line in lines)
    return draw(say("Learning rate", "学习率"), lines, with_zero=True, y_name=names if len(lines) == 1 else "")


def pace_chart(facts: Facts, told: Told, draw: Draw) -> str:
    """Seconds of a step: a card that gets hot, or memory that runs short, shows here."""
    points = facts.over_epochs(told.paces, MOST_POINTS // 4)
    return draw(
        say("Seconds per step", "每步秒数"),
        [charts.Line(say("seconds", "秒"), points, 5)],
        with_zero=True,
        y_name=say("saves, previews and validations not counted", "不含保存、预览与验证"),
    )


def norm_chart(told: Told) -> str:
    """What was learnt in each block."""
    epochs = sorted(told.norms)
    if not epochs:
        return ""
    names = {"BASE": say("text encoder", "文本编码器"), "BASE 2": say("text encoder 2", "文本编码器 2")}
    blocks = list(told.norms[epochs[-1]])
    rows = [(names.get(block, block), [told.norms[epoch].get(block, 0.0) for epoch in epochs]) for block in blocks]
    return charts.cells_chart(
        say("Update per block", "各块的更新量"),
        rows,
        [str(epoch) for epoch in epochs],
        x_name=say("epoch", "轮"),
        below=say(
            "Norm of the LoRA's update; the rightmost column is the last epoch. IN, MID, OUT are the U-Net's "
            "blocks, as in block weights.",
            "LoRA 更新量的范数，右侧为最后一轮。IN、MID、OUT 为 U-Net 各块，与分层权重的叫法相同。",
        ),
    )


# ---- What was learnt from, and how ----


def odd_ones(facts: Facts, told: Told, thumbnail: Thumbnail) -> pages.Html:
    """The training pictures, those first whose captions help least."""
    title = say("Training images, possible mismatches first", "训练图片，可疑的在前")
    if not told.pictures:
        later = say("They are ranked after training ends.", "训练结束后排序。")
        never = say("Not ranked: the run was too short to be worth the time.", "未排序：训练太短，不值得花这个时间。")
        return pages.section(title, pages.paragraph(never if told.state == "finished" else later, faint=True))
    found = ranked(told.pictures)
    count, total, odd = len(found), told.pictures["of"], sum(one.is_odd for one in found)
    about = say(
        "How much the caption lowers the image's loss. If it hardly does, the image may show something else, or "
        "the caption may belong to another image.",
        "数值是标注使该图损失降低的比例。几乎没有降低的，可能图不对题，或标注写成了别的图的。",
    )
    if count < total:
        about += say(
            f" {count} of {total} were measured, to save time.",
            f"为省时间，{total} 张中抽测了 {count} 张。",
        )
    if odd:
        text = say(f"{plural(odd, 'image')} worth a look", f"{odd} 张值得检查")
        cure = say(
            "Do image and caption match? Fix the caption or remove the image, and train again.",
            "图与标注一致吗？请改正标注，或去掉该图，然后重新训练。",
        )
        finding = pages.finding("amber", text, cure)
    else:
        finding = pages.finding("green", say("No image stands out.", "没有特别突出的。"))
    figures = [odd_figure(facts, one, thumbnail) for one in found[:FIRST_PICTURES]]
    blocks = [pages.paragraph(about, faint=True), finding, pages.pictures(figures, even=True)]
    if rest := found[FIRST_PICTURES:]:
        head = [say("image", "图片"), say("its caption", "标注作用"), say("caption", "标注")]
        rows = [[one.picture, helps(one), facts.pictures.get(one.picture, (None, ""))[1]] for one in rest]
        blocks.append(pages.folded(say(f"The other {len(rest)}", f"其余 {len(rest)} 张"), pages.table(head, rows)))
    return pages.section(title, *blocks)


def helps(one: Ranked) -> str:
    """What its caption does to a picture's loss."""
    share = abs(one.help)
    return (
        say(f"helps {share:.0%}", f"降低损失 {share:.0%}")
        if one.help >= 0
        else say(f"harms {share:.0%}", f"反升损失 {share:.0%}")
    )


def odd_figure(facts: Facts, one: Ranked, thumbnail: Thumbnail) -> pages.Html:
    path, caption = facts.pictures.get(one.picture, (None, ""))  # it may be another set by now
    image = thumbnail(path, one.picture) if path else pages.Html("")
    name = say(f"caption {helps(one)}", f"标注{helps(one)}")
    if one.is_odd:
        name = pages.Html(f'<span class="amber" style="color:var(--tone)">{pages.html(name)}</span>')
    file = pages.Html(f'<span class="faint">{pages.html(one.picture.rpartition("/")[2])}</span>')
    return pages.figure(image, name, pages.join([caption, pages.Html("<br>"), file]))


def tags(facts: Facts) -> pages.Html:
    """Every tag, and where its feature goes."""
    if not facts.tags:
        return pages.Html("")
    head = [
        say("tag", "标签"),
        say("images", "图片"),
        say("share", "占比"),
        say("where its feature goes", "特征的去向"),
    ]
    about = say(
        "What a tag describes stays on that tag; what no tag describes goes to the trigger word.",
        "标签描述的特征留在该标签上；没有标签描述的归到触发词上。",
    )
    more = facts.tag_count - len(facts.tags)
    first, others = facts.tags[:FIRST_TAGS], facts.tags[FIRST_TAGS:]
    blocks = [pages.paragraph(about, faint=True), pages.table(head, first)]
    if others:
        rest = (
            [pages.paragraph(say(f"and {more:,} rarer ones", f"另有 {more:,} 个更少见的"), faint=True)] if more else []
        )
        folded = pages.join([pages.table(head, others), *rest])
        blocks.append(pages.folded(say(f"{len(others)} more", f"其余 {len(others)} 个"), folded))
    return pages.section(say("Where did this feature go?", "这个特征去哪儿了？"), *blocks)


def speed(facts: Facts, told: Told, peak: int | None) -> pages.Html:
    """How fast it was, and what it held."""
    tiles = {}
    if told.pace:
        tiles[say("s/step", "秒/步")] = f"{told.pace:.3g}"
    if peak:
        tiles[say("peak memory", "内存峰值")] = f"{peak / 2**30:.2f} GiB"
    return pages.section(
        say("Speed and memory", "速度与内存"),
        pages.facts(tiles) if tiles else "",
        pages.paragraph(facts.machine),
        pages.folded(say("Memory plan", "内存计划"), pages.code(facts.memory)),
    )


def plan_and_warnings(facts: Facts, told: Told) -> pages.Html:
    """Folders, buckets, steps, and what was said at the start and on the way."""

    def table(rows: list[list[str]]) -> pages.Html:
        head, *body = rows
        return pages.table(head, [[int(cell) if cell.isdecimal() else cell for cell in row] for row in body])

    notes = [pages.finding(getattr(line, "level", "amber"), line) for line in [*told.mishaps, *facts.notes]]
    if not notes:
        notes = [pages.finding("green", say("No problems found.", "没有发现问题。"))]
    count = len(facts.plan.buckets) - 1
    buckets = pages.folded(say(f"{plural(count, 'bucket')}", f"{count} 个桶"), table(facts.plan.buckets))
    lines = map(pages.paragraph, facts.plan.lines)
    return pages.section(say("Plan and warnings", "计划与提示"), *notes, table(facts.plan.folders), *lines, buckets)


def again(facts: Facts) -> pages.Html:
    """The command that trains the same."""
    about = say(
        "The same images and this command give the same LoRA. It contains no keys or passwords.",
        "图片不变，用这条命令得到同样的 LoRA；其中不含密钥和密码。",
    )
    heading = say("Reproduce this run", "重复这次训练")
    return pages.section(heading, pages.paragraph(about, faint=True), pages.code(facts.command))


def duration(seconds: float) -> str:
    """12 s, 4 min, 1 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return say(f"{seconds:.0f} s", f"{seconds:.0f} 秒")
    if minutes < 90:
        return say(f"{minutes} min", f"{minutes} 分钟")
    return say(f"{minutes // 60} h {minutes % 60:02} min", f"{minutes // 60} 小时 {minutes % 60:02} 分")
