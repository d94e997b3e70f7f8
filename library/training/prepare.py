"""Everything that is cheap, before any model is loaded: read, check, resolve, and say what will happen."""

import dataclasses
import hashlib
import secrets
import sys
from pathlib import Path
from typing import Any, NamedTuple

from library.messages import UserError, say
from library.options.derived import changes_images
from library.options.resuming import differences
from library.options.training import Config
from library.training.dataset_findings import short


@dataclasses.dataclass
class Prepared:
    """What is known before any model is loaded."""

    config: Config  # "auto" and None resolved where that is possible by now
    seed: int
    name: str  # of all files of this run
    model: Any  # families.ModelInfo
    plan: Any  # data.plan.Plan
    prompts: list  # of sampling.Prompt
    machine: Any  # device.Device
    optimizer_args: dict[str, Any]
    start: dict | None  # tensors of the LoRA file to begin with
    state: Any  # training_state.State to go on from, or None
    world: Any  # processes.World
    run_lock: Any  # run_lock.RunLock on the name; None in all processes but the first
    cache_folder: Path | None  # of latents and captions; None: in memory
    data: str  # changes with the pictures, captions and folders
    base_loras: list = dataclasses.field(default_factory=list)  # of merging.Strength: what the base model gets first
    notes: list[str] = dataclasses.field(default_factory=list)  # said to the user, for the report to say again

    @property
    def position(self) -> Any:
        """Where the run goes on, or begins: a `training_state.Position`."""
        return self.state.position if self.state else first_position(self.config, self.plan)

    def note(self, line: str) -> None:
        """Say what the user should know of, and keep it."""
        self.notes.append(line)
        print(say(f"note: {line}", f"注意：{line}"), flush=True)


def prepare(config: Config, warnings: list[str], world: Any) -> Prepared:
    """Do all cheap things first: read names, pictures, captions and prompts; then say what will happen.

    Raises:
        UserError: all that is wrong with them, together.
    """
    from library.data import buckets, file_index

    problems: list[str] = []

    def attempt(function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except UserError as error:
            problems.extend(error.problems)

    cache_folder, line = attempt(file_index.cache_folder, config) or (None, None)
    warnings = warnings + [line] if line else warnings
    found = attempt(find_set, config, cache_folder)
    from library import families
    from library.diffusion import sampling
    from library.hardware import device
    from library.optim import optimizers
    from library.reporting import trackers
    from library.storage import lora_file

    model = attempt(families.inspect, config.pretrained_model_name_or_path)
    machine = attempt(device.choose, world.device or config.device, config.mixed_precision, model.width if model else 0)
    if machine:
        attempt(device.self_test, machine)
    sets = found.configs(config) if found else [] if config.dataset_config else [config]
    rules = [attempt(buckets.resolve_resolution, own, model.resolution, model.size_step) for own in sets if model]
    output_dir = Path(config.output_dir)
    attempt(make_folder, output_dir)
    state = attempt(find_state, config) if world.is_first else None
    start = attempt(lora_file.load_adapter, Path(config.network_weights)) if config.network_weights else None
    prompts = attempt(sampling.prompts_of, config.sample_prompts) if config.sample_prompts else None
    optimizer_args = attempt(optimizers.parse_args, config.optimizer_args)
    attempt(optimizers.parse_args, config.lr_scheduler_args, "lr_scheduler_args")
    if config.log_tracker_config:
        attempt(trackers.read_settings, config.log_tracker_config)
    if model:
        warnings = warnings + (attempt(check_blocks, config, model.family) or [])
    base_loras = attempt(read_base, config, model) if model and config.base_weights else []
    if model:
        attempt(check_objective, config, "v" if config.v_parameterization else model.objective)
    if problems:
        raise UserError(problems)

    state, lock = lock_name(config, state) if world.is_first else (None, None)
    try:
        state, name, seed = world.told((state, lock and lock.name, seed_of(config, state)))
        config = dataclasses.replace(config, seed=seed)
        prepared = plan_run(config, warnings, found, model, machine, rules, prompts, optimizer_args, start, state, name)
    except BaseException:
        if lock:
            lock.release()
        raise
    return dataclasses.replace(
        prepared,
        world=world,
        run_lock=lock,
        cache_folder=cache_folder,
        base_loras=base_loras,
    )


def plan_run(
    config: Config,
    warnings: list[str],
    found: Any,
    model: Any,
    machine: Any,
    rules: Any,
    prompts: Any,
    optimizer_args: dict[str, Any],
    start: Any,
    state: Any,
    name: str,
) -> Prepared:
    """Resolve what depends on several of the things that were read, and say what will happen."""
    from library import families
    from library.data import plan
    from library.diffusion import sampling
    from library.optim import optimizers

    output_dir = Path(config.output_dir)
    seed = config.seed
    config, planned, rule, lines = resolve(
        config, found, model, rules, whole_batches=machine.tunes_per_shape, bucket_limit=machine.bucket_limit
    )
    warnings = warnings + lines
    usual_rate = optimizers.usual_learning_rate(config.optimizer_type, model.width)
    config = dataclasses.replace(
        config,
        learning_rate=usual_rate if config.learning_rate is None else config.learning_rate,
        zero_terminal_snr=config.zero_terminal_snr or model.zero_terminal_snr,
    )
    if config.dim_from_weights:
        from library.adapters import sizes

        usual = sizes.most_common(start, config)
        config = dataclasses.replace(config, network_dim=usual.rank, network_alpha=usual.alpha)
    if config.save_n_epoch_ratio:
        config = dataclasses.replace(
            config, save_every_n_epochs=max(1, planned.epoch_count // config.save_n_epoch_ratio)
        )
    if (config.stop_text_encoder_training or 0) >= planned.step_count:
        stop = config.stop_text_encoder_training
        warnings.append(
            say(
                f"stop_text_encoder_training = {stop} has no effect: the run has {planned.step_count} steps",
                f"stop_text_encoder_training = {stop} 不起作用：全程只有 {planned.step_count} 步",
            )
        )
    if not state and (config.initial_step or config.initial_epoch):
        first = first_position(config, planned)
        warnings.append(
            say(
                f"beginning with epoch {first.epoch}, after step {first.global_step}; the learning rate's schedule "
                "begins at its beginning, as in sd-scripts (a training state goes on exactly: see resume)",
                f"从第 {first.epoch} 轮、第 {first.global_step} 步之后开始；学习率调度从头开始，与 sd-scripts 相同"
                "（要完全接着训练请用训练状态，见 resume）",
            )
        )
    tokens_seen = config.max_token_length
    prompts = prompts or [sampling.Prompt(caption) for caption in plan.typical_captions(planned, config)]
    prompts = sampling.complete(prompts, size=(rule.width, rule.height), seed=seed, sampler=config.sample_sampler)
    data = fingerprint_of_data(planned)
    if state:
        warnings += state.notices + changes_since(state, config, data, machine.dtype)
    elif name != config.output_name:
        warnings.append(
            say(
                f"{output_dir} already holds {config.output_name}: this run is named {name}",
                f"{output_dir} 中已有 {config.output_name}，本次的文件名为 {name}",
            )
        )

    lines, counted = short(planned, config, warnings)
    print(plan.plan_table(planned, config))
    print(
        say(
            f"model: {families.describe(model)}; {machine.description}; {config.optimizer_type}, learning rate "
            f"{config.learning_rate:g}; seed {seed}; {tokens_seen} caption tokens",
            f"底模：{families.describe(model)}；{machine.description}；{config.optimizer_type}，学习率 "
            f"{config.learning_rate:g}；随机种子 {seed}；标签 {tokens_seen} 个 token",
        )
    )
    prepared = Prepared(
        config, seed, name, model, planned, prompts, machine, optimizer_args, start, state, None, None, None, data
    )
    for line in warnings + lines:
        prepared.note(line)
    if counted:
        print(counted)
    if state:
        print(
            say(
                f'going on with {name} after step {state.position.global_step} (resume = "new" begins anew)',
                f'接着训练 {name}，从第 {state.position.global_step} 步之后继续（resume = "new" 则重新开始）',
            )
        )
    sys.stdout.flush()
    return prepared


def find_set(config: Config, memory: Path | None) -> Any:
    """The pictures and captions of a configuration; see `samples.find`."""
    from library.data import dataset_config, held_out, samples

    how = dict(reg_captions=config.reg_captions, masked_loss=config.masked_loss, memory=memory)
    if config.dataset_config or config.in_json:
        describe = dataset_config.read if config.dataset_config else dataset_config.of_in_json
        subsets, overrides, notes = describe(config)
        found = samples.read_subsets(subsets, overrides, **how)
        found = dataclasses.replace(found, warnings=notes + found.warnings)
    else:
        reading = samples.Reading.of(config)
        found = samples.find(
            config.train_data_dir,
            config.reg_data_dir,
            caption_extension=reading.caption_extension,
            all_lines=reading.all_lines,
            alpha_mask=reading.alpha_mask,
            masks_dir=reading.masks,
            least=reading.least,
            **how,
        )
    return held_out.find(config.validation_data_dir, found, config, memory) if config.validation_data_dir else found


class Resolved(NamedTuple):
    """What follows from the set and the base model together."""

    config: Config  # resolution, buckets and caption tokens as they will be
    plan: Any  # data.plan.Plan
    rule: Any  # buckets.BucketRule
    notes: list[str]


def resolve(
    config: Config, found: Any, model: Any, rules: Any, *, whole_batches: bool = False, bucket_limit: int | None = None
) -> Resolved:
    """Plan the epochs, and say everything about the data that the user should know.

    Args:
        rules: of each data set.
        whole_batches, bucket_limit: the device's; see `device.Device`.
    """
    from library import families
    from library.data import buckets, captions, held_out, plan

    notes: list[str] = []
    if config.validation_split and not config.validation_data_dir:
        seed = config.seed if config.validation_seed is None else config.validation_seed
        found = held_out.split(found, config.validation_split, seed or 0)  # the doctor knows of no seed that is drawn
    found = dataclasses.replace(found, validation=held_out.fixed(found.validation, config))
    changing = [one.options for one in found.folders if one.options and changes_images(one.options)]
    if config.cache_latents and changing:
        config = dataclasses.replace(config, cache_latents=False)
        notes.append(
            say(
                "cache_latents is off, because color_aug, random_crop or face_crop_aug_range of a subset changes the "
                "pictures at every use",
                "已关闭 cache_latents，因为某个子集的 color_aug、random_crop 或 face_crop_aug_range 每次都会改变图片",
            )
        )
    planned = plan.make_plan(found, config, *rules, whole_batches=whole_batches)
    coarser = list(rules)
    for place, own in enumerate(planned.sets if bucket_limit else ()):
        if own.config.bucket_reso_steps is None:
            used = {(one.width, one.height) for one in planned.samples_used if one.dataset == place}
            coarser[place] = buckets.fewer_buckets(used, own.rule, bucket_limit)
    if coarser != rules:
        rules, planned = coarser, plan.make_plan(found, config, *coarser, whole_batches=whole_batches)
        steps = ", ".join(str(rule.step) for rule in rules)
        notes.append(
            say(
                f"bucket_reso_steps = {steps} leaves {len(planned.sizes)} buckets: each costs minutes of tuning "
                "on this card",
                f"bucket_reso_steps 改为 {steps}，桶减为 {len(planned.sizes)} 个：此显卡每个桶都要调优几分钟",
            )
        )
    if planned.found.validation:
        from library.training.validate import scope_of

        config = dataclasses.replace(config, validate_every_n_epochs=scope_of(config, planned).every)
    rule = planned.rule
    texts = [captions.whole_of(sample, config) for sample in planned.samples_used]
    counts = families.token_counts(model, texts)
    tokens_seen = min(config.max_token_length, max(75, -(-max(counts) // 75) * 75))  # no chunk that is empty in all
    notes += plan.check(
        planned,
        config,
        token_counts=lambda texts: [(n, min(n, tokens_seen)) for n in families.token_counts(model, texts)],
        is_everyday_word=families.is_everyday_word,
    )
    config = dataclasses.replace(config, max_token_length=tokens_seen)
    if not config.dataset_config:  # whose data sets would else take these for the run's wish
        config = dataclasses.replace(
            config,
            resolution=f"{rule.width},{rule.height}",
            min_bucket_reso=rule.minimum,
            max_bucket_reso=rule.maximum,
            bucket_reso_steps=rule.step,
        )
    return Resolved(config, planned, rule, notes)


def first_position(config: Config, plan: Any) -> Any:
    """Where a run without a training state begins: `initial_step`, or the first step of `initial_epoch`.

    Without skip_until_initial_step the epoch in which that step lies is seen from its beginning.

    Raises:
        UserError: nothing is left to train from there.
    """
    from library.data.plan import batches_of_step
    from library.storage.training_state import Position

    counts = plan.step_counts
    step = config.initial_step or sum(counts[: (config.initial_epoch or 1) - 1])
    if step >= plan.step_count or (config.initial_epoch or 1) > plan.epoch_count:
        name = "initial_step" if config.initial_step else "initial_epoch"
        raise UserError(
            say(
                f"{name} = {getattr(config, name)}: the whole run has {plan.epoch_count} epochs and {plan.step_count} "
                "steps, so nothing is left to train. Give more max_train_epochs or max_train_steps, or less here",
                f"{name} = {getattr(config, name)}：全程只有 {plan.epoch_count} 轮、{plan.step_count} 步，"
                "没有可训练的部分。请增大 max_train_epochs 或 max_train_steps，或减小此项",
            )
        )
    epoch = 1
    while step >= sum(counts[:epoch]):
        epoch += 1
    before = sum(counts[: epoch - 1])
    within = step - before if config.skip_until_initial_step else 0
    return Position(epoch, within * batches_of_step(config), before + within)


def check_blocks(config: Config, family: str) -> list[str]:
    """What there is to say about lists with a value for each block. Raises UserError: they do not fit the model."""
    from library.adapters import sizes

    if isinstance(config.text_encoder_lr, list) and family != "sdxl":
        raise UserError(
            say(
                f"text_encoder_lr = {config.text_encoder_lr}: this base model has one text encoder; give one value",
                f"text_encoder_lr = {config.text_encoder_lr}：此底模只有一个文本编码器；请只填一个值",
            )
        )
    return sizes.read_blocks(config, family)[1]


def read_base(config: Config, model: Any) -> list[Any]:
    """The LoRAs that the base model gets before training. Raises UserError: a file is none, or fits another model."""
    from library import families
    from library.lora_files import merging
    from library.tooling import lora_files

    layers = families.blueprint(model, config.max_token_length).named_layers()
    strengths = [*(config.base_weights_multiplier or []), *[1.0] * len(config.base_weights)]
    found, problems = [], []
    for name, strength in zip(config.base_weights, strengths, strict=False):
        try:
            file = lora_files.read(Path(name))
            merging.refuse_misfit(name, file.factors, layers, file.metadata)
            found.append(merging.Strength(file.factors, strength, strength))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return found


def check_objective(config: Config, objective: str) -> None:
    """Refuse weights of the loss that are for models of the other objective. Raises UserError."""
    problems = [
        say(
            f"{name} is for models that predict {wanted}, and the base model predicts {objective}. Leave it out",
            f"{name} 只用于预测 {wanted} 的底模，而此底模预测 {objective}。请去掉此项",
        )
        for name, wanted in (
            ("scale_v_pred_loss_like_noise_pred", "v"),
            ("v_pred_like_loss", "epsilon"),
            ("zero_terminal_snr", "v"),
        )
        if getattr(config, name) and objective != wanted
    ]
    if problems:
        raise UserError(problems)


def seed_of(config: Config, state: Any) -> int:
    """The run's seed: the user's, else that of the run that is gone on with, else a new one."""
    if config.seed is not None:
        return config.seed
    return state.facts["seed"] if state else secrets.randbelow(2**32)


def find_state(config: Config) -> Any:
    """The training state to go on from; None: begin anew."""
    from library.storage import training_state

    if config.resume in (None, "new"):
        return None
    if config.resume == "auto":
        return training_state.newest_state(Path(config.output_dir), config.output_name)
    return training_state.load_state(Path(config.resume))


def lock_name(config: Config, state: Any) -> tuple[Any, Any]:
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


def fingerprint_of_data(plan: Any) -> str:
    """Changes with the pictures' names, sizes and bytes, the captions, masks, folders and how often they are repeated.

    Bytes are counted, not read: there may be a hundred thousand pictures, and a copy has another date.
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
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def changes_since(state: Any, config: Config, data: str, dtype: Any) -> list[str]:
    """What is not as it was when the state was saved.

    Raises:
        UserError: something is, and the user has not asked for this very state.
    """
    changes = differences(state.facts["config"], config)
    if state.facts.get("data", data) != data:
        changes.append(say("the pictures, masks or captions have changed", "图片、蒙版或标签有改动"))
    numbers = str(dtype).removeprefix("torch.")
    before = state.facts.get("dtype", numbers)
    if numbers != before and state.facts["config"]["mixed_precision"] == config.mixed_precision:  # another device
        option = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[before]
        changes.append(
            say(
                f'it was computed in {before}, and would be in {numbers} now (mixed_precision = "{option}" keeps it)',
                f'此前以 {before} 计算，现在会用 {numbers}（设 mixed_precision = "{option}" 可保持不变）',
            )
        )
    if changes and config.resume == "auto":
        folder = Path(config.output_dir) / f"{state.facts['name']}-state"
        raise UserError(
            changes
            + [
                say(
                    f'set these back to go on, or resume = "new" to begin anew, or resume = "{folder}" to go on all '
                    "the same",
                    f'请改回原值以接着训练；或设 resume = "new" 重新开始；或设 resume = "{folder}" 仍然接着训练',
                )
            ],
            say(
                f"{state.facts['name']} was stopped after step {state.position.global_step} and can be continued, but:",
                f"{state.facts['name']} 在第 {state.position.global_step} 步后中断，可以接着训练，但是：",
            ),
        )
    return changes


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
