"""The files of a run: LoRAs, states, previews, the report, and the words at the end."""

import dataclasses
import secrets
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from library.messages import UserError, plural, say
from library.options.derived import last_strengths
from library.options.training import Config
from library.training.build import Training
from library.training.caption_mismatch import tell_pictures
from library.training.prepare import Prepared
from library.training.recovery import what_is_lost
from library.training.report_page import ReportPage, facts_of

STATE_SECONDS = 30.0  # between two states while training; longer where saving one takes more than 1/50 of that


def hashes_of(config: Config) -> tuple[Any, Any]:
    """Of the base model's file and of the VAE's, if it has one of its own; a second for each gigabyte."""
    from library.storage import metadata

    vae = metadata.model_hashes(Path(config.vae)) if config.vae else None
    return metadata.model_hashes(Path(config.pretrained_model_name_or_path)), vae


class Files:
    """The files of a run, and what they say about it.

    Args:
        stop: stop.Stop; a write that waits for room asks it.
        hashes: of the base model's file and the VAE's, from `hashes_of`.
    """

    def __init__(self, prepared: Prepared, training: Training, stop: Any, hashes: tuple[Any, Any]):
        from library.data import plan
        from library.hardware import memory
        from library.storage import lora_file

        config, state = prepared.config, prepared.state
        self.prepared, self.training, self.stop = prepared, training, stop
        self.folder = Path(config.output_dir)
        self.suffix = config.save_model_as
        before = state.facts if state else {}
        self.session_id = before.get("session_id", secrets.randbelow(2**32))
        self.started_at = before.get("started_at", time.time())
        self.facts = plan.metadata(prepared.plan)
        self.model, self.vae = hashes
        self.dtype = lora_file.PRECISIONS[config.save_precision]
        self.state_wait = STATE_SECONDS
        self.state_saved_at = time.monotonic()
        self.report: Any = None
        self.ended_early = False  # by early_stop
        if state is None:  # before all other files: a run of which only these are left could not be gone on with
            self.save_state(prepared.position, ())
        memory_text = memory.table(training.memory, prepared.machine.device, say("planned:", "计划："))
        self.page_facts = facts_of(prepared, memory_text)
        self.page_problem = ""  # the last that was said
        self.begin_report(prepared.position.global_step)
        self.report.event("start", name=prepared.name, config=dataclasses.asdict(config), steps=self.step_count)
        self.write_page(is_due=True)

    @property
    def step_count(self) -> int:
        return self.prepared.plan.step_count

    def begin_report(self, step: int) -> None:
        """Tell of the steps after `step`; what was told of them before is forgotten."""
        from library.reporting import trackers
        from library.reporting.run_log import Report

        if self.report:
            self.report.waiting = []
            self.report.close()
        writer = trackers.open_trackers(
            self.prepared.config, session_id=self.session_id, started_at=self.started_at, first_step=step
        )
        events = self.path(".run.jsonl")
        self.report = Report(events, self.step_count, first_step=step, writer=writer)
        self.page = ReportPage(self.path(".report.html"), events, self.page_facts, self.prepared.machine.device)

    def write_page(self, *, is_due: bool = False) -> None:
        """Bring the report page up to date, if it is time; see `report_page`."""
        try:
            self.page.write(self.report.news, is_due=is_due)
        except Exception as error:  # a full disk, a fault of the page: neither must cost a training
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if reason != self.page_problem:
                self.report.say(say(f"the report page is not written: {reason}", f"未能写入报告页：{reason}"))
            self.page_problem = reason

    def end_epoch(self, epoch: int) -> None:
        """Tell the mean loss of an epoch, and what each block has learnt by its end."""
        self.report.epoch_end(epoch)
        with self.training.averaged():
            norms = self.training.adapters.block_norms()
        self.report.event("norms", epoch=epoch, step=self.report.step, blocks=norms)

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.prepared.name}{ending}"

    def write_tags(self) -> None:
        """How often each tag occurs, for the user to look through."""
        from library.data import captions

        is_sorted = self.prepared.config.sort_tag_occurrence_alphabetically
        counts = captions.count_table(self.facts["ss_tag_frequency"], is_sorted)
        path = self.path(".tags.txt")
        self._write(path, len(counts), lambda: path.write_text(counts, encoding="utf-8"))

    @property
    def state_folder(self) -> Path:
        """Of the state that is kept while training, and under save_state beyond its end."""
        from library.storage import saves

        return self.folder / saves.state_name(self.prepared.name)

    def save(self, position: Any, *, by: str | None = None, skipped: Collection[int] = ()) -> Path:
        """Write the LoRA as it is, and a training state beside it if the user wants it.

        Args:
            by: "epoch" or "step", whose number the file's name gets; None: the final file.
        """
        from library.storage import saves

        config, name = self.prepared.config, self.prepared.name
        number = {"epoch": dict(epoch=position.epoch - 1), "step": dict(step=position.global_step), None: {}}[by]
        path = self.folder / saves.file_name(name, self.suffix, **number)
        self._write_lora(path, position)
        if config.save_state and by:
            self._save_state(self.folder / saves.state_name(name, **number), position, skipped)
        self._remove_expired(by, **number)
        return path

    def _write_lora(self, path: Path, position: Any) -> None:
        """Write the LoRA as it is, with its metadata."""
        from library.storage import lora_file, metadata

        entries = metadata.build(
            self.prepared.config,
            self.facts,
            self.training.family.metadata(),
            metadata.Run(
                output_name=self.prepared.name,
                session_id=self.session_id,
                started_at=self.started_at,
                saved_at=time.time(),
                epoch=position.epoch - 1,
                step=position.global_step,
                optimizer=self.training.optimizer_text,
                model=self.model,
                vae=self.vae,
                process_count=self.prepared.world.count,
            ),
        )
        with self.training.averaged():
            tensors = self.training.adapters.state_dict()
            size = sum(tensor.nbytes for tensor in tensors.values())
            self._write(path, size, lambda: lora_file.save_adapter(path, tensors, entries, self.dtype))

    @property
    def best(self) -> Path:
        """The file of the epoch that is recommended."""
        return self.path(f"-best.{self.suffix}")

    def keep_best(self, position: Any) -> None:
        """Keep the epoch that has just been measured, if it is the one recommended so far."""
        from library.reporting import best_epoch

        found = best_epoch.recommend(self.report.validations)
        if self.prepared.config.keep_best and found and found.epoch == position.epoch - 1:
            self._write_lora(self.best, position)

    def ends_early(self) -> bool:
        """Whether early_stop wants the training to end here; that is said."""
        from library.reporting import best_epoch

        patience, measured = self.prepared.config.early_stop, self.report.validations
        if patience and best_epoch.waited(measured) >= patience:
            self.ended_early = True
            self.report.say(
                say(
                    "the training ends here: the loss of the held-out pictures has not fallen for "
                    f"{plural(patience, 'measurement')} (early_stop)",
                    f"训练到此结束：留出图片的损失已连续 {patience} 次测量没有下降（early_stop）",
                )
            )
        return self.ended_early

    def _remove_expired(self, by: str | None, *, epoch: int = 0, step: int = 0) -> None:
        """Remove the file and the state that a save of this epoch or step makes too many."""
        from library.storage import saves

        config, name = self.prepared.config, self.prepared.name
        if by == "epoch":
            expired, every = partial(saves.expired_epoch, epoch), config.save_every_n_epochs
            last_file, last_state = config.save_last_n_epochs, config.save_last_n_epochs_state
        elif by == "step" and config.save_every_n_steps:
            expired, every = partial(saves.expired_step, step), config.save_every_n_steps
            last_file, last_state = config.save_last_n_steps, config.save_last_n_steps_state
        else:
            return
        if old := expired(every, last_file):
            saves.remove_save(self.folder / saves.file_name(name, self.suffix, **{by: old}))
        if old := expired(every, last_state or last_file):
            saves.remove_save(self.folder / saves.state_name(name, **{by: old}))

    def state_is_due(self) -> bool:
        return time.monotonic() - self.state_saved_at > self.state_wait

    def save_state(self, position: Any, skipped: Collection[int], *, is_finished: bool = False) -> None:
        """Keep what is needed to go on exactly from here."""
        began = time.monotonic()
        self._save_state(self.state_folder, position, skipped, is_finished)
        self.state_saved_at = time.monotonic()
        self.state_wait = max(STATE_SECONDS, 50 * (self.state_saved_at - began))

    def _save_state(self, folder: Path, position: Any, skipped: Collection[int], is_finished: bool = False) -> None:
        from library.storage import training_state

        prepared, training = self.prepared, self.training
        if problem := what_is_lost(training):
            raise FloatingPointError(problem)
        if self.report:  # no state knows of a step that run.jsonl does not
            self._write(self.path(".run.jsonl"), 2**16, self.report.flush)
        state = training_state.State(
            position,
            training.adapters.state_dict(),
            training.optimizer.state_dict(),
            training.schedule.state_dict(),
            training.scaler.state_dict(),
            facts=dict(
                name=prepared.name,
                seed=prepared.seed,
                config=dataclasses.asdict(prepared.config),
                data=prepared.data,
                dtype=str(prepared.machine.dtype).removeprefix("torch."),
                session_id=self.session_id,
                started_at=self.started_at,
                finished=is_finished,
            ),
            more=dict(skipped=sorted(skipped), **(dict(average=training.average.values) if training.average else {})),
        )
        size = 3 * sum(tensor.nbytes for tensor in state.adapter.values())
        self._write(folder, size, lambda: training_state.save_state(folder, state))

    def load_state(self) -> Any:
        from library.storage import training_state

        return training_state.load_state(self.state_folder)

    def tell_result(self, path: Path) -> None:
        """What is told of a finished run: previews, and the training pictures by how they go with their captions.

        Args:
            path: of the final file.
        """
        self.last_previews()
        tell_pictures(self.prepared, self.training, self.report)
        self.report.event("end", step=self.report.step, file=path.name)

    def finish(self, position: Any) -> None:
        """The run has its result: the state that was kept for a kill goes, unless the user wants states."""
        from library.storage import saves

        config = self.prepared.config
        if config.save_state or config.save_state_on_train_end:
            self.save_state(self._for_a_longer_run(position), (), is_finished=True)
        else:
            saves.remove_save(self.state_folder)

    def _for_a_longer_run(self, position: Any) -> Any:
        """Within the last epoch, where max_train_steps ended it there: a longer run begins with the rest of it."""
        from library.data.plan import batches_of_step

        plan = self.prepared.plan
        done = plan.step_counts[-1] * batches_of_step(self.prepared.config)
        if position.global_step < plan.step_count or done >= plan.batch_counts[-1]:
            return position
        return type(position)(plan.epoch_count, done, plan.step_count)

    def preview(self, *, epoch: int | None = None, step: int | None = None) -> None:
        """Previews in the middle of a run, named as sd-scripts names them."""
        if self.prepared.config.sample_every_n_epochs == 0:
            return
        rows = draw_previews(self.prepared, self.training, self.report)
        self._keep_previews(rows, (1.0,), f"e{epoch:06d}" if step is None else f"{step:06d}")

    def last_previews(self) -> None:
        """Previews of the finished LoRA at several strengths, and two of them as pictures to compare."""
        from library.diffusion import sampling

        config = self.prepared.config
        if config.sample_every_n_epochs == 0 or not self.prepared.prompts:
            return
        strengths = tuple(last_strengths(config))
        rows = draw_previews(self.prepared, self.training, self.report, strengths)
        if rows:
            without, with_lora = (rows[strengths.index(strength)] for strength in (0.0, 1.0))
            self.picture(self.path(".comparison.png"), sampling.grid([without, with_lora]))
            self.picture(self.path(".preview.png"), with_lora[0])  # web UIs show it beside the LoRA's name
            self._keep_previews(rows, strengths, "end")

    def _keep_previews(self, rows: list[list], strengths: tuple[float, ...], when: str) -> None:
        """Write previews down: a row for each strength, a picture for each prompt."""
        folder, clock = self.folder / "sample", time.strftime("%Y%m%d%H%M%S")
        self._write(folder, 2**12, lambda: folder.mkdir(exist_ok=True))
        files = []
        for strength, row in zip(strengths, rows, strict=False):  # no rows: memory was too small
            at = f"_x{strength:g}" if len(strengths) > 1 else ""
            names = [
                f"{self.prepared.name}_{when}_{index:02d}{at}_{clock}_{self.prepared.prompts[index].seed}.png"
                for index in range(len(row))
            ]
            for name, picture in zip(names, row, strict=True):
                self.picture(folder / name, picture)
            files.append([f"sample/{name}" for name in names])
        if files:
            step, epoch = self.report.step, self.report.epochs_told
            self.report.event("preview", epoch=epoch, step=step, strengths=list(strengths), files=files)

    def picture(self, path: Path, picture: Any) -> None:
        """Write a picture."""
        self._write(path, 2**20, partial(picture.save, path))

    def _write(self, path: Path, size: int, write: Any) -> None:
        from library.storage import disk, saves

        keep = self.prepared.config.save_last_n_epochs
        say_line = self.report.say if self.report else partial(print, flush=True)

        def may_free() -> bool:
            return bool(keep) and saves.remove_oldest_epoch(self.folder, self.prepared.name, keep - 1)

        disk.writing(
            path,
            write,
            size=size,
            may_free=may_free,
            say_line=say_line,
            is_stopped=lambda: self.stop.requested() == "signal",
        )


def draw_previews(
    prepared: Prepared, training: Training, report: Any, strengths: tuple[float, ...] = (1.0,)
) -> list[list]:
    """A row of pictures for each strength of the LoRA, one picture for each prompt; none where memory is too small."""
    import torch

    from library.diffusion import sampling

    training.step.clear()  # previews want its memory
    device, modules = prepared.machine.device, training.family.modules()
    places = {name: next(module.parameters()).device for name, module in modules.items()}
    for module in modules.values():
        module.to(device)
    training.adapters.eval()
    rows = []
    try:
        for strength in strengths:
            training.adapters.multiplier = strength
            with training.averaged():
                rows.append([sampling.draw(training.family, prompt, device) for prompt in prepared.prompts])
    except torch.OutOfMemoryError:
        report.say(say("no previews: not enough memory for them", "显存不足，这次没有画预览图"))
        return []
    finally:
        training.adapters.multiplier = 1.0
        training.adapters.train()
        for name, module in modules.items():
            module.to(places[name])
    return rows


def check_disk(prepared: Prepared, training: Training) -> None:
    """Compare what will be written with what is free."""
    from library.storage import disk

    plan, config = prepared.plan, prepared.config
    sizes = [prompt.width * prompt.height for prompt in prepared.prompts]
    needs = disk.needed(
        config,
        parameter_count=sum(parameter.numel() for parameter in training.adapters.parameters()),
        epoch_count=plan.epoch_count,
        step_count=plan.step_count,
        keeps_best=config.keep_best and bool(plan.found.validation),
        preview_count=len(sizes),
        preview_pixels=max(sizes, default=0),
    )
    for line in disk.check(needs):
        prepared.note(line)


def closing_words(prepared: Prepared, path: Path, norms: dict[str, float], best: Path, advice: Any) -> str:
    """Where the result lies, what it learned, which epoch to use, and how.

    Args:
        best: where the recommended epoch lies, if it was kept.
        advice: a `best_epoch.Recommendation`; None: nothing was measured.
    """
    learned = ", ".join(f"{part} {norm:.2f}" for part, norm in norms.items())
    folders = prepared.plan.found.folders
    words = sorted({folder.text for folder in folders if folder.text and not folder.is_regularization})
    invoked = ", ".join([f"<lora:{path.stem}:0.8>", *words])
    comparison = path.with_name(f"{prepared.name}.comparison.png")
    lines = [
        say(
            f"saved {path} ({path.stat().st_size / 2**20:.1f} MiB; norm of what was learned: {learned})",
            f"已保存 {path}（{path.stat().st_size / 2**20:.1f} MiB；学到的量（范数）：{learned}）",
        ),
        say(
            f"To use it: copy it to models/Lora (AUTOMATIC1111, Forge) or models/loras (ComfyUI), and begin the prompt "
            f"with: {invoked}",
            f"使用方法：复制到 models/Lora（AUTOMATIC1111、Forge）或 models/loras（ComfyUI），"
            f"提示词以此开头：{invoked}",
        ),
    ]
    lines += advice.lines() if advice else []
    if advice and best.exists():
        lines.append(say(f"that epoch's file: {best}", f"该轮的文件：{best}"))
    if comparison.exists():
        lines.append(
            say(
                f"Pictures without it (above) and with it (below): {comparison}",
                f"未使用（上）与使用（下）该 LoRA 的对比图：{comparison}",
            )
        )
    report = path.with_name(f"{prepared.name}.report.html")
    if report.exists():
        lines.append(say(f"All of it on one page: {report}", f"完整报告：{report}"))
    return "\n".join(lines)
