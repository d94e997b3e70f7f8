"""Adapter files: what is written can be read, a crash loses nothing, damage is told."""

import dataclasses
import hashlib
import os
import struct

import pytest
import safetensors
import safetensors.torch
import torch

from library import files
from library.messages import UserError
from library.storage import lora_file, training_state
from library.storage.lora_file import load_adapter, read_back, save_adapter
from tests.held_files import sharing_violation
from tests.storage.written import lora, state

PARTS = {"lora_te_fc1": "text_encoder", "lora_unet_conv1": "denoiser"}


def shapes(tensors):
    return {name: tensor.shape for name, tensor in tensors.items()}


def metadata_of(path):
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("extension", ["safetensors", "ckpt", "pt"])
@pytest.mark.parametrize("precision", lora_file.PRECISIONS)
def test_what_is_saved_can_be_loaded(tmp_path, extension, precision):
    dtype = lora_file.PRECISIONS[precision]
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


def test_hashes_are_those_of_sd_scripts(tmp_path):
    tensors = {"lora_unet_a.lora_down.weight": torch.arange(400_000.0).reshape(4, 100_000)}
    path = tmp_path / "a.safetensors"
    save_adapter(path, tensors, {"ss_training_comment": "x" * 1000})
    metadata = metadata_of(path)
    data = path.read_bytes()
    header_size = struct.unpack("<Q", data[:8])[0]
    values = tensors["lora_unet_a.lora_down.weight"].numpy().tobytes()
    assert data[8 + header_size :] == values
    assert metadata["sshs_model_hash"] == hashlib.sha256(values).hexdigest()
    as_there = safetensors.torch.save(tensors, {"ss_training_comment": "x" * 1000})  # sd-scripts' way: ss_* count
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(as_there[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]
    save_adapter(path, tensors, {"ss_training_comment": "x" * 1000, "modelspec.title": "another"})
    assert {key: metadata_of(path)[key] for key in metadata} == metadata  # what people edit later does not count
    save_adapter(path, tensors, {})
    assert metadata_of(path)["sshs_model_hash"] == metadata["sshs_model_hash"]


@pytest.mark.parametrize("precision", lora_file.PRECISIONS)
def test_the_magnitudes_of_a_dora_stay_float32(tmp_path, precision):
    """Half precision would round away what they have learned: a thousandth of their size, say."""
    scale = torch.tensor([[1.0, 2.0, 3.0]]) * 1.001
    tensors = lora() | {"lora_unet_conv1.dora_scale": scale}
    save_adapter(tmp_path / "a.safetensors", tensors, dtype=lora_file.PRECISIONS[precision])
    written = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert torch.equal(written["lora_unet_conv1.dora_scale"], scale)
    assert {tensor.dtype for name, tensor in written.items() if not name.endswith("dora_scale")} == {
        lora_file.PRECISIONS[precision]
    }


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
    with pytest.raises(FloatingPointError, match=rf"a.safetensors was not written: {name} contains"):
        save_adapter(tmp_path / "a.safetensors", broken)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    with pytest.raises(FloatingPointError, match=f"{name} contains"):
        training_state.save_state(tmp_path / "a-state", dataclasses.replace(state(), adapter=broken))
    moments = state()
    moments.optimizer["state"][0]["exp_avg"] = torch.tensor([bad * 0])  # NaN in both cases
    with pytest.raises(FloatingPointError, match="optimizer/state/0/exp_avg contains"):
        training_state.save_state(tmp_path / "a-state", moments)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_value_too_large_for_fp16_is_told_with_its_cure(tmp_path):
    large = lora() | {"lora_unet_conv1.lora_up.weight": torch.full((7, 3, 1, 1), 1e6)}
    with pytest.raises(FloatingPointError, match='lora_up.weight contains .* in this save_precision: use "bf16"'):
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
    with pytest.raises(UserError, match="read back differs"):
        save_adapter(tmp_path / "a.safetensors", lora(1))
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_file_that_another_program_reads_is_replaced_when_it_is_done(tmp_path, monkeypatch):
    """Windows refuses to replace a file that is open elsewhere."""
    replace, refusals = os.replace, [sharing_violation(tmp_path / "a.safetensors")] * 2

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
    norms = read_back(path, shapes(lora()), PARTS)
    t = lora()
    te = 0.5 * t["lora_te_fc1.lora_up.weight"] @ t["lora_te_fc1.lora_down.weight"]
    unet = t["lora_unet_conv1.lora_up.weight"].flatten(1) @ t["lora_unet_conv1.lora_down.weight"].flatten(1)
    assert norms == pytest.approx({"text_encoder": float(te.norm()), "denoiser": float(unet.norm())})


def test_reading_back_finds_what_is_wrong(tmp_path):
    path = tmp_path / "a.safetensors"

    def problem(tensors, expected=None):
        save_adapter(path, tensors)
        with pytest.raises(UserError) as error:
            read_back(path, expected or shapes(lora()), PARTS)
        return str(error.value)

    name = "lora_unet_conv1.lora_up.weight"
    missing = problem({k: v for k, v in lora().items() if k != name})
    assert "1 tensors are missing" in missing
    assert name in missing
    assert str(path) in missing
    assert "(7, 3, 1, 1), (7, 9, 1, 1)" in problem(lora(), shapes(lora()) | {name: (7, 9, 1, 1)})
    nothing = problem(lora() | {name: torch.zeros(7, 3, 1, 1)})
    assert "denoiser: nothing was learned" in nothing
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
