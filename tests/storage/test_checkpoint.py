"""Adapter files and training states: what is written can be read, a crash loses nothing, damage is told."""

import dataclasses
import hashlib
import json
import os
import random
import struct
from functools import partial

import pytest
import safetensors
import safetensors.torch
import torch

from library import files
from library.messages import UserError
from library.storage import checkpoint
from library.storage.checkpoint import (
    Position,
    State,
    file_name,
    free_name,
    is_taken,
    load_adapter,
    read_back,
    save_adapter,
)


def lora(seed=0):
    """Two layers: a text encoder's linear and a U-Net's 3x3 convolution."""
    g = torch.Generator().manual_seed(seed)
    return {
        "lora_te_fc1.lora_down.weight": torch.randn(4, 6, generator=g),
        "lora_te_fc1.lora_up.weight": torch.randn(5, 4, generator=g),
        "lora_te_fc1.alpha": torch.tensor(2.0),
        "lora_unet_conv1.lora_down.weight": torch.randn(3, 8, 3, 3, generator=g),
        "lora_unet_conv1.lora_up.weight": torch.randn(7, 3, 1, 1, generator=g),
        "lora_unet_conv1.alpha": torch.tensor(3.0),
    }


def shapes(tensors):
    return {name: tensor.shape for name, tensor in tensors.items()}


def metadata_of(path):
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("extension", ["safetensors", "ckpt", "pt"])
@pytest.mark.parametrize("precision", checkpoint.PRECISIONS)
def test_what_is_saved_can_be_loaded(tmp_path, extension, precision):
    dtype = checkpoint.PRECISIONS[precision]
    path = tmp_path / "new folder" / f"girl.{extension}"
    save_adapter(path, lora(), {"ss_output_name": "女孩"}, dtype)
    loaded = load_adapter(path)
    assert shapes(loaded) == shapes(lora())
    for name, tensor in lora().items():
        assert torch.equal(loaded[name], tensor.to(dtype).float())
    if extension == "safetensors":
        assert metadata_of(path)["ss_output_name"] == "女孩"
        assert {tensor.dtype for tensor in safetensors.torch.load_file(path).values()} == {dtype}
    assert os.listdir(path.parent) == [path.name]


def test_hashes_are_of_the_tensors_alone(tmp_path):
    tensors = {"lora_unet_a.lora_down.weight": torch.arange(400_000.0).reshape(4, 100_000)}
    path = tmp_path / "a.safetensors"
    save_adapter(path, tensors, {"ss_training_comment": "x" * 1000})
    metadata = metadata_of(path)
    data = path.read_bytes()
    header_size = struct.unpack("<Q", data[:8])[0]
    values = tensors["lora_unet_a.lora_down.weight"].numpy().tobytes()
    assert data[8 + header_size :] == values
    assert metadata["sshs_model_hash"] == hashlib.sha256(values).hexdigest()
    alone = safetensors.torch.save(tensors)
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(alone[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]
    save_adapter(path, tensors, {})
    assert {key: metadata[key] for key in metadata_of(path)} == metadata_of(path)  # other metadata, same hashes


def test_a_file_without_alpha_means_alpha_is_the_rank(tmp_path):
    tensors = {name: tensor for name, tensor in lora().items() if not name.endswith("alpha")}
    save_adapter(tmp_path / "a.safetensors", tensors)
    assert float(load_adapter(tmp_path / "a.safetensors")["lora_te_fc1.alpha"]) == 4


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_whole(tmp_path, monkeypatch, where):
    path = tmp_path / "a.safetensors"
    save_adapter(path, lora(0))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(UserError, match="No space left on device") as error:
        save_adapter(path, lora(1))
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_file_with_nan_is_ever_written(tmp_path, bad):
    name = "lora_unet_conv1.lora_up.weight"
    broken = lora() | {name: torch.full((7, 3, 1, 1), bad)}
    save_adapter(tmp_path / "a.safetensors", lora())
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(FloatingPointError, match=rf"a.safetensors was not written: {name} holds"):
        save_adapter(tmp_path / "a.safetensors", broken)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    with pytest.raises(FloatingPointError, match=f"{name} holds"):
        checkpoint.save_state(tmp_path / "a-state", dataclasses.replace(state(), adapter=broken))
    moments = state()
    moments.optimizer["state"][0]["exp_avg"] = torch.tensor([bad * 0])  # NaN in both cases
    with pytest.raises(FloatingPointError, match="optimizer/state/0/exp_avg holds"):
        checkpoint.save_state(tmp_path / "a-state", moments)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_value_too_large_for_fp16_is_told_with_its_cure(tmp_path):
    large = lora() | {"lora_unet_conv1.lora_up.weight": torch.full((7, 3, 1, 1), 1e6)}
    with pytest.raises(FloatingPointError, match='lora_up.weight holds .* in this save_precision: take "bf16"'):
        save_adapter(tmp_path / "a.safetensors", large, dtype=torch.float16)
    save_adapter(tmp_path / "a.safetensors", large, dtype=torch.bfloat16)


def test_a_disk_that_gives_back_something_else_is_noticed(tmp_path, monkeypatch):
    save_adapter(tmp_path / "a.safetensors", lora(0))
    before = (tmp_path / "a.safetensors").read_bytes()
    fsync = os.fsync

    def lose(handle):
        os.truncate(handle, 100)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", lose)
    with pytest.raises(UserError, match="gives back something else"):
        save_adapter(tmp_path / "a.safetensors", lora(1))
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_file_that_another_program_reads_is_replaced_when_it_is_done(tmp_path, monkeypatch):
    """Windows refuses to replace a file that is open elsewhere."""
    replace, refusals = os.replace, [PermissionError(13, "Access is denied")] * 2

    def busy(*paths):
        if refusals:
            raise refusals.pop()
        replace(*paths)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    save_adapter(tmp_path / "a.safetensors", lora())
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(tmp_path / "a.safetensors", lora())
    assert not (tmp_path / "a.safetensors").exists()


def test_reading_back_gives_what_was_learned_in_each_part(tmp_path):
    path = tmp_path / "a.safetensors"
    save_adapter(path, lora())
    norms = read_back(path, shapes(lora()))
    t = lora()
    te = 0.5 * t["lora_te_fc1.lora_up.weight"] @ t["lora_te_fc1.lora_down.weight"]
    unet = t["lora_unet_conv1.lora_up.weight"].flatten(1) @ t["lora_unet_conv1.lora_down.weight"].flatten(1)
    assert norms == pytest.approx({"text_encoder": float(te.norm()), "unet": float(unet.norm())})


def test_reading_back_finds_what_is_wrong(tmp_path):
    path = tmp_path / "a.safetensors"

    def problem(tensors, expected=None):
        save_adapter(path, tensors)
        with pytest.raises(UserError) as error:
            read_back(path, expected or shapes(lora()))
        return str(error.value)

    name = "lora_unet_conv1.lora_up.weight"
    missing = problem({k: v for k, v in lora().items() if k != name})
    assert "1 tensors are missing" in missing
    assert name in missing
    assert str(path) in missing
    assert "(7, 3, 1, 1), (7, 9, 1, 1)" in problem(lora(), shapes(lora()) | {name: (7, 9, 1, 1)})
    nothing = problem(lora() | {name: torch.zeros(7, 3, 1, 1)})
    assert "unet: nothing was learned" in nothing
    assert "text_encoder" not in nothing


def test_files_that_are_no_lora_are_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_adapter(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="damaged"):
        load_adapter(tmp_path / "text.safetensors")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="damaged"):
        load_adapter(tmp_path / "text.pt")
    save_adapter(tmp_path / "whole.safetensors", lora())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="not copied to its end"):
        load_adapter(tmp_path / "cut.safetensors")
    safetensors.torch.save_file({"model.diffusion_model.a.weight": torch.ones(1)}, tmp_path / "base.safetensors")
    with pytest.raises(UserError, match="such as model.diffusion_model.a.weight. A base model"):
        load_adapter(tmp_path / "base.safetensors")


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"lora_unet_a.lora_down.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError):
        load_adapter(tmp_path / "evil.pt")
    assert not (tmp_path / "evil").exists()


def test_names_are_those_of_sd_scripts():
    assert file_name("girl", "safetensors") == "girl.safetensors"
    assert file_name("girl", "safetensors", epoch=4) == "girl-000004.safetensors"
    assert file_name("girl", "ckpt", step=500) == "girl-step00000500.ckpt"
    assert checkpoint.state_name("girl", epoch=4) == "girl-000004-state"
    assert checkpoint.state_name("girl") == "girl-state"


@pytest.mark.parametrize(
    "entry",
    ["girl.safetensors", "girl-000004.safetensors", "girl-step00000500.pt", "girl-state", "girl-000004-state",
     "girl.jsonl", "Girl.safetensors", "girl-previews", "girl.safetensors.part"],
)  # fmt: skip
def test_any_file_of_an_earlier_run_makes_its_name_taken(tmp_path, entry):
    assert free_name(tmp_path, "girl") == "girl"
    (tmp_path / entry).touch()
    assert free_name(tmp_path, "girl") == "girl-2"


def test_only_that_name_is_taken(tmp_path):
    for entry in ["girl2.safetensors", "girl-2.safetensors", "girl-2-000004.safetensors", "my girl.safetensors"]:
        (tmp_path / entry).touch()
    assert not is_taken(tmp_path, "girl")
    assert free_name(tmp_path / "not made yet", "girl") == "girl"
    (tmp_path / "girl.safetensors").touch()
    assert free_name(tmp_path, "girl") == "girl-3"
    assert free_name(tmp_path, "g.rl") == "g.rl"  # a name, not a pattern


def test_expired_saves_are_those_of_sd_scripts():
    assert [checkpoint.expired_epoch(e, 2, 3) for e in (2, 4, 6, 8, 10)] == [None, None, None, 2, 4]
    assert checkpoint.expired_epoch(8, 2, None) is None
    assert [checkpoint.expired_step(s, 100, 250) for s in (100, 200, 300, 400, 500)] == [None, None, None, 100, 200]
    assert checkpoint.expired_step(400, 100, 200) == 100  # that of 200 steps before is not older than 200
    assert checkpoint.expired_step(150, 100, 1) is None  # a save that was asked for in between removes nothing
    assert checkpoint.expired_step(400, 100, None) is None


def test_only_our_own_saves_are_removed(tmp_path):
    save_adapter(tmp_path / "a.safetensors", lora())
    checkpoint.save_state(tmp_path / "a-state", state())
    (tmp_path / "pictures").mkdir()
    for name in ["a.safetensors", "a-state", "pictures", "missing"]:
        checkpoint.remove_save(tmp_path / name)
    assert os.listdir(tmp_path) == ["pictures"]


def state(seed=0):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([dict(params=[parameter], lr=1e-3, name="unet")])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    schedule.step()
    return State(
        Position(3, 7, 100 + seed), lora(seed), optimizer.state_dict(), schedule.state_dict(), {"scale": 1024.0},
        {"output_name": "女孩"},
    )  # fmt: skip


def test_a_state_is_read_as_it_was_written(tmp_path):
    written = state()
    checkpoint.save_state(tmp_path / "a-state", written)
    read = checkpoint.load_state(tmp_path / "a-state")
    assert read.position == Position(epoch=3, batch_in_epoch=7, global_step=100)
    assert (read.facts, read.scaler, read.schedule) == (written.facts, written.scaler, written.schedule)
    assert all(torch.equal(read.adapter[name], tensor) for name, tensor in written.adapter.items())
    assert torch.equal(read.optimizer["state"][0]["exp_avg"], written.optimizer["state"][0]["exp_avg"])
    assert read.optimizer["param_groups"] == written.optimizer["param_groups"]
    assert json.loads((tmp_path / "a-state/state.json").read_text(encoding="utf-8"))["position"]["global_step"] == 100


def test_further_things_are_kept_with_a_state(tmp_path):
    average = torch.randn(3, generator=torch.Generator().manual_seed(0))
    written = dataclasses.replace(state(), more={"average": {"a": average}, "best": (0.25, 3), "losses": [0.1, 0.2]})
    checkpoint.save_state(tmp_path / "a-state", written)
    read = checkpoint.load_state(tmp_path / "a-state").more
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
        checkpoint.safetensors.torch.save = dying(safetensors.torch.save)
        work()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_a_whole_state_is_left(tmp_path):
    """The old one or the new one; found, and the next save works, without growing beyond two."""
    folder, moments, last = tmp_path / "a-state", 0, 0
    checkpoint.save_state(folder, state(last))
    while killed_at(moments + 1, partial(checkpoint.save_state, folder, state(last + 1))):
        moments += 1
        read = checkpoint.load_state(folder)
        seed = read.position.global_step - 100
        assert seed in (last, last + 1)
        assert all(torch.equal(read.adapter[name], tensor) for name, tensor in lora(seed).items())
        assert not read.notices
        last = seed + 1
        checkpoint.save_state(folder, state(last))
        assert checkpoint.load_state(folder).position.global_step == 100 + last
    assert moments > 8
    assert len(os.listdir(folder)) <= 6


def test_an_error_while_saving_a_state_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "a-state"
    checkpoint.save_state(folder, state(0))

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, full)
        with pytest.raises(UserError, match="No space left on device") as error:
            checkpoint.save_state(folder, state(1))
        assert isinstance(error.value.__cause__, OSError)  # disk.writing knows it by that
        monkeypatch.undo()
        assert checkpoint.load_state(folder).position.global_step == 100
        assert len(os.listdir(folder)) == 3  # nothing half-written takes space


@pytest.mark.parametrize("name", ["state-2.json", "adapter-2.safetensors", "training-2.pt"])
@pytest.mark.parametrize("harm", ["cut", "flipped", "zeros", "missing"])
def test_a_damaged_state_is_recognised_and_the_one_before_it_used(tmp_path, name, harm):
    folder = tmp_path / "a-state"
    for seed in (0, 1):
        checkpoint.save_state(folder, state(seed))
    assert checkpoint.load_state(folder).position.global_step == 101
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    harmed = {"cut": data[: len(data) // 2], "flipped": data, "zeros": bytes(len(data))}
    (folder / name).write_bytes(harmed[harm]) if harm in harmed else (folder / name).unlink()
    read = checkpoint.load_state(folder)
    assert read.position.global_step == 100
    if (name, harm) != ("state-2.json", "missing"):  # that is a save which was broken off
        assert "is damaged; the one before it is used, of step 100" in read.notices[0]
    checkpoint.save_state(folder, state(2))  # over the damaged one, not over the whole one
    (folder / "adapter-2.safetensors").write_bytes(b"")
    assert checkpoint.load_state(folder).position.global_step == 100


def run_state(name, step, **facts):
    return dataclasses.replace(
        state(),
        position=Position(1, step, step),
        facts=dict(name=name, config=dict(output_name="girl"), **facts),
    )


def test_the_newest_state_of_an_unfinished_run_is_found(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(checkpoint.time, "time", lambda: next(clock))
    assert checkpoint.newest_state(tmp_path / "not made yet", "girl") is None
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
        checkpoint.save_state(tmp_path / folder, saved)
    listed = checkpoint.candidates(tmp_path, "Girl")
    assert [candidate.position.global_step for candidate in listed] == [30, 20, 7, 5 * 3, 10]
    assert checkpoint.newest_state(tmp_path, "girl").facts["name"] == "girl-2"
    for name in ("adapter.safetensors", "adapter-2.safetensors"):
        (tmp_path / "girl-2-state" / name).write_bytes(b"")
    older = checkpoint.newest_state(tmp_path, "girl")
    assert (older.facts["name"], older.position.global_step) == ("girl", 15)
    assert "girl-2-state: the training state is damaged" in older.notices[0]
    for folder in ("girl-state", "girl-000001-state"):
        (tmp_path / folder / "training.pt").write_bytes(b"")
    with pytest.raises(UserError, match="girl-state: the training state is damaged"):
        checkpoint.newest_state(tmp_path, "girl")


def test_a_finished_run_is_not_resumed(tmp_path):
    checkpoint.save_state(tmp_path / "girl-state", run_state("girl", 15))
    assert checkpoint.newest_state(tmp_path, "girl").position.global_step == 15
    checkpoint.save_state(tmp_path / "girl-state", run_state("girl", 20, finished=True))
    assert checkpoint.newest_state(tmp_path, "girl") is None


def test_a_name_that_a_run_holds_is_taken_by_no_other(tmp_path):
    folder = tmp_path / "not made yet"
    first, second = checkpoint.claim_free_name(folder, "girl"), checkpoint.claim_free_name(folder, "girl")
    assert (first.name, second.name) == ("girl", "girl-2")
    with pytest.raises(UserError, match=f"girl in .* is being trained at this moment, by process {os.getpid()} on"):
        checkpoint.claim(folder, "girl")
    first.release()
    going_on = checkpoint.claim(folder, "girl")
    for held in (going_on, second):
        held.release()
    assert os.listdir(folder) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_of_a_killed_run_holds_nobody_up(tmp_path):
    child = os.fork()
    if not child:
        checkpoint.claim_free_name(tmp_path, "girl")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == ["girl.lock"]
    assert free_name(tmp_path, "girl") == "girl"
    held = checkpoint.claim_free_name(tmp_path, "girl")
    assert held.name == "girl"
    assert json.loads((tmp_path / "girl.lock").read_text())["pid"] == os.getpid()
    held.release()


def test_a_name_used_by_a_run_that_ended_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Between our look and our lock another run may have locked, written and released."""
    looks = []

    def is_taken_later(folder, name):
        looks.append(name)
        return looks.count("girl") > 1 and name == "girl"

    monkeypatch.setattr(checkpoint, "is_taken", is_taken_later)
    assert checkpoint.claim_free_name(tmp_path, "girl").name == "girl-2"
    assert os.listdir(tmp_path) == ["girl-2.lock"]


def test_room_is_made_by_the_oldest_epoch_but_the_last_good_file_stays(tmp_path):
    for epoch in (1, 2, 3):
        save_adapter(tmp_path / file_name("girl", "safetensors", epoch=epoch), lora())
    checkpoint.save_state(tmp_path / checkpoint.state_name("girl", epoch=1), state())
    save_adapter(tmp_path / "girl-2-000001.safetensors", lora())
    assert checkpoint.remove_oldest_epoch(tmp_path, "girl", keep=2)
    assert not checkpoint.remove_oldest_epoch(tmp_path, "girl", keep=2)
    left = ["girl-000002.safetensors", "girl-000003.safetensors", "girl-2-000001.safetensors"]
    assert sorted(os.listdir(tmp_path)) == left
    assert checkpoint.remove_oldest_epoch(tmp_path, "girl", keep=0)
    assert not checkpoint.remove_oldest_epoch(tmp_path, "girl", keep=0)


def test_what_could_not_be_read_again_fails_when_it_is_saved(tmp_path):
    odd = state()
    odd.optimizer["own"] = random.Random()
    with pytest.raises(UserError, match="cannot be saved .it holds a random.Random"):
        checkpoint.save_state(tmp_path / "a-state", odd)
    assert os.listdir(tmp_path) == []


def test_folders_that_are_no_state_are_told(tmp_path):
    with pytest.raises(UserError, match="network_weights"):
        checkpoint.load_state(tmp_path / "missing-state")
    (tmp_path / "kohya-state").mkdir()
    (tmp_path / "kohya-state/optimizer.bin").touch()
    with pytest.raises(UserError, match="sd-scripts"):
        checkpoint.load_state(tmp_path / "kohya-state")
    checkpoint.save_state(tmp_path / "a-state", state())
    (tmp_path / "a-state/training.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_state(tmp_path / "a-state")
