"""What is saved, drawn, measured and told before the first step, after a step, after an epoch and at the end."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Collection
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from library.messages import UserError, log, plural, say
from library.options.checks import is_delivered
from library.training.caption_mismatch import tell_images
from library.training.invocation import invocation
from library.training.previews import last_previews, preview
from library.training.report_facts import facts_of
from library.training.report_page import ReportPage
from library.training.run import Run, Training
from library.training.saver import Saver
from library.training.soundness import not_finite
from library.training.stop import Stop
from library.training.validate import measured_epochs, validate

if TYPE_CHECKING:
    from torch import Tensor

    from library.reporting.best_epoch import Recommendation
    from library.reporting.run_log import Rates
    from library.storage.metadata import ModelHashes
    from library.storage.training_state import Position


class Verdict(IntEnum):
    """What the first process tells the others after a step or an epoch."""

    GO_ON = 0
    STOP = 1
    GO_BACK = 2  # something is not finite


class Outputs:
    """All that a run leaves behind; the first process has them, the others none.

    Args:
        stop: what the user asks for meanwhile.
        hashes: of the base model's file and the VAE's, from `saver.hashes_of`.
    """

    def __init__(self, run: Run, training: Training, stop: Stop, hashes: tuple[ModelHashes, ModelHashes | None]):
        from library.hardware import memory

        self.run, self.training, self.stop = run, training, stop
        self.saver = Saver(run, training, stop, hashes)
        self.ended_early = False  # by early_stop
        self.saved_at_stop: Path | None = None  # the LoRA that was written when the user stopped the run
        # Before all other files: a run of which only these are left could not be gone on with. Also of a run that goes
        # on: what a step back returns to (see recovery) must hold what the user has changed.
        self.saver.save_state(run.position, run.skipped)
        take_over_log(run, self.saver.path(".run.jsonl"))
        memory_text = memory.table(training.memory, run.device.torch_device, say("planned:", "计划："))
        self.page_facts = facts_of(run, memory_text)
        self.page_problem = ""  # the last that was said
        self.open_log(run.position.global_step)
        settings = dataclasses.asdict(run.settings)
        self.run_log.event("start", name=run.name, config=settings, steps=run.plan.step_count)
        self.write_page(is_due=True)
        if run.settings.tag_occurrence_txt_file:
            self.write_tags()

    def open_log(self, step: int) -> None:
        """Tell of the steps after `step`; what was told of them before is forgotten."""
        from library.reporting import console, trackers
        from library.reporting.run_log import RunLog

        run, saver = self.run, self.saver
        if saver.run_log:
            saver.run_log.waiting = []
            saver.run_log.close()
        writer = trackers.open_trackers(
            run.settings, session_id=saver.session_id, started_at=saver.started_at, first_step=step
        )
        events = saver.path(".run.jsonl")
        self.run_log = saver.run_log = RunLog(
            events, run.plan.step_count, first_step=step, writer=writer, bar=console.progress_stream(run.settings)
        )
        self.page = ReportPage(saver.path(".report.html"), events, self.page_facts, run.device.torch_device)

    # ---- When what is due ----

    def before_first_step(self) -> None:
        """Measure the unchanged model, once; and draw with it, if it is wanted."""
        if not self.run_log.validations:
            validate(self.run, self.training, self.run_log, epoch=0, step=0, by="epoch")
        if self.run.position.global_step == 0 and self.run.settings.sample_at_first:
            self.preview("e000000")

    def after_step(self, position: Position, loss: Tensor, rates: Rates, skipped: Collection[int]) -> Verdict:
        """Tell of a step, and save what is due after it."""
        settings, step = self.run.settings, position.global_step
        if step in skipped:
            self.run_log.skipped(position.epoch, step)
        else:
            self.run_log.losses(position.epoch, step, loss, rates)
        self.write_page()
        if is_due(step, settings.validate_every_n_steps):
            validate(self.run, self.training, self.run_log, epoch=position.epoch, step=step, by="step")
        if step == self.run.plan.step_count:
            return Verdict.GO_ON
        if is_due(step, settings.save_every_n_steps) or self.stop.save_requested():
            self.saver.save(position, by="step", skipped=skipped)
        if is_due(step, settings.sample_every_n_steps):
            self.preview(f"{step:06d}")
        if self.stop.requested():
            self.saved_at_stop = self.saver.save(position, by="step", skipped=skipped)
            self.saver.save_state(position, skipped)
            return Verdict.STOP
        if self.saver.state_is_due():
            self.saver.save_state(position, skipped)
        return Verdict.GO_ON

    def after_epoch(self, position: Position, skipped: Collection[int]) -> Verdict:
        """Tell of the epoch before `position`, and save what is due after it; STOP where more would be in vain."""
        run, settings = self.run, self.run.settings
        epoch, step = position.epoch - 1, position.global_step
        self.end_epoch(epoch)
        if epoch in measured_epochs(settings, run.plan):
            validate(run, self.training, self.run_log, epoch=epoch, step=step, by="epoch")
            self.keep_best(position)
        if epoch == run.plan.epoch_count:
            return Verdict.GO_ON
        if is_due(epoch, settings.save_every_n_epochs):
            self.saver.save(position, by="epoch", skipped=skipped)
        if is_due(epoch, settings.sample_every_n_epochs):
            self.preview(f"e{epoch:06d}")
        return Verdict.STOP if self.ends_early() else Verdict.GO_ON

    def finish(self, position: Position) -> None:
        """Write the final file, read it back, draw and measure with it, and say how to use it.

        Raises:
            UserError: what was trained is not finite.
        """
        from library.reporting import best_epoch, desktop

        try:
            path = self.saver.save(position)
        except FloatingPointError as error:
            raise not_finite(str(error)) from None
        norms = self.saver.read_back(path)
        last_previews(self.run, self.training, self.run_log, self.saver.write)
        tell_images(self.run, self.training, self.run_log)
        self.run_log.event("end", step=self.run_log.step, file=path.name)
        self.write_page(is_due=True)
        self.saver.end_states(position)
        log.info(closing_words(self.run, path, norms, self.best, best_epoch.recommend(self.run_log.validations)))
        settings = self.run.settings
        desktop.open_page(self.saver.path(".report.html"), settings.open_pages)
        desktop.announce_end(self.run.name, time.time() - self.saver.started_at, settings.notify_at_end)

    def stopped(self, position: Position) -> None:
        """Say how to go on with a run that the user stopped, and whose LoRA and state were written and read back."""
        assert self.saved_at_stop, "the loop ends before the plan's end where the user stops it"
        log.info(how_to_go_on(self.run, position, self.saved_at_stop, self.saver.state_folder))
        self.run_log.event("stopped", step=position.global_step)
        self.write_page(is_due=True)

    # ---- What is made ----

    def end_epoch(self, epoch: int) -> None:
        """Tell the mean loss of an epoch, and what each block has learnt by its end."""
        self.run_log.epoch_end(epoch)
        with self.training.averaged():
            self.run_log.event(
                "norms", epoch=epoch, step=self.run_log.step, blocks=self.training.adapters.block_norms()
            )

    def preview(self, when: str) -> None:
        preview(self.run, self.training, self.run_log, self.saver.write, when=when)

    @property
    def best(self) -> Path:
        """The file of the epoch that is recommended."""
        return self.saver.path(f"-best.{self.run.settings.save_model_as}")

    def keep_best(self, position: Position) -> None:
        """Keep the epoch that has just been measured, if it is the one recommended so far."""
        from library.reporting import best_epoch

        advice = best_epoch.recommend(self.run_log.validations)
        if self.run.settings.keep_best and advice and advice.epoch == position.epoch - 1:
            self.saver.write_lora(self.best, position)

    def ends_early(self) -> bool:
        """Whether early_stop wants the training to end here; that is said."""
        from library.reporting import best_epoch

        patience, measured = self.run.settings.early_stop, self.run_log.validations
        if patience and best_epoch.epochs_since_lowest(measured) >= patience:
            self.ended_early = True
            log.info(_ends_early(patience))
        return self.ended_early

    def write_tags(self) -> None:
        """How often each tag occurs, for the user to look through."""
        from library.data import captions

        is_sorted = self.run.settings.sort_tag_occurrence_alphabetically
        counts = captions.count_table(self.saver.data_facts["ss_tag_frequency"], is_sorted)
        path = self.saver.path(".tags.txt")
        self.saver.write(path, len(counts), lambda: path.write_text(counts, encoding="utf-8"))

    def write_page(self, *, is_due: bool = False) -> None:
        """Bring the report page up to date, if it is time; see `report_page`."""
        try:
            self.page.write(self.run_log.news, is_due=is_due)
        except Exception as error:  # a full disk, a fault of the page: neither must cost a training
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if reason != self.page_problem:
                log.info(say(f"the report page is not written: {reason}", f"未能写入报告页：{reason}"))
            self.page_problem = reason


def take_over_log(run: Run, path: Path) -> None:
    """Let run.jsonl of a run that is gone on with under another name begin as that run's, if their steps are the same.

    What it tells of later steps is cut when it is opened.
    """
    state = run.state
    if state is None or run.goes_on or run.position != state.position:
        return
    earlier = Path(run.settings.resume or "").parent / f"{state.facts['name']}.run.jsonl"
    is_beside = earlier.parent.resolve() == run.output_dir.resolve()  # else its images would be missing in the report
    if is_beside and earlier.is_file() and not path.exists():
        shutil.copyfile(earlier, path)


def is_due(count: int, every: int | None) -> bool:
    """Whether the count of steps or epochs is a whole multiple; None: never."""
    return bool(every) and count % every == 0


# ---- What is said ----


def _ends_early(patience: int) -> str:
    return say(
        f"stopping early: the loss of the held-out images has not fallen for {plural(patience, 'measurement')} "
        "(early_stop)",
        f"训练到此结束：留出图片的损失已连续 {patience} 次测量没有下降（early_stop）",
    )


def how_to_go_on(run: Run, position: Position, path: Path, state: Path) -> str:
    """That a run was stopped, what was saved, and the command that goes on with it."""
    from library.options import command_line

    done, steps = position.global_step, run.plan.step_count
    if run.settings.resume == "auto":
        how_en, how_zh = "start it again as before, or:", "用同样的方式再次启动即可接着训练，或运行："
    else:
        how_en = 'set resume = "auto" and start it again, or:'
        how_zh = '要接着训练，请设 resume = "auto" 再启动，或运行：'
    line = say(
        f"stopped after step {done} of {steps}; saved the LoRA {path} and the training state {state}. "
        f"To continue, {how_en}",
        f"已在第 {done} 步停止（共 {steps} 步），已保存 LoRA {path} 与训练状态 {state}。{how_zh}",
    )
    return f"{line}\n{command_line.command(run.settings, resume='auto')}"


def closing_words(run: Run, path: Path, norms: dict[str, float], best: Path, advice: Recommendation | None) -> str:
    """Where the result lies, what it learned, which epoch to use, and how.

    Args:
        norms: of the update of each part.
        best: where the recommended epoch lies, if it was kept.
        advice: None: nothing was measured.
    """
    learned = ", ".join(f"{part} {norm:.2f}" for part, norm in norms.items())
    texts = [folder.text for folder in run.plan.samples.folders if not folder.is_regularization]
    how = invocation(path.stem, texts, run.settings.weighted_captions)
    size = f"{path.stat().st_size / 2**20:.1f} MiB"
    lines = [
        say(
            f"saved {path} ({size}; norm of the update: {learned})",
            f"已保存 {path}（{size}；更新量（范数）：{learned}）",
        ),
        _how_to_use(how.prompt, run.settings.pretrained_model_name_or_path),
    ]
    lines += how.notes
    lines += advice.lines() if advice else []
    if advice and best.exists():
        lines.append(say(f"that epoch's file: {best}", f"该轮的文件：{best}"))
    comparison, report = (path.with_name(f"{run.name}{ending}") for ending in (".comparison.png", ".report.html"))
    if comparison.exists():
        lines.append(
            say(
                f"Without it (top) and with it (bottom): {comparison}",
                f"未使用（上）与使用（下）该 LoRA 的对比图：{comparison}",
            )
        )
    if report.exists():
        lines.append(say(f"Full report: {report}", f"完整报告：{report}"))
    return "\n".join(lines)


def _how_to_use(invoked: str, model: str) -> str:
    if is_delivered("pretrained_model_name_or_path", model):
        return say(
            "It works with the built-in miniature only: tools/try_lora.py generates with it. For a web UI, set "
            "your own base model as pretrained_model_name_or_path and train again",
            "它只能与自带的微型模型配合：用 tools/try_lora.py 试画。"
            "要在 web UI 里使用，请把 pretrained_model_name_or_path 设为您自己的底模，再训练一次",
        )
    return say(
        "To use it: copy it to models/Lora (AUTOMATIC1111, Forge) or models/loras (ComfyUI), and start the "
        f"prompt with: {invoked}",
        f"使用方法：复制到 models/Lora（AUTOMATIC1111、Forge）或 models/loras（ComfyUI），提示词以此开头：{invoked}",
    )
