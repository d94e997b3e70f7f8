"""The page of a training run: which epoch to use and how, what was learnt, and what to change. One HTML file.

All that changes comes from run.jsonl, so that a run which was interrupted has its whole history, and the page can be
made again from it at any time; what does not change is in `Facts`. While a run goes on the page is written anew after
each epoch, validation, preview and save, and once a minute, but never takes more than COST of the time: what a writing
took decides how long the next one waits. Each section is a function that gives its blocks, none where it has nothing
to say; to add one, write it and name it in `compose`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from library import arguments, charts, page
from library.assembly.odd_pictures import Ranked, ranked
from library.assembly.prepare import Prepared
from library.assembly.set_findings import statistics_of
from library.config import Config
from library.messages import say

COST = 0.005  # share of the time that writing the page may take
EVERY_SECONDS = 60.0  # while nothing but steps happens
MOST_POINTS = 240  # of a curve
MOST_LINES = 4  # of losses by timestep
MOST_MOMENTS = 16  # of previews beside one another
MOST_TAGS = 40
FIRST_PICTURES = 12  # of the ranking; the others are folded
PAGE_SCRIPT = """
if (document.querySelector("[data-running]"))
  setTimeout(() => document.querySelector("details[open]") || location.reload(), 60000);
"""


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
    model: str
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

    def epoch_at(self, step: int) -> float:
        """A step as a place among the epochs: 2.5 in the middle of the third."""
        done = 0
        for epoch, count in enumerate(self.step_counts):
            if step <= done + count:
                return epoch + (step - done) / count
            done += count
        return float(len(self.step_counts))


def facts_of(prepared: Prepared, memory: str) -> Facts:
    """From what was prepared.

    Args:
        memory: the table of what the run is to hold.
    """
    from library import families
    from library.data import captions, plan

    config, planned = prepared.config, prepared.plan
    folders = [folder for folder in planned.found.folders if not folder.is_regularization]
    statistics = statistics_of(planned, config)
    rows = tag_rows(statistics, {folder.name: folder.text.strip() or None for folder in folders}) if statistics else []
    return Facts(
        name=prepared.name,
        folder=Path(config.output_dir),
        suffix=config.save_model_as,
        config=config,
        step_counts=list(planned.step_counts),
        measured=len(planned.found.validation),
        model=families.describe(prepared.model),
        machine=prepared.machine.description,
        memory=memory,
        plan=plan.overview(planned, config),
        words=sorted({folder.text.strip() for folder in folders} - {""}),
        prompts=[prompt.text for prompt in prepared.prompts],
        tags=rows,
        tag_count=len(statistics.tags) if statistics else 0,
        pictures={
            f"{one.folder}/{one.image_path.name}": (one.image_path, captions.whole_of(one, config))
            for one in planned.found.train
        },
        notes=prepared.notes,
        command=arguments.command(config),
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
    seconds: float = 0.0  # spent in steps
    steps_timed: int = 0
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
            step = event["step"]
            if self.last_kind == "step":
                self.seconds += max(0.0, now - self.last_time)
                self.steps_timed += 1
            self.step = step
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
                say(f"step {event['step']} was left out: NaN or infinity", f"跳过第 {event['step']} 步：NaN 或无穷大")
            )
        elif kind == "out of memory":
            self.mishaps.append(
                say(
                    f"memory ran out after step {event['step']}: {event['done']}",
                    f"第 {event['step']} 步后显存不足：{event['done']}",
                )
            )
        self.last_time, self.last_kind = now, kind

    @property
    def pace(self) -> float | None:
        """Seconds of a step, without saves, previews and validations; None: not known yet."""
        return self.seconds / self.steps_timed if self.steps_timed and self.seconds else None


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
        self.thumbnails: dict[Path, page.Html] = {}
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
        from library import memory

        began = time.monotonic()
        waited = began - self.written
        if not is_due and (waited < self.cost / COST or (news == self.news and waited < EVERY_SECONDS)):
            return
        self.told.read()
        page.write(self.path, compose(self.facts, self.told, self.thumbnail, time.time(), memory.peak(self.device)))
        self.news, self.written = news, time.monotonic()
        self.cost = self.written - began

    def thumbnail(self, path: Path, text: str) -> page.Html:
        """A small copy of a picture, made once."""
        if path not in self.thumbnails:
            self.thumbnails[path] = page.image(path, text)
        return self.thumbnails[path]


Thumbnail = Callable[[Path, str], page.Html]


def compose(facts: Facts, told: Told, thumbnail: Thumbnail, now: float, peak: int | None = None) -> str:
    """The whole page.

    Args:
        thumbnail: a small copy of a picture, with words for it.
        now: seconds since 1970.
        peak: bytes of the device that were taken at most; None: not known.
    """
    from library import recommendation

    advice = recommendation.recommend(told.validations)
    sections = [
        which_epoch(facts, told, advice, now),
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
    footer = page.paragraph(say(f"Written {clock}.", f"生成于 {clock}。"), faint=True)
    script = charts.SCRIPT + page.CHOICES + PAGE_SCRIPT
    return page.page(facts.name, *sections, footer, style=charts.STYLE, script=script)


# ---- The sections ----


def which_epoch(facts: Facts, told: Told, advice: Any, now: float) -> page.Html:
    """The recommendation with its uncertainty, the file, and where the run stands."""
    total, epochs = sum(facts.step_counts), len(facts.step_counts)
    at = facts.epoch_at(told.step)
    if told.state == "finished":
        state = say("finished", "已完成")
    elif told.state == "stopped":
        state = say("stopped, can be gone on with", "已停止，可接着训练")
    else:
        state = say("training", "训练中")
    tiles = {
        say("state", "状态"): state,
        say("step", "步"): f"{told.step:,} / {total:,}",
        say("epoch", "轮"): f"{min(epochs, int(at) + (at % 1 > 0)) or 1} / {epochs}",
    }
    left = (total - told.step) * told.pace if told.pace and told.state == "running" else None
    if left is not None:
        tiles[say("left, about", "大约还需")] = duration(left)
    elif told.last_time:
        tiles[say("took", "用时")] = duration(told.last_time - told.first_time)
    running = page.Html("<span data-running></span>") if told.state == "running" else ""
    return page.join([running, page.facts(tiles), verdict(facts, told, advice)])


def verdict(facts: Facts, told: Told, advice: Any) -> page.Html:
    """Which epoch to use."""
    if advice:
        lines = advice.lines()
        file = file_of(facts, told, advice.epoch)
        equal = page.Html("")
        if file:
            equal = page.paragraph(
                page.join([say("File: ", "文件："), page.Html("<code>"), str(file), page.Html("</code>")])
            )
        elif told.state == "running":
            equal = page.paragraph(say("The training goes on: this may change.", "训练尚未结束，结论可能改变。"))
        if told.state == "running":
            heading = say(f"Best so far: epoch {advice.epoch}", f"目前最好：第 {advice.epoch} 轮")
        else:
            heading = say(f"Use epoch {advice.epoch}", f"建议使用第 {advice.epoch} 轮")
        level = "amber" if advice.overfitted_from else "green"
        return page.answer(level, heading, *map(page.paragraph, lines), equal)
    if told.state == "running":
        if facts.measured:
            why = say("The first measurement comes at the end of the first epoch.", "第一轮结束后会做第一次测量。")
        else:
            why = why_not_measured(facts)
        return page.answer(
            "green", say("Which epoch to use is not known yet", "还不知道该用哪一轮"), page.paragraph(why)
        )
    file = facts.folder / (told.file or f"{facts.name}.{facts.suffix}")
    pick = say(
        "Compare the previews below, and take the earliest epoch in which the subject is right.",
        "请对比下面的预览图，选用主体已经画对的最早一轮。",
    )
    heading = say("Choose the epoch by eye", "请凭预览图选择")
    shown = page.join(
        [say("File of the last: ", "最后一轮的文件："), page.Html("<code>"), str(file), page.Html("</code>")]
    )
    return page.answer(
        "amber", heading, page.paragraph(why_not_measured(facts)), page.paragraph(pick), page.paragraph(shown)
    )


def why_not_measured(facts: Facts) -> str:
    """Why there is no validation."""
    if facts.measured:
        return say("No measurement came to its end in this run.", "本次训练没有完成任何一次验证。")
    if facts.config.validation_split == "auto":
        count = len(facts.pictures)
        return say(
            f"No pictures were held out: {count} are too few to miss one (from 10 on it is done by itself). Other pictures "
            "of the same subject in validation_data_dir would tell which epoch is best.",
            f"没有留出图片做验证：只有 {count} 张，一张也不能少（10 张起自动留出）。"
            "可在 validation_data_dir 中另放几张同一主题的图片，就能测出哪一轮最好。",
        )
    return say(
        "No pictures were held out (validation_split), so nothing was measured.",
        "没有留出图片（validation_split），因此没有测量。",
    )


def file_of(facts: Facts, told: Told, epoch: int) -> Path | None:
    """The file of an epoch, if it lies there."""
    from library import checkpoint

    wanted = [facts.folder / checkpoint.file_name(facts.name, facts.suffix, epoch=epoch)]
    if told.state == "finished":
        wanted.insert(0, facts.folder / f"{facts.name}-best.{facts.suffix}")
        if epoch == len(facts.step_counts):
            wanted.append(facts.folder / told.file)
    return next((path for path in wanted if path.exists()), None)


def how_to_use(facts: Facts, told: Told, advice: Any) -> page.Html:
    """The file in each web UI."""
    file = (advice and file_of(facts, told, advice.epoch)) or facts.folder / f"{facts.name}.{facts.suffix}"
    words = ", ".join(facts.words)
    prompt = ", ".join(filter(None, [f"<lora:{file.stem}:0.8>", words]))
    strength = say(
        "0.8 is a strength to begin with; lower it where the picture gets stiff or the prompt is not followed.",
        "强度可从 0.8 开始；画面僵硬或不听提示词时调低。",
    )
    by_prompt = page.join([
        page.paragraph(say(f"Copy {file.name} to models/Lora, and begin the prompt with:",
                           f"把 {file.name} 复制到 models/Lora，提示词以此开头：")),
        page.code(prompt),
        page.paragraph(strength, faint=True),
    ])  # fmt: skip
    by_node = page.join([
        page.paragraph(say(f"Copy {file.name} to models/loras. Put the node Load LoRA behind the checkpoint's, with both "
                           "strengths 0.8, and begin the prompt with:",
                           f"把 {file.name} 复制到 models/loras。在加载模型的节点之后接“Load LoRA（加载 LoRA）”节点，"
                           "两个强度都填 0.8，提示词以此开头：")),
        page.code(words or say("(there is no trigger word)", "（没有触发词）")),
        page.paragraph(strength, faint=True),
    ])  # fmt: skip
    several = (
        say(
            "Each of these words calls up its own folder: take the ones you want.", "每个词对应一个训练目录，按需选用。"
        )
        if len(facts.words) > 1
        else ""
    )
    fits = say(
        f"It works with base models of the line it was trained on: {facts.model}.",
        f"请与同一系列的底模一起使用：{facts.model}。",
    )
    return page.section(
        say("How to use the file", "如何使用"),
        page.cards({"AUTOMATIC1111": by_prompt, "Forge": by_prompt, "ComfyUI": by_node}),
        *([page.paragraph(several)] if several else []),
        page.paragraph(fits, faint=True),
    )


def previews(facts: Facts, told: Told, advice: Any, thumbnail: Thumbnail) -> page.Html:
    """The prompts over the epochs, and at the end over the strengths."""
    if not told.previews:
        if told.state == "running" and facts.config.sample_every_n_epochs != 0:
            text = say("None are drawn yet.", "还没有画。")
        elif facts.config.sample_every_n_epochs == 0:
            text = say(
                "None were asked for (sample_every_n_epochs = 0).", "未要求画预览图（sample_every_n_epochs = 0）。"
            )
        else:
            text = say("None were drawn.", "没有画。")
        return page.section(say("Previews", "预览图"), page.paragraph(text, faint=True))
    moments = [(event, row) for event in told.previews if (row := row_at(event, 1.0))]
    chosen = advice.epoch if advice else None
    shown = evenly(moments, MOST_MOMENTS, lambda one: one[0]["epoch"] == chosen)
    blocks = [
        page.paragraph(
            say(
                "The same prompt and the same noise after different epochs, so that only what was learnt differs.",
                "同一提示词、同一噪声在不同轮次的结果，差别只来自训练。",
            ),
            faint=True,
        )
    ]
    if len(shown) < len(moments):
        blocks.append(
            page.paragraph(say(f"{len(shown)} of {len(moments)} times are shown.", f"共 {len(moments)} 次，显示其中 {len(shown)} 次。"),
                           faint=True)
        )  # fmt: skip
    for place, prompt in enumerate(facts.prompts):
        figures = []
        for event, row in shown:
            if place < len(row):
                name = moment_name(facts, event)
                is_chosen = event["epoch"] == chosen and facts.epoch_at(event["step"]) == chosen
                note = say("recommended", "推荐") if is_chosen else ""
                figure = page.figure(
                    thumbnail(facts.folder / row[place], f"{prompt} ({name})"), name, note, is_chosen=is_chosen
                )
                figures.append(figure)
        if figures:
            blocks += [heading(prompt), page.strip(figures)]
    last = next((event for event in reversed(told.previews) if len(event["strengths"]) > 1), None)
    if last:
        values = [f"{strength:g}" for strength in last["strengths"]]
        rows = []
        for place, prompt in enumerate(facts.prompts):
            own = [row[place] for row in last["files"] if place < len(row)]
            if len(own) == len(values):
                rows.append((
                    prompt,
                    [page.figure(thumbnail(facts.folder / file, f"{prompt} ({value})"), value)
                     for file, value in zip(own, values, strict=True)],
                ))  # fmt: skip
        about = say(
            "The last epoch at several strengths: 0 is the base model alone.",
            "最后一轮在不同强度下的结果；0 即只有底模。",
        )
        blocks += [heading(say("Over the strength", "不同强度")), page.paragraph(about, faint=True)]
        blocks.append(page.choices(say("strength", "强度"), values, rows))
    return page.section(say("Previews", "预览图"), *blocks)


def heading(text: str) -> page.Html:
    return page.Html(f"<h3>{page.html(text)}</h3>")


def row_at(event: dict, strength: float) -> list[str] | None:
    """The pictures of one strength, by prompt."""
    return next((row for at, row in zip(event["strengths"], event["files"], strict=True) if at == strength), None)


def moment_name(facts: Facts, event: dict) -> str:
    at = facts.epoch_at(event["step"])
    if event["step"] == 0:
        return say("before", "训练前")
    if at == int(at):
        return say(f"epoch {int(at)}", f"第 {int(at)} 轮")
    return say(f"step {event['step']}", f"第 {event['step']} 步")


def evenly(moments: list, most: int, must: Callable[[Any], bool]) -> list:
    """At most so many, the first and the last among them, and those that must be."""
    if len(moments) <= most:
        return moments
    places = {round(at * (len(moments) - 1) / (most - 1)) for at in range(most)}
    return [one for place, one in enumerate(moments) if place in places or must(one)]


def curves(facts: Facts, told: Told, advice: Any) -> page.Html:
    """What was measured, over the epochs."""
    mark = worse = None
    if advice and len(advice.epochs) > 1:
        text = say(f"epoch {advice.epoch}", f"第 {advice.epoch} 轮")
        mark = charts.Mark(advice.epoch, text, advice.equal[0], advice.equal[-1])
        worse = advice.overfitted_from
    shown = [
        loss_chart(facts, told, mark),
        *validation_charts(facts, told, mark, worse),
        rate_chart(facts, told),
        norm_chart(told),
    ]
    if not any(shown):
        return page.section(
            say("Curves", "曲线"), page.paragraph(say("Nothing was measured yet.", "还没有数据。"), faint=True)
        )
    blocks = []
    if mark:
        blocks.append(
            page.paragraph(
                say(
                    "Green: the epoch to use, and those that are equal to it. "
                    + ("Amber: overfitted. " if worse else "")
                    + "Point at a curve (or touch it) to read its values.",
                    "绿色：推荐的一轮，以及与它相当的各轮。"
                    + ("黄色：已过拟合。" if worse else "")
                    + "指向或轻触曲线可读取数值。",
                ),
                faint=True,
            )
        )
    if not told.validations:
        blocks.append(
            page.paragraph(why_not_measured(facts) if told.state != "running" or not facts.measured else "", faint=True)
        )
    grid = page.Html(f'<div class="charts">{"".join(shown)}</div>')
    return page.section(say("Curves", "曲线"), *blocks, grid)


EPOCH = ("epoch", "轮")


def loss_chart(facts: Facts, told: Told, mark: Any) -> str:
    """The training loss, smoothed, and its mean of each epoch."""
    every = [(facts.epoch_at(step), loss) for step, loss in told.losses]
    window = max(20, len(every) // 25)
    lines = [
        charts.Line(say("step", "单步"), charts.thinned(every, MOST_POINTS), 0, is_faint=True),
        charts.Line(say("smoothed", "平滑"), charts.thinned(charts.smoothed(every, window), MOST_POINTS), 0),
        charts.Line(say("epoch mean", "每轮平均"), sorted(told.epochs.items()), 1),
    ]
    below = say(
        "It depends on which noise was drawn, so it wobbles; a falling line does not tell a good epoch.",
        "它随抽到的噪声起伏；仅凭它下降不能判断哪一轮好。",
    )
    return charts.lines_chart(say("Training loss", "训练损失"), lines, x_name=say(*EPOCH), mark=mark, below=below)


def validation_charts(facts: Facts, told: Told, mark: Any, worse: int | None) -> list[str]:
    """Held-out and training pictures, their gap, the loss by timestep, and the drift."""
    events = told.validations
    if not events:
        return []
    x_name = say(*EPOCH)
    at = [facts.epoch_at(event["step"]) for event in events]

    def line(name: str, values: list[float], colour: int) -> charts.Line:
        return charts.Line(name, list(zip(at, values, strict=True)), colour)

    both = [
        line(say("held out", "留出"), [event["loss"] for event in events], 0),
        line(say("learnt", "训练"), [event["training_loss"] for event in events], 1),
    ]
    gap = [line(say("gap", "差距"), [event["gap"] for event in events], 3)]
    found = [
        charts.lines_chart(
            say("Held-out pictures", "留出的图片"), both, x_name=x_name, mark=mark, worse_from=worse,
            y_name=say("loss on the same noise each time", "每次用相同噪声测得的损失"),
            below=say("While both fall it learns; when the upper one rises it overfits.", "两条都下降是在学习；留出的一条上升就是过拟合。"),
        ),
        charts.lines_chart(
            say("Gap", "差距"), gap, x_name=x_name, mark=mark, worse_from=worse, with_zero=True,
            y_name=say("held out minus learnt", "留出减训练"),
            below=say("The wider, the more it knows its pictures by heart.", "越大，说明越是死记训练图片。"),
        ),
        charts.lines_chart(
            say("By timestep", "按时间步"), timestep_lines(events, at), x_name=x_name, tell=charts.percent, mark=mark, with_zero=True,
            y_name=say("held-out loss against the unchanged model", "留出损失，与原底模相比"),
            below=say("High timesteps are composition, low ones fine detail.", "高时间步管构图，低时间步管细节。"),
        ),
    ]  # fmt: skip
    if drifted := drift(events, at):
        found.append(
            charts.lines_chart(
                say("Drift of old knowledge", "旧知识的偏移"), [charts.Line(say("drift", "偏移"), drifted, 2)], x_name=x_name,
                tell=charts.percent, mark=mark, with_zero=True,
                y_name=say("loss of regularization pictures against the unchanged model", "正则化图片的损失，与原底模相比"),
                below=say("Above zero it forgets what it knew; below, it learns these pictures too.",
                          "高于零是在遗忘旧知识；低于零是连这些图片也学了。"),
            )
        )  # fmt: skip
    return found


def timestep_lines(events: list[dict], at: list[float]) -> list[charts.Line]:
    """The loss of the held-out pictures at each timestep, several joined, as its change from the first measurement."""
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


def rate_chart(facts: Facts, told: Told) -> str:
    lines = [
        charts.Line(
            name, charts.thinned([(facts.epoch_at(step), rate) for step, rate in points], MOST_POINTS // 2), place
        )
        for place, (name, points) in enumerate(told.rates.items())
    ]
    kept: list[charts.Line] = []
    for line in lines:  # of those that are the same one is enough
        twin = next((at for at, other in enumerate(kept) if other.points == line.points), None)
        if twin is None:
            kept.append(line)
        else:
            kept[twin] = kept[twin]._replace(name=f"{kept[twin].name}, {line.name}")
    return charts.lines_chart(say("Learning rate", "学习率"), kept[:6], x_name=say(*EPOCH), with_zero=True)


def norm_chart(told: Told) -> str:
    """What was learnt in each block."""
    epochs = sorted(told.norms)
    if not epochs:
        return ""
    blocks = list(told.norms[epochs[-1]])
    names = {"BASE": say("text encoder", "文本编码器"), "BASE 2": say("text encoder 2", "文本编码器 2")}
    rows = [(names.get(block, block), [told.norms[epoch].get(block, 0.0) for epoch in epochs]) for block in blocks]
    below = say(
        "Norm of what the LoRA adds. IN, MID, OUT: the U-Net's blocks on the way down, in the middle, on the way up. At the "
        "right: the last epoch.",
        "LoRA 所加更新量的范数。IN、MID、OUT：U-Net 下行、中间、上行各块。右侧数字为最后一轮。",
    )
    chart = charts.cells_chart(
        say("Learnt in each block", "各块学到的量"),
        rows,
        [str(epoch) for epoch in epochs],
        x_name=say(*EPOCH),
        below=below,
    )
    return chart.replace('class="chart"', 'class="chart tall"', 1)


def odd_ones(facts: Facts, told: Told, thumbnail: Thumbnail) -> page.Html:
    """The training pictures, those first whose captions help least."""
    title = say("Training pictures, the odd ones first", "训练图片：可疑的排在前面")
    if not told.pictures:
        if told.state == "finished":
            return page.Html("")
        text = say("They are ranked when the training has ended.", "训练结束后给出排序。")
        return page.section(title, page.paragraph(text, faint=True))
    found = ranked(told.pictures)
    odd = sum(one.is_odd for one in found)
    how = say(
        "By how much each caption lowers the loss of its picture, measured with and without it. Where it hardly helps, the "
        "picture may show something else, or the caption may belong to another.",
        "数值为标签使该图损失降低的比例（分别在有、无标签时测量）。几乎没有帮助时，可能图不对题，或标签张冠李戴。",
    )
    blocks = [page.paragraph(how, faint=True)]
    if len(found) < told.pictures["of"]:
        blocks.append(
            page.paragraph(
                say(
                    f"A sample of {len(found)} of {told.pictures['of']} pictures was measured: all would have taken too long.",
                    f"共 {told.pictures['of']} 张，为节省时间只抽测了 {len(found)} 张。",
                ),
                faint=True,
            )
        )
    if odd:
        text = say(f"{odd} picture(s) are worth a look.", f"有 {odd} 张图片值得检查。")
        blocks.append(page.finding("amber", text, say("Look whether picture and caption agree; correct the caption or leave the picture out, and train anew.",
                                                      "请核对图与标签是否一致：改正标签，或去掉该图，再重新训练。")))  # fmt: skip
    else:
        blocks.append(page.finding("green", say("None stands out from the others.", "没有与众不同的图片。")))

    def figure(one: Ranked) -> page.Html:
        path, caption = facts.pictures.get(one.picture, (None, ""))
        image = thumbnail(path, one.picture) if path else page.Html("")
        helps = f"{one.help:+.0%}".replace("-", "\N{MINUS SIGN}")
        mark = say("worth a look", "值得检查") if one.is_odd else ""
        note = page.join([
            page.Html("<b class=amber style='color:var(--tone)'>" if one.is_odd else "<b>"),
            say(f"caption helps {helps}", f"标签作用 {helps}") + (f" · {mark}" if mark else ""),
            page.Html("</b><br>"), caption, page.Html("<br><span class=faint>"), one.picture, page.Html("</span>"),
        ])  # fmt: skip
        return page.figure(image, "", note)

    blocks.append(page.pictures([figure(one) for one in found[:FIRST_PICTURES]]))
    if rest := found[FIRST_PICTURES:]:
        table = page.table(
            [say("picture", "图片"), say("caption helps", "标签作用"), say("loss", "损失"), say("caption", "标签")],
            [[one.picture, f"{one.help:+.0%}", f"{one.loss:.4f}", facts.pictures.get(one.picture, (None, ""))[1]] for one in rest],
        )  # fmt: skip
        blocks.append(page.folded(say(f"The other {len(rest)}", f"其余 {len(rest)} 张"), table))
    return page.section(title, *blocks)


def tags(facts: Facts) -> page.Html:
    """Every tag, and where its feature goes."""
    if not facts.tags:
        return page.Html("")
    head = [
        say("tag", "标签"),
        say("pictures", "图片"),
        say("share", "占比"),
        say("where the feature goes", "特征归到哪里"),
    ]
    about = say(
        "What a tag describes stays on that tag; what no tag describes goes to your own word.",
        "标签描述的特征留在该标签上；没有标签描述的特征归到触发词上。",
    )
    more = facts.tag_count - len(facts.tags)
    rest = say(f"and {more:,} rarer ones", f"另有 {more:,} 个更少见的") if more > 0 else ""
    first, others = facts.tags[:12], facts.tags[12:]
    blocks = [page.paragraph(about, faint=True), page.table(head, first)]
    if others:
        folded = page.join([page.table(head, others), page.paragraph(rest, faint=True)])
        blocks.append(page.folded(say(f"{len(others)} more", f"其余 {len(others)} 个"), folded))
    return page.section(say("Where did this feature go?", "这个特征去哪儿了？"), *blocks)


def speed(facts: Facts, told: Told, peak: int | None) -> page.Html:
    """How fast it was, and what it held."""
    tiles = {}
    if told.pace:
        batch = facts.config.train_batch_size
        tiles[say("s/step", "秒/步")] = f"{told.pace:.3g}"
        tiles[say("pictures per second, about", "张/秒，约")] = f"{batch / told.pace:.2g}"
    if peak:
        tiles[say("memory at most", "显存峰值")] = f"{peak / 2**30:.2f} GiB"
    if told.last_time:
        tiles[say("since its start", "自开始以来")] = duration(told.last_time - told.first_time)
    machine = page.paragraph(f"{facts.machine}; {facts.model}")
    table = page.folded(say("What it was planned to hold", "内存计划"), page.code(facts.memory.strip("\n")))
    return page.section(say("Speed and memory", "速度与内存"), *([page.facts(tiles)] if tiles else []), machine, table)


def plan_and_warnings(facts: Facts, told: Told) -> page.Html:
    """Folders, buckets, steps, and what was said at the start."""

    def table(rows: list[list[str]]) -> page.Html:
        head, *body = rows
        return page.table(head, [[int(cell) if cell.isdecimal() else cell for cell in row] for row in body])

    blocks = [page.finding(getattr(line, "level", "amber"), line) for line in [*told.mishaps, *facts.notes]]
    if not blocks:
        blocks = [page.finding("green", say("Nothing was found wrong at the start.", "开始时没有发现问题。"))]
    blocks += [table(facts.plan.folders), *map(page.paragraph, facts.plan.lines)]
    blocks.append(
        page.folded(
            say(f"{len(facts.plan.buckets) - 1} bucket(s)", f"{len(facts.plan.buckets) - 1} 个桶"),
            table(facts.plan.buckets),
        )
    )
    return page.section(say("Plan and warnings", "计划与提示"), *blocks)


def again(facts: Facts) -> page.Html:
    """The command that trains the same."""
    about = say(
        "The same pictures and this command give the same LoRA. Keys and passwords are not in it.",
        "图片不变，用这条命令就能得到同样的 LoRA；其中不含密钥和密码。",
    )
    return page.section(
        say("To train the same again", "重复这次训练"), page.paragraph(about, faint=True), page.code(facts.command)
    )


def duration(seconds: float) -> str:
    """1:05:09 h, 4 min, 12 s."""
    seconds = round(seconds)
    if seconds < 90:
        return say(f"{seconds} s", f"{seconds} 秒")
    minutes = round(seconds / 60)
    if minutes < 90:
        return say(f"{minutes} min", f"{minutes} 分钟")
    return say(f"{minutes // 60} h {minutes % 60:02} min", f"{minutes // 60} 小时 {minutes % 60} 分")
