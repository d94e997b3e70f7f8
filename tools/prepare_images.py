"""Step 2: make a clean set of raw images. Edit the values below, then run this file; it takes no arguments.

第 2 步：把收集来的图片整理成干净的训练图片。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = None  # folder of raw images, including sub-folders; nothing in it is ever changed; None: that of lora_train_command_line.py | 原始图片目录，含子目录；其中的文件绝不会被改动；None 表示与 lora_train_command_line.py 相同
output_dir = None  # where the clean images, their masks and the summary go; made if missing; None: output/prepared | 整理后的图片、蒙版和结果页的输出目录，没有会自动建立；None 表示 output/prepared
resolution = None  # training resolution the images are meant for: 512 (SD 1.x), 768 (SD 2.x v), 1024 (SDXL); None: that of lora_train_command_line.py, where "auto" is the base model's own | 这些图片将用于的训练分辨率：SD 1.x 为 512，SD 2.x v 为 768，SDXL 为 1024；None 表示与 lora_train_command_line.py 相同，其中 "auto" 按底模决定

# ---- Often changed | 经常修改 ----
duplicates = "leave out"     # duplicates, at any size: "leave out" all but the best of each group, or "keep" them; both are shown | 重复的图片（包括大小不同的）："leave out" 每组只留最好的一张，"keep" 全部保留；两种都会列出
trim_borders = True          # cut off plain borders and letterboxes | 裁掉单色边框和黑边
text = "show"                # text and watermarks: "show" suggestions in the summary, "erase" them too (what lies over a face or much of the image only when regions names it), "off": don't look for any | 文字与水印："show" 只在结果页标出，"erase" 同时擦除（压在脸上或占画面较大的，须写进 regions 才擦），"off" 不查找
background = "keep"          # what is behind the subject: "keep" it, a plain "colour", or "transparent"; by a local rembg model if there is one, else a small network for photographed people and GrabCut, whose results need checking | 主体之外的背景："keep" 保留，"colour" 换成纯色，"transparent" 变透明；有本地 rembg 模型就用它，否则真人用自带的小模型、其余用 GrabCut，结果需要过目
background_colour = "white"  # the colour of a plain background: a name such as "white" or "#rrggbb" | 纯色背景的颜色：名称如 "white"，或 "#rrggbb"
faces = "keep"               # faces: "erase" them (for clothes without the wearer's face), "erase head" with the hair, "cut out" only them, or "recipe": cropped faces as training set and the full images as regularization | 人脸："erase" 擦除（训练衣服时不要模特的脸），"erase head" 连头发一起擦除，"cut out" 只截取脸部，"recipe"：脸部作训练集、完整图片作正则化
regions = None               # text file of more regions to erase, one per line: "photo 1.jpg: left, top, width, height" in pixels of the upright image or in %; None: none | 另外要擦除的区域，文本文件，每行一处："照片1.jpg: 左, 上, 宽, 高"，单位为像素（按摆正后的图）或 %；None 表示没有

# ---- Seldom changed | 较少修改 ----
pretrained_model_name_or_path = None  # base model that the images are meant for, by which resolution "auto" is decided; None: that of lora_train_command_line.py | 这些图片将用于的底模，"auto" 的分辨率由它决定；None 表示与 lora_train_command_line.py 相同
frames_per_video = 20                 # sharp, unlike frames taken from each video in images_dir, spread over it; 0: leave videos out | 从 images_dir 的每个视频里最多取多少张清晰、互不相同、均匀分布的画面；0 表示不用视频
face_margin = 0.5                     # margin around a cropped face, as a multiple of the face's side, usually 0.3~1 | 截取脸部时四周留出的空间，以脸的边长为单位，常用 0.3~1
upscale = "auto"                      # images that are too small: "auto" uses a local upscaler (web UI folders are searched), else Lanczos, which adds no detail; "lanczos"; "off"; or a model file | 太小的图片："auto" 优先用本地超分辨率模型（会查找 web UI 目录），没有则用 Lanczos（不会增加细节）；"lanczos"；"off"；或填模型文件
denoise = 0.0                         # strength of noise removal, usually 3~10; blurs a little, so only for noisy images; 0: none | 去噪强度，常用 3~10；会略微变糊，只用于噪点多的图；0 表示不去噪
similarity = 6                        # how many of 64 hash bits may differ between duplicates, usually 4~10; higher finds more, with more errors | 判为同一张图时 64 位哈希允许不同的位数，常用 4~10；越大找得越多，也越容易误判
models_dirs = None                    # further folders with models, such as a web UI's ["D:/stable-diffusion-webui"]; None: the usual places | 另外查找模型的目录，如 web UI 所在的 ["D:/stable-diffusion-webui"]；None 表示只查常用位置
device = "auto"                       # where models run: "auto", "cpu", "cuda" (AMD too) | 模型运行的设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
overwrite = False    # remake images that already exist; False: keep those made from the same image with the same settings, anything else in their place is an error | 已有的图片重新生成；False：来源与设置都相同的保留，位置被其他文件占用则报错

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import math
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import files
from library.messages import UserError, log, plural, say
from library.options import parameter_block
from library.options.declaration import Values
from library.options.tools import TOOLS, PrepareImages

if TYPE_CHECKING:  # what decodes and cleans is imported when the parameters are found right
    from library.images.manifest import Manifest, Record
    from library.images.region import Region
    from library.tooling.cleaning import Cleaner, Models
    from library.tooling.raw_images import Group, Raw, Survey

PAGE = "summary.html"
BYTES_PER_PIXEL = 2  # of a PNG photo; drawings take a quarter


class Job(NamedTuple):
    """A raw image that is wanted."""

    raw: "Raw"
    stem: str  # name of what it becomes, below output_dir and without ending
    settings: str  # in short, of all that decides the result


class Plan(NamedTuple):
    """What there is to do."""

    cleaner: "Cleaner"
    jobs: list[Job]  # all images that are wanted
    todo: list[Job]
    deleted: dict[str, list[str]]  # raw name -> files an earlier run made, now gone


def prepare(settings: PrepareImages) -> int:
    """Look at all raw images, decide, clean, and write the summary. Gives the exit code."""
    import cv2

    from library.images.manifest import Manifest
    from library.reporting import desktop, pages
    from library.tooling import cleaning_findings, cleaning_page, raw_images

    cv2.setNumThreads(1)  # a thread for each image is faster than all threads for one
    output, thread_count = Path(settings.output_dir), min(8, os.cpu_count() or 1)
    names, survey = raw_images.find_raw_images(Path(settings.images_dir))
    videos = raw_images.take_frames(
        names,
        survey,
        count=settings.frames_per_video,
        resolution=settings.resolution,
        memory=output / ".cache" / "frames",
    )
    regions = _regions(settings, names, survey)
    try:
        with Manifest(output) as manifest:
            with _bar(len(names), say("looking", "查看")) as bar:
                raw_images.inspect(
                    names, survey, resolution=settings.resolution, trims=settings.trim_borders,
                    memory=output / ".cache", thread_count=thread_count, told=bar.update,
                )  # fmt: skip
            if not survey.images:
                reasons = [f"{name}: {why}" for name, why in survey.skipped.items()]
                raise UserError([*reasons, *survey.notes], say("no usable images:", "没有可用的图片："))
            groups = raw_images.groups(survey, settings.similarity, manifest)
            left_out = _left_out(groups) if settings.duplicates == "leave out" else {}
            wanted = [raw for raw in survey.images if raw.name not in left_out]
            models, lines = _models(settings, wanted)
            for line in (*videos, _counts(survey, left_out, wanted), *lines):
                log.info(line)
            plan = _plan(settings, wanted, manifest, models, regions)
            _work(plan, survey, manifest, output, thread_count)
            worked = {job.raw.name for job in plan.jobs} - survey.skipped.keys()
            records = {name: manifest.records[name] for name in sorted(worked)}
            stale = _stale(manifest, worked, output)
    except KeyboardInterrupt:
        log.error(say("stopped; run it again to continue", "已停止；再次运行会接着做"))
        raise
    outcome = cleaning_findings.Outcome(
        survey=survey,
        groups=groups,
        mirrored=raw_images.mirrored([raw for raw in wanted if raw.name in records], settings.similarity),
        left_out=left_out,
        records=records,
        deleted=plan.deleted,
        stale=stale,
        models=lines,
        next_steps=_next_steps(settings, records, output),
    )
    findings = cleaning_findings.findings(outcome, settings)
    for finding in findings:
        log.info(f"  {finding.line}")
    for name, why in list(survey.skipped.items())[:5]:
        log.info(f"    {name}: {why}")
    count, made = len(outcome.files), len(plan.todo)
    if made:
        unchanged = len(plan.jobs) - made
        log.info(
            say(
                f"{plural(count, 'clean image')} in {output}; {made} processed now, {unchanged} unchanged",
                f"{output} 里现有整理好的图片 {count} 张；本次处理原图 {made} 张，未变 {unchanged} 张",
            )
        )
    else:
        log.info(
            say(
                f"nothing to do: {plural(count, 'clean image is', 'clean images are')} up to date",
                f"无需处理：整理好的 {count} 张图片都已是最新",
            )
        )
    for line in outcome.next_steps:
        log.info(line)
    summary = pages.write(output / PAGE, cleaning_page.build(outcome, findings, settings, output))
    log.info(say(f"summary: {summary}", f"请查看 {summary}"))
    desktop.open_page(summary, settings.open_pages)
    return 0


def _bar(total: int, text: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=text, disable=None, file=sys.stderr, leave=False)


def _regions(settings: PrepareImages, names: list[str], survey: "Survey") -> "dict[str, list[Region]]":
    """The user's own regions to erase."""
    if settings.regions is None:
        return {}
    from library.data import captions, decoding
    from library.images import regions_file

    file = Path(settings.regions)
    try:
        text = captions.decode(file.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise UserError(
            say(f"{file}: cannot be read ({error}); save it as UTF-8", f"{file}：无法读取（{error}），请另存为 UTF-8")
        ) from error

    @cache
    def size_of(name: str) -> tuple[int, int]:
        return decoding.raw(survey.path(name), area=1)[0][:2]

    return regions_file.read_regions(text, names, size_of, file.name)


def _left_out(groups: "list[Group]") -> dict[str, str]:
    """Duplicates that are not used: name -> the best of its group."""
    return {raw.name: group.members[0].name for group in groups for raw in group.members if raw.name not in group.kept}


def _counts(survey: "Survey", left_out: dict[str, str], wanted: "list[Raw]") -> str:
    total, skipped = len(survey.images) + len(survey.skipped), len(survey.skipped)
    return say(
        f"{total} raw images: {skipped} skipped, {len(left_out)} left out as duplicates, {len(wanted)} used",
        f"原始图片 {total} 张：略过 {skipped} 张，去掉重复 {len(left_out)} 张，使用 {len(wanted)} 张",
    )


def _models(settings: PrepareImages, wanted: "list[Raw]") -> "tuple[Models, list[str]]":
    """The models that are needed and there, and a line on each thing that they, or OpenCV, will do."""
    from library.images import background, faces, local_models, text_regions
    from library.tooling.cleaning import Models

    def open_onnx(file: Path) -> local_models.Onnx:
        return local_models.open_onnx(file, settings.device)

    lines: list[str] = []
    face = subject = None
    reads_text = settings.text != "off"
    try:
        if reads_text:
            text_regions.open_reader()
    except UserError as error:
        if settings.text == "erase":
            raise
        lines.append(str(error))
        reads_text = False
    if settings.faces != "keep" or reads_text:
        found = local_models.find_models(faces.MODEL_PATTERNS, settings.models_dirs)
        face = _first(found, lambda file: faces.open_model(file, open_onnx), lines)
    if settings.faces != "keep":
        name = face.path.name if face else say("MediaPipe's, for photographed faces", "MediaPipe，只认真人脸")
        lines.append(say(f"faces: {name}", f"人脸：{name}"))
    if settings.background != "keep":
        found = local_models.find_models(background.MODEL_PATTERNS, settings.models_dirs)
        subject = _first(found, open_onnx, lines)
        if subject:
            name, where = subject.path.name, subject.device
            lines.append(say(f"background: {name} on {where}", f"背景：{name}，设备 {where}"))
        else:
            lines.append(
                say(
                    "background: MediaPipe's network for photographed people, GrabCut, which guesses, for all else; "
                    "check every image. A rembg model such as isnet-general-use.onnx in a folder of models_dirs works "
                    "better (isnet-anime.onnx for drawings)",
                    "背景：真人用 MediaPipe，其余用 GrabCut（靠猜测），请逐张检查。把 isnet-general-use.onnx（二次元用 "
                    "isnet-anime.onnx）等 rembg 模型放进 models_dirs 所列目录，效果好得多",
                )
            )
    enlarger = None
    if settings.faces in ("cut out", "recipe") or any(raw.area < settings.resolution**2 for raw in wanted):
        enlarger = _enlarger(settings, lines)
    return Models(face, subject, enlarger, reads_text), lines


def _first(files: list[Path], opened: Callable[[Path], Any], lines: list[str]) -> Any:
    """What comes of the first model that works; the others are told."""
    for file in files:
        try:
            return opened(file)
        except UserError as error:
            lines.append(say(f"skipped: {error}", f"跳过：{error}"))
    return None


def _enlarger(settings: PrepareImages, lines: list[str]) -> Any:
    """The super-resolution model, where one is asked for or lies on this machine."""
    if settings.upscale in ("off", "lanczos"):
        return None
    from library.images import local_models, resizing

    asked = settings.upscale != "auto"
    file = (
        settings.chosen_model()
        if asked
        else next(iter(local_models.find_models(resizing.MODEL_PATTERNS, settings.models_dirs)), None)
    )
    if file is None:
        return None
    from library.hardware import device

    try:
        chosen = device.choose(settings.device, "no").torch_device
        enlarger = resizing.open_model(file, str(chosen))
    except UserError as error:
        if asked:
            raise
        lines.append(say(f"enlarging: by Lanczos, because {error}", f"放大：使用 Lanczos，因为 {error}"))
        return None
    lines.append(say(f"enlarging: {file.name} on {chosen}", f"放大：{file.name}，设备 {chosen}"))
    return enlarger


def _plan(
    settings: PrepareImages,
    wanted: "list[Raw]",
    manifest: "Manifest",
    models: "Models",
    regions: "dict[str, list[Region]]",
) -> Plan:
    """What is to be made, and what is there. Raises UserError: files in the way, all named; too little disk space."""
    from library.storage import disk
    from library.tooling.cleaning import Cleaner

    cleaner = Cleaner(settings, models, regions)
    stems = _stems(wanted, manifest)
    plan = Plan(cleaner, [Job(raw, stems[raw.name], cleaner.settings_of(raw)) for raw in wanted], [], {})
    in_the_way: list[str] = []
    for job in plan.jobs:
        record = manifest.records.get(job.raw.name)
        if record and not settings.overwrite and (record.digest, record.settings) == (job.raw.digest, job.settings):
            gone = [file for file in record.report.get("size", {}) if not (manifest.folder / file).exists()]
            if gone:
                plan.deleted[job.raw.name] = gone
            continue
        plan.todo.append(job)
        if not settings.overwrite:
            in_the_way += _in_the_way(job, plan.cleaner, manifest)
    if in_the_way:
        raise UserError(
            [*in_the_way[:50], *(["..."] if in_the_way[50:] else [])],
            say(
                f"{plural(len(in_the_way), 'file')} in output_dir not made by this tool, or changed since. Move "
                "them away, choose another output_dir, or set overwrite = True to replace them:",
                f"output_dir 里有 {len(in_the_way)} 个文件不是本工具生成的，或之后被改动过。请把它们移走，"
                "或换一个 output_dir，或设 overwrite = True 将其替换：",
            ),
        )
    need = sum(BYTES_PER_PIXEL * cleaner.area_of(job.raw) for job in plan.todo)
    room = disk.free(manifest.folder)
    if need > room:
        raise UserError(
            say(
                f"{manifest.folder}: about {disk.mib(need)} will be written, but only {disk.mib(room)} is free. Free "
                "some space, or choose an output_dir on another disk",
                f"{manifest.folder}：大约要写入 {disk.mib(need)}，只剩 {disk.mib(room)}。请腾出空间，或把 output_dir 设到其他磁盘",
            )
        )
    return plan


def _stems(wanted: "list[Raw]", manifest: "Manifest") -> dict[str, str]:
    """The name of what each image becomes; no two alike on any system, and those given before stay."""
    from library.data.samples import folded

    stems = {raw.name: manifest.records[raw.name].stem for raw in wanted if raw.name in manifest.records}
    taken = {folded(record.stem) for record in manifest.records.values()}
    for raw in wanted:
        if raw.name in stems:
            continue
        stem, ending = os.path.splitext(raw.name)
        choices = [stem, f"{stem}_{ending[1:]}", *(f"{stem}_{number}" for number in range(2, len(wanted) + 3))]
        stems[raw.name] = next(choice for choice in choices if folded(choice) not in taken)
        taken.add(folded(stems[raw.name]))
    return stems


def _in_the_way(job: Job, cleaner: "Cleaner", manifest: "Manifest") -> list[str]:
    """Files that writing would replace though they are not ours."""
    full = cleaner.full_file(job.stem)
    places = [full, cleaner.mask_file(full)] if full else []
    if cleaner.cuts_faces:
        folder = (manifest.folder / cleaner.face_file(job.stem, 1)).parent
        start = Path(cleaner.face_file(job.stem, "")).stem
        listed = os.listdir(folder) if folder.is_dir() else []
        below = folder.relative_to(manifest.folder).as_posix()
        places += [f"{below}/{name}".removeprefix("./") for name in listed if name.startswith(start)]
    return [
        str(manifest.folder / place)
        for place in places
        if (manifest.folder / place).exists() and not manifest.is_ours(job.raw.name, place)
    ]


def _work(plan: Plan, survey: "Survey", manifest: "Manifest", output: Path, thread_count: int) -> None:
    """Make what is to be made; what fails is told among the skipped, and the rest goes on."""
    from library.data.decoding import BrokenImage
    from library.data.threads import in_order
    from library.images.manifest import Record, digest_of
    from library.tooling import cleaning

    def work(job: Job) -> str:
        """Gives why it failed; "": it did not."""
        name = job.raw.name
        try:
            made = plan.cleaner.clean(job.raw, job.stem)
        except BrokenImage as error:
            return str(error)
        except UserError:  # of a model, not of the image
            raise
        except MemoryError:
            return say("too large for this machine's memory; make it smaller", "内存不足，请先缩小")
        except Exception as error:  # one strange image must not end the work on ten thousand
            return say(f"failed: {type(error).__name__}: {error}", f"处理失败：{type(error).__name__}：{error}")
        before = manifest.records.get(name)
        manifest.begin(name, list(made.files))
        try:
            for file, data in made.files.items():
                files.write(output / file, data)
            for file, digest in before.files.items() if before else ():  # made otherwise before: a face less, no mask
                old = output / file
                if file not in made.files and old.exists() and digest_of(old.read_bytes()) == digest:
                    old.unlink()
            caption = survey.captions.get(name)
            if caption and made.files and not plan.cleaner.cuts_faces:
                copy = output / (job.stem + caption.suffix.lower())
                if not copy.exists():  # tagged or edited since: the newer one stays
                    files.write(copy, cleaning.caption(caption))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                say(
                    f"{output} cannot be written ({reason}). Free some space or change its permissions, then run it "
                    "again: finished work is kept",
                    f"{output} 无法写入（{reason}）。请腾出空间或修改权限后再次运行；已完成的都在",
                )
            ) from error
        digests = {file: digest_of(data) for file, data in made.files.items()}
        manifest.done(name, Record(job.raw.digest, job.settings, job.stem, digests, made.report))
        return ""

    with _bar(len(plan.todo), say("cleaning", "整理")) as bar:
        for job, failure in zip(plan.todo, in_order(work, plan.todo, thread_count), strict=True):
            if failure:
                survey.skipped[job.raw.name] = failure
            bar.update()


def _stale(manifest: "Manifest", worked: Iterable[str], output: Path) -> dict[str, list[str]]:
    """What earlier runs made of images that are not used any more, and is still there."""
    stale = {
        name: [file for file in record.report.get("size", {}) if (output / file).exists()]
        for name, record in manifest.records.items()
        if name not in worked
    }
    return {name: files for name, files in stale.items() if files}


def _next_steps(settings: PrepareImages, records: "dict[str, Record]", output: Path) -> list[str]:
    """What the user does now, a line each."""
    files = [file for record in records.values() for file in record.report.get("size", {})]
    masked = sum(len(record.report.get("erased", {})) for record in records.values())
    lines = []
    if settings.faces == "recipe":
        face_count = sum(file.startswith("train/") for file in files)
        body_count = len(files) - face_count
        lines = [
            say(
                f'faces = "recipe": {plural(face_count, "cropped face is", "cropped faces are")} the training set '
                f"({output / 'train'}), {plural(body_count, 'full image', 'full images')} the regularization, which "
                f"gives the faces their body ({output / 'reg'})",
                f"人脸配方：{face_count} 张脸作训练集（{output / 'train'}），{body_count} 张完整图片作正则化，"
                f"让脸带上自己的身体（{output / 'reg'}）",
            ),
            say(
                "next: delete there what you don't want, then run tools/tag_images.py, which tags the faces alone, and "
                "tools/sort_into_folders.py, which sorts both",
                "接下来：删除不要的图，然后运行 tools/tag_images.py（只给脸打标签）、tools/sort_into_folders.py（两部分一起整理）",
            ),
        ]
    else:
        lines = [
            say(
                f"next: delete in {output} what you don't want, then run tools/tag_images.py and "
                "tools/sort_into_folders.py",
                f"接下来：在 {output} 里删除不要的图，然后运行 tools/tag_images.py、tools/sort_into_folders.py",
            )
        ]
    if masked:
        lines.append(
            say(
                f"{plural(masked, 'image has', 'images have')} a mask: erased areas are not trained, unless "
                'masked_loss = False. Keep the "masks" folders beside the images',
                f"{masked} 张图片带有蒙版：只要训练参数 masked_loss 不是 False，擦除的部分就不会被学习。"
                "请让 masks 目录留在图片旁边",
            )
        )
    return lines


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["prepare_images.py"], prepare, with_side)


def with_side(values: Values) -> Values:
    """The values with a training size of the main block, "auto" or "768,512", as the side of a square. Raises UserError."""
    from library import families

    asked = values.get("resolution")
    if isinstance(asked, str) and asked.strip().lower() == "auto":
        model = families.inspect(values["pretrained_model_name_or_path"])
        log.info(
            say(
                f"resolution {model.resolution}, as {model.path.name}",
                f"分辨率 {model.resolution}，按 {model.path.name}",
            )
        )
        return values | {"resolution": model.resolution}
    sides = [side.strip() for side in asked.split(",")] if isinstance(asked, str) else []
    if len(sides) == 2 and all(side.isdecimal() for side in sides):
        return values | {"resolution": math.isqrt(int(sides[0]) * int(sides[1]))}
    return values


if __name__ == "__main__":
    raise SystemExit(main())
