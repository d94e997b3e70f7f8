"""What run.jsonl tells of a run, taken up line by line; a run that was interrupted has its whole history there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from library.messages import say

if TYPE_CHECKING:
    from library.reporting.run_log import Event

AVERAGED_SECONDS = 2.0  # over which the time of a step is averaged
AT_ONCE_SECONDS = 0.05  # within which steps are told that were read together

Points = list[tuple[int, float]]  # step, value


@dataclass
class History:
    """All events so far; `read` takes up what was written since."""

    path: Path  # run.jsonl
    offset: int = 0  # bytes of it that were read
    first_time: float = 0.0
    last_time: float = 0.0
    last_kind: str = ""
    state: str = "running"  # or "stopped", "finished"
    step: int = 0
    final_file: str = ""
    losses: Points = field(default_factory=list)
    rates: dict[str, Points] = field(default_factory=dict)
    epoch_losses: dict[int, float] = field(default_factory=dict)
    validations: list[Event] = field(default_factory=list)
    norms: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch -> block -> norm of its update
    previews: list[Event] = field(default_factory=list)
    captions_compared: Event | None = None  # losses of images with and without their captions
    incidents: list[str] = field(default_factory=list)
    step_seconds: Points = field(default_factory=list)  # of each step about there
    timed_from: tuple[int, float] | None = None  # a step and its time, since when nothing but steps happened

    @property
    def seconds_per_step(self) -> float | None:
        """Without saves, previews and validations; None: not known yet."""
        return median(seconds for _, seconds in self.step_seconds) if self.step_seconds else None

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

    def _take(self, event: Event) -> None:
        kind, now = event["event"], event.get("time", 0.0)
        self.first_time = self.first_time or now
        match kind:
            case "step":
                self._take_step(event, now)
            case "start":
                self.state = "running"
            case "epoch":
                self.epoch_losses[event["epoch"]] = event["loss"]
            case "validation":
                self.validations.append(event)
            case "norms":
                self.norms[event["epoch"]] = event["blocks"]
            case "preview":
                self.previews.append(event)
            case "pictures":
                self.captions_compared = event
            case "stopped":
                self.state = "stopped"
            case "end":
                self.state, self.final_file = "finished", event["file"]
            case "skipped":
                self.incidents.append(_skipped(event["step"]))
            case "out of memory":
                self.incidents.append(_out_of_memory(event["step"], event["done"]))
        if kind != "step":
            self.timed_from = None
        self.last_time, self.last_kind = now, kind

    def _take_step(self, event: Event, now: float) -> None:
        if self.last_kind == "step" and now - self.last_time > AT_ONCE_SECONDS:
            self._measure_time()
        step = self.step = event["step"]
        self.losses.append((step, event["loss"]))
        for name, rate in event.items():
            if name.startswith("lr/"):
                self.rates.setdefault(name[3:], []).append((step, rate))

    def _measure_time(self) -> None:
        """The steps up to the last were told, at `last_time`: several at once, as their losses are read so."""
        if self.timed_from is None:
            self.timed_from = self.step, self.last_time
        first, since = self.timed_from
        if self.step > first and self.last_time - since > AVERAGED_SECONDS:
            self.step_seconds.append((self.step, (self.last_time - since) / (self.step - first)))
            self.timed_from = self.step, self.last_time


def _skipped(step: int) -> str:
    return say(f"step {step} was skipped: NaN or infinity", f"跳过第 {step} 步：NaN 或无穷大")


def _out_of_memory(step: int, remedy: str) -> str:
    return say(f"out of memory after step {step}: {remedy}", f"第 {step} 步后显存不足：{remedy}")
