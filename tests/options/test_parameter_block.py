"""The parameter block is config's, tells its lines, and its presets and queue do what they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from library.options import parameter_block
from library.options.checks import ConfigError, check
from library.options.training import GROUPS, OPTIONS
from tests.conftest import edit_block

PROJECT = Path(__file__).parents[2]
SCRIPT = "lora_train_command_line.py"
REWRITE = "python -m library.options"

STUB = """
import json, sys
from library.options import command_line, sd_scripts
from library.options.checks import check
from library.messages import UserError
import dataclasses

def run(config, warnings):
    if config.output_name == "bad":
        raise UserError("no picture found")
    if config.output_name == "crash":
        raise RuntimeError("a crash")
    with open("ran.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps([dataclasses.asdict(config), warnings]) + "\\n")
    return 3 if config.output_name == "code" else 0

if __name__ == "__main__":
    values, where, notices, problems = sd_scripts.translate(*command_line.parse(sys.argv[1:]))
    config, warnings = check(values, where, problems)
    sys.exit(run(config, notices + warnings))
"""


def test_the_block_is_what_config_declares():
    """Run this after a change of config's names, order, defaults or texts: python -m library.options"""
    written = (
        (PROJECT / SCRIPT).read_text(encoding="utf-8").partition(parameter_block.MARK)[0] + parameter_block.MARK + "\n"
    )
    assert written == parameter_block.block_text(), f"the block differs from config; rewrite it with: {REWRITE}"


def test_the_block_shows_every_option_once_with_its_default():
    names = {}
    exec(compile(parameter_block.block_text(), "block", "exec"), names)
    shown = {name: value for name, value in names.items() if not name.startswith("__")}
    assert shown == {name: option.in_script for name, option in OPTIONS.items() if option.in_block}
    assert all(
        f"# ---- {english} | {chinese} ----" in parameter_block.block_text() for english, chinese in GROUPS.values()
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-4, "1e-4"),
        (5e-5, "5e-5"),
        (1.5e-7, "1.5e-7"),
        (0.05, "0.05"),
        (16.0, "16.0"),
        ("a\\b", '"a\\\\b"'),
        (None, "None"),
    ],
)
def test_literals_are_written_as_people_do(value, text):
    assert parameter_block.literal(value) == text
    assert eval(text) == value


def test_rewriting_changes_the_block_only(tmp_path):
    script = tmp_path / SCRIPT
    script.write_text(f"old = 1\n{parameter_block.MARK}\nprint('below')\n", encoding="utf-8")
    parameter_block.write_block(script)
    assert script.read_text(encoding="utf-8") == parameter_block.block_text() + "print('below')\n"


def test_names_are_read_with_their_lines_and_double_ones_told(tmp_path):
    script = tmp_path / "s.py"
    lines = [
        "import os",
        '_root = "D:/x"',
        'train_data_dir = _root + "/a"',
        "a = b = 2",
        "a: int = 3",
        parameter_block.MARK,
        "z = 1",
    ]
    script.write_text("\n".join(lines), encoding="utf-8")
    variables = {"os": os, "_root": "D:/x", "train_data_dir": "D:/x/a", "a": 3, "b": 2, "z": 1, "__name__": "x"}
    values, where, warnings = parameter_block.read_block(script, variables)
    assert values == {"train_data_dir": "D:/x/a", "a": 3, "b": 2}
    assert where == {"train_data_dir": "s.py:3", "a": "s.py:5", "b": "s.py:4"}
    assert warnings == ["s.py:4: a is set again at s.py:5; the later value counts"]


def test_values_set_within_an_if_count_too_whatever_the_files_encoding(tmp_path):
    """What Python runs must be what is trained: nothing that the user set may be passed over."""
    script = tmp_path / "s.py"
    lines = ["# coding: gbk", 'output_name = "衣服"', "if output_name:", "    seed = 1", "else:", "    seed = 2"]
    script.write_text("\n".join([*lines, "def helper():", "    seed = 3"]), encoding="gbk")
    values, where, warnings = parameter_block.read_block(script, {"output_name": "衣服", "seed": 1, "helper": len})
    assert values == {"output_name": "衣服", "seed": 1}
    assert where == {"output_name": "s.py:2", "seed": "s.py:6"}
    assert warnings == []


def test_relative_paths_are_taken_from_the_folder_of_the_script(tmp_path):
    (tmp_path / "m").mkdir()
    given = {
        "train_data_dir": "pictures/train",
        "pretrained_model_name_or_path": "m",
        "vae": "org/name",  # perhaps meant for downloading: check explains
        "output_dir": r"D:\out",
        "reg_data_dir": None,
        "resume": "none",
        "logging_dir": "a\nb",
        "output_name": "name",
    }
    assert parameter_block.with_absolute_paths(given, tmp_path) == given | {
        "train_data_dir": os.path.join(tmp_path, "pictures", "train"),
        "pretrained_model_name_or_path": os.path.join(tmp_path, "m"),
    }


@pytest.mark.parametrize(("given", "is_file"), [("a/b.safetensors", True), ("../a", True), ("org/v1.5", False)])
def test_a_model_file_that_is_missing_is_looked_for_there_too(tmp_path, given, is_file):
    """So that the message names the place where it was looked for."""
    found = parameter_block.with_absolute_paths({"vae": given}, tmp_path)["vae"]
    assert found == (os.path.join(tmp_path, os.path.normpath(given)) if is_file else given)


# ---- the script itself, in a small copy of the project whose trainer only notes what it was asked ----


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "my project"
    (root / "library").mkdir(parents=True)
    for file in (PROJECT / "library").glob("*.py"):
        shutil.copy(file, root / "library")
    shutil.copytree(PROJECT / "library" / "options", root / "library" / "options")
    shutil.copy(PROJECT / SCRIPT, root)
    for kind in ("model", "train", "reg"):
        (root / "library" / "miniature" / kind).mkdir(parents=True)
    (root / "train_network.py").write_text(STUB, encoding="utf-8")
    return root


def edit(project, **settings):
    edit_block(project / SCRIPT, **settings)


def own_model(project):
    (project / "model.safetensors").touch()
    edit(project, pretrained_model_name_or_path="model.safetensors")


def start(project, *arguments, folder=None, language="en_US.UTF-8"):
    environment = os.environ | {"LANGUAGE": language, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(project / SCRIPT), *arguments]
    return subprocess.run(
        command, cwd=folder or project, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )


def runs(folder):
    file = folder / "ran.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def test_as_delivered_the_script_trains_from_any_folder_and_the_printed_command_does_the_same(project, tmp_path):
    edit(project, training_comment='it\'s "my" cat 猫 --x', network_dim=8, cache_latents=False)
    done = start(project, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (command,) = [line for line in done.stdout.splitlines() if "train_network.py" in line]
    again = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    (first, first_warnings), (second, second_warnings) = runs(tmp_path)
    assert first == second
    assert first_warnings == second_warnings == []
    assert first["train_data_dir"] == str(project / "library" / "miniature" / "train")
    assert first["training_comment"] == 'it\'s "my" cat 猫 --x'


def test_the_script_can_be_imported_without_a_run_and_without_torch(project):
    code = (
        f"import sys; import {SCRIPT[:-3]}; print([name for name in ('torch', 'train_network') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
    assert runs(project) == []


def test_mistakes_are_told_with_their_lines_before_anything_is_loaded(project):
    edit(project, network_dim="wide", output_dir="C:\new", learning_rates=1)
    (project / "train_network.py").write_text("raise SystemExit('must not be imported')", encoding="utf-8")
    lines = (project / SCRIPT).read_text(encoding="utf-8").splitlines()
    at = {
        name: n
        for n, line in enumerate(lines, 1)
        for name in OPTIONS | {"learning_rates": 0}
        if line.startswith(f"{name} =")
    }
    done = start(project)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "3 problems in the parameters:",
        f"  {SCRIPT}:{at['output_dir']}: output_dir = 'C:\\new' contains a line break, because \\ in plain quotes is "
        """special: write it with / or as r"C:\\new" (in .toml: 'C:\\new')""",
        f'  {SCRIPT}:{at["network_dim"]}: network_dim = "wide" is not a number',
        f"  {SCRIPT}:{at['learning_rates']}: learning_rates: there is no such parameter. Did you mean learning_rate?",
    ]


@pytest.mark.parametrize(
    ("system", "setting", "heading"),
    [
        ("zh_CN.UTF-8", "auto", "参数有 1 处问题："),
        ("en_US.UTF-8", "zh", "参数有 1 处问题："),
        ("zh_CN.UTF-8", "en", "1 problem in the parameters:"),
    ],
)
def test_messages_are_in_the_users_language(project, system, setting, heading):
    edit(project, language=setting, network_dim=0)
    assert start(project, language=system).stderr.splitlines()[0] == heading


def test_arguments_are_refused_not_ignored(project):
    done = start(project, "--network_dim", "8")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{SCRIPT} takes no arguments")


def test_an_earlier_name_in_the_block_is_used_and_answered(project):
    edit(project, net_dim=7)
    assert start(project).returncode == 0
    ((config, warnings),) = runs(project)
    assert config["network_dim"] == 7
    assert warnings[0].endswith("net_dim is now written network_dim")


def test_a_mistake_found_while_training_ends_with_its_message_only(project):
    edit(project, output_name="bad")
    done = start(project)
    assert (done.returncode, done.stderr) == (2, "no picture found\n")


def test_a_preset_is_saved_and_loaded_but_for_the_names_to_skip(project):
    edit(project, save_json_folder="presets", network_dim=5, seed=1, output_name="first")
    assert start(project).returncode == 0
    assert start(project).returncode == 0
    assert sorted(file.name for file in (project / "presets").iterdir()) == ["first-2.json", "first.json"]
    edit(
        project,
        save_json_folder=None,
        load_json_path="presets/first.json",
        json_load_skip_list=["seed"],
        network_dim=9,
        seed=2,
    )
    assert start(project).returncode == 0
    config = runs(project)[-1][0]
    assert (config["network_dim"], config["seed"], config["output_name"]) == (5, 2, "first")


def test_presets_of_other_trainers_are_understood_and_wrong_ones_told(project):
    preset = project / "p.json"
    preset.write_text(
        json.dumps({"net_dim": 6, "learning_rate": "0.0002", "epoch": "3", "max_resolution": "512,512"}), "utf-8"
    )
    edit(project, load_json_path="p.json", json_load_skip_list=["max_train_epochs"])
    assert "is still the built-in miniature, and p.json names no base model: set your own" in start(project).stderr
    own_model(project)
    assert start(project).returncode == 0
    config = runs(project)[-1][0]
    assert (config["network_dim"], config["learning_rate"], config["resolution"]) == (6, 2e-4, 512)
    assert config["max_train_epochs"] == OPTIONS["max_train_epochs"].default
    preset.write_text('{"network_dims": 6}', "utf-8")
    assert "p.json:1: network_dims: there is no such parameter. Did you mean network_dim?" in start(project).stderr
    preset.write_text('{"network_dim": 6,}', "utf-8")
    assert "p.json:1: not valid JSON" in start(project).stderr
    preset.unlink()
    assert "load_json_path" in start(project).stderr


def test_the_queue_goes_on_after_a_failure_and_says_so_at_the_end(project):
    queue = project / "queue"
    (queue / "complete").mkdir(parents=True)
    (queue / "complete" / "good.json").write_text("{}", "utf-8")
    presets = {"bad": {}, "code": {}, "crash": {}, "good": {"network_dim": 3}, "typo": {"network_dims": 1}}
    presets["named"] = {"change_output_name": "other"}
    for name, values in presets.items():
        (queue / f"{name}.json").write_text(json.dumps(values), "utf-8")
    edit(project, multi_run_folder="queue", network_dim=11)
    own_model(project)
    done = start(project)
    assert done.returncode == 1
    assert [(config["output_name"], config["network_dim"]) for config, _ in runs(project)] == [
        ("code", 11),
        ("good", 3),
        ("other", 11),
    ]
    assert sorted(file.name for file in queue.glob("*.json")) == ["bad.json", "code.json", "crash.json", "typo.json"]
    assert sorted(file.name for file in (queue / "complete").iterdir()) == ["good-2.json", "good.json", "named.json"]
    assert done.stderr.splitlines()[0] == "typo.json: 1 problem in the parameters:"  # told before the first run
    assert done.stderr.splitlines()[-1] == "not trained: typo.json, bad.json, code.json, crash.json"
    assert done.stdout.splitlines()[-1] == "2 of 6 presets trained"


def test_an_empty_queue_is_told(project):
    (project / "queue").mkdir()
    edit(project, multi_run_folder="queue")
    assert "contains no .json preset" in start(project).stderr


def test_a_saved_preset_gives_the_same_configuration(tmp_path):
    (tmp_path / "t").mkdir()
    given = {
        "pretrained_model_name_or_path": str(tmp_path),
        "train_data_dir": str(tmp_path / "t"),
        "lr_warmup_steps": "5%",
    }
    config, _ = check(given | {"optimizer_args": ["a=1"], "training_comment": "猫"}, {})
    assert check(*parameter_block.load_preset(parameter_block.save_preset(config, tmp_path / "presets")))[0] == config


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            '"C:\\Users\\me\\train"',
            r'\ in quotes is special. Write a path as r"D:\images" (no \ at its end) or "D:/images"',
        ),
        ('"C:\\x"', r"\ in quotes is special"),
        ('r"C:\\train\\"', r"\ in quotes is special"),
        ("“out”", "“ is no plain punctuation"),
        ('"out”', "” is no plain punctuation"),
        ('"out"，', "， is no plain punctuation"),
        ("（1）", "（ is no plain punctuation"),
        ('"out', "Check that line and the one before for a missing quote or bracket"),
        ('"图片，“一”" 3', "not valid Python (invalid syntax)"),  # what is in quotes is no mistake
    ],
)
def test_what_is_no_python_is_told_with_its_line(tmp_path, value, told):
    script = tmp_path / "mine.py"
    script.write_text(f"# mine\noutput_dir = {value}  # out | 目录\n{parameter_block.MARK}\n", encoding="utf-8")
    for read in (parameter_block.check_syntax, parameter_block.variables_of):
        with pytest.raises(ConfigError) as caught:
            read(script)
        (problem,) = caught.value.problems
        assert problem.startswith("mine.py:2: ")
        assert told in problem


def test_a_windows_path_typed_over_a_delivered_one_is_python(project):
    script = project / SCRIPT
    text = script.read_text(encoding="utf-8")
    for name in ("pretrained_model_name_or_path", "train_data_dir", "reg_data_dir", "output_dir"):
        typed = rf"C:\Users\new\100_{name}"
        text = re.sub(f'(?m)^({name} = r?)".*?"', lambda row, typed=typed: f'{row[1]}"{typed}"', text)
    script.write_text(text, encoding="utf-8")
    values = parameter_block.variables_of(script)
    assert values["train_data_dir"] == r"C:\Users\new\100_train_data_dir"
    assert values["output_dir"] == r"C:\Users\new\100_output_dir"


@pytest.mark.parametrize("typed", [r"D:\pics\100_sks", r"D:\Home\x41"])
def test_a_windows_path_in_plain_quotes_is_read_as_typed(tmp_path, typed):
    script = tmp_path / "mine.py"
    script.write_text(f'train_data_dir = "{typed}"\n{parameter_block.MARK}\n', encoding="utf-8")
    variables = parameter_block.variables_of(script)
    assert variables["train_data_dir"] != typed  # as Python reads it
    values, _, (warning,) = parameter_block.read_block(script, variables)
    assert values == {"train_data_dir": typed}
    assert warning.startswith(f'mine.py:1: train_data_dir is read as r"{typed}"')
