"""Everything that is cheap, before any model is loaded: read, check, resolve, and say what will happen."""

import dataclasses
import hashlib
import secrets
import sys
from pathlib import Path
from typing import Any, NamedTuple

from library.assembly.set_findings import short
from library.checks import differences
from library.config import Config
from library.messages import UserError, say


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
    state: Any  # checkpoint.State to go on from, or None
    world: Any  # processes.World
    claim: Any  # checkpoint.Claim on the name; None in all processes but the first
    cache_folder: Path | None  # of latents and captions; None: in memory
    data: str  # changes with the pictures, captions and folders


def prepare(config: Config, warnings: list[str], world: Any) -> Prepared:
    """Do all cheap things first: read names, pictures, captions and prompts; then say what will happen.

    Raises:
        UserError: all that is wrong with them, together.
    """
    from library.data import buckets, remembered

    problems: list[str] = []

    def attempt(function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except UserError as error:
            problems.extend(error.problems)

    cache_folder, line = attempt(remembered.cache_folder, config) or (None, None)
    warnings = warnings + [line] if line else warnings
    found = attempt(find_set, config, cache_folder)
    from library import checkpoint, device, families, optimizers, sampling

    model = attempt(families.inspect, config.pretrained_model_name_or_path)
    machine = attempt(device.choose, world.device or config.device, config.mixed_precision, model.width if model else 0)
    if machine:
        attempt(device.self_test, machine)
    rule = attempt(buckets.resolve_resolution, config, model.resolution, model.size_step) if model else None
    output_dir = Path(config.output_dir)
    attempt(make_folder, output_dir)
    state = attempt(find_state, config) if world.is_first else None
    start = attempt(checkpoint.load_adapter, Path(config.network_weights)) if config.network_weights else None
    prompts = attempt(sampling.prompts_of, config.sample_prompts) if config.sample_prompts else None
    optimizer_args = attempt(optimizers.parse_args, config.optimizer_args)
    attempt(optimizers.parse_args, config.lr_scheduler_args, "lr_scheduler_args")
    if model:
        attempt(check_objective, config, "v" if config.v_parameterization else model.objective)
    if problems:
        raise UserError(problems)

    state, claim = claim_name(config, state) if world.is_first else (None, None)
    try:
        state, name = world.told((state, claim and claim.name))
        prepared = plan_run(config, warnings, found, model, machine, rule, prompts, optimizer_args, start, state, name)
    except BaseException:
        if claim:
            claim.release()
        raise
    return dataclasses.replace(
        prepared, world=world, claim=claim, seed=world.told(prepared.seed), cache_folder=cache_folder
    )


def plan_run(
    config: Config,
    warnings: list[str],
    found: Any,
    model: Any,
    machine: Any,
    rule: Any,
    prompts: Any,
    optimizer_args: dict[str, Any],
    start: Any,
    state: Any,
    name: str,
) -> Prepared:
    """Resolve what depends on several of the things that were read, and say what will happen."""
    from library import families, optimizers, sampling
    from library.data import plan

    output_dir = Path(config.output_dir)
    seed = state.facts["seed"] if state and config.seed is None else config.seed
    seed = secrets.randbelow(2**32) if seed is None else seed
    config, planned, rule, lines = resolve(
        config, found, model, rule, whole_batches=machine.tunes_per_shape, bucket_limit=machine.bucket_limit
    )
    warnings = warnings + lines
    usual_rate = optimizers.usual_learning_rate(config.optimizer_type, model.width)
    config = dataclasses.replace(
        config,
        seed=seed,
        learning_rate=usual_rate if config.learning_rate is None else config.learning_rate,
        zero_terminal_snr=config.zero_terminal_snr or model.zero_terminal_snr,
    )
    if config.save_n_epoch_ratio:
        config = dataclasses.replace(
            config, save_every_n_epochs=max(1, planned.epoch_count // config.save_n_epoch_ratio)
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
    for line in warnings + lines:
        print(say(f"note: {line}", f"注意：{line}"))
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
    return Prepared(
        config, seed, name, model, planned, prompts, machine, optimizer_args, start, state, None, None, None, data
    )


def find_set(config: Config, memory: Path | None) -> Any:
    """The pictures and captions of a configuration; see `samples.find`."""
    from library.data import samples

    return samples.find(
        config.train_data_dir,
        config.reg_data_dir,
        caption_extension=config.caption_extension,
        reg_captions=config.reg_captions,
        all_lines=config.enable_wildcard,
        masked_loss=config.masked_loss,
        alpha_mask=config.alpha_mask,
        memory=memory,
    )


class Resolved(NamedTuple):
    """What follows from the set and the base model together."""

    config: Config  # resolution, buckets and caption tokens as they will be
    plan: Any  # data.plan.Plan
    rule: Any  # buckets.BucketRule
    notes: list[str]


def resolve(
    config: Config, found: Any, model: Any, rule: Any, *, whole_batches: bool = False, bucket_limit: int | None = None
) -> Resolved:
    """Plan the epochs, and say everything about the data that the user should know.

    Args:
        whole_batches, bucket_limit: the device's; see `device.Device`.
    """
    from library import families
    from library.data import buckets, captions, plan

    notes: list[str] = []
    planned = plan.make_plan(found, config, rule, whole_batches=whole_batches)
    coarser = rule
    if bucket_limit and config.bucket_reso_steps is None:
        used = {(sample.width, sample.height) for sample in planned.samples_used}
        coarser = buckets.fewer_buckets(used, rule, bucket_limit)
    if coarser != rule:
        rule, planned = coarser, plan.make_plan(found, config, coarser, whole_batches=whole_batches)
        notes.append(
            say(
                f"bucket_reso_steps = {rule.step} leaves {len(planned.sizes)} buckets: each costs minutes of tuning "
                "on this card",
                f"bucket_reso_steps 改为 {rule.step}，桶减为 {len(planned.sizes)} 个：此显卡每个桶都要调优几分钟",
            )
        )
    texts = [captions.whole(sample.caption, config) for sample in planned.samples_used]
    counts = families.token_counts(model, texts)
    tokens_seen = min(config.max_token_length, max(75, -(-max(counts) // 75) * 75))  # no chunk that is empty in all
    notes += plan.check(
        planned,
        config,
        token_counts=lambda texts: [(n, min(n, tokens_seen)) for n in families.token_counts(model, texts)],
        is_everyday_word=families.is_everyday_word,
    )
    config = dataclasses.replace(
        config,
        max_token_length=tokens_seen,
        resolution=f"{rule.width},{rule.height}",
        min_bucket_reso=rule.minimum,
        max_bucket_reso=rule.maximum,
        bucket_reso_steps=rule.step,
    )
    return Resolved(config, planned, rule, notes)


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


def find_state(config: Config) -> Any:
    """The training state to go on from; None: begin anew."""
    from library import checkpoint

    if config.resume in (None, "new"):
        return None
    if config.resume == "auto":
        return checkpoint.newest_state(Path(config.output_dir), config.output_name)
    return checkpoint.load_state(Path(config.resume))


def claim_name(config: Config, state: Any) -> tuple[Any, Any]:
    """The state, and a hold on the run's name. A state whose run is under way at this moment is left alone."""
    from library import checkpoint

    output_dir = Path(config.output_dir)
    busy: set[str] = set()
    while state:
        try:
            return state, checkpoint.claim(output_dir, state.facts["name"])
        except UserError:
            if config.resume != "auto":
                raise
        busy.add(state.facts["name"])
        state = checkpoint.newest_state(output_dir, config.output_name, busy)
    return None, checkpoint.claim_free_name(output_dir, config.output_name)


def fingerprint_of_data(plan: Any) -> str:
    """Changes with the pictures' names, sizes and bytes, the captions, masks, folders and how often they are repeated.

    Bytes are counted, not read: there may be a hundred thousand pictures, and a copy has another date.
    """
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
