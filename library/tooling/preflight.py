"""A training that is about to begin, looked at from all sides: facts are gathered here, `doctor` says what they mean.

Whatever is wrong, the rest is looked at all the same. Every image is decoded, once: what is found is remembered.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from library.contracts import Fit, Sample
from library.messages import UserError, plural, say
from library.options.declaration import PROJECT, Given, Values, Where
from library.options.training import Config
from library.reporting import findings as doctor
from library.reporting.findings import Finding, of_line
from library.training.dataset_findings import of_set, statistics_of
from library.training.prepare import find_set, read_start
from library.training.resolve import plan_data, settings_of
from library.training.resuming import changes_since, find_state, fingerprint_of_data, position_in
from library.training.run import Run

if TYPE_CHECKING:
    from library.data.plan import Plan
    from library.data.tag_statistics import TagStatistics
    from library.families import ModelInfo

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Of an image: duplicates.Fingerprint, blur, transparent share, turned, other colours.
ROW = struct.Struct("<QQ192sff??")
ROW_FORMAT = 1  # raise it when one of these is worked out otherwise
SMALLEST = 16  # pixels of a side below which nothing is told to be blurred
FULL_WIDTH = 320  # channels of the first block of every Stable Diffusion

Progress = Callable[[int], AbstractContextManager[Any]]  # of so many images; what is entered has `update`, as tqdm


@dataclasses.dataclass
class Examination:
    """Everything that was found; None where it could not be found out."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    checked: Config | None = None  # the parameters
    plan: Plan | None = None
    model: ModelInfo | None = None
    statistics: TagStatistics | None = None
    memory: str = ""  # the table of what the run will hold
    system: str = ""  # a line with system and versions

    @property
    def config(self) -> Config:
        """The parameters; there are some wherever the script could be read."""
        assert self.checked
        return self.checked

    def attempt(
        self, topic: str, function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result | None:
        """What the function gives; None where it cannot, and then why."""
        try:
            return function(*arguments, **options)
        except UserError as error:
            self.note(error.problems, topic, "red")
            return None

    def note(self, lines: Iterable[str], topic: str, level: str = "amber") -> None:
        self.findings += [of_line(line, topic, level) for line in lines]


def examine(script: Path, *, similarity: int, with_machine: bool, progress: Progress) -> Examination:
    """Look at everything.

    Args:
        script: a copy of lora_train_command_line.py, or a .toml of train_network.py.
        similarity: how many of 64 bits may differ in the same image.
        with_machine: also try the device, which takes seconds.
    """
    examination = Examination()
    examine_blocks(examination)
    wrong = examine_parameters(examination, script)
    if examination.checked is None:
        return examination
    examine_model(examination, wrong)
    memory = examine_set(examination, wrong)
    if examination.plan:
        examine_images(examination, memory, similarity, progress)
    examine_output(examination)
    if with_machine:
        try:
            examine_machine(examination, memory)
        except (ImportError, OSError, RuntimeError) as error:  # torch or its driver; that is what one wants to know
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            text = say(f"the machine check did not finish: {reason}", f"机器没能检查完：{reason}")
            cure = say(
                "Reinstall torch for this machine (README, Installation), and update the driver",
                "请按 README 的“安装”重新安装适合本机的 torch，并更新驱动",
            )
            examination.findings.append(Finding("red", "machine", text, cure))
    examination.findings = doctor.in_order(examination.findings)
    return examination


# ---- parameters ----


def examine_blocks(examination: Examination) -> None:
    """Whether the scripts in tools/ are Python: where one is not, it cannot say so itself."""
    from library.options import parameter_block
    from library.options.tools import TOOLS

    for script in (PROJECT / "tools" / name for name in TOOLS):
        if script.is_file():
            examination.attempt("parameters", parameter_block.check_syntax, script)


def examine_parameters(examination: Examination, script: Path) -> set[str]:
    """Read and check the parameters; gives the names of those that have their defaults because they are wrong."""
    from library.options import config_files, parameter_block, sd_scripts
    from library.options.checks import check_all, missing

    def values_of_script() -> Given:
        if script.suffix.lower() in (".toml", ".json"):
            given = sd_scripts.translate(*config_files.read_values(script))
            return given._replace(problems=[*missing(given.values), *given.problems])
        return parameter_block.values_of(script, parameter_block.variables_of(script))

    given = examination.attempt("parameters", values_of_script)
    if given is None:
        return set()
    values, where, notices, problems = given
    result = check_all(values, where, problems)
    examination.checked = result.config
    examination.note(result.problems, "parameters", "red")
    examination.note(notices + result.warnings, "parameters")
    if not result.problems:
        text = say(
            f"{script.name}: {plural(len(values), 'value is', 'values are')} valid",
            f"{script.name}：{len(values)} 个参数都有效",
        )
        examination.findings.append(Finding("green", "parameters", text))
    if examination.config.multi_run_folder:
        examine_queue(examination, values, where, script)
    return result.wrong


def examine_queue(examination: Examination, values: Values, where: Where, script: Path) -> None:
    """Check the presets that will be trained one after another; the set that is looked at is that of the script."""
    from library.options import parameter_block
    from library.options.checks import check_all

    presets = sorted(Path(examination.config.multi_run_folder or "").glob("*.json"))
    for preset in presets:
        given = examination.attempt(
            "parameters",
            parameter_block.with_preset,
            values,
            where,
            preset,
            script.resolve().parent,
        )
        if given:
            own, own_where, _, problems = given
            result = check_all(own, own_where, problems)
            lines = [line if line.startswith(preset.name) else f"{preset.name}: {line}" for line in result.problems]
            examination.note(lines, "parameters", "red")
    text = say(
        f"multi_run_folder: {plural(len(presets), 'preset is', 'presets are')} trained one after another; images and "
        "machine are checked "
        "with the values of this file",
        f"multi_run_folder：依次训练 {len(presets)} 个预设；图片与机器按本文件的参数检查",
    )
    examination.findings.append(Finding("green" if presets else "red", "parameters", text))


# ---- base model ----


def examine_model(examination: Examination, wrong: set[str]) -> None:
    """What the base model is, by its header, and whether VAE and parameters go with it."""
    from library import families

    config = examination.config
    if "pretrained_model_name_or_path" in wrong:
        return
    model = examination.model = examination.attempt("model", families.inspect, config.pretrained_model_name_or_path)
    if model is None:
        return
    examination.findings.append(Finding("green", "model", families.describe(model)))
    told = examination.attempt("model", families.noise_of, model, "v" if config.v_parameterization else None)
    examination.note(told[1] if told else [], "model")
    if config.vae and "vae" not in wrong:
        configs = families.read_configs(model.family) | (
            examination.attempt("model", families.folder_configs, model) or {}
        )
        lines = families.vae_warnings(config.vae, configs["vae"])
        examination.note(lines, "model", "red")
        if not lines:
            text = say(
                f"VAE: {Path(config.vae).name}, in place of the model's own", f"外置 VAE：{Path(config.vae).name}"
            )
            examination.findings.append(Finding("green", "model", text))


# ---- images and captions ----


def examine_set(examination: Examination, wrong: set[str]) -> Path | None:
    """Find images and captions, and plan the epochs; gives the cache folder."""
    from library.data import buckets, file_index, plan

    config = examination.config
    if "train_data_dir" in wrong:
        return None
    memory, line = examination.attempt("parameters", file_index.cache_folder, config) or (None, None)
    examination.note([line] if line else [], "parameters")
    found = examination.attempt("pictures", find_set, config, memory)
    if found is None and config.reg_data_dir and not config.dataset_config:
        # the training images can perhaps be looked at
        config = dataclasses.replace(config, reg_data_dir=None)
        found = examination.attempt("pictures", find_set, config, memory)
    if found is None:
        return None
    if examination.model:
        side, step = examination.model.resolution, examination.model.size_step
    else:
        side, step = 512, 64  # as SD 1.x
    configs = found.configs(config)
    attempts = [examination.attempt("parameters", buckets.resolve_resolution, own, side, step) for own in configs]
    rules = [rule for rule in attempts if rule]
    if len(rules) < len(configs):
        return None
    if examination.model:
        for rule in rules:
            examination.findings += doctor.resolution(rule.width, rule.height, side)
        count = config.num_processes * config.num_machines
        examination.plan, decided, lines = plan_data(
            config, found, examination.model, rules, seed=config.seed or 0, process_count=count
        )
        examination.checked = settings_of(config, decided)
    else:
        examination.plan = plan.make_plan(found, config, *rules)
        lines = plan.check(examination.plan, config)
    examination.note(lines, "pictures")
    return memory


def examine_images(examination: Examination, memory: Path | None, similarity: int, progress: Progress) -> None:
    """Decode every image: which are the same, blurred, transparent; and what the captions and the plan tell."""
    from library import families
    from library.data import held_out
    from library.data.file_index import facts_of
    from library.images import duplicates, generation_parameters, quality

    plan = examination.plan
    assert plan, "there is no use in looking at images that nobody can train"
    found = plan.samples
    samples = held_out.of_subject(found, examination.config) + found.regularization
    paths = list(dict.fromkeys(sample.image_path for sample in samples))  # one may be in several data sets
    with progress(len(paths)) as bar:

        def look(path: Path) -> bytes | None:
            with suppress(Exception):  # a decoder may raise anything; it was whole a moment ago, so it was changed
                return row_of(path, by_path[path], plan.rule.area)
            return None

        def looked(path: Path) -> bytes | None:
            row = look(path)
            bar.update()
            return row

        by_path = {sample.image_path: sample for sample in reversed(samples)}
        kind, threads = f"doctor{ROW_FORMAT}x{plan.rule.area}", min(8, os.cpu_count() or 1)
        rows = facts_of(paths, looked, folder=memory, kind=kind, thread_count=threads)
    known = [(by_path[path], ROW.unpack(row)) for path, row in zip(paths, rows, strict=True) if row]
    groups: list[list[Sample]] = []
    if known:
        fingerprints = duplicates.Fingerprints([duplicates.Fingerprint(*row[:3]) for _, row in known])
        groups = [[known[at][0] for at in group] for group in duplicates.groups(fingerprints, similarity)]
    drawn_by = {}
    for sample in found.regularization:
        if name := generation_parameters.model_of(sample.image_path):
            drawn_by[sample.image_path] = name
    examination.statistics, model = statistics_of(plan, examination.config), examination.model
    examination.findings += of_set(
        plan,
        examination.config,
        groups=groups,
        drawn_by=drawn_by,
        statistics=examination.statistics,
        knows_english_only=not model or families.facts_of(model.family).knows_english_only,
    )
    if examination.model:
        name = examination.model.path.name if examination.model.path.is_dir() else examination.model.path.stem
        examination.findings += doctor.drawn_by_another(drawn_by, name)
    examination.findings += doctor.natures(
        {sample.image_path: (turned, clear, other) for sample, (*_, clear, turned, other) in known},
        examination.config.alpha_mask,
    )
    soft = [
        (blur, sample.image_path)
        for sample, (_, _, _, blur, *_) in known
        if blur > quality.BLURRED and not sample.is_regularization and not is_enlarged(sample, plan)
    ]
    examination.findings += doctor.blurred([path for _, path in sorted(soft, key=lambda one: -one[0])])


def row_of(path: Path, sample: Sample, area: int) -> bytes:
    """What is kept of an image, looked at whole and at about the training size."""
    from library.data import decoding
    from library.images import duplicates, quality

    scale = min(1.0, math.sqrt(area / (sample.width * sample.height)))
    size = max(1, round(sample.width * scale)), max(1, round(sample.height * scale))
    image = decoding.load(path, Fit(size, size, (0, 0)))
    look, nature = duplicates.fingerprint(image), decoding.nature(path)
    blur = min(1e3, quality.blur(quality.grey_of(image))) if min(size) >= SMALLEST else 0.0
    return ROW.pack(*look, blur, nature.transparent, nature.is_turned, nature.is_other_colour)


def is_enlarged(sample: Sample, plan: Plan) -> bool:
    """Whether training sees it larger than it is, which is told already."""
    return plan.fit(sample).resized[0] > sample.width


# ---- output ----


def examine_output(examination: Examination) -> None:
    """Whether the folder can be written, which name the result gets, and which packages are missing."""
    config = examination.config
    folder = Path(config.output_dir)
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        text = say(f"output_dir = {folder} cannot be written", f"output_dir = {folder} 无法写入")
        cure = say("Choose another folder, or change its permissions", "请换一个目录，或修改权限")
        examination.findings.append(Finding("red", "parameters", text, cure))
    wanted = {}
    if config.optimizer_type.lower() == "prodigy":
        wanted["prodigyopt"] = 'optimizer_type = "Prodigy"'
    elif "." in config.optimizer_type:
        wanted[config.optimizer_type.split(".")[0]] = f'optimizer_type = "{config.optimizer_type}"'
    if config.logging_dir:
        wanted["tensorboard"] = "logging_dir"
    examination.findings += doctor.missing_packages(wanted, lambda name: importlib.util.find_spec(name) is not None)


# ---- machine ----


def examine_machine(examination: Examination, memory: Path | None) -> None:
    """The card, torch, whether it computes right, and whether memory and disk suffice. Imports torch."""
    from library.hardware import old_system, rocm

    config = examination.config
    if config.device not in ("cpu", "mps"):
        there = rocm.read_tree()
        torch = rocm.read_torch(there)
        may_open = os.access(rocm.GATE, os.R_OK | os.W_OK)
        settings = rocm.plan(there, os.environ, torch, sys.platform)
        examination.note(map(rocm.line, settings), "machine", "green")
        examination.note(rocm.advice(there, torch, rocm.vendors(), may_open), "machine", "red")
        examination.note(old_system.advice(old_system.read_system()), "machine", "red")
        rocm.prepare_environment()  # so that the device is tried as the run will use it
    from library.diffusion import sampling
    from library.hardware.device import choose, self_test
    from library.hardware.distributed import ProcessGroup
    from library.optim import optimizers
    from library.storage.training_state import Position

    width = examination.model.width if examination.model else FULL_WIDTH
    device = examination.attempt("machine", choose, config.device, config.mixed_precision, width)
    examination.attempt("parameters", optimizers.parse_args, config.optimizer_args)
    if config.sample_prompts:
        prompts = examination.attempt("parameters", sampling.prompts_of, config.sample_prompts)
        examination.findings += [of_line(line, "parameters") for line in sampling.left_out(prompts or [])]
    start = None
    if config.network_weights:
        start = examination.attempt("parameters", read_start, config, examination.model)
    if device is None:
        return
    if device.torch_device.type == "cpu" and width >= FULL_WIDTH:
        text = say(f"{device.description}: no graphics card is used", f"{device.description}：没有使用显卡")
        cure = say(
            "On a CPU a full-size Stable Diffusion takes many seconds per step: hours for a LoRA",
            "用处理器训练完整的 Stable Diffusion，每步要很多秒，一个 LoRA 要几个小时以上",
        )
        examination.findings.append(Finding("amber", "machine", text, cure))
    else:
        examination.findings.append(Finding("green", "machine", device.description))
    examination.system = system_line(device.description)
    errors = len(examination.findings)
    examination.attempt("machine", self_test, device)
    if device.torch_device.type != "cpu" and len(examination.findings) == errors:
        examination.findings.append(
            Finding("green", "machine", say("its arithmetic was tested and is correct", "已试算，运算结果正确"))
        )
    if not (examination.plan and examination.model):
        return
    rate = config.learning_rate or optimizers.usual_learning_rate(config.optimizer_type, width)
    run = Run(
        asked=config,
        settings=settings_of(config, dict(learning_rate=rate)),
        name=config.output_name,
        seed=0,
        model=examination.model,
        plan=examination.plan,
        prompts=[],
        device=device,
        processes=ProcessGroup(),
        position=Position(),
        cache_folder=memory,
        start=start,
    )
    examination.attempt("machine", examine_memory, examination, run)
    examination.attempt("parameters", examine_state, examination, run)


def system_line(device: str) -> str:
    """What a report of something wrong should quote."""
    from library.reporting.crash_report import versions

    facts = "; ".join([*(f"{name} {version}" for name, version in versions().items()), device])
    return say(f"quote this if you report a problem: {facts}", f"报告问题时请附上这一行：{facts}")


def examine_memory(examination: Examination, run: Run) -> None:
    """Whether the run fits into memory and onto the disk."""
    from library import families
    from library.hardware import attention, memory
    from library.hardware.blocks import Blocks
    from library.storage import disk
    from library.training.attach import attach
    from library.training.memory_plan import plan_memory, ways_to_fit

    config, device, plan = run.settings, run.device, run.plan
    attend = attention.choose(device.torch_device, device.dtype, config.attention)
    planned = plan_memory(run, attend)
    examination.memory = memory.table(planned, device.torch_device, "")
    first, *ways = ways_to_fit(run, attend, planned) or [""]
    if first:
        examination.findings.append(of_line(" ".join([first, *ways]), "machine", "red"))
    else:
        need = f"{planned.need >> 20:,} MiB"
        there = "" if planned.budget is None else f"{planned.budget >> 20:,} MiB"
        text = say(f"memory: the run needs {need}", f"内存：需要 {need}")
        text += say(f", {there} are free", f"，可用 {there}") if there else ""
        examination.findings.append(Finding("green", "machine", text))
    blueprint = families.blueprint(run.model, config.max_token_length)
    attached = attach(config, blueprint, attend, 0, Blocks(), run.start)
    pixels = sum(width * height for width, height in (plan.fit(one).bucket for one in plan.samples_used))
    needs = disk.needed(
        config,
        parameter_count=sum(parameter.numel() for parameter in attached.parameters()),
        epoch_count=plan.epoch_count,
        step_count=plan.step_count,
        keeps_best=config.keep_best and bool(plan.samples.validation),
        preview_count=4,
        preview_pixels=plan.rule.area,
        cache_folder=run.cache_folder if config.cache_latents else None,
        cache_bytes=pixels // 8 * (1 + config.flip_aug),  # 4 channels of 2 bytes for 64 pixels
    )
    lines = disk.check(needs)
    examination.note(lines, "machine")
    if not lines:
        total, room = sum(need.size for need in needs), disk.free(Path(config.output_dir))
        text = say(
            f"disk: the run writes up to {disk.mib(total)}, {disk.mib(room)} are free",
            f"硬盘：最多写入 {disk.mib(total)}，剩余 {disk.mib(room)}",
        )
        examination.findings.append(Finding("green", "machine", text))


def examine_state(examination: Examination, run: Run) -> None:
    """Whether an earlier run of this name will be gone on with, or its name is taken."""
    from library.storage import saves

    config = run.settings
    state = find_state(config)
    folder, name = Path(config.output_dir), config.output_name
    if state:
        if config.seed is None:
            config = settings_of(config, dict(seed=state.facts["seed"]))
        try:
            changes = changes_since(state, config, fingerprint_of_data(run.plan), run.device.dtype)
        except UserError as error:
            heading, *changes, cure = str(error).splitlines()
            text = " ".join([heading, *map(str.strip, changes)])
            examination.findings.append(Finding("red", "parameters", text, cure.strip()))
            return
        if config.resume != "auto":
            position_in(run.plan, state, config)
        text = say(
            f"{state.facts['name']} was stopped after step {state.position.global_step}: the next start continues "
            "there",
            f"{state.facts['name']} 在第 {state.position.global_step} 步后中断：下次启动会接着训练",
        )
        examination.findings.append(Finding("green", "parameters", text))
        examination.note(state.notices + changes, "parameters")
    elif saves.is_taken(folder, name):
        new = saves.free_name(folder, name)
        text = say(
            f"{folder} already contains {name}; the next run will be named {new}, and nothing is overwritten",
            f"{folder} 中已有 {name}；下次训练会命名为 {new}，不会覆盖",
        )
        examination.findings.append(Finding("green", "parameters", text))
