"""The files of a run that count: LoRAs and training states, each written whole or not at all."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from library import files
from library.messages import UserError, log, say
from library.options.training import Config
from library.training.run import Run, Training
from library.training.soundness import what_is_lost
from library.training.stop import Stop

if TYPE_CHECKING:
    from torch import Tensor

    from library.reporting.run_log import RunLog
    from library.storage.metadata import ModelHashes
    from library.storage.training_state import Position, State

STATE_SECONDS = 30.0  # between two states while training; longer where saving one takes more than 1/50 of that


def hashes_of(settings: Config) -> tuple[ModelHashes, ModelHashes | None]:
    """Of the base model's file and of the VAE's, if it has one of its own; a second for each gigabyte."""
    from library.storage import metadata

    vae = metadata.model_hashes(Path(settings.vae)) if settings.vae else None
    return metadata.model_hashes(Path(settings.pretrained_model_name_or_path)), vae


def what_auto_came_to(run: Run, training: Training) -> dict[str, object]:
    """Of the options in the metadata those that device, memory and images decide."""
    import torch

    numbers = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}
    images, held = ({one.image_path for one in own} for own in (run.plan.samples.train, run.plan.samples.validation))
    is_split = held and not run.settings.validation_data_dir
    return {
        "mixed_precision": numbers[run.device.dtype],
        "gradient_checkpointing": bool(training.blocks.recomputed),
        "validation_split": round(len(held) / len(images | held), 4) if is_split else 0.0,
    }


class Saver:
    """Writes LoRAs and states into output_dir, and removes those that are too many.

    Args:
        stop: a write that waits for room asks it.
        hashes: of the base model's file and the VAE's, from `hashes_of`.
    """

    def __init__(self, run: Run, training: Training, stop: Stop, hashes: tuple[ModelHashes, ModelHashes | None]):
        from library.data import plan
        from library.storage import lora_file

        before = run.state.facts if run.state and run.goes_on else {}
        self.run, self.training, self.stop = run, training, stop
        self.session_id = before.get("session_id", secrets.randbelow(2**32))
        self.started_at = before.get("started_at", time.time())
        self.data_facts = plan.metadata(run.plan)
        self.model, self.vae = hashes
        self.dtype = lora_file.PRECISIONS[run.settings.save_precision]
        self.run_log: RunLog | None = None  # of the run, once it is open
        self.state_wait = STATE_SECONDS
        self.state_saved_at = time.monotonic()
        self.held: set[Path] = set()  # saves that should be gone, and that another program holds

    def path(self, ending: str) -> Path:
        return self.run.output_dir / f"{self.run.name}{ending}"

    # ---- LoRAs ----

    def save(
        self, position: Position, *, by: Literal["epoch", "step"] | None = None, skipped: Collection[int] = ()
    ) -> Path:
        """Write the LoRA as it is, and a training state beside it if the user wants it.

        Args:
            by: whose number the file's name gets; None: the final file.
        """
        from library.storage import saves

        settings, name, folder = self.run.settings, self.run.name, self.run.output_dir
        number = {"epoch": dict(epoch=position.epoch - 1), "step": dict(step=position.global_step), None: {}}[by]
        path = folder / saves.file_name(name, settings.save_model_as, **number)
        self.write_lora(path, position)
        if settings.save_state and by:
            self._write_state(folder / saves.state_name(name, **number), position, skipped)
        self._remove_expired(by, **number)
        return path

    def write_lora(self, path: Path, position: Position) -> None:
        """Write the LoRA as it is, with its metadata."""
        from library.storage import lora_file, metadata

        entries = metadata.build(
            self.run.settings,
            self.data_facts,
            self.training.family.metadata(),
            metadata.Run(
                output_name=self.run.name,
                session_id=self.session_id,
                started_at=self.started_at,
                saved_at=time.time(),
                epoch=position.epoch - 1,
                step=position.global_step,
                optimizer=self.training.optimizer_text,
                model=self.model,
                vae=self.vae,
                process_count=self.run.processes.count,
                decided=what_auto_came_to(self.run, self.training),
            ),
        )
        with self.training.averaged():
            tensors = self._file_tensors() | self.run.bundled
            size = sum(tensor.nbytes for tensor in tensors.values())
            self.write(path, size, lambda: lora_file.save_adapter(path, tensors, entries, self.dtype))

    def _file_tensors(self) -> dict[str, Tensor]:
        """What is trained, as the files of this family call it."""
        from library.lora_files import layouts

        family = self.training.family
        return layouts.write(self.training.adapters.state_dict(), family.layers(), family.facts.saved_layout)

    def read_back(self, path: Path) -> dict[str, float]:
        """Make sure that a file just written holds what was learned; gives the norm of all updates of each part."""
        from library.lora_files.factors import in_our_writing
        from library.storage import lora_file

        family = self.training.family
        ours = partial(in_our_writing, path.name, targets=family.layers())
        shapes = {name: tuple(tensor.shape) for name, tensor in ours(self._file_tensors()).items()}
        parts = {target.saved_as: target.part for target in family.targets()}
        return lora_file.read_back(path, shapes, parts, ours)

    def _remove_expired(self, by: str | None, *, epoch: int = 0, step: int = 0) -> None:
        """Remove the file and the state that a save of this epoch or step makes too many."""
        from library.storage import saves

        settings, name, folder = self.run.settings, self.run.name, self.run.output_dir
        if by == "epoch" and settings.save_every_n_epochs:
            expired = partial(saves.expired_epoch, epoch, settings.save_every_n_epochs)
            last_file, last_state = settings.save_last_n_epochs, settings.save_last_n_epochs_state
        elif by == "step" and settings.save_every_n_steps:
            expired = partial(saves.expired_step, step, settings.save_every_n_steps)
            last_file, last_state = settings.save_last_n_steps, settings.save_last_n_steps_state
        else:
            return
        if old := expired(last_file):
            self._remove(folder / saves.file_name(name, settings.save_model_as, **{by: old}))
        if old := expired(last_state or last_file):
            self._remove(folder / saves.state_name(name, **{by: old}))

    def _remove(self, path: Path) -> None:
        """Remove a save and those that could not be removed before. One that stays ends no run."""
        from library.storage import saves

        for save in (*self.held, path):
            if saves.remove_save(save):
                self.held.discard(save)
            elif save not in self.held:
                self.held.add(save)
                log.warning(_could_not_be_removed(save))

    # ---- States ----

    @property
    def state_folder(self) -> Path:
        """Of the state that is kept while training, and under save_state beyond its end."""
        from library.storage import saves

        return self.run.output_dir / saves.state_name(self.run.name)

    def state_is_due(self) -> bool:
        return time.monotonic() - self.state_saved_at > self.state_wait

    def save_state(self, position: Position, skipped: Collection[int] = (), *, is_finished: bool = False) -> None:
        """Keep what is needed to go on exactly from here; left out where another program holds the files."""
        from library.storage import disk

        began = time.monotonic()
        try:
            self._write_state(self.state_folder, position, skipped, is_finished, waits_for_holder=False)
        except UserError as error:
            reason = disk.curable_error(error)
            if reason is None or not files.is_held(reason):
                raise
            log.warning(error)  # the state before it is whole, and the next one will be written
        self.state_saved_at = time.monotonic()
        self.state_wait = max(STATE_SECONDS, 50 * (self.state_saved_at - began))

    def _write_state(
        self,
        folder: Path,
        position: Position,
        skipped: Collection[int],
        is_finished: bool = False,
        waits_for_holder: bool = True,
    ) -> None:
        from library.storage import training_state

        run, training = self.run, self.training
        if problem := what_is_lost(training):
            raise FloatingPointError(problem)
        if self.run_log:  # no state knows of a step that run.jsonl does not
            self.write(self.path(".run.jsonl"), 2**16, self.run_log.flush)
        state = training_state.State(
            position,
            training.adapters.state_dict(),
            training.optimizer.state_dict(),
            training.schedule.state_dict(),
            training.scaler.state_dict(),
            facts=dict(
                name=run.name,
                seed=run.seed,
                config=dataclasses.asdict(run.settings),
                data=run.data,
                epoch_batches=dict(enumerate(run.plan.batch_counts, 1)).get(position.epoch),
                optimizer=training.optimizer_text,
                dtype=str(run.device.dtype).removeprefix("torch."),
                session_id=self.session_id,
                started_at=self.started_at,
                finished=is_finished,
            ),
            more=dict(skipped=sorted(skipped), **(dict(average=training.average.values) if training.average else {})),
        )
        size = 3 * sum(tensor.nbytes for tensor in state.adapter.values())
        self.write(folder, size, lambda: training_state.save_state(folder, state), waits_for_holder)

    def load_state(self) -> State:
        """The last state of this run."""
        from library.storage import training_state

        return training_state.load_state(self.state_folder)

    def end_states(self, position: Position) -> None:
        """The run has its result: the state that was kept for a kill goes, unless the user wants states."""

        settings = self.run.settings
        if settings.save_state or settings.save_state_on_train_end:
            self.save_state(self._for_a_longer_run(position), is_finished=True)
        else:
            self._remove(self.state_folder)

    def _for_a_longer_run(self, position: Position) -> Position:
        """Within the last epoch, where max_train_steps ended it there: a longer run begins with the rest of it."""
        plan = self.run.plan
        done = plan.step_counts[-1] * plan.batches_per_step
        if position.global_step < plan.step_count or done >= plan.batch_counts[-1]:
            return position
        return type(position)(plan.epoch_count, done, plan.step_count)

    # ---- The disk ----

    def write(self, path: Path, size: int, write: Callable[[], object], waits_for_holder: bool = True) -> None:
        """Let `write` write to a path; where the disk is full, make room if that is allowed, and wait for more.

        Args:
            size: bytes that it takes, about.
            waits_for_holder: wait also while another program holds the file; False: raise at once.
        """
        from library.storage import disk, saves

        keep = self.run.settings.save_last_n_epochs

        def may_free() -> bool:
            return bool(keep) and saves.remove_oldest_epoch(self.run.output_dir, self.run.name, keep - 1)

        disk.writing(
            path,
            write,
            size=size,
            may_free=may_free,
            waits_for_holder=waits_for_holder,
            is_stopped=lambda: self.stop.requested() == "signal",
        )


def check_disk(run: Run, training: Training) -> None:
    """Compare what will be written with what is free."""
    from library.storage import disk

    plan, settings = run.plan, run.settings
    sizes = [(prompt.width or 0) * (prompt.height or 0) for prompt in run.prompts]  # all have one by now
    needs = disk.needed(
        settings,
        parameter_count=sum(parameter.numel() for parameter in training.adapters.parameters()),
        epoch_count=plan.epoch_count,
        step_count=plan.step_count,
        keeps_best=settings.keep_best and bool(plan.samples.validation),
        preview_count=len(sizes),
        preview_pixels=max(sizes, default=0),
    )
    for line in disk.check(needs):
        run.note(line)


def _could_not_be_removed(path: Path) -> str:
    from library.storage.problems import HELD_BY

    return say(
        f"{path} could not be removed: it is open in another program ({HELD_BY[0]}), or its folder is protected. "
        "Training goes on, and tries again at the next save",
        f"{path} 无法删除：它正被其他程序占用（{HELD_BY[1]}），或文件夹没有写入权限。训练继续，下次保存时会再试",
    )
