"""Families: what a checkpoint is, loading it without network, and what its captions and layers become."""

import gzip
import json
import pickle
import shutil
import socket
import struct
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils as diffusers_names
from safetensors.torch import save_file

from library import messages
from library.families import (
    FAMILIES,
    architecture,
    describe,
    facts_of,
    inspect,
    is_everyday_word,
    open_model,
    sd,
    sdxl,
    tiny,
    token_counts,
)
from library.families.clip_text import (
    build_tokenizer,
    caption_tokens,
    clip_merges,
    clip_sources,
    encode,
    folder_tokenizer,
    open_clip_sources,
    tokenize,
    weighted_chunks,
)
from library.families.unet.names import original_unet_name
from library.families.vae_kl import original_sources
from library.messages import UserError

DATA = Path(__file__).parents[1] / "golden"
TINY = sd.TINY | sdxl.TINY
true_size = lru_cache(architecture)  # on the meta device, so nobody can change it
UNET = "model.diffusion_model."
SIZES = torch.tensor([[24, 16, 4, 0, 16, 16], [1023, 769, 0, 5, 1024, 768]])
CAPTIONS = ["1girl, solo, red hair", "a photo of a very old cat"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every test of this file runs without network; whoever tries to connect fails."""

    def refuse(*_arguments, **_keywords):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def english():
    messages.set_language("en")
    yield
    messages.set_language("en")


# ---- Writing models as others write them ----


def text_sources(name, family):
    """Where a checkpoint keeps each parameter of a text encoder of this family, first choice."""
    if family.facts.name == "sd1":
        return lambda key: next(iter(clip_sources(key, "cond_stage_model.transformer.")))
    if family.facts.name == "sd2":
        return lambda key: next(iter(open_clip_sources(key, "cond_stage_model.model.")))
    if name == "text_encoder":
        return lambda key: next(iter(clip_sources(key, "conditioner.embedders.0.transformer.")))
    return lambda key: next(iter(open_clip_sources(key, "conditioner.embedders.1.model.")))


def original_layout(family):
    """All tensors of a family under the original names: the inverse of loading."""
    unet, vae = family.unet, family.vae
    config = unet.config
    tensors = {
        UNET + original_unet_name(name, config.layers_per_block, config.up_block_types): tensor
        for name, tensor in unet.state_dict().items()
    }
    block_count = len(vae.config.block_out_channels)
    for name, tensor in vae.state_dict().items():
        source = next(iter(original_sources(name, "first_stage_model.", block_count))).name
        is_attention = ".attn_1." in source and source.endswith("weight") and "norm" not in source
        tensors[source] = tensor[:, :, None, None] if is_attention else tensor
    for part in ("text_encoder", "text_encoder_2"):
        if part not in family.modules():
            continue
        joint = {}
        for name, tensor in family.modules()[part].state_dict().items():
            source = text_sources(part, family)(name)
            if source.third is not None:
                joint.setdefault(source.name, {})[source.third] = tensor
            else:
                tensors[source.name] = tensor.T if source.is_transposed else tensor
        tensors |= {name: torch.cat([parts[third] for third in range(3)]) for name, parts in joint.items()}
    if family.facts.name == "sd2":  # the layer that SD 2.x does not use, and what only CLIP's own training needs
        prefix = "cond_stage_model.model."
        last = family.text_encoder.config.num_hidden_layers
        before = f"{prefix}transformer.resblocks.{last - 1}."
        extra = {name.replace(before, f"{prefix}transformer.resblocks.{last}."): t for name, t in tensors.items()}
        width = family.text_encoder.config.hidden_size
        extra[prefix + "text_projection"] = torch.zeros(width, width)
        tensors |= extra | {prefix + "logit_scale": torch.ones(())}
    return tensors


def write_checkpoint(path, family, metadata=None, drop=(), **extra):
    tensors = {name: t.clone().contiguous() for name, t in original_layout(family).items()} | extra
    tensors = {name: t for name, t in tensors.items() if not name.startswith(tuple(drop))}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata)
    else:
        torch.save({"state_dict": tensors, "global_step": 3}, path)
    return path


def write_folder(path, family, scheduler=None, tokenizer_form="vocab.json"):
    """A diffusers folder, as a person would have it."""
    for name, module in family.modules().items():
        module.save_pretrained(path / (family.facts.parts[name].folder if name in family.facts.parts else name))
    for name, pad_token in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        tokenizer = getattr(family, name, None)
        if tokenizer is None:
            continue
        (path / name).mkdir()
        if tokenizer_form == "tokenizer.json":
            tokenizer.save_pretrained(path / name)
            continue
        merges = clip_merges()[: len(tokenizer) - 514]
        (path / name / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
        (path / name / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        pad = sd.PAD_TOKEN.get(family.facts.name, pad_token)
        (path / name / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": pad}}))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler or {}))
    return path


def write_header(path, shapes, metadata=None):
    """A safetensors file of these names and shapes, all zero and sparse on disk."""
    entries, end = {"__metadata__": metadata or {}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(torch.tensor(shape).prod())
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return path


def outputs(family):
    """All that a family gives, for comparison."""
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = family.encode_images(pixels)
    conditioning = family.encode_captions(CAPTIONS) | family.size_conditioning(SIZES)
    prediction = family.predict(latents, torch.tensor([10, 700]), conditioning)
    found = [latents, family.decode_latents(latents), conditioning["states"], prediction]
    return found + ([conditioning["pooled"]] if "pooled" in conditioning else [])


def same(family, other):
    """Same bits in every parameter; outputs may differ in the last place, as memory-mapped weights lie unaligned."""
    for part, module in other.modules().items():
        theirs, ours = module.state_dict(), family.modules()[part].state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for ours, theirs in zip(outputs(family), outputs(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# ---- Names ----


def shapes_at_rank_4(target, rank=4):
    """A line of the golden lists: shapes of both halves of a LoRA."""
    layer = target.layer
    if isinstance(layer, torch.nn.Linear):
        return f"down {rank}x{layer.in_features} up {layer.out_features}x{rank}"
    kernel = "x".join(map(str, layer.kernel_size))
    rank = rank if layer.kernel_size == (1, 1) else 3  # the lists were made with a rank of its own for 3x3 layers
    return f"down {rank}x{layer.in_channels}x{kernel} up {layer.out_channels}x{rank}x1x1"


@pytest.mark.parametrize(
    ("name", "golden", "with_conv", "module_count", "unet_count"),
    [
        ("sd1", "sd15", False, 264, 192),
        ("sd1", "sd15_conv", True, 350, 278),
        ("sd2", "sd21", False, 330, 192),
        ("sdxl", "sdxl", False, 986, 722),
        ("sdxl", "sdxl_conv", True, 1052, 788),
    ],
)
def test_saved_names_and_shapes_are_those_that_web_uis_read(name, golden, with_conv, module_count, unet_count):
    targets = [target for target in true_size(name).targets() if with_conv or not target.needs_conv_dim]
    ours = [f"{target.saved_as} {shapes_at_rank_4(target)}" for target in targets]
    assert len(ours) == module_count
    assert sum(target.part == "denoiser" for target in targets) == unet_count
    golden_lines = gzip.decompress((DATA / f"lora_keys_{golden}.txt.gz").read_bytes()).decode().splitlines()
    assert sorted(ours) == sorted(golden_lines)


def diffusers_conversion(family):
    """diffusers' own reading of our original layout, as an independent judge of all names."""
    tensors = original_layout(family)
    yield family.unet, diffusers_names.convert_ldm_unet_checkpoint(tensors, family.unet.config)
    yield family.vae, diffusers_names.convert_ldm_vae_checkpoint(tensors, family.vae.config)
    for part, module in family.modules().items():
        if not part.startswith("text"):
            continue
        if family.facts.name == "sd1" or (family.facts.name == "sdxl" and part == "text_encoder"):
            converted = diffusers_names.convert_ldm_clip_checkpoint(tensors)
        else:
            prefix = "cond_stage_model.model." if family.facts.name == "sd2" else "conditioner.embedders.1.model."
            own = {name: tensor for name, tensor in tensors.items() if not name.endswith("logit_scale")}
            converted = diffusers_names.convert_open_clip_checkpoint(module, own, prefix)
        wrapped = hasattr(module, "text_model")
        yield module, {name if wrapped else name.removeprefix("text_model."): t for name, t in converted.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_original_name_at_true_size_is_the_one_that_diffusers_knows(name):
    for module, converted in diffusers_conversion(true_size(name)):
        expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        got = {key: tuple(tensor.shape) for key, tensor in converted.items() if key != "text_projection.weight"}
        expected.pop("text_projection.weight", None)
        assert got == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_every_original_tensor_has_the_values_that_diffusers_reads(name):
    """A round trip alone would not notice query and key exchanged, or a projection not transposed."""
    for module, converted in diffusers_conversion(tiny(name)):
        for key, tensor in module.state_dict().items():
            assert torch.equal(converted[key], tensor), key


def test_upsamplers_stand_behind_the_attention_if_there_is_one():
    """diffusers reads both forms, so it is no judge of this."""
    assert UNET + "output_blocks.2.1.conv.weight" in original_layout(true_size("sd1"))
    assert UNET + "output_blocks.5.2.conv.weight" in original_layout(true_size("sd1"))
    assert UNET + "output_blocks.2.2.conv.weight" in original_layout(true_size("sdxl"))


def test_no_true_base_model_is_taken_for_something_else(tmp_path):
    """The marks of foreign models occur in no name of a base model."""
    for name in FAMILIES:
        shapes = {key: tuple(tensor.shape) for key, tensor in original_layout(true_size(name)).items()}
        shapes |= {"model_ema.decay": (1,), "alphas_cumprod": (1000,)}
        info = inspect(write_header(tmp_path / f"{name}.safetensors", shapes))
        assert info.family == name
        assert info.size_step == true_size(name).size_step == (32 if name == "sdxl" else 64)


# ---- Loading ----


@pytest.mark.slow("writes and opens models of each family")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_gives_the_model_that_was_written(tmp_path, name, suffix):
    family = tiny(name)
    path = write_checkpoint(tmp_path / f"model{suffix}", family, model_ema=torch.zeros(3))
    # the tiny vocabulary is no file's own: CLIP's would have ids that the tiny encoder does not know
    loaded = open_with_tiny_vocabulary(path, family)
    same(loaded, family)
    assert loaded.facts.name == name
    assert all(not p.requires_grad for module in loaded.modules().values() for p in module.parameters())
    assert not any(module.training for module in loaded.modules().values())


def open_with_tiny_vocabulary(path, tiny_family, /, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("library.families.clip_text.clip_merges", lambda: clip_merges()[:256])
        return open_model(path, **{"dtype": torch.float32, "configs": TINY[tiny_family.facts.name]} | options)


@pytest.mark.slow("writes and opens models of each family")
@pytest.mark.parametrize("tokenizer_form", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_diffusers_folder_gives_the_model_that_was_written(tmp_path, name, tokenizer_form):
    family = tiny(name, max_token_length=150)
    scheduler = {"prediction_type": "v_prediction", "beta_start": 0.001}
    folder = write_folder(tmp_path / "model", family, scheduler, tokenizer_form)
    loaded = open_model(folder, dtype=torch.float32, max_token_length=150)
    same(loaded, family)
    assert loaded.noise.objective == "v"
    assert loaded.noise.beta_start == 0.001
    assert loaded.size_step == family.size_step == loaded.info.size_step == 16
    counted = [count for count, _ in family.token_counts(CAPTIONS)]
    assert token_counts(loaded.info, CAPTIONS) == counted
    assert describe(loaded.info) == (
        f"model ({facts_of(name).title}, v: scheduler_config.json: prediction_type = v_prediction)"
    )


def test_bin_files_variants_and_shards_are_found(tmp_path):
    family = tiny("sd1")
    folder = write_folder(tmp_path / "model", family)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(
        folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save(family.text_encoder.state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    weights = list(family.unet.state_dict().items())
    for index, part in enumerate((weights[:50], weights[50:]), 1):
        save_file(dict(part), folder / "unet" / f"diffusion_pytorch_model-0000{index}-of-00002.safetensors")
    same(open_model(folder, dtype=torch.float32), family)
    (folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="1 of 2 parts of the U-Net"):
        open_model(folder, dtype=torch.float32)


def test_early_checkpoints_without_the_text_model_wrapper_load(tmp_path):
    """NovelAI's first model, from which many anime models descend, names its text encoder so."""
    family = tiny("sd1")
    tensors = {
        name.replace("transformer.text_model.", "transformer."): t for name, t in original_layout(family).items()
    }
    tensors["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    save_file({name: t.clone().contiguous() for name, t in tensors.items()}, tmp_path / "nai.safetensors")
    same(open_with_tiny_vocabulary(tmp_path / "nai.safetensors", family), family)


def test_weights_arrive_in_the_dtype_asked_for_and_sdxl_keeps_its_vae_in_float32(tmp_path):
    for name, vae_dtype in (("sd1", torch.float16), ("sdxl", torch.float32)):
        path = write_checkpoint(tmp_path / f"{name}.safetensors", tiny(name))
        loaded = open_with_tiny_vocabulary(path, tiny(name), dtype=torch.float16)
        assert {p.dtype for p in loaded.unet.parameters()} == {torch.float16}
        assert {p.dtype for p in loaded.vae.parameters()} == {vae_dtype}
        assert loaded.encode_images(torch.zeros(1, 3, 8, 8)).dtype == vae_dtype
    safe = TINY["sdxl"] | {"vae": TINY["sdxl"]["vae"] | {"force_upcast": False}}
    assert open_with_tiny_vocabulary(path, tiny("sdxl"), dtype=torch.float16, configs=safe).vae.dtype == torch.float16


@pytest.mark.slow("opens a model for each kind of file")
@pytest.mark.parametrize(
    "form", ["original", "original.pt", "whole checkpoint", "diffusers", "early diffusers", "folder"]
)
def test_another_vae_takes_the_place_of_the_models(tmp_path, form):
    family, other = tiny("sd1"), tiny("sd1", seed=7)
    path = write_checkpoint(tmp_path / "model.safetensors", family, drop=("first_stage_model.",))
    vae = tmp_path / ("vae.pt" if form == "original.pt" else "vae.safetensors")
    inner = {
        name.removeprefix("first_stage_model."): tensor.clone().contiguous()
        for name, tensor in original_layout(other).items()
        if name.startswith("first_stage_model.")
    }
    if form == "original":
        save_file(inner, vae)
    elif form == "original.pt":
        torch.save({"state_dict": inner | {"loss.logvar": torch.zeros(1)}}, vae)
    elif form == "whole checkpoint":
        write_checkpoint(vae, other)
    elif form == "folder":
        vae = tmp_path / "vae"
        other.vae.save_pretrained(vae)
    else:
        early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        weights = other.vae.state_dict()
        if form == "early diffusers":
            for new, old in early.items():
                weights = {
                    name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): weights[name] for name in weights
                }
        save_file(weights, vae)
    loaded = open_with_tiny_vocabulary(path, family, vae=vae)
    pixels = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(loaded.encode_images(pixels), other.encode_images(pixels))
    torch.testing.assert_close(
        loaded.decode_latents(torch.ones(1, 4, 4, 4)), other.decode_latents(torch.ones(1, 4, 4, 4))
    )


def test_a_vae_of_another_line_is_refused_or_warned_of(tmp_path):
    family = tiny("sd1")
    path = write_checkpoint(tmp_path / "model.safetensors", family)
    write_header(tmp_path / "flux_vae.safetensors", {"decoder.conv_in.weight": (512, 16, 3, 3)})
    with pytest.raises(UserError, match="16 channels"):
        open_with_tiny_vocabulary(path, family, vae=tmp_path / "flux_vae.safetensors")
    write_header(tmp_path / "lora.safetensors", {"lora_unet_x.lora_down.weight": (4, 8)})
    with pytest.raises(UserError, match="contains no VAE"):
        open_with_tiny_vocabulary(path, family, vae=tmp_path / "lora.safetensors")
    tiny("sdxl").vae.save_pretrained(tmp_path / "vae")
    assert "0.13025" in open_with_tiny_vocabulary(path, family, vae=tmp_path / "vae").warnings[0]


def test_what_a_file_lacks_or_has_beyond_is_said_by_name(tmp_path):
    family = tiny("sd1")
    some = UNET + "middle_block.0.in_layers.2"
    path = write_checkpoint(tmp_path / "a.safetensors", family, drop=(some,))
    with pytest.raises(
        UserError, match=r"a\.safetensors: its U-Net does not fit.* 2 missing: .*middle_block.0.in_layers.2"
    ):
        open_with_tiny_vocabulary(path, family)
    path = write_checkpoint(tmp_path / "b.safetensors", family, **{UNET + "extra.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"1 unknown: model.diffusion_model.extra.weight"):
        open_with_tiny_vocabulary(path, family)
    path = write_checkpoint(tmp_path / "c.safetensors", family, **{UNET + "out.2.weight": torch.ones(4, 9, 3, 3)})
    with pytest.raises(UserError, match=r"out.2.weight \[4, 9, 3, 3\] / \[4, 8, 3, 3\]"):
        open_with_tiny_vocabulary(path, family)
    path = write_checkpoint(tmp_path / "d.safetensors", family, drop=("first_stage_model.",))
    with pytest.raises(UserError, match="contains no VAE.*under `vae`"):
        open_with_tiny_vocabulary(path, family)


def test_a_pickle_that_would_run_code_is_refused_by_name_and_does_not_run(tmp_path):
    import os

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Payload()}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"would run (posix|nt|os)\.mkdir"):
        inspect(tmp_path / "bad.ckpt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"a": Payload()}, protocol=2))
    with pytest.raises(UserError):
        inspect(tmp_path / "old.ckpt")
    assert not (tmp_path / "was_run").exists()


def test_checkpoints_of_the_first_years_load_although_they_name_lightnings_classes(tmp_path):
    """sd-v1-4.ckpt carries its trainer's callback beside the weights."""
    family = tiny("sd1")
    module = type(sys)("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback
    content = {"state_dict": original_layout(family), "callbacks": {callback: {"best": 1.0}}, "x": callback()}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save(content, tmp_path / "v1.ckpt")
        torch.save(content, tmp_path / "older.ckpt", _use_new_zipfile_serialization=False)
    for name in ("v1.ckpt", "older.ckpt"):
        same(open_with_tiny_vocabulary(tmp_path / name, family), family)


def test_recognising_a_model_does_not_import_torch(tmp_path):
    """Mistakes are told within a second, before torch is imported."""
    path = write_checkpoint(tmp_path / "model.safetensors", tiny("sd2"))
    code = f"import sys; from library.families import inspect; inspect({str(path)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


# ---- Epsilon or v ----


@pytest.mark.parametrize(
    ("name", "extra", "metadata", "objective", "source"),
    [
        ("sdxl", {}, None, "epsilon", "no mark"),
        ("sdxl", {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, None, "v", "v_pred"),
        ("sdxl", {}, {"modelspec.prediction_type": "v"}, "v", "modelspec.prediction_type = v"),
        ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v", "modelspec.architecture"),
        ("sd2", {}, {"modelspec.architecture": "x", "ss_base_model_version": "sd_v2_v"}, "v", "sd_v2_v"),
        ("sd2", {}, {"modelspec.prediction_type": "epsilon"}, "epsilon", "modelspec"),
        ("sd1", {}, {"ss_base_model_version": "sd_v1"}, "epsilon", "no mark"),
    ],
)
def test_the_objective_is_seen_in_marks_and_metadata(tmp_path, name, extra, metadata, objective, source):
    for suffix in (".safetensors",) if metadata else (".safetensors", ".ckpt"):  # a pickle has no metadata
        info = inspect(write_checkpoint(tmp_path / f"model{suffix}", tiny(name), metadata, **extra))
        assert info.objective == objective
        assert source in info.objective_source
        assert info.zero_terminal_snr == ("ztsnr" in extra)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("spread", "objective"), [(0.02, "epsilon"), (0.2, "v")])
def test_sd2_without_marks_is_told_by_the_spread_of_one_bias(tmp_path, dtype, spread, objective):
    bias = (torch.randn(320, generator=torch.Generator().manual_seed(0)) * spread).to(dtype)
    key = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    for suffix in (".safetensors", ".ckpt"):
        info = inspect(write_checkpoint(tmp_path / f"model{suffix}", tiny("sd2"), **{key: bias}))
        assert info.objective == objective
        assert "ComfyUI" in info.objective_source


def test_a_yaml_beside_the_file_tells_the_objective_as_for_a1111(tmp_path):
    path = write_checkpoint(tmp_path / "model.safetensors", tiny("sd2"))
    (tmp_path / "model.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert inspect(path).objective == "v"


def test_the_user_is_followed_against_the_file_but_told(tmp_path):
    family = tiny("sdxl")
    path = write_checkpoint(tmp_path / "noob.safetensors", family, v_pred=torch.zeros(1))
    loaded = open_with_tiny_vocabulary(path, family)
    assert (loaded.noise.objective, loaded.warnings) == ("v", [])
    loaded = open_with_tiny_vocabulary(path, family, objective="epsilon", clip_skip=2)
    assert loaded.noise.objective == "epsilon"
    assert "as you asked" in loaded.warnings[0]
    assert "clip_skip = 2 has no effect with SDXL" in loaded.warnings[1]


# ---- Refusals ----

BASE = {UNET + "input_blocks.0.0.weight": (320, 4, 3, 3), "cond_stage_model.transformer.text_model.x": (1,)}
REFUSED = {  # what it is -> names and shapes; the message must say so
    "a LoRA": {"lora_unet_down_blocks_0.lora_down.weight": (4, 320), "lora_unet_down_blocks_0.alpha": ()},
    "a LoRA, not": {"unet.down_blocks.0.attn1.to_q.lora_A.weight": (4, 320)},
    "a LoRA, not a base model": {"lora_unet_x.lokr_w1": (4, 4)},
    "a VAE": {"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)},
    "a VAE, not": {"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
    "a text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8), "text_model.x": (1, 1, 1)},
    "a ControlNet": {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)},
    "a ControlNet, not": {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
    "an embedding": {"emb_params": (4, 768)},
    "an embedding (textual inversion)": {"clip_l": (4, 768), "clip_g": (4, 1280)},
    "an embedding (textual inversion), not": {"<my-cat>": (768,)},
    "an inpainting model": BASE | {UNET + "input_blocks.0.0.weight": (320, 9, 3, 3)},
    "an instruct-pix2pix model": BASE | {UNET + "input_blocks.0.0.weight": (320, 8, 3, 3)},
    "the SDXL refiner": {
        UNET + "input_blocks.0.0.weight": (384, 4, 3, 3),
        UNET + "label_emb.0.0.weight": (1536, 2560),
        "conditioner.embedders.0.model.ln_final.weight": (1280,),
    },
    "a U-Net without": {UNET + "input_blocks.0.0.weight": (320, 4, 3, 3), UNET + "out.2.bias": (4,)},
    "a U-Net without text encoder": {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3), "conv_in.bias": (8,)},
    "Stable Diffusion 3": {UNET + "joint_blocks.0.x_block.attn.qkv.weight": (8, 8)},
    "FLUX": {"double_blocks.0.img_attn.qkv.weight": (8, 8)},
    "FLUX, not": {UNET + "double_blocks.0.img_attn.qkv.weight": (8, 8)},
    "PixArt": {"adaln_single.linear.weight": (8, 8)},
    "Lumina or Z-Image": {"cap_embedder.0.weight": (8, 8)},
    "Playground v2.5": BASE | {"edm_mean": (4,)},
    "not a base model that can be trained here (its 3 tensors": {"a": (3, 3, 3), "b": (2,), "c": (1,)},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_base_model_is_refused_by_name_with_a_cure(tmp_path, what):
    path = write_header(tmp_path / "chosen.safetensors", REFUSED[what])
    with pytest.raises(UserError) as caught:
        inspect(path)
    assert what in str(caught.value)
    assert "chosen.safetensors" in str(caught.value)
    assert any(verb in str(caught.value) for verb in ("Choose", "choose", "Set", "Train", "Use"))
    messages.set_language("zh")
    with pytest.raises(UserError, match=r"这(是|不是).+请") as caught:
        inspect(path)


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
DAMAGED = {
    "is empty": b"",
    "saved web page": b"\n<!DOCTYPE html><html><title>Sign in</title></html>",
    "Git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n",
    "this is a GGUF file": b"GGUF\x03\x00\x00\x00" + bytes(100),
    "text file (JSON)": b'{"error": "gated model"}',
    "packed archive": b"7z\xbc\xaf\x27\x1c" + bytes(100),
    "cut short: 104 bytes are there, its header speaks of 5,008": struct.pack("<Q", 5000) + b"{" + b" " * 95,
    f"cut short: {8 + len(HEADER) + 4} bytes are there": struct.pack("<Q", len(HEADER)) + HEADER + bytes(4),
    "header of this safetensors file cannot be read": struct.pack("<Q", 20) + b'{"a": nonsense......' + bytes(99),
    "not a file of weights": b"\x89PNG\r\n\x1a\n" + bytes(300),
    "cannot be read; the download probably broke off": b"PK\x03\x04" + bytes(300),
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_damaged_or_wrong_file_is_said_to_be_so(tmp_path, what, language):
    path = tmp_path / "model.safetensors"
    path.write_bytes(DAMAGED[what])
    messages.set_language(language)
    with pytest.raises(UserError) as caught:
        inspect(path)
    assert (what in str(caught.value)) == (language == "en")
    assert "model.safetensors" in str(caught.value)


def test_a_file_that_is_not_there_brings_its_neighbours_to_mind(tmp_path):
    (tmp_path / "Counterfeit-V3.0.safetensors").write_bytes(b"x")
    (tmp_path / "animagine-xl.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"In the same folder: Counterfeit-V3\.0\.safetensors$"):
        inspect(tmp_path / "counterfeit-v30.safetensor")
    with pytest.raises(UserError, match=f"only {tmp_path} does"):
        inspect(tmp_path / "models" / "sd" / "a.safetensors")
    with pytest.raises(UserError, match="line break or a tab"):
        inspect("C:\new\toy.safetensors")


def test_a_name_on_the_hub_is_said_to_be_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="name of a model on the Hugging Face Hub.*Download"):
        inspect("runwayml/stable-diffusion-v1-5")
    snapshot = tmp_path / "models--runwayml--stable-diffusion-v1-5" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="already on this machine") as caught:
        inspect("runwayml/stable-diffusion-v1-5")
    assert str(snapshot) in str(caught.value)
    with pytest.raises(UserError, match="web address"):
        inspect("https://huggingface.co/runwayml/stable-diffusion-v1-5")


@pytest.mark.parametrize(
    ("what", "pipeline", "unet"),
    [
        ("an inpainting model", "StableDiffusionInpaintPipeline", {"in_channels": 9}),
        ("an instruct-pix2pix model", "StableDiffusionInstructPix2PixPipeline", {"in_channels": 8}),
        ("the SDXL refiner", "StableDiffusionXLImg2ImgPipeline", {"addition_embed_type": "text_time"}),
        ("a Flux model", "FluxPipeline", None),
        ("a StableDiffusion3 model", "StableDiffusion3Pipeline", None),
        ("a video model", "StableVideoDiffusionPipeline", None),
        ("unet/config.json is missing", "StableDiffusionPipeline", None),
    ],
)
def test_folders_of_other_pipelines_are_refused_by_name(tmp_path, what, pipeline, unet):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    if unet is not None:
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet" / "config.json").write_text(json.dumps(unet))
    with pytest.raises(UserError, match=what):
        inspect(tmp_path)


def test_parts_of_a_folder_point_to_the_whole(tmp_path):
    folder = write_folder(tmp_path / "whole", tiny("sd1"))
    for part in (folder / "unet", folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "text_encoder"):
        with pytest.raises(UserError) as caught:
            inspect(part)
        assert f"Use the folder of the whole model: {folder}" in str(caught.value)
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"Give the path of one of its files: a\.safetensors"):
        inspect(tmp_path)


def test_values_that_cannot_be_are_refused_before_anything_is_read(tmp_path):
    path = write_checkpoint(tmp_path / "model.safetensors", tiny("sd1"))
    for options, what in (
        ({"max_token_length": 100}, "75, 150 or 225"),
        ({"clip_skip": 13}, "1 to 12"),
        ({"objective": "flow"}, "epsilon and v"),
        ({"vae": tmp_path / "none.pt"}, "no such file"),
    ):
        with pytest.raises(UserError, match=what):
            open_model(path, dtype=torch.float32, **options)


# ---- Captions ----

BOS, EOS = 49406, 49407
PHOTO_OF_A_CAT = [1125, 539, 320, 2368]


@pytest.mark.parametrize(("pad_token", "pad"), [("<|endoftext|>", EOS), ("!", 0)])
def test_captions_are_cut_into_chunks_each_with_its_marks(pad_token, pad):
    tokenizer = build_tokenizer(clip_merges(), pad_token)
    short, exact, long, over = "photo of a cat", "cat " * 75, "cat " * 80, "cat " * 300
    ids = tokenize(tokenizer, [short, exact, long, over], 2).tolist()
    empty = [BOS, EOS] + [pad] * 75
    assert ids[0] == [[BOS, *PHOTO_OF_A_CAT, EOS] + [pad] * 71, empty]
    assert ids[1] == [[BOS, *[2368] * 75, EOS], empty]
    assert ids[2] == [[BOS, *[2368] * 75, EOS], [BOS, *[2368] * 5, EOS] + [pad] * 70]
    assert ids[3] == [[BOS, *[2368] * 75, EOS]] * 2
    assert tokenize(tokenizer, [], 3).shape == (0, 3, 77)


GOLDEN_IDS = {  # of transformers 4.44's CLIPTokenizer with ftfy 6.1.1, as sd-scripts installs them
    "woman\u2019s hair, \u201cquoted\u201d": [2308, 568, 2225, 267, 257, 27706, 257],
    "it\u2019s, I\u2019m, we\u2019ll": [585, 568, 267, 328, 880, 267, 649, 1342],
    "\uff21\uff22\uff23\u3000\uff44\uff52\uff45\uff53\uff53": [5334, 2595],  # full-width ABC dress
    "\uff11girl\uff0cred hair": [272, 1611, 267, 736, 2225],
    "\ufb01re, \ufb02ower, o\ufb03ce": [1769, 267, 4055, 267, 2171],  # ligatures
    "salt &amp; pepper": [6611, 261, 8253],
    "&lt;3 &quot;x&quot;": [283, 274, 257, 343, 257],
    "Pok\u00e9mon, cafe\u0301": [22066, 267, 15304],
    "Pok\u00c3\u00a9mon": [22066],  # UTF-8 read as Windows-1252
    "\u2026 dots \u2014 dash": [959, 19019, 2005, 10206],
    "\uff8a\uff9d\uff76\uff78": [2429, 237, 17671, 37367, 3909, 363],  # half-width katakana
    "\u03a3\u039f\u03a6\u039f\u03a3": [139, 225, 138, 123, 139, 228, 138, 123, 139, 480],
    "a\u00a0b\u2028c\x1b[31m": [320, 321, 322],
    "1girl, long_hair, \\(x\\)": [272, 1611, 267, 1538, 318, 2225, 267, 59, 263, 343, 59, 264],
    "hello! wow!!": [3306, 256, 2781, 748],
    "<|endoftext|> x": [49407, 343],
}


@pytest.mark.parametrize("pad_token", ["<|endoftext|>", "!"])
def test_a_caption_becomes_the_tokens_that_it_becomes_in_sd_scripts(pad_token):
    tokenizer = build_tokenizer(clip_merges(), pad_token)
    assert caption_tokens(tokenizer, list(GOLDEN_IDS)) == list(GOLDEN_IDS.values())


def test_chunks_are_encoded_each_by_itself_and_laid_end_to_end():
    family = tiny("sd1", max_token_length=225)
    captions = ["solo " * 90, "a cat"]
    ids = tokenize(family.tokenizer, captions, 3)
    by_hand = [family.text_encoder(ids[:, chunk]).last_hidden_state for chunk in range(3)]
    inner = [chunk[:, 1:-1] for chunk in by_hand]
    expected = torch.cat([by_hand[0][:, :1], *inner, by_hand[2][:, -1:]], dim=1)
    states = family.encode_captions(captions)["states"]
    assert states.shape == (2, 3 * 75 + 2, 16)
    torch.testing.assert_close(states, expected)


def test_token_counts_tell_what_is_cut():
    family = tiny("sd1", max_token_length=150)
    word = len(family.tokenizer("solo", add_special_tokens=False).input_ids)
    assert family.token_counts(["", "solo", "solo " * 200]) == [(0, 0), (word, word), (200 * word, 150)]


@pytest.mark.parametrize("clip_skip", [None, 1, 2, 3])
def test_clip_skip_counts_layers_from_the_last_and_norms_them(clip_skip):
    family = tiny("sd1")
    family.clip_skip = clip_skip
    output = family.text_encoder(tokenize(family.tokenizer, CAPTIONS, 1)[:, 0], output_hidden_states=True)
    text_model = getattr(family.text_encoder, "text_model", family.text_encoder)
    expected = text_model.final_layer_norm(output.hidden_states[-(clip_skip or 1)])
    states = family.encode_captions(CAPTIONS)["states"]
    torch.testing.assert_close(states, expected)
    if clip_skip in (None, 1):
        torch.testing.assert_close(states, output.last_hidden_state)


def test_sdxl_takes_both_encoders_one_layer_before_the_last_and_pools_as_transformers_does():
    family = tiny("sdxl", max_token_length=150)
    captions = ["solo " * 90, "a cat"]
    conditioning = family.encode_captions(captions) | family.size_conditioning(SIZES)
    first = tokenize(family.tokenizer, captions, 2)
    second = tokenize(family.tokenizer_2, captions, 2)
    assert not torch.equal(first, second)  # padded differently
    one = family.text_encoder(first[:, 0], output_hidden_states=True).hidden_states[-2]
    two = family.text_encoder_2(second[:, 0], output_hidden_states=True)
    torch.testing.assert_close(conditioning["states"][:, :76], torch.cat([one, two.hidden_states[-2]], -1)[:, :76])
    torch.testing.assert_close(conditioning["pooled"], two.text_embeds)
    assert conditioning["states"].shape == (2, 152, 40)
    assert torch.equal(conditioning["sizes"], SIZES)


def test_pooling_takes_the_first_end_mark_even_where_padding_is_the_end_mark_too():
    family = tiny("sdxl")
    ids = tokenize(family.tokenizer, ["a cat"], 1)  # padded with end marks
    pooled = encode(family.text_encoder_2, ids, family.tokenizer.eos_token_id).pooled
    end = ids[0, 0].tolist().index(family.tokenizer.eos_token_id)
    short = encode(family.text_encoder_2, ids[:, :, : end + 1], family.tokenizer.eos_token_id).pooled
    torch.testing.assert_close(pooled, short)


def test_sizes_reach_sdxls_prediction_without_rounding_in_half_precision():
    family = tiny("sdxl")
    family.unet.to(torch.bfloat16)
    latents, t = torch.ones(1, 4, 8, 8), torch.tensor([500])
    seen = []
    family.unet.add_time_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    conditioning = family.encode_captions(CAPTIONS[:1]) | family.size_conditioning(SIZES[1:])
    family.predict(latents, t, conditioning)
    assert seen[0].tolist() == SIZES[1].tolist()  # bfloat16 knows 1024 but not 1023


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_flow_through_the_captions_where_they_are_on(name):
    """Training a text encoder is nothing else."""
    family = tiny(name)
    target = next(target for target in family.targets() if target.part.startswith("text"))
    target.layer.weight.requires_grad_(True)
    family.encode_captions(CAPTIONS)["states"].square().sum().backward()
    assert target.layer.weight.grad.abs().sum() > 0


def test_everyday_words_are_told_from_triggers():
    everyday = ["girl", "Cat", "anime", "red fox", "anime_style"]
    assert [word for word in everyday if not is_everyday_word(word)] == []
    triggers = ["sks", "ohwx", "sks dog", "zwxqy", "xiaohong", "小红", ""]
    assert [word for word in triggers if is_everyday_word(word)] == []


def test_a_folder_without_tokenizer_gets_clips_own_if_it_fits(tmp_path):
    assert len(folder_tokenizer(tmp_path, 49408, "!")) == 49408
    with pytest.raises(UserError, match="49,408 tokens, the text encoder knows 770"):
        folder_tokenizer(tmp_path, 770, "!")


# ---- Images and the rest ----


def test_latents_are_the_mean_of_the_vae_scaled():
    family = tiny("sdxl")
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    posterior = family.vae.encode(pixels).latent_dist
    torch.testing.assert_close(family.encode_images(pixels), posterior.mean * 0.13025)
    assert torch.equal(family.encode_images(pixels), family.encode_images(pixels))


@pytest.mark.parametrize(
    ("name", "objective", "version", "architecture_name", "side"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora", 512),
        ("sd1", "v", "sd_v1_v", "stable-diffusion-v1/lora", 512),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora", 512),
        ("sd2", "v", "sd_v2_v", "stable-diffusion-v2-768-v/lora", 768),
        ("sdxl", "v", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", 1024),
    ],
)
def test_metadata_says_the_line_as_sd_scripts_does(name, objective, version, architecture_name, side):
    metadata = tiny(name, objective=objective).metadata()
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == str(name == "sd2")
    assert metadata["modelspec.architecture"] == architecture_name
    assert metadata["modelspec.prediction_type"] == objective
    assert metadata["modelspec.resolution"] == f"{side}x{side}"


def test_tiny_models_are_the_same_bits_for_the_same_seed():
    state = torch.get_rng_state()
    same(tiny("sdxl", seed=3), tiny("sdxl", seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(outputs(tiny("sd1", seed=3))[0], outputs(tiny("sd1", seed=4))[0])


def test_a_folder_tells_the_resolution_it_was_trained_at(tmp_path):
    family = tiny("sd1")
    family.unet.register_to_config(sample_size=48)
    assert inspect(write_folder(tmp_path / "model", family)).resolution == 48 * 8
    (tmp_path / "model" / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match="vae/config.json"):
        inspect(tmp_path / "model")


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_gradient_checkpointing_of_text_encoders_changes_no_gradient(name):
    gradients = []
    for is_on in (False, True):
        family = tiny(name)
        text_encoder = family.text_encoder
        if is_on:
            text_encoder.train().gradient_checkpointing_enable({"use_reentrant": False})
        layer = family.targets()[0].layer
        layer.weight.requires_grad_(True)
        family.encode_captions(CAPTIONS)["states"].square().sum().backward()
        gradients.append(layer.weight.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


# ---- Prompts with weights ----


def plain_states(model, ids, layer, normed):
    output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    states = output.hidden_states[layer]
    return getattr(model, "text_model", model).final_layer_norm(states) if normed else states


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_without_weights_is_a_caption(name):
    family = tiny(name)
    with torch.no_grad():
        weighted = family.encode_weighted([[(CAPTIONS[0], 1.0)]])
        plain = family.encode_captions(CAPTIONS[:1])
    torch.testing.assert_close(weighted["states"], plain["states"])
    assert tuple(weighted) == tuple(plain) == family.facts.text_embeddings
    if "pooled" in plain:
        torch.testing.assert_close(weighted["pooled"], plain["pooled"])


@pytest.mark.parametrize("clip_skip", [None, 2])
def test_weights_follow_the_web_uis_formula(clip_skip):
    """states x weight, then all times the old mean over the new one; each chunk by itself, 77 states each."""
    family = tiny("sd1")
    family.clip_skip = clip_skip
    tokenizer, encoder = family.tokenizer, family.text_encoder
    with torch.no_grad():
        found = family.encode_weighted([[("a red ", 1.0), ("hat", 1.3)], [("blue", 0.5)]])["states"][0]
        expected = []
        for pieces in ([("a red", 1.0), ("hat", 1.3)], [("blue", 0.5)]):
            ids, weights = [tokenizer.bos_token_id], [1.0]
            for text, weight in pieces:
                own = tokenizer(text, add_special_tokens=False)["input_ids"]
                ids, weights = ids + own, weights + [weight] * len(own)
            rest = 77 - len(ids)
            states = plain_states(encoder, ids + [tokenizer.eos_token_id] * rest, -(clip_skip or 1), normed=True)[0]
            weighted = states * torch.tensor(weights + [1.0] * rest)[:, None]
            expected.append(weighted * states.mean() / weighted.mean())
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_each_encoder_of_sdxl_gets_its_own_mean_back_and_pooled_knows_no_weights():
    family = tiny("sdxl")
    with torch.no_grad():
        plain = family.encode_weighted([[("a hat", 1.0)]])
        heavy = family.encode_weighted([[("a hat", 1.5)], [("more", 0.2)]])
    assert heavy["states"].shape == (1, 154, 40)
    for begin, end in ((0, 16), (16, 40)):
        torch.testing.assert_close(heavy["states"][:, :77, begin:end].mean(), plain["states"][:, :, begin:end].mean())
    torch.testing.assert_close(heavy["pooled"], plain["pooled"])
    assert not torch.allclose(heavy["states"][:, :77], plain["states"], atol=1e-3)


def test_an_empty_negative_prompt_is_zeros_for_sdxl_alone():
    for name, is_zero in (("sd1", False), ("sd2", False), ("sdxl", True)):
        family = tiny(name)
        with torch.no_grad():
            negative = family.encode_weighted([], is_negative=True)
            said = family.encode_weighted([[("bad", 1.0)]], is_negative=True)
            positive = family.encode_weighted([])
        assert bool((negative["states"] == 0).all()) == is_zero
        assert said["states"].any()
        assert positive["states"].any()


def chunk_sizes(*sections, room=75):
    tokenizer = tiny("sd1").tokenizer
    chunks = weighted_chunks(tokenizer, [[(text, 1.0)] for text in sections], room)
    return [len(chunk) for chunk in chunks]


def test_long_prompts_are_cut_behind_a_near_comma():
    """As the web UI: less than 20 tokens go to the next chunk, else the phrase is cut; a comma never begins one."""
    word = "a "  # one token
    assert chunk_sizes("") == [0]
    assert chunk_sizes(word * 75) == [75]
    assert chunk_sizes(word * 76) == [75, 1]
    assert chunk_sizes(word * 55 + ", " + word * 20) == [56, 20]  # 19 behind the comma, and the one that is too many
    assert chunk_sizes(word * 54 + ", " + word * 21) == [75, 1]  # 20 behind it
    assert chunk_sizes(word * 74 + ", " + word * 3) == [75, 3]
    assert chunk_sizes(word * 60 + ", " + word * 14 + ", " + word) == [75, 2]  # it is a comma that is too many
    assert chunk_sizes(word * 60 + ", " + word * 30 + ", " + word * 60) == [
        61,
        75,
        16,
    ]  # the first comma's place is forgotten


def test_a_section_begins_a_chunk_even_an_empty_one():
    assert chunk_sizes("a a", "a") == [2, 1]
    assert chunk_sizes("", "a") == [0, 1]
    assert chunk_sizes("a", "") == [1]
    assert chunk_sizes("a", "", "a") == [1, 0, 1]
