"""Going on: which training state, under which name, from where in the plan, and what has changed since it was saved."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from library.files import sha256
from library.messages import UserError, plural, say
from library.options.resuming import differences
from library.options.training import Config
from library.training.resolve import place_of_step

if TYPE_CHECKING:
    import torch

    from library.data.plan import Plan
    from library.storage.run_lock import RunLock
    from library.storage.training_state import Position, State


def seed_of(config: Config, state: State | None) -> int:
    """The run's seed: the user's, else that of the run that is gone on with, else a new one."""
    if config.seed is not None:
        return config.seed
    return state.facts["seed"] if state else secrets.randbelow(2**32)


def find_state(config: Config) -> State | None:
    """The training state to go on from; None: begin anew."""
    from library.storage import training_state

    if config.resume in (None, "new"):
        return None
    if config.resume == "auto":
        return training_state.newest_state(Path(config.output_dir), config.output_name)
    return training_state.load_state(Path(config.resume))


def lock_name(config: Config, state: State | None) -> tuple[State | None, RunLock]:
    """The state, and a hold on the run's name. A state whose run is under way at this moment is left alone."""
    from library.storage import run_lock, training_state

    output_dir = Path(config.output_dir)
    busy: set[str] = set()
    if state and config.resume != "auto" and not keeps_its_name(config, state):
        return state, lock_free_name(config)
    while state:
        try:
            return state, run_lock.lock_name(output_dir, state.facts["name"])
        except UserError:
            if config.resume != "auto":
                raise
        busy.add(state.facts["name"])
        state = training_state.newest_state(output_dir, config.output_name, busy)
    return None, lock_free_name(config)


def lock_free_name(config: Config) -> RunLock:
    """A hold on a name that no earlier run has taken."""
    from library.storage import run_lock

    return run_lock.lock_free_name(Path(config.output_dir), config.output_name)


def keeps_its_name(config: Config, state: State) -> bool:
    """Whether a state that the user named goes on under its run's name: nothing of that run is written over.

    Else it is the beginning of a run with a name of its own: the earlier one is finished or was trained further than
    the state, or the user gives another output_name or output_dir.
    """
    from library.storage import saves

    folder, name = Path(config.output_dir), state.facts["name"]
    names = {name.casefold(), str(state.facts["config"].get("output_name")).casefold()}
    is_there = Path(config.resume or "").resolve().parent == folder.resolve()
    return is_there and config.output_name.casefold() in names and not saves.lies_beyond(folder, name, state.position)


def position_in(plan: Plan, state: State, config: Config) -> Position:
    """Where a state stands in a plan that need not be the one it was saved in.

    Where a state's place is also one of this plan, it stays: so it is when nothing has changed. Else what the end is
    named in goes on being counted: steps where there is max_train_steps, and epochs, with the share of the one that was
    begun, where there is max_train_epochs.

    Raises:
        UserError: nothing is left to train.
    """
    then, group = state.position, plan.batches_per_step
    if then.epoch > plan.epoch_count and not config.max_train_steps:
        raise UserError(_nothing_left(plan, state, config))
    if is_place_of(plan, state):
        position = then
    elif config.max_train_steps:
        if then.global_step >= plan.step_count:
            raise UserError(_nothing_left(plan, state, config))
        epoch, within = place_of_step(plan, then.global_step)
        position = type(then)(epoch, within * group, then.global_step)
    else:
        batches = plan.batch_counts[then.epoch - 1]
        # States of earlier versions do not know how long their epoch was: then at least a part of it is left.
        of_then = state.facts.get("epoch_batches") or max(batches, then.batch_in_epoch + 1)
        steps = then.batch_in_epoch * batches // of_then // group  # whole ones: a part of a step is trained again
        before = sum(plan.step_counts[: then.epoch - 1])
        position = type(then)(then.epoch, steps * group, before + steps)
        if then.batch_in_epoch >= of_then:
            position = type(then)(then.epoch + 1, 0, before + plan.step_counts[then.epoch - 1])
    if position.global_step >= plan.step_count:
        raise UserError(_nothing_left(plan, state, config))
    return position


def is_place_of(plan: Plan, state: State) -> bool:
    """Whether a state's epoch, batch and step are such of this plan, and its epoch is as long as it was then."""
    epoch, done, step = state.position
    if epoch > plan.epoch_count:
        return (done, step) == (0, plan.step_count)
    batches, group = plan.batch_counts[epoch - 1], plan.batches_per_step
    is_as_long = state.facts.get("epoch_batches", batches) == batches
    is_whole_step = done <= batches and (done % group == 0 or done == batches)
    return is_as_long and is_whole_step and step == sum(plan.step_counts[: epoch - 1]) + -(-done // group)


def fingerprint_of_data(plan: Plan) -> str:
    """Changes with the images' names, sizes and bytes, the captions, masks, folders and how often they are repeated.

    Bytes are counted, not read: there may be a hundred thousand images, and a copy has another date.
    """
    from library.data import dataset_config

    facts = [
        (
            sample.folder,
            sample.image_path.name,
            sample.image_path.stat().st_size,
            sample.width,
            sample.height,
            sample.caption,
            sample.repeats,
            *((sample.mask.digest, sample.mask.is_alpha, sample.mask.share) if sample.mask else ()),
        )
        for sample in plan.samples_used
    ]
    facts += [
        (folder.dataset, plan.samples.overrides[folder.dataset], dataset_config.values_of(folder.options))
        for folder in plan.samples.folders
        if folder.options
    ]
    return sha256(repr(facts).encode()).hex()


def changes_since(state: State, settings: Config, data: str, dtype: torch.dtype) -> list[str]:
    """What is not as it was when the state was saved.

    Raises:
        UserError: something is, and the user has not asked for this very state.
    """
    before, numbers = state.facts["config"], str(dtype).removeprefix("torch.")
    changes = differences(before, settings)
    if state.facts.get("data", data) != data:
        changes.append(say("the images, masks or captions have changed", "图片、蒙版或标注有改动"))
    then = state.facts.get("dtype", numbers)
    if numbers != then and before["mixed_precision"] == settings.mixed_precision:  # another device
        changes.append(_computed_otherwise(then, numbers))
    if changes and settings.resume == "auto":
        folder = Path(settings.output_dir) / f"{state.facts['name']}-state"
        raise UserError([*changes, _ways_to_go_on(folder)], _can_be_continued(state))
    return [*changes, _counts_from_here_on()] if changes else []


# ---- What is said ----


def _counts_from_here_on() -> str:
    return say(
        "these changes count from here on, unless noted otherwise",
        "以上改动从现在起生效（另有说明的除外）",
    )


def counted_anew(plan: Plan, state: State, position: Position) -> str:
    """That the steps of an epoch are not as many as they were, and how the epochs are counted."""
    epoch, done, step = position
    batches, then = plan.batch_counts[epoch - 1], state.position.global_step
    if step == then:
        return say(
            f"an epoch's steps are not as many as before; steps are counted: {step} of {plan.step_count} are done, and "
            f"training goes on in epoch {epoch}, after {done} of its {plural(batches, 'batch', 'batches')}",
            f"每轮的步数与以前不同。按步数接着算：已完成 {step} 步（共 {plan.step_count} 步），"
            f"从第 {epoch} 轮继续（该轮共 {batches} 批，已完成 {done} 批）",
        )
    begun_en = f", and {done} of the {batches} batches of the next" if done else ""
    begun_zh = f"，下一轮 {batches} 批中已完成 {done} 批" if done else ""
    return say(
        f"an epoch's steps are not as many as before; epochs are counted: {epoch - 1} of {plan.epoch_count} are done"
        f"{begun_en}. Step {then} of then is step {step} of {plan.step_count} now",
        f"每轮的步数与以前不同。按轮数接着算：已完成 {epoch - 1} 轮（共 {plan.epoch_count} 轮）{begun_zh}。"
        f"当时的第 {then} 步相当于现在的第 {step} 步（共 {plan.step_count} 步）",
    )


def _nothing_left(plan: Plan, state: State, config: Config) -> str:
    epoch, done, step = state.position
    if config.max_train_steps:
        return say(
            f"resume = {config.resume} stands after {plural(step, 'step')}, and max_train_steps = "
            f"{config.max_train_steps} ends the run there or earlier: nothing is left to train. Raise max_train_steps.",
            f"resume = {config.resume}：已完成 {step} 步，而 max_train_steps = {config.max_train_steps} "
            "在此处或更早就结束，没有可训练的部分。请增大 max_train_steps。",
        )
    begun_en, begun_zh = (f" and {plural(done, 'batch', 'batches')}", f"零 {done} 批") if done else ("", "")
    return say(
        f"resume = {config.resume} stands after {plural(epoch - 1, 'epoch')}{begun_en}, and max_train_epochs = "
        f"{plan.epoch_count} ends the run there or earlier: nothing is left to train. Raise max_train_epochs.",
        f"resume = {config.resume}：已完成 {epoch - 1} 轮{begun_zh}，而 max_train_epochs = {plan.epoch_count} "
        "在此处或更早就结束，没有可训练的部分。请增大 max_train_epochs。",
    )


def begins_anew(config: Config, name: str) -> str:
    """That the name is taken by runs with which resume = "auto" does not go on, and how to go on with the last."""
    from library.storage import training_state

    taken = say(
        f"{config.output_dir} already contains {config.output_name}: this run is named {name}",
        f"{config.output_dir} 中已有 {config.output_name}，本次的文件名为 {name}",
    )
    if config.resume != "auto":
        return taken
    finished = [
        one
        for one in training_state.candidates(Path(config.output_dir), config.output_name)
        if one.facts.get("finished")
    ]
    if not finished:
        return say(
            f"{taken} and begins anew, as no run there is unfinished (to train a LoRA further, set it as "
            "network_weights)",
            f"{taken}，从头开始，因为那里没有未完成的训练（要继续训练某个 LoRA，请把它填到 network_weights）",
        )
    last, step = finished[0], finished[0].position.global_step
    return say(
        f"{taken} and begins anew, as {last.facts['name']} is finished (step {step}). To train that one further, set "
        f'resume = "{last.folder}" and raise max_train_epochs or max_train_steps',
        f"{taken}，从头开始，因为 {last.facts['name']} 已训练完（第 {step} 步）。要继续训练它，"
        f'请设 resume = "{last.folder}"，并增大 max_train_epochs 或 max_train_steps',
    )


def named_anew(config: Config, state: State, name: str) -> str:
    """That what a state begins has a name of its own."""
    before = state.facts["name"]
    return say(
        f"this run is named {name}: it begins with the training state of {before}, whose files stay as they are",
        f"本次的文件名为 {name}：以 {before} 的训练状态为起点，{before} 的文件保持不变",
    )


def _computed_otherwise(then: str, now: str) -> str:
    option = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[then]
    return say(
        f'it was computed in {then}, and would be in {now} now (mixed_precision = "{option}" keeps it)',
        f'此前以 {then} 计算，现在会用 {now}（设 mixed_precision = "{option}" 可保持不变）',
    )


def _ways_to_go_on(folder: Path) -> str:
    return say(
        f'restore these to continue, or set resume = "new" to start over, or resume = "{folder}" to continue anyway',
        f'请改回原值以接着训练；或设 resume = "new" 重新开始；或设 resume = "{folder}" 仍然接着训练',
    )


def _can_be_continued(state: State) -> str:
    name, step = state.facts["name"], state.position.global_step
    return say(
        f"{name} was stopped after step {step} and can be continued, but:",
        f"{name} 在第 {step} 步后中断，可以接着训练，但是：",
    )
