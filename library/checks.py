"""The check of values: every problem at once, each with its place and its cure, in the user's language.

`check` turns values by name, from a block, a preset, a .toml file or a command line, into a complete `Config`. To add a
rule between options: add an `if` to `contradictions` (the run cannot go on) or to `doubts` (it can, but the user should
know). No torch is imported here: mistakes are told within a second.
"""

import dataclasses
import difflib
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn

from library.config import (
    KINDS,
    OPTIONS,
    PROJECT,
    SECRETS,
    TRAINING,
    Config,
    Declared,
    trains_text_encoder,
    trains_unet,
)
from library.messages import Note, UserError, say, set_language

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.safetensors)(?<!\.ckpt)")  # org/name


class ConfigError(UserError):
    """All that is wrong with the parameters, one line each."""

    def __init__(self, problems: list[str]):
        count = len(problems)
        super().__init__(problems, say(f"{count} problem(s) in the parameters:", f"参数有 {count} 处问题："))


def check(values: dict[str, Any], where: dict[str, str], problems: list[str] | None = None) -> tuple[Config, list[str]]:
    """The complete configuration, and what the user should know about it.

    Args:
        values: by name, as given; what is missing takes its default.
        where: name -> where it was given: "lora_train_command_line.py:41", "x.toml:3" or "--flag".
        problems: found before (see kohya.translate); told together with those found here.

    Returns:
        The configuration, with paths expanded and spellings unified, and warnings, one line each.

    Raises:
        ConfigError: naming every problem at once.
    """
    looked = look(values, where, problems)
    if looked.problems:
        raise ConfigError(looked.problems)
    return looked.config, looked.warnings


class Looked(NamedTuple):
    """What a look at the values found."""

    config: Config  # what is wrong has its default
    problems: list[str]
    warnings: list[str]
    wrong: set[str]  # options that have their default for that reason


def look(values: dict[str, Any], where: dict[str, str], problems: list[str] | None = None) -> Looked:
    """As `check`, but goes on where something is wrong."""
    values, warnings = _without_replaced(values, where)
    checked, found, wrong = check_values(TRAINING, values, where)
    problems = [*(problems or []), *found]
    if "train_data_dir" in values or checked.get("dataset_config"):
        checked.setdefault("reg_data_dir", None)  # the miniature's would not go with it
    for name in ("color_aug", "random_crop", "face_crop_aug_range"):
        if checked.get(name) and "cache_latents" not in checked:
            checked["cache_latents"] = False
            warnings.append(
                say(
                    f"cache_latents is off, because {name} changes the pictures at every use",
                    f"已关闭 cache_latents，因为 {name} 每次都会改变图片",
                )
            )
    for name, option in OPTIONS.items():
        if option.default and option.metadata["path"] in ("folder", "model"):
            checked.setdefault(name, str(PROJECT / option.default))  # the miniature, whatever folder we are in

    config, against = Config(**checked), set()
    for found, rules in ((problems, contradictions), (warnings, doubts)):
        for names, text in rules(config):
            if wrong.isdisjoint(names):
                line = f"{told(names[0], getattr(config, names[0]), where)} {text}"
                found.append(Note(line, text.level) if isinstance(text, Note) else line)
                against |= {names[0]} if rules is contradictions else set()
    defaults = {name: None if name == "reg_data_dir" else OPTIONS[name].default for name in against}
    return Looked(dataclasses.replace(config, **defaults), problems, warnings, wrong | against)


REPLACED = {  # where the first is given, the others are not looked at
    "dataset_config": ("in_json", "train_data_dir", "reg_data_dir"),
    "in_json": ("reg_data_dir",),
}


def _without_replaced(values: dict[str, Any], where: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values that count, and a line for each of the others that is not as delivered."""
    first = next((name for name in REPLACED if values.get(name)), None)
    given = [name for name in REPLACED.get(first, ()) if values.get(name)]
    lines = [
        say(
            f"{told(name, values[name], where)} has no effect: {first} goes before it",
            f"{told(name, values[name], where)} 不起作用：{first} 优先于它",
        )
        for name in given
        if OPTIONS[name].default is None or not str(values[name]).endswith(os.path.normpath(OPTIONS[name].default))
    ]
    return {name: value for name, value in values.items() if name not in given}, lines


def check_values(
    declared: Declared, values: dict[str, Any], where: dict[str, str]
) -> tuple[dict[str, Any], list[str], set[str]]:
    """Each value by itself: those in order in their one spelling, all problems, and the names these are about."""
    checked, problems, wrong = {}, [], set()
    for name, value in values.items():
        if name not in declared.options:
            problems.append(_unknown(name, where, declared))
            continue
        try:
            checked[name] = _checked(name, value, where, declared)
        except ValueError as error:
            wrong.add(name)
            problems.append(f"{told(name, value, where)} {error}")
    return checked, problems, wrong


def check_tool(declared: Declared, values: dict[str, Any], where: dict[str, str]) -> Any:
    """The complete settings of a script in tools/. Raises ConfigError, naming every problem at once.

    Rules between options are those of the dataclass's own method `contradictions`, if it has one: it yields as the
    function of that name here.
    """
    checked, problems, wrong = check_values(declared, values, where)
    settings = declared.config(**checked)
    for names, text in getattr(settings, "contradictions", tuple)():
        if wrong.isdisjoint(names):
            problems.append(f"{told(names[0], getattr(settings, names[0]), where)} {text}")
    if problems:
        raise ConfigError(problems)
    return settings


def place(name: str, where: dict[str, str]) -> str:
    """How a line begins that speaks of an option: `--name`, or `file:line: name`."""
    at = where.get(name, "")
    if at.startswith("--"):
        return f"--{name}"
    return f"{at}: {name}" if at else name


def told(name: str, value: Any, where: dict[str, str]) -> str:
    """The same with its value: `--name value`, or `file:line: name = value`."""
    if not where.get(name, "").startswith("--"):
        return f"{place(name, where)} = {'...' if name in SECRETS else shown(value)}"
    if name in SECRETS:
        return f"--{name} ..."
    values = value if isinstance(value, list) else [value]
    return " ".join([f"--{name}", *(shown(value) for value in values)])


def shown(value: Any) -> str:
    """A value as the user would write it."""
    return f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)


def nearest(name: str, names: Any) -> str | None:
    """The one of `names` that was most likely meant."""
    by_lower = {str(other).lower(): str(other) for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def choose_language(values: dict[str, Any]) -> None:
    """Speak the language that was asked for, before anything is said."""
    language = str(values.get("language", "auto")).lower()
    set_language("zh" if language.startswith(("zh", "cn")) else "en" if language.startswith("en") else "auto")


def from_text(name: str, text: str) -> Any:
    """The value that a text from the command line or a preset stands for; the text itself if it stands for none."""
    kinds, lower = KINDS[name], text.strip().lower()
    if NoneType in kinds and lower in ("", "none"):
        return None
    if bool in kinds and lower in ("true", "false"):
        return lower == "true"
    if kinds & {int, float}:
        return as_number(text)
    return text


def as_number(text: str) -> int | float | str:
    """The number a text stands for, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# ---- one value ----


def _refuse(english: str, chinese: str) -> NoReturn:
    """What is wrong with a value; `check` puts place, name and value before it."""
    raise ValueError(say(english, chinese))


def _checked(name: str, value: Any, where: dict[str, str], declared: Declared) -> Any:
    """The value in its one spelling."""
    option, kinds = declared.options[name], declared.kinds[name]
    limits = option.metadata
    if not limits["flag"] and (
        where.get(name, "").startswith("--") or re.search(r"\.(toml|json):", where.get(name, ""))
    ):
        _refuse("is only for lora_train_command_line.py", "只能用在 lora_train_command_line.py 里")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if re.search("[\ud800-\udfff]", str(value)):  # no file of ours could hold it
        _refuse("holds bytes that are no UTF-8; write or name it anew", "含有不是 UTF-8 的字节，请重新填写或改名")
    if NoneType in kinds and isinstance(value, str) and value.strip().lower() in ("", "none"):
        value = None  # None in quotes
    if value is None and NoneType not in kinds:
        usual = shown(option.default)
        _refuse(f"is not possible here; as delivered: {usual}", f"不能用于此参数；默认值是 {usual}")
    if value is None:
        return None
    if name in ("down_lr_weight", "mid_lr_weight", "up_lr_weight"):
        return _block_weights(value, is_list=name == "mid_lr_weight")
    if list in kinds and (isinstance(value, (list, tuple)) or not kinds & {int, float}):
        items = _list(value, option, declared.items[name], splits=declared is TRAINING)
        is_one = bool(kinds & {int, float}) and len(set(items)) == 1  # the same for all
        return items[0] if is_one else items or None
    if name in ("resolution", "skip_image_resolution") and str in kinds:
        return _resolution(value, takes_auto=name == "resolution")
    if name == "face_crop_aug_range":
        return _face_range(value)
    if isinstance(value, (list, tuple)):
        _one_value(value)
    if name in ("lr_warmup_steps", "lr_decay_steps", "stop_text_encoder_training"):
        return _warmup(value)
    if limits["choices"]:
        return _choice(value, limits["choices"])
    if bool in kinds:
        return _switch(value)
    if name == "learning_rate" and value == 0 and not isinstance(value, bool):
        _refuse("is not above 0", "必须大于 0")  # elsewhere 0 means "not given"; here it could mean "freeze"
    if kinds & {int, float}:
        is_auto = option.default == "auto" and str(value).strip().lower() == "auto"
        return "auto" if is_auto else _number(value, kinds, limits)
    if not isinstance(value, str):
        _refuse(f'is not text; put it in quotes: "{value}"', f'不是文字；请加引号："{value}"')
    if limits["path"]:
        return _path(value, limits["path"])
    if value == "" and option.default and name != "output_name":
        _refuse(f"is empty; as delivered: {shown(option.default)}", f"是空的；默认值是 {shown(option.default)}")
    return _file_name(value) if name in ("output_name", "concept") else value


def _number(value: Any, kinds: set[type], limits: Any) -> int | float | None:
    number = _finite(value, whole=float not in kinds)
    low, high, above = limits["minimum"], limits["maximum"], limits["above"]
    if (low is None or number >= low) and (high is None or number <= high) and (above is None or number > above):
        return number
    if number == 0 and NoneType in kinds:
        return None  # save every 0 epochs, 0 steps instead of epochs: not at all
    if above is not None:
        _refuse(f"is not above {above:g}", f"必须大于 {above:g}")
    if high is None:
        _refuse(f"is below {low:g}, the least possible", f"小于允许的最小值 {low:g}")
    _refuse(f"is not between {low} and {high}", f"不在 {low} 到 {high} 之间")


def _finite(value: Any, whole: bool) -> int | float:
    if isinstance(value, str) and not isinstance(as_number(value), str):
        _refuse(f"is text; remove the quotes: {value}", f"是文字；请去掉引号：{value}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _refuse("is not a number", "不是数字")
    if not whole:
        return float(value)
    if value != int(value):
        _refuse("is not a whole number", "不是整数")
    return int(value)


def _switch(value: Any) -> bool:
    if isinstance(value, (bool, int, float)) and value in (True, False):  # 1 and 0 as well
        return bool(value)
    if str(value).lower() in ("true", "false"):
        plain = str(value).capitalize()
        _refuse(f"is text; remove the quotes: {plain}", f"是文字；请去掉引号：{plain}")
    _refuse("is neither True nor False", "不是 True 或 False")


def _choice(value: Any, choices: tuple) -> Any:
    for choice in choices:
        if str(value).lower() == str(choice).lower():
            return choice
    meant = nearest(str(value), choices)
    hint = say(f" Did you mean {shown(meant)}?", f"是不是 {shown(meant)}？") if meant else ""
    listed = ", ".join(shown(choice) for choice in choices)
    _refuse(f"is none of {listed}.{hint}", f"不在可选值之内：{listed}。{hint}")


def _one_value(value: list | tuple) -> NoReturn:
    if not value:
        _refuse("has no value", "没有填值")
    _refuse(
        f"are {len(value)} values, one is expected; put quotes around a text with spaces",
        f"是 {len(value)} 个值，只能填一个；含空格的文字要加引号",
    )


def _list(value: Any, option: dataclasses.Field, item: type, *, splits: bool) -> list:
    """A list of texts or of numbers; one text alone is a list of it, or of its words where flags are written so."""
    items = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str) and splits and not option.metadata["path"]:
        items = value.split()
    if item in (int, float):
        items = [part for one in items for part in (one.strip(",").split(",") if isinstance(one, str) else [one])]
        numbers = (as_number(one) if isinstance(one, str) else one for one in items)
        return [_number(one, {item}, option.metadata) for one in numbers]
    if not all(isinstance(one, str) for one in items):
        _refuse('is not a list of texts such as ["a", "b"]', '不是文字列表，应如 ["a", "b"]')
    if option.metadata["path"]:
        return [_path(one, option.metadata["path"]) for one in items]
    if option.name in ("network_reg_dims", "network_reg_lrs"):
        return [pair for one in items for pair in _pairs(one, whole=option.name == "network_reg_dims")]
    if option.name.endswith("_patterns"):
        return [_pattern(one) for one in items]
    for one in items if option.name in ("optimizer_args", "lr_scheduler_args") else ():
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", one, re.DOTALL):
            _refuse(f'holds "{one}", which is not name=value', f'中的 "{one}" 不是 名称=值 的形式')
    return list(items)


def _pairs(text: str, whole: bool) -> list[str]:
    """ "a.*=8,b=4" as ["a.*=8", "b=4"]; a pattern may hold commas, as "x{1,2}=4" does."""
    pairs, at = [], 0
    while at < len(text):
        found = re.compile(r"\s*(.+?)\s*=\s*([\d.]+(?:[eE]-?\d+)?)\s*(?:,|$)").match(text, at)
        number = as_number(found[2]) if found else ""
        if isinstance(number, str) or (whole and number != int(number)):
            kind, kind_zh = ("whole number", "整数") if whole else ("number", "数字")
            rest = text[at:]
            _refuse(f'holds "{rest}", which is not pattern={kind}', f'中的 "{rest}" 不是 模式={kind_zh} 的形式')
        pairs.append(f"{_pattern(found[1])}={found[2]}")
        at = found.end()
    return pairs


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        _refuse(f'holds "{text}", which is no regular expression ({error})', f'中的 "{text}" 不是正则表达式（{error}）')
    return text


def _block_weights(value: Any, is_list: bool) -> str:
    """Factors for the blocks of one side, "0.5,1,1", or a preset such as "cosine" or "linear+0.25"."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).strip()
    number = r"(\d+\.?\d*|\.\d+)([eE]-?\d+)?"
    if re.fullmatch(rf"\s*({number})?\s*(,\s*({number})?\s*)*", text):
        return re.sub(r"\s", "", text)
    presets = ("cosine", "sine", "linear", "reverse_linear", "zeros")
    if re.fullmatch(rf"({'|'.join(presets)})(\+{number})?", text) and not is_list:
        return text
    or_en = "" if is_list else f", nor one of {', '.join(presets)}, which may be followed by +0.25"
    or_zh = "" if is_list else f"，也不是 {'、'.join(presets)}（后面可加 +0.25）"
    _refuse(f"is no list of numbers such as 0.5,1,1{or_en}", f"不是 0.5,1,1 这样的数字列表{or_zh}")


def _face_range(value: Any) -> str:
    """ "fewest,most"."""
    numbers = re.split("[,，]", value) if isinstance(value, str) else value
    try:
        fewest, most = (_finite(as_number(one) if isinstance(one, str) else one, whole=False) for one in numbers)
    except (TypeError, ValueError):
        fewest, most = 0.0, 0.0
    if not 0 < fewest <= most:
        _refuse('is no range such as "2.0,4.0"', '不是 "2.0,4.0" 这样的范围')
    return f"{fewest:g},{most:g}"


def _resolution(value: Any, *, takes_auto: bool) -> int | str:
    """ "auto", the side of a square, or "width,height"."""
    if takes_auto and isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    sides = re.split("[,，xX×]", value) if isinstance(value, str) else value
    sides = list(sides) if isinstance(sides, (list, tuple)) else [sides]
    try:
        sides = [_finite(as_number(side) if isinstance(side, str) else side, whole=True) for side in sides]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(16 <= side <= 16384 for side in sides):
        auto, auto_zh = (' or "auto"', ' 或 "auto"') if takes_auto else ("", "")
        _refuse(f'is no size: 512, "512,768" (width,height){auto}', f'不是尺寸：可填 512、"512,768"（宽,高）{auto_zh}')
    return sides[0] if len(set(sides)) == 1 else f"{sides[0]},{sides[1]}"


def _warmup(value: Any) -> int | float:
    """Steps (int), or a share of all steps (float below 1)."""
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else _finite(as_number(text), whole=False)
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or number < 0 or (number >= 1 and (number != int(number) or text.endswith("%"))):
        _refuse('is neither steps (100) nor a share (0.05, "5%")', '不是步数（100），也不是比例（0.05、"5%"）')
    return number if 0 < number < 1 else int(number)


_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def _file_name(value: str) -> str:
    """A name that every system takes, Windows included."""
    stem, ending = os.path.splitext(value)
    if ending.lower() in (".safetensors", ".ckpt", ".pt"):
        _refuse(f'has an ending; leave it out: "{stem}"', f'带有扩展名；请去掉："{stem}"')
    bad = " ".join(sorted({shown(letter) for letter in value if letter in '/\\:*?"<>|' or ord(letter) < 32}))
    if bad:
        _refuse(
            f"holds {bad}, which a file name cannot; a folder goes into output_dir",
            f"含有文件名不能用的字符 {bad}；文件夹请写在 output_dir",
        )
    reserved = value.split(".")[0].strip().lower() in _RESERVED
    if reserved or not value.strip() or value != value.strip(" ").rstrip(".") or len(value.encode()) > 200:
        _refuse("cannot be a file name on every system; take another", "不能在所有系统上作文件名；请换一个")
    return value


# ---- paths ----

_TYPED = {"\a": r"\a", "\b": r"\b", "\t": r"\t", "\n": r"\n", "\v": r"\v", "\f": r"\f", "\r": r"\r"}
_TYPED |= {chr(n): f"\\{n}" for n in range(8) if n not in (7,)}


def _path(value: str, kind: str) -> str:
    """The path with `~` expanded; must fit `kind` (see option)."""
    control = next((letter for letter in value if ord(letter) < 32), None)
    if control:
        known = {"\n": ("a line break", "换行符"), "\t": ("a tab", "制表符")}
        english, chinese = known.get(control, ("a control character", "控制字符"))
        typed = "".join(_TYPED.get(letter, letter) for letter in value)
        _refuse(
            f"contains {english}, because \\ in plain quotes is special: "
            f"""write it with / or as r"{typed}" (in .toml: '{typed}')""",
            f"中含有{chinese}，因为普通引号里的 \\ 有特殊含义："
            f"""请用 / 代替，或写成 r"{typed}"（.toml 里写 '{typed}'）""",
        )
    if kind == "picture" and value.startswith("data:image/"):
        return value
    if kind == "prompts" and re.search(r"\s", value.strip()) and not re.search(r"\.(txt|toml|json)$", value.strip()):
        return value
    path = os.path.expanduser(value)
    if not path.strip():
        _refuse("is empty; give a path", "是空的；请填路径")
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)
    if is_file and kind in ("folder", "output"):
        _refuse("is a file; a folder is needed", "是文件；需要的是文件夹")
    if is_folder and kind in ("file", "picture", "prompts", "new file"):
        _refuse("is a folder; a file is needed", "是文件夹；需要的是文件")
    if not (kind in ("output", "new file") or is_file or is_folder):
        _missing(path, is_hub_name=kind == "model" and HUB_NAME.fullmatch(value))
    if kind == "picture":
        _thumbnail(path)
    return path


def _thumbnail(path: str) -> None:
    """Refuse what browsers would not show, and what would fill the header of a file."""
    if os.path.splitext(path)[1].lower() not in (".png", ".jpg", ".jpeg", ".webp", ".gif"):
        _refuse("is no .png, .jpg, .webp or .gif", "不是 .png、.jpg、.webp 或 .gif 图片")
    if os.path.getsize(path) > 2**24:
        _refuse("is larger than 16 MiB; make it smaller, 512 pixels are enough", "超过 16 MiB；请缩小，512 像素足够")


def _missing(path: str, is_hub_name: Any) -> NoReturn:
    """Say of a path that is not there where it stops being right, and what is there instead."""
    tidy = path.strip().strip("\"'")
    if tidy != path and os.path.exists(tidy):
        _refuse(f'does not exist. Did you mean "{tidy}"?', f'不存在。是不是 "{tidy}"？')
    wanted = Path(path).absolute()
    folder = next(
        parent for parent in [*wanted.parents, Path(wanted.anchor)] if parent.is_dir() or parent == parent.parent
    )
    first, *rest = wanted.relative_to(folder).parts
    try:
        meant = nearest(first, os.listdir(folder))
    except OSError:  # a folder we may not read, or a drive that is not there
        meant = None
    english, chinese = f'does not exist: there is no "{first}" in "{folder}".', f'不存在："{folder}" 里没有 "{first}"。'
    if meant and (not rest or os.path.exists(folder.joinpath(meant, *rest))):
        meant = folder.joinpath(meant, *rest)
        _refuse(f'{english} Did you mean "{meant}"?', f'{chinese}是不是 "{meant}"？')
    if is_hub_name:
        _refuse(
            "is not here, and models are not downloaded: give a .safetensors file or a diffusers folder",
            "不在本机，程序不会下载模型：请填 .safetensors 文件或 diffusers 文件夹的路径",
        )
    _refuse(english, chinese)


# ---- rules between options: (the options concerned, what is said behind the first one's value) ----

Rule = tuple[tuple[str, ...], str]


MAY_CHANGE = {  # between saving a training state and going on from it: where things lie and what is shown
    "resume", "output_dir", "output_name", "logging_dir", "language", "cache_dir", "save_state", "training_comment",
    "max_data_loader_n_workers", "cache_latents_to_disk", "sample_prompts", "sample_every_n_epochs",
    "sample_every_n_steps", "sample_at_first", "sample_sampler", "tag_occurrence_txt_file", "save_last_n_epochs",
    "gradient_checkpointing", "lowram", "machine_rank", "main_process_ip", "main_process_port", "ddp_timeout",
    "validation_data_dir", "validate_every_n_epochs", "validate_every_n_steps", "max_validation_steps",
    "vae_batch_size", "save_last_n_epochs_state", "save_last_n_steps", "save_last_n_steps_state",
    "save_state_on_train_end", "keep_best", "early_stop", "log_with", "log_prefix", "log_tracker_name",
    "log_tracker_config", "log_config",
    "wandb_run_name", "wandb_api_key", "console_log_level", "console_log_file", "console_log_simple",
    *(name for name in OPTIONS if name.startswith("metadata_")),
}  # fmt: skip


def differences(before: dict[str, Any], config: Config) -> list[str]:
    """What was set otherwise when a training state was saved and changes the result of going on; one line each."""
    changed = [
        (name, before[name], now)
        for name, now in dataclasses.asdict(config).items()
        if name in before and before[name] != now and name not in MAY_CHANGE
    ]
    return [
        say(
            f"{name} was {then!r} when the state was saved, and is {now!r} now: the result will not be that of an "
            "unbroken run",
            f"保存状态时 {name} 为 {then!r}，现在为 {now!r}：结果会与不中断的训练不同",
        )
        for name, then, now in changed
    ]


def contradictions(config: Config) -> Iterator[Rule]:
    """What cannot be done."""
    c = config
    for name in ("color_aug", "random_crop", "face_crop_aug_range"):
        if getattr(c, name) and c.cache_latents:
            yield (
                (name, "cache_latents"),
                say(
                    "changes the pictures at every use, so they cannot be cached. Set cache_latents to False, or this",
                    "每次都会改变图片，因此不能缓存。请把 cache_latents 或此项设为 False",
                ),
            )
    if c.validation_split not in (0, "auto") and c.validation_data_dir:
        yield (
            ("validation_split", "validation_data_dir"),
            say(
                "excludes validation_data_dir. Set validation_split to 0, or validation_data_dir to None",
                "与 validation_data_dir 互相排斥。请把 validation_split 设为 0，或把 validation_data_dir 设为 None",
            ),
        )
    if c.network_train_unet_only and c.network_train_text_encoder_only:
        yield (
            ("network_train_unet_only", "network_train_text_encoder_only"),
            say(
                "excludes network_train_text_encoder_only. Set one of them to False",
                "与 network_train_text_encoder_only 互相排斥。请把其中一个设为 False",
            ),
        )
    elif not trains_unet(c) and not trains_text_encoder(c):
        rate = "text_encoder_lr" if c.network_train_text_encoder_only else "unet_lr"
        yield (
            (rate, "unet_lr", "text_encoder_lr"),
            say(
                "leaves nothing to train, because the other part is not trained either. Give it a learning rate",
                "使得没有可训练的部分，因为另一部分也不训练。请填一个学习率",
            ),
        )
    if c.cache_text_encoder_outputs is True:
        changing = {
            "shuffle_caption": c.shuffle_caption,
            "caption_dropout_rate": c.caption_dropout_rate > 0,
            "caption_dropout_every_n_epochs": bool(c.caption_dropout_every_n_epochs),
            "caption_tag_dropout_rate": c.caption_tag_dropout_rate > 0,
            "token_warmup_step": c.token_warmup_step > 0,
            "enable_wildcard": c.enable_wildcard,
        }
        for name in (name for name, active in changing.items() if active):
            yield (
                ("cache_text_encoder_outputs", name),
                say(
                    f"is not possible with {name}, which changes the captions. Set one of them off",
                    f"不能与 {name} 同用，因为它会改变标签。请关闭其中一个",
                ),
            )
        if trains_text_encoder(c):
            yield (
                ("cache_text_encoder_outputs", "text_encoder_lr", "network_train_unet_only"),
                say(
                    "is not possible while the text encoder is trained. Set text_encoder_lr to 0, or this to False",
                    "不能在训练文本编码器时使用。请把 text_encoder_lr 设为 0，或把此项设为 False",
                ),
            )
    own_paces = {
        name
        for name in (
            "down_lr_weight",
            "mid_lr_weight",
            "up_lr_weight",
            "network_reg_lrs",
            "loraplus_lr_ratio",
            "loraplus_unet_lr_ratio",
            "loraplus_text_encoder_lr_ratio",
        )
        if getattr(c, name) is not None
    }
    kind = c.optimizer_type.lower()
    is_relative = kind == "adafactor" and not any(
        arg.replace(" ", "").lower() == "relative_step=false" for arg in c.optimizer_args or []
    )
    for name in sorted(own_paces) if kind.startswith(("prodigy", "dadapt")) or is_relative else ():
        cure_en, cure_zh = (
            ('give optimizer_args = ["relative_step=False"]', '请填 optimizer_args = ["relative_step=False"]')
            if is_relative
            else ('take another, such as "AdamW"', '请换用其他优化器，如 "AdamW"')
        )
        yield (
            (name, "optimizer_type"),
            say(
                f"is not possible with {c.optimizer_type}, which finds one learning rate for all layers: {cure_en}, or "
                "leave this out",
                f"不能与 {c.optimizer_type} 同用，它为所有层寻找同一个学习率：{cure_zh}，或去掉此项",
            ),
        )
    if isinstance(c.text_encoder_lr, list) and len(c.text_encoder_lr) > 2:
        yield (
            ("text_encoder_lr",),
            say(
                "are more than two learning rates: SDXL has two text encoders, other models one",
                "多于两个学习率：SDXL 有两个文本编码器，其他模型只有一个",
            ),
        )
    if c.dim_from_weights and not c.network_weights:
        yield (
            ("dim_from_weights", "network_weights"),
            say("needs network_weights: the file to take them from", "需要 network_weights：从该文件读取"),
        )
    from_file = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "network_reg_dims")
    for name in (name for name in from_file if c.dim_from_weights and getattr(c, name) is not None):
        yield (
            (name, "dim_from_weights"),
            say(
                "and dim_from_weights both say the ranks. Leave one of them out",
                "与 dim_from_weights 都规定秩。请去掉其中一个",
            ),
        )
    if c.base_weights_multiplier and c.base_weights and len(c.base_weights_multiplier) > len(c.base_weights):
        yield (
            ("base_weights_multiplier", "base_weights"),
            say(
                f"has more values than base_weights has files ({len(c.base_weights)})",
                f"的个数多于 base_weights 的文件数（{len(c.base_weights)}）",
            ),
        )
    if c.ema_decay and kind.endswith("schedulefree"):
        yield (
            ("ema_decay", "optimizer_type"),
            say(
                f"is not possible with {c.optimizer_type}, which saves an average of its own. Leave one of them out",
                f"不能与 {c.optimizer_type} 同用，它本来就保存自己的平均值。请去掉其中一个",
            ),
        )
    if c.network_module != "lora" and c.network_dropout:
        yield (
            ("network_dropout", "network_module"),
            say(
                f'is not possible with network_module = "{c.network_module}", which has no inner values to drop. '
                'Set it to None, or take "lora"',
                f'不能与 network_module = "{c.network_module}" 同用，它没有可丢弃的内部值。请设为 None，或改用 "lora"',
            ),
        )
    if c.log_with in ("tensorboard", "all") and not c.logging_dir:
        yield (
            ("log_with", "logging_dir"),
            say(
                'needs logging_dir: the folder for TensorBoard. Give one, such as "logs", or leave log_with out',
                '需要 logging_dir（TensorBoard 的目录）。请填写，如 "logs"，或不要填 log_with',
            ),
        )
    if c.log_with in ("wandb", "all") and importlib.util.find_spec("wandb") is None:
        yield (
            ("log_with",),
            say(
                "needs the package wandb: pip install wandb. Or take TensorBoard: only logging_dir",
                '需要 wandb：请运行 "pip install wandb"；或改用 TensorBoard：只填 logging_dir',
            ),
        )
    if c.max_train_steps is None and c.max_train_epochs is None:
        yield (
            ("max_train_epochs", "max_train_steps"),
            say(
                "and max_train_steps = None: how long shall it train? Give one of them",
                "并且 max_train_steps = None：要训练多久？请填其中一个",
            ),
        )
    if c.lr_warmup_steps and c.lr_scheduler in ("constant", "adafactor", "piecewise_constant"):
        yield (
            ("lr_warmup_steps", "lr_scheduler"),
            say(
                f'does not go with lr_scheduler = "{c.lr_scheduler}", which has no warmup. '
                'Take "constant_with_warmup", or set it to 0',
                f'不能与 lr_scheduler = "{c.lr_scheduler}" 同用，它没有预热。'
                '请改用 "constant_with_warmup"，或把此项设为 0',
            ),
        )
    if c.max_train_steps is not None and c.lr_warmup_steps >= c.max_train_steps:
        yield (
            ("lr_warmup_steps", "max_train_steps"),
            say(
                f"is not less than max_train_steps = {c.max_train_steps}: the learning rate would never reach its "
                "value. Lower it, or train longer.",
                f"不小于 max_train_steps = {c.max_train_steps}：学习率永远达不到设定值。请调小它，或训练更久。",
            ),
        )
    if c.lr_scheduler == "adafactor" and c.optimizer_type.lower() != "adafactor":
        yield (
            ("lr_scheduler", "optimizer_type"),
            say(
                f'needs optimizer_type = "Adafactor", not "{c.optimizer_type}". Take "constant" or another',
                f'需要 optimizer_type = "Adafactor"，而不是 "{c.optimizer_type}"。请改用 "constant" 或其他方式',
            ),
        )
    if c.scale_v_pred_loss_like_noise_pred and c.v_pred_like_loss:
        yield (
            ("scale_v_pred_loss_like_noise_pred", "v_pred_like_loss"),
            say(
                "is for v models, v_pred_like_loss for epsilon models. Leave one of them out",
                "用于 v 预测模型，而 v_pred_like_loss 用于 epsilon 模型。请去掉其中一个",
            ),
        )
    if c.v_pred_like_loss and c.v_parameterization:
        yield (
            ("v_pred_like_loss", "v_parameterization"),
            say(
                "is for epsilon models, and v_parameterization says that this is a v model. Leave one of them out",
                "用于 epsilon 模型，而 v_parameterization 表示这是 v 预测模型。请去掉其中一个",
            ),
        )
    if c.min_timestep >= c.max_timestep:
        yield (
            ("min_timestep", "max_timestep"),
            say(
                f"is not less than max_timestep = {c.max_timestep}: no timestep is left",
                f"不小于 max_timestep = {c.max_timestep}，没有可训练的时间步",
            ),
        )
    if c.adaptive_noise_scale and not c.noise_offset:
        yield (
            ("adaptive_noise_scale", "noise_offset"),
            say("needs noise_offset; give it, such as 0.05", "需要 noise_offset，请填写，如 0.05"),
        )
    if c.lr_scheduler == "warmup_stable_decay" and not c.lr_decay_steps:
        yield (
            ("lr_scheduler", "lr_decay_steps"),
            say(
                'needs lr_decay_steps, such as 0.2 or "20%"',
                '需要 lr_decay_steps，如 0.2 或 "20%"',
            ),
        )
    if c.use_8bit_adam and c.optimizer_type.lower() not in ("adamw", "adamw8bit"):
        yield (
            ("use_8bit_adam", "optimizer_type"),
            say(
                f'excludes optimizer_type = "{c.optimizer_type}". Set one of them as delivered',
                f'与 optimizer_type = "{c.optimizer_type}" 互相排斥。请把其中一个改回默认值',
            ),
        )
    if c.enable_bucket:
        sides = [] if c.resolution == "auto" else [int(side) for side in str(c.resolution).split(",")]
        step = c.bucket_reso_steps or 64  # the limits are rounded outwards to multiples of it, as sd-scripts does
        low = c.min_bucket_reso and c.min_bucket_reso // step * step
        high = c.max_bucket_reso and -(-c.max_bucket_reso // step) * step
        if low and sides and low > min(sides):
            yield (
                ("min_bucket_reso", "resolution"),
                say(
                    f"is more than the resolution {c.resolution}. Lower it, or set it to None",
                    f"大于分辨率 {c.resolution}。请调小，或设为 None",
                ),
            )
        if high and sides and high < max(sides):
            yield (
                ("max_bucket_reso", "resolution"),
                say(
                    f"is less than the resolution {c.resolution}. Raise it, or set it to None",
                    f"小于分辨率 {c.resolution}。请调大，或设为 None",
                ),
            )
        if low and high and low > high:
            yield (
                ("min_bucket_reso", "max_bucket_reso"),
                say(
                    f"is more than max_bucket_reso = {c.max_bucket_reso}", f"大于 max_bucket_reso = {c.max_bucket_reso}"
                ),
            )
    if c.bucket_reso_steps and c.bucket_reso_steps % 8:
        yield ("bucket_reso_steps",), say("is not a multiple of 8", "不是 8 的倍数")
    if c.reg_data_dir and os.path.abspath(c.reg_data_dir) == os.path.abspath(c.train_data_dir):
        yield (
            ("reg_data_dir", "train_data_dir"),
            say(
                "is the training folder itself. Give another folder, or None",
                "就是训练集目录。请填另一个目录，或 None",
            ),
        )


# Learning rates outside of these are told as doubtful. Prodigy and D-Adaptation scale theirs by themselves: 1 is right.
_USUAL_RATES = {
    "prodigy": (0.1, 10),
    "dadapt": (0.1, 10),
    "sgd": (1e-6, 10),
    "lion": (1e-7, 3e-3),
    "adam": (1e-6, 1e-2),
}


def doubts(config: Config) -> Iterator[Rule]:
    """What can be done, but is probably not meant, or has no effect."""
    c = config
    changed = {name for name, option in OPTIONS.items() if getattr(c, name) != option.default}
    low, high = next(
        (rates for name, rates in _USUAL_RATES.items() if c.optimizer_type.lower().startswith(name)), (0, 1e9)
    )
    of_text = c.text_encoder_lr if isinstance(c.text_encoder_lr, list) else [c.text_encoder_lr]
    own_rates = [c.unet_lr] * trains_unet(c) + of_text * trains_text_encoder(c)  # None: learning_rate
    used = {"learning_rate": None in own_rates, "unet_lr": trains_unet(c), "text_encoder_lr": trains_text_encoder(c)}
    for name in (name for name, is_used in used.items() if is_used):
        rate = max(of_text) if name == "text_encoder_lr" and None not in of_text else getattr(c, name)
        if rate and not low <= rate <= high:
            yield (
                (name, "optimizer_type"),
                say(
                    f"is far {'above' if rate > high else 'below'} the usual for {c.optimizer_type}: "
                    f"{low:g} to {high:g}",
                    f"远{'大于' if rate > high else '小于'} {c.optimizer_type} 的常用范围：{low:g} 到 {high:g}",
                ),
            )
    if c.max_train_steps is not None and c.max_train_epochs is not None and "max_train_epochs" in changed:
        yield (
            ("max_train_steps", "max_train_epochs"),
            say(
                f"goes before max_train_epochs = {c.max_train_epochs}",
                f"优先于 max_train_epochs = {c.max_train_epochs}",
            ),
        )
    if c.xformers:
        yield (
            ("xformers",),
            say("is not needed: torch's own attention is used instead", "不需要：改用 torch 自带的注意力实现"),
        )
    if c.use_8bit_adam or c.optimizer_type.lower().startswith("paged") or c.optimizer_type.lower().endswith("8bit"):
        reason = why_no_8bit_adam(c.device)
        if reason:
            name = "use_8bit_adam" if c.use_8bit_adam else "optimizer_type"
            yield (
                (name,),
                say(
                    f"cannot work here ({reason}): the same without 8 bits is used instead",
                    f"在此无法使用（{reason}）：改用不带 8 位的同一种优化器",
                ),
            )
    changes_tags = c.shuffle_caption or c.caption_tag_dropout_rate > 0 or c.token_warmup_step > 0
    is_huber = c.loss_type in ("huber", "smooth_l1")
    no_effect = {  # option: (it acts, what it needs)
        "keep_tokens": (changes_tags, "shuffle_caption / caption_tag_dropout_rate / token_warmup_step"),
        "caption_separator": (changes_tags, "shuffle_caption / caption_tag_dropout_rate / token_warmup_step"),
        "token_warmup_min": (c.token_warmup_step > 0, "token_warmup_step"),
        "conv_alpha": (c.conv_dim is not None or c.conv_block_dims, "conv_dim"),
        "block_lr_zero_threshold": (
            c.down_lr_weight or c.mid_lr_weight or c.up_lr_weight,
            "down_lr_weight / mid_lr_weight / up_lr_weight",
        ),
        "conv_block_alphas": (c.conv_block_dims or c.conv_dim, "conv_block_dims / conv_dim"),
        "include_patterns": (c.exclude_patterns, "exclude_patterns"),
        "skip_until_initial_step": (c.initial_step, "initial_step"),
        "base_weights_multiplier": (c.base_weights, "base_weights"),
        "loraplus_unet_lr_ratio": (trains_unet(c), "unet_lr"),
        "loraplus_text_encoder_lr_ratio": (trains_text_encoder(c), "text_encoder_lr"),
        "stop_text_encoder_training": (trains_text_encoder(c), "text_encoder_lr"),
        **dict.fromkeys(
            ("block_dims", "block_alphas", "conv_block_dims", "down_lr_weight", "mid_lr_weight", "up_lr_weight"),
            (trains_unet(c), "unet_lr"),
        ),
        "lokr_factor": (c.network_module == "lokr", 'network_module = "lokr"'),
        "lr_scheduler_num_cycles": (
            c.lr_scheduler in ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
            'lr_scheduler = "cosine_with_restarts"',
        ),
        "lr_decay_steps": (c.lr_scheduler == "warmup_stable_decay", 'lr_scheduler = "warmup_stable_decay"'),
        "lr_scheduler_timescale": (c.lr_scheduler == "inverse_sqrt", 'lr_scheduler = "inverse_sqrt"'),
        "lr_scheduler_min_lr_ratio": (
            c.lr_scheduler in ("cosine_with_min_lr", "warmup_stable_decay"),
            'lr_scheduler = "cosine_with_min_lr"',
        ),
        "lr_scheduler_args": (
            c.lr_scheduler_type or c.lr_scheduler == "piecewise_constant",
            "lr_scheduler_type",
        ),
        "noise_offset_random_strength": (c.noise_offset, "noise_offset"),
        "multires_noise_discount": (c.multires_noise_iterations, "multires_noise_iterations"),
        "ip_noise_gamma_random_strength": (c.ip_noise_gamma, "ip_noise_gamma"),
        "huber_schedule": (is_huber, 'loss_type = "huber"'),
        "huber_c": (is_huber, 'loss_type = "huber"'),
        "huber_scale": (is_huber and c.huber_schedule != "snr", 'huber_schedule = "exponential"'),
        "lr_scheduler_power": (c.lr_scheduler == "polynomial", 'lr_scheduler = "polynomial"'),
        "save_last_n_epochs": (c.save_every_n_epochs is not None, "save_every_n_epochs"),
        "save_last_n_epochs_state": (c.save_state and c.save_every_n_epochs, "save_state / save_every_n_epochs"),
        "save_last_n_steps": (c.save_every_n_steps, "save_every_n_steps"),
        "save_last_n_steps_state": (c.save_state and c.save_every_n_steps, "save_state / save_every_n_steps"),
        "vae_batch_size": (c.cache_latents, "cache_latents"),
        "ddp_timeout": (
            c.num_processes > 1 or c.num_machines > 1 or os.environ.get("WORLD_SIZE", "1") != "1",
            "num_processes",
        ),
        "log_prefix": (c.logging_dir, "logging_dir"),
        "log_tracker_name": (c.logging_dir or c.log_with, "logging_dir"),
        "log_tracker_config": (c.logging_dir or c.log_with, "logging_dir"),
        "log_config": (c.logging_dir or c.log_with, "logging_dir"),
        "wandb_run_name": (c.log_with in ("wandb", "all"), 'log_with = "wandb"'),
        "wandb_api_key": (c.log_with in ("wandb", "all"), 'log_with = "wandb"'),
        "cache_dir": (c.cache_latents and c.cache_latents_to_disk, "cache_latents_to_disk"),
        "sort_tag_occurrence_alphabetically": (c.tag_occurrence_txt_file, "tag_occurrence_txt_file"),
        "prior_loss_weight": (c.reg_data_dir or c.dataset_config, "reg_data_dir"),
        "reg_captions": (c.reg_data_dir or c.dataset_config, "reg_data_dir"),
        "reg_rotate": (c.reg_data_dir or c.dataset_config, "reg_data_dir"),
        "dataset_repeats": (c.dataset_config or c.in_json, "in_json"),
        "conditioning_data_dir": (c.masked_loss is not False, "masked_loss"),
        **dict.fromkeys(
            ("validation_seed", "validate_every_n_epochs", "validate_every_n_steps", "max_validation_steps")
            + ("early_stop",),
            (c.validation_split or c.validation_data_dir, "validation_split"),
        ),
        "min_bucket_reso": (c.enable_bucket, "enable_bucket"),
        "max_bucket_reso": (c.enable_bucket, "enable_bucket"),
        "bucket_no_upscale": (c.enable_bucket, "enable_bucket"),
    }
    for name, (acts, needed) in no_effect.items():
        if name in changed and not acts:
            yield (name,), say(f"has no effect without {needed}", f"没有 {needed} 就不起作用")
    if c.initial_step and c.initial_epoch:
        yield (
            ("initial_step", "initial_epoch"),
            say(
                f"goes before initial_epoch = {c.initial_epoch}",
                f"优先于 initial_epoch = {c.initial_epoch}",
            ),
        )
    for name in ("initial_epoch", "initial_step"):
        if getattr(c, name) and c.resume not in (None, "auto", "new"):
            yield (
                (name, "resume"),
                say("has no effect: the state given as resume says it", "不起作用：resume 的训练状态已含进度"),
            )
    if c.weighted_captions and changes_tags:
        yield (
            ("weighted_captions",),
            say(
                "and tags that are moved or left out: no bracket may hold a comma, or it is torn apart; write "
                "(red hair:1.2), (smile:1.2)",
                "与打乱或丢弃标签同用时，括号内不能有逗号，否则会被拆散；请写成 (red hair:1.2), (smile:1.2)",
            ),
        )
    if c.no_half_vae and c.mixed_precision in ("no", "fp16"):
        yield (
            ("no_half_vae", "mixed_precision"),
            say(
                f'has no effect with mixed_precision = "{c.mixed_precision}": the VAE computes in float32 already',
                f'在 mixed_precision = "{c.mixed_precision}" 时不起作用：VAE 本来就以 float32 计算',
            ),
        )
    if c.save_n_epoch_ratio and "save_every_n_epochs" in changed:
        yield (
            ("save_n_epoch_ratio", "save_every_n_epochs"),
            say(
                f"goes before save_every_n_epochs = {c.save_every_n_epochs}",
                f"优先于 save_every_n_epochs = {c.save_every_n_epochs}",
            ),
        )
    if c.save_state_on_train_end and c.save_state:
        yield (
            ("save_state_on_train_end", "save_state"),
            say("has no effect: save_state does it, too", "不起作用：save_state 已包含它"),
        )
    if c.reg_data_dir and c.prior_loss_weight == 0:
        yield (
            ("prior_loss_weight",),
            say(
                "leaves the regularization images without effect, they only take time; "
                "set reg_data_dir to None instead",
                "使正则化图片不起作用，只花时间；请改把 reg_data_dir 设为 None",
            ),
        )
    paths = ["pretrained_model_name_or_path", *([] if c.dataset_config else ["train_data_dir", "reg_data_dir"])]
    miniature = [name for name in paths if _is_delivered(c, name)]
    if miniature and "train_data_dir" not in miniature:
        for name in miniature:
            yield (
                (name, "train_data_dir"),
                Note(
                    say(
                        "is still the built-in miniature's, which does not go with your training set",
                        "仍是自带的微型模型所用的，与你的训练集不相配",
                    ),
                    "red",
                ),
            )
    if c.v2 and (c.clip_skip or 1) > 1:
        yield ("clip_skip", "v2"), say("is not usual with SD 2.x, leave it None", "一般不用于 SD 2.x，请填 None")
    if c.resume not in (None, "auto", "new") and c.network_weights:
        yield (
            ("network_weights", "resume"),
            say("is replaced by the state given as resume", "会被 resume 的训练状态取代"),
        )


def _is_delivered(config: Config, name: str) -> bool:
    """Whether a path is still the one of the built-in miniature."""
    value, delivered = getattr(config, name), OPTIONS[name].default
    return None not in (value, delivered) and os.path.abspath(value) == str(PROJECT / delivered)


def why_no_8bit_adam(device: str = "auto") -> str | None:
    """The reason why 8-bit Adam cannot run here, as far as it shows before torch is imported; None where it may."""
    if device in ("cpu", "mps"):
        return say(f"device {device}", f"设备为 {device}")
    try:
        build = importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        build = ""
    if build.startswith(("rocm", "cpu")):
        return say(f"torch is a {build} build", f"torch 是 {build} 版本")
    if importlib.util.find_spec("bitsandbytes") is None:
        return say("the package bitsandbytes is not installed", "没有安装 bitsandbytes")
    return None


def _unknown(name: str, where: dict[str, str], declared: Declared) -> str:
    is_flag = where.get(name, "").startswith("--")
    meant = nearest(name, declared.options)
    meant = f"--{meant}" if meant and is_flag else meant
    hint = say(f" Did you mean {meant}?", f"是不是 {meant}？") if meant else ""
    if is_flag:
        return say(f"--{name}: there is no such flag.{hint}", f"--{name}：没有这个参数。{hint}")
    return say(
        f"{place(name, where)}: there is no such parameter.{hint}", f"{place(name, where)}：没有这个参数。{hint}"
    )
