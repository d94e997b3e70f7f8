"""Which epoch to use, from what was measured after each, and how sure that is.

The loss of an epoch is that of the held-out pictures; where regularization images were measured, plus that of these:
the subject must be learnt, and old knowledge must not be lost. It is known picture by picture and timestep by timestep,
each on the same noise in every epoch. So two epochs are compared cell by cell, and what is left of chance is how much
the cells disagree: the standard error of the mean of their differences. Epochs are equal to the one of the lowest loss
if theirs is not above it by more than one standard error, or by a trifle of all that the run has learnt.

The last of the equal ones is recommended: to stop sooner than asked for needs a reason, and with few pictures the
lowest loss is often luck. (The first of them, by the one-standard-error rule of Breiman et al. 1984, "Classification
and Regression Trees", section 3.4.3, and the lowest itself were tried, see docs/log.md.) An epoch that is equal to the
lowest so far is the one recommended so far, and stays it until another is: one file holds the best all along.

Overfitting begins where the loss has risen and stays above the lowest by more than two standard errors and that trifle.
How often the rule is right on over-trained runs of the miniature: docs/laboratory.md.
"""

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any, NamedTuple

from library.messages import plural, say

EQUAL = 1.0  # standard errors within which two epochs cannot be told apart
WORSE = 2.0  # standard errors above which one is worse
NEGLIGIBLE = 0.03  # of what the run has taken off the loss
Rows = list[list[float]]  # a loss of each picture (outer) at each timestep (inner)


class Measurement(NamedTuple):
    """What is known of an epoch, or of the unchanged model as epoch 0."""

    epoch: int
    held_out: Rows
    old: Rows  # of regularization images; there may be none


class Recommendation(NamedTuple):
    """Which epoch to use."""

    epoch: int  # the last of the equal ones
    equal: list[int]  # epochs that cannot be told from the lowest loss, in order
    overfitted_from: int | None  # first epoch from which on all are worse
    epochs: list[int]  # that were measured
    pictures: int  # that were held out
    knows_drift: bool  # whether regularization images were measured, too

    def lines(self) -> list[str]:
        """What to do and how sure it is, in sentences for a person."""
        found = [_which(self)]
        if self.overfitted_from:
            found.append(
                say(
                    f"It overfits from epoch {self.overfitted_from} on: that loss has risen and does not come back "
                    "down.",
                    f"从第 {self.overfitted_from} 轮起已过拟合：上述损失升高后没有再降下来。",
                )
            )
        elif self.equal == self.epochs[-1:] and len(self.epochs) > 1:
            found.append(
                say(
                    "The loss was still falling at the end: more epochs may help.",
                    "到结束时损失仍在下降：再多训练几轮可能更好。",
                )
            )
        found.append(
            say(
                f"Measured on {plural(self.pictures, 'held-out image')}: look at the previews too.",
                f"以上由 {self.pictures} 张未参加训练的图片测得，请结合预览图判断。",
            )
        )
        return found


def _which(found: Recommendation) -> str:
    if len(found.epochs) == 1:
        return say(
            f"Only epoch {found.epoch} has been measured so far, so there is nothing to compare.",
            f"目前只测量了第 {found.epoch} 轮，还无从比较。",
        )
    english, chinese = spans(found.equal), spans(found.equal, "、")
    what_en, what_zh = (
        ("held-out and regularization images", "留出图片与正则化图片")
        if found.knows_drift
        else ("held-out images", "留出图片")
    )
    if len(found.equal) == 1:
        return say(
            f"Use epoch {found.epoch}: its loss on {what_en} is clearly the lowest.",
            f"建议使用第 {found.epoch} 轮：它在{what_zh}上的损失明显最低。",
        )
    return say(
        f"Use epoch {found.epoch}: no other epoch has a clearly lower loss on {what_en}. Epochs {english} can't be "
        "separated by so few images. Later ones have learned more; earlier ones stay closer to the base model.",
        f"建议使用第 {found.epoch} 轮：没有哪一轮在{what_zh}上的损失明显更低。图片太少，第 {chinese} 轮分不出高下，"
        "其中较晚的学得更多，较早的更接近底模。",
    )


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
    for ours, theirs in ((first.held_out, second.held_out), (first.old, second.old)):
        cells = [a - b for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True)]
        total += fmean(cells) if cells else 0.0
        variance += stdev(cells) ** 2 / len(cells) if len(cells) > 1 else 0.0
    return total, math.sqrt(variance)


class Measurements(NamedTuple):
    """What can be compared with one another."""

    unchanged: Measurement | None  # the model without the LoRA
    ends: list[Measurement]  # of epochs, in order


def measurements(validations: list[dict[str, Any]]) -> Measurements:
    """The epochs' ends among the events of run.jsonl; those before a change of what is measured are left out."""

    def extent(event: dict[str, Any]) -> tuple:
        return event["timesteps"], len(event["rows"]["held_out"]), len(event["rows"]["regularization"])

    found: dict[int, Measurement] = {}
    for event in validations:
        if event["ends_epoch"] and extent(event) == extent(validations[-1]):
            epoch = event["epoch"] if event["step"] else 0
            found[epoch] = Measurement(epoch, event["rows"]["held_out"], event["rows"]["regularization"])
    return Measurements(found.get(0), [found[epoch] for epoch in sorted(found) if epoch])


def recommend(validations: list[dict[str, Any]]) -> Recommendation | None:
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
        pictures=len(lowest.held_out),
        knows_drift=bool(lowest.old),
    )


def _is_above(one: Measurement, lowest: Measurement, unchanged: Measurement | None, errors: float) -> bool:
    """Whether an epoch's loss is above the lowest by more than so many standard errors, and by more than a trifle."""
    mean, error = difference(one, lowest)
    learnt = difference(unchanged, lowest)[0] if unchanged else 0.0
    return mean > max(errors * error, NEGLIGIBLE * learnt)


def waited(validations: list[dict[str, Any]]) -> int:
    """How many measurements of epochs there were since the loss was lowest."""
    count, lowest = 0, None
    for one in measurements(validations).ends:
        if lowest is None or difference(one, lowest)[0] < 0:
            count, lowest = 0, one
        else:
            count += 1
    return count
