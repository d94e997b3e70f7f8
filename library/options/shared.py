"""What is said once, in lora_train_command_line.py, and used by all scripts: base model, trigger word, folders, sizes.

An option of a script in tools/ that declares `shared` is None in its block and takes its value from here. The folders
follow one another below `output_dir`: prepared/, train/, reg/; train_data_dir = "auto" is the one that
tools/sort_into_folders.py makes, and the built-in miniature's until there is one.
"""

import os
import re
from pathlib import Path
from typing import Any

from library.messages import Note, say
from library.options.declaration import AnyDeclared, Given, Values, Where
from library.options.training import OPTIONS

AUTO = "auto"
LABELS = {  # what is told, of all that is shared
    "pretrained_model_name_or_path": ("base model", "底模"),
    "trigger_word": ("trigger word", "触发词"),
    "images_dir": ("raw images", "原始图片"),
    "train_data_dir": ("training images", "训练图片"),
    "resolution": ("resolution", "分辨率"),
}


def filled(values: Values, where: Where, declared: AnyDeclared, main: Given, folder: Path) -> tuple[Values, Where, str]:
    """The values of a script with what its block leaves to the main one, and the line that says so.

    Args:
        values: of the script's block; None: left to the main block.
        main: values and places of lora_train_command_line.py, with "auto" where it says so.
        folder: where that file lies: its relative paths are taken from there.
    """
    values, where = dict(values), dict(where)
    known = of_main(main)
    told: dict[str, str] = {}
    for name, option in declared.options.items():
        if option.shared is None or values.get(name) is not None:
            continue
        value, source = _value(option.shared, known), option.shared
        if isinstance(value, str) and option.path:
            value = str(folder / os.path.expanduser(value))
        elif isinstance(value, list) and name == "loras":
            value = [str(folder / os.path.expanduser(one)) for one in value]
        values[name] = value
        if isinstance(source, str) and source in main.where:
            at = main.where[source]
            where[name] = at if source == name else f"{at} ({source})"
        if source in LABELS:
            told[source] = f"{say(*LABELS[source])} {_short(value, folder)}"
    heading = say("from lora_train_command_line.py: ", "取自 lora_train_command_line.py：")
    return values, where, heading + say(", ", "，").join(told[name] for name in LABELS if name in told) if told else ""


def of_main(main: Given) -> Values:
    """All values of the main block, with "auto" folders as the scripts in tools/ make them."""
    known = {name: option.in_script for name, option in OPTIONS.items()} | main.values
    for name, folder in (("train_data_dir", "train"), ("reg_data_dir", "reg")):
        if known[name] == AUTO:  # the miniature's own set is not what the scripts work on
            known[name] = f"{known['output_dir']}/{folder}"
    return known | {"output_name": _name(known)}


def _name(values: Values) -> Any:  # whatever stands there
    """The name of the result: "auto" is the trigger word."""
    is_auto = values.get("output_name") == AUTO
    return values.get("trigger_word") or OPTIONS["output_name"].default if is_auto else values.get("output_name")


def _value(source: str | tuple[str, ...], known: Values) -> Any:  # of whichever option
    if isinstance(source, tuple):
        word = known["trigger_word"] or ""
        return [re.sub(r"^,\s*", "", text.format_map(known | {"trigger_word": word})) for text in source]
    return source.format_map(known) if "{" in source else known[source]


def _short(value: object, folder: Path) -> str:
    """A path as it is seen from the project's folder."""
    text = str(value)
    inside = os.path.isabs(text) and Path(text).is_relative_to(folder)
    return Path(text).relative_to(folder).as_posix() if inside else text


def with_own_folders(values: Values, folder: Path) -> tuple[Values, list[str]]:
    """The values of the main block with "auto" folders decided, and what the user should know about it.

    Args:
        folder: that of the script, which holds the built-in miniature.
    """
    values = dict(values)
    output = values.get("output_dir")
    output = Path(os.path.expanduser(output)) if isinstance(output, str) and output else folder / "output"
    own, drawn = output / "train", output / "reg"
    miniature = {name: str(folder / OPTIONS[name].default) for name in ("train_data_dir", "reg_data_dir")}
    is_auto = values.get("train_data_dir") == AUTO
    if is_auto:
        values["train_data_dir"] = str(own) if is_set(own) else miniature["train_data_dir"]
    train = values.get("train_data_dir")
    is_miniature = _same(train, miniature["train_data_dir"])
    if values.get("reg_data_dir") == AUTO:
        ours = str(drawn) if is_set(drawn) else None
        values["reg_data_dir"] = miniature["reg_data_dir"] if is_miniature else ours
    if "output_name" in values:
        values["output_name"] = _name(values)
    if values.get("dataset_config"):
        return values, []
    lines: list[str] = []
    if is_auto and not is_miniature:
        also = values["reg_data_dir"]
        text = _trains_own(_short(own, folder), _short(also, folder) if also else None)
        lines.append(Note(text, "green"))
    elif is_miniature and is_set(own):
        lines.append(Note(_own_is_not_trained(_short(own, folder)), "red"))
    elif is_miniature and (output / "prepared").is_dir():
        lines.append(_is_not_sorted(_short(output / "prepared", folder)))
    return values, lines


def is_set(folder: Path) -> bool:
    """Whether a folder holds a [repeats]_[concept] folder with something in it."""
    try:
        inside = [entry.path for entry in os.scandir(folder) if re.match(r"\d+_", entry.name) and entry.is_dir()]
        return any(next(os.scandir(path), None) for path in inside)
    except OSError:
        return False


def _same(one: object, other: str) -> bool:
    return isinstance(one, str) and os.path.realpath(one) == os.path.realpath(other)


# ---- what is said ----


def _trains_own(folder: str, reg: str | None) -> str:
    also, also_zh = (f", regularization images {reg}", f"，正则化图片 {reg}") if reg else ("", "")
    return say(
        f'train_data_dir = "auto": the images that tools/sort_into_folders.py put into {folder}{also}',
        f'train_data_dir = "auto"：使用 tools/sort_into_folders.py 整理到 {folder} 的图片{also_zh}',
    )


def _own_is_not_trained(folder: str) -> str:
    return say(
        f"train_data_dir is still the built-in miniature's: your own images in {folder} are not trained. Set "
        'train_data_dir = "auto"',
        f'train_data_dir 仍是自带的微型训练集：{folder} 里您自己的图片不会参加训练。请设 train_data_dir = "auto"',
    )


def _is_not_sorted(folder: str) -> str:
    return say(
        f"this trains the built-in miniature's images, not yours: those in {folder} are not sorted yet. Run "
        "tools/sort_into_folders.py first",
        f"这次训练的是自带的微型训练集，不是您的图片：{folder} 里的图片还没有分目录。"
        "请先运行 tools/sort_into_folders.py",
    )
