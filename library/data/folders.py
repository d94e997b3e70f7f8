"""Which folders are meant: `[repeats]_[concept]` folders below the one that was chosen, or why there are none."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from library.data import captions
from library.data.image_names import MASKS, Sorted, folded, is_image, some, sort_out
from library.messages import UserError, plural, say
from library.options.training import Config

NOT_OURS = {  # systems make them
    "__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information", "lost+found",
}  # fmt: skip
REG = "reg"  # usual name of the folder of regularization images
MANY_REPEATS = 500  # beyond: more likely a year or a size, such as 2023_holiday
MOST_REPEATS = 100_000  # beyond: a date or a telephone number, such as 20230101_holiday; nobody would see the end


@dataclass(frozen=True)
class Folder:
    """A `[repeats]_[concept]` folder as it was found, or a subset of `dataset_config`."""

    path: Path
    repeats: int
    text: str  # the concept: the caption of images without caption file
    is_regularization: bool
    image_count: int = 0  # usable ones
    caption_count: int = 0  # of those, with a caption file that was read
    dataset: int = 0  # place of the data set that it belongs to
    options: Config | None = None  # its own, of `dataset_config`; None: the run's
    metadata_file: Path | None = None  # where the captions of all its images stand; None: in files beside them

    @property
    def name(self) -> str:
        return self.metadata_file.name if self.metadata_file else self.path.name

    @property
    def source(self) -> str:
        """Where `text` comes from, in the user's language."""
        named = repeats_and_text(self.path.name)
        is_named = not self.options or (named and named[1] == self.text)
        return say("the folder's name", "目录名") if is_named else "class_tokens"


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden and system files.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            shown = [entry for entry in found if not entry.name.startswith(".") and entry.name not in NOT_OURS]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            say(
                f"{folder}: this folder cannot be read ({reason}). You don't have permission to read it: change its "
                "permissions, or move it away",
                f"{folder}：无法读取此目录（{reason}）。请修改权限，或把它移走",
            )
        ) from error
    return sorted(shown, key=lambda entry: entry.name)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # links that lead in a circle
        return False


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def images_in(folder: Path) -> list[str]:
    """Names of the images directly in a folder; no masks, control images or previews."""
    return _sorted_out(folder).images


def masks_in(folder: Path) -> dict[str, Path]:
    """The masks beside the images of a folder in OneTrainer's way, by the folded stem of the image."""
    return {stem: folder / name for stem, name in _sorted_out(folder).masks.items()}


def _sorted_out(folder: Path) -> Sorted:
    return sort_out(folder, [entry.name for entry in entries(folder) if is_image(entry.name) and is_file(entry)])


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted by name."""
    return [Path(entry.path) for entry in entries(folder) if is_folder(entry)]


def repeats_and_text(name: str) -> tuple[int, str] | None:
    """`10_my tag` -> (10, "my tag"); None where no whole number stands before the first `_`, or alone."""
    number, _, text = name.partition("_")
    try:
        return int(number), text
    except ValueError:
        return None


def offered_name(name: str) -> str:
    """A name of the right form for a folder without one: "mytag" -> "10_mytag", "6 mytag" -> "6_mytag"."""
    text = name.lstrip("0123456789")
    digits = name[: len(name) - len(text)]
    text = text.lstrip(" -.")
    return f"{int(digits)}_{text}" if digits and int(digits) and text else f"10_{name}"


def same(first: Path, second: Path) -> bool:
    """Whether two paths lead to the same place."""
    return os.path.realpath(first) == os.path.realpath(second)  # Path.resolve raises for links in a circle


def numbered_folders(
    parent: Path, other: Path | None, option: str, problems: list[str], warnings: list[str]
) -> list[Folder]:
    """The usable sub-folders, sorted by name. Where there are none: a problem that says what was probably meant.

    Args:
        parent: what the user chose for `option`, "train_data_dir" or "reg_data_dir".
        other: what was chosen for the other one; it may lie within `parent` and is left out then.
        problems, warnings: what is found is added to them.
    """
    if not os.path.isdir(parent):
        problems.append(say(f"{option}: there is no folder {parent}", f"{option}：目录不存在：{parent}"))
        return []
    is_regularization = option == "reg_data_dir"
    other_option = "train_data_dir" if is_regularization else "reg_data_dir"
    numbered: list[Folder] = []
    unnamed: list[Path] = []  # hold images, but have no number
    notes: list[str] = []
    endless: list[str] = []
    for path in subfolders(parent):
        meaning = repeats_and_text(path.name)
        if other and same(path, other):
            notes.append(
                say(
                    f"{path}: left out of {option}, it belongs to {other_option}",
                    f"{path}：属于 {other_option}，不算作 {option} 的内容",
                )
            )
        elif meaning and meaning[0] > MOST_REPEATS:
            endless.append(
                say(
                    f"{path}: this name means {meaning[0]} repeats of every image, which would never finish. Rename "
                    f"it, e.g. 10_{path.name}",
                    f"{path}：这个名称表示每张图重复 {meaning[0]} 次，永远训练不完。请改名，如 10_{path.name}",
                )
            )
        elif meaning and meaning[0] >= 1:
            numbered.append(Folder(path, meaning[0], _concept(path, meaning[1], notes), is_regularization))
            if meaning[0] > MANY_REPEATS:
                notes.append(
                    say(
                        f"{path}: this name means {meaning[0]} repeats of every image. If you didn't mean that, "
                        f"rename it, e.g. 10_{path.name}",
                        f"{path}：这个名称表示每张图重复 {meaning[0]} 次。如果不是这个意思，请改名，如 10_{path.name}",
                    )
                )
        elif meaning:
            notes.append(
                say(
                    f"{path}: skipped: {meaning[0]} repeats. The number must be 1 or more",
                    f"{path}：已跳过：重复次数为 {meaning[0]}，必须是 1 或更大",
                )
            )
        elif folded(path.name) == MASKS:
            notes.append(
                say(
                    f"{path}: not used: masks belong beside their images, in "
                    f"{parent / '[repeats]_[concept]' / MASKS}. Move them there",
                    f"{path}：未使用：蒙版要放在图片旁边，即 {parent / '[重复次数]_[概念]' / MASKS}，请移过去",
                )
            )
        elif _held(path, notes):
            unnamed.append(path)
            notes.append(
                say(
                    f"{path}: skipped: its name does not begin with [repeats]_. To use it, rename it to "
                    f"{offered_name(path.name)}",
                    f"{path}：已跳过：名称不是 [重复次数]_[概念] 的形式。要使用请改名为 {offered_name(path.name)}",
                )
            )
        else:
            notes.append(
                say(
                    f"{path}: skipped: its name does not begin with [repeats]_, and it contains no images directly",
                    f"{path}：已跳过：名称不是 [重复次数]_[概念] 的形式，里面也没有直接放图片",
                )
            )
    for entry in entries(parent):
        if not is_folder(entry) and not is_file(entry):
            notes.append(say(f"{entry.path}: broken link", f"{entry.path}：链接失效"))
    direct = images_in(parent)
    problems += endless
    if not numbered and not endless:
        problems.append(_what_was_meant(parent, option, direct, unnamed))
        return []
    warnings += notes
    if not numbered:
        return []
    if direct:
        warnings.append(
            say(
                f"{parent}: {plural(len(direct), 'image is', 'images are')} not used, beside the folders: "
                f"{some(direct)}. Move them into a [repeats]_[concept] folder",
                f"{parent}：子目录之外的 {len(direct)} 张图片不会使用：{some(direct)}。请移入 [重复次数]_[概念] 目录",
            )
        )
    return numbered


def _held(path: Path, notes: list[str]) -> list[str]:
    """Images in a folder that is not used; one that may not be read must not end the run."""
    try:
        return images_in(path)
    except UserError as error:
        notes += error.problems
        return []


def _concept(path: Path, text: str, notes: list[str]) -> str:
    """The text of a folder's name as a caption: readable, and without what nobody sees."""
    if re.search("[\udc80-\udcff]", text):  # bytes that are no UTF-8, as old Chinese archives leave them
        data = os.fsencode(text)
        try:
            text, _ = captions.decode(data)
        except ValueError:
            text = data.decode(errors="replace")
        notes.append(
            say(
                f'{path}: the name of this folder is not UTF-8; it was read as "{text}". If that is wrong, rename it',
                f"{path}：目录名不是 UTF-8，按“{text}”读取。如果不对，请改名",
            )
        )
    shown = captions.without_invisible(text)
    if shown != text:
        notes.append(
            say(
                f"{path}: the name of this folder contains invisible characters; without them the caption is "
                f'"{shown}". Rename it',
                f"{path}：目录名含不可见字符，已去除，作为标注的是“{shown}”。请改名",
            )
        )
    return shown


def _holds_numbered(path: Path) -> bool:
    """Whether a folder is one to choose: [repeats]_[concept] folders with images are in it."""
    notes: list[str] = []
    try:
        return any(repeats_and_text(child.name) and _held(child, notes) for child in subfolders(path))
    except UserError:  # it may not be read
        return False


def _what_was_meant(parent: Path, option: str, direct: list[str], unnamed: list[Path]) -> str:
    """Why there is no `[repeats]_[concept]` folder in a folder, and what to choose or rename."""
    where = f"{option} = {parent}"
    absolute = parent.resolve()  # "." has no name
    example = parent / "10_mytag"
    if direct and repeats_and_text(absolute.name):
        return say(
            f"{where} is itself a [repeats]_[concept] folder: one level too deep. Choose the folder that contains "
            f"it: {absolute.parent}",
            f"{where} 本身就是 [重复次数]_[概念] 目录，选深了一级。请选它的上一级：{absolute.parent}",
        )
    if direct:
        return say(
            f"{where}: {plural(len(direct), 'image is', 'images are')} directly in it. Move them into a sub-folder "
            f"named [repeats]_[concept], such as {example}",
            f"{where}：{len(direct)} 张图片直接放在里面。请移入 [重复次数]_[概念] 形式的子目录，如 {example}",
        )
    below = [path for path in subfolders(parent) if _holds_numbered(path)]
    own = [path for path in below if (path.name == REG) == (option == "reg_data_dir")]
    if below:
        choices = say(" or ", " 或 ").join(str(path) for path in own or below)
        return say(f"{where} is one level too high. Choose {choices}", f"{where} 选高了一级。请选 {choices}")
    if unnamed:
        cures = "; ".join(f"{path.name} -> {offered_name(path.name)}" for path in unnamed)
        return say(
            f"{where}: no sub-folder is named [repeats]_[concept]. Rename: {cures}",
            f"{where}：没有子目录的名称是 [重复次数]_[概念] 的形式。请改名：{cures}",
        )
    return say(
        f"{where}: no [repeats]_[concept] folder with images in it, such as {example}",
        f"{where}：里面没有装着图片的 [重复次数]_[概念] 目录，如 {example}",
    )
