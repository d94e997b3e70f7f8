"""What a run tells while it runs: one line per logged step, the same events in run.jsonl, curves on request.

Losses arrive as tensors and are read only when a line is due: reading one on a GPU waits for all work queued before it.
run.jsonl gets whole lines and survives a kill. A run that goes on from a state cuts the lines of the steps that it does
again; lines that a full disk does not take wait in memory.
"""

import json
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from torch import Tensor
from tqdm import tqdm

from library.files import JsonObject
from library.messages import log, plural, say
from library.reporting.trackers import Tracker

Event = JsonObject  # a line of run.jsonl
Rates = dict[str, float | Tensor | None]  # by group of parameters; None: Adafactor's before its first step

LINE_SECONDS = 10.0  # between two lines where there is no terminal to redraw
READ_SECONDS = 1.0  # at most so long are losses left unread, so a NaN is seen soon
REMEMBERED = 100  # steps that `last_steps` can tell


class NotFinite(FloatingPointError):
    """A loss is NaN or infinite."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class RunLog:
    """Progress of one run.

    Args:
        path: run.jsonl of this run; events are appended, one JSON object per line. Losses stand there with all digits.
        step_count: optimizer steps of the whole run.
        first_step: steps already done, when a run is continued; what the file tells of later ones is cut.
        writer: draws curves, if they are wanted.
        bar: where a progress bar is drawn, see `console.progress_stream`; None: a line is said now and then instead.
    """

    def __init__(
        self,
        path: Path,
        step_count: int,
        *,
        first_step: int = 0,
        writer: Tracker | None = None,
        bar: TextIO | None = None,
    ):
        self.step_count, self.step = step_count, first_step
        self.epoch_losses: list[float] = []
        self.epochs_told = 0  # the last one whose mean stands in the file
        self.news = 0  # events other than steps
        self.validations: list[Event] = []  # all of this run, as events
        self.recent: deque[str] = deque(maxlen=REMEMBERED)
        if path.exists():
            self._go_on(path)
        self.events = path.open("ab", buffering=0)
        self.unwritten = bytearray()
        self.writer = writer
        self.bar = tqdm(total=step_count, initial=first_step, file=bar, disable=bar is None, dynamic_ncols=True)
        self.waiting: list[tuple[int, int, Tensor, Rates]] = []
        self.started = self.last_read = self.last_line = time.monotonic()
        self.first_step = first_step

    def _go_on(self, path: Path) -> None:
        """Cut a line that a kill tore and those of steps after `self.step`; take up the mean of an epoch begun."""
        with path.open("r+b") as file:
            whole = 0
            for line in file:
                event = _parsed(line)
                if not line.endswith(b"\n") or event.get("step", 0) > self.step:
                    break
                whole += len(line)
                if event.get("event") == "step":
                    self.epoch_losses.append(event["loss"])
                    self.recent.append(line.decode().rstrip())
                elif event.get("event") == "epoch":
                    self.epoch_losses, self.epochs_told = [], event["epoch"]
                elif event.get("event") == "validation":
                    self.validations.append(event)
            file.truncate(whole)

    def event(self, kind: str, **values: object) -> None:
        """One line of run.jsonl: {"event": kind, "time": seconds since 1970, ...}."""
        line = json.dumps({"event": kind, "time": round(time.time(), 3), **values}, ensure_ascii=False)
        if kind == "step":
            self.recent.append(line)
        else:
            self.news += 1
        self.unwritten += line.encode() + b"\n"
        with suppress(OSError):  # `flush` and `close` tell
            self._write()

    def _write(self) -> None:
        while self.unwritten:  # a disk that gets full takes a part
            del self.unwritten[: self.events.write(self.unwritten)]

    def flush(self) -> None:
        """Read what waits and bring all lines to the disk: a state must not know of steps that run.jsonl does not.

        Raises:
            OSError: the disk is full, or the like; the lines wait, and the next call tries again.
            NotFinite: see `losses`.
        """
        self.read()
        self._write()
        os.fsync(self.events.fileno())

    def last_steps(self, count: int) -> list[str]:
        """The lines of the last steps whose losses have been read, oldest first; for the report of a crash."""
        return list(self.recent)[-count:]

    def losses(self, epoch: int, step: int, loss: Tensor, learning_rates: Rates) -> None:
        """Take note of a step; its loss (a scalar tensor) is read when a line is due.

        Raises:
            NotFinite: a loss that is not finite; it names the step.
        """
        self.step = step
        self.waiting.append((epoch, step, loss, learning_rates))
        self.bar.update(1)
        if time.monotonic() - self.last_read > READ_SECONDS or step == self.step_count:
            self.read()

    def skipped(self, epoch: int, step: int) -> None:
        """Take note of a step whose batch was left out."""
        self.read()
        self.step = step
        self.event("skipped", epoch=epoch, step=step)
        self.bar.update(1)

    def read(self) -> None:
        """Read the losses that wait, write them down and show the last."""
        if not self.waiting:
            return
        for epoch, step, loss, learning_rates in self.waiting:
            value = float(loss)
            self.epoch_losses.append(value)
            rates = {f"lr/{name}": float(rate) for name, rate in learning_rates.items() if rate is not None}
            self.event("step", epoch=epoch, step=step, loss=value, **rates)
            if self.writer:
                for name, number in {"loss/current": value, "loss/average": self.average(), **rates}.items():
                    self.writer.add_scalar(name, number, step)
            if value != value or value in (float("inf"), float("-inf")):
                self.waiting = []
                raise NotFinite(step, say(f"the loss of step {step} is {value}", f"第 {step} 步的损失是 {value}"))
        self.waiting = []
        self.last_read = time.monotonic()
        self.bar.set_postfix_str(f"loss {self.average():.4f}")
        if self.bar.disable and (self.last_read - self.last_line > LINE_SECONDS or step in (1, self.step_count)):
            self.last_line = self.last_read
            seconds_per_step = (time.monotonic() - self.started) / max(1, step - self.first_step)
            log.info(_progress_line(epoch, step, self.step_count, self.average(), seconds_per_step))

    def average(self) -> float:
        """Mean loss of this epoch so far: a single step's loss says little, its timesteps differ."""
        return sum(self.epoch_losses) / len(self.epoch_losses) if self.epoch_losses else float("nan")

    def epoch_end(self, epoch: int) -> None:
        """Write down the epoch's mean loss and begin a new one."""
        self.read()
        if epoch > self.epochs_told:  # a state of an epoch's last step is older than the epoch's end
            self.event("epoch", epoch=epoch, step=self.step, loss=self.average())
            if self.writer and self.epoch_losses:
                self.writer.add_scalar("loss/epoch_average", self.average(), epoch)
        self.epoch_losses, self.epochs_told = [], epoch

    def is_validated(self, step: int) -> bool:
        """Whether a validation after this step is told already."""
        return any(event["step"] == step for event in self.validations)

    def validation(self, epoch: int, step: int, by: str, values: Event | None = None) -> None:
        """Write down a validation, show it, and draw its curves, with sd-scripts' names.

        Args:
            step: 0: of the unchanged model.
            by: "epoch" or "step": what the curves run over.
            values: loss, training_loss, gap and more, as `validation.Measured` has them; None: those told last.
        """
        if values:
            self.event("validation", epoch=epoch, step=step, **values)
            self.validations.append(dict(epoch=epoch, step=step, **values))
            log.info(_validation_line(step, values))
        if self.writer:
            at, last = epoch if by == "epoch" else step, self.validations[-1]
            self.writer.add_scalar(f"loss/validation/{by}_average", last["loss"], at)
            self.writer.add_scalar(f"loss/validation/{by}_divergence", last["gap"], at)

    def close(self) -> None:
        """Read what waits and close the files."""
        try:
            self.read()
            with suppress(OSError):
                self._write()
        finally:
            self.bar.close()
            self.events.close()
            if self.unwritten:
                log.info(_lacks_lines(self.events.name, self.unwritten.count(b"\n")))
            if self.writer:
                self.writer.close()


def _parsed(line: bytes) -> Event:
    """The event of a line; an empty one where something else damaged the line."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


# ---- what is said ----


def _progress_line(epoch: int, step: int, step_count: int, loss: float, seconds_per_step: float) -> str:
    left = round(seconds_per_step * (step_count - step))
    width = len(str(step_count))
    return say(
        f"step {step:{width}}/{step_count}  epoch {epoch:2}  loss {loss:.4f}  "
        f"{seconds_per_step:.3f} s/step  left {left // 60}:{left % 60:02}",
        f"步 {step:{width}}/{step_count}  轮 {epoch:2}  损失 {loss:.4f}  "
        f"{seconds_per_step:.3f} 秒/步  剩余 {left // 60}:{left % 60:02}",
    )


def _validation_line(step: int, values: Event) -> str:
    loss, beside, gap = (values[name] for name in ("loss", "training_loss", "gap"))
    return say(
        f"validation {f'after step {step}' if step else 'of the unchanged model'}: loss {loss:.4f}, of "
        f"training images {beside:.4f}, gap {gap:+.4f}",
        f"{f'第 {step} 步后的验证' if step else '训练前底模的验证'}：损失 {loss:.4f}，"
        f"训练图片的损失 {beside:.4f}，差距 {gap:+.4f}",
    )


def _lacks_lines(name: str, count: int) -> str:
    return say(
        f"{name} lacks its last {plural(count, 'line')}: the disk could not be written",
        f"{name} 缺少最后 {count} 行：磁盘无法写入",
    )
