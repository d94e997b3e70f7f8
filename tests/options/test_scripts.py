"""Commands of sd-scripts, pasted whole, give their flags; its other programs are answered by what takes their place."""

import re
import shlex

import pytest

import train_network
from library.messages import set_language
from library.options import config_files, scripts
from library.options.checks import ConfigError
from library.options.declaration import PROJECT
from library.options.scripts import flags_of


@pytest.fixture(autouse=True)
def _english():
    set_language("en")


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("--network_dim 4", "--network_dim 4"),
        ("sdxl_train_network.py --network_dim 4", "--network_dim 4"),
        ("accelerate launch --num_cpu_threads_per_process 1 train_network.py --network_dim 4", "--network_dim 4"),
        ("python -m accelerate.commands.launch --multi_gpu ./sd-scripts/train_network.py --seed=1", "--seed=1"),
        (
            "accelerate launch --config_file c.yaml --num_processes 2 --mixed_precision=bf16 sd/train_network.py --x",
            "--num_processes 2 --mixed_precision=bf16 --x",
        ),
        ("accelerate launch 'C:\\sd\\sdxl_train_network.py' ^ --seed 1 ` --flip_aug \\\\", "--seed 1 --flip_aug"),
    ],
)
def test_a_command_pasted_whole_gives_its_flags(command, flags):
    assert flags_of(shlex.split(command)) == shlex.split(flags)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("networks/merge_lora.py --save_to x", "instead of sd-scripts' merge_lora.py: python tools/merge_loras.py"),
        ("python networks\\\\resize_lora.py --new_rank 4", "resize_lora.py: python tools/resize_lora.py"),
        ("accelerate launch flux_train_network.py", "only Stable Diffusion 1.x, 2.x and XL are trained here"),
        ("lora_train_command_line.py", "is a program of its own, run it as python lora_train_command_line.py"),
        ("train.sh", "train.sh is a shell's script, not a file of values. Give the flags in it to"),
        ("my.toml", '"my.toml" comes before the first --flag. Did you mean --config_file my.toml?'),
        ("--config_file train.ps1", "train.ps1 is a shell's script"),
        ("--config_file x.yaml", "x.yaml: files of values are .toml or .json"),
    ],
)
def test_what_is_no_flag_is_answered_with_what_to_do(command, answer, capsys):
    assert train_network.main(shlex.split(command)) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize("page", ["sd-scripts.md", "sd-scripts.zh-CN.md"])
def test_the_table_of_programs_stands_in_the_docs(page):
    rows = {
        tuple(re.findall(r"`(\w+\.py)`", row[1])): row[2]
        for row in re.finditer(r"^\| (`\w+\.py`.*?) \| (.*) \|$", (PROJECT / "docs" / page).read_text("utf-8"), re.M)
    }
    assert rows.keys() == {scripts.TAKEN, *(place.programs for place in scripts.PLACES)}
    for place in scripts.PLACES:
        words = place.chinese if "zh" in page else place.english
        assert place.ours in rows[place.programs]
        assert words.replace(" ", "") in rows[place.programs].replace("`", "").replace(" ", "")
        assert not place.ours or (PROJECT / place.ours).exists()


def test_a_shells_script_is_no_file_of_values(tmp_path):
    with pytest.raises(ConfigError, match="shell's script"):
        config_files.read_values(tmp_path / "train.sh")
