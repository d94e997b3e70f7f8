"""Training states: what is written can be read, a kill at any moment loses nothing, damage is told."""

import dataclasses
import json
import os
import random
from functools import partial

import pytest
import safetensors
import safetensors.torch
import torch

from library import files
from library.messages import UserError
from library.storage import training_state
from library.storage.training_state import Position
from tests.storage.written import lora, state


def test_a_state_is_read_as_it_was_written(tmp_path):
    written = state()
    training_state.save_state(tmp_path / "a-state", written)
    read = training_state.load_state(tmp_path / "a-state")
    assert read.position == Position(epoch=3, batch_in_epoch=7, global_step=100)
    assert (read.facts, read.scaler, read.schedule) == (written.facts, written.scaler, written.schedule)
    assert all(torch.equal(read.adapter[name], tensor) for name, tensor in written.adapter.items())
    assert torch.equal(read.optimizer["state"][0]["exp_avg"], written.optimizer["state"][0]["exp_avg"])
    assert read.optimizer["param_groups"] == written.optimizer["param_groups"]
    assert json.loads((tmp_path / "a-state/state.json").read_text(encoding="utf-8"))["position"]["global_step"] == 100


def test_further_things_are_kept_with_a_state(tmp_path):
    average = torch.randn(3, generator=torch.Generator().manual_seed(0))
    written = dataclasses.replace(state(), more={"average": {"a": average}, "best": (0.25, 3), "losses": [0.1, 0.2]})
    training_state.save_state(tmp_path / "a-state", written)
    read = training_state.load_state(tmp_path / "a-state").more
    assert torch.equal(read["average"]["a"], average)
    assert (read["best"], read["losses"]) == ((0.25, 3), [0.1, 0.2])


def killed_at(count, work):
    """Do the work in a process that vanishes at its count-th touch of the disk; False if the work got done before."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    left = [count]

    def dying(function):
        def touch(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                os._exit(1)  # as SIGKILL: no exception, no `finally`
            return function(*arguments, **options)

        return touch

    try:
        for name in ("open", "unlink", "mkdir", "replace", "fsync"):
            setattr(os, name, dying(getattr(os, name)))
        files.open = dying(open)
        safetensors.torch.save = dying(safetensors.torch.save)
        work()
    finally:
        os._exit(0)


@pytest.mark.slow("kills many processes")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow("kills a dozen processes")
def test_killed_at_any_moment_a_whole_state_is_left(tmp_path):
    """The old one or the new one; found, and the next save works, without growing beyond two."""
    folder, moments, last = tmp_path / "a-state", 0, 0
    training_state.save_state(folder, state(last))
    while killed_at(moments + 1, partial(training_state.save_state, folder, state(last + 1))):
        moments += 1
        read = training_state.load_state(folder)
        seed = read.position.global_step - 100
        assert seed in (last, last + 1)
        assert all(torch.equal(read.adapter[name], tensor) for name, tensor in lora(seed).items())
        assert not read.notices
        last = seed + 1
        training_state.save_state(folder, state(last))
        assert training_state.load_state(folder).position.global_step == 100 + last
    assert moments > 8
    assert len(os.listdir(folder)) <= 6


def test_an_error_while_saving_a_state_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "a-state"
    training_state.save_state(folder, state(0))

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, full)
        with pytest.raises(UserError, match="No space left on device") as error:
            training_state.save_state(folder, state(1))
        assert isinstance(error.value.__cause__, OSError)  # disk.writing knows it by that
        monkeypatch.undo()
        assert training_state.load_state(folder).position.global_step == 100
        assert len(os.listdir(folder)) == 3  # nothing half-written takes space


@pytest.mark.parametrize("name", ["state-2.json", "adapter-2.safetensors", "training-2.pt"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "zeros", "missing"])
def test_a_damaged_state_is_recognised_and_the_one_before_it_used(tmp_path, name, harm):
    folder = tmp_path / "a-state"
    for seed in (0, 1):
        training_state.save_state(folder, state(seed))
    assert training_state.load_state(folder).position.global_step == 101
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    harmed = {"cut": data[: len(data) // 2], "flipped": data, "zeros": bytes(len(data))}
    (folder / name).write_bytes(harmed[harm]) if harm in harmed else (folder / name).unlink()
    read = training_state.load_state(folder)
    assert read.position.global_step == 100
    if (name, harm) != ("state-2.json", "missing"):  # that is a save which was broken off
        assert "is damaged; the one before it is used, of step 100" in read.notices[0]
    training_state.save_state(folder, state(2))  # over the damaged one, not over the whole one
    (folder / "adapter-2.safetensors").write_bytes(b"")
    assert training_state.load_state(folder).position.global_step == 100


def run_state(name, step, **facts):
    return dataclasses.replace(
        state(),
        position=Position(1, step, step),
        facts=dict(name=name, config=dict(output_name="girl"), **facts),
    )


def test_the_newest_state_of_an_unfinished_run_is_found(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(training_state.time, "time", lambda: next(clock))
    assert training_state.newest_state(tmp_path / "not made yet", "girl") is None
    other = dataclasses.replace(state(), facts=dict(name="girl-2", config=dict(output_name="girl-2")))
    for folder, saved in [
        ("girl-000001-state", run_state("girl", 10)),
        ("girl-state", run_state("girl", 15)),
        ("girl-2-state", run_state("girl-2", 5)),
        ("girl-2-state", run_state("girl-2", 7)),
        ("girl-3-000001-state", run_state("girl-3", 20)),
        ("girl-3-state", run_state("girl-3", 30, finished=True)),
        ("other-state", other),
    ]:
        training_state.save_state(tmp_path / folder, saved)
    listed = training_state.candidates(tmp_path, "Girl")
    assert [candidate.position.global_step for candidate in listed] == [30, 20, 7, 5 * 3, 10]
    assert training_state.newest_state(tmp_path, "girl").facts["name"] == "girl-2"
    for name in ("adapter.safetensors", "adapter-2.safetensors"):
        (tmp_path / "girl-2-state" / name).write_bytes(b"")
    older = training_state.newest_state(tmp_path, "girl")
    assert (older.facts["name"], older.position.global_step) == ("girl", 15)
    assert "girl-2-state: the training state is damaged" in older.notices[0]
    for folder in ("girl-state", "girl-000001-state"):
        (tmp_path / folder / "training.pt").write_bytes(b"")
    with pytest.raises(UserError, match="girl-state: the training state is damaged"):
        training_state.newest_state(tmp_path, "girl")


def test_a_finished_run_is_not_resumed(tmp_path):
    training_state.save_state(tmp_path / "girl-state", run_state("girl", 15))
    assert training_state.newest_state(tmp_path, "girl").position.global_step == 15
    training_state.save_state(tmp_path / "girl-state", run_state("girl", 20, finished=True))
    assert training_state.newest_state(tmp_path, "girl") is None


def test_what_could_not_be_read_again_fails_when_it_is_saved(tmp_path):
    odd = state()
    odd.optimizer["own"] = random.Random()
    with pytest.raises(UserError, match="cannot be saved .it contains a random.Random"):
        training_state.save_state(tmp_path / "a-state", odd)
    assert os.listdir(tmp_path) == []


def test_folders_that_are_no_state_are_told(tmp_path):
    with pytest.raises(UserError, match="network_weights"):
        training_state.load_state(tmp_path / "missing-state")
    (tmp_path / "kohya-state").mkdir()
    (tmp_path / "kohya-state/optimizer.bin").touch()
    with pytest.raises(UserError, match="sd-scripts"):
        training_state.load_state(tmp_path / "kohya-state")
    training_state.save_state(tmp_path / "a-state", state())
    (tmp_path / "a-state/training.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        training_state.load_state(tmp_path / "a-state")
