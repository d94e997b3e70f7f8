"""Which epoch to use, from what was measured after each, and how sure that is.

The rule. Of every epoch the loss of the held-out pictures is known, picture by picture and timestep by timestep, each
on the same noise in every epoch. So two epochs are compared cell by cell, and what is left of chance is how much the
cells disagree: the standard error of the mean of their differences. Epochs whose loss is not more than one standard
error above the lowest cannot be told from it. Of these the *first* is recommended: what comes after it has not been
shown to draw the subject better, while with every epoch the model strays further from what it knew, and follows the
prompt less. This is the one-standard-error rule (Breiman et al. 1984, "Classification and Regression Trees", section
3.4.3: the simplest model within one standard error of the best), with training time as what is to be kept small.

Overfitting begins where the loss has risen and stays more than two standard errors above the lowest.

Cells are weighed by the unchanged model's loss at their timestep, or noisy ones would decide alone.
"""

import math
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any, NamedTuple

from library.messages import say

EQUAL = 1.0  # standard errors within which two epochs cannot be told apart
WORSE = 2.0  # standard errors above which one is worse
Rows = list[list[float]]  # a loss of each picture (outer) at each timestep (inner)


class Measurement(NamedTuple):
    """What is known of an epoch."""

    epoch: int
    held_out: Rows


class Recommendation(NamedTuple):
    """Which epoch to use."""

    epoch: int
    lowest: int  # epoch of the lowest loss
    equal: list[int]  # epochs that cannot be told from it, in order; `epoch` is the first
    overfitted_from: int | None  # first epoch from which on all are worse
    falls: bool  # whether the lowest is the last: more training might do better
    epochs: list[int]  # that were measured
    pictures: int

    def lines(self) -> list[str]:
        """What to do and how sure it is, in sentences for a person."""
        found = [_which(self)]
        if self.overfitted_from:
            found.append(
                say(
                    f"From epoch {self.overfitted_from} on it is overfitted: it draws pictures that it has not learnt "
                    "worse than before.",
                    f"从第 {self.overfitted_from} 轮起已过拟合：没学过的图片反而越来越不像。",
                )
            )
        elif self.falls and self.epoch == self.epochs[-1]:
            found.append(
                say(
                    "The loss was still falling at the end: more epochs may do better.",
                    "到结束时损失仍在下降：再多训练几轮可能更好。",
                )
            )
        found.append(
            say(
                f"Measured on {self.pictures} picture(s) that were not learnt; so few tell of what they show. Look at "
                "the previews before you decide.",
                f"以上由 {self.pictures} 张未参加训练的图片测得，数量少，只能代表它们自己；请结合预览图判断。",
            )
        )
        return found


def _which(found: Recommendation) -> str:
    others = found.equal[1:]
    if not others:
        return say(
            f"Use epoch {found.epoch}: the loss of the held-out pictures is lowest there, beyond chance.",
            f"建议使用第 {found.epoch} 轮：留出图片的损失在这一轮最低，且超出偶然误差。",
        )
    listed = spans(found.equal)
    return say(
        f"Use epoch {found.epoch}. Epochs {listed} are equal as far as the held-out pictures can tell (lowest loss: "
        f"epoch {found.lowest}); the earliest of them has strayed least from the base model.",
        f"建议使用第 {found.epoch} 轮。就留出图片而言，第 {listed} 轮没有区别（损失最低的是第 {found.lowest} 轮）；"
        "其中最早的一轮偏离底模最少。",
    )


def spans(numbers: Iterable[int]) -> str:
    """[4, 5, 6, 9] -> "4-6, 9"; of epochs measured one after another."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in groups)


def difference(first: Rows, second: Rows, scale: list[float]) -> tuple[float, float]:
    """Mean of first - second over the cells, each divided by its timestep's scale, and its standard error."""
    cells = [
        (a - b) / unit
        for ours, theirs in zip(first, second, strict=True)
        for a, b, unit in zip(ours, theirs, scale, strict=True)
    ]
    return fmean(cells), stdev(cells) / math.sqrt(len(cells)) if len(cells) > 1 else 0.0


def measurements(validations: list[dict[str, Any]]) -> tuple[list[Measurement], list[float]]:
    """The epochs' ends among validations, and the scale of each timestep.

    Args:
        validations: events of run.jsonl. Those before a change of what is measured are left out.
    """
    if not validations:
        return [], []
    times, count = validations[-1]["timesteps"], len(validations[-1]["rows"]["held_out"])
    alike = [one for one in validations if one["timesteps"] == times and len(one["rows"]["held_out"]) == count]
    first = min(alike, key=lambda one: one["step"])["rows"]["held_out"]
    scale = [fmean(column) or 1.0 for column in zip(*first, strict=True)]
    by_epoch = {one["epoch"]: one["rows"]["held_out"] for one in alike if one["step"] and one["ends_epoch"]}
    return [Measurement(epoch, by_epoch[epoch]) for epoch in sorted(by_epoch)], scale


def recommend(validations: list[dict[str, Any]]) -> Recommendation | None:
    """Which epoch to use; None before the first was measured.

    Epochs are taken one after another, and one that has fallen out of the equal ones stays out: so those that are in
    question at any moment are all that must be kept.
    """
    ends, scale = measurements(validations)
    if not ends:
        return None
    lowest, equal = ends[0], [ends[0]]
    for one in ends[1:]:
        if difference(one.held_out, lowest.held_out, scale)[0] < 0:
            lowest = one
        equal = [other for other in [*equal, one] if _is_equal(other, lowest, scale)]
    later = [one for one in ends if one.epoch > lowest.epoch]
    worse_from = None
    for one in reversed(later):
        mean, error = difference(one.held_out, lowest.held_out, scale)
        if mean <= WORSE * error:
            break
        worse_from = one.epoch
    return Recommendation(
        epoch=equal[0].epoch,
        lowest=lowest.epoch,
        equal=[one.epoch for one in equal],
        overfitted_from=worse_from,
        falls=lowest is ends[-1],
        epochs=[one.epoch for one in ends],
        pictures=len(lowest.held_out),
    )


def _is_equal(one: Measurement, lowest: Measurement, scale: list[float]) -> bool:
    mean, error = difference(one.held_out, lowest.held_out, scale)
    return mean <= EQUAL * error


def waited(validations: list[dict[str, Any]]) -> int:
    """How many measurements of epochs there were since the loss was lowest."""
    ends, scale = measurements(validations)
    count, lowest = 0, None
    for one in ends:
        if lowest is None or difference(one.held_out, lowest.held_out, scale)[0] < 0:
            count, lowest = 0, one
        else:
            count += 1
    return count
