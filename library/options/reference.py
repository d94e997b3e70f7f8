"""docs/parameters.md and docs/parameters.zh-CN.md: every option by group, with default, values and meaning.

Written from the declarations by `python -m library.options`; a test keeps them equal.
"""

import re
from types import NoneType

from library.options.declaration import PROJECT, AnyDeclared, Option
from library.options.parameter_block import literal
from library.options.sd_scripts import RENAMED, SWITCHES
from library.options.tools import TOOLS
from library.options.training import TRAINING

PAGES = {"english": PROJECT / "docs" / "parameters.md", "chinese": PROJECT / "docs" / "parameters.zh-CN.md"}

INTRODUCTION = {
    "english": """# Parameters

[中文](parameters.zh-CN.md)

Those in **bold** stand in `lora_train_command_line.py` as delivered; any other can be added there as a line of its own.
`python train_network.py --name value` takes all of them but the last group. Names are those of sd-scripts.
""",
    "chinese": """# 参数

[English](parameters.md)

**粗体**的参数在 `lora_train_command_line.py` 里已经列出；其他参数可以自己加一行。除最后一组外，都可以写成
`python train_network.py --参数名 值`。参数名与 sd-scripts 相同。
""",
}
HEADS = {"english": "parameter | default | values | meaning", "chinese": "参数 | 默认值 | 取值 | 含义"}
TOOLS_HEADING = {"english": "Scripts in tools/", "chinese": "tools/ 里的脚本"}
OTHER_NAMES = {
    "english": (
        "Names of other trainers",
        "Understood wherever values are given, and answered with the present name. Whatever else sd-scripts knows is "
        "named at the start with the reason why it has no effect or is not offered.",
        "other name | present form",
    ),
    "chinese": (
        "其他训练器的参数名",
        "在任何填写参数的地方都能识别，并会提示现在的写法。sd-scripts 的其余参数如果不起作用或没有提供，"
        "启动时会说明原因。",
        "其他名称 | 现在的写法",
    ),
}
KINDS = {  # kind of value -> what it is called
    int: {"english": "whole number", "chinese": "整数"},
    float: {"english": "number", "chinese": "数"},
    str: {"english": "text", "chinese": "文字"},
    list: {"english": "list", "chinese": "列表"},
}
PATHS = {  # see `declaration.option`
    "file": {"english": "file", "chinese": "文件"},
    "folder": {"english": "folder", "chinese": "目录"},
    "model": {"english": "file or folder", "chinese": "文件或目录"},
    "image": {"english": "image file", "chinese": "图片文件"},
    "prompts": {"english": "file or text", "chinese": "文件或文字"},
    "output": {"english": "folder", "chinese": "目录"},
    "new file": {"english": "file", "chinese": "文件"},
}


def page(language: str) -> str:
    """The whole page in a language: "english" or "chinese"."""
    parts = [INTRODUCTION[language], *_tables(TRAINING, language, level="##"), f"## {TOOLS_HEADING[language]}\n"]
    for file, declared in TOOLS.items():
        parts += [f"### {file}\n", _purpose(declared, language), *_tables(declared, language, level="####")]
    return "\n".join([*parts, _other_names(language)])


def write_pages() -> None:
    for language, path in PAGES.items():
        path.write_text(page(language), encoding="utf-8", newline="\n")


def _tables(declared: AnyDeclared, language: str, level: str) -> list[str]:
    tables = []
    for group, (english, chinese) in declared.groups.items():
        options = declared.of_group(group)
        if options:
            rows = [_row(option, language, is_bold=declared is TRAINING and option.in_block) for option in options]
            heading = f"{level} {english if language == 'english' else chinese}"
            tables.append("\n".join([heading, "", f"| {HEADS[language]} |", "|---|---|---|---|", *rows, ""]))
    return tables


def _row(option: Option, language: str, is_bold: bool) -> str:
    name = f"**`{option.name}`**" if is_bold else f"`{option.name}`"
    meaning = option.english if language == "english" else option.chinese
    cells = [name, f"`{literal(option.in_script)}`", values_of(option, language), meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def values_of(option: Option, language: str) -> str:
    """What an option takes, with its limits: "whole number, 1~12; None"."""
    if option.choices:
        kinds = [f"`{literal(choice)}`" for choice in option.choices]
    elif bool in option.kinds:
        kinds = ["`True`", "`False`"]
    elif option.path:
        kinds = [PATHS[option.path][language]]
    else:
        listed = (kind for kind in KINDS if kind in option.kinds and not (kind is int and float in option.kinds))
        kinds = [KINDS[kind][language] for kind in listed]
    limits = _limits(option)
    none = "; `None`" if language == "english" else "；`None`"
    may_be_none = NoneType in option.kinds or option.shared
    return ", ".join([*kinds, *([limits] if limits else [])]) + (none if may_be_none else "")


def _limits(option: Option) -> str:
    low, high, above = option.minimum, option.maximum, option.above
    if low is not None and high is not None:
        return f"{_number(low)}~{_number(high)}"
    bounds = [(f"> {_number(above)}", above), (f"≥ {_number(low)}", low), (f"≤ {_number(high)}", high)]
    return ", ".join(text for text, bound in bounds if bound is not None)


def _number(value: float | None) -> str:
    return "" if value is None else str(value)


def _purpose(declared: AnyDeclared, language: str) -> str:
    """What a script is for, from the first lines of its file."""
    english, chinese = declared.title.strip().split("\n\n")
    if language == "english":
        return re.split(r" Edit the values| Run this file", english.replace("\n", " "))[0] + "\n"
    return re.split("修改下面|直接运行", chinese.replace("\n", ""))[0] + "\n"


def _other_names(language: str) -> str:
    heading, text, head = OTHER_NAMES[language]
    present = {old: f"`{new}`" for old, new in RENAMED.items()}
    present |= {old: f"`{new} = {literal(value)}`" for old, (new, value) in SWITCHES.items()}
    rows = [f"| `{old}` | {new} |" for old, new in sorted(present.items())]
    return "\n".join([f"## {heading}", "", text, "", f"| {head} |", "|---|---|", *rows, ""])
