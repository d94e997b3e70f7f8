"""What is true of every script in tools/ with a parameter block: it is what is declared, and mistakes are told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.messages import set_language
from library.options import parameter_block
from library.options.checks import ConfigError, check_tool
from library.options.declaration import PROJECT
from library.options.tools import TOOLS, TryLora
from library.options.training import OPTIONS


@pytest.mark.parametrize("file", TOOLS)
def test_the_block_is_what_is_declared(file):
    """After a change: python -m library.options"""
    written = (
        (PROJECT / "tools" / file).read_text(encoding="utf-8").partition(parameter_block.MARK)[0]
        + parameter_block.MARK
        + "\n"
    )
    assert written == parameter_block.block_text(TOOLS[file]), "run: python -m library.options"


@pytest.mark.parametrize("file", TOOLS)
def test_every_option_has_both_languages_and_a_default_that_passes(file):
    declared = TOOLS[file]
    for name, option in declared.options.items():
        assert option.group in declared.groups, name
        assert option.english.isascii(), name
        assert not option.chinese.isascii(), name
    values = {name: option.default for name, option in declared.options.items() if not option.path}
    check_tool(declared, values, {})


def test_options_of_the_training_keep_their_name_type_and_limits():
    for file, declared in TOOLS.items():
        for name in set(declared.options) & set(OPTIONS) - {"output_dir", "resolution", "images_dir"}:
            ours, training = declared.options[name], OPTIONS[name]
            for fact in ("minimum", "maximum", "choices", "path"):
                assert getattr(ours, fact) in (getattr(training, fact), None), (file, name, fact)
            assert ours.kinds - {type(None)} <= training.kinds | {list}, (file, name)


def test_all_mistakes_are_told_with_their_lines():
    where = {name: f"try_lora.py:{number}" for number, name in enumerate(("step", "steps", "strengths"), 20)}
    values = {"step": 3, "steps": 0, "strengths": [0.5, "much"]}
    with pytest.raises(ConfigError) as caught:
        check_tool(TOOLS["try_lora.py"], values, where)
    assert caught.value.problems == [
        "try_lora.py:20: step: there is no such parameter. Did you mean steps?",
        "try_lora.py:21: steps = 0 is not between 1 and 1000",
        "try_lora.py:22: strengths = [0.5, 'much'] is not a number",
    ]


def test_one_value_stands_for_a_list_of_it():
    """A tag may have spaces: nothing is split."""
    settings = check_tool(TOOLS["edit_tags.py"], {"delete_tags": "school uniform"}, {})
    assert settings.delete_tags == ["school uniform"]
    assert check_tool(TOOLS["try_lora.py"], {"strengths": 1, "seeds": "3"}, {}) == TryLora(strengths=[1.0], seeds=[3])


@pytest.mark.slow("starts every script")
@pytest.mark.parametrize("file", TOOLS)
def test_the_script_speaks_the_users_language_and_takes_no_arguments(file, tmp_path):
    environment = os.environ | {"LC_ALL": "zh_CN.UTF-8", "LANGUAGE": "", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(PROJECT / "tools" / file), "--help"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{file} 不接受命令行参数：请修改文件内容\n"


def test_relative_paths_are_taken_from_the_projects_folder(tmp_path):
    script = Path(tmp_path / "edit_tags.py")
    script.write_text('images_dir = "library/miniature/train"\noutput_dir = "output/x"\n', encoding="utf-8")
    seen = []

    def work(settings):
        seen.append(settings)
        return 0

    variables = {"images_dir": "library/miniature/train", "output_dir": "output/x"}
    sys_argv, sys.argv = sys.argv, ["edit_tags.py"]
    try:
        assert parameter_block.run_tool(script, variables, TOOLS["edit_tags.py"], work) == 0
    finally:
        sys.argv = sys_argv
        set_language("en")
    assert seen[0].images_dir == str(PROJECT / "library" / "miniature" / "train")
    assert seen[0].output_dir == str(PROJECT / "output" / "x")
