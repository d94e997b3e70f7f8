"""Several processes on the CPU do what one does with as many batches to a step; the first alone writes."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from library.hardware import distributed
from library.options.training import Config
from tests.scripts import Script

ROOT = Path(__file__).parents[2]
FEW = {
    "output_name": "it", "train_batch_size": 1, "max_train_epochs": 2, "network_dim": 2, "network_alpha": 2,
    "learning_rate": 0.01, "resolution": 64, "device": "cpu", "seed": 7, "sample_every_n_epochs": 0,
    "save_precision": "float", "optimizer_type": "SGD", "network_dropout": 0.2, "save_every_n_epochs": "none",
}  # fmt: skip


Train = Callable[..., tuple[Path, int, str]]


@pytest.fixture
def command(tiny_model, small_set, tmp_path) -> Callable[..., list[str]]:
    """command("name", option=value, ...) -> the command line of a small run in that folder."""

    def command(name: str, **options) -> list[str]:
        train, reg = small_set
        values = FEW | dict(
            pretrained_model_name_or_path=tiny_model("sd1"), train_data_dir=train, reg_data_dir=reg,
            output_dir=tmp_path / name, cache_dir=tmp_path / "cache",
        ) | options  # fmt: skip
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]

    return command


@pytest.fixture
def started(command) -> Callable[..., list[Script]]:
    """started("name", count, option=value, ...) -> so many processes of one run, as a launcher starts them."""

    def started(name: str, count: int, **options) -> list[Script]:
        words = command(name, **options)
        group = dict(WORLD_SIZE=count, LOCAL_WORLD_SIZE=count, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
        return [
            Script(
                ROOT / "train_network.py", *words,
                environment={key: str(value) for key, value in (group | dict(RANK=rank, LOCAL_RANK=rank)).items()},
            )
            for rank in range(count)
        ]  # fmt: skip

    return started


@pytest.fixture
def train(started, tmp_path) -> Train:
    """train("name", count, option=value, ...) -> (folder, the first exit code that is not 0, what all of them said)"""

    def train(name: str, count: int = 1, **options):
        ended = [process.ended() for process in started(name, count, **options)]
        return tmp_path / name, max(code for code, _ in ended), "".join(said for _, said in ended)

    return train


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "it.run.jsonl").read_text().splitlines())
    return [event["loss"] for event in lines if event["event"] == "step"]


@pytest.mark.slow("trains in one process and in three")
def test_processes_do_what_one_does_with_as_many_batches_to_a_step(train):
    """Also where the last step of an epoch has fewer batches than there are processes (12 to an epoch)."""
    one, code, said = train("one", gradient_accumulation_steps=3, max_train_steps=5)
    assert code == 0, said
    many, code, said = train("many", 3, max_train_steps=5)
    assert code == 0, said
    must_be_the_same(many, one)
    assert said.count("model: ") == 1  # one talks for all
    assert sorted(path.name for path in many.iterdir()) == sorted(path.name for path in one.iterdir())


@pytest.mark.slow("starts two processes, which import torch")
def test_the_option_starts_them(train, command, tmp_path):
    words = [sys.executable, "train_network.py", *command("launched", num_processes=2, max_train_steps=3)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    one, _, _ = train("one", gradient_accumulation_steps=2, max_train_steps=3)
    must_be_the_same(tmp_path / "launched", one)


def must_be_the_same(many: Path, one: Path) -> None:
    """To rounding: the sums are worked out in another order."""
    torch.testing.assert_close(losses(many), losses(one), rtol=1e-5, atol=1e-7)
    ours, theirs = load_file(many / "it.safetensors"), load_file(one / "it.safetensors")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow("trains three times in two processes")
def test_stopped_by_a_file_they_save_together_and_go_on_exactly(train, started, tmp_path):
    whole, _, _ = train("whole", 2, max_train_epochs=8)
    folder = tmp_path / "cut"
    processes = started("cut", 2, max_train_epochs=8)
    end = time.monotonic() + 60
    while not (folder / "it.run.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.01)
    (folder / "STOP").touch()
    ended = [process.ended() for process in processes]
    assert [code for code, _ in ended] == [0, 0], ended
    assert "stopped after step" in ended[0][1]
    assert (folder / "it-state").exists()
    assert not (folder / "it.safetensors").exists()
    _, code, said = train("cut", 2, max_train_epochs=8)
    assert code == 0, said
    assert "continuing it" in said
    assert losses(folder) == losses(whole)
    ours, theirs = load_file(folder / "it.safetensors"), load_file(whole / "it.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_mistake_ends_all_of_them_with_one_message(command):
    words = [sys.executable, "train_network.py", *command("wrong", num_processes=2, train_data_dir="/nowhere/at all")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_alone_nothing_is_asked_of_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = distributed.ProcessGroup()
    assert processes.is_first
    assert processes.broadcast("a") == "a"
    assert processes.broadcast_code(3) == 3
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
    distributed.ProcessGroup(patience=patience)
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
