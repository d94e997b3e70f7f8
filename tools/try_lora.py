"""Draw images with LoRAs: a grid of prompts and strengths. Edit the values below, then run this file; it takes no
arguments.

试用 LoRA：按提示词和强度画对比图。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
"""

# Values are Python: 512, 10 * 2, 1e-4, "text", True, False, None (not given).
# Windows paths need the r: r"D:\pictures\train", or / for \: "D:/pictures/train".
# SyntaxError at the start? A missing quote, “ ” ， for " , or \ without r: python tools/doctor.py says which.
#
# 参数值用 Python 写法：512、10 * 2、1e-4、"文字"、True、False、None（不填）。
# Windows 路径前面要加 r：r"D:\图片\训练集"，或用 / 代替 \："D:/图片/训练集"。
# 启动时报 SyntaxError？多半是漏了引号、用了中文标点 “ ” ， 或路径没加 r：python tools/doctor.py 会用中文指出来。
#
# fmt: off

# ---- Must edit | 必须修改 ----
pretrained_model_name_or_path = None  # base model: .safetensors, .ckpt or diffusers folder; None: that of lora_train_command_line.py | 底模：.safetensors、.ckpt 文件或 diffusers 文件夹；None 表示与 lora_train_command_line.py 相同
loras = None                          # LoRA files to test, or names in lora_dir: one row of images per file and strength; None: what lora_train_command_line.py makes; []: only what the prompts name | 要试的 LoRA 文件，或 lora_dir 里的名称：每个文件、每种强度画一行；None 表示 lora_train_command_line.py 的结果；[] 表示只用提示词里写的
prompts = None                        # one column per prompt; None: with and without the trigger word of lora_train_command_line.py; web UI syntax: "(word:1.2)", "[word]", "BREAK", "<lora:name:0.6>" for more LoRAs from lora_dir | 每条一列；None 表示带与不带 lora_train_command_line.py 的触发词各一条；写法与 web UI 相同："(词:1.2)"、"[词]"、"BREAK"，"<lora:名称:0.6>" 可再加 lora_dir 里的 LoRA

# ---- Often changed | 经常修改 ----
strengths = [0.0, 0.6, 1.0]  # strengths of each LoRA, usually 0.5~1; 0 shows the base model | 每个 LoRA 的强度，常用 0.5~1；0 表示只用底模
negative_prompt = ""         # negative prompt, in the same syntax | 反向提示词，写法相同
resolution = None            # size of the images: "auto" (the base model's own), 512, or "width,height"; None: that of lora_train_command_line.py | 图片尺寸："auto" 按底模，也可填 512 或 "宽,高"；None 表示与 lora_train_command_line.py 相同
seeds = [1]                  # seeds; each makes its own grid | 随机种子，每个种子画一张对比图
lora_dir = None              # where <lora:name:0.6> is looked for, such as the web UI's models/Lora; None: beside the files of loras | <lora:名称:0.6> 从哪里找，如 web UI 的 models/Lora；None 表示 loras 所在的目录

# ---- Seldom changed | 较少修改 ----
sampler = "euler_a"       # sampler: euler_a, euler, ddim, dpmsolver++, heun, ... | 采样器：euler_a、euler、ddim、dpmsolver++、heun 等
steps = 25                # sampling steps, usually 20~30 | 采样步数，常用 20~30
guidance_scale = 7.0      # CFG scale: how closely the prompt is followed, usually 5~8 | 提示词引导强度（CFG），常用 5~8
clip_skip = None          # 1: realistic models; 2: anime models (NovelAI and its descendants); SDXL ignores it; None: that of lora_train_command_line.py | 1 用于写实模型，2 用于二次元模型（NovelAI 系）；SDXL 不用此项；None 表示与 lora_train_command_line.py 相同
hires_scale = 1.0         # hires fix: generate again at this many times the size, usually 1.5~2; 1: off | 按此倍数放大后再画一遍（高清修复），常用 1.5~2；1 表示不用
hires_strength = 0.5      # denoising strength of the hires fix, usually 0.3~0.6 | 高清修复的重绘幅度，常用 0.3~0.6
vae = None                # another VAE: file or folder; None: that of lora_train_command_line.py, by default the base model's own | 外置 VAE：文件或文件夹；None 表示与 lora_train_command_line.py 相同，默认用底模自带的
mixed_precision = "auto"  # arithmetic: "no" (fp32), "fp16", "bf16"; "auto": by the device | 计算精度："no"（fp32）、"fp16"、"bf16"；"auto" 按设备选择
device = "auto"           # "auto", "cpu", "cuda", "cuda:1", "mps"; AMD (ROCm) is "cuda" too | 计算设备："auto"、"cpu"、"cuda"、"cuda:1"、"mps"；AMD（ROCm）也写 "cuda"

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
output_dir = None    # where the grids, single images and the summary go; no existing image is overwritten; None: output/tried | 对比图、单张图和结果页的输出目录；不会覆盖已有的图；None 表示 output/tried

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import difflib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.contracts import FamilyFacts
from library.files import replacing
from library.messages import Stopped, UserError, log, plural, say
from library.options import parameter_block
from library.options.declaration import PROJECT
from library.options.tools import TOOLS, TryLora
from library.reporting import desktop, pages

if TYPE_CHECKING:
    from library.contracts import Target
    from library.lora_files.whole import LayerUpdate

SAY_ESTIMATE = 20  # seconds that are worth an estimate
LORA_ENDINGS = (".safetensors", ".pt", ".ckpt")


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["try_lora.py"], run)


class LoraFile(NamedTuple):
    """A LoRA to draw with."""

    path: Path
    name: str  # in a prompt
    digest: str  # as web UIs know it
    metadata: dict[str, str]


class Used(NamedTuple):
    """A LoRA at some strength."""

    file: LoraFile
    text_encoder: float
    unet: float


@dataclass
class Row:
    """A row of the grid: what is added to every prompt."""

    label: str
    loras: list[Used]
    text: str  # as a web UI writes it


@dataclass
class Column:
    """A column of the grid: a prompt."""

    text: str
    weighted: list  # contracts.WeightedPrompt
    loras: list[Used]  # that it names itself


@dataclass
class Cell:
    """One image."""

    row: Row
    column: Column
    seed: int
    parameters: dict  # generation_parameters.GenerationParameters
    path: Path | None = None  # None: not drawn yet


@dataclass
class Job:
    """What is wanted and what of it is there, known before any model is loaded."""

    settings: TryLora
    info: Any  # families.ModelInfo
    device: Any  # hardware.device.Device
    negative: list  # contracts.WeightedPrompt
    rows: list[Row]
    columns: list[Column]
    size: tuple[int, int]
    cells: list[Cell] = field(default_factory=list)  # by rows, then columns, then seeds
    notes: list[str] = field(default_factory=list)

    @property
    def facts(self) -> FamilyFacts:
        """Of the base model's family."""
        from library.families.table import facts_of

        return facts_of(self.info.family)

    @property
    def files(self) -> list[LoraFile]:
        """All LoRAs, each once."""
        used = [used for part in (*self.rows, *self.columns) for used in part.loras]
        return list({one.file.path: one.file for one in used}.values())


def run(settings: TryLora) -> int:
    """Draw what is missing and put it into grids; the exit code is 0."""
    job = plan_job(settings)
    for line in job.notes:
        log.warning(line)
    missing = [cell for cell in job.cells if cell.path is None]
    if there := len(job.cells) - len(missing):
        log.info(
            say(
                f"{there} of {plural(len(job.cells), 'image')} already exist",
                f"{len(job.cells)} 张中已有 {there} 张",
            )
        )
    try:
        if missing:
            generate_missing(job, missing)
        else:
            log.info(say("nothing left to generate", "没有需要画的图"))
    except KeyboardInterrupt:
        count = sum(cell.path is not None for cell in job.cells)
        log.info(
            say(
                f"stopped: {count} of {plural(len(job.cells), 'image')} done. Run it again to continue",
                f"已停止：{len(job.cells)} 张中已有 {count} 张。再次运行会接着画",
            )
        )
        raise Stopped from None
    grids = {seed: write_grid(job, seed) for seed in dict.fromkeys(settings.seeds)}
    for path in grids.values():
        log.info(say(f"grid: {path}", f"对比图：{path}"))
    summary = write_summary(job, grids)
    log.info(say(f"summary: {summary}", f"结果页：{summary}"))
    desktop.open_page(summary, settings.open_pages)
    return 0


# ---- before the base model is loaded ----


def plan_job(settings: TryLora) -> Job:
    """Read prompts and LoRA files, and find out which images are there.

    Raises:
        UserError: all that is wrong with prompts, files and base model together.
    """
    from library import families
    from library.diffusion import prompts as prompt_syntax
    from library.tooling import generate

    problems: list[str] = []

    def attempt(function, *arguments, where: str = "", **options):
        try:
            return function(*arguments, **options)
        except UserError as error:
            problems.extend(f"{where}{problem}" for problem in error.problems)

    info = attempt(families.inspect, settings.pretrained_model_name_or_path)
    library = LoraFolder(settings)
    listed = [attempt(library.listed, entry) for entry in dict.fromkeys(settings.loras or [])]
    files = list({file.path: file for file in listed if file}.values())
    columns = []
    for number, text in enumerate(settings.prompts, 1):
        where = say(f"prompt {number}: ", f"第 {number} 条提示词：")
        parsed = attempt(prompt_syntax.parse, text, where=where)
        loras = []
        for lora in parsed.loras if parsed else []:
            if file := attempt(library.named, lora.name, where=where):
                if file.path in {one.path for one in files}:
                    problems.append(where + _applied_twice(lora.name))
                loras.append(Used(file, lora.text_encoder, lora.unet))
        if parsed:
            columns.append(Column(text.strip(), parsed.weighted, loras))
    negative = attempt(prompt_syntax.parse, settings.negative_prompt, is_negative=True, where="negative_prompt: ")
    if problems:
        raise UserError(problems)

    device = generate.choose_device(settings.device, settings.mixed_precision, info.width)
    job = Job(settings, info, device, negative.weighted, rows_of(settings, files), columns, image_size(settings, info))
    blueprint = families.blueprint(info)
    layers = blueprint.layers()
    for file in job.files:
        attempt(fitting_factors, file, layers, blueprint.facts)
    if problems:
        raise UserError(problems)
    job.notes += notes(job, blueprint)
    job.cells = cells_of(job)
    find_existing(job)
    return job


def _applied_twice(name: str) -> str:
    return say(
        f'"{name}" is also in loras, so it would be applied twice. Remove it from the prompt or from loras',
        f"“{name}”也写在 loras 里，会重复作用。请从提示词或 loras 中去掉一处",
    )


class LoraFolder:
    """Finds LoRA files by path and by name."""

    def __init__(self, settings: TryLora):
        given = [_from_project(entry) for entry in settings.loras or []]
        if settings.lora_dir:
            self.folders = [Path(settings.lora_dir)]
            files = [Path(folder) / name for folder, _, names in os.walk(self.folders[0]) for name in names]
        else:
            self.folders = list(dict.fromkeys(path.parent for path in given))
            files = [path for folder in self.folders if folder.is_dir() for path in folder.iterdir()]
        self.files = sorted(path for path in files if path.suffix.lower() in LORA_ENDINGS and path.is_file())

    def listed(self, entry: str) -> LoraFile:
        """The file of an entry of loras: a path from the project's folder, or a name. Raises UserError."""
        path = _from_project(entry)
        if path.is_file():
            return lora_file(path)
        if Path(entry).name == entry:
            return self.named(entry.removesuffix(".safetensors"))
        near = self._near(path.stem)
        raise UserError(
            say(
                f"loras: {path}: there is no such file.{near}" + ("" if near else " Train it first, or choose another"),
                f"loras：{path}：没有这个文件。{near}" + ("" if near else "请先训练，或换一个"),
            )
        )

    def named(self, name: str) -> LoraFile:
        """The file whose name, or whose title in the metadata, is this. Raises UserError."""
        from library.storage import metadata

        found = [path for path in self.files if path.stem == name]
        found = found or [path for path in self.files if path.stem.casefold() == name.casefold()]
        found = found or [path for path in self.files if metadata.of_file(path).get("ss_output_name") == name]
        if len(found) == 1:
            return lora_file(found[0])
        folders = say(" or ", " 或 ").join(map(str, self.folders)) or say(
            "no folder: set lora_dir", "没有目录：请设 lora_dir"
        )
        if found:
            listed = ", ".join(map(str, found))
            raise UserError(
                say(
                    f'LoRA "{name}": there are {len(found)} of this name: {listed}. Rename all but one',
                    f"LoRA“{name}”：有 {len(found)} 个同名文件：{listed}。请改名，只留一个",
                )
            )
        raise UserError(
            say(
                f'LoRA "{name}": not found in {folders}.{self._near(name)}',
                f"LoRA“{name}”：{folders} 里没有这个名称的文件。{self._near(name)}",
            )
        )

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, [path.stem for path in self.files], 1, 0.5)
        return say(f" Did you mean {near[0]}?", f"是否想写 {near[0]}？") if near else ""


def _from_project(entry: str) -> Path:
    path = Path(entry).expanduser()
    return path if path.is_absolute() else PROJECT / path


def lora_file(path: Path) -> LoraFile:
    from library.storage import metadata

    try:
        return LoraFile(path, path.stem, metadata.web_ui_hash(path), metadata.of_file(path))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(say(f"{path}: cannot be read ({reason})", f"{path}：无法读取（{reason}）")) from error


def fitting_factors(file: LoraFile, layers: "list[Target]", base: FamilyFacts) -> "dict[str, LayerUpdate]":
    """A file's matrices, which fit these layers of a base model. Raises UserError."""
    from library.lora_files import merging
    from library.tooling import lora_files

    read = lora_files.read_lora(file.path)
    return merging.fit(file.path.name, read.factors, layers, made_for=read.family, base=base)


def rows_of(settings: TryLora, files: list[LoraFile]) -> list[Row]:
    """The base model once where a strength is 0, then each LoRA at each other strength."""
    strengths = list(dict.fromkeys(settings.strengths))
    first = say("base model", "底模") if files else say("as the prompt says", "按提示词")
    rows = [Row(first, [], "")] if 0 in strengths or not files else []
    for file in files:
        for strength in strengths:
            if strength:
                text = f"<lora:{file.name}:{strength:g}>"
                rows.append(Row(f"{file.name}  {strength:g}", [Used(file, strength, strength)], text))
    return rows


def image_size(settings: TryLora, info) -> tuple[int, int]:
    if settings.resolution == "auto":
        return info.resolution, info.resolution
    sides = [int(side) for side in str(settings.resolution).split(",")]
    return sides[0], sides[-1]


def notes(job: Job, blueprint) -> list[str]:
    """What the user should know before it is drawn."""
    from library.data import captions
    from library.diffusion import prompts
    from library.storage import metadata
    from library.tooling import lora_files

    lines = []
    texts = [_plain(column.text) for column in job.columns]
    ours = blueprint.metadata()["ss_base_model_version"]
    for file in job.files:
        words = metadata.trigger_words(file.metadata)
        if words and not any(_plain(word) in text for word in words for text in texts):
            listed = say(" or ", " 或 ").join(f'"{prompts.typed([word])}"' for word in words[:3])
            lines.append(
                say(
                    f"{file.name} was trained with the word {listed}, which is in no prompt: it may have little effect",
                    f"{file.name} 训练时的触发词是 {listed}，提示词里都没有写，可能看不出效果",
                )
            )
        if embeddings := lora_files.embeddings_in(file.path):
            what = "only the LoRA is used here", "这里只用 LoRA 部分"
            lines.append(lora_files.bundled_note(file.name, embeddings, *what))
        theirs = file.metadata.get("ss_base_model_version", ours)
        if theirs not in (ours, "None"):
            lines.append(
                say(
                    f"{file.name} was trained on another kind of base model ({theirs}; this is {ours})",
                    f"{file.name} 是在另一类底模上训练的（{theirs}，当前是 {ours}）",
                )
            )
        skip = file.metadata.get("ss_clip_skip", "None")
        if job.facts.has_clip_skip and skip not in ("None", str(job.settings.clip_skip or 1)) and skip.isdecimal():
            lines.append(
                say(
                    f"{file.name} was trained with clip_skip = {skip}; set it here too",
                    f"{file.name} 训练时 clip_skip = {skip}，这里也应填 {skip}",
                )
            )
    width, height = job.size
    if width % 8 or height % 8:
        lines.append(
            say(
                f"resolution {width} x {height}: sides must be multiples of 8; the remainder is cut",
                f"resolution {width} x {height}：边长须为 8 的倍数，余数舍去",
            )
        )
    foreign = [column.text for column in job.columns if captions.foreign_script(_plain(column.text))]
    if foreign and job.facts.knows_english_only:
        lines.append(
            say(
                f'{job.facts.title} understands English only; it may not understand "{foreign[0]}"',
                f"{job.facts.title} 只懂英文；“{foreign[0]}”它可能看不懂",
            )
        )
    return lines


def _plain(text: str) -> str:
    """A prompt as its words alone: small letters, no LoRA, long_hair as long hair."""
    return re.sub(r"\s+", " ", re.sub(r"<\w+:[^>]+>", " ", text).replace("_", " ").replace("\\", "")).casefold()


def cells_of(job: Job) -> list[Cell]:
    """All images of the grids, with the generation parameters of each."""
    from library.diffusion import sampling
    from library.tooling import generate

    settings = job.settings
    model, model_hash = generate.identity(job.info.path)
    vae, vae_hash = generate.identity(settings.vae, "vae") if settings.vae else (None, None)
    whole = sampling.complete([sampling.Prompt("")], size=job.size, seed=0, sampler=settings.sampler)[0]
    job.size = whole.width, whole.height
    shared = dict(
        negative_prompt=settings.negative_prompt.strip(),
        steps=settings.steps,
        sampler=settings.sampler,
        guidance_scale=settings.guidance_scale,
        width=whole.width,
        height=whole.height,
        clip_skip=settings.clip_skip or 1 if job.facts.has_clip_skip else None,
        model=model,
        model_hash=model_hash,
        vae=f"{vae} {vae_hash}" if vae else None,
        has_weights=True,
        hires_scale=settings.hires_scale if settings.hires_scale > 1 else None,
        hires_strength=settings.hires_strength if settings.hires_scale > 1 else None,
    )
    cells = []
    for row in job.rows:
        for column in job.columns:
            used = [one.file for one in (*column.loras, *row.loras)]
            hashes = ", ".join(f"{file.name}: {file.digest}" for file in used)
            prompt = f"{column.text} {row.text}".strip()
            for seed in dict.fromkeys(settings.seeds):
                cells.append(
                    Cell(row, column, seed, shared | dict(prompt=prompt, seed=seed, lora_hashes=hashes or None))
                )
    return cells


def find_existing(job: Job) -> None:
    """Give each cell the image that was drawn for it before, if it is there and whole."""
    from library.images import generation_parameters

    there = {}
    for path in generated_files(job.settings):
        if path.suffix == ".png" and (parameters := generation_parameters.read_parameters(path)):
            there[json.dumps(parameters, sort_keys=True)] = path
    for cell in job.cells:
        cell.path = there.get(json.dumps(cell.parameters, sort_keys=True))


def generated_files(settings: TryLora, folder: str = "pictures") -> list[Path]:
    place = Path(settings.output_dir) / folder
    return sorted(place.iterdir()) if place.is_dir() else []


def next_number(paths: list[Path], beginning: str = "") -> int:
    """One more than any file has in front."""
    numbers = (re.match(rf"{beginning}(\d+)", path.name) for path in paths)
    return 1 + max((int(found[1]) for found in numbers if found), default=0)


# ---- drawing ----


def generate_missing(job: Job, missing: list[Cell]) -> None:
    """Draw what is missing, row by row; each image is on disk before the next is begun.

    Raises:
        UserError: memory is full, the model gives no image, or the folder cannot be written.
    """
    from tqdm import tqdm

    from library.lora_files import merging
    from library.tooling import generate

    settings, device = job.settings, job.device.torch_device
    family = generate.open_for_generation(job.info.path, job.device, vae=settings.vae, clip_skip=settings.clip_skip)
    from library.diffusion import sampling

    sizes = family.size_conditioning(sampling.image_sizes(*job.size, device))
    hires = sampling.Hires(settings.hires_scale, settings.hires_strength) if settings.hires_scale > 1 else None
    number = next_number(generated_files(settings))
    layers = family.layers()
    began = time.perf_counter()
    with ExitStack() as around:
        around.enter_context(generate.memory_errors_explained())
        model = around.enter_context(merging.Merging(layers))
        bar = around.enter_context(tqdm(total=len(missing), disable=None, unit=say(" images", "张"), smoothing=0.05))
        for count, (cell, told) in enumerate(conditioned(job, missing, family, layers, model, sizes)):
            prompt = sampling.Prompt(
                "",
                width=job.size[0],
                height=job.size[1],
                seed=cell.seed,
                step_count=settings.steps,
                scale=settings.guidance_scale,
                sampler=settings.sampler,
            )
            if count:
                image = sampling.generate_encoded(family, prompt, *told, device, hires)
            else:
                with job.device.tuning():
                    image = sampling.generate_encoded(family, prompt, *told, device, hires)
            cell.path = write(settings, number + count, cell, image)
            bar.update()
            taken = time.perf_counter() - began
            if count == 0 and taken * (len(missing) - 1) > SAY_ESTIMATE:
                log.info(
                    say(
                        f"the first image took {taken:.1f} s: about {generate.duration_text(taken * (len(missing) - 1))} for the "
                        f"other {len(missing) - 1}. Ctrl-C stops; run it again to continue",
                        f"第一张用了 {taken:.1f} 秒，其余 {len(missing) - 1} 张约需 "
                        f"{generate.duration_text(taken * (len(missing) - 1))}。可按 Ctrl-C 停止，再次运行会接着画",
                    )
                )
    seconds = time.perf_counter() - began
    log.info(
        say(
            f"{plural(len(missing), 'image')} generated in {generate.duration_text(seconds)}, {seconds / len(missing):.2f} s each",
            f"共画 {len(missing)} 张，用时 {generate.duration_text(seconds)}，每张 {seconds / len(missing):.2f} 秒",
        )
    )


def conditioned(
    job: Job, cells: list[Cell], family, layers: "list[Target]", model, sizes
) -> Iterator[tuple[Cell, tuple]]:
    """Each cell with its two `Conditioning`s, the model's weights being what it needs at that moment."""
    import torch

    from library.lora_files import merging

    loaded: dict[Path, dict] = {}
    before, text, told = None, None, ()
    for cell in cells:
        used = [*cell.column.loras, *cell.row.loras]
        if used != before:
            loaded = {
                one.file.path: loaded.get(one.file.path) or fitting_factors(one.file, layers, job.facts) for one in used
            }
            model.apply([merging.Strength(loaded[one.file.path], one.text_encoder, one.unet) for one in used])
        if used != before or cell.column is not text:
            with torch.no_grad():
                negative = None
                if job.settings.guidance_scale != 1:
                    negative = family.encode_weighted(job.negative, is_negative=True) | sizes
                told = family.encode_weighted(cell.column.weighted) | sizes, negative
        before, text = used, cell.column
        yield cell, told


def write(settings: TryLora, number: int, cell: Cell, image) -> Path:
    """Write an image under a number of its own; where the disk is full, wait for room."""
    from library.images import generation_parameters
    from library.tooling import generate

    path = Path(settings.output_dir) / "pictures" / f"{number:05d}-{cell.seed}.png"

    def do() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        generation_parameters.write_image(path, image, cell.parameters)

    generate.write_or_explain(path, do, 3 * image.width * image.height)
    return path


# ---- what came of it ----


def settings_line(job: Job, seed: int) -> str:
    """What all images of a grid have in common."""
    settings = job.settings
    parts = [
        say(f"seed {seed}", f"种子 {seed}"),
        f"{job.size[0]}x{job.size[1]}",
        settings.sampler,
        say(plural(settings.steps, "step"), f"{settings.steps} 步"),
        f"CFG {settings.guidance_scale:g}",
        job.info.path.name,
    ]
    if settings.hires_scale > 1:
        parts.append(f"hires x{settings.hires_scale:g}, {settings.hires_strength:g}")
    line = "  ·  ".join(parts)
    if settings.negative_prompt.strip():
        line += say("\nnegative: ", "\n反向提示词：") + settings.negative_prompt.strip()
    return line


def write_grid(job: Job, seed: int) -> Path:
    """The contact sheet of one seed: that of an earlier run if it shows the same files, else a new number."""
    from PIL import Image, PngImagePlugin

    from library.images import contact_sheet
    from library.tooling import generate

    table = [[cell.path for cell in job.cells if cell.row is row and cell.seed == seed] for row in job.rows]  # by rows
    rows, columns = [row.label for row in job.rows], [column.text for column in job.columns]
    title = settings_line(job, seed)
    content = json.dumps([title, rows, columns, [[path.name for path in line] for line in table]])
    output = Path(job.settings.output_dir)
    grids = [path for path in generated_files(job.settings, "") if re.fullmatch(r"grid-\d+-\d+\.png", path.name)]
    for path in grids:
        if _grid_content(path) == content:
            return path

    def opened(path: Path) -> Image.Image:
        with Image.open(path) as image:
            image.load()
        if max(image.size) > contact_sheet.LARGEST:  # all are held at once
            image.thumbnail((contact_sheet.LARGEST, contact_sheet.LARGEST))
        return image

    drawn = contact_sheet.sheet([[opened(path) for path in line] for line in table], rows, columns, title)
    texts = PngImagePlugin.PngInfo()
    texts.add_text(GRID_KEY, content)
    path = output / f"grid-{next_number(grids, 'grid-'):04d}-{seed}.png"

    def do() -> None:
        with replacing(path) as half:
            drawn.save(half, "PNG", pnginfo=texts)

    generate.write_or_explain(path, do, 3 * drawn.width * drawn.height)
    return path


GRID_KEY = "lora_grid"  # of a grid's PNG text: what it shows


def _grid_content(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get(GRID_KEY)
    except (OSError, ValueError, SyntaxError):
        return None


class ShownCell(NamedTuple):
    """A small image that leads to its file."""

    figure: pages.Figure
    file: str  # beside the page


class ShownRow(NamedTuple):
    label: str
    cells: list[ShownCell]


class ShownGrid(NamedTuple):
    """All of one seed."""

    seed: int
    file: str  # of the large grid, beside the page
    settings: list[str]
    rows: list[ShownRow]  # the first of them
    has_more: bool


class TryLoraPage(NamedTuple):
    """What templates/try_lora.html shows."""

    image_count: int
    model: str
    notes: list[str]
    prompts: list[str]
    grids: list[ShownGrid]
    files: list[tuple[str, ...]]  # name, trigger words, base model, rank and alpha, hash


def write_summary(job: Job, grids: dict[int, Path]) -> Path:
    """The page to look at: a table of small images for each seed, each a link to its file."""
    count, shown = 0, []
    for seed, grid in grids.items():
        rows = []
        for row in job.rows:
            cells = [cell for cell in job.cells if cell.row is row and cell.seed == seed]
            count += len(cells)
            if count <= pages.MOST_IMAGES:
                rows.append(ShownRow(row.label, [shown_cell(cell.path) for cell in cells if cell.path]))
        lines = settings_line(job, seed).splitlines()
        shown.append(ShownGrid(seed, grid.name, lines, rows, has_more=len(rows) < len(job.rows)))
    content = TryLoraPage(
        image_count=len(job.cells),
        model=job.info.path.name,
        notes=job.notes,
        prompts=[column.text for column in job.columns],
        grids=shown,
        files=[file_row(file) for file in job.files],
    )
    return pages.write(Path(job.settings.output_dir) / "summary.html", pages.render("try_lora.html", content))


def shown_cell(path: Path) -> ShownCell:
    return ShownCell(pages.figure_of(path, note=path.name), f"pictures/{path.name}")


def file_row(file: LoraFile) -> tuple[str, ...]:
    from library.diffusion import prompts
    from library.storage import metadata

    return (
        file.path.name,
        prompts.typed(metadata.trigger_words(file.metadata)) or "-",
        file.metadata.get("ss_base_model_version", "-"),
        f"{file.metadata.get('ss_network_dim', '-')} / {file.metadata.get('ss_network_alpha', '-')}",
        file.digest,
    )


if __name__ == "__main__":
    raise SystemExit(main())
