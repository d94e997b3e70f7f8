"""Checkpoints rewritten tensor by tensor: what is changed is changed, the rest is the same bytes, memory is small."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from library import families
from library.families import rewriting
from library.families.clip_text import clip_merges
from library.lora_files import merging
from library.lora_files.factors import read_factors
from library.messages import UserError
from tests.conftest import write_diffusers_folder
from tests.families.test_families import TINY, original_layout
from tests.lora_files.test_merging import random_lora


@pytest.fixture(autouse=True)
def tiny_configs(monkeypatch):
    """Single files carry no configuration: those of these tests are tiny."""
    monkeypatch.setattr(families, "read_configs", TINY.__getitem__)
    merges = clip_merges()[:256]
    monkeypatch.setattr("library.families.clip_text.clip_merges", lambda: merges)


def write_model(path, name, dtype=torch.float16):
    """A checkpoint as they are found: half precision, but for a few tensors of other types."""
    tensors = {
        key: tensor.to(dtype).clone().contiguous() for key, tensor in original_layout(families.tiny(name)).items()
    }
    tensors |= {
        "alphas_cumprod": torch.rand(7, dtype=torch.float32),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
    }
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt", "modelspec.title": "Füchse 狐"})
    else:
        torch.save({"state_dict": tensors, "global_step": 3}, path)
    return tensors


def changes_of(info, tensors, strength=1.0):
    """What merging a LoRA changes in a model's files."""
    family = families.blueprint(info)
    layers = {target.saved_as: target for target in family.layers()}
    stored = families.stored_weights(info, family)
    return {
        stored[layers[key].layer]: partial(merging.with_updates, updates=[(factors, strength)])
        for key, factors in read_factors("x", tensors).items()
    }


@pytest.mark.slow("writes and opens models of each family")
@pytest.mark.parametrize(("name", "suffix"), [("sd1", ".safetensors"), ("sd2", ".ckpt"), ("sdxl", ".safetensors")])
def test_a_merged_file_is_the_merged_model(tmp_path, name, suffix):
    """Read back by the loader of base models its weights are those that merging in memory gives, to the bit."""
    write_model(tmp_path / f"base{suffix}", name)
    lora = random_lora(families.tiny(name), conv=True)
    info = families.inspect(tmp_path / f"base{suffix}")
    rewriting.rewrite(info, tmp_path / "new.safetensors", changes_of(info, lora, 0.7))
    opened = [
        families.open_model(path, dtype=torch.float16, vae_dtype=torch.float16, configs=TINY[name])
        for path in (info.path, tmp_path / "new.safetensors")
    ]
    with merging.Merging(opened[0].layers()) as model:
        model.apply([merging.Strength(read_factors("x", lora), 0.7, 0.7)])
        for part, module in opened[0].modules().items():
            other = opened[1].modules()[part].state_dict()
            assert all(torch.equal(tensor, other[key]) for key, tensor in module.state_dict().items()), part


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_what_no_lora_touches_is_the_same_to_the_byte(tmp_path, name):
    before = write_model(tmp_path / "base.safetensors", name)
    family = families.tiny(name)
    some = {key: value for key, value in random_lora(family).items() if "attn2" in key or "self_attn_q_proj" in key}
    info = families.inspect(tmp_path / "base.safetensors")
    changes = changes_of(info, some)
    rewriting.rewrite(info, tmp_path / "new.safetensors", changes)
    after = load_file(tmp_path / "new.safetensors")
    touched = {stored.source.name for stored in changes}
    assert list(after) == list(load_file(tmp_path / "base.safetensors"))
    assert {key for key in before if not torch.equal(before[key], after[key])} == touched
    assert all(before[key].dtype == after[key].dtype for key in before)
    assert rewriting.Reader(tmp_path / "new.safetensors").metadata == {"format": "pt", "modelspec.title": "Füchse 狐"}
    assert not list(tmp_path.glob("*.part"))


def test_w_plus_s_up_down_in_float32_and_cast_once(tmp_path):
    """By hand, also for a third of a joint matrix."""
    before = write_model(tmp_path / "base.safetensors", "sdxl")
    lora = random_lora(families.tiny("sdxl"), alpha=3.0)
    info = families.inspect(tmp_path / "base.safetensors")
    rewriting.rewrite(info, tmp_path / "new.safetensors", changes_of(info, lora, 0.5))
    after = load_file(tmp_path / "new.safetensors")

    def update(layer):
        up, down = (lora[f"{layer}.lora_{end}.weight"] for end in ("up", "down"))
        return 0.5 * (3.0 / 2 * (up @ down))

    at = "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight"
    joint = torch.cat([update(f"lora_te2_text_model_encoder_layers_1_self_attn_{x}_proj") for x in "qkv"])
    assert torch.equal(after[at], (before[at].float() + joint).half())
    at = "model.diffusion_model.middle_block.1.transformer_blocks.1.ff.net.2"
    expected = before[f"{at}.weight"].float() + update("lora_unet_middle_block_1_transformer_blocks_1_ff_net_2")
    assert torch.equal(after[f"{at}.weight"], expected.half())


def test_another_precision_is_that_of_all_floating_point_numbers(tmp_path):
    before = write_model(tmp_path / "base.safetensors", "sd1")
    info = families.inspect(tmp_path / "base.safetensors")
    rewriting.rewrite(info, tmp_path / "new.safetensors", {}, dtype=torch.bfloat16)
    after = load_file(tmp_path / "new.safetensors")
    assert all(
        torch.equal(after[key], tensor.bfloat16() if tensor.is_floating_point() else tensor)
        for key, tensor in before.items()
    )


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_folder_of_diffusers_is_copied_with_its_weights_changed(tmp_path, name):
    folder = write_diffusers_folder(tmp_path / "base", families.tiny(name))
    lora = random_lora(families.tiny(name), conv=True)
    info = families.inspect(folder)
    rewriting.rewrite(info, tmp_path / "new", changes_of(info, lora))
    kept = lambda root: {path.relative_to(root) for path in root.rglob("*") if path.is_file()}  # noqa: E731
    assert kept(tmp_path / "new") == kept(folder)
    opened = [families.open_model(path, dtype=torch.float32) for path in (folder, tmp_path / "new")]
    with merging.Merging(opened[0].layers()) as model:
        model.apply([merging.Strength(read_factors("x", lora), 1, 1)])
        for part, module in opened[0].modules().items():
            other = opened[1].modules()[part].state_dict()
            assert all(torch.equal(tensor, other[key]) for key, tensor in module.state_dict().items()), part


def test_a_weight_too_large_for_its_type_is_told_and_nothing_is_left(tmp_path):
    write_model(tmp_path / "base.safetensors", "sd1")
    lora = random_lora(families.tiny("sd1"), size=1000)
    info = families.inspect(tmp_path / "base.safetensors")
    with pytest.raises(UserError, match='is too large for float16: nothing was written. Set save_precision to "bf16"'):
        rewriting.rewrite(info, tmp_path / "new.safetensors", changes_of(info, lora))
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_quantized_weight_is_refused(tmp_path):
    tensors = write_model(tmp_path / "base.safetensors", "sd1")
    at = "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight"
    save_file(tensors | {at: tensors[at].to(torch.float8_e4m3fn)}, tmp_path / "base.safetensors")
    info = families.inspect(tmp_path / "base.safetensors")
    rewriting.rewrite(info, tmp_path / "same.safetensors", {})  # what is not touched is only copied
    assert load_file(tmp_path / "same.safetensors")[at].dtype == torch.float8_e4m3fn
    with pytest.raises(UserError, match="ff.net.2.weight is quantized .F8_E4M3.: use the fp16, bf16 or fp32 version"):
        rewriting.rewrite(info, tmp_path / "new.safetensors", changes_of(info, random_lora(families.tiny("sd1"))))


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from library.families import rewriting
from library.families.loading import Source
from library.contracts import ModelInfo
path, target = Path(sys.argv[1]), Path(sys.argv[2])
info = ModelInfo(path, "sd1", "epsilon", "", False, "single file", 512, 64, 320)
torch.ones(512, 512) @ torch.ones(512, 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
change = {rewriting.Stored(path, Source(f"layer{n}")): lambda tensor: tensor.float() + 1 for n in range(0, 100, 2)}
rewriting.rewrite(info, target, change)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow("writes 200 MiB, and imports torch in a process of its own")
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in other units elsewhere")
def test_memory_stays_at_a_few_tensors_however_large_the_file(tmp_path):
    """100 tensors of 2 MiB: what the process takes more is less than 15 of them."""
    save_file(
        {f"layer{n}": torch.full((1024, 1024), n, dtype=torch.float16) for n in range(100)}, tmp_path / "a.safetensors"
    )
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=families.__file__.partition("library")[0]
    )
    assert float(done.stdout) < 30  # MiB
    after = rewriting.Reader(tmp_path / "b.safetensors")
    assert float(after.read("layer4")[0, 0]) == 5
    assert float(after.read("layer5")[0, 0]) == 5
