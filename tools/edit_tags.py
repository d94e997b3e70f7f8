"""Step 3, after tagging: see what every tag will do, and change tags over the whole set. As delivered nothing is
changed, only shown. Edit the values below, then run this file; it takes no arguments.

第 3 步，打完标签之后：查看每个标签的作用，成批修改标签。默认只查看，不改动。
修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = None    # folder of images with caption files beside them, including sub-folders; None: output/prepared | 带标注文件的图片目录，含子目录；None 表示 output/prepared
trigger_word = None  # trigger word, put first in every caption; None: that of lora_train_command_line.py; "": none (the word of a [repeats]_[concept] folder is used instead) | 触发词，放在每条标注的最前面；None 表示与 lora_train_command_line.py 相同；"" 表示不加（[重复次数]_[概念] 目录用目录名里的词）
action = "show"      # "show" what would change, "apply" it, or "undo" the last change that was applied | "show" 只显示将要做的改动，"apply" 执行，"undo" 撤销上一次执行的改动

# ---- Often changed | 经常修改 ----
delete_tags = None   # tags to delete, so that their features move to the trigger word, such as ["school uniform", "short sleeves"]; * stands for any letters; None: none | 要删除的标签，其特征会转移到触发词上，如 ["school uniform", "short sleeves"]；* 代表任意字符；None 表示没有
replace_tags = None  # tags to rename, such as ["serafuku -> sailor suit"]; * is allowed on the left; None: none | 要替换的标签，如 ["serafuku -> sailor suit"]；左边可用 *；None 表示没有
add_tags = None      # tags to add to every caption, after the trigger word; None: none | 给每条标注添加的标签，放在触发词之后；None 表示没有
imply_tags = None    # wherever the first tag is present, add the second, such as ["* skirt -> skirt"]; None: none | 出现前一个标签时补上后一个，如 ["* skirt -> skirt"]；None 表示没有

# ---- Seldom changed | 较少修改 ----
remove_duplicates = True    # remove repeated tags in a caption, whatever their spelling (long_hair, Long Hair) | 同一条标注里重复的标签（包括 long_hair、Long Hair 等不同写法）只留一个
order = "keep"              # order of the tags after the trigger word: "keep", "frequent first" or "alphabetical" | 触发词之后的标签顺序："keep" 不变，"frequent first" 常见的在前，"alphabetical" 按字母
caption_extension = ".txt"  # extension of the caption files, .txt or .caption | 标注文件的扩展名，.txt 或 .caption

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
output_dir = None    # where the summary goes; None: output/tags | 结果页的输出目录；None 表示 output/tags

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import text_encoding
from library.data import captions, folders, image_folder, tag_edits, tag_statistics, tag_views
from library.messages import Stopped, UserError, log, plural, say
from library.options import parameter_block, subject_presets
from library.options.checks import nearest
from library.options.tools import TOOLS, EditTags
from library.reporting import desktop, pages
from library.storage import undo

PAGE = "summary.html"
ADVICE_IN_TERMINAL = 8  # lines; the page has all
MOST_TAGS = 500  # rows of the table
MOST_LETTERS = 60  # of one tag in the table; sentences are longer


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["edit_tags.py"], run)


@dataclass(frozen=True)
class Change:
    """One caption: its first line, and what becomes of it."""

    image: image_folder.CaptionedImage
    name: str
    word: str | None  # its trigger word
    before: str | None  # None: there is no caption
    after: str | None  # None: none is made

    @property
    def is_text_changed(self) -> bool:
        return self.before != self.after

    @property
    def is_changed(self) -> bool:
        return self.is_text_changed or not self.image.encoding.startswith("utf-8")

    @property
    def tags(self) -> tuple[list[str], list[str]]:
        """Before and after; a comma is no change of tags."""
        return _parts(self.before), _parts(self.after)


def run(settings: EditTags) -> int:
    """Show, change or restore the captions; the exit code is 0."""
    edits = read_edits(settings)
    notes: list[str] = []
    if settings.action == "undo":
        notes += taken_back(Path(settings.images_dir))
        edits = tag_edits.Edits(remove_duplicates=False)
    found = image_folder.find_images(
        settings.images_dir,
        caption_extension=settings.caption_extension,
        must_be_sure=settings.action == "apply",
    )
    notes += found.notes
    changes = planned(settings, edits, found, notes)
    if settings.action == "undo":
        changes = [Change(one.image, one.name, one.word, one.before, one.before) for one in changes]
    else:
        check(edits, changes, notes)
    statistics = tag_statistics.count(tag_statistics.Captioned(folder_of(one), one.name, one.after) for one in changes)
    for note in notes:
        log.warning(note)
    lines = totals(changes)
    if settings.action == "apply":
        applied(settings, changes)
    for line in [*lines, *(next_lines(settings, changes))]:
        log.info(line)
    advice = advised(statistics, changes)
    for one in [one for one in advice if one.level != "green"][:ADVICE_IN_TERMINAL]:
        log.info(f"- {one.text}" + (say(f". {one.cure}", f"。{one.cure}") if one.cure else ""))
    path = write_page(settings, changes, statistics, advice, notes, lines)
    log.info(say(f"summary: {path}", f"结果页：{path}"))
    desktop.open_page(path, settings.open_pages)
    return 0


# ---- what shall be done ----


def read_edits(settings: EditTags) -> tag_edits.Edits:
    """The rules of the block. Raises UserError, naming all that is wrong with them."""
    problems: list[str] = []
    lists = {name: getattr(settings, name) or [] for name in ("delete_tags", "replace_tags", "add_tags", "imply_tags")}
    for name, texts in {**lists, "trigger_word": [settings.trigger_word or ""]}.items():
        tag_edits.refuse_commas(name, texts, problems)
    for name in ("add_tags", "trigger_word"):
        for text in lists.get(name, [settings.trigger_word or ""]):
            if "*" in text:
                problems.append(say(f'{name}: "{text}" contains *', f'{name}："{text}" 含有 *'))
    edits = tag_edits.Edits(
        replace=tag_edits.read_rules("replace_tags", lists["replace_tags"], problems),
        delete=[text.strip() for text in lists["delete_tags"] if text.strip()],
        imply=tag_edits.read_rules("imply_tags", lists["imply_tags"], problems),
        add=[text.strip() for text in lists["add_tags"] if text.strip()],
        remove_duplicates=settings.remove_duplicates,
        order=settings.order,
    )
    if not problems:
        problems = tag_edits.check(edits, [settings.trigger_word.strip()] if settings.trigger_word else [])
    if problems:
        raise UserError(
            problems, say(f"{plural(len(problems), 'problem')} in the rules:", f"规则有 {len(problems)} 处问题：")
        )
    return edits


def planned(
    settings: EditTags, edits: tag_edits.Edits, found: image_folder.ImageFolder, notes: list[str]
) -> list[Change]:
    """What becomes of every caption. Raises UserError."""
    regularization = image_folder.beside_training(found)
    images = [image for image in found.images if image.path not in regularization]
    left_out = len(found.images) - len(images)
    if left_out:
        notes.append(
            say(
                f"{found.folder / 'reg'}: "
                f"{plural(left_out, 'regularization image is', 'regularization images are')} left unchanged: they "
                "must not get the trigger word. To edit their tags, set images_dir to that folder",
                f"{found.folder / 'reg'}：{left_out} 张正则化图片保持原样，它们不能有触发词。"
                "要修改它们的标签，请把 images_dir 设为该目录",
            )
        )
    words = [word_of(settings, image) for image in images]
    if settings.trigger_word:
        others = {image.path.parent.name for image in images if concept_of(image)}
        others = sorted(name for name in others if not _same(folders.repeats_and_text(name)[1], settings.trigger_word))
        if others:
            notes.append(
                say(
                    f'trigger_word = "{settings.trigger_word}" is also added to the captions of '
                    f'{folders.some(others)}. If each folder should keep its own word, set trigger_word = ""',
                    f'trigger_word = "{settings.trigger_word}" 也会写进 {folders.some(others)} 的标注。如果各目录要'
                    '用自己的词，请设 trigger_word = ""',
                )
            )
    lines = [None if image.caption is None else captions.first_line(image.caption) for image in images]
    after = tag_edits.edited([(line or "", word) for line, word in zip(lines, words, strict=True)], edits)
    return [
        Change(image, found.name(image), word, line, None if line is None and not new else new)
        for image, word, line, new in zip(images, words, lines, after, strict=True)
    ]


def concept_of(image: image_folder.CaptionedImage) -> str | None:
    """The word of a [repeats]_[concept] folder; None where the folder is no such."""
    meaning = folders.repeats_and_text(image.path.parent.name)
    return meaning[1].strip() or None if meaning and meaning[0] >= 1 else None


def word_of(settings: EditTags, image: image_folder.CaptionedImage) -> str | None:
    return (settings.trigger_word or "").strip() or concept_of(image)


def folder_of(change: Change) -> str:
    """The set that an image is counted in: its [repeats]_[concept] folder, else all are one."""
    return change.image.path.parent.name if concept_of(change.image) else ""


def check(edits: tag_edits.Edits, changes: list[Change], notes: list[str]) -> None:
    """Add to the notes what the user should know of rules and captions. Raises UserError."""
    words = sorted({one.word for one in changes if one.word})
    problems = tag_edits.check(edits, words)
    if problems:
        raise UserError(problems)
    tags = sorted({tag for one in changes for tag in one.tags[0]})
    for option, pattern in tag_edits.unused(edits, [*tags, *words]):
        if option == "delete_tags" and edits.delete == subject_presets.GARMENT_TAGS:
            continue  # no set has all that a preset names
        meant = nearest(pattern, tags)
        hint = say(f"; the nearest is `{meant}`", f"；最接近的是 `{meant}`") if meant and "*" not in pattern else ""
        notes.append(say(f"{option}: `{pattern}` is in no caption{hint}", f"{option}：没有标签是 `{pattern}`{hint}"))
    chinese = [one.name for one in changes if tag_edits.CHINESE_COMMA in (one.before or "")]
    if chinese:
        notes.append(
            say(
                f"{plural(len(chinese), 'caption has', 'captions have')} Chinese commas, which don't separate tags; "
                f"they become plain commas: {folders.some(chinese)}",
                f"{len(chinese)} 个标注文件含中文逗号，不能分隔标签，会改成英文逗号：{folders.some(chinese)}",
            )
        )
    by_encoding: dict[str, list[Change]] = {}
    for one in changes:
        if one.image.is_sure and not one.image.encoding.startswith("utf-8"):
            by_encoding.setdefault(one.image.encoding, []).append(one)
    for encoding, those in by_encoding.items():
        first, line = those[0].name, (those[0].before or "")[:40]
        kind = text_encoding.NAMES.get(encoding, encoding.upper())
        doubt = (
            say(". If the text is wrong, save it as UTF-8 yourself first", "。如果文字不对，请先自行另存为 UTF-8")
            if encoding in text_encoding.NAMES
            else ""
        )
        notes.append(
            say(
                f"{plural(len(those), 'caption is', 'captions are')} read as {kind} and become UTF-8, e.g. {first}: "
                f'"{line}"{doubt}',
                f"{len(those)} 个标注文件按 {kind} 读取，会改存为 UTF-8，如 {first}：“{line}”{doubt}",
            )
        )
    emptied = [one.name for one in changes if one.before and not one.after]
    if emptied:
        notes.append(
            say(
                f"{plural(len(emptied), 'caption becomes', 'captions become')} empty: {folders.some(emptied)}",
                f"{len(emptied)} 个标注文件会变成空的：{folders.some(emptied)}",
            )
        )


# ---- doing it ----


def applied(settings: EditTags, changes: list[Change]) -> None:
    """Write what changes."""
    from tqdm import tqdm

    to_write = {one.image.caption_path: one for one in changes if one.is_changed and one.after is not None}
    with undo.Backup(Path(settings.images_dir), "edit_tags") as kept:
        try:
            for path, one in tqdm(to_write.items(), disable=None, leave=False, unit=say(" captions", " 条")):
                text = tag_edits.with_first_line(one.image.caption or "", one.after)
                kept.write(path, text.encode("utf-8"))
        except KeyboardInterrupt:
            count = f"{kept.count:,} / {len(to_write):,}"
            log.info(
                say(
                    f'stopped: {kept.count:,} of {plural(len(to_write), "file")} written. Run it again to continue, or set action = "undo"',
                    f'已停止：写入了 {count} 个文件。再次运行会接着做，要撤销请设 action = "undo"',
                )
            )
            raise Stopped from None


def taken_back(folder: Path) -> list[str]:
    """Undo, and say what became of it."""
    undone = undo.undo(folder)
    if not undone.name:
        return [
            say(
                f"nothing to undo: {folder / undo.FOLDER} contains no changes. Use the images_dir of that run",
                f"没有可撤销的：{folder / undo.FOLDER} 里没有改动记录。请选择当时的 images_dir",
            )
        ]
    lines = [
        say(
            f"undone: {undone.name}, {plural(len(undone.restored), 'file')} restored",
            f"已撤销：{undone.name}，{len(undone.restored)} 个文件已恢复原样",
        )
    ]
    if undone.left:
        names = folders.some([path.name for path in undone.left])
        kept = folder / undo.FOLDER / f"{undone.name}{undo.UNDONE}"
        lines.append(
            say(
                f"{plural(len(undone.left), 'file was', 'files were')} changed since and left as they are: {names}. "
                f"The earlier versions are in {kept}",
                f"{len(undone.left)} 个文件在那之后又改过，保持现状：{names}。原来的内容在 {kept}",
            )
        )
    return lines


# ---- what is said ----


def totals(changes: list[Change]) -> list[str]:
    """How much changes, a line each."""
    captioned = sum(one.before is not None for one in changes)
    lines = [
        say(
            f"{plural(len(changes), 'image')}, {captioned:,} with a caption",
            f"{len(changes):,} 张图片，{captioned:,} 张有标注",
        )
    ]
    changed = [one for one in changes if one.is_text_changed]
    removed, added = counted(changed)
    if changed:
        made = sum(one.before is None for one in changed)
        new = say(f", {made} of them new", f"，其中 {made} 条是新建的") if made else ""
        lines.append(
            say(
                f"{plural(len(changed), 'caption')} would change{new}: {plural(sum(added.values()), 'tag')} added, "
                f"{sum(removed.values()):,} removed",
                f"{len(changed):,} 个标注文件有改动{new}：删除 {sum(removed.values()):,} 个标签，新增 "
                f"{sum(added.values()):,} 个",
            )
        )
    for english, chinese, counts in (("go", "去掉", removed), ("come", "加上", added)):
        if counts:
            listed = folders.some([f"{tag} ({number})" for tag, number in sorted(counts.items(), key=_most)], 20)
            lines.append(say(f"{english}: {listed}", f"{chinese}：{listed}"))
    return lines


def counted(changes: list[Change]) -> tuple[dict[str, int], dict[str, int]]:
    """Tags that go and that come, and in how many captions."""
    removed: dict[str, int] = {}
    added: dict[str, int] = {}
    for one in changes:
        before, after = one.tags
        for tag in before:
            removed[tag] = removed.get(tag, 0) + (before.count(tag) > after.count(tag)) / before.count(tag)
        for tag in after:
            added[tag] = added.get(tag, 0) + (after.count(tag) > before.count(tag)) / after.count(tag)
    return tuple({tag: round(number) for tag, number in counts.items() if number} for counts in (removed, added))


def next_lines(settings: EditTags, changes: list[Change]) -> list[str]:
    """What was done, or what to do to have it done."""
    count = len({one.image.caption_path for one in changes if one.is_changed})
    if settings.action == "undo":
        return []
    if not count:
        return [say("nothing to change", "没有需要改动的")]
    if settings.action == "apply":
        return [
            say(
                f'applied to {plural(count, "file")}. To revert: action = "undo"',
                f'已写入 {count:,} 个文件。要撤销请设 action = "undo"',
            )
        ]
    return [
        say(
            'nothing has been changed yet. Check the summary, then set action = "apply"',
            '还没有改动任何文件。请先看结果页，再设 action = "apply"',
        )
    ]


def advised(statistics: tag_statistics.TagStatistics, changes: list[Change]) -> list[tag_statistics.Advice]:
    """What the captions as they become will do in training."""
    from library.families import clip_text

    def token_counts(lines: list[str]) -> list[int]:
        if all(len(line.encode()) <= tag_statistics.TOKEN_LIMITS[0] for line in lines):
            return [0] * len(lines)  # a token is a byte at least
        tokenizer = clip_text.build_tokenizer(clip_text.clip_merges())
        return [len(ids) for ids in clip_text.caption_tokens(tokenizer, lines)]

    words = {folder_of(one): one.word for one in changes}
    known = dict(is_everyday_word=clip_text.is_everyday_word, token_counts=token_counts)
    return [*tag_statistics.advice(statistics, words, **known), *tag_views.advice(statistics)]


class ChangedCaption(NamedTuple):
    """A caption whose tags change, for the page."""

    figure: pages.Figure
    tags: list[pages.Piece]


class EditTagsPage(NamedTuple):
    """What templates/edit_tags.html shows."""

    is_applied: bool
    image_count: int
    caption_count: int
    tag_count: int
    changed_count: int
    lines: list[str]
    notes: list[str]
    advice: list[tag_statistics.Advice]
    changed: list[ChangedCaption]  # the first of them
    folders: list[str]  # columns of the table: where there are several, how often each has a tag
    tags: list[list[object]]  # its rows


def write_page(
    settings: EditTags,
    changes: list[Change],
    statistics: tag_statistics.TagStatistics,
    advice: list[tag_statistics.Advice],
    notes: list[str],
    lines: list[str],
) -> Path:
    """The summary."""
    changed = [one for one in changes if one.is_text_changed]
    several = list(statistics.folders) if len(statistics.folders) > 1 else []
    content = EditTagsPage(
        is_applied=settings.action == "apply",
        image_count=len(changes),
        caption_count=statistics.total(),
        tag_count=len(statistics.tags),
        changed_count=len(changed),
        lines=[*lines[1:], *next_lines(settings, changes)],
        notes=notes,
        advice=advice,
        changed=[
            ChangedCaption(pages.figure_of(one.image.path, one.name), pages.difference(*one.tags))
            for one in changed[: pages.MOST_IMAGES]
        ],
        folders=several,
        tags=tag_rows(statistics, several, {folder_of(one): one.word for one in changes}),
    )
    return pages.write(Path(settings.output_dir) / PAGE, pages.render("edit_tags.html", content))


def tag_rows(
    statistics: tag_statistics.TagStatistics, several: list[str], words: dict[str, str | None]
) -> list[list[object]]:
    """The most frequent tags: how often, how often in each folder, what will become of it, where it is missing."""
    rows: list[list[object]] = []
    for tag in list(statistics.tags.values())[:MOST_TAGS]:
        # it is judged in the folder where it stands most often
        folder = max(statistics.folders, key=lambda name, tag=tag: statistics.share(tag, name))
        missing = statistics.missing(tag, folder) if tag_statistics.ALWAYS <= statistics.share(tag, folder) < 1 else []
        rows.append(
            [
                tag.text if len(tag.text) <= MOST_LETTERS else f"{tag.text[:MOST_LETTERS]}...",
                statistics.count(tag),
                f"{statistics.share(tag):.0%}",
                *(f"{statistics.count(tag, name)} / {statistics.total(name)}" for name in several),
                tag_statistics.fate(statistics, tag, words.get(folder), folder),
                folders.some(missing, 3),
            ]
        )
    return rows


def _parts(line: str | None) -> list[str]:
    line = (line or "").replace(tag_edits.CHINESE_COMMA, ",")
    return [str(tag) for tag in captions.weighted_tags(line)]


def _same(first: str, second: str) -> bool:
    return tag_statistics.spelled(first) == tag_statistics.spelled(second)


def _most(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


if __name__ == "__main__":
    raise SystemExit(main())
