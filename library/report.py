"""What a run tells while it runs: one line per logged step, the same events in run.jsonl, TensorBoard on request.

Losses arrive as tensors and are read only when a line is due: reading one on a GPU waits for all work queued before it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from tqdm import tqdm

from library.messages import UserError, say

LINE_SECONDS = 10.0  # between two lines where there is no terminal to redraw
READ_SECONDS = 1.0  # at most so long are losses left unread, so a NaN is seen soon


class Report:
    """Progress of one run.

    Args:
        path: run.jsonl of this run; events are appended, one JSON object per line.
        step_count: optimizer steps of the whole run.
        first_step: steps already done, when a run is continued.
        logging_dir: where TensorBoard's files go, if they are wanted.
        stream: where lines go; a progress bar only where it is a terminal.
    """

    def __init__(
        self,
        path: Path,
        step_count: int,
        *,
        first_step: int = 0,
        logging_dir: Path | None = None,
        stream: TextIO | None = None,
    ):
        self.step_count, self.step = step_count, first_step
        self.stream = stream or sys.stdout
        self.events = path.open("a", encoding="utf-8")
        self.writer = _tensorboard(logging_dir) if logging_dir else None
        on_terminal = self.stream.isatty()
        self.bar = tqdm(
            total=step_count, initial=first_step, file=self.stream, disable=not on_terminal, dynamic_ncols=True
        )
        self.waiting: list[tuple[int, int, Tensor, dict[str, float]]] = []
        self.epoch_losses: list[float] = []
        self.started = self.last_read = self.last_line = time.monotonic()
        self.first_step = first_step

    def say(self, text: str) -> None:
        """One line for the person, above the progress bar."""
        self.bar.clear()
        print(text, file=self.stream, flush=True)
        self.bar.refresh()

    def event(self, kind: str, **values: Any) -> None:
        """One line of run.jsonl: {"event": kind, "time": seconds since 1970, ...}."""
        self.events.write(
            json.dumps({"event": kind, "time": round(time.time(), 3), **values}, ensure_ascii=False) + "\n"
        )
        self.events.flush()

    def losses(self, epoch: int, step: int, loss: Tensor, learning_rates: dict[str, float]) -> None:
        """Take note of a step; its loss (a scalar tensor) is read when a line is due.

        Raises:
            FloatingPointError: a loss that is not finite; the message names the step.
        """
        self.step = step
        self.waiting.append((epoch, step, loss, learning_rates))
        self.bar.update(1)
        if time.monotonic() - self.last_read > READ_SECONDS or step == self.step_count:
            self.read()

    def read(self) -> None:
        """Read the losses that wait, write them down and show the last."""
        if not self.waiting:
            return
        for epoch, step, loss, learning_rates in self.waiting:
            value = float(loss)
            self.epoch_losses.append(value)
            rates = {f"lr/{name}": rate for name, rate in learning_rates.items()}
            self.event("step", epoch=epoch, step=step, loss=value, **rates)
            if self.writer:
                for name, number in {"loss/current": value, "loss/average": self.average(), **rates}.items():
                    self.writer.add_scalar(name, number, step)
            if value != value or value in (float("inf"), float("-inf")):
                self.waiting = []
                raise FloatingPointError(say(f"the loss of step {step} is {value}", f"第 {step} 步的损失是 {value}"))
        self.waiting = []
        self.last_read = time.monotonic()
        self.bar.set_postfix_str(f"loss {self.average():.4f}")
        if self.bar.disable and (self.last_read - self.last_line > LINE_SECONDS or step in (1, self.step_count)):
            self.last_line = self.last_read
            self.say(self._line(epoch, step))

    def _line(self, epoch: int, step: int) -> str:
        pace = (time.monotonic() - self.started) / max(1, step - self.first_step)
        left = round(pace * (self.step_count - step))
        width = len(str(self.step_count))
        return say(
            f"step {step:{width}}/{self.step_count}  epoch {epoch:2}  loss {self.average():.4f}  "
            f"{pace:.3f} s/step  left {left // 60}:{left % 60:02}",
            f"步 {step:{width}}/{self.step_count}  轮 {epoch:2}  损失 {self.average():.4f}  "
            f"{pace:.3f} 秒/步  剩余 {left // 60}:{left % 60:02}",
        )

    def average(self) -> float:
        """Mean loss of this epoch so far: a single step's loss says little, its timesteps differ."""
        return sum(self.epoch_losses) / len(self.epoch_losses) if self.epoch_losses else float("nan")

    def epoch_end(self, epoch: int) -> None:
        """Write down the epoch's mean loss and begin a new one."""
        self.read()
        self.event("epoch", epoch=epoch, step=self.step, loss=self.average())
        if self.writer and self.epoch_losses:
            self.writer.add_scalar("loss/epoch_average", self.average(), epoch)
        self.epoch_losses = []

    def close(self) -> None:
        """Read what waits and close the files."""
        try:
            self.read()
        finally:
            self.bar.close()
            self.events.close()
            if self.writer:
                self.writer.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            say(
                "logging_dir is set, but the package tensorboard is missing: pip install tensorboard, or set "
                "logging_dir = None (run.jsonl has the same numbers).",
                "设置了 logging_dir，但没有安装 tensorboard：请 pip install tensorboard，或设 logging_dir = None"
                "（run.jsonl 里有同样的数据）。",
            )
        ) from None
    return SummaryWriter(str(folder))
