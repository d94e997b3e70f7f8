"""Going on: which training state, under which name, and what has changed since it was saved."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from library.files import sha256
from library.messages import UserError, say
from library.options.resuming import differences
from library.options.training import Config

if TYPE_CHECKING:
    import torch

    from library.data.plan import Plan
    from library.storage.run_lock import RunLock
    from library.storage.training_state import State


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
    while state:
        try:
            return state, run_lock.lock_name(output_dir, state.facts["name"])
        except UserError:
            if config.resume != "auto":
                raise
        busy.add(state.facts["name"])
        state = training_state.newest_state(output_dir, config.output_name, busy)
    return None, run_lock.lock_free_name(output_dir, config.output_name)


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
        (folder.dataset, plan.found.overrides[folder.dataset], dataset_config.values_of(folder.options))
        for folder in plan.found.folders
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
    return changes


# ---- What is said ----


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
