"""Step 3: write tags for every image. Edit the values below, then run this file; it takes no arguments.

第 3 步：给每张图片打标签。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = None    # folder of images, including sub-folders; a .txt is written beside each; None: output/prepared | 图片目录，含子目录；每张图旁边会写一个 .txt；None 表示 output/prepared
trigger_word = None  # trigger word, put before all tags; None: that of lora_train_command_line.py; "": none (the word of a [repeats]_[concept] folder is used instead) | 触发词，放在所有标签之前；None 表示与 lora_train_command_line.py 相同；"" 表示不加（[重复次数]_[概念] 目录用目录名里的词）

# ---- Often changed | 经常修改 ----
tagger = "auto"             # a WD-style tagger: folder with model.onnx and selected_tags.csv, or a hub name such as "SmilingWolf/wd-swinv2-tagger-v3"; "auto": a local one if there is one; None: folder words and facts of the image only | WD 系标签模型：含 model.onnx 和 selected_tags.csv 的目录，或模型库名称如 "SmilingWolf/wd-swinv2-tagger-v3"；"auto"：有本地的就用；None：只用目录名和图片本身的信息
general_threshold = 0.35    # confidence threshold for general tags, usually 0.25~0.5; lower gives more tags and more wrong ones | 一般标签的置信度下限，常用 0.25~0.5；越低标签越多，错的也越多
character_threshold = 0.85  # confidence threshold for character names, usually 0.7~0.9; 1: none | 已知角色名的置信度下限，常用 0.7~0.9；1 表示不要角色名
existing = "keep"           # images that already have tags: "keep" them, with the trigger word put first, "add" what is missing, or "replace" them (the old ones go to .backup) | 已有标签的图片："keep" 保留，只在最前面补上触发词，"add" 补上缺少的，"replace" 换掉（旧的存入 .backup）
exclude_tags = None         # tags that are never written, such as ["signature", "watermark"]; None: none | 不写入的标签，如 ["signature", "watermark"]；None 表示没有

# ---- Seldom changed | 较少修改 ----
rating_tags = False         # also write the rating (general, sensitive, ...) | 同时写入分级标签（general、sensitive 等）
underscores = False         # write long_hair instead of long hair; emoticons such as ^_^ keep theirs | 写成 long_hair 而不是 long hair；^_^ 之类的颜文字不变
escape_brackets = False     # write \( and \) for brackets, as in a web UI's prompt; the training reads them as ( and ) | 标签里的括号写成 \( 和 \)，与 web UI 提示词一致；训练时按 ( 和 ) 读取
picture_facts = True        # without a tagger: also add orientation, plain background and dominant color | 没有标签模型时，也写入画面方向、纯色背景和主色调
batch_size = 4              # images tagged at once, 1~8 on a CPU, 8~32 on a GPU | 每批处理的图片数，CPU 用 1~8，显卡用 8~32
models_dirs = None          # further folders with models, such as a web UI's ["D:/stable-diffusion-webui"]; None: the usual places | 另外查找模型的目录，如 web UI 所在的 ["D:/stable-diffusion-webui"]；None 表示只查常用位置
device = "auto"             # where the tagger runs: "auto", "cpu", "cuda" (AMD too) | 标签模型运行的设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）
caption_extension = ".txt"  # extension of the caption files, .txt or .caption | 标注文件的扩展名，.txt 或 .caption

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
output_dir = None    # where the summary goes; None: output/tags | 结果页的输出目录；None 表示 output/tags

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image
from tqdm import tqdm

from library.data import captions, decoding, folders, image_folder, tag_statistics, threads
from library.data.folders import REG
from library.data.samples import folded
from library.images import local_models
from library.images import tagger as wd
from library.images.image_facts import facts as facts_of
from library.messages import Stopped, UserError, log, plural, say
from library.options import parameter_block
from library.options.declaration import PROJECT
from library.options.tools import TOOLS, TagImages
from library.reporting import desktop, pages
from library.storage.undo import Backup

MODEL_FILES = ("*.onnx",)
DECODERS = 4  # threads; one alone keeps a CPU's tagger fed, a GPU's wants more
FACTS_SIDE = 256
FEW = 4  # tags: fewer are worth a look
UNSURE = 0.5  # mean probability of the tags: lower is worth a look
SHOWN_TAGS = 40
SHOWN_ODD = 40  # images
MOST_BROKEN = 10  # named in the terminal
PAGE = "tagged.html"  # edit_tags has its page in the same folder


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["tag_images.py"], run)


@dataclass
class Results:
    """What became of the images."""

    captions: dict[Path, str]  # image -> its caption now, of those that have one
    tagged: set[Path] = field(default_factory=set)  # looked at in this run, or known from an earlier one
    changed: int = 0  # caption files written
    sureness: dict[Path, float] = field(default_factory=dict)  # mean probability of the tags the tagger gave
    few: list[Path] = field(default_factory=list)  # the tagger gave fewer than FEW
    broken: dict[Path, str] = field(default_factory=dict)  # cannot be read, and why
    stopped: bool = False


def run(settings: TagImages) -> int:
    """Write the captions that are missing; the exit code is 0."""
    begun = time.monotonic()
    found = image_folder.find_images(
        settings.images_dir,
        caption_extension=settings.caption_extension,
        must_be_sure=settings.existing == "add",
    )
    notes = list(found.notes)
    images = to_do(found, settings, notes)
    without = without_word(found, settings)
    # what is read by a guess of its encoding is not written anew unasked
    lacking = [image for image in without if settings.trigger_word and image.encoding.startswith("utf-8")]
    stay = [found.name(image) for image in without if image not in lacking]
    if lacking:
        notes.append(_word_is_put_first(settings.trigger_word, [found.name(image) for image in lacking]))
    if stay:
        notes.append(_word_is_missing(stay))
    model = find_model(settings) if images else None
    for note in notes:
        log.warning(note)
    had = sum(bool(captions.first_line(image.caption or "")) for image in found.images)
    log.info(
        say(
            f"{plural(len(found.images), 'image')}, {had:,} with tags already ({stays(settings)})",
            f"{len(found.images):,} 张图片，其中 {had:,} 张已有标签（{stays(settings)}）",
        )
    )
    results = Results({image.path: image.caption for image in found.images if image.caption is not None})
    seconds, name = 0.0, wd.name_of(model) if model else None
    if images or lacking:
        with Backup(found.folder, "tag_images") as backup:
            try:
                for image in lacking:
                    front = front_words(image.path, found.folder, settings)
                    write_caption(image, new_caption(image, front, [], settings), backup, results)
                    results.tagged.discard(image.path)
                if not images:
                    pass
                elif model:
                    name = tag(images, found, settings, model, backup, results)
                else:
                    describe(images, found, settings, backup, results)
            except KeyboardInterrupt:
                results.stopped = True
            except UserError as error:
                done = say(
                    f"{plural(results.changed, 'caption was', 'captions were')} written before that and kept; run "
                    "it again to continue",
                    f"此前已写好 {results.changed:,} 个标注文件，予以保留；再次运行会接着做",
                )
                raise UserError([*error.problems, *([done] if results.changed else [])]) from error
        seconds = time.monotonic() - begun
    if images and not model and settings.tagger:
        log.info("\n".join(advice_without()))
    for line in result_lines(found, results, images, seconds):
        log.info(line)
    path = write_summary(found, settings, results, name, notes)
    log.info(say(f"summary: {path}", f"结果页：{path}"))
    desktop.open_page(path, settings.open_pages)
    if results.stopped:
        raise Stopped
    return 0


def stays(settings: TagImages) -> str:
    """What happens to tags that are there."""
    return {
        "keep": say("kept", "保留"),
        "add": say("missing tags are added", "补上缺少的"),
        "replace": say("replaced", "将被替换"),
    }[settings.existing]


# ---- which images, which model ----


def to_do(found: image_folder.ImageFolder, settings: TagImages, notes: list[str]) -> list[image_folder.CaptionedImage]:
    """The images whose captions are to be written, each with a caption file of its own."""
    chosen: list[image_folder.CaptionedImage] = []
    owners: dict[str, str] = {}  # caption file -> the image whose it is
    shared: list[str] = []
    bodies = image_folder.beside_training(found)
    if bodies:
        notes.append(_bodies_get_none(len(bodies)))
    for image in found.images:
        now = captions.first_line(image.caption or "")
        if image.path in bodies or (settings.existing == "keep" and now):
            continue
        if folded(image.caption_path.stem) != folded(image.path.stem):  # of the image it was cut out of
            image = image._replace(caption_path=image.path.with_suffix(image.caption_path.suffix))
        key = folded(str(image.caption_path))
        if key in owners:
            shared.append(f"{found.name(image)} = {owners[key]}")
        else:
            owners[key] = image.path.name
            chosen.append(image)
    if shared:
        notes.append(
            say(
                f"{plural(len(shared), 'image shares', 'images share')} a caption file with another image of the "
                f"same name, and only the first is tagged: {folders.some(shared)}. Rename one of each pair",
                f"{len(shared)} 张图片与另一张同名、共用一个标注文件，只给第一张打标签：{folders.some(shared)}。请把"
                "两张中的一张改名",
            )
        )
    return chosen


def without_word(found: image_folder.ImageFolder, settings: TagImages) -> list[image_folder.CaptionedImage]:
    """The images whose tags are kept and lack what stands first in all others; not those of regularization."""
    if settings.existing != "keep":
        return []
    lacking, bodies = [], image_folder.beside_training(found)
    for image in found.images:
        now = captions.first_line(image.caption or "")
        front = front_words(image.path, found.folder, settings)
        if now and image.path not in bodies and not all(tag_statistics.has_word(now, word) for word in front):
            lacking.append(image)
    return lacking


def find_model(settings: TagImages) -> Path | None:
    """The tagger's file; None: none is wanted, or "auto" finds none. Raises UserError."""
    wanted = settings.tagger
    if wanted is None:
        return None
    if wanted != "auto":
        path = PROJECT / Path(wanted).expanduser()
        if path.exists():
            return _model_file(path)
        if not _is_hub_name(wanted):
            raise UserError(
                say(
                    f'tagger = "{wanted}": there is no such file or folder, and it is not a hub name like '
                    f'"{wd.ADVISED}"',
                    f'tagger = "{wanted}"：没有这个文件或文件夹，它也不是 "{wd.ADVISED}" 这样的模型库名称',
                )
            )
    models = wd.best_first(local_models.find_models(MODEL_FILES, settings.models_dirs))
    if wanted == "auto":
        return models[0] if models else None
    for model in models:
        if wd.is_called(model, wanted):
            return model
    there = [wd.name_of(model) for model in models]
    raise UserError(
        say(
            f'tagger = "{wanted}": not on this machine, and nothing is downloaded. {where_to_get(wanted)}'
            + (f" Available here: {folders.some(there)}" if there else ""),
            f'tagger = "{wanted}"：本机没有，程序也不会下载。{where_to_get(wanted)}'
            + (f"本机已有：{folders.some(there)}" if there else ""),
        )
    )


def _is_hub_name(text: str) -> bool:
    return text.count("/") <= 1 and not set(text) & set('\\:*?"<>|') and not text.startswith((".", "/", "~"))


def _model_file(path: Path) -> Path:
    """The tagger in a folder or file that the user named. Raises UserError."""
    files = (
        [path]
        if path.is_file()
        else [file for file in local_models.files_below(path) if file.suffix.lower() == ".onnx"]
    )
    models = wd.best_first(files)
    if models:
        return models[0]
    if files and (files[0].parent / wd.OTHER_INPUT).exists():
        what = say(
            f"this model preprocesses images differently ({wd.OTHER_INPUT} beside it); only WD-style taggers are "
            "supported",
            f"该模型的图片预处理方式不同（旁边有 {wd.OTHER_INPUT}），这里只支持 WD 系标签模型",
        )
    elif files:
        what = say(
            f"there is no {wd.TABLE} beside {files[0].name}, which names its tags",
            f"{files[0].name} 旁边没有标签表 {wd.TABLE}",
        )
    else:
        what = say("there is no .onnx file in it", "里面没有 .onnx 文件")
    raise UserError(say(f"tagger = {path}: {what}. {where_to_get()}", f"tagger = {path}：{what}。{where_to_get()}"))


def where_to_get(name: str = wd.ADVISED) -> str:
    """One line for those who have no tagger."""
    folder = f"models/{name.split('/')[-1]}/"
    return say(
        f"Put model.onnx and {wd.TABLE} of {name} into {folder} beside this project's files (where Hugging Face "
        "cannot be reached, ModelScope and mirrors have them).",
        f"请把 {name} 的 model.onnx 和 {wd.TABLE} 放入本项目的 {folder}（无法访问 Hugging Face 时，可从 ModelScope "
        "或镜像站获取）。",
    )


# ---- words ----


def front_words(path: Path, root: Path, settings: TagImages) -> list[str]:
    """What stands first: the trigger word, or the concept of the image's [repeats]_[concept] folder."""
    if settings.trigger_word:
        return captions.tags(settings.trigger_word)
    for folder in path.parents:
        meaning = folders.repeats_and_text(folder.name)
        if meaning and meaning[0] >= 1:
            return captions.tags(meaning[1])
        if folder == root:
            return []
    return []


def folder_words(path: Path, root: Path) -> list[str]:
    """What the sub-folders that an image lies in are called, the outermost first; without numbers."""
    words: list[str] = []
    for name in path.relative_to(root).parts[:-1]:
        meaning = folders.repeats_and_text(name)
        for word in captions.tags(meaning[1] if meaning else name):
            word = " ".join(word.replace("_", " ").split())
            if any(letter.isalpha() for letter in word):
                words.append(word)
    return words


def excluded(patterns: Iterable[str] | None) -> Callable[[str], bool]:
    """Whether a tag is one that is never written, in whatever spelling; * stands for any letters."""
    parts = [tag_statistics.spelled(part) for pattern in patterns or () for part in captions.tags(pattern)]
    shape = re.compile("|".join(re.escape(part).replace(r"\*", ".*") for part in parts)) if parts else None
    return lambda word: shape is not None and bool(shape.fullmatch(tag_statistics.spelled(word)))


def new_caption(image: image_folder.CaptionedImage, front: list[str], words: list[str], settings: TagImages) -> str:
    """The caption that an image gets."""
    now = captions.first_line(image.caption or "")
    if settings.existing == "replace" or not now:
        return wd.joined([*front, *words], tag_statistics.spelled)
    missing = [word for word in front if not tag_statistics.has_word(now, word)]
    return wd.extended(image.caption, ", ".join(missing) or None, words, tag_statistics.spelled)


def write_caption(image: image_folder.CaptionedImage, text: str, backup: Backup, results: Results) -> None:
    """Write a caption where it is another than the one that is there."""
    results.tagged.add(image.path)
    results.captions[image.path] = text
    if text == image.caption:
        return
    before = backup.count
    backup.write(image.caption_path, text.encode())
    results.changed += backup.count - before


# ---- with a tagger ----


class DecodedImage(NamedTuple):
    """An image, decoded ahead."""

    image: image_folder.CaptionedImage
    content: object  # what the work wants of it; None: it is broken
    problem: str = ""


def decoded(
    images: Iterable[image_folder.CaptionedImage], area: int, use: Callable[[Image.Image], object], results: Results
) -> Iterator[DecodedImage]:
    """The images that can be read, upright, in sRGB and on white, some of them ahead of the reader."""

    def look(image: image_folder.CaptionedImage) -> DecodedImage:
        try:
            return DecodedImage(image, use(on_white(decoding.raw(image.path, area)[1])))
        except decoding.BrokenImage as error:
            return DecodedImage(image, None, str(error))

    for looked in threads.in_order(look, images, DECODERS):
        if looked.content is None:
            results.broken[looked.image.path] = looked.problem
        yield looked


def first_whole(images: list[image_folder.CaptionedImage], results: Results) -> int:
    """How many broken images stand before the first one that can be read."""
    for at, image in enumerate(images):
        try:
            decoding.inspect(image.path)
            return at
        except decoding.BrokenImage as error:
            results.broken[image.path] = str(error)
    return len(images)


def on_white(image: Image.Image) -> Image.Image:
    """RGB, with white in place of transparency, as the training sees it."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def tag(
    images: list[image_folder.CaptionedImage],
    found: image_folder.ImageFolder,
    settings: TagImages,
    path: Path,
    backup: Backup,
    results: Results,
) -> str:
    """Write captions of what a tagger sees; gives the model's name, and where it ran."""
    table = wd.read_table(wd.table_of(path))
    by = f"{wd.name_of(path)} {path.stat().st_size}"
    floor = min(wd.Sightings.FLOOR, settings.general_threshold, settings.character_threshold)
    is_excluded = excluded(settings.exclude_tags)

    def write(image: image_folder.CaptionedImage, seen: list[wd.Tag]) -> None:
        tags = wd.chosen_tags(
            seen, settings.general_threshold, settings.character_threshold, with_rating=settings.rating_tags
        )
        tags = [one for one in tags if not is_excluded(one.name)]
        sure = [one.probability for one in tags if one.category != wd.RATING]
        results.sureness[image.path] = sum(sure) / len(sure) if sure else 0.0
        if len(sure) < FEW:
            results.few.append(image.path)
        words = [
            wd.written(one.name, underscores=settings.underscores, escape_brackets=settings.escape_brackets)
            for one in tags
        ]
        front = front_words(image.path, found.folder, settings)
        write_caption(image, new_caption(image, front, words, settings), backup, results)

    with wd.Sightings(found.folder, table, by) as sightings:
        unseen = []
        for image in images:
            seen = sightings.get(image.path, floor)
            if seen is None:
                unseen.append(image)
            else:
                write(image, seen)
        if len(unseen) < len(images):
            log.info(
                say(
                    f"{plural(len(images) - len(unseen), 'image was', 'images were')} already processed by this tagger",
                    f"{len(images) - len(unseen):,} 张图片此前已由该模型看过，不再重看",
                )
            )
        unseen = unseen[first_whole(unseen, results) :]
        if not unseen:  # then no model of hundreds of megabytes is opened
            return wd.name_of(path)
        try:
            opened = local_models.open_onnx(path, settings.device)
            model = wd.open_tagger(opened, table)
        except UserError as error:
            without = say("to continue without a tagger: tagger = None", "不用标签模型也可以：设 tagger = None")
            raise UserError([*error.problems, without]) from error
        log.info(
            say(
                f"tagger {wd.name_of(path)} ({path}) on {opened.device}: {len(table.names):,} tags",
                f"标签模型 {wd.name_of(path)}（{path}），运行于 {opened.device}：{len(table.names):,} 种标签",
            )
        )
        with tqdm(total=len(unseen), disable=None, unit=say(" images", " 张")) as bar:
            group: list[DecodedImage] = []

            def finish() -> None:
                if not group:
                    return
                probabilities = model.probabilities([looked.content for looked in group])
                for looked, row in zip(group, probabilities, strict=True):
                    seen = table.seen(row, floor)
                    sightings.put(looked.image.path, seen, floor)
                    write(looked.image, seen)
                group.clear()

            for looked in decoded(unseen, (wd.ENOUGH * model.size) ** 2, model.prepare, results):
                bar.update()
                if looked.content is not None:
                    group.append(looked)
                if len(group) == settings.batch_size:
                    finish()
            finish()
        return say(f"{wd.name_of(path)} on {opened.device}", f"{wd.name_of(path)}（{opened.device}）")


# ---- without one ----


def describe(
    images: list[image_folder.CaptionedImage],
    found: image_folder.ImageFolder,
    settings: TagImages,
    backup: Backup,
    results: Results,
) -> None:
    """Write captions of what folders are called, and of what can be said of an image without a model."""
    is_excluded = excluded(settings.exclude_tags)

    def look(image: Image.Image) -> list[str]:
        return facts_of(image) if settings.picture_facts else []

    with tqdm(total=len(images), disable=None, unit=say(" images", " 张")) as bar:
        for looked in decoded(images, FACTS_SIDE**2, look, results):
            bar.update()
            if looked.content is None:
                continue
            words = [*folder_words(looked.image.path, found.folder), *looked.content]
            words = [
                word.replace(" ", "_") if settings.underscores else word for word in words if not is_excluded(word)
            ]
            front = front_words(looked.image.path, found.folder, settings)
            write_caption(looked.image, new_caption(looked.image, front, words, settings), backup, results)


# ---- what is said of it ----


def advice_without() -> tuple[str, str]:
    """What is missing where no tagger was found, and what to do."""
    return (
        say(
            "no tagger was found: captions contain only folder words and basic image facts. A tagger would also "
            "describe hair, eyes, clothes, pose, expression and background",
            "没有找到标签模型：标注里只有目录名和图片本身的信息。有模型就能写出发色、眼睛、服装、姿势、表情、场景等",
        ),
        where_to_get(),
    )


def result_lines(
    found: image_folder.ImageFolder, results: Results, todo: list[image_folder.CaptionedImage], seconds: float
) -> list[str]:
    """What the user reads in the terminal."""
    lines = []
    if results.stopped:
        lines.append(
            say(
                f"stopped: {plural(results.changed, 'caption')} written and kept. Run it again to continue",
                f"已停止：已写好 {results.changed:,} 个标注文件，予以保留。再次运行会接着做",
            )
        )
    elif not todo:
        lines.append(say("nothing left to tag", "没有需要打标签的图片"))
    elif not results.changed:
        lines.append(say("no caption needed to change", "没有需要改动的标注文件"))
    if results.changed and not results.stopped:
        speed = len(todo) / max(seconds, 1e-3)
        lines.append(
            say(
                f"{plural(results.changed, 'caption')} written in {seconds:.1f} s ({speed:.1f} images a second)",
                f"已写好 {results.changed:,} 个标注文件，用时 {seconds:.1f} 秒（每秒 {speed:.1f} 张）",
            )
        )
    if results.broken:
        lines.append(
            say(
                f"{plural(len(results.broken), 'image')} skipped: they cannot be read",
                f"已跳过 {len(results.broken)} 张无法读取的图片",
            )
        )
        shown = list(results.broken.items())[:MOST_BROKEN]
        lines += [f"  {path.relative_to(found.folder).as_posix()}: {problem}" for path, problem in shown]
        if len(results.broken) > MOST_BROKEN:
            rest = len(results.broken) - MOST_BROKEN
            lines.append(say(f"  and {rest} more, on the page", f"  另有 {rest} 张，见结果页"))
    if results.changed:
        lines.append(
            say(
                'to undo: tools/edit_tags.py with this images_dir and action = "undo"',
                '要撤销：在 tools/edit_tags.py 中填同一个 images_dir，并设 action = "undo"',
            )
        )
    return lines


class TagImagesPage(NamedTuple):
    """What templates/tag_images.html shows."""

    folder: str
    images_dir: str
    numbers: dict[str, object]
    notes: list[str]
    advice_without_tagger: tuple[str, str] | None  # what is missing, and what to do
    is_stopped: bool
    broken: list[tuple[str, str]]  # image, why it cannot be read
    tagger: str
    kept_count: int  # images that had tags before
    tags: list[tuple[str, int, str]]  # tag, how often, share
    first_tags: int  # that are not folded
    few: int
    unsure: float
    unsure_count: int
    unsure_figures: list[pages.Figure]
    figures: list[pages.Figure]
    figure_count: int


def write_summary(
    found: image_folder.ImageFolder, settings: TagImages, results: Results, name: str | None, notes: list[str]
) -> Path:
    """The page that a person looks at.

    Args:
        name: of the tagger; None: there is none.
    """

    def short(path: Path) -> str:
        return path.relative_to(found.folder).as_posix()

    lines = {path: captions.first_line(text) for path, text in results.captions.items()}
    lines = {path: line for path, line in lines.items() if line}
    counted = tag_statistics.count(tag_statistics.Captioned("", short(path), line) for path, line in lines.items())
    tag_count = sum(counted.count(one) for one in counted.tags.values())
    numbers: dict[str, object] = {
        say("images", "图片"): f"{len(found.images):,}",
        say("captions written now", "本次写入"): f"{results.changed:,}",
        say("different tags", "不同标签"): f"{len(counted.tags):,}",
        say("tags per image", "平均每张标签数"): f"{tag_count / max(1, len(lines)):.1f}",
    }
    without = [image.path for image in found.images if image.path not in lines]
    if without:
        numbers[say("without tags", "没有标签")] = f"{len(without):,}"
    odd = unsure_images(results)
    shown = [image.path for image in found.images if image.path in results.tagged] or list(lines)
    content = TagImagesPage(
        folder=found.folder.name,
        images_dir=Path(settings.images_dir).as_posix(),
        numbers=numbers,
        notes=notes,
        advice_without_tagger=advice_without() if results.tagged and not name and settings.tagger else None,
        is_stopped=results.stopped,
        broken=[(short(path), problem) for path, problem in results.broken.items()],
        tagger=name or "",
        kept_count=len(lines.keys() - results.tagged),
        tags=[(one.text, counted.count(one), f"{counted.share(one):.0%}") for one in counted.tags.values()],
        first_tags=SHOWN_TAGS,
        few=FEW,
        unsure=UNSURE,
        unsure_count=len(odd),
        unsure_figures=[
            pages.figure_of(path, short(path), f"{sureness(results.sureness[path])} · {lines.get(path, '')}")
            for path in odd[:SHOWN_ODD]
        ],
        figures=[pages.figure_of(path, short(path), lines.get(path, "")) for path in shown[: pages.MOST_IMAGES]],
        figure_count=len(shown),
    )
    return pages.write(Path(settings.output_dir) / PAGE, pages.render("tag_images.html", content))


def unsure_images(results: Results) -> list[Path]:
    """Those with few tags or with tags that are unsure, the worst first."""
    few = set(results.few)
    odd = [path for path, sure in results.sureness.items() if sure < UNSURE or path in few]
    return sorted(odd, key=lambda path: (path not in few, results.sureness[path]))


def sureness(probability: float) -> str:
    return say(f"{probability:.0%} sure", f"置信度 {probability:.0%}")


# ---- what is said ----


def _word_is_put_first(word: str, names: list[str]) -> str:
    return say(
        f"`{word}` is put first in {plural(len(names), 'caption')} that had tags without it: {folders.some(names)}",
        f"{len(names)} 个已有标注文件里没有 `{word}`，已加在最前面：{folders.some(names)}",
    )


def _word_is_missing(names: list[str]) -> str:
    return say(
        f"{plural(len(names), 'image keeps', 'images keep')} tags without the trigger word: {folders.some(names)}. "
        "tools/edit_tags.py can put it first everywhere",
        f"{len(names)} 张图片保留原有标签，其中没有触发词：{folders.some(names)}。"
        "tools/edit_tags.py 可给全部图片加在最前面",
    )


def _bodies_get_none(count: int) -> str:
    return say(
        f'{plural(count, "full image", "full images")} in {REG}/ (faces = "recipe") get no tags: as regularization '
        "they need none",
        f"{REG}/ 里的 {count} 张完整图片（人脸配方）不打标签：作正则化用不需要标签",
    )


if __name__ == "__main__":
    raise SystemExit(main())
