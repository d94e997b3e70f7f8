"""The command line: flags to values, and values to the command that gives them again.

`--name value` for every option of config; `--name` alone switches on, `--no-name` off; `--name none` where None is
possible. Unknown flags keep their values: `sd_scripts` may know them, else `checks.check` says so with everything else.
This is read by hand because argparse stops at the first mistake, in English, and cannot say `none`.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from library.messages import say
from library.options import config_files, scripts
from library.options.checks import ConfigError, as_number, choose_language, from_text
from library.options.declaration import PROJECT, Value, Values, Where
from library.options.training import GROUPS, OPTIONS, SECRETS, Config

OWN = {"help", "config_file", "output_config"}  # flags that are no options of the training
FLAGS = {name: option for name, option in OPTIONS.items() if option.is_flag}


def parse(argv: list[str]) -> tuple[Values, Where]:
    """Values by name, and where each was given ("--name", "x.toml:3"), for sd_scripts.translate and checks.check.

    `--config_file x.toml` or `x.json` is read, the flags beside it win; `--help` prints the flags and ends the program.
    Sets the language of messages. Of a flag given twice the last counts.

    Raises:
        ConfigError: the file cannot be read, or a word stands before the first flag.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text())  # noqa: T201  # what was asked for, no message
        raise SystemExit(0)
    values: Values = {}
    where: Where = {}
    for name, words in _flags(argv):
        switched_off = name.removeprefix("no_")
        if name not in OPTIONS and switched_off in OPTIONS and bool in OPTIONS[switched_off].kinds and not words:
            name = switched_off
            values[name] = False
        else:
            values[name] = _value(name, words)
        where[name] = f"--{name}"
    choose_language(values)
    if "config_file" in values:
        where.pop("config_file")
        file_values, file_where = config_files.read_values(config_file(str(values.pop("config_file"))))
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
            raise ConfigError([say(f'"{word}" comes before the first --flag', f'"{word}" 前面没有 --参数名')])
        else:
            words.append(word)
    if name is not None:
        yield name, words


def _value(name: str, words: list[str]) -> Value:
    """What the words behind a flag mean. A list where one word was expected is for `checks.check` to refuse."""
    known = name in OPTIONS
    if known and list in OPTIONS[name].kinds:
        return None if [word.lower() for word in words] == ["none"] else words
    if not words and (not known or bool in OPTIONS[name].kinds):
        return True
    read = [from_text(name, word) if known else _guess(word) for word in words]
    return read[0] if len(read) == 1 else read


def _guess(word: str) -> Value:
    """The value of a flag we do not know: sd_scripts may."""
    named = {"true": True, "false": False, "none": None}
    return named[word.lower()] if word.lower() in named else as_number(word)


def output_of(argv: list[str]) -> tuple[list[str], Path | None]:
    """The flags without `--config_file x.toml --output_config`, and the file that these ask for; None: they do not.

    Raises:
        ConfigError: `--output_config` stands without a file.
    """
    if "--output_config" not in argv:
        return argv, None
    rest, file = [], None
    for name, words in _flags(argv):
        if name == "config_file" and words:
            file = config_file(words[0])
        elif name != "output_config":
            rest += [f"--{name}={words[0]}", *words[1:]] if words else [f"--{name}"]
    if file is None:
        problem = say(
            "--output_config needs --config_file x.toml: the file to write",
            "--output_config 需要 --config_file x.toml：要写入的文件",
        )
        raise ConfigError([problem])
    return rest, file


def config_file(name: str) -> Path:
    """The file of `--config_file`; ".toml" may be omitted, as in sd-scripts."""
    file = Path(name)
    endings = (".toml", ".json", *scripts.OF_SHELLS, *config_files.OF_OTHERS)
    return file if file.suffix.lower() in endings or file.is_file() else Path(f"{file}.toml")


def write_config(config: Config, file: Path) -> None:
    """Write a configuration for `--config_file` to read again; never over another file. Raises ConfigError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(
                config_files.as_json(config) if file.suffix.lower() == ".json" else config_files.as_toml(config)
            )
    except FileExistsError as error:
        problem = say(
            f"--output_config: {file} exists already. Choose another name, or move it away",
            f"--output_config：{file} 已存在。请换一个名称，或先移走它",
        )
        raise ConfigError([problem]) from error
    except OSError as error:
        reason = error.strerror or error
        problem = say(
            f"--output_config: {file} cannot be written ({reason})", f"--output_config：{file} 无法写入（{reason}）"
        )
        raise ConfigError([problem]) from error


def to_arguments(config: Config, **instead: Value) -> list[str]:
    """The flags that give this configuration again: all of the group "must", of the others what is not default.

    Args:
        instead: options that are to have another value.
    """
    arguments = []
    for name, option in FLAGS.items():
        value = instead.get(name, getattr(config, name))
        if name in SECRETS or (value == option.default and option.group != "must"):
            continue
        if value is False:
            arguments.append(f"--no-{name}")
        elif value is True:
            arguments.append(f"--{name}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif str(value).startswith("-"):
            arguments.append(f"--{name}={value}")
        else:
            arguments += [f"--{name}", "none" if value is None else str(value)]
    return arguments


def command(config: Config, **instead: Value) -> str:
    """The line that starts the same run from a shell, quoted for this system's; see `to_arguments`."""
    folders = {os.path.normcase(os.path.dirname(path)) for path in (shutil.which("python") or "", sys.executable)}
    python = "python" if len(folders) == 1 else sys.executable
    script = "train_network.py" if Path.cwd() == PROJECT else str(PROJECT / "train_network.py")
    words = [python, script, *to_arguments(config, **instead)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def help_text() -> str:
    """Every flag in both languages, by group."""
    lines = [
        "python train_network.py --name value ...",
        "",
        "  --name / --no-name: on / off | 开 / 关",
        "  --name none: the value None | 值 None",
        "  --config_file x.toml (x.json): read values from a file; flags beside it win | 从文件读取参数，命令行优先",
        "  --config_file x.toml --output_config: write them into it instead | 改为把参数写入该文件",
    ]
    for group, (english, chinese) in GROUPS.items():
        options = [option for option in FLAGS.values() if option.group == group]
        lines += ["", f"{english} | {chinese}"] if options else []
        for option in options:
            form = "[value ...]" if list in option.kinds else "" if option.kinds == {bool} else "value"
            default = "none" if option.default is None else option.default
            lines.append(f"  --{option.name} {form}".ljust(45) + f" [{default}]")
            lines += [f"      {option.english}", f"      {option.chinese}"]
    return "\n".join(lines)
