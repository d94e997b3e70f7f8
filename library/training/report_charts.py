"""The curves of a run, over the epochs, each with how to read it. To add one: a function, named in `curves`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from library.messages import say
from library.reporting import charts
from library.reporting.best_epoch import Recommendation
from library.reporting.charts import Chart, Line
from library.training.report_facts import Facts
from library.training.report_history import History

if TYPE_CHECKING:
    from library.reporting.run_log import Event

MOST_POINTS = 240  # of a curve
MOST_LINES = 4  # of losses by timestep

Draw = Callable[..., Chart | None]  # `charts.lines_chart` with what all share


def curves(facts: Facts, history: History, advice: Recommendation | None) -> list[Chart]:
    """All of which something is known, in columns of three: the norms are as high as two others."""
    draw = partial(charts.lines_chart, x_name=say("epoch", "轮"), x_range=(0.0, float(facts.epoch_count)))
    judge: Draw = draw
    if advice and len(advice.epochs) > 1:
        text = say(f"epoch {advice.epoch}", f"第 {advice.epoch} 轮")
        mark = charts.Mark(advice.epoch, text, advice.equal[0], advice.equal[-1])
        judge = partial(draw, mark=mark, worse_from=advice.overfitted_from)
    drawn = (
        loss_chart(facts, history, judge),
        held_out_chart(facts, history, judge),
        norm_chart(history),
        gap_chart(facts, history, judge),
        timestep_chart(facts, history, judge),
        drift_chart(facts, history, judge),
        rate_chart(facts, history, draw),
        time_chart(facts, history, draw),
    )
    return [chart for chart in drawn if chart]


def loss_chart(facts: Facts, history: History, draw: Draw) -> Chart | None:
    """The training loss, smoothed, and its mean of each epoch."""
    window = max(20, len(history.losses) // 25)
    smooth = charts.smoothed(history.losses, window)[window // 2 :]
    lines = [
        Line(say("step", "单步"), facts.over_epochs(history.losses, MOST_POINTS), 0, is_cloud=True),
        Line(say("smoothed", "平滑"), facts.over_epochs(smooth, MOST_POINTS), 0),
        Line(say("epoch", "每轮"), sorted(history.epoch_losses.items()), 1),
    ]
    return draw(
        say("Training loss", "训练损失"),
        lines,
        y_name=say("noisy by nature; follow the smoothed curve", "噪声随机，单点会波动，请看平滑线"),
        below=say("A falling training loss alone doesn't mean a good epoch.", "损失下降不代表这一轮就好。"),
    )


def measured(facts: Facts, history: History, value: str) -> list[tuple[float, float]]:
    """What each validation says of one value, over the epochs."""
    return [(facts.epoch_at(event["step"]), event[value]) for event in history.validations]


def held_out_chart(facts: Facts, history: History, draw: Draw) -> Chart | None:
    lines = [
        Line(say("held out", "留出"), measured(facts, history, "loss"), 0),
        Line(say("learned", "训练"), measured(facts, history, "training_loss"), 1),
    ]
    return draw(
        say("Held-out images", "留出的图片"),
        lines,
        y_name=say("loss, on the same noise each time", "损失，每次用相同噪声"),
        below=say(
            "Both falling: it is learning. Held-out rising: it is overfitting.", "都下降：在学习；留出的上升：过拟合。"
        ),
    )


def gap_chart(facts: Facts, history: History, draw: Draw) -> Chart | None:
    return draw(
        say("Gap", "差距"),
        [Line(say("gap", "差距"), measured(facts, history, "gap"), 3)],
        with_zero=True,
        y_name=say("held-out loss minus training loss", "留出的损失减训练的损失"),
        below=say("The wider the gap, the more it overfits.", "差距越大，过拟合越严重。"),
    )


def timestep_chart(facts: Facts, history: History, draw: Draw) -> Chart | None:
    return draw(
        say("Held-out loss by timestep", "留出损失，按时间步"),
        timestep_lines(facts, history.validations),
        format_value=charts.percent,
        with_zero=True,
        y_name=say("relative to the unchanged model", "与原底模相比"),
        below=say("High timesteps: composition. Low ones: fine detail.", "高时间步：构图；低时间步：细节。"),
    )


def drift_chart(facts: Facts, history: History, draw: Draw) -> Chart | None:
    return draw(
        say("Drift from the base model", "与底模的偏离"),
        [Line(say("drift", "偏移"), drift(facts, history.validations), 2)],
        format_value=charts.percent,
        with_zero=True,
        y_name=say("loss on regularization images, relative to the unchanged model", "正则化图片的损失，与原底模相比"),
        below=say("Above zero: forgetting. Below: learning these too.", "高于零：在遗忘；低于零：连它们也学进去了。"),
    )


def timestep_lines(facts: Facts, validations: list[Event]) -> list[Line]:
    """The loss of the held-out images at each timestep, several joined, as its change from the first measurement."""
    if not validations:
        return []
    times = validations[-1]["timesteps"]
    alike = [event for event in validations if event["timesteps"] == times]
    size = -(-len(times) // MOST_LINES)
    lines = []
    for place, start in enumerate(range(0, len(times), size)):
        bins = range(start, min(start + size, len(times)))
        means = [fmean(row[at] for row in event["rows"]["held_out"] for at in bins) for event in alike]
        name = str(times[bins[0]]) + (f"-{times[bins[-1]]}" if len(bins) > 1 else "")
        if means[0]:
            points = zip(alike, means, strict=True)
            changes = [(facts.epoch_at(event["step"]), mean / means[0] - 1) for event, mean in points]
            lines.append(Line(name, changes, place))
    return lines


def drift(facts: Facts, validations: list[Event]) -> list[tuple[float, float]]:
    """By how much the loss of the regularization images has changed, as a share of the unchanged model's."""
    unchanged = next((event for event in validations if event["step"] == 0), None)
    if not unchanged or not unchanged["rows"]["regularization"]:
        return []
    before = unchanged["rows"]["regularization"]
    mean_before = fmean(loss for row in before for loss in row)
    points = []
    for event in validations:
        rows = event["rows"]["regularization"]
        if [len(row) for row in rows] == [len(row) for row in before] and mean_before:
            change = fmean(loss for row in rows for loss in row) / mean_before - 1
            points.append((facts.epoch_at(event["step"]), change))
    return points


def rate_chart(facts: Facts, history: History, draw: Draw) -> Chart | None:
    """Learning rates; those that are the same share a line."""
    lines: list[Line] = []
    for name, rates in history.rates.items():
        points = facts.over_epochs(rates, MOST_POINTS // 4)
        twin = next((at for at, line in enumerate(lines) if line.points == points), None)
        if twin is None:
            lines.append(Line(name, points, len(lines)))
        else:
            lines[twin] = lines[twin]._replace(name=f"{lines[twin].name}, {name}")
    names = "; ".join(line.name for line in lines)
    return draw(say("Learning rate", "学习率"), lines, with_zero=True, y_name=names if len(lines) == 1 else "")


def time_chart(facts: Facts, history: History, draw: Draw) -> Chart | None:
    """Seconds of a step: a GPU that gets hot, or memory that runs short, shows here."""
    points = facts.over_epochs(history.step_seconds, MOST_POINTS // 4)
    return draw(
        say("Seconds per step", "每步秒数"),
        [Line(say("seconds", "秒"), points, 5)],
        with_zero=True,
        y_name=say("saves, previews and validations not counted", "不含保存、预览与验证"),
    )


def norm_chart(history: History) -> Chart | None:
    """What was learnt in each block."""
    epochs = sorted(history.norms)
    if not epochs:
        return None
    names = {"BASE": say("text encoder", "文本编码器"), "BASE 2": say("text encoder 2", "文本编码器 2")}
    blocks = list(history.norms[epochs[-1]])
    rows = [(names.get(block, block), [history.norms[epoch].get(block, 0.0) for epoch in epochs]) for block in blocks]
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
