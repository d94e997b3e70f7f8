"""A single value: its type, limits and one spelling; and how a value and its place are told.

`checked` refuses with ValueError, whose text stands behind place, name and value.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

from library.messages import say, set_language
from library.options.declaration import AnyDeclared, Option, Scalar, Value, Values, Where
from library.options.training import OPTIONS, SECRETS, TRAINING

PAIR = re.compile(r"\s*(.+?)\s*=\s*([\d.]+(?:[eE]-?\d+)?)\s*(?:,|$)")  # pattern=number
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.safetensors)(?<!\.ckpt)")  # org/name


def place(name: str, where: Where) -> str:
    """How a line begins that speaks of an option: `--name`, or `file:line: name`."""
    at = where.get(name, "")
    if at.startswith("--"):
        return f"--{name}"
    return f"{at}: {name}" if at else name


def assignment(name: str, value: object, where: Where) -> str:
    """The same with its value: `--name value`, or `file:line: name = value`."""
    if not where.get(name, "").startswith("--"):
        return f"{place(name, where)} = {'...' if name in SECRETS else quoted(value)}"
    if name in SECRETS:
        return f"--{name} ..."
    values = value if isinstance(value, list) else [value]
    return " ".join([f"--{name}", *(quoted(value) for value in values)])


def quoted(value: object) -> str:
    """A value as the user would write it."""
    return f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)


def asks(value: object) -> bool:
    """Whether a value asks for something: None, False, 0 and "", also as text, do not."""
    value = as_number(value.strip()) if isinstance(value, str) else value
    return bool(value) and str(value).lower() not in ("none", "false")


def no_effect(names: list[str], reason: tuple[str, str], where: Where) -> str:
    """One line for all options that have no effect for the same reason, in English and Chinese."""
    others = [f"--{name}" if where.get(name, "").startswith("--") else name for name in names[1:]]
    listed = ", ".join([place(names[0], where), *others])
    verb = "has" if len(names) == 1 else "have"
    return say(f"{listed} {verb} no effect: {reason[0]}", f"{listed} 不起作用：{reason[1]}")


def nearest(name: str, names: Iterable[Scalar]) -> str | None:
    """The one of `names` that was most likely meant."""
    by_lower = {str(other).lower(): str(other) for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def choose_language(values: Values) -> None:
    """Speak the language that was asked for, before anything is said."""
    language = str(values.get("language", "auto")).lower()
    set_language("zh" if language.startswith(("zh", "cn")) else "en" if language.startswith("en") else "auto")


def from_text(name: str, text: str) -> Value:
    """The value that a text from the command line or a preset stands for; the text itself if it stands for none."""
    kinds, lower = OPTIONS[name].kinds, text.strip().lower()
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


def unknown(name: str, where: Where, declared: AnyDeclared) -> str:
    is_flag = where.get(name, "").startswith("--")
    meant = nearest(name, declared.options)
    meant = f"--{meant}" if meant and is_flag else meant
    hint = say(f" Did you mean {meant}?", f"是不是 {meant}？") if meant else ""
    if is_flag:
        return say(f"--{name}: there is no such flag.{hint}", f"--{name}：没有这个参数。{hint}")
    return say(
        f"{place(name, where)}: there is no such parameter.{hint}", f"{place(name, where)}：没有这个参数。{hint}"
    )


# ---- one value ----


def _refuse(english: str, chinese: str) -> NoReturn:
    """What is wrong with a value; `check` puts place, name and value before it."""
    raise ValueError(say(english, chinese))


def checked(name: str, value: object, where: Where, declared: AnyDeclared) -> Value:
    """The value in its one spelling."""
    option = declared.options[name]
    kinds = option.kinds
    if not option.is_flag and (
        where.get(name, "").startswith("--") or re.search(r"\.(toml|json):", where.get(name, ""))
    ):
        _refuse("is only for lora_train_command_line.py", "只能用在 lora_train_command_line.py 里")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if re.search("[\ud800-\udfff]", str(value)):  # no file of ours could hold it
        _refuse("contains bytes that are not UTF-8; type or name it again", "含有不是 UTF-8 的字节，请重新填写或改名")
    if NoneType in kinds and isinstance(value, str) and value.strip().lower() in ("", "none"):
        value = None  # None in quotes
    if value is None:
        return None if NoneType in kinds else _refuse_none(option)
    if kinds & {int, float} and isinstance(value, str):
        value = as_number(value)  # "1e-4": quotes do not change what is meant
    if name in OWN_FORM and kinds != {int}:  # a tool's resolution may be a plain number
        return OWN_FORM[name](value)
    if list in kinds and (isinstance(value, (list, tuple)) or not kinds & {int, float}):
        items = _list(value, option, splits=declared is TRAINING)
        is_one = bool(kinds & {int, float}) and len(set(items)) == 1  # the same for all
        return items[0] if is_one else items or None
    if isinstance(value, (list, tuple)):
        _one_value(value)
    if option.choices:
        return _choice(value, option.choices)
    if bool in kinds:
        return _switch(value)
    if name == "learning_rate" and value == 0 and not isinstance(value, bool):
        _refuse("is not above 0", "必须大于 0")  # elsewhere 0 means "not given"; here it could mean "freeze"
    if kinds & {int, float}:
        is_auto = option.default == "auto" and str(value).strip().lower() == "auto"
        return "auto" if is_auto else _number(value, option)
    if not isinstance(value, str):
        _refuse(f'is not text; put it in quotes: "{value}"', f'不是文字；请加引号："{value}"')
    if option.path:
        return _path(value, option.path)
    if value == "" and option.default and name != "output_name":
        _refuse(f"is empty; the default is {quoted(option.default)}", f"是空的；默认值是 {quoted(option.default)}")
    return _file_name(value) if name in ("output_name", "concept") else value


def _refuse_none(option: Option) -> NoReturn:
    usual = quoted(option.default)
    _refuse(f"is not allowed here; the default is {usual}", f"不能用于此参数；默认值是 {usual}")


def _number(value: object, option: Option, *, in_list: bool = False) -> int | float | None:
    kinds = {option.item} if in_list else option.kinds
    number = _finite(value, whole=float not in kinds)
    low, high, above = option.minimum, option.maximum, option.above
    if (low is None or number >= low) and (high is None or number <= high) and (above is None or number > above):
        return number
    if number == 0 and NoneType in kinds:
        return None  # save every 0 epochs, 0 steps instead of epochs: not at all
    if above is not None:
        _refuse(f"is not above {above:g}", f"必须大于 {above:g}")
    if low is not None and high is None:
        _refuse(f"is below {low:g}, the least possible", f"小于允许的最小值 {low:g}")
    _refuse(f"is not between {low} and {high}", f"不在 {low} 到 {high} 之间")


def _finite(value: object, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _refuse("is not a number", "不是数字")
    if not whole:
        return float(value)
    if value != int(value):
        _refuse("is not a whole number", "不是整数")
    return int(value)


def _switch(value: object) -> bool:
    if isinstance(value, (bool, int, float)) and value in (True, False):  # 1 and 0 as well
        return value == 1
    if str(value).strip().lower() in ("true", "false", "1", "0"):  # in quotes
        return str(value).strip().lower() in ("true", "1")
    _refuse("is neither True nor False", "不是 True 或 False")


def _choice(value: object, choices: tuple[Scalar, ...]) -> Scalar:
    for choice in choices:
        if str(value).lower() == str(choice).lower():
            return choice
    meant = nearest(str(value), choices)
    hint = say(f" Did you mean {quoted(meant)}?", f"是不是 {quoted(meant)}？") if meant else ""
    listed = ", ".join(quoted(choice) for choice in choices)
    _refuse(f"is not one of {listed}.{hint}", f"不在可选值之内：{listed}。{hint}")


def _one_value(value: list[object] | tuple[object, ...]) -> NoReturn:
    if not value:
        _refuse("has no value", "没有填值")
    _refuse(
        f"are {len(value)} values, one is expected; put quotes around a text with spaces",
        f"是 {len(value)} 个值，只能填一个；含空格的文字要加引号",
    )


def _list(value: object, option: Option, *, splits: bool) -> list[Any]:
    """A list of texts or of numbers; one text alone is a list of it, or of its words where flags are written so."""
    items = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str) and splits and not option.path:
        items = value.split()
    if option.item in (int, float):
        items = [part for one in items for part in (one.strip(",").split(",") if isinstance(one, str) else [one])]
        numbers = (as_number(one) if isinstance(one, str) else one for one in items)
        return [_number(one, option, in_list=True) for one in numbers]
    texts = [one for one in items if isinstance(one, str)]
    if len(texts) < len(items):
        _refuse('is not a list of texts such as ["a", "b"]', '不是文字列表，应如 ["a", "b"]')
    if option.path:
        return [_path(one, option.path) for one in texts]
    if option.name in ("network_reg_dims", "network_reg_lrs"):
        return [pair for one in texts for pair in _pairs(one, whole=option.name == "network_reg_dims")]
    if option.name.endswith("_patterns"):
        return [_pattern(one) for one in texts]
    for one in texts if option.name in ("optimizer_args", "lr_scheduler_args") else ():
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", one, re.DOTALL):
            _refuse(f'contains "{one}", which is not name=value', f'中的 "{one}" 不是 名称=值 的形式')
    return texts


def _pairs(text: str, whole: bool) -> list[str]:
    """ "a.*=8,b=4" as ["a.*=8", "b=4"]; a pattern may hold commas, as "x{1,2}=4" does."""
    pairs, at = [], 0
    while at < len(text):
        found = PAIR.match(text, at)
        number = as_number(found[2]) if found else ""
        if found is None or isinstance(number, str) or (whole and number != int(number)):
            kind, kind_zh = ("whole number", "整数") if whole else ("number", "数字")
            rest = text[at:]
            _refuse(f'contains "{rest}", which is not pattern={kind}', f'中的 "{rest}" 不是 模式={kind_zh} 的形式')
        pairs.append(f"{_pattern(found[1])}={found[2]}")
        at = found.end()
    return pairs


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        _refuse(
            f'contains "{text}", which is not a valid regular expression ({error})',
            f'中的 "{text}" 不是正则表达式（{error}）',
        )
    return text


def _block_weights(value: object, *, takes_preset: bool) -> str:
    """Factors for the blocks of one side, "0.5,1,1", or a preset such as "cosine" or "linear+0.25"."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).strip()
    number = r"(\d+\.?\d*|\.\d+)([eE]-?\d+)?"
    if re.fullmatch(rf"\s*({number})?\s*(,\s*({number})?\s*)*", text):
        return re.sub(r"\s", "", text)
    presets = ("cosine", "sine", "linear", "reverse_linear", "zeros")
    if re.fullmatch(rf"({'|'.join(presets)})(\+{number})?", text) and takes_preset:
        return text
    or_en = "" if not takes_preset else f", nor one of {', '.join(presets)}, which may be followed by +0.25"
    or_zh = "" if not takes_preset else f"，也不是 {'、'.join(presets)}（后面可加 +0.25）"
    _refuse(f"is not a list of numbers such as 0.5,1,1{or_en}", f"不是 0.5,1,1 这样的数字列表{or_zh}")


def _face_range(value: object) -> str:
    """ "fewest,most"."""
    numbers = re.split("[,，]", value) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else ()
    try:
        fewest, most = (_finite(as_number(one) if isinstance(one, str) else one, whole=False) for one in numbers)
    except (TypeError, ValueError):
        fewest, most = 0.0, 0.0
    if not 0 < fewest <= most:
        _refuse('is not a range such as "2.0,4.0"', '不是 "2.0,4.0" 这样的范围')
    return f"{fewest:g},{most:g}"


def _resolution(value: object, *, takes_auto: bool) -> int | str:
    """ "auto", the side of a square, or "width,height"."""
    if takes_auto and isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    given = re.split("[,，xX×]", value) if isinstance(value, str) else value
    try:
        listed = given if isinstance(given, (list, tuple)) else [given]
        sides = [int(_finite(as_number(side) if isinstance(side, str) else side, whole=True)) for side in listed]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(16 <= side <= 16384 for side in sides):
        auto, auto_zh = (' or "auto"', ' 或 "auto"') if takes_auto else ("", "")
        _refuse(
            f'is not a size: 512, "512,768" (width,height){auto}', f'不是尺寸：可填 512、"512,768"（宽,高）{auto_zh}'
        )
    return sides[0] if len(set(sides)) == 1 else f"{sides[0]},{sides[1]}"


def _steps_or_share(value: object) -> int | float:
    """Steps (int), or a share of all steps (float below 1)."""
    if isinstance(value, (list, tuple)):
        _one_value(value)
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else _finite(as_number(text), whole=False)
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or number < 0 or (number >= 1 and (number != int(number) or text.endswith("%"))):
        _refuse('is neither steps (100) nor a share (0.05, "5%")', '不是步数（100），也不是比例（0.05、"5%"）')
    return number if 0 < number < 1 else int(number)


OWN_FORM: dict[str, Callable[[object], Value]] = {  # options that are written in a way of their own
    "resolution": partial(_resolution, takes_auto=True),
    "skip_image_resolution": partial(_resolution, takes_auto=False),
    "face_crop_aug_range": _face_range,
    **dict.fromkeys(("down_lr_weight", "up_lr_weight"), partial(_block_weights, takes_preset=True)),
    "mid_lr_weight": partial(_block_weights, takes_preset=False),
    **dict.fromkeys(("lr_warmup_steps", "lr_decay_steps"), _steps_or_share),
    "stop_text_encoder_training": lambda value: _steps_or_share(value) or None,  # 0: other trainers' "never"
}

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def _file_name(value: str) -> str:
    """A name that every system takes, Windows included."""
    stem, ending = os.path.splitext(value)
    if ending.lower() in (".safetensors", ".ckpt", ".pt"):
        _refuse(f'has an extension; remove it: "{stem}"', f'带有扩展名；请去掉："{stem}"')
    bad = " ".join(sorted({quoted(letter) for letter in value if letter in '/\\:*?"<>|' or ord(letter) < 32}))
    if bad:
        _refuse(
            f"contains {bad}, which is not allowed in a file name; a folder goes into output_dir",
            f"含有文件名不能用的字符 {bad}；文件夹请写在 output_dir",
        )
    reserved = value.split(".")[0].strip().lower() in _RESERVED
    if reserved or not value.strip() or value != value.strip(" ").rstrip(".") or len(value.encode()) > 200:
        _refuse("is not a valid file name on every system; use another", "不能在所有系统上作文件名；请换一个")
    return value


# ---- paths ----

_TYPED = {"\a": r"\a", "\b": r"\b", "\t": r"\t", "\n": r"\n", "\v": r"\v", "\f": r"\f", "\r": r"\r"}
_TYPED |= {chr(n): f"\\{n}" for n in range(8) if n not in (7,)}


def _path(value: str, kind: str) -> str:
    """The path with `~` expanded; must fit `kind` (see option)."""
    control = next((letter for letter in value if ord(letter) < 32), None)
    if control:
        _refuse_escape(value, control)
    if kind == "image" and value.startswith("data:image/"):
        return value
    if kind == "prompts" and re.search(r"\s", value.strip()) and not re.search(r"\.(txt|toml|json)$", value.strip()):
        return value
    path = os.path.expanduser(value)
    if not path.strip():
        _refuse("is empty; set a path", "是空的；请填路径")
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)
    if is_file and kind in ("folder", "output"):
        _refuse("is a file; a folder is needed", "是文件；需要的是文件夹")
    if is_folder and kind in ("file", "image", "prompts", "new file"):
        _refuse("is a folder; a file is needed", "是文件夹；需要的是文件")
    if not (kind in ("output", "new file") or is_file or is_folder):
        _missing(path, is_hub_name=kind == "model" and bool(HUB_NAME.fullmatch(value)))
    if kind == "image":
        _thumbnail(path)
    return path


def _thumbnail(path: str) -> None:
    """Refuse what browsers would not show, and what would fill the header of a file."""
    if os.path.splitext(path)[1].lower() not in (".png", ".jpg", ".jpeg", ".webp", ".gif"):
        _refuse("is not a .png, .jpg, .webp or .gif", "不是 .png、.jpg、.webp 或 .gif 图片")
    if os.path.getsize(path) > 2**24:
        _refuse("is larger than 16 MiB; make it smaller, 512 pixels are enough", "超过 16 MiB；请缩小，512 像素足够")


def _missing(path: str, is_hub_name: bool) -> NoReturn:
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
        there = folder.joinpath(meant, *rest)
        _refuse(f'{english} Did you mean "{there}"?', f'{chinese}是不是 "{there}"？')
    if is_hub_name:
        _refuse(
            "is not on this machine, and nothing is downloaded: use a .safetensors file or a diffusers folder",
            "不在本机，程序不会下载模型：请填 .safetensors 文件或 diffusers 文件夹的路径",
        )
    _refuse(english, chinese)


def _refuse_escape(path: str, control: str) -> NoReturn:
    """Of "C:\\new" in plain quotes: \\n is a line break."""
    known = {"\n": ("a line break", "换行符"), "\t": ("a tab", "制表符")}
    english, chinese = known.get(control, ("a control character", "控制字符"))
    typed = "".join(_TYPED.get(letter, letter) for letter in path)
    _refuse(
        f"contains {english}, because \\ in plain quotes is special: "
        f"""write it with / or as r"{typed}" (in .toml: '{typed}')""",
        f"中含有{chinese}，因为普通引号里的 \\ 有特殊含义："
        f"""请用 / 代替，或写成 r"{typed}"（.toml 里写 '{typed}'）""",
    )
