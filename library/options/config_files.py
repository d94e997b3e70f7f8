"""Files of values: presets and configurations, .toml or .json, with the line where each value stands.

What is written is read back to the same configuration. Both the command line and the parameter block read such files.
"""

import dataclasses
import json
import re
import tomllib
from pathlib import Path

from library import text_encoding
from library.messages import say
from library.options.checks import ConfigError, from_text
from library.options.declaration import Value, Values, Where
from library.options.file_layouts import describes_data_sets, parameters
from library.options.scripts import OF_SHELLS, is_of_a_shell
from library.options.training import GROUPS, OPTIONS, SECRETS, Config

OF_OTHERS = (".yaml", ".yml", ".py", ".txt")  # files in which other programs keep values


def read_values(path: str | Path) -> tuple[Values, Where]:
    """The values of a file, ours or another trainer's, and where each stands: "x.toml:3".

    Sections are flattened as in sd-scripts, and data sets beside them are its `dataset_config`. A text stands for what
    it would on a command line ("1e-4", "true"), and an empty one for nothing: windows write so.

    Raises:
        ConfigError: the file cannot be read.
    """
    tables, text = tables_of(path := Path(path))
    values = parameters(tables)
    values = {
        name: from_text(name, value) if isinstance(value, str) and name in OPTIONS else value
        for name, value in values.items()
        if not (isinstance(value, str) and not value.strip())
    }
    where = {name: f"{path.name}:{_line_of(name, text)}" for name in values}
    if describes_data_sets(tables) and "dataset_config" not in values:
        key = "datasets" if "datasets" in tables else "subsets"
        values["dataset_config"], where["dataset_config"] = str(path), f"{path.name}:{_line_of(key, text)}"
    return values, where


def tables_of(path: Path) -> tuple[Values, str]:
    """What a .toml or .json file holds, as it is nested, and its text. Raises ConfigError."""
    if path.suffix.lower() in OF_SHELLS:
        raise ConfigError([is_of_a_shell(path.name)])
    if path.suffix.lower() in OF_OTHERS:
        raise ConfigError([_is_no_list(path)])
    try:
        raw = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError([say(f"{path} cannot be read ({reason})", f"{path} 无法读取（{reason}）")]) from error
    try:
        tables, text = _json(path.name, raw) if path.suffix.lower() == ".json" else _toml(path.name, raw)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise ConfigError([say(f"{path.name} contains no parameters", f"{path.name} 里没有参数")]) from error
    if not isinstance(tables, dict):
        raise ConfigError([say(f"{path.name} contains no parameters", f"{path.name} 里没有参数")])
    return tables, text


def _toml(name: str, raw: bytes) -> tuple[Values, str]:
    reading = text_encoding.read(raw)
    text = reading.text if reading else raw.decode("utf-8-sig", errors="replace")
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+), column (\d+)", str(error))
        line, column = found.groups() if found else (text.count("\n") + 1, 1)  # "at end of document"
        at = f"{name}:{line}"
        problem = say(
            f"{at}: not valid TOML at column {column}: write name = value, with text in 'single quotes'",
            f"{at}：第 {column} 列不合 TOML 写法：应为 名称 = 值，文字放在 '单引号' 里",
        )
        raise ConfigError([problem]) from error


def _json(name: str, raw: bytes) -> tuple[Values, str]:
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text), text
    except UnicodeDecodeError as error:
        raise ConfigError([say(f"{name} is not UTF-8 text", f"{name} 不是 UTF-8 文本")]) from error
    except json.JSONDecodeError as error:
        at = f"{name}:{error.lineno}"
        raise ConfigError(
            [say(f"{at}: not valid JSON at column {error.colno}", f"{at}：第 {error.colno} 列不合 JSON 写法")]
        ) from error


def _line_of(name: str, text: str) -> int:
    header = r"(?:\[{1,2}[\w.-]*?\b)?"
    found = re.search(rf"^[ \t]*{header}[\"']?{re.escape(name)}[\"']?[ \t]*(=|:|\.|\])", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def values_of(config: Config) -> Values:
    """What a file holds of a configuration: every option that `train_network.py` takes, but no secret."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if OPTIONS[name].is_flag and name not in SECRETS
    }


def as_json(config: Config) -> str:
    """The text of a .json that `read_values` gives back as this configuration."""
    return json.dumps(values_of(config), ensure_ascii=False, indent=1)


def as_toml(config: Config) -> str:
    """The text of a .toml that `read_values` gives back as this configuration; by groups, with what each is."""
    values, lines = values_of(config), []
    for group, (english, chinese) in GROUPS.items():
        of_group = [name for name in values if OPTIONS[name].group == group]
        if not of_group:
            continue
        lines += [f"# ---- {english} | {chinese} ----"]
        for name in of_group:
            if values[name] is None and OPTIONS[name].default is None:  # TOML has no None, and needs none here
                lines.append(f"# {name} =")
            else:
                lines.append(f"{name} = {_literal(values[name])}")
        lines.append("")
    return "\n".join(lines)


def _literal(value: Value) -> str:
    """A value as TOML writes it; None as the text that is read as None."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value)


# ---- what is said ----


def _is_no_list(path: Path) -> str:
    return say(
        f"{path.name}: files of values are .toml or .json. Write what it sets as name = value into a .toml",
        f"{path.name}：参数文件只能是 .toml 或 .json。请把其中的设置以 名称 = 值 的形式写进 .toml",
    )
