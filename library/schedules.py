"""Learning rate schedules by name. To add one: add a row to SHAPES.

A shape gives the factor of the learning rate after the warmup, from the share of the way that lies behind (0 to 1 and
beyond). The warmup itself is a straight line from 0, the same for all. Shapes are those of diffusers and transformers,
so a run here moves like one in sd-scripts; a test compares them.
"""

import ast
import difflib
import math
from collections.abc import Callable
from typing import NamedTuple

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from library.messages import UserError, say

POLYNOMIAL_END = 1e-7  # learning rate at which "polynomial" ends


class Course(NamedTuple):
    """All that a shape may want to know."""

    step_count: int
    warmup_step_count: int
    cycles: int  # of "cosine_with_restarts"
    power: float  # of "polynomial"
    learning_rate: float  # of the group

    def share(self, step: int) -> float:
        """How much of the way after the warmup lies behind at a step: 0 at its end, 1 at the last step."""
        return (step - self.warmup_step_count) / max(1, self.step_count - self.warmup_step_count)


def _cosine_with_restarts(step: int, course: Course) -> float:
    share = course.share(step)
    return 0.5 * (1 + math.cos(math.pi * (course.cycles * share % 1))) if share < 1 else 0.0


def _polynomial(step: int, course: Course) -> float:
    end = min(1.0, POLYNOMIAL_END / course.learning_rate)
    return end + (1 - end) * max(0.0, 1 - course.share(step)) ** course.power


def _inverse_sqrt(step: int, course: Course) -> float:
    timescale = course.warmup_step_count or 10_000  # steps after which the rate has fallen to 1 / sqrt(2)
    return math.sqrt(timescale / (step - course.warmup_step_count + timescale))


SHAPES: dict[str, Callable[[int, Course], float]] = {
    "constant": lambda step, course: 1.0,
    "constant_with_warmup": lambda step, course: 1.0,
    "linear": lambda step, course: max(0.0, 1 - course.share(step)),
    "cosine": lambda step, course: 0.5 * (1 + math.cos(math.pi * min(1.0, course.share(step)))),
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
}


def build(
    name: str,
    optimizer: Optimizer,
    *,
    step_count: int,
    warmup: int | float | str = 0,
    cycles: int = 1,
    power: float = 1.0,
) -> LRScheduler:
    """The schedule of that name; call its `step()` after each step of the optimizer.

    Args:
        name: a key of SHAPES, or "adafactor", which shows the rate that Adafactor sets itself. An optimizer that sets
            its rate itself always gets that one (its notice says so).
        optimizer: its groups' learning rates are those at the factor 1.
        step_count: of the whole run, in optimizer steps.
        warmup: see `warmup_step_count`.
        cycles: of "cosine_with_restarts".
        power: of "polynomial".

    Raises:
        UserError: there is no such schedule, or the warmup does not fit.
    """
    sets_its_own_rate = bool(optimizer.param_groups[0].get("relative_step"))
    if sets_its_own_rate:
        from transformers.optimization import AdafactorSchedule  # slow to import, and only this needs it

        return AdafactorSchedule(optimizer)
    if name == "adafactor":
        raise UserError(
            say(
                "lr_scheduler = adafactor shows the learning rate that Adafactor sets itself, and this optimizer does "
                "not. Take optimizer_type = Adafactor (without relative_step=False), or another schedule.",
                "lr_scheduler = adafactor 只用于显示 Adafactor 自行决定的学习率，当前优化器并不如此。请使用 "
                "optimizer_type = Adafactor（不加 relative_step=False），或换一种调度。",
            )
        )
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, 1)
        hint = say(f" Did you mean {near[0]}?", f"是否想写 {near[0]}？") if near else ""
        raise UserError(
            say(
                f"lr_scheduler = {name}: there is no such schedule.{hint} There are: {', '.join(SHAPES)}.",
                f"lr_scheduler = {name}：没有这种调度。{hint}可用：{'、'.join(SHAPES)}。",
            )
        )
    warmup_steps = warmup_step_count(warmup, step_count)
    if name == "constant" and warmup_steps:
        raise UserError(
            say(
                f"lr_scheduler = constant has no warmup, but lr_warmup_steps = {warmup}. Take "
                "lr_scheduler = constant_with_warmup, or lr_warmup_steps = 0.",
                f"lr_scheduler = constant 没有预热，但 lr_warmup_steps = {warmup}。请用 lr_scheduler = "
                "constant_with_warmup，或设 lr_warmup_steps = 0。",
            )
        )
    return LambdaLR(
        optimizer,
        [
            _factor(SHAPES[name], Course(step_count, warmup_steps, cycles, power, group["lr"]))
            for group in optimizer.param_groups
        ],
    )


def warmup_step_count(warmup: int | float | str, step_count: int) -> int:
    """Steps of the warmup, from 100 (steps), 0.05 (share of all steps) or "5%".

    Raises:
        UserError: not understood, or so long that the learning rate would never reach its value.
    """
    try:
        text = str(warmup).strip()
        number = ast.literal_eval(text.removesuffix("%"))
        share = number / 100 if text.endswith("%") else number if isinstance(number, float) and number < 1 else None
        steps = int(share * step_count) if share is not None else int(number)
        is_understood = steps >= 0 and (share is not None or steps == number)
    except (ValueError, SyntaxError, TypeError):
        is_understood = False
    if not is_understood:
        raise UserError(
            say(
                f'lr_warmup_steps = {warmup} is not understood. Give steps (100), a share of all steps (0.05) or "5%".',
                f'lr_warmup_steps = {warmup} 无法识别。请填步数（100）、占总步数的比例（0.05）或 "5%"。',
            )
        )
    if steps >= step_count:
        raise UserError(
            say(
                f"lr_warmup_steps = {warmup} ({steps} steps) is not less than the {step_count} steps of the whole run: "
                "the learning rate would never reach its value. Lower it, or train longer.",
                f"lr_warmup_steps = {warmup}（{steps} 步）不小于总步数 {step_count}，学习率永远达不到设定值。"
                "请调小，或训练更久。",
            )
        )
    return steps


def _factor(shape: Callable[[int, Course], float], course: Course) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < course.warmup_step_count:
            return step / course.warmup_step_count
        return shape(step, course)

    return factor
