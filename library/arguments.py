"""The command line and .toml files: flags to values, and values to the command that gives them again.

`--name value` for every option of config; `--name` alone switches on, `--no-name` off; `--name none` where None is
possible. Unknown flags keep their values: `kohya` may know them, else `checks.check` says so with everything else.
This is read by hand because argparse stops at the first mistake, in English, and cannot say `none`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from library.checks import ConfigError, as_number, choose_language, from_text
from library.config import GROUPS, KINDS, OPTIONS, PROJECT, Config
from library.messages import say

FLAGS = {name: option for name, option in OPTIONS.items() if option.metadata["flag"]}


def parse(argv: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by name, and where each was given ("--name", "x.toml:3"), for kohya.translate and checks.check.

    `--config_file x.toml` is read, the flags beside it win; `--help` prints the flags and ends the program.
    Sets the language of messages. Of a flag given twice the last counts.

    Raises:
        ConfigError: the .toml file cannot be read, or a word stands before the first flag.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text())
        raise SystemExit(0)
    values, where = {}, {}
    for name, words in _flags(argv):
        switched_off = name.removeprefix("no_")
        if name not in OPTIONS and switched_off in OPTIONS and bool in KINDS[switched_off] and not words:
            name, value = switched_off, False
        else:
            value = _value(name, words)
        values[name], where[name] = value, f"--{name}"
    choose_language(values)
    if "config_file" in values:
        where.pop("config_file")
        file_values, file_where = read_config_file(values.pop("config_file"))
        choose_language(file_values | values)
        values, where = file_values | values, file_where | where
    return values, where


def _flags(argv: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag (without --, with _ for -) and the words behind it."""
    name, words = None, []
    for word in argv:
        if word.startswith("--"):
            if name is not None:
                yield name, words
            name, equals, value = word[2:].partition("=")
            name, words = name.replace("-", "_"), [value] if equals else []
        elif name is None:
            raise ConfigError([say(f'"{word}" stands before the first --flag', f'"{word}" 前面没有 --参数名')])
        else:
            words.append(word)
    if name is not None:
        yield name, words


def _value(name: str, words: list[str]) -> Any:
    """What the words behind a flag mean. A list where one word was expected is for `checks.check` to refuse."""
    known = name in OPTIONS
    if known and list in KINDS[name]:
        return None if [word.lower() for word in words] == ["none"] else words
    if not words and (not known or bool in KINDS[name]):
        return True
    read = [from_text(name, word) if known else _guess(word) for word in words]
    return read[0] if len(read) == 1 else read


def _guess(word: str) -> Any:
    """The value of a flag we do not know: kohya may."""
    named = {"true": True, "false": False, "none": None}
    return named[word.lower()] if word.lower() in named else as_number(word)


def read_config_file(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a .toml file and where each stands. Sections are flattened as in sd-scripts; ".toml" may be omitted."""
    file = Path(str(path))
    if not file.is_file() and Path(f"{file}.toml").is_file():
        file = Path(f"{file}.toml")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError([say(f"--config_file {file} cannot be read", f"--config_file {file} 无法读取")]) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("gb18030", errors="replace")  # Chinese Windows editors
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+), column (\d+)", str(error))
        line, column = found.groups() if found else (text.count("\n") + 1, 1)  # "at end of document"
        at = f"{file.name}:{line}"
        problem = say(
            f"{at}: not valid TOML at column {column}: write name = value, texts in 'single quotes'",
            f"{at}：第 {column} 列不合 TOML 写法：应为 名称 = 值，文字放在 '单引号' 里",
        )
        raise ConfigError([problem]) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise ConfigError([say(f"{file.name} holds no parameters", f"{file.name} 里没有参数")]) from error
    values = {}
    for name, value in tables.items():
        values |= value if isinstance(value, dict) else {name: value}
    return values, {name: f"{file.name}:{_line_of(name, text)}" for name in values}


def _line_of(name: str, text: str) -> int:
    found = re.search(rf"^[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*(=|\.|\])", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def to_arguments(config: Config) -> list[str]:
    """The flags that give this configuration again: all of the group "must", of the others what is not default."""
    arguments = []
    for name, option in FLAGS.items():
        value = getattr(config, name)
        if value == option.default and option.metadata["group"] != "must":
            continue
        if value is False:
            arguments.append(f"--no-{name}")
        elif value is True:
            arguments.append(f"--{name}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *value]
        elif str(value).startswith("-"):
            arguments.append(f"--{name}={value}")
        else:
            arguments += [f"--{name}", "none" if value is None else str(value)]
    return arguments


def command(config: Config) -> str:
    """The line that starts the same run from a shell, quoted for this system's."""
    is_ours = os.path.dirname(shutil.which("python") or "") == os.path.dirname(sys.executable)
    python = "python" if is_ours else sys.executable
    script = "train_network.py" if Path.cwd() == PROJECT else str(PROJECT / "train_network.py")
    words = [python, script, *to_arguments(config)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def help_text() -> str:
    """Every flag in both languages, by group."""
    lines = [
        "python train_network.py --name value ...",
        "",
        "  --name / --no-name: on / off | 开 / 关",
        "  --name none: the value None | 值 None",
        "  --config_file x.toml: read values from a file; flags beside it win | 从文件读取参数，命令行优先",
    ]
    for group, (english, chinese) in GROUPS.items():
        options = [option for option in FLAGS.values() if option.metadata["group"] == group]
        lines += ["", f"{english} | {chinese}"] if options else []
        for option in options:
            kinds, limits = KINDS[option.name], option.metadata
            form = "[value ...]" if list in kinds else "" if kinds == {bool} else "value"
            default = "none" if option.default is None else option.default
            lines.append(f"  --{option.name} {form}".ljust(45) + f" [{default}]")
            lines += [f"      {limits['english']}", f"      {limits['chinese']}"]
    return "\n".join(lines)
