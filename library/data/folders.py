"""Which folders are meant: `[repeats]_[concept]` folders below the one that was chosen, or why there are none."""

import os
from dataclasses import dataclass
from pathlib import Path

from library.data import images
from library.messages import say

NOT_OURS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information"}  # systems make them
MANY_REPEATS = 500  # beyond: more likely a year or a size, such as 2023_holiday


@dataclass(frozen=True)
class Folder:
    """A `[repeats]_[concept]` folder as it was found."""

    path: Path
    repeats: int
    text: str  # the concept: the caption of pictures without caption file
    is_regularization: bool
    picture_count: int = 0  # usable ones
    caption_count: int = 0  # of those, with a caption file that was read

    @property
    def name(self) -> str:
        return self.path.name


def entries(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, sorted by name, without hidden and system files."""
    with os.scandir(folder) as found:
        shown = [entry for entry in found if not entry.name.startswith(".") and entry.name not in NOT_OURS]
    return sorted(shown, key=lambda entry: entry.name)


def is_picture(name: str) -> bool:
    """Whether a file's ending, in any mixture of cases, is that of a picture we read."""
    return os.path.splitext(name)[1].lower() in images.EXTENSIONS


def pictures_in(folder: Path) -> list[str]:
    """Names of the pictures directly in a folder."""
    return [entry.name for entry in entries(folder) if is_picture(entry.name) and entry.is_file()]


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, sorted by name."""
    return [Path(entry.path) for entry in entries(folder) if entry.is_dir()]


def some(names: list[str], limit: int = 5) -> str:
    """The first few of many names."""
    shown = say(", ", "、").join(names[:limit])
    rest = len(names) - limit
    return shown + (say(f" and {rest} more", f" 等 {len(names)} 个") if rest > 0 else "")


def repeats_and_text(name: str) -> tuple[int, str] | None:
    """`10_my tag` -> (10, "my tag"); None where the name does not begin with a whole number and `_`."""
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
    return first.resolve() == second.resolve()


def numbered_folders(
    parent: Path, other: Path | None, option: str, problems: list[str], warnings: list[str]
) -> list[Folder]:
    """The usable sub-folders, sorted by name. Where there are none: a problem that says what was probably meant.

    Args:
        parent: what the user chose for `option`, "train_data_dir" or "reg_data_dir".
        other: what was chosen for the other one; it may lie within `parent` and is left out then.
        problems, warnings: what is found is added to them.
    """
    if not parent.is_dir():
        problems.append(say(f"{option}: there is no folder {parent}", f"{option}：目录不存在：{parent}"))
        return []
    is_regularization = option == "reg_data_dir"
    other_option = "train_data_dir" if is_regularization else "reg_data_dir"
    numbered: list[Folder] = []
    unnamed: list[Path] = []  # hold pictures, but have no number
    notes: list[str] = []
    for path in subfolders(parent):
        meaning = repeats_and_text(path.name)
        if other and same(path, other):
            notes.append(
                say(
                    f"{path}: left out of {option}, it belongs to {other_option}",
                    f"{path}：属于 {other_option}，不算作 {option} 的内容",
                )
            )
        elif meaning and meaning[0] >= 1:
            numbered.append(Folder(path, *meaning, is_regularization))
            if meaning[0] > MANY_REPEATS:
                notes.append(
                    say(
                        f"{path}: this name means {meaning[0]} repeats of every picture. If that is not meant, rename "
                        f"it, e.g. 10_{path.name}",
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
        elif pictures_in(path):
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
                    f"{path}: skipped: its name does not begin with [repeats]_, and no picture lies directly in it",
                    f"{path}：已跳过：名称不是 [重复次数]_[概念] 的形式，里面也没有直接放图片",
                )
            )
    direct = pictures_in(parent)
    if not numbered:
        problems.append(_what_was_meant(parent, option, direct, unnamed))
        return []
    warnings += notes
    if direct:
        warnings.append(
            say(
                f"{parent}: {len(direct)} picture(s) beside the folders are not used: {some(direct)}. Move them into a "
                "[repeats]_[concept] folder",
                f"{parent}：子目录之外的 {len(direct)} 张图片不会使用：{some(direct)}。请移入 [重复次数]_[概念] 目录",
            )
        )
    return numbered


def _what_was_meant(parent: Path, option: str, direct: list[str], unnamed: list[Path]) -> str:
    """Why there is no `[repeats]_[concept]` folder in a folder, and what to choose or rename."""
    where = f"{option} = {parent}"
    absolute = parent.resolve()  # "." has no name
    example = parent / "10_mytag"
    if direct and repeats_and_text(absolute.name):
        return say(
            f"{where} is itself a [repeats]_[concept] folder: one level too deep. Choose the folder that holds it: "
            f"{absolute.parent}",
            f"{where} 本身就是 [重复次数]_[概念] 目录，选深了一级。请选它的上一级：{absolute.parent}",
        )
    if direct:
        return say(
            f"{where}: {len(direct)} picture(s) lie directly in it. Move them into a sub-folder named "
            f"[repeats]_[concept], such as {example}",
            f"{where}：{len(direct)} 张图片直接放在里面。请移入 [重复次数]_[概念] 形式的子目录，如 {example}",
        )
    if unnamed:
        cures = "; ".join(f"{path.name} -> {offered_name(path.name)}" for path in unnamed)
        return say(
            f"{where}: no sub-folder's name has the form [repeats]_[concept]. Rename: {cures}",
            f"{where}：没有子目录的名称是 [重复次数]_[概念] 的形式。请改名：{cures}",
        )
    below = [path for path in subfolders(parent) if any(repeats_and_text(child.name) for child in subfolders(path))]
    if below:
        choices = say(" or ", " 或 ").join(str(path) for path in below)
        return say(f"{where} is one level too high. Choose {choices}", f"{where} 选高了一级。请选 {choices}")
    return say(
        f"{where}: no [repeats]_[concept] folder with pictures in it, such as {example}",
        f"{where}：里面没有装着图片的 [重复次数]_[概念] 目录，如 {example}",
    )
