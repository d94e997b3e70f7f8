"""The check of values: every problem at once, each with its place and its cure, in the user's language.

`check` turns values by name, from a block, a preset, a .toml file or a command line, into a complete `Config`. Each
value by itself is checked in `values`; rules between options stand in `impossible` (the run cannot go on) and
`doubtful` (it can, but the user should know). No torch is imported here: mistakes are told within a second.
"""

import dataclasses
import os
from typing import NamedTuple

from library.messages import Note, UserError, plural, say
from library.options.checks.doubtful import doubts, is_delivered, why_no_8bit_adam
from library.options.checks.impossible import contradictions
from library.options.checks.values import (
    as_number,
    asks,
    assignment,
    checked,
    choose_language,
    from_text,
    nearest,
    no_effect,
    place,
    quoted,
    unknown,
)
from library.options.declaration import PROJECT, AnyDeclared, Declared, Settings, Values, Where
from library.options.training import OPTIONS, TRAINING, Config

__all__ = [
    "CheckResult", "ConfigError", "as_number", "asks", "assignment", "check", "check_all", "check_tool",
    "check_values", "choose_language", "contradictions", "doubts", "from_text", "is_delivered", "missing", "nearest",
    "no_effect", "place", "quoted", "why_no_8bit_adam",
]  # fmt: skip


class ConfigError(UserError):
    """All that is wrong with the parameters, one line each."""

    def __init__(self, problems: list[str]):
        count = len(problems)
        super().__init__(problems, say(f"{plural(count, 'problem')} in the parameters:", f"参数有 {count} 处问题："))


def check(values: Values, where: Where, problems: list[str] | None = None) -> tuple[Config, list[str]]:
    """The complete configuration, and what the user should know about it.

    Args:
        values: by name, as given; what is missing takes its default.
        where: name -> where it was given: "lora_train_command_line.py:41", "x.toml:3" or "--flag".
        problems: found before (see sd_scripts.translate); told together with those found here.

    Returns:
        The configuration, with paths expanded and spellings unified, and warnings, one line each.

    Raises:
        ConfigError: naming every problem at once.
    """
    result = check_all(values, where, problems)
    if result.problems:
        raise ConfigError(result.problems)
    return result.config, result.warnings


class CheckResult(NamedTuple):
    """The configuration, and what the check of its values found."""

    config: Config  # what is wrong has its default
    problems: list[str]
    warnings: list[str]
    wrong: set[str]  # options that have their default for that reason


def check_all(values: Values, where: Where, problems: list[str] | None = None) -> CheckResult:
    """As `check`, but goes on where something is wrong."""
    values, warnings = _without_replaced(values, where)
    good, found, wrong = check_values(TRAINING, values, where)
    problems = [*(problems or []), *found]
    if "train_data_dir" in values or good.get("dataset_config"):
        good.setdefault("reg_data_dir", None)  # the miniature's would not go with it
    for name in ("color_aug", "random_crop", "face_crop_aug_range"):
        if good.get(name) and "cache_latents" not in good:
            good["cache_latents"] = False
            warnings.append(
                say(
                    f"cache_latents is off, because {name} changes the images at every use",
                    f"已关闭 cache_latents，因为 {name} 每次都会改变图片",
                )
            )
    for name, option in OPTIONS.items():
        if option.default and option.path in ("folder", "model"):
            good.setdefault(name, str(PROJECT / option.default))  # the miniature, whatever folder we are in

    config, against = Config(**good), set()
    for found, rules in ((problems, contradictions), (warnings, doubts)):
        for names, text in rules(config):
            if wrong.isdisjoint(names):
                line = f"{assignment(names[0], getattr(config, names[0]), where)} {text}"
                found.append(Note(line, text.level) if isinstance(text, Note) else line)
                against |= {names[0]} if rules is contradictions else set()
    defaults: Values = {name: None if name == "reg_data_dir" else OPTIONS[name].default for name in against}
    return CheckResult(dataclasses.replace(config, **defaults), problems, warnings, wrong | against)


REPLACED = {  # where the first is given, the others do not count
    "dataset_config": ("in_json", "train_data_dir", "reg_data_dir"),
    "in_json": ("reg_data_dir",),
}


def _without_replaced(values: Values, where: Where) -> tuple[Values, list[str]]:
    """The values that count, and a line for each of the others that is not as delivered."""
    first = next((name for name in REPLACED if values.get(name)), None)
    given = [name for name in REPLACED[first] if values.get(name)] if first else []
    lines = [
        say(
            f"{assignment(name, values[name], where)} has no effect: {first} overrides it",
            f"{assignment(name, values[name], where)} 不起作用：{first} 优先于它",
        )
        for name in given
        if OPTIONS[name].default is None or not str(values[name]).endswith(os.path.normpath(OPTIONS[name].default))
    ]
    return {name: value for name, value in values.items() if name not in given}, lines


def missing(values: Values) -> list[str]:
    """What a command or a file must give: the built-in miniature is the parameter block's value, and nobody's default.

    Args:
        values: under their present names.
    """
    lines = []
    if values.get("device_plan") == "print only":
        return lines
    if "pretrained_model_name_or_path" not in values:
        lines.append(_is_missing("pretrained_model_name_or_path", "the base model", "底模", "models/model.safetensors"))
    if not values.get("train_data_dir") and not values.get("dataset_config"):
        what = "the folder that holds your folders of images"
        lines.append(_is_missing("train_data_dir", what, "训练集目录，里面放图片文件夹", "train"))
    return lines


def check_values(declared: AnyDeclared, values: Values, where: Where) -> tuple[Values, list[str], set[str]]:
    """Each value by itself: those in order in their one spelling, all problems, and the names these are about."""
    good, problems, wrong = {}, [], set()
    for name, value in values.items():
        if name not in declared.options:
            problems.append(unknown(name, where, declared))
            continue
        try:
            good[name] = checked(name, value, where, declared)
        except ValueError as error:
            wrong.add(name)
            problems.append(f"{assignment(name, value, where)} {error}")
    return good, problems, wrong


def check_tool(declared: Declared[Settings], values: Values, where: Where) -> Settings:
    """The complete settings of a script in tools/. Raises ConfigError, naming every problem at once.

    Rules between options are those of the dataclass's own method `contradictions`, if it has one: it yields as the
    function of that name here.
    """
    good, problems, wrong = check_values(declared, values, where)
    settings = declared.config(**good)
    for names, text in getattr(settings, "contradictions", tuple)():
        if wrong.isdisjoint(names):
            problems.append(f"{assignment(names[0], getattr(settings, names[0]), where)} {text}")
    if problems:
        raise ConfigError(problems)
    return settings


# ---- what is said ----


def _is_missing(name: str, english: str, chinese: str, example: str) -> str:
    return say(
        f"{name} is missing: {english}. On a command line: --{name} {example}; in a .toml: {name} = '{example}'",
        f"缺少 {name}（{chinese}）。命令行写 --{name} {example}；.toml 里写 {name} = '{example}'",
    )
