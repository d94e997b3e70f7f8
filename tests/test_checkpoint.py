"""Adapter files and training states: what is written can be read, a crash loses nothing, damage is told."""

import hashlib
import json
import os
import random
import struct

import pytest
import safetensors
import safetensors.torch
import torch

from library import checkpoint
from library.checkpoint import Position, State, file_name, free_name, is_taken, load_adapter, read_back, save_adapter
from library.messages import UserError


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
    assert "infinities or NaN" in problem(lora() | {name: torch.full((7, 3, 1, 1), float("nan"))})
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


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_while_saving_a_state_leaves_the_old_one(tmp_path, monkeypatch, crash_at):
    folder = tmp_path / "a-state"
    checkpoint.save_state(folder, state(0))
    replace, calls = os.replace, []

    def crash(*paths):
        calls.append(paths)
        if len(calls) == crash_at:  # 1: the old one is still in place; 2: it has just been put aside
            raise OSError(5, "Input/output error")
        replace(*paths)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(UserError, match="Input/output error"):
        checkpoint.save_state(folder, state(1))
    monkeypatch.undo()
    assert checkpoint.load_state(folder).position.global_step == 100
    checkpoint.save_state(folder, state(2))
    assert checkpoint.load_state(folder).position.global_step == 102
    assert os.listdir(tmp_path) == ["a-state"]


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
