"""Learning rate schedules by name. To add one: add a row to SHAPES.

A shape gives the factor of the learning rate after the warmup, from the share of the way that lies behind (0 to 1 and
beyond). The warmup itself is a straight line from 0, the same for all. Shapes are those of diffusers and transformers,
so a run here moves like one in sd-scripts; a test compares them.
"""

import ast
import difflib
import importlib
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from library.messages import UserError, plural, say
from library.optim.optimizers import Settings

POLYNOMIAL_END = 1e-7  # learning rate at which "polynomial" ends


class Course(NamedTuple):
    """All that a shape may want to know."""

    step_count: int
    warmup_step_count: int
    learning_rate: float  # of the group
    cycles: int = 1  # of "cosine_with_restarts", "cosine_with_min_lr" and the end of "warmup_stable_decay"
    power: float = 1.0  # of "polynomial"
    decay_step_count: int = 0  # of "warmup_stable_decay"
    lowest: float = 0.0  # share of the learning rate at which the latter two end
    timescale: int | None = None  # steps of "inverse_sqrt"; None: as many as the warmup has

    def share(self, step: int) -> float:
        """How much of the way after the warmup lies behind at a step: 0 at its end, 1 at the last step."""
        return (step - self.warmup_step_count) / max(1, self.step_count - self.warmup_step_count)


def _cosine_with_restarts(step: int, course: Course) -> float:
    share = course.share(step)
    return 0.5 * (1 + math.cos(math.pi * (course.cycles * share % 1))) if share < 1 else 0.0


def _polynomial(step: int, course: Course) -> float:
    end = min(1.0, POLYNOMIAL_END / course.learning_rate)
    return end + (1 - end) * max(0.0, 1 - course.share(step)) ** course.power


def _cosine_with_min_lr(step: int, course: Course) -> float:
    factor = 0.5 * (1 + math.cos(math.pi * course.cycles * course.share(step)))
    return course.lowest + (1 - course.lowest) * factor if course.share(step) < 1 else course.lowest


def _warmup_stable_decay(step: int, course: Course) -> float:
    """Hägele et al. 2024, arXiv:2405.18392: stays up, and comes down only at the end."""
    share = (step - course.step_count + course.decay_step_count) / max(1, course.decay_step_count)
    if share < 0:
        return 1.0
    factor = 0.5 * (1 + math.cos(math.pi * course.cycles * share)) if share < 1 else 0.0
    return course.lowest + (1 - course.lowest) * factor


def _inverse_sqrt(step: int, course: Course) -> float:
    timescale = (
        course.timescale or course.warmup_step_count or 10_000
    )  # steps after which the rate has fallen to 1 / sqrt(2)
    return math.sqrt(timescale / (step - course.warmup_step_count + timescale))


SHAPES: dict[str, Callable[[int, Course], float]] = {
    "constant": lambda step, course: 1.0,
    "constant_with_warmup": lambda step, course: 1.0,
    "linear": lambda step, course: max(0.0, 1 - course.share(step)),
    "cosine": lambda step, course: 0.5 * (1 + math.cos(math.pi * min(1.0, course.share(step)))),
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
}
RISES_FROM_LOWEST = {"warmup_stable_decay"}  # its warmup begins there; all others' at 0


def build(
    name: str,
    optimizer: Optimizer,
    *,
    step_count: int,
    warmup: int | float | str = 0,
    cycles: int = 1,
    power: float = 1.0,
    decay: int | float | str = 0,
    lowest: float | None = None,
    timescale: int | None = None,
    path: str | None = None,
    args: Settings | None = None,
) -> LRScheduler:
    """The schedule of that name; call its `step()` after each step of the optimizer.

    Args:
        name: a key of SHAPES, or "adafactor", which shows the rate that Adafactor sets itself. An optimizer that sets
            its rate itself always gets that one (its notice says so).
        optimizer: its groups' learning rates are those at the factor 1.
        step_count: of the whole run, in optimizer steps.
        warmup, decay: see `step_count_of`.
        cycles, power, lowest, timescale: see Course; None means its default.
        path: "package.module.Class" of another schedule, in place of `name`; it gets the optimizer and `args`.
        args: also "step_rules" of "piecewise_constant", "1:100,0.1:200,0.01": the factor up to each step, and then.

    Raises:
        UserError: there is no such schedule, or the warmup does not fit.
    """
    sets_its_own_rate = bool(optimizer.param_groups[0].get("relative_step"))
    if path:
        return _other(path, optimizer, args or {})
    if "train_mode" in optimizer.param_groups[0]:  # schedule-free
        return LambdaLR(optimizer, lambda step: 1.0)
    if sets_its_own_rate:
        from transformers.optimization import AdafactorSchedule  # slow to import, and only this needs it

        return AdafactorSchedule(optimizer)
    if name == "adafactor":
        raise UserError(_not_for_this_optimizer())
    if name not in SHAPES and name != "piecewise_constant":
        names = [*SHAPES, "piecewise_constant"]
        near = difflib.get_close_matches(name, names, 1)
        hint = say(f" Did you mean {near[0]}?", f"是否想写 {near[0]}？") if near else ""
        raise UserError(
            say(
                f"lr_scheduler = {name}: there is no such schedule.{hint} There are: {', '.join(names)}.",
                f"lr_scheduler = {name}：没有这种调度。{hint}可用：{'、'.join(names)}。",
            )
        )
    warmup_steps = step_count_of("lr_warmup_steps", warmup, step_count)
    decay_steps = step_count_of("lr_decay_steps", decay, step_count)
    if warmup_steps + decay_steps > step_count:
        raise UserError(_longer_than_the_run(warmup, decay, step_count))
    if name == "piecewise_constant":
        return LambdaLR(optimizer, _pieces(str((args or {}).get("step_rules", ""))))
    if name == "constant" and warmup_steps:
        raise UserError(_constant_has_no_warmup(warmup))
    return LambdaLR(
        optimizer,
        [
            _factor(
                SHAPES[name],
                Course(step_count, warmup_steps, group["lr"], cycles, power, decay_steps, lowest or 0.0, timescale),
                rises_from=(lowest or 0.0) if name in RISES_FROM_LOWEST else 0.0,
            )
            for group in optimizer.param_groups
        ],
    )


def advance(schedule: LRScheduler, done: int) -> None:
    """Bring a schedule that was just built to where it stands after so many steps.

    Raises:
        UserError: it does not reach so far.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of")  # that the optimizer has made no step yet
        try:
            for _ in range(done):
                schedule.step()
        except ValueError as error:  # OneCycleLR beyond its end
            name = type(schedule).__name__
            raise UserError(
                say(
                    f"lr_scheduler_type: {name} cannot go on after step {done}: {error}",
                    f"lr_scheduler_type：{name} 无法从第 {done} 步继续：{error}",
                )
            ) from error


def step_count_of(option: str, value: int | float | str, step_count: int) -> int:
    """Steps of the warmup or the decay, from 100 (steps), 0.05 (share of all steps) or "5%".

    Args:
        option: its name, for messages.

    Raises:
        UserError: not understood, or so long that the learning rate would never reach its value.
    """
    steps, is_understood = 0, False
    with suppress(ValueError, SyntaxError, TypeError):
        text = str(value).strip()
        number = ast.literal_eval(text.removesuffix("%"))
        share = number / 100 if text.endswith("%") else number if isinstance(number, float) and number < 1 else None
        steps = int(share * step_count) if share is not None else int(number)
        is_understood = steps >= 0 and (share is not None or steps == number)
    if not is_understood:
        raise UserError(
            say(
                f'{option} = {value} is not understood. Use steps (100), a share of all steps (0.05) or "5%".',
                f'{option} = {value} 无法识别。请填步数（100）、占总步数的比例（0.05）或 "5%"。',
            )
        )
    if steps >= step_count:
        raise UserError(_never_reached(option, value, steps, step_count))
    return steps


def _pieces(rules: str) -> Callable[[int], float]:
    """ "1:10,0.1:20,0.01" -> factor 1 before step 10, 0.1 before step 20, then 0.01; as diffusers reads it."""
    *earlier, last = rules.split(",")
    try:
        ends = sorted((int(end), float(factor)) for factor, end in (rule.split(":") for rule in earlier))
        final = float(last)
    except ValueError:
        raise UserError(_rules_not_understood(rules)) from None
    return lambda step: next((factor for end, factor in ends if step < end), final)


def _other(path: str, optimizer: Optimizer, args: Settings) -> LRScheduler:
    """The schedule of a class given by its import path; a bare name is one of torch.optim.lr_scheduler."""
    module, _, name = path.rpartition(".")
    module = module or "torch.optim.lr_scheduler"
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            say(
                f"lr_scheduler_type = {path} cannot be imported ({error}). Install its package, or correct the path",
                f"lr_scheduler_type = {path} 无法导入（{error}）。请安装相应的包，或改正路径",
            )
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, LRScheduler)) or issubclass(kind, ReduceLROnPlateau):
        raise UserError(
            say(
                f"lr_scheduler_type = {path} is no schedule of torch that moves with the steps alone",
                f"lr_scheduler_type = {path} 不是仅随步数变化的 torch 调度器",
            )
        )
    try:
        return kind(optimizer, **args)
    except (TypeError, ValueError) as error:
        raise UserError(
            say(f"lr_scheduler_args: {name}: {error}", f"lr_scheduler_args：{name} 不接受：{error}")
        ) from error


def _factor(shape: Callable[[int, Course], float], course: Course, rises_from: float = 0.0) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < course.warmup_step_count:
            return rises_from + (1 - rises_from) * step / course.warmup_step_count
        return shape(step, course)

    return factor


# ---- What is said ----


def _not_for_this_optimizer() -> str:
    return say(
        "lr_scheduler = adafactor shows the learning rate that Adafactor sets itself, and this optimizer "
        "does not. Use optimizer_type = Adafactor (without relative_step=False), or another schedule.",
        "lr_scheduler = adafactor 只用于显示 Adafactor 自行决定的学习率，当前优化器并不如此。请使用 "
        "optimizer_type = Adafactor（不加 relative_step=False），或换一种调度。",
    )


def _longer_than_the_run(warmup: int | float | str, decay: int | float | str, step_count: int) -> str:
    return say(
        f"lr_warmup_steps = {warmup} and lr_decay_steps = {decay} are more than the "
        f"{plural(step_count, 'step')} of the "
        "run. Lower one of them.",
        f"lr_warmup_steps = {warmup} 与 lr_decay_steps = {decay} 之和超过总步数 {step_count}，请调小其中一个。",
    )


def _constant_has_no_warmup(warmup: int | float | str) -> str:
    return say(
        f"lr_scheduler = constant has no warmup, but lr_warmup_steps = {warmup}. Use lr_scheduler = "
        "constant_with_warmup, or lr_warmup_steps = 0.",
        f"lr_scheduler = constant 没有预热，但 lr_warmup_steps = {warmup}。请用 lr_scheduler = "
        "constant_with_warmup，或设 lr_warmup_steps = 0。",
    )


def _never_reached(option: str, value: int | float | str, steps: int, step_count: int) -> str:
    return say(
        f"{option} = {value} ({plural(steps, 'step')}) is not less than the {plural(step_count, 'step')} of "
        "the run: "
        "the learning rate would never reach its value. Lower it, or train longer.",
        f"{option} = {value}（{steps} 步）不小于总步数 {step_count}，学习率永远达不到设定值。请调小，或训练更久。",
    )


def _rules_not_understood(rules: str) -> str:
    return say(
        f'lr_scheduler = piecewise_constant: step_rules "{rules}" is not understood. Write lr_scheduler_args = '
        "[\"step_rules='1:100,0.1:200,0.01'\"]: factor 1 up to step 100, 0.1 up to step 200, then 0.01.",
        f'lr_scheduler = piecewise_constant：step_rules "{rules}" 无法识别。请写 lr_scheduler_args = '
        "[\"step_rules='1:100,0.1:200,0.01'\"]：前 100 步系数为 1，到 200 步为 0.1，之后为 0.01。",
    )
