"""A run: what was asked and what it came to (`Run`), and what is being trained (`Training`). Made by prepare, build.

A run has two `Config`s, each made once and never changed: `asked`, what the user gave, and `settings`, the same options
with every None, "auto" and limit decided by the data, the base model and the device. What acts reads `settings`, and
what is written down (state, metadata, report, the command that trains the same again) is `settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from library.contracts import Family, Step
from library.messages import log
from library.options.training import Config

if TYPE_CHECKING:  # torch is imported when the parameters have been checked
    import torch
    from torch import Tensor

    from library.adapters import Adapters
    from library.contracts import ModelInfo
    from library.data.dataset import Dataset
    from library.data.plan import Plan
    from library.diffusion.noise import Process
    from library.diffusion.sampling import Prompt
    from library.hardware.blocks import Blocks
    from library.hardware.device import Device
    from library.hardware.distributed import ProcessGroup
    from library.hardware.memory import Plan as MemoryPlan
    from library.lora_files.merging import Strength
    from library.optim.averages import Average
    from library.optim.optimizers import Settings
    from library.reporting.run_log import Rates
    from library.storage.run_lock import RunLock
    from library.storage.training_state import Position, State


@dataclass(frozen=True)
class Run:
    """What is known before any model is loaded."""

    asked: Config
    settings: Config
    name: str  # of all files of this run
    seed: int
    model: ModelInfo
    plan: Plan
    prompts: list[Prompt]  # of the previews
    device: Device
    processes: ProcessGroup
    position: Position  # where it begins, or goes on
    data: str = ""  # changes with the images, captions and folders
    optimizer_args: Settings = field(default_factory=dict)  # keywords of whatever optimizer the user names
    start: dict[str, Tensor] | None = None  # tensors of the LoRA file to begin with
    bundled: dict[str, Tensor] = field(default_factory=dict)  # of embeddings in that file, for those of this run
    state: State | None = None  # to go on from
    lock: RunLock | None = None  # on the name; None in all processes but the first
    cache_folder: Path | None = None  # of latents and captions; None: in memory
    base_loras: list[Strength] = field(default_factory=list)  # what the base model gets first
    notes: list[str] = field(default_factory=list)  # said to the user, for the report to say again

    @property
    def skipped(self) -> set[int]:
        """The steps behind the position whose batches were left out, because they gave NaN."""
        numbers = self.state.more.get("skipped", []) if self.state else []
        return {step for step in numbers if step <= self.position.global_step}

    @property
    def output_dir(self) -> Path:
        return Path(self.settings.output_dir)

    @property
    def goes_on(self) -> bool:
        """Whether it is the run of its state, under its name and in its folder; else that state only begins it."""
        if self.state is None or self.state.facts["name"] != self.name:
            return False
        resume = self.settings.resume or ""
        return resume == "auto" or Path(resume).resolve().parent == self.output_dir.resolve()

    def note(self, line: str) -> None:
        """Say what the user should know of, and keep it."""
        self.notes.append(line)
        log.warning(line)


@dataclass
class Training:
    """Everything that the loop needs."""

    family: Family
    adapters: Adapters
    dataset: Dataset
    process: Process
    optimizer: torch.optim.Optimizer
    optimizer_text: str  # for the file's metadata
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler  # does nothing unless the model is in fp16
    blocks: Blocks
    memory: MemoryPlan
    step: Step
    average: Average | None = None  # of the weights, where one is wanted
    text_stops: int | None = None  # after so many steps the text encoders are no longer trained; None: never
    batch_parts: int = 1  # a batch goes through the network in so many pieces; more where memory ran out

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights as they are to be saved and shown; see `optimizers.averaged`."""
        from library.optim import optimizers

        with optimizers.averaged(self.optimizer), self.average.applied() if self.average else nullcontext():
            self.adapters.refresh()
            yield
        self.adapters.refresh()

    def rates(self) -> Rates:
        """The learning rates of the step that comes, by the names of the parameter groups.

        Adafactor's is a tensor on the device that its schedule overwrites: a copy waits there until it is read.
        """
        import torch

        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        return {name: rate.clone() if isinstance(rate, torch.Tensor) else rate for name, rate in rates.items()}

    def begin_step(self, step: int) -> bool:
        """Before each step, counted from 0: freeze the text encoders where it is time. Whether it is just now."""
        is_time = self.text_stops is not None and step >= self.text_stops
        is_new = is_time and not self.adapters.frozen
        self.adapters.frozen = (
            {part for part in self.adapters.flat_parameters if part != "denoiser"} if is_time else set()
        )
        return is_new

    def restore(self, state: State) -> None:
        """Go back to a training state of this run."""
        self.adapters.load_state_dict(state.adapter)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        self.take_over_rest(state)

    def take_over_rest(self, state: State) -> None:
        """Take over what a training state holds beside the weights, the optimizer and the schedule."""
        if self.average:
            self.average.load(state.more.get("average"))
        device = next(iter(self.adapters.parameters())).device.type
        self.scaler = type(self.scaler)(device, enabled=self.scaler.is_enabled())  # the old one may be amid a step
        if state.scaler:  # saved in fp16
            self.scaler.load_state_dict(state.scaler)
        self.adapters.refresh()
