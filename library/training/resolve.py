"""What the options come to: every None, "auto" and limit that data, base model and start of the run decide.

Nothing here imports torch, so the doctor can ask what would be trained without waiting for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from library.messages import UserError, plural, say
from library.options.derived import changes_images
from library.options.training import Config

if TYPE_CHECKING:
    from library.contracts import ModelInfo
    from library.data.buckets import BucketRule
    from library.data.held_out import Scope
    from library.data.plan import Plan
    from library.data.samples import Samples
    from library.hardware.device import Device

Decided = dict[str, Any]  # option -> its value; of every kind that options have


class DataPlan(NamedTuple):
    """What follows from the set and the base model together."""

    plan: Plan
    decided: Decided
    notes: list[str]


def settings_of(asked: Config, *decided: Decided) -> Config:
    """What was asked, with all that was decided."""
    return dataclasses.replace(asked, **{name: value for own in decided for name, value in own.items()})


def plan_data(
    asked: Config,
    found: Samples,
    model: ModelInfo,
    rules: Sequence[BucketRule],
    *,
    seed: int = 0,
    device: Device | None = None,
    process_count: int = 1,
) -> DataPlan:
    """Plan the epochs, decide what follows from the images, and say everything about them that the user should know.

    Args:
        rules: of each data set.
        seed: the run's; of the choice of images that are held out.
        device: whose sizes cost tuning; None: as if none did.
    """
    from library import families
    from library.data import captions, held_out, plan

    notes: list[str] = []
    decided: Decided = {}
    if asked.validation_split and not asked.validation_data_dir:
        own_seed = seed if asked.validation_seed is None else asked.validation_seed
        found = held_out.split(found, asked.validation_split, own_seed)
    found = dataclasses.replace(found, validation=held_out.fixed(found.validation, asked))
    if asked.cache_latents and any(one.options and changes_images(one.options) for one in found.folders):
        decided["cache_latents"] = False
        notes.append(_subset_changes_images())
    whole_batches = device is not None and device.tunes_per_shape
    how = dict(whole_batches=whole_batches, process_count=process_count)
    planned = plan.make_plan(found, asked, *rules, **how)
    if device and device.bucket_limit:
        coarser = fewer_buckets(planned, device.bucket_limit)
        if coarser != list(rules):
            planned = plan.make_plan(found, asked, *coarser, **how)
            notes.append(_fewer_buckets([rule.step for rule in coarser], len(planned.sizes)))
    if planned.samples.validation:
        decided["validate_every_n_epochs"] = validation_scope(asked, planned).every

    counts = families.token_counts(model, [captions.whole_of(sample, asked) for sample in planned.samples_used])
    step = families.facts_of(model.family).chunk_tokens
    tokens_seen = min(asked.max_token_length, step * max(1, -(-max(counts) // step)))  # none that is empty in all
    decided["max_token_length"] = tokens_seen
    notes += plan.check(
        planned,
        settings_of(asked, decided),
        token_counts=lambda texts: [(n, min(n, tokens_seen)) for n in families.token_counts(model, texts)],
        is_everyday_word=families.is_everyday_word,
    )
    rule = planned.rule
    if not asked.dataset_config:  # whose data sets would else take these for the run's wish
        decided |= dict(
            resolution=f"{rule.width},{rule.height}",
            min_bucket_reso=rule.minimum,
            max_bucket_reso=rule.maximum,
            bucket_reso_steps=rule.step,
        )
    return DataPlan(planned, decided, notes)


def fewer_buckets(planned: Plan, limit: int) -> list[BucketRule]:
    """The rules of the data sets with steps so large that no more than `limit` sizes are left of each."""
    from library.data import buckets

    rules = []
    for place, own in enumerate(planned.sets):
        used = {(one.width, one.height) for one in planned.samples_used if one.dataset == place}
        is_open = own.config.bucket_reso_steps is None
        rules.append(buckets.fewer_buckets(used, own.rule, limit) if is_open else own.rule)
    return rules


def validation_scope(config: Config, plan: Plan) -> Scope:
    """How much of a planned run's images is measured, and how often."""
    from library.data import held_out

    samples = plan.batch_size * plan.batches_per_step * plan.step_count / plan.epoch_count
    regularization = sum(sample.is_regularization for sample in plan.samples_used)
    return held_out.scope(len(plan.samples.validation), regularization, samples, config.validate_every_n_epochs)


def first_position(config: Config, plan: Plan) -> tuple[int, int, int]:
    """Where a run without a training state begins: `initial_step`, or the first step of `initial_epoch`.

    Without skip_until_initial_step the epoch in which that step lies is seen from its beginning.

    Returns:
        Epoch, from 1; batches of it that are left out; steps that count as done.

    Raises:
        UserError: nothing is left to train from there.
    """
    step = config.initial_step or sum(plan.step_counts[: (config.initial_epoch or 1) - 1])
    if step >= plan.step_count or (config.initial_epoch or 1) > plan.epoch_count:
        raise UserError(_nothing_left(config, plan))
    epoch, within = place_of_step(plan, step)
    if not config.skip_until_initial_step:
        step, within = step - within, 0
    return epoch, within * plan.batches_per_step, step


def place_of_step(plan: Plan, done: int) -> tuple[int, int]:
    """The epoch, from 1, in which the step after `done` steps lies, and how many of its steps are done."""
    assert done < plan.step_count, "the run is at its end"
    epoch = 1
    while done >= plan.step_counts[epoch - 1]:
        done -= plan.step_counts[epoch - 1]
        epoch += 1
    return epoch, done


# ---- What is said ----


def _subset_changes_images() -> str:
    return say(
        "cache_latents is off, because color_aug, random_crop or face_crop_aug_range of a subset changes the "
        "images at every use",
        "已关闭 cache_latents，因为某个子集的 color_aug、random_crop 或 face_crop_aug_range 每次都会改变图片",
    )


def _fewer_buckets(steps: list[int], bucket_count: int) -> str:
    listed = ", ".join(map(str, steps))
    return say(
        f"bucket_reso_steps = {listed} leaves {bucket_count} buckets: each takes minutes of tuning on this card",
        f"bucket_reso_steps 改为 {listed}，桶减为 {bucket_count} 个：此显卡每个桶都要调优几分钟",
    )


def _nothing_left(config: Config, plan: Plan) -> str:
    name = "initial_step" if config.initial_step else "initial_epoch"
    return say(
        f"{name} = {getattr(config, name)}: the whole run has {plural(plan.epoch_count, 'epoch')} and "
        f"{plural(plan.step_count, 'step')}, so nothing is left to train. Raise max_train_epochs or max_train_steps, "
        "or lower this",
        f"{name} = {getattr(config, name)}：全程只有 {plan.epoch_count} 轮、{plan.step_count} 步，"
        "没有可训练的部分。请增大 max_train_epochs 或 max_train_steps，或减小此项",
    )
