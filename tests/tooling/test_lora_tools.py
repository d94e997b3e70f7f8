"""tools/merge_loras.py, resize_lora.py, extract_lora.py, show_lora.py: exact where they say so, nearest where not."""

import json
import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from library import adapters, families
from library.adapters import sizes
from library.families.clip_text import clip_merges
from library.lora_files import merging
from library.lora_files.factors import read_factors
from library.messages import UserError, set_language
from library.options.checks import ConfigError, check_tool
from library.options.declaration import PROJECT
from library.options.tools import TOOLS
from library.options.training import Config
from library.storage import lora_file, metadata
from library.tooling import lora_files
from tests.conftest import write_diffusers_folder
from tests.families.test_families import TINY, original_layout
from tests.lora_files.test_merging import pipeline, random_lora, renamed
from tools import extract_lora, merge_loras, resize_lora, show_lora

pytestmark = pytest.mark.slow("writes and reads whole models")

LINES = {"sd1": "sd_v1", "sdxl": "sdxl_base_v1-0"}


@pytest.fixture(autouse=True)
def tiny_configs(monkeypatch):
    """Single files carry no configuration: those of these tests are tiny."""
    monkeypatch.setattr(families, "read_configs", TINY.__getitem__)
    merges = clip_merges()[:256]
    monkeypatch.setattr("library.families.clip_text.clip_merges", lambda: merges)


@pytest.fixture
def lora(tmp_path):
    """lora("a", seed=0, ...) -> a file for a tiny model, in `tmp_path`."""

    def lora(stem, family="sd1", dtype=None, entries=None, **options):
        path = tmp_path / f"{stem}.safetensors"
        told = {"ss_base_model_version": LINES[family], "ss_tag_frequency": json.dumps({f"10_{stem}": {stem: 20}})}
        tensors = random_lora(families.tiny(family), **options)
        lora_file.save_adapter(path, tensors, told if entries is None else entries, dtype)
        return path

    return lora


@pytest.fixture
def run(tmp_path):
    """run(merge_loras, option=value, ...) -> the exit code; results go to tmp_path/out."""

    def run(tool, code=0, **options):
        settings = check_tool(
            TOOLS[f"{tool.__name__.rpartition('.')[2]}.py"], {"output_dir": str(tmp_path / "out")} | options, {}
        )
        assert tool.run(settings) == code
        return tmp_path / "out"

    return run


def updates(path):
    """Layer -> what the file adds to it."""
    return {name: factors.update("cpu") for name, factors in read_factors(path.name, load_file(path)).items()}


def total(*weighted):
    """The sum of several files' updates, each times its weight."""
    found = {}
    for path, ratio in weighted:
        for name, update in updates(path).items():
            found[name] = found.get(name, 0) + ratio * update
    return found


def same(found, expected, rtol=1e-5, atol=1e-5):
    assert found.keys() == expected.keys()
    for name, update in found.items():
        torch.testing.assert_close(update, expected[name], rtol=rtol, atol=atol, msg=name)


# ---- merge_loras ----


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(("method", "rank"), [("concat", 32), ("svd", 64)])
def test_merged_side_by_side_or_at_full_rank_is_the_sum(lora, run, family, method, rank):
    """Of other ranks, alphas and layers, with a negative weight."""
    first, second = lora("a", family, conv=True), lora("b", family, rank=3, seed=1, alpha=2.0)
    out = run(
        merge_loras, loras=[str(first), str(second)], ratios=[0.6, -0.4], method=method, new_rank=rank,
        save_precision="float",
    )  # fmt: skip
    same(updates(out / "merged.safetensors"), total((first, 0.6), (second, -0.4)))


def test_concatenation_adds_the_ranks_and_says_so(lora, run, capsys):
    first, second = lora("a", conv=True), lora("b", rank=3, seed=1)
    out = run(merge_loras, loras=[str(first), str(second)], ratios=[1, 1])
    tensors = load_file(out / "merged.safetensors")
    downs = {name: len(tensor) for name, tensor in tensors.items() if name.endswith("lora_down.weight")}
    assert set(downs.values()) == {5, 2}
    assert all(float(tensors[name.replace("lora_down.weight", "alpha")]) == rank for name, rank in downs.items())
    assert {tensor.dim() for name, tensor in tensors.items() if "proj_in.lora" in name} == {4}  # SD 1.x: convolutions
    told = metadata.of_file(out / "merged.safetensors")
    assert told["ss_network_dim"] == "Dynamic"  # the first has resnets' linear layers, the second not
    assert told["ss_base_model_version"] == "sd_v1"
    assert metadata.trigger_words(told) == ["a", "b"]
    assert told["modelspec.merged_from"] == "a, b"
    assert told["sshs_model_hash"].startswith(metadata.web_ui_hash(out / "merged.safetensors"))
    assert "2 LoRAs, " in (said := capsys.readouterr().out)
    assert "rank 2~5, float32" in said


def adapter_file(path, kind, *, seed=0, **options):
    """A file of another kind for a tiny model, with every value random, and what it adds to each layer."""
    model = families.tiny("sd1")
    attached = adapters.attach(model.targets(), module=kind, rank=2, alpha=1.0, conv_rank=2, conv_alpha=1.0, **options)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in attached.state_dict().items():
        change = 0.3 * torch.randn(tensor.shape, generator=draw)
        tensors[name] = tensor if name.endswith("alpha") else (tensor + change).abs() if "dora" in name else change
    lora_file.save_adapter(path, tensors, {"ss_base_model_version": "sd_v1", "ss_network_args": '{"algo": "x"}'})
    attached.load_state_dict(load_file(path))
    added = {name: layer.matrix(*layer.masters()).detach() for name, layer in attached.layers.items()}
    attached.detach_from_model()
    return path, added


def base_model(path):
    save_file({name: t.clone().contiguous() for name, t in original_layout(families.tiny("sd1")).items()}, path)
    return path


def same_matrices(found, expected, atol=2e-4):
    assert found.keys() == expected.keys()
    for name, update in found.items():
        torch.testing.assert_close(update.flatten(1), expected[name], rtol=1e-3, atol=atol, msg=name)


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_lokr_loha_and_dora_merge_with_a_lora_into_the_exact_sum(lora, run, tmp_path, method, capsys):
    """What each adds to its layer in training: W + D of the trained adapters, at full rank."""
    first = lora("a", conv=True)
    others = {kind: adapter_file(tmp_path / f"{kind}.safetensors", kind) for kind in ("loha", "lokr", "dora")}
    paths = [str(first), *(str(path) for path, _ in others.values())]
    out = run(
        merge_loras, loras=paths, ratios=[0.5, 1, -0.5, 1], method=method, new_rank=1280, save_precision="float",
        pretrained_model_name_or_path=str(base_model(tmp_path / "base.safetensors")),
    )  # fmt: skip
    expected = {name: 0.5 * update.flatten(1) for name, update in updates(first).items()}
    for (_, added), ratio in zip(others.values(), (1, -0.5, 1), strict=True):
        expected = {name: expected[name] + ratio * matrix for name, matrix in added.items()}
    same_matrices(updates(out / "merged.safetensors"), expected)
    shapes = {name: t.shape[2:] for name, t in load_file(out / "merged.safetensors").items() if "lora_down" in name}
    assert {tuple(shape) for name, shape in shapes.items() if re.search(r"resnets_\d_conv\d\.", name)} == {(3, 3)}
    assert ("as an exact LoRA takes up to rank" in capsys.readouterr().out) == (method == "concat")


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora"])
def test_other_kinds_go_into_a_checkpoint_and_become_a_lora_of_a_rank(run, tmp_path, kind):
    path, added = adapter_file(tmp_path / "a.safetensors", kind)
    base = base_model(tmp_path / "base.safetensors")
    model = dict(pretrained_model_name_or_path=str(base))
    out = run(merge_loras, loras=[str(path)], ratios=[0.5], method="checkpoint", **model)
    before, after = (
        families.open_model(one, dtype=torch.float32, vae_dtype=torch.float32, configs=TINY["sd1"])
        for one in (base, out / "merged.safetensors")
    )
    for one, other in zip(before.targets(), after.targets(), strict=True):
        expected = one.layer.weight.flatten(1) + 0.5 * added[one.saved_as]
        torch.testing.assert_close(other.layer.weight.flatten(1), expected, rtol=1e-4, atol=1e-5)
    out = run(resize_lora, lora=str(path), new_rank=2, save_precision="float", **(model if kind == "dora" else {}))
    for name, update in updates(out / "a-dim2.safetensors").items():
        values = torch.linalg.svdvals(added[name].double())
        away = torch.linalg.vector_norm(update.flatten(1).double() - added[name])
        torch.testing.assert_close(away, values[2:].square().sum().sqrt(), rtol=1e-3, atol=1e-4)
    told = metadata.of_file(out / "a-dim2.safetensors")
    assert (told["ss_network_module"], told["ss_network_dim"]) == ("networks.lora", "2")
    assert "algo" not in told["ss_network_args"]


def test_a_dora_without_its_base_model_is_told_what_it_needs(run, tmp_path):
    path, _ = adapter_file(tmp_path / "a.safetensors", "dora")
    with pytest.raises(UserError, match="is a DoRA, .* Set pretrained_model_name_or_path to that model"):
        run(merge_loras, loras=[str(path)], ratios=[1.0])
    run(resize_lora, 2, lora=str(path))


def test_tags_of_one_folder_add_up_and_a_file_of_weight_0_leaves_none(lora, run):
    def of(word, count, session):
        return {
            "ss_base_model_version": "sd_v1", "ss_session_id": session,
            "ss_tag_frequency": json.dumps({"10_x": {"red": count, word: count}, "1_reg": {"girl": 5}}),
            "ss_reg_dataset_dirs": json.dumps({"1_reg": {"n_repeats": 1, "img_count": 5}}),
        }  # fmt: skip

    paths = [lora("a", entries=of("a", 20, "1")), lora("b", entries=of("b", 30, "2"), seed=1)]
    paths += [lora("c", entries=of("c", 7, "3"), seed=2), lora("d", entries=of("d", 4, "4"), seed=3)]
    paths += [lora("e", entries=of("a", 20, "1"), seed=4)]  # another epoch of the first
    out = run(merge_loras, loras=[str(path) for path in paths], ratios=[0.5, 0.5, 0, -0.3, 0.2])
    told = metadata.of_file(out / "merged.safetensors")
    assert json.loads(told["ss_tag_frequency"])["10_x"] == {"red": 50, "a": 20, "b": 30}
    assert "girl" not in metadata.trigger_words(told)
    assert told["modelspec.merged_from"] == "a, b, d, e"


def test_an_embedding_in_a_file_stays_in_what_is_made_of_it(lora, run, tmp_path, capsys):
    """OneTrainer and A1111 put it beside the LoRA: merged, resized and shown is the LoRA."""
    path = lora("a")
    bundled = {"bundle_emb.sks.string_to_param.*": torch.ones(2, 32), "bundle_emb.hat.clip_l": torch.ones(1, 32)}
    save_file(load_file(path) | bundled, tmp_path / "b.safetensors", metadata.of_file(path))
    out = run(merge_loras, loras=[str(path), str(tmp_path / "b.safetensors")], ratios=[0.5, 0.5])
    said = "b.safetensors also holds the embeddings hat, sks: "
    assert f"{said}kept in the result" in capsys.readouterr().out
    assert bundled.keys() <= load_file(out / "merged.safetensors").keys()
    assert read_factors("x", load_file(out / "merged.safetensors")).keys() == updates(path).keys()
    run(resize_lora, lora=str(tmp_path / "b.safetensors"), new_rank=1)
    assert f"{said}kept in the result" in capsys.readouterr().out
    assert bundled.keys() <= load_file(out / "b-dim1.safetensors").keys()
    base = base_model(tmp_path / "base.safetensors")
    run(
        merge_loras, loras=[str(tmp_path / "b.safetensors")], ratios=[1.0], method="checkpoint", output_name="model",
        pretrained_model_name_or_path=str(base),
    )  # fmt: skip
    assert f"{said}a checkpoint can't hold it" in capsys.readouterr().out
    shown = look(tmp_path / "b.safetensors", base)
    assert [level for level, text, _ in shown.findings if "it also holds the embeddings hat, sks" in text] == ["green"]
    assert not any(level == "red" for level, _, _ in shown.findings)


def test_cut_to_a_rank_it_is_the_nearest_and_what_is_kept_is_told(lora, run, capsys):
    first, second = lora("a"), lora("b", rank=3, seed=1)
    out = run(
        merge_loras, loras=[str(first), str(second)], ratios=[1, 0.5], method="svd", new_rank=2, save_precision="float"
    )
    whole, shares = total((first, 1), (second, 0.5)), []
    for name, update in updates(out / "merged.safetensors").items():
        values = torch.linalg.svdvals(whole[name].flatten(1).double())
        away = torch.linalg.vector_norm(update.double() - whole[name])
        torch.testing.assert_close(away, values[2:].square().sum().sqrt(), rtol=1e-3, atol=1e-5)
        shares.append(float((values[:2].square().sum() / values.square().sum()).sqrt()))
    told = re.search(r"([\d.]+)% on average, least ([\d.]+)%", capsys.readouterr().out)
    assert float(told[1]) == pytest.approx(100 * sum(shares) / len(shares), abs=0.01)
    assert float(told[2]) == pytest.approx(100 * min(shares), abs=0.01)


def test_a_second_run_finds_its_work_and_nothing_is_overwritten(lora, run, capsys):
    files = dict(loras=[str(lora("a")), str(lora("b", seed=1))])
    out = run(merge_loras, **files)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    run(merge_loras, **files)
    assert "nothing to do: " in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    run(merge_loras, **files, ratios=[0.1, 0.2])
    assert {path.name for path in out.iterdir()} == {"merged.safetensors", "merged-2.safetensors"}
    assert (out / "merged.safetensors").stat().st_mtime_ns == before["merged.safetensors"]
    lora("a", seed=5)  # another file under the same name
    run(merge_loras, **files)
    assert len(list(out.iterdir())) == 3


def test_files_of_diffusers_and_of_kohya_are_merged_by_their_layers(lora, run, tmp_path):
    """Names with dots become sd-scripts'."""
    family, kohya = families.tiny("sd1"), lora("a")
    tensors = {name: tensor for name, tensor in load_file(kohya).items() if not name.endswith("alpha")}
    ends = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}
    parts = {part: own.folder for part, own in family.facts.parts.items()}
    save_file(renamed(family, tensors, parts, ends), tmp_path / "peft.safetensors", {"ss_base_model_version": "sd_v1"})
    out = run(merge_loras, loras=[str(kohya), str(tmp_path / "peft.safetensors")], ratios=[1, 1])
    same(updates(out / "merged.safetensors"), {name: 3 * update for name, update in updates(kohya).items()})


def test_sdxl_files_with_diffusers_names_get_the_original_ones(monkeypatch, tmp_path):
    monkeypatch.undo()  # true sizes: original names are counted by them
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": torch.ones(1, 640), f"{name}.lora_up.weight": torch.ones(640, 1)}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    found = lora_files.by_saved_name(lora_files.read_lora(tmp_path / "a.safetensors"))
    assert list(found) == ["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_loads_what_is_written(lora, run, family):
    """All of it: nothing missing, nothing unexpected; and it acts as the sum of the files."""
    model, paths = families.tiny(family), [str(lora("a", family, size=0.2)), str(lora("b", family, seed=1, size=0.2))]
    out = run(merge_loras, loras=paths, ratios=[0.5, 0.25])
    run(resize_lora, lora=str(out / "merged.safetensors"), new_rank=4)
    pipe = pipeline(model)
    noisy, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    states, drawn = torch.randn(1, 77, model.unet.config.cross_attention_dim), []
    more = {}
    if family == "sdxl":
        more = dict(added_cond_kwargs={"text_embeds": torch.randn(1, 20), "time_ids": torch.ones(1, 6)})
    for found in ([out / "merged.safetensors"], [out / "merged-dim4.safetensors"], paths):
        for number, path in enumerate(found):
            pipe.load_lora_weights(str(path), adapter_name=f"x{number}")
        pipe.set_adapters([f"x{number}" for number in range(len(found))], [1.0] if len(found) == 1 else [0.5, 0.25])
        with torch.no_grad():
            drawn.append(pipe.unet(noisy, t, states, **more).sample)
        pipe.unload_lora_weights()
    with torch.no_grad():
        base = pipe.unet(noisy, t, states, **more).sample
    torch.testing.assert_close(drawn[0], drawn[2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(drawn[1], drawn[2], rtol=1e-3, atol=1e-4)
    assert (base - drawn[2]).abs().max() > 0.01


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_merged_into_a_checkpoint_it_is_w_plus_the_updates(lora, run, tmp_path, family):
    tensors = {name: t.half().clone().contiguous() for name, t in original_layout(families.tiny(family)).items()}
    save_file(tensors, tmp_path / "base.safetensors", {"modelspec.hash_sha256": "0x12", "mine": "stays"})
    paths = [lora("a", family, conv=True), lora("b", family, rank=3, seed=1, alpha=2.0)]
    out = run(
        merge_loras, loras=[str(path) for path in paths], ratios=[0.6, 0.3], method="checkpoint",
        pretrained_model_name_or_path=str(tmp_path / "base.safetensors"), output_name="model",
    )  # fmt: skip
    opened = [
        families.open_model(path, dtype=torch.float16, vae_dtype=torch.float16, configs=TINY[family])
        for path in (tmp_path / "base.safetensors", out / "model.safetensors")
    ]
    with merging.Merging(opened[0].layers()) as model:
        read = [read_factors("x", load_file(path)) for path in paths]
        model.apply([merging.Strength(factors, ratio, ratio) for factors, ratio in zip(read, (0.6, 0.3), strict=True)])
        for part, module in opened[0].modules().items():
            other = opened[1].modules()[part].state_dict()
            assert all(torch.equal(tensor, other[name]) for name, tensor in module.state_dict().items())
    told = metadata.of_file(out / "model.safetensors")
    assert told["mine"] == "stays"
    assert told["modelspec.merged_from"] == "base, a, b"
    assert "modelspec.hash_sha256" not in told


def test_merged_into_a_folder_it_is_a_folder(lora, run, tmp_path, capsys):
    folder = write_diffusers_folder(tmp_path / "base", families.tiny("sd1"))
    options = dict(
        loras=[str(lora("a"))], ratios=[1], method="checkpoint", pretrained_model_name_or_path=str(folder),
        save_precision="bf16",
    )  # fmt: skip
    out = run(merge_loras, **options)
    unet = UNet2DConditionModel.from_pretrained(out / "merged" / "unet", local_files_only=True)
    name = "down_blocks_0_attentions_0_proj_in"
    expected = families.tiny("sd1").unet.down_blocks[0].attentions[0].proj_in.weight
    update = updates(tmp_path / "a.safetensors")[f"lora_unet_{name}"].reshape(expected.shape)
    found = unet.down_blocks[0].attentions[0].proj_in.weight
    assert torch.equal(found, (expected + update).bfloat16().float())
    run(merge_loras, **options)
    assert "nothing to do: " in capsys.readouterr().out


# ---- resize_lora ----


def test_at_full_rank_nothing_is_lost_and_the_scale_stays(lora, run, tmp_path):
    path = lora("a", rank=4, alpha=2.0, conv=True)
    out = run(resize_lora, lora=str(path), new_rank=8)
    same(updates(out / "a-dim4.safetensors"), updates(path))
    tensors = load_file(out / "a-dim4.safetensors")
    ranks = {name: len(t) for name, t in tensors.items() if name.endswith("lora_down.weight")}
    assert set(ranks.values()) == {4}
    assert {float(t) for name, t in tensors.items() if name.endswith("alpha")} == {2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_resized_it_is_the_nearest_of_that_rank(lora, run, dtype, capsys):
    """Away by the root of the dropped squares; what is kept, ranks and sizes are told."""
    path = lora("a", rank=6, conv=True, dtype=dtype)
    out = run(resize_lora, lora=str(path), new_rank=3, new_conv_rank=2)
    before, found, shares = updates(path), updates(out / "a-dim3-conv2.safetensors"), []
    for name, update in found.items():
        rank = 2 if update.dim() == 4 else 3
        values = torch.linalg.svdvals(before[name].flatten(1).double())
        away = torch.linalg.vector_norm(update.double() - before[name])
        torch.testing.assert_close(away, values[rank:].square().sum().sqrt(), rtol=1e-3, atol=1e-5)
        shares.append(float((values[:rank].square().sum() / values.square().sum()).sqrt()))
    said = capsys.readouterr().out
    assert "rank 6 -> 2~3" in said
    told = re.search(r"([\d.]+)% on average, least ([\d.]+)%", said)
    assert float(told[1]) == pytest.approx(100 * sum(shares) / len(shares), abs=0.01)
    assert float(told[2]) == pytest.approx(100 * min(shares), abs=0.01)
    assert next(iter(load_file(out / "a-dim3-conv2.safetensors").values())).dtype == dtype
    assert f"{told[2]}%" in (out / "summary.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("method", "target"), [("sv_ratio", 2.0), ("sv_fro", 0.9), ("sv_cumulative", 0.6)])
def test_each_layer_gets_the_rank_that_its_values_ask_for(lora, run, method, target):
    path = lora(
        "a", rank=6, entries={"ss_network_dim": "6", "ss_training_comment": "mine", "ss_base_model_version": "sd_v1"}
    )
    out = run(resize_lora, lora=str(path), new_rank=5, dynamic_method=method, dynamic_param=target)
    tensors, before = load_file(out / f"a-{method}-{target:g}.safetensors"), updates(path)
    ranks = {}
    for name, update in before.items():
        values = torch.linalg.svdvals(update.flatten(1).double())
        shares = {
            "sv_ratio": values > values[0] / target,
            "sv_fro": values.square().cumsum(0) / values.square().sum() < target**2,
            "sv_cumulative": values.cumsum(0) / values.sum() < target,
        }[method]
        ranks[name] = min(5, int(shares.sum()) + (method != "sv_ratio"))
        assert len(tensors[f"{name}.lora_down.weight"]) == ranks[name]
    assert len(set(ranks.values())) > 1
    told = metadata.of_file(out / f"a-{method}-{target:g}.safetensors")
    assert told["ss_network_dim"] == told["ss_network_alpha"] == "Dynamic"
    assert told["ss_training_comment"] == f"Dynamic resize with {method}: {target} from 6; mine"


def test_the_metadata_tells_the_new_rank_as_sd_scripts_does(lora, run):
    entries = {"ss_network_dim": "4", "ss_network_alpha": "1.0", "ss_training_comment": "mine", "ss_steps": "7"}
    path = lora("a", rank=4, entries=entries | {"sshs_model_hash": "old"})
    out = run(resize_lora, lora=str(path), new_rank=2)
    told = metadata.of_file(out / "a-dim2.safetensors")
    assert told["ss_training_comment"] == "dimension is resized from 4 to 2; mine"
    assert (told["ss_network_dim"], told["ss_network_alpha"], told["ss_steps"]) == ("2", "0.5", "7")
    assert told["sshs_model_hash"].startswith(metadata.web_ui_hash(out / "a-dim2.safetensors"))


def test_a_folder_is_resized_file_by_file_and_what_is_no_lora_is_named(lora, run, tmp_path, capsys):
    (tmp_path / "set" / "狐 狸").mkdir(parents=True)
    lora("a", rank=4).rename(tmp_path / "set" / "a.safetensors")
    lora("b", rank=4, seed=1).rename(tmp_path / "set" / "狐 狸" / "b.safetensors")
    save_file({"lora_unet_x.oft_blocks": torch.ones(2, 2)}, tmp_path / "set" / "oft.safetensors")
    (tmp_path / "set" / "broken.safetensors").write_bytes(b"\x00" * 20)
    save_file({"emb_params": torch.ones(3, 768)}, tmp_path / "set" / "embedding.safetensors")
    out = run(resize_lora, lora=str(tmp_path / "set"), new_rank=2)
    kept = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert kept == {"a-dim2.safetensors", "狐 狸/b-dim2.safetensors", "summary.html"}
    said = capsys.readouterr().out
    assert "left out: oft.safetensors: is a OFT" in said
    assert "broken.safetensors: cannot be read" in said
    assert "embedding.safetensors: is no LoRA" in said
    run(resize_lora, lora=str(tmp_path / "set"), new_rank=2)
    assert "nothing to do for 2 files" in capsys.readouterr().out
    assert kept == {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_an_alpha_that_the_type_rounds_does_not_change_the_strength(lora, run):
    """2 / 3 * 2 is no number of bfloat16: `up` makes up for it."""
    path = lora("a", rank=3, alpha=2.0)
    out = run(resize_lora, lora=str(path), new_rank=2, save_precision="bf16")
    before, found = updates(path), updates(out / "a-dim2.safetensors")
    strengths = []
    for name, update in found.items():
        left, values, right = torch.linalg.svd(before[name].flatten(1), full_matrices=False)
        best = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
        strengths.append(float((update.flatten(1) * best).sum() / best.square().sum()))
    assert sum(strengths) / len(strengths) == pytest.approx(1, abs=3e-4)


# ---- extract_lora ----


def tuned_model(path, family, tensors, layers=None):
    """A checkpoint with a LoRA's updates in its weights, float32."""
    model = families.tiny(family)
    with merging.Merging(model.layers()) as merged:
        merged.apply([merging.Strength(read_factors("x", tensors), 1, 1)])
        save_file({name: tensor.clone().contiguous() for name, tensor in original_layout(model).items()}, path)
    return path


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_what_was_added_is_extracted(run, tmp_path, family):
    """Base plus a LoRA minus base is the LoRA."""
    tensors = random_lora(families.tiny(family), rank=2, conv=True)
    save_file(tensors, tmp_path / "added.safetensors")
    base = tuned_model(tmp_path / "base.safetensors", family, random_lora(families.tiny(family), size=0))
    tuned = tuned_model(tmp_path / "tuned.safetensors", family, tensors)
    out = run(
        extract_lora, model_org=str(base), model_tuned=str(tuned), network_dim=2, conv_dim=3, clamp_quantile=1,
        save_precision="float", device="cpu",
    )  # fmt: skip
    same(updates(out / "extracted.safetensors"), updates(tmp_path / "added.safetensors"), atol=1e-4)
    found = load_file(out / "extracted.safetensors")
    assert found.keys() == tensors.keys()
    for name, down in found.items():
        if name.endswith("lora_down.weight"):
            rank = 3 if down.dim() == 4 and down.shape[2:] != (1, 1) else 2
            assert down.shape == (rank, *tensors[name].shape[1:])
            up = name.replace(".lora_down.", ".lora_up.")
            assert found[up].shape == (len(tensors[up]), rank, *tensors[up].shape[2:])
    told = metadata.of_file(out / "extracted.safetensors")
    assert told["ss_network_dim"] == "2"
    assert told["ss_v2"] == str(family == "sd2")
    assert json.loads(told["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "3"}


def test_extracted_with_fewer_ranks_it_is_the_nearest_and_clamped_as_sd_scripts_does(run, tmp_path):
    tensors = random_lora(families.tiny("sd1"), rank=6)
    base = tuned_model(tmp_path / "base.safetensors", "sd1", random_lora(families.tiny("sd1"), size=0))
    tuned = tuned_model(tmp_path / "tuned.safetensors", "sd1", tensors)
    save_file(tensors, tmp_path / "added.safetensors")
    options = dict(model_org=str(base), model_tuned=str(tuned), network_dim=2, save_precision="float", device="cpu")
    out = run(extract_lora, **options, clamp_quantile=1, output_name="nearest")
    run(extract_lora, **options, output_name="clamped")
    added = updates(tmp_path / "added.safetensors")
    nearest, clamped = (load_file(out / f"{name}.safetensors") for name in ("nearest", "clamped"))
    for name, update in updates(out / "nearest.safetensors").items():
        values = torch.linalg.svdvals(added[name].flatten(1))
        away = torch.linalg.vector_norm(update - added[name])
        torch.testing.assert_close(away, values[2:].square().sum().sqrt(), rtol=1e-3, atol=1e-4)
        up, down = (nearest[f"{name}.lora_{end}.weight"] for end in ("up", "down"))
        torch.testing.assert_close(down.flatten(1).norm(dim=1), torch.ones(2))  # all of the values are in `up`
        limit = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99)
        torch.testing.assert_close(clamped[f"{name}.lora_up.weight"], up.clamp(-limit, limit))
        torch.testing.assert_close(clamped[f"{name}.lora_down.weight"], down.clamp(-limit, limit))


@pytest.mark.parametrize("precision", ["float", "bf16"])
@pytest.mark.parametrize("quantile", [1, 0.99, 0.8])
def test_what_extract_tells_is_what_its_file_holds(run, tmp_path, capsys, precision, quantile):
    """Clamped, rounded, and without the layers that are the same in both models, which would hold all of nothing."""
    changed = {name: t for name, t in random_lora(families.tiny("sd1"), rank=3).items() if "attn" in name}
    base = tuned_model(tmp_path / "base.safetensors", "sd1", random_lora(families.tiny("sd1"), size=0))
    tuned = tuned_model(tmp_path / "tuned.safetensors", "sd1", changed)
    out = run(
        extract_lora, model_org=str(base), model_tuned=str(tuned), network_dim=2, save_precision=precision,
        device="cpu", clamp_quantile=quantile,
    )  # fmt: skip
    save_file(changed, tmp_path / "changed.safetensors")
    added, found, shares = updates(tmp_path / "changed.safetensors"), updates(out / "extracted.safetensors"), []
    assert added.keys() == found.keys()
    for name, update in found.items():
        own, error = (float(one.norm() / added[name].norm()) for one in (update, update - added[name]))
        shares.append(min(own, (1 - error**2) ** 0.5))
    said = capsys.readouterr().out
    told = re.search(r"([\d.]+)% on average, least ([\d.]+)%", said)
    assert float(told[1]) == pytest.approx(100 * sum(shares) / len(shares), abs=0.03)
    assert float(told[2]) == pytest.approx(100 * min(shares), abs=0.03)
    assert ("without clamping (clamp_quantile = 1) the file would hold" in said) == (quantile < 1)
    assert re.search(r"\d+ layers left out: the same in both models", said)


def test_the_name_of_a_resized_file_is_the_rank_that_it_has(lora, run):
    out = run(resize_lora, lora=str(lora("a", rank=4, conv=True)), new_rank=16, new_conv_rank=2)
    assert [path.name for path in out.glob("*.safetensors")] == ["a-dim4-conv2.safetensors"]
    told = metadata.of_file(out / "a-dim4-conv2.safetensors")
    assert told["ss_training_comment"] == "dimension is resized from 4 to 4 (conv: 2)"
    assert told["ss_network_dim"] == "4"


def test_a_text_encoder_that_hardly_differs_is_left_out(run, tmp_path, capsys):
    tensors = random_lora(families.tiny("sdxl"))
    small = {name: tensor * (1e-3 if "_te2_" in name and "up" in name else 1) for name, tensor in tensors.items()}
    base = tuned_model(tmp_path / "base.safetensors", "sdxl", random_lora(families.tiny("sdxl"), size=0))
    tuned = tuned_model(tmp_path / "tuned.safetensors", "sdxl", small)
    options = dict(model_org=str(base), model_tuned=str(tuned), network_dim=2, device="cpu")
    out = run(extract_lora, **options)
    assert not any("lora_te2_" in name for name in load_file(out / "extracted.safetensors"))
    assert any("lora_te1_" in name for name in load_file(out / "extracted.safetensors"))
    assert "text_encoder_2 is left out: its weights differ by" in capsys.readouterr().out
    run(extract_lora, **options, min_diff=1e-6)
    assert any("lora_te2_" in name for name in load_file(out / "extracted-2.safetensors"))
    run(extract_lora, **options)
    assert "nothing to do: " in capsys.readouterr().out


def test_models_that_cannot_be_compared_are_told(run, tmp_path, tiny_model):
    base = tuned_model(tmp_path / "base.safetensors", "sd1", random_lora(families.tiny("sd1"), size=0))
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(base.read_bytes())
    with pytest.raises(UserError, match="the two models are the same: nothing to extract"):
        run(extract_lora, model_org=str(base), model_tuned=str(copy), device="cpu")
    with pytest.raises(UserError, match="different families .SD 1.x / SDXL."):
        run(extract_lora, model_org=str(base), model_tuned=str(tiny_model("sdxl")), device="cpu")
    with pytest.raises(ConfigError, match="is model_org itself"):
        run(extract_lora, model_org=str(base), model_tuned=str(base))
    broken = {name: t * torch.nan if "attn2.to_k" in name else t for name, t in load_file(base).items()}
    save_file(broken, copy)
    with pytest.raises(UserError, match="contains NaN or infinities in one of the models"):
        run(extract_lora, model_org=str(base), model_tuned=str(copy), device="cpu")


# ---- show_lora ----


def test_everything_is_told_of_a_lora(lora, run, tmp_path, capsys, tiny_model):
    entries = {
        "ss_tag_frequency": json.dumps({"10_mytag": {"mytag": 20, "hat": 7}}), "ss_steps": "1500",
        "ss_sd_model_name": "anime.safetensors", "ss_base_model_version": "sd_v1", "ss_noise_offset": "None",
    }  # fmt: skip
    path = lora("a", rank=4, alpha=2.0, conv=True, entries=entries)
    out = run(show_lora, lora=str(path), pretrained_model_name_or_path=str(tiny_model("sd1")))
    said = capsys.readouterr().out
    assert "LoRA, SD 1.x, float32" in said
    assert "trigger words: mytag" in said
    assert "trained on: anime.safetensors" in said
    assert "steps: 1500" in said
    assert "noise offset" not in said
    assert re.search(r"text_encoder: \d+ layers, rank 4, alpha 2\n", said)
    assert re.search(r"denoiser \(3x3\): \d+ layers, rank 4, alpha 2\n", said)
    assert "A1111: yes; Forge: yes; ComfyUI: yes; diffusers: yes" in said
    assert "fine: no NaN, and every layer adds something" in said
    norms = {}
    for name, update in updates(path).items():
        norms.setdefault(sizes.block_name(name), []).append(float(update.norm()))
    for block, of_block in norms.items():
        assert f"{block} {sum(norm**2 for norm in of_block) ** 0.5:.4g}" in said
    assert "mytag" in (out / "summary.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "BASE 2"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "BASE"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", "IN01"),
        ("lora_unet_down_blocks_2_attentions_1_proj_in", "IN08"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "IN03"),
        ("lora_unet_mid_block_attentions_0_proj_in", "MID"),
        ("lora_unet_middle_block_1_proj_in", "MID"),
        ("lora_unet_up_blocks_3_attentions_2_proj_in", "OUT11"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "OUT02"),
        ("unet.up_blocks.1.attentions.0.proj_in", "OUT03"),
        ("lora_unet_input_blocks_4_1_proj_in", "IN04"),
        ("lora_unet_output_blocks_10_1_proj_in", "OUT10"),
        ("lora_unet_conv_in", "IN00"),
        ("lora_unet_time_embedding_linear_1", "TIME"),
    ],
)
def test_blocks_are_called_as_tools_for_block_weights_do(name, block):
    assert sizes.block_name(name) == block


def look(path, model=None):
    return show_lora.read_lora(path, show_lora.Known(None if model is None else str(model)))


def test_what_programs_do_not_read_is_told(lora, tmp_path, tiny_model):
    family, path = families.tiny("sd1"), lora("a")
    ends = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("alpha")}
    parts = {part: own.folder for part, own in family.facts.parts.items()}
    save_file(renamed(family, tensors, parts, ends), tmp_path / "peft.safetensors")
    readings = look(tmp_path / "peft.safetensors", tiny_model("sd1")).readings
    assert {program: reading.is_whole for program, reading in readings.items()} == {
        "A1111": False, "Forge": False, "ComfyUI": False, "diffusers": True,
    }  # fmt: skip
    lost = [name for name in readings["ComfyUI"].names if name.startswith("unet.")]
    assert lost  # of the U-Net its attentions, and nothing else
    assert set(lost) == {name for name in readings["A1111"].names if re.search(r"^unet\..*\.to_(q|k|v|out)", name)}
    strange = {"lora_unet_extra.lora_down.weight": torch.ones(2, 2), "lora_unet_extra.lora_up.weight": torch.ones(2, 2)}
    save_file(load_file(path) | strange, tmp_path / "strange.safetensors")
    shown = look(tmp_path / "strange.safetensors", tiny_model("sd1"))
    assert any("1 of " in text and "lora_unet_extra" in text for level, text, _ in shown.findings if level == "red")
    assert all(reading.names == ["lora_unet_extra"] for reading in shown.readings.values())


@pytest.mark.parametrize(
    ("ends", "kind", "programs"),
    [
        (["oft_blocks"], "OFT", ["A1111", "ComfyUI"]),
        (["on_input"], "IA3", ["A1111"]),
    ],
)
def test_other_kinds_are_named_and_who_reads_them(tmp_path, ends, kind, programs, tiny_model):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{layer}.{end}": torch.ones(2, 2) for end in ends}, tmp_path / "x.safetensors")
    shown = look(tmp_path / "x.safetensors", tiny_model("sd1"))
    assert shown.kinds == [kind]
    assert [program for program, reading in shown.readings.items() if reading.is_whole] == programs
    assert f"it is a {kind}" in " ".join(text for _, text, _ in shown.findings)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "dora"])
def test_a_result_of_the_default_run_is_the_built_in_miniatures(monkeypatch, tmp_path, kind):
    """Its layers are not those of SD 1.x, whose name it bears; of each kind ranks and norms are shown."""
    monkeypatch.undo()  # true sizes
    model = PROJECT / Config().pretrained_model_name_or_path
    layers = families.blueprint(families.inspect(model)).targets()
    few = [target for target in layers if target.part != "denoiser" or "transformer" not in target.saved_as][:40]
    for target in few:
        target.layer.to_empty(device="cpu").weight.data.fill_(0.1)
    attached = adapters.attach(few, module=kind, rank=2, alpha=1.0, conv_rank=2, conv_alpha=1.0)
    ones = {name: t if "alpha" in name else torch.ones_like(t) for name, t in attached.state_dict().items()}
    attached.load_state_dict(ones)
    lora_file.save_adapter(tmp_path / "a.safetensors", ones, {"ss_base_model_version": "sd_v1"})
    shown = look(tmp_path / "a.safetensors", model if kind == "dora" else None)
    assert kind == "dora" or shown.line == "the built-in miniature (SD 1.x)"
    assert [level for level, _, _ in shown.findings] == ["green"]
    assert len(shown.layer_norms) == len(few)
    for name, layer in attached.layers.items() if kind != "dora" else ():
        assert shown.layer_norms[name] == pytest.approx(float(layer.norm()), rel=1e-4)
    assert any(group.is_conv for group in shown.groups)


@pytest.mark.parametrize(
    ("alpha", "entries", "told"),
    [
        (4096.0, {}, "alpha 4096 at rank 4 multiplies the update by 1024"),
        (1e-4, {}, "alpha 0.0001 at rank 4 multiplies the update by 2.5e-05"),
        (
            2.0,
            {"ss_network_dim": "32", "ss_network_alpha": "2"},
            "its metadata say ss_network_dim = 32, its layers have rank 4",
        ),
        (2.0, {"ss_network_dim": "4", "ss_network_alpha": "16"}, "ss_network_alpha = 16, its layers have alpha 2"),
        (
            2.0,
            {"ss_network_dim": "4", "ss_network_alpha": "2", "ss_network_args": '{"conv_dim": "8", "conv_alpha": "2"}'},
            "its metadata say conv_dim = 8, its layers have rank 4",
        ),
        (2.0, {"ss_network_dim": "4", "ss_network_alpha": "2.0"}, None),
        (4.0, {"ss_network_dim": "4", "ss_network_alpha": "2", "ss_network_args": '{"rs_lora": "True"}'}, None),
        (2.0, {"ss_network_dim": "8", "ss_network_args": '{"block_dims": "4,8"}'}, None),
        (2.0, {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}, None),
    ],
)
def test_sizes_that_cannot_be_or_that_the_metadata_deny_are_told(lora, tiny_model, alpha, entries, told):
    path = lora("a", rank=4, alpha=alpha, conv=True, entries={"ss_base_model_version": "sd_v1"} | entries)
    odd = [text for level, text, _ in look(path, tiny_model("sd1")).findings if level == "amber"]
    assert bool(odd) == bool(told)
    assert told is None or told in odd[0]


def test_nan_and_zeros_are_found(lora, tmp_path):
    path = lora("a")
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    save_file(tensors | {name: tensors[name] * torch.nan}, tmp_path / "nan.safetensors", {"ss_base_model_version": "x"})
    levels = [(level, text) for level, text, _ in look(tmp_path / "nan.safetensors").findings]
    assert levels == [("red", f"1 of {len(tensors)} tensors contain NaN or infinities, the first is {name}")]
    save_file({n: t * ("up" not in n) for n, t in tensors.items()}, tmp_path / "zero.safetensors")
    findings = look(tmp_path / "zero.safetensors").findings
    assert findings[0][:2] == ("red", "every layer adds zero: nothing was learned")
    assert "no metadata" in findings[-1][1]
    save_file(tensors | {name: tensors[name] * 0}, tmp_path / "some.safetensors")
    assert look(tmp_path / "some.safetensors").findings[0][:2] == (
        "amber", f"1 of {len(tensors) // 3} layers adds zero, such as {name.removesuffix('.lora_up.weight')}",
    )  # fmt: skip


# ---- what is told ----


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(ratios=[1.0]), "has 1 weights for 2 LoRAs"),
        (dict(ratios=[0, 0]), "are all 0: nothing would be merged"),
        (dict(method="checkpoint"), "needs a base model: set pretrained_model_name_or_path"),
        (dict(new_conv_rank=4), 'has no effect without method = "svd"'),
    ],
)
def test_settings_of_merging_that_cannot_be_are_told(options, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_tool(TOOLS["merge_loras.py"], options, {})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(dynamic_method="sv_fro"), "needs dynamic_param"),
        (dict(dynamic_param=0.9), "has no effect without dynamic_method"),
        (dict(dynamic_method="sv_fro", dynamic_param=5), "is above 1: it is a share for sv_fro"),
        (dict(dynamic_method="sv_ratio", dynamic_param=0.9), "is below 1"),
    ],
)
def test_settings_of_resizing_that_cannot_be_are_told(options, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_tool(TOOLS["resize_lora.py"], options, {})


def test_results_do_not_go_among_the_originals(tmp_path):
    with pytest.raises(ConfigError, match="is inside the folder of the LoRAs"):
        check_tool(TOOLS["resize_lora.py"], {"lora": str(tmp_path), "output_dir": str(tmp_path / "out")}, {})


def test_files_that_cannot_be_merged_are_all_told(lora, run, tmp_path):
    first, sdxl = lora("a"), lora("b", "sdxl")
    with pytest.raises(
        UserError, match="different families of base models .a.safetensors: SD 1.x, b.safetensors: SDXL."
    ):
        run(merge_loras, loras=[str(first), str(sdxl)])
    loha = tmp_path / "loha.safetensors"
    save_file({"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, loha)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError) as caught:
        run(merge_loras, loras=[str(loha), str(tmp_path / "broken.safetensors")])
    assert len(caught.value.problems) == 2
    with pytest.raises(UserError, match="nowhere.safetensors: there is no such file"):
        run(merge_loras, loras=[str(first), str(tmp_path / "nowhere.safetensors")])
    set_language("zh")
    with pytest.raises(UserError, match="没有这个文件"):
        run(merge_loras, loras=[str(first), str(tmp_path / "nowhere.safetensors")])


def test_a_lora_of_another_line_is_not_merged_into_a_checkpoint(lora, run, tiny_model):
    options = dict(method="checkpoint", pretrained_model_name_or_path=str(tiny_model("sd1")), ratios=[1.0])
    with pytest.raises(UserError, match="It was made for SDXL"):
        run(merge_loras, loras=[str(lora("b", "sdxl"))], **options)
    with pytest.raises(UserError, match="of its .* layers are not in this base model"):
        run(merge_loras, loras=[str(lora("b", "sdxl"))], **options)


def test_values_beyond_half_precision_are_told(lora, run):
    with pytest.raises(UserError, match='not written: .* contains infinities or NaN. Set save_precision to "bf16"'):
        run(merge_loras, loras=[str(lora("a", size=1e6))], ratios=[1.0], save_precision="fp16")
