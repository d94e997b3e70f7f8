"""Several processes on the CPU do what one does with as many batches to a step; the first alone writes."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from library.hardware import distributed
from library.options.training import Config

ROOT = Path(__file__).parents[2]
FEW = {
    "output_name": "it", "train_batch_size": 1, "max_train_epochs": 2, "network_dim": 2, "network_alpha": 2,
    "learning_rate": 0.01, "resolution": 64, "device": "cpu", "seed": 7, "sample_every_n_epochs": 0,
    "save_precision": "float", "optimizer_type": "SGD", "network_dropout": 0.2, "save_every_n_epochs": "none",
}  # fmt: skip


def start(tiny_model, small_set, folder: Path, **options) -> subprocess.Popen:
    train, reg = small_set
    values = FEW | dict(
        pretrained_model_name_or_path=tiny_model("sd1"), train_data_dir=train, reg_data_dir=reg, output_dir=folder,
        cache_dir=folder.parent / "cache",
    ) | options  # fmt: skip
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "train_network.py", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def train(tiny_model, small_set, tmp_path):
    """train("name", option=value, ...) -> (folder, exit code, what was said)"""

    def train(name: str, **options):
        child = start(tiny_model, small_set, tmp_path / name, **options)
        said, _ = child.communicate(timeout=120)
        return tmp_path / name, child.returncode, said

    return train


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "it.run.jsonl").read_text().splitlines())
    return [event["loss"] for event in lines if event["event"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_do_what_one_does_with_as_many_batches_to_a_step(train, count):
    """Also where the last step of an epoch has fewer batches than there are processes (12 to an epoch)."""
    one, code, said = train("one", gradient_accumulation_steps=count, max_train_steps=5)
    assert code == 0, said
    many, code, said = train("many", num_processes=count, max_train_steps=5)
    assert code == 0, said
    torch.testing.assert_close(losses(many), losses(one), rtol=1e-5, atol=1e-7)
    ours, theirs = load_file(many / "it.safetensors"), load_file(one / "it.safetensors")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    assert said.count("model: ") == 1  # one talks for all
    assert sorted(path.name for path in many.iterdir()) == sorted(path.name for path in one.iterdir())


@pytest.mark.slow
def test_stopped_by_a_file_they_save_together_and_go_on_exactly(train, tiny_model, small_set, tmp_path):
    whole, _, _ = train("whole", num_processes=2, max_train_epochs=40)
    folder = tmp_path / "cut"
    child = start(tiny_model, small_set, folder, num_processes=2, max_train_epochs=40)
    end = time.monotonic() + 60
    while not (folder / "it-state").exists() and time.monotonic() < end:
        time.sleep(0.05)
    (folder / "STOP").touch()
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert "stopped after step" in said
    assert not (folder / "it.safetensors").exists()
    _, code, said = train("cut", num_processes=2, max_train_epochs=40)
    assert code == 0, said
    assert "continuing it" in said
    assert losses(folder) == losses(whole)
    ours, theirs = load_file(folder / "it.safetensors"), load_file(whole / "it.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_mistake_ends_all_of_them_with_one_message(train):
    _, code, said = train("wrong", num_processes=2, train_data_dir="/nowhere/at all")
    assert code == 2
    assert "nowhere" in said
    assert "Traceback" not in said


def test_alone_nothing_is_asked_of_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = distributed.World()
    assert world.is_first
    assert world.told("a") == "a"
    assert world.code(3) == 3
    assert not distributed.is_wanted(Config())
    assert distributed.is_wanted(Config(num_machines=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not distributed.is_wanted(Config(num_processes=2))  # somebody else has launched it


@pytest.mark.parametrize(("patience", "minutes"), [(None, 720), (5, 5)])
def test_processes_wait_for_one_another_as_long_as_the_user_says(monkeypatch, patience, minutes):
    asked = []

    class State:
        process_index, num_processes, device = 0, 2, "cpu"

        def __init__(self, cpu, timeout):
            asked.append(timeout)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr("torch.distributed.new_group", lambda backend, timeout: asked.append(timeout))
    distributed.World(patience=patience)
    assert asked == [timedelta(minutes=minutes)] * 2


def test_where_one_fails_the_others_are_ended(monkeypatch):
    """Rank 1 fails at once; rank 0 would sleep for a minute."""
    script = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    began = time.monotonic()
    assert distributed.launch(Config(num_processes=2), [sys.executable, "-c", script]) == 3
    assert time.monotonic() - began < 20


def test_each_machine_counts_its_processes_on():
    script = "import os, sys; sys.exit(0 if (os.environ['RANK'], os.environ['WORLD_SIZE']) == ('3', '6') or "
    script += "(os.environ['RANK'], os.environ['WORLD_SIZE']) == ('2', '6') else 1)"
    config = Config(num_processes=2, num_machines=3, machine_rank=1, main_process_ip="127.0.0.1")
    assert distributed.launch(config, [sys.executable, "-c", script]) == 0
