"""A new family is one file and one row: the toy goes all ways, from a file on disk to a LoRA that is loaded again."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from library import families
from library.families.table import FAMILIES
from tests.conftest import FEW, draw_set, events
from tests.families import toy

GOLDEN = [1.27627, 1.26147, 1.22064, 1.23404, 1.22418, 1.12382, 1.23270, 1.13770, 1.17374, 1.18643, 1.18698, 1.09831]


@pytest.fixture
def toy_model(monkeypatch, tmp_path):
    """The file of a random toy, which the table knows."""
    monkeypatch.setitem(FAMILIES, "toy", "tests.families.toy")
    return toy.save(families.tiny("toy"), tmp_path / "toy.safetensors")


@pytest.fixture
def train(toy_model, small_set, tmp_path):
    """train(output="a", option=value, ...) -> the folder of a small complete run of the toy."""
    import train_network
    from library.options import checks

    def train(output="out", **options):
        values = dict(
            pretrained_model_name_or_path=str(toy_model),
            train_data_dir=str(small_set[0]),
            reg_data_dir=str(small_set[1]),
            output_dir=str(tmp_path / output),
            save_precision="float",
        )
        checked, warnings = checks.check(values | FEW | options, {})
        assert train_network.run(checked, warnings) == 0
        return tmp_path / output

    return train


def test_it_is_recognised_from_its_file(toy_model):
    info = families.inspect(toy_model)
    assert (info.family, info.objective, info.resolution, info.size_step) == ("toy", "flow", 64, 8)
    assert families.describe(info).startswith("toy.safetensors (Toy, flow")
    made, opened = families.tiny("toy"), families.open_model(toy_model, dtype=torch.float32)
    for part, module in opened.modules().items():
        theirs = made.modules()[part].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in module.state_dict().items())


def test_golden_losses(train):
    losses = [event["loss"] for event in events(train())]
    assert losses == pytest.approx(GOLDEN, rel=1e-3)


def test_a_run_that_is_gone_on_with_ends_in_the_same_bits(train):
    options = dict(save_state=True, save_every_n_steps=5, network_dropout=0.2)
    whole = train("whole", **options)
    rest = train("rest", **options, resume=str(whole / "it-step00000005-state"))
    first, second = (load_file(folder / "it.safetensors") for folder in (whole, rest))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "options",
    [
        dict(text_encoder_lr=0),  # captions of different length from the cache
        dict(text_encoder_lr=0, cache_text_encoder_outputs=False, cache_latents=False),
        dict(gradient_checkpointing=True, text_encoder_lr=0),
        dict(block_dims=[2, 4], mid_lr_weight="0.5,1"),
        dict(network_module="dora", min_snr_gamma=5.0),
        dict(noise_offset=0.1, loss_type="huber", flip_aug=True),
    ],
    ids=str,
)
def test_it_trains_with_the_options_of_all_families(train, options):
    tensors = load_file(train(**options) / "it.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert {name.split("_")[1] for name in tensors} == (
        {"unet"} if options.get("text_encoder_lr") == 0 else {"unet", "te"}
    )


def test_cached_captions_give_what_fresh_ones_do(train):
    losses = [
        [event["loss"] for event in events(train(str(cached), text_encoder_lr=0, cache_text_encoder_outputs=cached))]
        for cached in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # cached ones are kept in half precision


def test_masks_have_the_size_of_its_latents(train, small_set, tmp_path):
    (tmp_path / "masks").mkdir()
    for path in small_set[0].rglob("*.png"):
        mask = Image.new("L", Image.open(path).size)
        mask.paste(255, (0, 0, 32, mask.height))
        mask.save(tmp_path / "masks" / path.name)
    masked = train("masked", conditioning_data_dir=str(tmp_path / "masks"), reg_data_dir=None)
    whole = train("whole", reg_data_dir=None)
    assert events(masked)[0]["loss"] != events(whole)[0]["loss"]


def test_it_previews_and_measures(train, tmp_path):
    draw_set(tmp_path / "others", [f"mytag, hat {n}" for n in range(3)], [(64, 64)] * 3, seed=5)
    folder = train(
        sample_every_n_epochs=1,
        sample_prompts="a red hat --w 64 --h 72 --s 3",
        validation_data_dir=str(tmp_path / "others"),
        validate_every_n_epochs=1,
    )
    drawn = list((folder / "sample").glob("*.png"))
    assert {Image.open(path).size for path in drawn} == {(64, 72)}
    assert any("e000001" in path.name for path in drawn)
    assert events(folder, "validation")


def test_its_lora_is_loaded_again(train, toy_model):
    from library.lora_files import merging
    from library.tooling import lora_files

    path = train() / "it.safetensors"
    file = lora_files.read_lora(path)
    assert file.family == toy.TOY
    family = families.open_model(toy_model, dtype=torch.float32)
    known = merging.fit(path.name, file.factors, family.layers(), made_for=file.family, base=family.facts)
    noisy, t = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    with torch.no_grad():
        before = family.predict(noisy, t, family.encode_captions(["mytag, red hair"]))
        with merging.Merging(family.layers()) as model:
            model.apply([merging.Strength(known, 1.0, 1.0)])
            after = family.predict(noisy, t, family.encode_captions(["mytag, red hair"]))
    assert (after - before).abs().max() > 1e-3


def test_its_lora_is_tried(train, toy_model, tmp_path):
    """The grid of tools/try_lora.py: base model and LoRA, drawn by the toy."""
    from library.options.checks import check_tool
    from library.options.tools import TOOLS
    from tools import try_lora

    values = dict(
        pretrained_model_name_or_path=str(toy_model),
        loras=[str(train() / "it.safetensors")],
        prompts=["mytag, (red:1.2) hat"],
        strengths=[0, 1],
        resolution=64,
        steps=2,
        device="cpu",
        output_dir=str(tmp_path / "tried"),
    )
    assert try_lora.run(check_tool(TOOLS["try_lora.py"], values, {})) == 0
    first, second = sorted((tmp_path / "tried" / "pictures").glob("*.png"))
    assert Image.open(first).tobytes() != Image.open(second).tobytes()
