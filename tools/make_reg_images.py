"""Step 5: draw regularization images with the base model. Edit the values below, then run this file; it takes no
arguments. Stop it at any time: started again, it goes on.

第 5 步：用底模生成正则化图片。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。随时可以停止，再次运行会接着做。
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
pretrained_model_name_or_path = None  # the base model that you will train on: .safetensors, .ckpt or diffusers folder; None: that of lora_train_command_line.py | 将要用来训练的底模：.safetensors、.ckpt 文件或 diffusers 文件夹；None 表示与 lora_train_command_line.py 相同
train_data_dir = None                 # the folder that CONTAINS the folders named [repeats]_[concept]; None: that of lora_train_command_line.py, where "auto" is output/train | 训练集目录，里面放 [重复次数]_[概念] 形式的文件夹；None 表示与 lora_train_command_line.py 相同，其中 "auto" 即 output/train
output_dir = None                     # where the regularization folders are made; None: output/reg, which reg_data_dir = "auto" takes | 正则化图片的输出目录；None 表示 output/reg，reg_data_dir = "auto" 用的就是它

# ---- Often changed | 经常修改 ----
prompts = "captions"    # what to generate: from the training images' "captions" without the trigger word, one image each, or from the "class words" below | 画什么："captions" 按每张训练图的标注（去掉触发词）各画一张，"class words" 只用下面的类别词
class_words = "1girl"   # what your subject is, such as "1girl" or "a photo of a woman"; also used for a caption that is empty without the trigger word | 主体的类别，如 "1girl" 或 "a photo of a woman"；去掉触发词后为空的标注也用它
remove_words = None     # more words to remove from the captions; the folders' trigger words always are; None: none | 另外要从标注中去掉的词；目录名里的词总会去掉；None 表示没有
images_per_caption = 1  # images to generate per training image, usually 1 | 每张训练图对应生成的张数，常用 1
negative_prompt = ""    # negative prompt, such as "lowres, bad anatomy"; empty: none | 反向提示词，如 "lowres, bad anatomy"；留空表示不用
resolution = None       # "auto", 512, 768, 1024; each image gets the size of its training image's bucket; None: that of lora_train_command_line.py | "auto"、512、768、1024；每张图的尺寸与对应训练图的桶相同；None 表示与 lora_train_command_line.py 相同

# ---- Seldom changed | 较少修改 ----
sampler = "euler_a"         # sampler: euler_a, euler, ddim, dpmsolver++, heun, ... | 采样器：euler_a、euler、ddim、dpmsolver++、heun 等
steps = 25                  # sampling steps, usually 20~30 | 采样步数，常用 20~30
guidance_scale = 7.0        # CFG scale: how closely the prompt is followed, usually 5~8 | 提示词引导强度（CFG），常用 5~8
seed = 1                    # same seed, same images | 随机种子，相同则图片相同
clip_skip = None            # 2 for anime models of SD 1.x; None: that of lora_train_command_line.py | SD 1.x 二次元模型用 2；None 表示与 lora_train_command_line.py 相同
vae = None                  # another VAE: file or folder; None: that of lora_train_command_line.py, by default the base model's own | 外置 VAE：文件或文件夹；None 表示与 lora_train_command_line.py 相同，默认用底模自带的
mixed_precision = "auto"    # arithmetic: "no" (fp32), "fp16", "bf16"; "auto": by the device | 计算精度："no"（fp32）、"fp16"、"bf16"；"auto" 按设备选择
device = "auto"             # "auto", "cpu", "cuda", "cuda:1", "mps"; AMD (ROCm) is "cuda" too | 计算设备："auto"、"cpu"、"cuda"、"cuda:1"、"mps"；AMD（ROCm）也写 "cuda"
enable_bucket = None        # these five decide buckets, whose sizes the images get; None: those of lora_train_command_line.py | 这五项决定分桶，图片按桶的尺寸画；None 表示与 lora_train_command_line.py 相同
min_bucket_reso = None      # shortest side of a bucket | 桶的最短边
max_bucket_reso = None      # longest side of a bucket | 桶的最长边
bucket_reso_steps = None    # sides of buckets are multiples of this, a multiple of 8 | 桶的边长是它的整数倍，须为 8 的倍数
bucket_no_upscale = None    # smaller images get buckets of their own size | 不放大小图，按其自身大小分桶
caption_extension = ".txt"  # extension of the caption files, .txt or .caption | 标注文件的扩展名，.txt 或 .caption

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
overwrite = False    # regenerate images whose settings or captions changed; False: list them and generate nothing | 设置或标注改过之后，重画已有的图；False：只指出哪些不符，不画任何图

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import re
import shutil
import sys
import textwrap
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import files
from library.messages import Note, Stopped, UserError, log, plural, say
from library.options import parameter_block
from library.options.tools import TOOLS, MakeRegImages
from library.reporting import desktop, pages

SAY_ESTIMATE = 30  # seconds that are worth an estimate
MOST_BESIDE = 3  # images shown beside a training image
LONGEST_SHOWN = 200  # letters of a caption in the summary
SIZES = (  # options of the training that decide its buckets
    "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale",
)  # fmt: skip


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["make_reg_images.py"], run)


@dataclass
class Job:
    """What is wanted and what of it is there, known before any model is loaded."""

    settings: MakeRegImages
    info: Any  # families.ModelInfo
    device: Any  # hardware.device.Device
    samples: Any  # data.samples.Samples, of the training set
    fits: dict  # path -> contracts.Fit, of the training images
    images: list  # of data.regularization.Wanted
    shares: list  # of data.regularization.Share
    parameters: dict  # path -> generation_parameters.GenerationParameters
    notes: list[str]  # messages.Note, or plain text
    missing: list = field(default_factory=list)  # of `images`
    replaced: dict[Path, Path] = field(default_factory=dict)  # path of a missing one -> ours that it takes the place of


def run(settings: MakeRegImages) -> int:
    """Draw what is missing; the exit code is 0."""
    job = plan_job(settings)
    for line in job.notes:
        log.warning(line)
    before = len(job.images) - len(job.missing)
    if before:
        log.info(
            say(
                f"{before} of {plural(len(job.images), 'image')} already exist",
                f"{len(job.images)} 张中已有 {before} 张",
            )
        )
    try:
        if job.missing:
            generate_missing(job)
        else:
            log.info(say("nothing left to generate", "没有需要画的图"))
    except KeyboardInterrupt:
        count = sum(one.path.exists() for one in job.images)
        log.info(
            say(
                f"stopped: {count} of {plural(len(job.images), 'image')} done. Run it again to continue",
                f"已停止：{len(job.images)} 张中已有 {count} 张。再次运行会接着画",
            )
        )
        raise Stopped from None
    lines = rule_lines(job)
    for line in lines:
        log.info(line)
    path = write_summary(job, lines)
    if parameter_block.still_to_set(__file__, {"reg_data_dir": settings.output_dir}):
        log.info(
            say(
                f"now set in lora_train_command_line.py: {reg_data_dir(settings)}",
                f"接下来在 lora_train_command_line.py 中设置：{reg_data_dir(settings)}",
            )
        )
    log.info(say(f"summary: {path}", f"结果页：{path}"))
    desktop.open_page(path, settings.open_pages)
    return 0


def reg_data_dir(settings: MakeRegImages) -> str:
    """The line for the training's block."""
    return f'reg_data_dir = "{Path(settings.output_dir).as_posix()}"'


# ---- before any model is loaded ----


def plan_job(settings: MakeRegImages) -> Job:
    """Read the training set, work out what is wanted, and find out what of it is there.

    Raises:
        UserError: all that is wrong with set and model together; or what lies in the output folder does not fit.
    """
    from library import families
    from library.data import buckets, file_index, regularization, samples
    from library.options.training import Config
    from library.tooling import generate
    from library.training.prepare import make_folder

    problems: list[str] = []

    def attempt(function, *arguments, **options):
        try:
            return function(*arguments, **options)
        except UserError as error:
            problems.extend(error.problems)

    train, output = Path(settings.train_data_dir), Path(settings.output_dir)
    cache, _ = file_index.cache_folder(Config(train_data_dir=str(train), output_dir=str(output)))
    found = attempt(samples.find_samples, train, caption_extension=settings.caption_extension, memory=cache)
    info = attempt(families.inspect, settings.pretrained_model_name_or_path)
    config = Config(**{name: getattr(settings, name) for name in SIZES})
    attempt(make_folder, output)
    rule = attempt(buckets.resolve_resolution, config, info.resolution, info.size_step) if info else None
    device = attempt(generate.choose_device, settings.device, settings.mixed_precision, info.width) if info else None
    if problems:
        raise UserError(problems)
    sizes = {(sample.width, sample.height) for sample in found.train}
    if device.bucket_limit:  # as the training does on such a card
        rule = buckets.fewer_buckets(sizes, rule, device.bucket_limit)
    fits = {sample.image_path: buckets.fit((sample.width, sample.height), rule) for sample in found.train}
    uses_captions = settings.prompts == "captions"
    images, shares = regularization.wanted(
        found,
        fits,
        output,
        class_words=settings.class_words.strip(),
        uses_captions=uses_captions,
        remove_words=settings.remove_words or (),
        images_per_caption=settings.images_per_caption,
        seed=settings.seed,
    )
    model, model_hash = generate.identity(info.path)
    vae, vae_hash = generate.identity(settings.vae, "vae") if settings.vae else (None, None)
    parameters = {
        one.path: dict(
            # As it stands: `\\(` and (word:1.2) are plain letters to the text encoder in training, so they are here.
            prompt=one.caption,
            negative_prompt=settings.negative_prompt.strip(),
            steps=settings.steps,
            sampler=settings.sampler,
            guidance_scale=settings.guidance_scale,
            seed=one.seed,
            width=one.size[0],
            height=one.size[1],
            clip_skip=settings.clip_skip or 1 if families.facts_of(info.family).has_clip_skip else None,
            model=model,
            model_hash=model_hash,
            vae=f"{vae} {vae_hash}" if vae else None,
        )
        for one in images
    }
    notes = [
        line for line in found.warnings if not line.startswith(f"{output}:")
    ]  # it may lie beside the numbered ones
    notes += notes_on_captions(settings, info, found, images)
    job = Job(settings, info, device, found, fits, images, shares, parameters, notes)
    sort_out(job)
    return job


def notes_on_captions(settings: MakeRegImages, info: Any, found: Any, images: list) -> list[Note]:
    """What the user should know of the captions before hours are spent on them."""
    from library import families
    from library.data import captions
    from library.data.folders import some

    notes = []
    for folder in found.folders:
        notes += notes_on_word(settings, folder, found)
    if settings.prompts == "captions":
        notes += notes_on_prompts(settings, found, images)
    texts = sorted({one.caption for one in images})
    counts = families.token_counts(info, texts)
    long = [text for text, count in zip(texts, counts, strict=True) if count > 225]
    if long:
        notes.append(_too_long(len(long), some([one.path.name for one in images if one.caption in set(long)])))
    chinese_only = [
        one for one in images if captions.first_line(one.caption) and not re.search("[A-Za-z]", one.caption)
    ]
    if chinese_only:
        notes.append(_not_english(len(chinese_only), some([one.path.name for one in chinese_only])))
    return notes


def notes_on_word(settings: MakeRegImages, folder: Any, found: Any) -> list[Note]:
    """Whether the trigger word of a training folder is taken out of the captions, and is not in the class words."""
    from library import families
    from library.data import regularization

    notes = []
    word = folder.text.strip()
    texts = [sample.caption for sample in found.train if sample.image_path.parent == folder.path]
    if settings.prompts == "captions" and word and texts:
        out = [word, *(settings.remove_words or [])]
        if not any(regularization.stands_in(other, text) for other in out for text in texts):
            parts = [
                part
                for part in re.split(r"[\s_,]+", word)
                if not families.is_everyday_word(part) and any(regularization.stands_in(part, text) for text in texts)
            ]
            notes.append(_word_in_no_caption(folder.path, word, parts))
    class_words = settings.class_words.strip()
    if word and not families.is_everyday_word(word) and regularization.stands_in(word, class_words):
        notes.append(_word_in_class_words(word, class_words))
    return notes


def notes_on_prompts(settings: MakeRegImages, found: Any, images: list) -> list[Note]:
    """Whether what is left of the captions says what to generate."""
    from library.data import regularization
    from library.data.folders import some

    notes = []
    class_words, words = settings.class_words.strip(), settings.remove_words or []
    unused = [word for word in words if not any(regularization.stands_in(word, s.caption) for s in found.train)]
    if unused:
        text = say(f"remove_words: in no caption: {some(unused)}", f"remove_words：所有标注里都没有 {some(unused)}")
        notes.append(Note(text))
    every = [folder.text for folder in found.folders] + words
    bare = sum(not regularization.without(sample.caption, every) for sample in found.train)
    if bare:
        notes.append(_bare_captions(bare, len(found.train), class_words))
    elif not any(regularization.stands_in(class_words, one.caption) for one in images):
        notes.append(_no_class_words(class_words))
    return notes


def sort_out(job: Job) -> None:
    """Find out which images are there, move those whose folder has another name now, and list what is missing.

    Raises:
        UserError: images of other settings, or of somebody else, are where ours belong.
    """
    from library.data.folders import MASKS, entries, is_file, is_image, repeats_and_text, some, subfolders
    from library.data.samples import folded
    from library.images import generation_parameters

    output = Path(job.settings.output_dir)
    there: dict[Path, dict | None] = {}  # None: not drawn here, or not whole
    for folder in subfolders(output):
        if not repeats_and_text(folder.name) or folder.name == MASKS:
            continue
        for entry in entries(folder):
            if is_file(entry) and is_image(entry.name):
                there[folder / entry.name] = generation_parameters.read_parameters(folder / entry.name)
            elif re.search(r"\.\d+\.tmp$", entry.name) and time.time() - entry.stat().st_mtime > 3600:
                (folder / entry.name).unlink(missing_ok=True)  # of a run that was killed

    def place(path: Path) -> tuple[str, str]:
        return folded(path.parent.name), folded(path.name)

    paths = {place(path): path for path in there}
    same = {_key(parameters): path for path, parameters in there.items() if parameters}
    fitting = set()
    moves: list[tuple[Path, Path]] = []
    clashes: dict[Path, Path] = {}  # a wanted path -> what is there in its place
    for one in job.images:
        at = paths.get(place(one.path))
        twin = same.get(_key(job.parameters[one.path]))
        if at and there[at] == job.parameters[one.path]:
            fitting.add(at)
        elif at:
            clashes[one.path] = at
        elif twin:
            moves.append((twin, one.path))
            fitting.add(twin)
        else:
            job.missing.append(one)
    left = [path for path in there if path not in fitting and path not in clashes.values()]
    by_name = {folded(path.name): path for path in left if there[path]}
    for one in job.missing:  # drawn otherwise, and the folder had another name then
        if folded(one.path.name) in by_name:
            clashes[one.path] = by_name[folded(one.path.name)]
    foreign = [path for path in clashes.values() if there[path] is None]
    if foreign:
        raise UserError(
            say(
                f"{plural(len(foreign), 'file')} with names needed for the results, but not made by this tool or "
                f"incomplete: {some([str(path) for path in foreign])}. Move them away, or choose another output_dir",
                f"{len(foreign)} 个文件占了要画的图的位置，但不是本工具画的完整图片："
                f"{some([str(path) for path in foreign])}。请移走，或换一个 output_dir",
            )
        )
    if clashes and not job.settings.overwrite:
        raise UserError(
            _clash_messages(job, {wanted: there[at] for wanted, at in clashes.items()}, list(clashes.values()))
        )
    job.replaced = clashes
    missing = {one.path for one in job.missing} | set(clashes)
    job.missing = [one for one in job.images if one.path in missing]
    for old, new in moves:
        move_image(old, new, job.settings.caption_extension)
    for one in job.images:
        if paths.get(place(one.path)) in fitting and not _caption_path(job, one).exists():
            write_caption(job, one)
    strays = [path for path in left if path not in clashes.values()]
    if strays:
        job.notes.append(
            Note(
                say(
                    f"{output} contains {plural(len(strays), 'more image')} without a training image: "
                    f"{some([path.name for path in strays])}. Training would use them too; delete them if you don't "
                    "want that",
                    f"{output} 中另有 {len(strays)} 张图不属于任何训练图片：{some([path.name for path in strays])}。"
                    "训练时也会用到；如果不需要请删除",
                )
            )
        )


def _key(parameters: dict) -> tuple:
    return tuple(sorted((name, str(value)) for name, value in parameters.items()))


def _clash_messages(job: Job, before: dict[Path, dict], paths: list[Path]) -> list[str]:
    """What was set otherwise when images were drawn that are there, and what to do."""
    from library.data.folders import some
    from library.images import generation_parameters

    changes: dict[str, list[tuple]] = {}
    for path, parameters in before.items():
        for name, pair in generation_parameters.differences(parameters, job.parameters[path]).items():
            changes.setdefault(name, []).append(pair)
    told = []
    for name, pairs in changes.items():
        (then, now), count = pairs[0], len(pairs)
        several = f" ({count} images; one of them)" if len(set(pairs)) > 1 else ""
        several_zh = f"（共 {count} 张，如其中一张）" if len(set(pairs)) > 1 else ""
        told.append(
            say(f"{name}{several} was {then!r} and is {now!r} now", f"{name}{several_zh}原为 {then!r}，现为 {now!r}")
        )
    listed = say("; ", "；").join(told)
    return [
        say(
            f"{job.settings.output_dir} contains {plural(len(before), 'image')} made with other settings: {listed}. "
            f"Images: {some([path.name for path in paths])}. Set overwrite = True to generate them again, or choose "
            "another output_dir, or restore the old values",
            f"{job.settings.output_dir} 中有 {len(before)} 张图是按另外的设置画的：{listed}。图片："
            f"{some([path.name for path in paths])}。请设 overwrite = True 重画，或换一个 output_dir，或改回原来的值",
        )
    ]


# ---- drawing ----


def generate_missing(job: Job) -> None:
    """Draw what is missing, one by one; each image is on disk before the next is begun.

    Raises:
        UserError: memory is full, the model gives no image, or the folder cannot be written.
    """
    from tqdm import tqdm

    from library.tooling import generate

    settings, device = job.settings, job.device.torch_device
    family = generate.open_for_generation(job.info.path, job.device, vae=settings.vae, clip_skip=settings.clip_skip)
    from library.diffusion import sampling

    tuned: set[tuple[int, int]] = set()
    sizes = len({one.size for one in job.missing})
    drawn, seconds = dict.fromkeys((share.folder.path for share in job.shares), 0), 0.0
    all_pixels = sum(one.size[0] * one.size[1] for one in job.missing)
    with tqdm(total=len(job.missing), disable=None, unit=say(" images", "张"), smoothing=0.05) as bar:
        for number, one in enumerate(job.missing, 1):
            parameters = job.parameters[one.path]
            prompt = sampling.Prompt(
                parameters["prompt"],
                negative=parameters["negative_prompt"],
                width=parameters["width"],
                height=parameters["height"],
                seed=parameters["seed"],
                step_count=parameters["steps"],
                scale=parameters["guidance_scale"],
                sampler=parameters["sampler"],
            )
            began = time.perf_counter()
            with ExitStack() as around:
                around.enter_context(generate.memory_errors_explained())
                if one.size not in tuned and job.device.tunes_per_shape:
                    tuned.add(one.size)
                    log.info(
                        say(f"tuning size {len(tuned)} of {sizes}", f"正在调优第 {len(tuned)} 种尺寸，共 {sizes} 种")
                    )
                    around.enter_context(job.device.tuning())
                try:
                    image = sampling.generate(family, prompt, device)
                except UserError as error:
                    raise UserError([f"{one.path.name}: {problem}" for problem in error.problems]) from error
            write_image(job, one, image)
            taken = time.perf_counter() - began
            seconds += taken
            bar.update()
            drawn[one.sample.image_path.parent] += 1
            left = taken * (all_pixels / (one.size[0] * one.size[1]) - 1)
            if number == 1 and left > SAY_ESTIMATE:
                others, long = len(job.missing) - 1, generate.duration_text(left)
                log.info(
                    say(
                        f"the first image took {taken:.1f} s: about {long} for the other {others}. Ctrl-C stops; "
                        "run it again to continue",
                        f"第一张用了 {taken:.1f} 秒，其余 {others} 张约需 {long}。可按 Ctrl-C 停止，再次运行会接着画",
                    )
                )
            if number == len(job.missing) or job.missing[number].sample.folder != one.sample.folder:
                count = drawn[one.sample.image_path.parent]
                log.info(say(f"{one.sample.folder}: {count} generated", f"{one.sample.folder}：画了 {count} 张"))
    count = len(job.missing)
    log.info(
        say(
            f"{plural(count, 'image')} generated in {generate.duration_text(seconds)}, {seconds / count:.2f} s each",
            f"共画 {count} 张，用时 {generate.duration_text(seconds)}，每张 {seconds / count:.2f} 秒",
        )
    )


def write_image(job: Job, one: Any, image: Any) -> None:
    """Write an image and its caption; where the disk is full, wait for room."""
    from library.images import generation_parameters
    from library.tooling import generate

    def both() -> None:
        one.path.parent.mkdir(parents=True, exist_ok=True)
        write_caption(job, one)  # first: the image is what says that it is done
        generation_parameters.write_image(one.path, image, job.parameters[one.path])

    generate.write_or_explain(one.path, both, 3 * image.width * image.height)
    old = job.replaced.get(one.path)
    if old and old.parent != one.path.parent:
        for path in (old, old.with_suffix(_ending(job.settings.caption_extension))):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds something else
            old.parent.rmdir()


def _ending(caption_extension: str) -> str:
    return caption_extension if caption_extension.startswith(".") else f".{caption_extension}"


def _caption_path(job: Job, one: Any) -> Path:
    return one.path.with_suffix(_ending(job.settings.caption_extension))


def write_caption(job: Job, one: Any) -> None:
    """The caption beside its image, as the training reads it by default (reg_captions)."""
    files.write(_caption_path(job, one), one.caption.encode())


def move_image(old: Path, new: Path, caption_extension: str) -> None:
    """An image and its caption into the folder that they belong to now."""
    new.parent.mkdir(parents=True, exist_ok=True)
    ending = _ending(caption_extension)
    if old.with_suffix(ending).exists():
        shutil.move(old.with_suffix(ending), new.with_suffix(ending))
    shutil.move(old, new)
    with suppress(OSError):  # it holds something else
        old.parent.rmdir()


# ---- what came of it ----


def rule_lines(job: Job) -> list[Note]:
    """The user's rule with its numbers, for each concept and in all, and what an epoch will use."""
    from library.data import regularization
    from library.data.samples import balance

    lines = []
    for share in job.shares:
        folder = share.folder
        sign = ">=" if share.holds else "<"
        verdict = (
            say("balanced", "数量合适")
            if share.holds
            else say(
                f"more than the training samples: lower images_per_caption to {folder.repeats}, or raise the "
                "training repeats",
                f"多于训练样本：请把 images_per_caption 降到 {folder.repeats}，或增加训练图片的重复次数",
            )
        )
        ours = f"{_counted(folder.image_count, 'image')} x {_counted(folder.repeats, 'repeat')}"
        theirs = f"{_counted(share.reg_images, 'image')} x {_counted(share.reg_repeats, 'repeat')}"
        lines.append(
            Note(
                say(
                    f"{folder.name}: {ours} = {share.train_samples} {sign} {share.reg_samples} = {theirs} in "
                    f"{share.reg_folder}: {verdict}",
                    f"{folder.name}：{folder.image_count} 张 x 重复 {folder.repeats} = {share.train_samples} {sign} "
                    f"{share.reg_samples} = {share.reg_folder} 的 {share.reg_images} 张 x 重复 {share.reg_repeats}："
                    f"{verdict}",
                ),
                "green" if share.holds else "amber",
            )
        )
    train, reg = (sum(getattr(share, name) for share in job.shares) for name in ("train_samples", "reg_samples"))
    uses = balance(job.samples.train, regularization.as_samples(job.images, job.shares))
    times = sorted({count for _, count in uses})
    often = f"{times[0]}" if len(times) == 1 else f"{times[0]}~{times[-1]}"
    samples = sum(count for _, count in uses)
    lines.append(
        Note(
            say(
                f"total: {plural(train, 'training sample')}, {reg} of regularization; an epoch uses {len(uses)} of "
                f"{plural(len(job.images), 'regularization image')}, {often} {'time' if often == '1' else 'times'} each, "
                f"{plural(samples, 'sample')}"
                + ("; the others rotate in over the next epochs" if len(uses) < len(job.images) else ""),
                f"合计：训练样本 {train} 个，正则化样本 {reg} 个；每轮使用 {len(job.images)} 张正则化图片中的 "
                f"{len(uses)} 张，每张 {often} 次，共 {samples} 个样本"
                + ("；其余的在后面各轮轮流使用" if len(uses) < len(job.images) else ""),
            ),
            "green",
        )
    )
    return lines


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("s" if count != 1 else "")


class MakeRegImagesPage(NamedTuple):
    """What templates/make_reg_images.html shows."""

    train_count: int
    regularization_count: int
    model: str
    lines: list[str]  # notes with a level, or plain ones
    parameters: str  # a line of the parameter block
    figures: list[pages.Figure]  # the first of them: a training image and what was drawn for it


def write_summary(job: Job, lines: list[Note]) -> Path:
    """The page to look at: pairs of a training image and what was drawn for it."""
    drawn_for: dict[Path, list] = {}
    for one in job.images:
        drawn_for.setdefault(one.sample.image_path, []).append(one)
    content = MakeRegImagesPage(
        train_count=len(drawn_for),
        regularization_count=len(job.images),
        model=job.info.path.name,
        lines=[*lines, *job.notes],
        parameters=reg_data_dir(job.settings),
        figures=[pair(job, drawn) for _, drawn in sorted(drawn_for.items())[: pages.MOST_IMAGES]],
    )
    path = Path(job.settings.output_dir) / "summary.html"
    return pages.write(path, pages.render("make_reg_images.html", content))


def pair(job: Job, drawn: list) -> pages.Figure:
    """A training image with the images that were drawn for it."""
    first = drawn[0]
    path, (width, height) = first.sample.image_path, first.size
    sheet = side_by_side(first.sample, job.fits[path], [one.path for one in drawn[:MOST_BESIDE]])
    return pages.figure_of(
        sheet,
        textwrap.shorten(first.caption, LONGEST_SHOWN, placeholder=" …"),
        say(
            f"{path.name} · seed {first.seed}, {width}x{height}",
            f"{path.name} · 种子 {first.seed}，{width}x{height}",
        ),
    )


def side_by_side(sample: Any, fit: Any, paths: list[Path], height: int = 160) -> Any:
    """A training image as training sees it, and what was drawn for it; one that cannot be read is grey."""
    from PIL import Image

    from library.data import decoding

    gap, sides = 4, (round(fit.bucket[0] * height / fit.bucket[1]), height)
    sheet = Image.new("RGB", ((sides[0] + gap) * (1 + len(paths)) - gap, height), "white")
    for number in range(1 + len(paths)):
        try:
            opened = Image.open(paths[number - 1]) if number else Image.fromarray(decoding.load(sample.image_path, fit))
            shown = opened.convert("RGB").resize(sides)
        except (OSError, ValueError):  # changed or gone since
            shown = Image.new("RGB", sides, "gray")
        sheet.paste(shown, (number * (sides[0] + gap), 0))
    return sheet


# ---- messages ----


def _word_in_no_caption(folder: Path, word: str, parts: list[str]) -> Note:
    """The trigger word of a folder's name is in none of its captions; `parts` of it may be."""
    setting = f"remove_words = {parts or ['...']}".replace("'", '"')
    return Note(
        say(
            f'{folder}: "{word}" is in none of its captions, so nothing is removed from them. If your trigger word is '
            f"another one, set {setting}",
            f"{folder}：所有标注里都没有“{word}”，因此没有去掉任何词。如果触发词是别的词，请设 {setting}",
        )
    )


def _word_in_class_words(word: str, class_words: str) -> Note:
    return Note(
        say(
            f'class_words = "{class_words}" contains the trigger word "{word}": the images would teach the model that '
            "it is nothing new. Remove it",
            f'class_words = "{class_words}" 含有触发词“{word}”：这样的图会让模型学到它并不新。请去掉它',
        ),
        "red",
    )


def _bare_captions(bare: int, total: int, class_words: str) -> Note:
    return Note(
        say(
            f'{bare} of {plural(total, "caption")} contain only the trigger word, so "{class_words}" is used for them. '
            "Full captions give more useful images: tag the training set first",
            f"{total} 个标注文件中有 {bare} 个除触发词外没有内容，按“{class_words}”生成。"
            "按完整标注生成的图更有用，建议先给训练集打标签",
        )
    )


def _no_class_words(class_words: str) -> Note:
    return Note(
        say(
            f'"{class_words}" is in none of the captions: where no tag says what the subject is, anything may come '
            "out. If you want it in the images, add such a word to the training captions",
            f"所有标注里都没有“{class_words}”：如果标签没有说明主体是什么，出图可能是任意的东西。"
            "需要的话，请在训练集的标注里加上这样的词",
        )
    )


def _too_long(count: int, names: str) -> Note:
    return Note(
        say(
            f"{plural(count, 'caption is', 'captions are')} longer than the 225 tokens that are read; the rest is cut: "
            f"{names}",
            f"{count} 个标注文件超过可读取的 225 个 token，超出部分会被截掉：{names}",
        )
    )


def _not_english(count: int, names: str) -> Note:
    return Note(
        say(
            f"{plural(count, 'caption has', 'captions have')} no English words, and Stable Diffusion understands only "
            f"English: {names}",
            f"{count} 个标注文件里没有英文，而 Stable Diffusion 只懂英文：{names}",
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
