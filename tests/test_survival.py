"""Nothing is lost and nothing is hidden: what a run survives, in short; `python tests/torture.py` is the long form."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train_network
from library.diffusion import losses
from library.messages import UserError
from library.options import checks
from library.storage import lora_file, saves, training_state
from library.training import saver
from tests.conftest import FEW
from tests.training.test_train import same_weights

TORTURE = Path(__file__).parent / "torture.py"


@pytest.fixture(scope="module")
def tortured() -> str:
    """What `torture.py --short` says; the same kills each time."""
    command = [sys.executable, str(TORTURE), "--short", "--seed", "4"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600).stdout


@pytest.mark.slow("kills and starves two dozen runs")
@pytest.mark.parametrize(("series", "cases"), [("kill", 4), ("oom", 2), ("nan", 3), ("disk", 1), ("stop", 2)])
def test_what_is_tortured_survives(tortured, series, cases):
    told = re.search(rf"^{series}: survived (\d+) of (\d+)", tortured, re.MULTILINE)
    assert told, tortured
    assert told[1] == told[2], tortured
    assert int(told[1]) >= cases, tortured


@pytest.fixture
def start(tiny_model, small_set, tmp_path):
    """start(option=value, ...) -> exit code of a small run, in whose folder others may have been."""

    def start(**options) -> int:
        values = dict(
            pretrained_model_name_or_path=str(tiny_model("sd1")),
            train_data_dir=str(small_set[0]),
            reg_data_dir=str(small_set[1]),
            output_dir=str(tmp_path / "out"),
        )
        return train_network.run(*checks.check(values | FEW | options, {}))

    return start


def failing_at(step: int, error: Exception):
    """A loss function that fails once, at that step."""
    count, plain = 0, losses.per_sample

    def per_sample(*arguments, **options):
        nonlocal count
        count += 1
        if count == step:
            raise error
        return plain(*arguments, **options)

    return per_sample


def test_a_crash_is_told_with_a_cause_and_the_run_goes_on_to_the_same_bits(start, run, tmp_path, monkeypatch, capsys):
    whole = run(output="whole")
    monkeypatch.setattr(saver.Saver, "state_is_due", lambda files: True)
    monkeypatch.setattr(losses, "per_sample", failing_at(8, RuntimeError("CUDA error: an illegal memory access")))
    assert start() == 1
    said = capsys.readouterr().err
    assert "RuntimeError: CUDA error: an illegal memory access. Likely fix: the graphics card" in said
    report = (tmp_path / "out" / "crash_report.txt").read_text(encoding="utf-8")
    assert "per_sample" in report
    assert '"step": 7' in report
    assert start() == 0
    assert "continuing it after step 7" in capsys.readouterr().out
    assert same_weights(tmp_path / "out" / "it.safetensors", whole / "it.safetensors")


def test_a_state_saved_in_fp32_goes_on_in_fp16_if_asked(start, tmp_path, monkeypatch):
    """It holds no loss scale."""
    monkeypatch.setattr(losses, "per_sample", failing_at(8, RuntimeError("crash")))
    assert start() == 1
    assert start(resume=str(tmp_path / "out" / "it-state"), mixed_precision="fp16") == 0


def test_pieces_of_a_first_state_take_no_name(tmp_path):
    folder = tmp_path / "girl-state"
    folder.mkdir()
    assert not saves.is_taken(tmp_path, "girl")
    (folder / "adapter.safetensors").touch()
    (folder / "state.json.part").touch()
    assert not saves.is_taken(tmp_path, "girl")
    (folder / "state.json").touch()
    assert saves.is_taken(tmp_path, "girl")
    saves.remove_save(folder)
    assert not folder.exists()


def test_runs_that_are_under_way_are_not_the_newest_state(tmp_path):
    for name in ("girl", "girl-2"):
        facts = dict(name=name, config=dict(output_name="girl"))
        state = training_state.State(training_state.Position(), {"x": torch.zeros(1)}, {}, {}, facts=facts)
        training_state.save_state(tmp_path / f"{name}-state", state)
    assert training_state.newest_state(tmp_path, "girl").facts["name"] == "girl-2"
    assert training_state.newest_state(tmp_path, "girl", {"girl-2"}).facts["name"] == "girl"
    assert training_state.newest_state(tmp_path, "girl", {"girl", "girl-2"}) is None


def test_a_lora_with_nan_is_no_start(tmp_path):
    name = "lora_unet_x.lora_down.weight"
    path = tmp_path / "broken.safetensors"
    save_file({name: torch.tensor([[1.0, float("nan")]])}, path)
    with pytest.raises(UserError, match=name):
        lora_file.load_adapter(path)
