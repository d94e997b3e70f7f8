"""Step 4: put images and captions into [repeats]_[concept] folders. As delivered they are copied. Edit the values
below, then run this file; it takes no arguments.

第 4 步：把图片和标签放进 [重复次数]_[概念] 目录。默认是复制。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = None  # folder of images with their captions and masks; None: output/prepared | 图片及其标注、蒙版所在的目录；None 表示 output/prepared
output_dir = None  # where the [repeats]_[concept] folders are made; None: output/train, which train_data_dir = "auto" takes | 在这里建立 [重复次数]_[概念] 目录；None 表示 output/train，train_data_dir = "auto" 用的就是它
concept = None     # the trigger word: a made-up one, which stands in the captions; None: trigger_word of lora_train_command_line.py | 触发词，请用自造的词，标注里也要有它；None 表示与 lora_train_command_line.py 的 trigger_word 相同

# ---- Often changed | 经常修改 ----
repeats = None           # how often each image is used in an epoch; None: computed from the next three | 每轮中每张图的重复次数；None 表示按下面三项推算
target_steps = 1500      # target number of training steps, usually 1000~3000; with regularization images it has about twice as many | 希望的训练步数，常用 1000~3000；使用正则化图片时约加倍
max_train_epochs = None  # None: that of lora_train_command_line.py | None 表示与 lora_train_command_line.py 相同
train_batch_size = None  # None: that of lora_train_command_line.py | None 表示与 lora_train_command_line.py 相同
action = "copy"          # "show" the plan only, "copy", "move", or "link" (no further disk space) | "show" 只显示方案，"copy" 复制，"move" 移动，"link" 硬链接（不多占硬盘）
sub_folders = "auto"     # sub-folders of images_dir: "concepts" of their own names, all "together" in one; "auto": together where their captions hold the word concept | images_dir 的子目录："concepts" 各以目录名为概念，"together" 合为一个；"auto"：标注里都有 concept 这个词的才合并

# ---- Seldom changed | 较少修改 ----
pretrained_model_name_or_path = None  # base model whose tokenizer is used to check the trigger word; None: that of lora_train_command_line.py | 底模，用其分词器检查触发词；None 表示与 lora_train_command_line.py 相同
caption_extension = ".txt"            # extension of the caption files, .txt or .caption | 标注文件的扩展名，.txt 或 .caption

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
overwrite = False    # replace files whose content differs, such as captions edited since; the old files go to .backup; False: list them and do nothing | 替换内容不同的文件，如之后又改过的标注，旧的存入 .backup；False：只指出哪些不同，不做任何改动

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import files
from library.data import captions, folder_sorting, folders, image_folder, sorted_set, tag_statistics
from library.data.folders import REG
from library.messages import Stopped, UserError, log, plural, say
from library.options import parameter_block
from library.options.tools import TOOLS, SortIntoFolders
from library.reporting import desktop, pages
from library.storage import undo

PAGE = "folders.html"  # beside the numbered folders; the training passes it over
THUMBNAILS = 8  # images shown of each concept
MANY_TOKENS = 6  # a word of more is spelt out to the model rather than known


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["sort_into_folders.py"], run)


@dataclass
class Job:
    """One folder that shall be there."""

    word: str
    images: list[image_folder.CaptionedImage]  # of images_dir that belong into it
    files: list[folder_sorting.File]  # these, their captions and masks
    names: list[str]  # its images once all is done, those that are there already too
    others: list[str]  # of these, what does not come from images_dir
    there: folder_sorting.Numbered | None  # the folder of this word that is there already
    fixed: int | None  # repeats that its source folder's name says
    repeats: int = 0
    differing: list[folder_sorting.File] = field(default_factory=list)  # something else is in their place
    foreign: list[folder_sorting.File] = field(default_factory=list)  # of these, what was not put there by this tool
    deleted: list[str] = field(default_factory=list)  # images of its folder that are in images_dir no longer

    def path(self, output: Path) -> Path:
        return output / f"{self.repeats}_{self.word}"


def run(settings: SortIntoFolders) -> int:
    """Sort the set; or, as faces = "recipe" left them, the faces and then the same person's full images beside them."""
    folder = Path(settings.images_dir)
    if not image_folder.is_face_recipe(folder):
        sort(settings)
        return 0
    jobs = sort(replace(settings, images_dir=str(folder / "train"), sub_folders="together"))
    bodies = len(image_folder.find_images(folder / REG, may_be_empty=True).images)
    if not bodies:  # all of them were deleted: faces alone are a set, too
        return 0
    samples, most = sum(len(job.names) * job.repeats for job in jobs), max(job.repeats for job in jobs)
    sort(
        replace(
            settings,
            images_dir=str(folder / REG),
            output_dir=str(Path(settings.output_dir).parent / REG),
            sub_folders="together",
            repeats=max(1, min(most // 2, samples // bodies)),  # below the faces', and none is left unused
            open_pages=False,
        )
    )
    return 0


def sort(settings: SortIntoFolders) -> list[Job]:
    """Plan, check, and do it."""
    notes: list[str] = []
    jobs, gone = planned(settings, notes)
    refuse(settings, jobs)
    findings = checked(settings, jobs)
    for note in notes:
        log.warning(note)
    for line in plan_lines(settings, jobs):
        log.info(line)
    log.info("\n".join(done(settings, jobs, gone)))
    for one in findings:
        if one.level != "green":
            log.info(f"- {one.text}" + (say(f". {one.cure}", f"。{one.cure}") if one.cure else ""))
    if lines := block_lines(settings):
        log.info(say("now set in lora_train_command_line.py:", "接下来在 lora_train_command_line.py 中设置："))
        for line in lines:
            log.info(f"  {line}")
    else:
        log.info(
            say(
                "next: lora_train_command_line.py, which trains these folders",
                "接下来运行 lora_train_command_line.py，它会训练这些目录",
            )
        )
    page = write_page(settings, jobs, findings, notes)
    log.info(say(f"summary: {page}", f"结果页：{page}"))
    desktop.open_page(page, settings.open_pages)
    return jobs


# ---- the plan ----


def planned(settings: SortIntoFolders, notes: list[str]) -> tuple[list[Job], list[Job]]:
    """Every folder that shall be there, with its repeats; and those of which nothing is left. Raises UserError."""
    images, output = Path(settings.images_dir), Path(settings.output_dir)
    there = folder_sorting.numbered(output)
    found = image_folder.find_images(images, caption_extension=settings.caption_extension, may_be_empty=bool(there))
    notes += found.notes
    concepts = folder_sorting.concepts(found, settings.concept, settings.sub_folders)
    problems = []
    jobs = []
    for one in concepts:
        if one.joined:
            notes.append(
                say(
                    f"{folders.some(one.joined)}: merged into `{one.word}`"
                    + (", which is in their captions" if settings.sub_folders == "auto" else ""),
                    f"{folders.some(one.joined)}：合并到 `{one.word}`"
                    + ("，因为它们的标注里有这个词" if settings.sub_folders == "auto" else ""),
                )
            )
        jobs.append(_job(one, there, problems))
    known = {folders.folded(job.word) for job in jobs}
    for numbered in there:  # what was moved there before, or put there by hand
        if folders.folded(numbered.word) not in known:
            known.add(folders.folded(numbered.word))
            is_ours = folders.folded(numbered.word) == folders.folded(settings.concept)
            stays = folder_sorting.Concept(numbered.word, repeats=None if is_ours else numbered.repeats)
            jobs.append(_job(stays, there, problems))
    if problems:
        raise UserError(problems)
    record = sorted_set.read(output)
    for job in jobs:
        job.deleted = [name for name in job.others if record and record.is_copied(job.word, name, images)]
        job.others = [name for name in job.others if name not in job.deleted]
        job.names = [name for name in job.names if name not in job.deleted]
    gone = [job for job in jobs if job.deleted and not job.names]
    for job in gone:
        job.repeats = job.there.repeats
    jobs = [job for job in jobs if job not in gone]
    counts = {job.word: len(job.names) for job in jobs}
    kept = {job.word: job.fixed for job in jobs if job.fixed}
    if settings.repeats:
        kept = {job.word: settings.repeats if job.files or not job.fixed else job.fixed for job in jobs}
    repeats = folder_sorting.proposed(
        counts,
        kept,
        steps=settings.target_steps,
        epochs=settings.max_train_epochs,
        batch_size=settings.train_batch_size,
    )
    for job in jobs:
        job.repeats = repeats[job.word]
        if job.there:
            job.differing = folder_sorting.differing(job.files, job.there.path)
            job.foreign = [
                file
                for file in job.differing
                if record is None or not record.is_as_copied(job.word, job.there.path / file.name)
            ]
        if job.others and job.files:
            notes.append(
                say(
                    f"{job.path(output)}: {plural(len(job.others), 'image is', 'images are')} not in images_dir, "
                    f"but will be trained too: {folders.some(job.others)}. Delete what you don't want",
                    f"{job.path(output)}：其中 {len(job.others)} 张图片不在 images_dir 里，也会参加训练："
                    f"{folders.some(job.others)}。不需要的请删除",
                )
            )
    return sorted(jobs, key=lambda job: folders.folded(job.word)), gone


def _job(concept: folder_sorting.Concept, there: list[folder_sorting.Numbered], problems: list[str]) -> Job:
    """A folder to be, and what of it is there."""
    word, files = concept.word, folder_sorting.files(concept)
    own = [numbered for numbered in there if folders.folded(numbered.word) == folders.folded(word)]
    if len(own) > 1:
        listed = folders.some([numbered.path.name for numbered in own])
        problems.append(
            say(
                f"{own[0].path.parent}: {listed} are folders of the same word, so its images would be trained "
                "twice. Delete or merge them so that one remains",
                f"{own[0].path.parent}：{listed} 是同一个词的目录，其中的图片会重复训练。请删除或合并，只留一个",
            )
        )
    by_name: dict[str, str] = {}
    for name in (file.name for file in files):
        other = by_name.setdefault(folders.folded(name), name)
        if other != name:
            problems.append(
                say(
                    f"`{word}`: {other} and {name} are the same name on Windows and macOS. Rename one",
                    f"`{word}`：{other} 与 {name} 在 Windows 和 macOS 上是同一个文件名，请改掉一个",
                )
            )
    if "," in word or "，" in word:
        problems.append(
            say(
                f"\"{word}\": a folder's word can't contain a comma, which separates tags. Rename the sub-folder",
                f'"{word}"：目录名里的词不能含逗号，因为逗号分隔标签。请给子目录改名',
            )
        )
    ours = {folders.folded(name) for name in concept.names}
    others = [name for name in own[0].images if folders.folded(name) not in ours] if own else []
    there_already = own[0] if own else None
    return Job(word, concept.images, files, concept.names + others, others, there_already, concept.repeats)


def refuse(settings: SortIntoFolders, jobs: list[Job]) -> None:
    """All that stands in the way, before anything is done. Raises UserError."""
    output = Path(settings.output_dir)
    problems = []
    for job in jobs:
        if job.foreign and not settings.overwrite:
            names = folders.some([file.name for file in job.foreign])
            problems.append(
                say(
                    f"{job.there.path}: {plural(len(job.foreign), 'file differs', 'files differ')} from "
                    f"images_dir: {names}. Set overwrite = True to replace them (the old ones are kept in .backup), "
                    "or choose another output_dir",
                    f"{job.there.path}：其中 {len(job.foreign)} 个文件与 images_dir 里的内容不同：{names}。"
                    "要替换请设 overwrite = True（旧的存入 .backup），或换一个 output_dir",
                )
            )
        target = job.path(output)
        if os.path.lexists(target) and not target.is_dir():
            problems.append(
                say(f"{target} is a file. Delete or rename it", f"{target} 是文件，请删除或改名"),
            )
    parent = next((path for path in [output, *output.absolute().parents] if path.is_dir()), None)
    sources = [file.source for job in jobs for file in job.files]
    is_other_disk = bool(parent and sources) and os.stat(sources[0]).st_dev != os.stat(parent).st_dev
    if settings.action == "link" and is_other_disk:
        problems.append(
            say(
                'action = "link": images_dir and output_dir are on different disks. Choose an output_dir on the '
                'same disk, or action = "copy"',
                'action = "link"：images_dir 与 output_dir 不在同一个磁盘。请换到同一磁盘，或用 action = "copy"',
            )
        )
    if parent and (settings.action == "copy" or (settings.action == "move" and is_other_disk)):
        missing = [
            file for job in jobs for file in job.files if not (job.there and (job.there.path / file.name).exists())
        ]
        needed, free = sum(file.source.stat().st_size for file in missing), shutil.disk_usage(parent).free
        if needed > free:
            problems.append(
                say(
                    f"{output}: {needed / 1e9:.1f} GB needed, but only {free / 1e9:.1f} GB free. Free some space, "
                    'or use action = "link"',
                    f'{output}：需要 {needed / 1e9:.1f} GB，只剩 {free / 1e9:.1f} GB。请腾出空间，或用 action = "link"',
                )
            )
    if problems:
        raise UserError(problems)


# ---- doing it ----


def done(settings: SortIntoFolders, jobs: list[Job], gone: list[Job]) -> list[str]:
    """Do what is to do, and say what it was. Raises UserError."""
    output = Path(settings.output_dir)
    renamed = [(job.there.path, job.path(output)) for job in jobs if job.there and job.there.path != job.path(output)]
    lines = [
        say(
            f"{old.name} already exists with other repeats: renamed to {new.name}",
            f"{old.name} 已经存在，只是重复次数不同：改名为 {new.name}",
        )
        for old, new in renamed
    ]
    if settings.action == "show":
        lines += [_is_removed(job.deleted, output / sorted_set.REMOVED) for job in [*jobs, *gone] if job.deleted]
        lines = [line.replace("renamed", "would be renamed").replace("：改名为", "：将改名为") for line in lines]
        return [
            *lines,
            say(
                'nothing has been done yet: set action = "copy", "move" or "link"',
                '还没有做任何改动：请设 action = "copy"、"move" 或 "link"',
            ),
        ]
    try:
        for old, new in renamed:
            old.rename(new)
        lines += _removed([*jobs, *gone], output)
        count = _placed(settings, jobs)
        _record(settings, jobs)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            say(
                f"{error.filename or output}: {reason}. Free some space or change its permissions, then run it "
                "again to continue",
                f"{error.filename or output}：{reason}。请腾出空间或修改权限，再次运行会接着做",
            )
        ) from error
    except KeyboardInterrupt:
        log.info(say("stopped; run it again to continue", "已停止；再次运行会接着做"))
        raise Stopped from None
    words = {"copy": ("copied", "复制"), "move": ("moved", "移动"), "link": ("linked", "链接")}[settings.action]
    if count:
        lines.append(
            say(f"{plural(count, 'file')} {words[0]} to {output}", f"{words[1]}了 {count:,} 个文件到 {output}")
        )
    return lines or [say("Nothing to do: everything is up to date.", "无需处理：都已是最新")]


def _placed(settings: SortIntoFolders, jobs: list[Job]) -> int:
    """Put every file into its folder; how many were not there yet, or not so."""
    from tqdm import tqdm

    output = Path(settings.output_dir)
    files = [(job.path(output), file) for job in jobs for file in job.files]
    replaced = {(job.path(output), file.name) for job in jobs for file in job.differing}
    count = 0
    output.mkdir(parents=True, exist_ok=True)
    with undo.Backup(output, "sort_into_folders") as kept:
        for folder, file in tqdm(files, disable=None, leave=False, unit=say(" files", " 个")):
            if (folder, file.name) in replaced:
                kept.write(folder / file.name, file.source.read_bytes())
                count += 1
                continue
            # a caption is copied: some programs write into the file that is there, which would change both
            is_link = settings.action == "move" or (settings.action == "link" and not _is_caption(file))
            count += folder_sorting.put(file, folder, is_link=is_link)
    if settings.action == "move":
        # a run that was killed may have put them there
        count = max(count, folder_sorting.take_away(files, Path(settings.images_dir)))
    return count


def _removed(jobs: list[Job], output: Path) -> list[str]:
    """Take out of the folders what was deleted in images_dir since, with caption and mask; says what it was."""
    lines = []
    for job in jobs:
        for name in job.deleted:
            stem = folders.folded(Path(name).stem)
            for path in [*job.path(output).glob("*"), *job.path(output).glob(f"{folders.MASKS}/*")]:
                if path.is_file() and folders.folded(path.stem) == stem:
                    target = output / sorted_set.REMOVED / job.word / path.relative_to(job.path(output))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(files.free_path(target))
        if job.deleted:
            lines.append(_is_removed(job.deleted, output / sorted_set.REMOVED))
        for emptied in [*job.path(output).glob(folders.MASKS), job.path(output)] if job.deleted else []:
            with suppress(OSError):  # something else is in it
                emptied.rmdir()
    return lines


def _record(settings: SortIntoFolders, jobs: list[Job]) -> None:
    """Remember what was copied and from where. What is moved has no source that could be deleted."""
    output = Path(settings.output_dir)
    if settings.action == "move":
        (output / sorted_set.RECORD).unlink(missing_ok=True)
        return
    copies = {(job.word, file.name): (file.source, job.path(output) / file.name) for job in jobs for file in job.files}
    if copies:
        sorted_set.write(output, Path(settings.images_dir), copies)


def _is_caption(file: folder_sorting.File) -> bool:
    return not file.is_image and not file.name.startswith(f"{folders.MASKS}/")


# ---- what is said ----


def checked(settings: SortIntoFolders, jobs: list[Job]) -> list[tag_statistics.Advice]:
    """Whether each word is one that can be learnt."""
    from library.families import clip_text

    images = []
    for job in jobs:
        those = job.images
        if not those and job.there:  # all was moved there before
            those = image_folder.find_images(
                job.there.path, caption_extension=settings.caption_extension, may_be_empty=True
            ).images
        for image in those:
            line = None if image.caption is None else captions.first_line(image.caption)
            images.append(tag_statistics.Captioned(job.word, image.path.name, line))
    found = []
    if Path(settings.images_dir).name != REG:  # regularization has other captions, or none
        statistics = tag_statistics.count(images)
        words = {job.word: job.word for job in jobs}
        found += tag_statistics.about_language((image.caption or "" for image in images), words)
        found += tag_statistics.about_words(statistics, words, clip_text.is_everyday_word)
    for job in jobs:
        longer = [other.word for other in jobs if other is not job and _begins(other.word, job.word)]
        if longer:
            found.append(
                tag_statistics.Advice(
                    "amber",
                    say(
                        f"`{job.word}` is the beginning of {folders.some(longer)}: they share tokens, so each "
                        "triggers a little of the other",
                        f"`{job.word}` 是 {folders.some(longer)} 的开头：它们有共同的 token，会互相带出一点",
                    ),
                    say("Use words that begin differently", "请换用开头不同的词"),
                    (job.word,),
                )
            )
    return found + _token_findings(settings, [job.word for job in jobs])


def _begins(longer: str, word: str) -> bool:
    longer, word = tag_statistics.spelled(longer), tag_statistics.spelled(word)
    return longer.startswith(word) and longer != word


def _token_findings(settings: SortIntoFolders, words: list[str]) -> list[tag_statistics.Advice]:
    """How many tokens each word is to the base model. Raises UserError."""
    from library import families
    from library.families import clip_text

    if settings.pretrained_model_name_or_path:
        info = families.inspect(settings.pretrained_model_name_or_path)
        name, counts = info.path.name, families.token_counts(info, words)
    else:
        tokenizer = clip_text.build_tokenizer(clip_text.clip_merges())
        name, counts = "SD 1.x, SDXL", [len(ids) for ids in clip_text.caption_tokens(tokenizer, words)]
    found = []
    for word, count in zip(words, counts, strict=True):
        text = say(f"`{word}` is {plural(count, 'token')} to {name}", f"`{word}` 在 {name} 里是 {count} 个 token")
        if count > MANY_TOKENS:
            cure = say("A shorter one leaves more room for tags", "短一些的词能给标签留出更多位置")
            found.append(tag_statistics.Advice("amber", text, cure, (word,)))
        else:
            found.append(tag_statistics.Advice("green", text, "", (word,)))
    return found


def plan_lines(settings: SortIntoFolders, jobs: list[Job]) -> list[str]:
    """The arithmetic, and the rule of regularization, a line each."""
    epochs, batch = settings.max_train_epochs, settings.train_batch_size
    samples = sum(len(job.names) * job.repeats for job in jobs)
    lines = [concept_line(job, samples, epochs, batch) for job in jobs]
    steps = folder_sorting.step_count(samples, epochs, batch)
    if Path(settings.images_dir).name == REG:
        lines.append(
            say(
                f"regularization: {plural(samples, 'sample')} an epoch; keep training repeats x training images at least "
                "that high",
                f"正则化：每轮 {samples:,} 个样本；请让 训练重复次数 x 训练图片数 不小于它",
            )
        )
        return lines
    lines.append(
        say(
            f"about {plural(steps, 'step')} in total, target {settings.target_steps:,}; training batches by bucket, which "
            "adds a few, and prints the exact number at the start",
            f"合计约 {steps:,} 步，目标 {settings.target_steps:,} 步；训练按桶分批，会略多一些，开始前会给出准确数字",
        )
    )
    if steps > 1.5 * settings.target_steps and all(job.repeats == 1 for job in jobs):
        fewer = max(1, round(epochs * settings.target_steps / steps))
        if fewer < epochs:
            lines.append(
                say(
                    f"1 repeat is already more than the target: max_train_epochs = {fewer} comes close to it",
                    f"重复 1 次已经超过目标：max_train_epochs = {fewer} 时接近目标步数",
                )
            )
    lines.append(
        say(
            f"regularization, if you use it: reg repeats x reg images should be at most {samples:,} (training "
            "repeats x images); any more are not used in an epoch",
            f"如果使用正则化：正则化重复次数 x 图片数 不要超过 {samples:,}（训练重复次数 x 图片数），多出的一轮里用不到",
        )
    )
    return lines


def concept_line(job: Job, all_samples: int, epochs: int, batch: int) -> str:
    """How often a folder's images are used, and which share of the training they are."""
    samples = len(job.names) * job.repeats
    steps, share = folder_sorting.step_count(samples, epochs, batch), samples / max(1, all_samples)
    return say(
        f"{job.repeats}_{job.word}: {plural(len(job.names), 'image')} x {plural(job.repeats, 'repeat')} x "
        f"{plural(epochs, 'epoch')} / batch of {batch} = about {plural(steps, 'step')}, {share:.0%} of the training",
        f"{job.repeats}_{job.word}：{len(job.names):,} 张 x 重复 {job.repeats} 次 x {epochs} 轮 / 每批 {batch} 张 "
        f"= 约 {steps:,} 步，占训练的 {share:.0%}",
    )


def block_lines(settings: SortIntoFolders) -> list[str]:
    """What is still to be set in lora_train_command_line.py."""
    path = Path(settings.output_dir).as_posix()
    if Path(settings.images_dir).name == REG:
        return parameter_block.still_to_set(__file__, {"reg_data_dir": path})
    epochs, batch = settings.max_train_epochs, settings.train_batch_size
    wanted = {"train_data_dir": path, "max_train_epochs": epochs, "train_batch_size": batch}
    return parameter_block.still_to_set(__file__, wanted)


class FolderRow(NamedTuple):
    """A folder in the page's table."""

    name: str
    image_count: int
    repeats: int
    sample_count: int  # of an epoch
    caption_count: int
    mask_count: int


class FolderImages(NamedTuple):
    """A folder with the first of its images."""

    name: str
    figures: list[pages.Figure]


class SortIntoFoldersPage(NamedTuple):
    """What templates/sort_into_folders.html shows."""

    image_count: int
    step_count: int
    rows: list[FolderRow]
    lines: list[str]
    advice: list[tag_statistics.Advice]
    notes: list[str]
    folders: list[FolderImages]
    parameters: str  # lines of the parameter block


def write_page(
    settings: SortIntoFolders, jobs: list[Job], advice: list[tag_statistics.Advice], notes: list[str]
) -> Path:
    """The summary."""
    output = Path(settings.output_dir)
    rows = [folder_row(job) for job in jobs]
    samples = sum(row.sample_count for row in rows)
    content = SortIntoFoldersPage(
        image_count=sum(row.image_count for row in rows),
        step_count=folder_sorting.step_count(samples, settings.max_train_epochs, settings.train_batch_size),
        rows=rows,
        lines=plan_lines(settings, jobs),
        advice=advice,
        notes=notes,
        folders=[FolderImages(row.name, figures(job, output)) for row, job in zip(rows, jobs, strict=True)],
        parameters="\n".join(block_lines(settings)),
    )
    return pages.write(output / PAGE, pages.render("sort_into_folders.html", content))


def folder_row(job: Job) -> FolderRow:
    return FolderRow(
        name=f"{job.repeats}_{job.word}",
        image_count=len(job.names),
        repeats=job.repeats,
        sample_count=len(job.names) * job.repeats,
        caption_count=sum(_is_caption(file) for file in job.files),
        mask_count=sum(file.name.startswith(f"{folders.MASKS}/") for file in job.files),
    )


def figures(job: Job, output: Path) -> list[pages.Figure]:
    """The first images of a folder, from where they are now."""
    shown = []
    for name in job.names[:THUMBNAILS]:
        places = [job.path(output) / name, *(file.source for file in job.files if file.name == name)]
        shown.append(pages.figure_of(next((path for path in places if path.exists()), places[0]), name))
    return shown


def _is_removed(names: list[str], place: Path) -> str:
    return say(
        f"{plural(len(names), 'image is', 'images are')} no longer in images_dir under this word, so not trained: "
        f"{folders.some(names)} (moved to {place})",
        f"{len(names)} 张图片已不在 images_dir 的这个词下，不再参加训练：{folders.some(names)}（已移到 {place}）",
    )


if __name__ == "__main__":
    raise SystemExit(main())
