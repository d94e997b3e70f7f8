"""Everything that is cheap, before any model is loaded: read, check, resolve, and say what will happen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from library.messages import UserError, log, plural, say
from library.options.training import Config
from library.training.dataset_findings import short
from library.training.resolve import Decided, first_position, plan_data, settings_of
from library.training.resuming import (
    begins_anew,
    changes_since,
    counted_anew,
    find_state,
    fingerprint_of_data,
    keeps_its_name,
    lock_free_name,
    lock_name,
    named_anew,
    position_in,
    seed_of,
)
from library.training.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from library.contracts import FamilyFacts, ModelInfo
    from library.data.buckets import BucketRule
    from library.data.plan import Plan
    from library.data.samples import Samples
    from library.diffusion.sampling import Prompt
    from library.hardware.device import Device
    from library.hardware.distributed import ProcessGroup
    from library.lora_files.merging import Strength
    from library.optim.optimizers import Settings
    from library.storage.run_lock import RunLock
    from library.storage.training_state import State

P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Sources:
    """What was read: the files that the options name, and the device."""

    samples: Samples
    model: ModelInfo
    device: Device
    rules: list[BucketRule]  # of each data set
    prompts: list[Prompt]  # none: the captions of the set are taken
    state: State | None
    start: dict[str, Tensor] | None
    bundled: dict[str, Tensor]
    optimizer_args: Settings
    base_loras: list[Strength]
    cache_folder: Path | None
    notes: list[str]


def prepare(asked: Config, notes: list[str], processes: ProcessGroup) -> Run:
    """Do all cheap things first: read names, images, captions and prompts; then say what will happen.

    Args:
        notes: what the check of the options found, to be said with the rest.

    Raises:
        UserError: all that is wrong with them, together.
    """
    sources = read_sources(asked, processes)
    state, lock = lock_name(asked, sources.state) if processes.is_first else (None, None)
    try:
        decided = (state, lock.name, seed_of(asked, state)) if lock else None
        state, name, seed = processes.broadcast(decided)
        return resolve(asked, sources, processes, state=state, lock=lock, name=name, seed=seed, notes=notes)
    except BaseException:
        if lock:
            lock.release()
        raise


def read_sources(asked: Config, processes: ProcessGroup) -> Sources:
    """Read and check everything that the options name.

    Raises:
        UserError: all that is wrong with it, together.
    """
    from library.data import buckets, file_index

    problems: list[str] = []
    notes: list[str] = []

    def attempt(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R | None:
        try:
            return function(*arguments, **options)
        except UserError as error:
            problems.extend(error.problems)
            return None

    cache_folder, line = attempt(file_index.cache_folder, asked) or (None, None)
    notes += [line] if line else []
    found = attempt(find_set, asked, cache_folder)
    from library import families  # these import torch
    from library.diffusion import objectives, sampling
    from library.hardware.device import choose, self_test
    from library.optim import optimizers
    from library.reporting import trackers

    model = attempt(families.inspect, asked.pretrained_model_name_or_path)
    width = model.width if model else 0
    device = attempt(choose, processes.device or asked.device, asked.mixed_precision, width)
    if device:
        attempt(self_test, device)
    of_sets = found.configs(asked) if found else [] if asked.dataset_config else [asked]
    rules = [attempt(buckets.resolve_resolution, own, model.resolution, model.size_step) for own in of_sets if model]
    attempt(make_folder, Path(asked.output_dir))
    state = attempt(find_state, asked) if processes.is_first else None
    start = attempt(read_start, asked, model) if asked.network_weights else None
    bundled, lines = (attempt(read_bundled, asked) if start else None) or ({}, [])
    notes += lines
    prompts = attempt(sampling.prompts_of, asked.sample_prompts) if asked.sample_prompts else None
    optimizer_args = attempt(optimizers.parse_args, asked.optimizer_args)
    attempt(optimizers.parse_args, asked.lr_scheduler_args, "lr_scheduler_args")
    if asked.log_tracker_config:
        attempt(trackers.read_settings, asked.log_tracker_config)
    base_loras: list[Strength] = []
    if model:
        notes += attempt(check_blocks, asked, families.facts_of(model.family)) or []
        base_loras = (attempt(read_base, asked, model) if asked.base_weights else None) or []
        attempt(objectives.check_options, asked, "v" if asked.v_parameterization else model.objective)
    if problems:
        raise UserError(problems)
    assert found is not None  # whatever is missing is a problem
    assert model is not None
    assert device is not None
    assert optimizer_args is not None
    return Sources(
        samples=found,
        model=model,
        device=device,
        rules=[rule for rule in rules if rule],
        prompts=prompts or [],
        state=state,
        start=start,
        bundled=bundled,
        optimizer_args=optimizer_args,
        base_loras=base_loras,
        cache_folder=cache_folder,
        notes=notes,
    )


def resolve(
    asked: Config,
    sources: Sources,
    processes: ProcessGroup,
    *,
    state: State | None,
    lock: RunLock | None,
    name: str,
    seed: int,
    notes: list[str],
) -> Run:
    """Decide what depends on several of the things that were read, and say what will happen."""
    from library.data.plan import typical_captions
    from library.diffusion import sampling
    from library.storage.training_state import Position

    model, device = sources.model, sources.device
    planned, of_data, lines = plan_data(
        asked, sources.samples, model, sources.rules, seed=seed, device=device, process_count=processes.count
    )
    settings = settings_of(asked, of_data, decide(asked, sources, planned, seed, processes.count))
    notes = [*notes, *sources.notes, *lines]
    if (settings.stop_text_encoder_training or 0) >= planned.step_count:
        notes.append(_text_encoder_never_stops(settings, planned))
    data = fingerprint_of_data(planned)
    if state:
        notes += state.notices + changes_since(state, settings, data, device.dtype)
        position = position_in(planned, state, settings)
        if position != state.position:
            notes.append(counted_anew(planned, state, position))
            if lock and keeps_its_name(settings, state):  # the steps of its files bear other numbers
                lock.move_to(lock_free_name(settings))
        name = processes.broadcast(lock.name if lock else None)
        if name != state.facts["name"]:
            notes.append(named_anew(settings, state, name))
    else:
        position = Position(*first_position(settings, planned))
        if settings.initial_step or settings.initial_epoch:
            notes.append(_begins_later(position))
        if name != settings.output_name:
            notes.append(begins_anew(settings, name))
    notes += sampling.left_out(sources.prompts)
    prompts = sources.prompts or [as_prompt(caption, settings) for caption in typical_captions(planned, settings)]
    size = planned.rule.width, planned.rule.height
    run = Run(
        asked=asked,
        settings=settings,
        name=name,
        seed=seed,
        model=model,
        plan=planned,
        prompts=sampling.complete(prompts, size=size, seed=seed, sampler=settings.sample_sampler),
        device=device,
        processes=processes,
        position=position,
        data=data,
        optimizer_args=sources.optimizer_args,
        start=sources.start,
        bundled=sources.bundled,
        state=state,
        lock=lock,
        cache_folder=sources.cache_folder,
        base_loras=sources.base_loras,
    )
    announce(run, notes)
    return run


def as_prompt(caption: str, settings: Config) -> Prompt:
    """A preview's prompt that says what a caption says."""
    from library.diffusion import prompts, sampling

    if settings.weighted_captions:
        with suppress(UserError):  # it is in the same writing, but may have what is only words to the training
            prompts.parse(caption)
            return sampling.Prompt(caption)
        caption = "".join(text for text, _ in prompts.weights(caption))
    return sampling.Prompt(prompts.nearest_literal(caption))


def decide(asked: Config, sources: Sources, plan: Plan, seed: int, process_count: int) -> Decided:
    """What base model, device and start decide of the options."""
    from library.adapters import sizes
    from library.optim import optimizers

    usual_rate = optimizers.usual_learning_rate(asked.optimizer_type, sources.model.width)
    decided: Decided = dict(
        seed=seed,
        learning_rate=usual_rate if asked.learning_rate is None else asked.learning_rate,
        zero_terminal_snr=asked.zero_terminal_snr or sources.model.zero_terminal_snr,
        num_processes=max(1, process_count // asked.num_machines),  # a launcher may have started others than asked
        wandb_api_key=None,  # a secret: what is written down must not hold it
    )
    if asked.dim_from_weights and sources.start:
        usual = sizes.most_common(sources.start, asked)
        decided |= dict(network_dim=usual.rank, network_alpha=usual.alpha)
    if asked.save_n_epoch_ratio:
        decided["save_every_n_epochs"] = max(1, plan.epoch_count // asked.save_n_epoch_ratio)
    return decided


def announce(run: Run, notes: list[str]) -> None:
    """Say what will happen."""
    from library import families
    from library.data import plan

    family = families.facts_of(run.model.family)
    lines, counted = short(run.plan, run.settings, notes, knows_english_only=family.knows_english_only)
    log.info(plan.plan_table(run.plan, run.settings))
    log.info(_in_one_line(run))
    for line in notes + lines:
        run.note(line)
    if counted:
        log.info(counted)
    if run.state:
        log.info(_goes_on(run))


def find_set(asked: Config, memory: Path | None) -> Samples:
    """The images and captions that a configuration names; see `samples.find_samples`.

    Args:
        memory: where earlier runs have kept what they found out about files.
    """
    from library.data import dataset_config, held_out, samples

    how = dict(reg_captions=asked.reg_captions, masked_loss=asked.masked_loss, memory=memory)
    if asked.dataset_config or asked.in_json:
        describe = dataset_config.read_dataset_config if asked.dataset_config else dataset_config.of_in_json
        subsets, overrides, notes = describe(asked)
        found = samples.read_subsets(subsets, overrides, **how)
        found = dataclasses.replace(found, warnings=notes + found.warnings)
    else:
        reading = samples.Reading.of(asked)
        found = samples.find_samples(
            asked.train_data_dir,
            asked.reg_data_dir,
            caption_extension=reading.caption_extension,
            all_lines=reading.all_lines,
            alpha_mask=reading.alpha_mask,
            masks_dir=reading.masks,
            least=reading.least,
            **how,
        )
    return (
        held_out.find_held_out(asked.validation_data_dir, found, asked, memory) if asked.validation_data_dir else found
    )


def check_blocks(asked: Config, family: FamilyFacts) -> list[str]:
    """What there is to say about lists with a value for each block. Raises UserError: they do not fit the model."""
    from library.adapters import sizes

    if isinstance(asked.text_encoder_lr, list) and "text_encoder_2" not in family.parts:
        raise UserError(
            say(
                f"text_encoder_lr = {asked.text_encoder_lr}: this base model has one text encoder; use one value",
                f"text_encoder_lr = {asked.text_encoder_lr}：此底模只有一个文本编码器；请只填一个值",
            )
        )
    return sizes.read_blocks(asked, family.blocks)[1]


def read_start(asked: Config, model: ModelInfo | None) -> dict[str, Tensor]:
    """The tensors of the LoRA to begin with, whoever wrote it. Raises UserError."""
    from library import families
    from library.lora_files.factors import in_our_writing
    from library.lora_files.layouts import without_bundled
    from library.storage import lora_file, metadata

    path = Path(asked.network_weights or "")
    if model is None:  # which is told already
        return lora_file.load_adapter(path, lambda own: without_bundled(own)[0])
    layers = families.blueprint(model, asked.max_token_length).layers()
    return lora_file.load_adapter(path, lambda own: in_our_writing(path.name, own, layers, metadata.of_file(path)))


def read_bundled(asked: Config) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of embeddings in the LoRA to begin with, which its training leaves as they are; what is said."""
    from library.lora_files.layouts import without_bundled
    from library.storage import lora_file
    from library.tooling import lora_files

    path = Path(asked.network_weights or "")
    names = lora_files.embeddings_in(path)
    if not names:
        return {}, []
    _, bundled = without_bundled(lora_file.read_tensors(path))
    english, chinese = "not trained, and kept in the files of this run", "不参与训练，会原样保留在本次训练的文件里"
    return bundled, [lora_files.bundled_note(path.name, names, english, chinese)]


def read_base(asked: Config, model: ModelInfo) -> list[Strength]:
    """The LoRAs that the base model gets before training. Raises UserError: a file is none, or fits another model."""
    from library import families
    from library.lora_files import merging
    from library.tooling import lora_files

    paths = asked.base_weights or []
    layers = families.blueprint(model, asked.max_token_length).layers()
    base = families.facts_of(model.family)
    strengths = [*(asked.base_weights_multiplier or []), *[1.0] * len(paths)]
    found, problems = [], []
    for name, strength in zip(paths, strengths, strict=False):
        try:
            file = lora_files.read_lora(Path(name))
            if file.bundled:
                english, chinese = "only the LoRA goes into the base model", "只有 LoRA 部分合并进底模"
                log.warning(lora_files.bundled_note(file.path.name, file.embeddings, english, chinese))
            factors = merging.fit(name, file.factors, layers, made_for=file.family, base=base)
            found.append(merging.Strength(factors, strength, strength))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return found


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            say(
                f"output_dir = {folder} cannot be made ({reason}). Choose another folder.",
                f"output_dir = {folder} 无法建立（{reason}），请换一个目录。",
            )
        ) from None


# ---- What is said ----


def _in_one_line(run: Run) -> str:
    from library import families

    settings, model = run.settings, families.describe(run.model)
    return say(
        f"model: {model}; {run.device.description}; {settings.optimizer_type}, learning rate "
        f"{settings.learning_rate:g}; seed {run.seed}; {settings.max_token_length} caption tokens",
        f"底模：{model}；{run.device.description}；{settings.optimizer_type}，学习率 {settings.learning_rate:g}；随"
        f"机种子 {run.seed}；标注 {settings.max_token_length} 个 token",
    )


def _goes_on(run: Run) -> str:
    step = run.position.global_step
    return say(
        f'continuing {run.name} after step {step} (resume = "new" starts over)',
        f'接着训练 {run.name}，从第 {step} 步之后继续（resume = "new" 则重新开始）',
    )


def _text_encoder_never_stops(settings: Config, plan: Plan) -> str:
    stop = settings.stop_text_encoder_training
    return say(
        f"stop_text_encoder_training = {stop} has no effect: the run has {plural(plan.step_count, 'step')}",
        f"stop_text_encoder_training = {stop} 不起作用：全程只有 {plan.step_count} 步",
    )


def _begins_later(position: tuple[int, int, int]) -> str:
    epoch, _, step = position
    return say(
        f"beginning with epoch {epoch}, after step {step}; the learning rate's schedule begins at its beginning, as in "
        "sd-scripts (a training state goes on exactly: see resume)",
        f"从第 {epoch} 轮、第 {step} 步之后开始；学习率调度从头开始，与 sd-scripts 相同"
        "（要完全接着训练请用训练状态，见 resume）",
    )
