"""The parameter block: written from what config declares, read with its line numbers; presets and the queue of runs.

The block is written by `write_blocks`, so it always shows every option with its texts; the user then edits values only.
The scripts in tools/ have blocks of the same form, declared in `tools` and run by `run_tool`.
"""

import ast
import json
import os
import re
import sys
import tokenize
import traceback
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from warnings import catch_warnings

from library import files
from library.messages import UserError, exit_code, log, plural, say
from library.options import config_files, sd_scripts, shared, subject_presets
from library.options.checks import ConfigError, check, check_tool, choose_language, is_delivered, place
from library.options.declaration import (
    PROJECT,
    AnyDeclared,
    Declared,
    Given,
    Option,
    Scalar,
    Settings,
    Value,
    Values,
    Where,
)
from library.options.tools import TOOLS
from library.options.training import OPTIONS, TRAINING, Config

MARK = "# ---- Do not edit below | 请勿修改下方内容 ----"
HEADER = """
# Values are Python: 512, 10 * 2, 1e-4, "text", True, False, None (not given).
# Windows paths need the r: r"D:\\pictures\\train", or / for \\: "D:/pictures/train".
# SyntaxError at the start? A missing quote, “ ” ， for " , or \\ without r: python tools/doctor.py says which.
#
# 参数值用 Python 写法：512、10 * 2、1e-4、"文字"、True、False、None（不填）。
# Windows 路径前面要加 r：r"D:\\图片\\训练集"，或用 / 代替 \\："D:/图片/训练集"。
# 启动时报 SyntaxError？多半是漏了引号、用了中文标点 “ ” ， 或路径没加 r：python tools/doctor.py 会用中文指出来。
#
# fmt: off
"""
MAIN = "lora_train_command_line.py"
OF_PRESETS = {name for name, option in OPTIONS.items() if not option.is_flag}

Train = Callable[[Config, list[str]], int]  # trains, prints the warnings first; gives the exit code


# ---- writing ----


def block_text(declared: AnyDeclared = TRAINING) -> str:
    """The block as delivered, from the script's first line up to and with the line that ends it."""
    lines = [f'"""{declared.title}"""', HEADER]
    for group, (english, chinese) in declared.groups.items():
        options = [option for option in declared.of_group(group) if option.in_block]
        if not options:
            continue
        lines.append(f"# ---- {english} | {chinese} ----")
        settings = [f"{option.name} = {'r' * takes_raw_text(option)}{literal(option.in_script)}" for option in options]
        width = min(36, max(map(len, settings)))  # one long name must not push all comments aside
        for setting, option in zip(settings, options, strict=True):
            lines.append(f"{setting:{width}}  # {option.english} | {option.chinese}")
        lines.append("")
    return "\n".join([*lines, "# fmt: on", MARK, ""])  # else no formatter would look at what stands below


def takes_raw_text(option: Option) -> bool:
    """Whether a default stands as r"...": else "C:\\Users" typed over it is a SyntaxError, which nothing can catch."""
    return isinstance(option.in_script, str) and bool(option.path or option.name.endswith("_dir"))


def literal(value: Value | tuple[Scalar, ...]) -> str:
    """A value as a person writes it in Python: double quotes, 1e-4."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):  # a list: as a default it must not be changed
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, float) and 0 < value < 1e-3:
        digits, exponent = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return repr(value)


def write_blocks() -> None:
    """Write the delivered blocks into all scripts that have one."""
    write_block(PROJECT / MAIN)
    for file, declared in TOOLS.items():
        write_block(PROJECT / "tools" / file, declared)


def write_block(script: str | Path, declared: AnyDeclared = TRAINING) -> None:
    """Write the delivered block into a script, over its own; what stands below the block stays."""
    script = Path(script)
    below = script.read_text(encoding="utf-8").partition(MARK + "\n")[2]
    script.write_text(block_text(declared) + below, encoding="utf-8", newline="\n")


# ---- reading ----


def read_block(script: str | Path, variables: Values) -> tuple[Values, Where, list[str]]:
    """The values of the block, where each stands ("file.py:41"), and warnings.

    Args:
        script: the file that holds the block.
        variables: what the file defines when run: its globals. Names that begin with _ are the user's own.
    """
    script = Path(script)
    where: Where = {}
    warnings = []
    typed: Values = {}
    with tokenize.open(script) as file:  # in the encoding that Python itself read it in
        source = file.read().partition(MARK)[0]
    for statement in parse(source).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            continue  # names of their own
        nodes = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]  # also within if, for and with
        names = [(node.id, node.lineno) for node in nodes if isinstance(node.ctx, ast.Store)]
        is_plain = isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign))
        for name, line in names:
            if name not in variables or name.startswith("_"):
                continue
            at = f"{script.name}:{line}"
            if name in where and is_plain:
                warnings.append(_is_set_again(f"{where[name]}: {name}", at))
            where[name] = at
            typed.pop(name, None)
            path = typed_path(source, statement.value) if isinstance(statement, ast.Assign) else None
            if path is not None and path != variables[name] and str(variables[name]).isprintable():  # else check tells
                typed[name] = path
                warnings.append(_is_read_as_typed(f"{at}: {name}", path))
    return {name: typed.get(name, variables[name]) for name in where}, where, warnings


def parse(source: str) -> ast.Module:
    """What Python makes of a block; what it warns of (\\p in quotes) it has said already, or the check will."""
    with catch_warnings(action="ignore"):
        return ast.parse(source)


def typed_path(source: str, node: ast.expr | None) -> str | None:
    """What stands in the plain quotes of a Windows path; Python reads "D:\\pics\\100_sks" as D:\\pics@_sks."""
    text = ast.get_source_segment(source, node) or "" if isinstance(node, ast.Constant) else ""
    found = re.fullmatch(r"""(["'])([A-Za-z]:\\(?!\\).*)\1""", text)
    return found[2] if found and "\\\\" not in found[2] else None


def check_syntax(script: str | Path) -> None:
    """Raise ConfigError where the block of a script is not Python: the script itself could not say so."""
    script = Path(script)
    with tokenize.open(script) as file:
        source = file.read().partition(MARK)[0]
    try:
        parse(source)
    except SyntaxError as error:
        raise ConfigError([_is_no_python(f"{script.name}:{error.lineno or 1}", error)]) from error


def variables_of(script: str | Path) -> Values:
    """What the block of a script defines, without running what stands below it. Raises ConfigError."""
    script = Path(script)
    try:
        with tokenize.open(script) as file:
            source, mark, _ = file.read().partition(MARK)
        if not mark:
            raise ConfigError([_has_no_block(script)])
        variables = {"__file__": str(script), "__name__": "block"}
        with catch_warnings(action="ignore"):
            code = compile(source, str(script), "exec")
        exec(code, variables)
    except ConfigError:
        raise
    except SyntaxError as error:  # also an encoding that is none
        raise ConfigError([_is_no_python(f"{script.name}:{error.lineno or 1}", error)]) from error
    except UnicodeDecodeError as error:
        problem = say(
            f"{script.name} is not UTF-8 text. Save it as UTF-8", f"{script.name} 不是 UTF-8 文本，请另存为 UTF-8"
        )
        raise ConfigError([problem]) from error
    except Exception as error:  # whatever the user's own lines bring up
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(script)), 1)
        raise ConfigError([_does_not_run(f"{script.name}:{line}", error)]) from error
    return variables


WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # endings of a model's file: no name for downloading


def with_absolute_paths(values: Values, folder: str | Path, declared: AnyDeclared = TRAINING) -> Values:
    """The same values with relative paths taken from `folder`, so that the script runs from anywhere."""
    values, options = dict(values), declared.options
    for name, value in values.items():
        kind = name in options and options[name].path
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not kind or not isinstance(value, str) or not value.isprintable() or value.strip().lower() in ("", "none"):
            continue
        if options[name].delivered == value:  # "auto"
            continue
        if value.startswith("~") or os.path.isabs(value) or PureWindowsPath(value).drive:
            continue
        path = os.path.join(folder, os.path.normpath(value))
        may_be_other = kind in ("model", "image", "prompts")  # a name for downloading, which check explains; a text
        is_file = kind == "model" and (value.startswith(".") or value.lower().endswith(WEIGHTS))
        if not may_be_other or is_file or os.path.exists(path):
            values[name] = path
    return values


# ---- presets ----


def load_preset(path: str | Path) -> tuple[Values, Where]:
    """Values of a preset, .json or .toml, ours or another trainer's, and where they stand. Raises ConfigError."""
    values, where = config_files.read_values(path)
    values = {name: value for name, value in values.items() if name not in OF_PRESETS}
    return values, {name: where[name] for name in values}


def save_preset(config: Config, folder: str | Path) -> Path:
    """Keep a configuration as a .json preset, named after the result; never over another one. Raises ConfigError."""
    path = files.free_path(Path(folder) / f"{config.output_name}.json")
    try:
        files.write(path, config_files.as_json(config).encode())
    except OSError as error:
        reason = error.strerror or error
        problem = say(
            f'save_json_folder = "{folder}" cannot be written ({reason}). Choose another folder, or None',
            f'save_json_folder = "{folder}" 无法写入（{reason}）。请换一个目录，或设为 None',
        )
        raise ConfigError([problem]) from error
    return path


# ---- running ----


def run_training(script: str | Path, variables: Values, train: Train) -> int:
    """Check the block and train; with multi_run_folder, train preset after preset. Gives the exit code.

    0: trained, or stopped and saved. 2: the user has something to put right, which was printed. 1: not every preset of
    the queue was trained.
    """

    def work() -> int:
        given = values_of(script, variables)
        if _is_path(given.values.get("multi_run_folder"), os.path.isdir) and not given.problems:
            return _run_queue(given, Path(script).resolve().parent, train)
        config, warnings = check(given.values, given.where, given.problems)
        if config.save_json_folder:
            save_preset(config, config.save_json_folder)
        return train(config, given.notices + warnings)

    return _run_program(work, script, variables)


def values_of(script: str | Path, variables: Values) -> Given:
    """All values of a script, those of its preset over its own."""
    values, where, notices = read_block(script, variables)
    values, where, more, problems = sd_scripts.translate(values, where)
    folder = Path(script).resolve().parent
    values, notices = with_absolute_paths(values, folder), notices + more
    if _is_path(values.get("load_json_path"), os.path.isfile):
        values, where, more, more_problems = with_preset(values, where, values["load_json_path"], folder)
        notices, problems = notices + more, problems + more_problems
    preset = values.get("preset")
    values, where, more = subject_presets.with_preset(preset, MAIN, values, where, TRAINING)
    values, own = shared.with_own_folders(values, folder)
    return Given(values, where, notices + more + own, problems)


def main_of(script: str | Path) -> Path:
    """lora_train_command_line.py of the project that holds a script of tools/."""
    beside = Path(script).resolve().parent.parent / MAIN
    return beside if beside.is_file() else PROJECT / MAIN


def main_values(main: Path) -> Given:
    """What lora_train_command_line.py says; "auto" stays. Raises ConfigError."""
    values, where, _ = read_block(main, variables_of(main))
    values, where, _, _ = sd_scripts.translate(values, where)
    values = with_absolute_paths(values, main.parent)
    if _is_path(values.get("load_json_path"), os.path.isfile):
        values, where, _, _ = with_preset(values, where, values["load_json_path"], main.parent)
    values, where, _ = subject_presets.with_preset(values.get("preset"), MAIN, values, where, TRAINING)
    return Given(values, where, [], [])


def _main_for(script: str | Path, declared: AnyDeclared) -> Given:
    """What the main block says; of one that cannot be read, what a script needs that only writes beside its output."""
    try:
        return main_values(main_of(script))
    except ConfigError:
        shares = [option.shared for option in declared.options.values() if option.shared]
        if any(not str(source).startswith("{output_dir}/") for source in shares):
            raise
        return Given({}, {}, [], [])  # doctor.py says on its page what is wrong with the block


def still_to_set(script: str | Path, wanted: Values) -> list[str]:
    """The lines that lora_train_command_line.py still lacks, so that it trains what a script of tools/ made."""
    main = main_of(script)
    known = shared.of_main(main_values(main))
    return [
        f"{name} = {literal(value)}"
        for name, value in wanted.items()
        if (
            os.path.realpath(main.parent / value) != os.path.realpath(main.parent / str(known[name]))
            if OPTIONS[name].path
            else value != known[name]
        )
    ]


def run_tool(
    script: str | Path,
    variables: Values,
    declared: Declared[Settings],
    work: Callable[[Settings], int],
    complete: Callable[[Values], Values] = lambda values: values,
) -> int:
    """Check the block of a script in tools/ and do its work, which takes the settings. Gives the exit code.

    Relative paths are taken from the project's folder, as in lora_train_command_line.py, which also says what the block
    leaves to it.

    Args:
        complete: decides what only the script can decide, before the values are checked.
    """

    def checked() -> int:
        values, where, notices = read_block(script, variables)
        values = with_absolute_paths(values, PROJECT, declared)
        main = _main_for(script, declared)
        preset, name = main.values.get("preset"), Path(script).name
        values, where, lines = subject_presets.with_preset(preset, name, values, where, declared)
        values, where, line = shared.filled(values, where, declared, main, main_of(script).parent)
        settings = check_tool(declared, complete(values), where)
        for text in [*([line] if line else []), *lines]:
            log.info(text)
        for text in notices:
            log.warning(text)
        return work(settings)

    return _run_program(checked, script, variables)


def _run_program(work: Callable[[], int], script: str | Path, variables: Values) -> int:
    """Do the work of a script that takes no arguments; what only the user can put right is said, not raised."""
    choose_language(variables)

    def checked() -> int:
        if len(sys.argv) > 1:
            raise UserError(_takes_no_arguments(Path(script)))
        return work()

    return exit_code(checked)


def _takes_no_arguments(script: Path) -> str:
    is_tool = script.parent.name == "tools"
    instead_en = "" if is_tool else ", or give them to train_network.py"
    instead_zh = "" if is_tool else "，或把参数交给 train_network.py"
    return say(
        f"{script.name} takes no arguments: edit it{instead_en}",
        f"{script.name} 不接受命令行参数：请修改文件内容{instead_zh}",
    )


def _is_path(value: object, exists: Callable[[str], bool]) -> bool:
    return isinstance(value, str) and exists(value)  # else check says what is wrong with it


def with_preset(values: Values, where: Where, preset: str | Path, folder: Path) -> Given:
    """The values with a preset's over them, but for the names to skip."""
    skip = values.get("json_load_skip_list")
    skip = skip if isinstance(skip, (list, tuple)) else []  # else check says what is wrong with it
    given, given_where = load_preset(preset)
    given = {name: value for name, value in given.items() if name not in skip}
    given, given_where, notices, problems = sd_scripts.translate(given, given_where)
    given = {name: value for name, value in given.items() if name not in skip}  # by its present name, too
    model = "pretrained_model_name_or_path"
    if model not in given and is_delivered(model, with_absolute_paths(values, folder).get(model)):
        problems = [_needs_a_model(Path(preset), place(model, where)), *problems]
    return Given(values | with_absolute_paths(given, folder), where | given_where, notices, problems)


def _run_queue(given: Given, folder: Path, train: Train) -> int:
    """Train every preset of multi_run_folder. All are checked first: a night must not end at a typing mistake."""
    queue = Path(given.values["multi_run_folder"])
    presets = sorted(queue.glob("*.json"))
    if not presets:
        raise ConfigError([say(f'"{queue}" contains no .json presets', f'"{queue}" 里没有 .json 预设')])
    ready, failed = [], []
    for preset in presets:
        try:
            own, own_where, more, problems = with_preset(given.values, given.where, preset, folder)
            if not own_where.get("output_name", "").startswith(f"{preset.name}:"):
                own["output_name"] = preset.stem  # else each result would take the place of the one before
            config, warnings = check(own, own_where, problems)
            ready.append((preset, config, given.notices + more + warnings))
        except UserError as error:
            failed.append(preset.name)
            log.error(f"{preset.name}: {error}")
    for preset, config, warnings in ready:
        log.info(say(f"preset {preset.name}", f"预设 {preset.name}"))
        try:
            code = train(config, warnings)
        except UserError as error:
            log.error(error)
            code = 2
        except Exception:  # the others can still be trained
            traceback.print_exc()
            code = 1
        if code:
            failed.append(preset.name)
            continue
        done = queue / "complete"
        try:
            done.mkdir(exist_ok=True)
            preset.rename(files.free_path(done / preset.name))
        except OSError as error:  # it is trained all the same, and the next ones should be
            log.error(_stays_in_the_queue(preset, done, error))
    trained = len(presets) - len(failed)
    log.info(
        say(f"{trained} of {plural(len(presets), 'preset')} trained", f"{len(presets)} 个预设中完成了 {trained} 个")
    )
    if failed:
        listed = ", ".join(failed)
        log.error(say(f"not trained: {listed}", f"未完成：{listed}"))
    return 1 if failed else 0


# ---- what is said ----


def _needs_a_model(preset: Path, at: str) -> str:
    return say(
        f"{at} is still the built-in miniature, and {preset.name} names no base model: set your own",
        f"{at} 还是自带的微型模型，{preset.name} 里也没有底模，请填写您自己的底模",
    )


def _is_set_again(first: str, at: str) -> str:
    return say(f"{first} is set again at {at}; the later value counts", f"{first} 在 {at} 处又设了一次，以后者为准")


def _has_no_block(script: Path) -> str:
    return say(
        f"{script}: not a copy of lora_train_command_line.py: the line that ends the parameters is missing",
        f"{script}：不是 lora_train_command_line.py 的副本：缺少参数区的结束行",
    )


def _is_read_as_typed(at: str, path: str) -> str:
    return say(
        f'{at} is read as r"{path}": in plain quotes \\ is special. Write the r',
        f'{at} 按 r"{path}" 读取：普通引号里的 \\ 有特殊含义，请在前面加 r',
    )


def _is_no_python(at: str, error: SyntaxError) -> str:
    line = re.sub(r"""r?("[^"]*"|'[^']*')""", "", error.text or "").partition("#")[
        0
    ]  # what is in quotes may be anything
    if found := re.search("[“”‘’，：；（）＝\u3000]", line):
        return say(
            f'{at}: {found[0]} is no plain punctuation. Text stands in straight quotes: "text"; a comma is ,',
            f'{at}：{found[0]} 是中文标点，请换成英文标点；文字要放在英文引号里："文字"',
        )
    if "unicode" in error.msg or ("unterminated" in error.msg and re.search(r"""\\["']""", error.text or "")):
        return say(
            f'{at}: \\ in quotes is special. Write a path as r"D:\\images" (no \\ at its end) or "D:/images"',
            f'{at}：引号里的 \\ 有特殊含义。路径请写成 r"D:\\图片"（末尾不要有 \\）或 "D:/图片"',
        )
    return say(
        f"{at}: not valid Python ({error.msg}). Check that line and the one before for a missing quote or bracket",
        f"{at}：不合 Python 写法（{error.msg}）。请看这一行和上一行，是否漏了引号或括号",
    )


def _does_not_run(at: str, error: Exception) -> str:
    return say(
        f"{at}: {type(error).__name__}: {error}. Text needs quotes, and names must be spelled as above",
        f"{at}：{type(error).__name__}：{error}。文字要加引号，名称要与原来一致",
    )


def _takes_no_arguments(script: Path) -> str:
    is_tool = script.parent.name == "tools"
    instead, instead_zh = (
        ("", "") if is_tool else (", or give them to train_network.py", "，或把参数交给 train_network.py")
    )
    return say(
        f"{script.name} takes no arguments: edit it{instead}",
        f"{script.name} 不接受命令行参数：请修改文件内容{instead_zh}",
    )


def _stays_in_the_queue(preset: Path, folder: Path, error: OSError) -> str:
    return say(
        f"{preset.name} was trained but cannot be moved to {folder} ({error.strerror or error})",
        f"{preset.name} 已训练完成，但无法移到 {folder}（{error.strerror or error}）",
    )
