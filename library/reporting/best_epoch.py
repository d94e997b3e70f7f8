"""Which epoch to use, from what was measured after each, and how sure that is.

The loss of an epoch is that of the held-out images; where regularization images were measured, plus that of these:
the subject must be learnt, and old knowledge must not be lost. It is known image by image and timestep by timestep,
each on the same noise in every epoch. So two epochs are compared cell by cell, and what is left of chance is how much
the cells disagree: the standard error of the mean of their differences. Epochs are equal to the one of the lowest loss
if theirs is not above it by more than one standard error, or by a trifle of all that the run has learnt.

The last of the equal ones is recommended: to stop sooner than asked for needs a reason, and with few images the
lowest loss is often luck. (The first of them, by the one-standard-error rule of Breiman et al. 1984, "Classification
and Regression Trees", section 3.4.3, and the lowest itself were tried, see docs/log.md.) An epoch that is equal to the
lowest so far is the one recommended so far, and stays it until another is: one file holds the best all along.

Overfitting begins where the loss has risen and stays above the lowest by more than two standard errors and that trifle.
How often the rule is right on over-trained runs of the miniature: docs/laboratory.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from library.messages import plural, say

if TYPE_CHECKING:
    from library.reporting.run_log import Event

EQUAL = 1.0  # standard errors within which two epochs cannot be told apart
WORSE = 2.0  # standard errors above which one is worse
NEGLIGIBLE = 0.03  # of what the run has taken off the loss
Rows = list[list[float]]  # a loss of each image (outer) at each timestep (inner)


class Measurement(NamedTuple):
    """What is known of an epoch, or of the unchanged model as epoch 0."""

    epoch: int
    held_out: Rows
    regularization: Rows  # losses of regularization images; there may be none


class Recommendation(NamedTuple):
    """Which epoch to use."""

    epoch: int  # the last of the equal ones
    equal: list[int]  # epochs that cannot be told from the lowest loss, in order
    overfitted_from: int | None  # first epoch from which on all are worse
    epochs: list[int]  # that were measured
    image_count: int  # that were held out
    has_regularization: bool  # whether regularization images were measured, too

    def lines(self) -> list[str]:
        """What to do and how sure it is, in sentences for a person."""
        lines = [_only_one(self.epoch) if len(self.epochs) == 1 else _which(self)]
        if self.overfitted_from:
            lines.append(_overfitted(self.overfitted_from))
        elif self.equal == self.epochs[-1:] and len(self.epochs) > 1:
            lines.append(_still_falling())
        return [*lines, _measured_on(self.image_count)]


def spans(numbers: Iterable[int], comma: str = ", ") -> str:
    """[4, 5, 6, 9] -> "4-6, 9"."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return comma.join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)


def difference(first: Measurement, second: Measurement) -> tuple[float, float]:
    """How much the first's loss is above the second's, and the standard error of that."""
    total = variance = 0.0
    for ours, theirs in ((first.held_out, second.held_out), (first.regularization, second.regularization)):
        cells = [a - b for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True)]
        total += fmean(cells) if cells else 0.0
        variance += stdev(cells) ** 2 / len(cells) if len(cells) > 1 else 0.0
    return total, math.sqrt(variance)


class Measurements(NamedTuple):
    """What can be compared with one another."""

    unchanged: Measurement | None  # the model without the LoRA
    ends: list[Measurement]  # of epochs, in order


def measurements(validations: list[Event]) -> Measurements:
    """The epochs' ends among the events of run.jsonl; those before a change of what is measured are left out."""

    def extent(event: Event) -> tuple[list[int], int, int]:
        return event["timesteps"], len(event["rows"]["held_out"]), len(event["rows"]["regularization"])

    ends: dict[int, Measurement] = {}
    for event in validations:
        if event["ends_epoch"] and extent(event) == extent(validations[-1]):
            epoch = event["epoch"] if event["step"] else 0
            ends[epoch] = Measurement(epoch, event["rows"]["held_out"], event["rows"]["regularization"])
    return Measurements(ends.get(0), [ends[epoch] for epoch in sorted(ends) if epoch])


def recommend(validations: list[Event]) -> Recommendation | None:
    """Which epoch to use; None before the first was measured."""
    unchanged, ends = measurements(validations)
    if not ends:
        return None
    lowest = ends[0]
    for one in ends[1:]:
        if difference(one, lowest)[0] < 0:
            lowest = one
    equal = [one for one in ends if not _is_above(one, lowest, unchanged, EQUAL)]
    worse_from = None
    for one in reversed([one for one in ends if one.epoch > lowest.epoch]):
        if not _is_above(one, lowest, unchanged, WORSE):
            break
        worse_from = one.epoch
    return Recommendation(
        epoch=equal[-1].epoch,
        equal=[one.epoch for one in equal],
        overfitted_from=worse_from,
        epochs=[one.epoch for one in ends],
        image_count=len(lowest.held_out),
        has_regularization=bool(lowest.regularization),
    )


def _is_above(one: Measurement, lowest: Measurement, unchanged: Measurement | None, errors: float) -> bool:
    """Whether an epoch's loss is above the lowest by more than so many standard errors, and by more than a trifle."""
    mean, error = difference(one, lowest)
    learned = difference(unchanged, lowest)[0] if unchanged else 0.0
    return mean > max(errors * error, NEGLIGIBLE * learned)


def epochs_since_lowest(validations: list[Event]) -> int:
    """How many measurements of epochs there were since the loss was lowest."""
    count, lowest = 0, None
    for one in measurements(validations).ends:
        if lowest is None or difference(one, lowest)[0] < 0:
            count, lowest = 0, one
        else:
            count += 1
    return count


# ---- What is said ----


def _which(advice: Recommendation) -> str:
    epoch, english, chinese = advice.epoch, spans(advice.equal), spans(advice.equal, "、")
    what_en, what_zh = (
        ("held-out and regularization images", "留出图片与正则化图片")
        if advice.has_regularization
        else ("held-out images", "留出图片")
    )
    if len(advice.equal) == 1:
        return say(
            f"Use epoch {epoch}: its loss on {what_en} is clearly the lowest.",
            f"建议使用第 {epoch} 轮：它在{what_zh}上的损失明显最低。",
        )
    return say(
        f"Use epoch {epoch}: no other epoch has a clearly lower loss on {what_en}. Epochs {english} can't be separated "
        "by so few images. Later ones have learned more; earlier ones stay closer to the base model.",
        f"建议使用第 {epoch} 轮：没有哪一轮在{what_zh}上的损失明显更低。图片太少，第 {chinese} 轮分不出高下，"
        "其中较晚的学得更多，较早的更接近底模。",
    )


def _only_one(epoch: int) -> str:
    return say(
        f"Only epoch {epoch} has been measured so far, so there is nothing to compare.",
        f"目前只测量了第 {epoch} 轮，还无从比较。",
    )


def _overfitted(first: int) -> str:
    return say(
        f"It overfits from epoch {first} on: that loss has risen and does not come back down.",
        f"从第 {first} 轮起已过拟合：上述损失升高后没有再降下来。",
    )


def _still_falling() -> str:
    return say(
        "The loss was still falling at the end: more epochs may help.",
        "到结束时损失仍在下降：再多训练几轮可能更好。",
    )


def _measured_on(count: int) -> str:
    return say(
        f"Measured on {plural(count, 'held-out image')}: look at the previews too.",
        f"以上由 {count} 张未参加训练的图片测得，请结合预览图判断。",
    )
