"""What is written in a layout is read as it was: names of every program, with and without alpha, split and as one."""

import pytest
import torch
from torch import nn

from library import adapters, families
from library.contracts import Target
from library.lora_files import layouts, merging
from library.lora_files.factors import in_our_writing, read_factors
from library.storage import lora_file


def attached(targets, **settings):
    """Adapters with something learnt."""
    made = adapters.attach(targets, **{"rank": 4, "alpha": 1.5} | settings)
    draw = torch.Generator().manual_seed(1)
    made.load_state_dict(
        {
            name: tensor if name.endswith("alpha") else torch.randn(tensor.shape, generator=draw)
            for name, tensor in made.state_dict().items()
        }
    )
    return made


def updates(tensors, targets):
    known = merging.fit("a", read_factors("a", tensors), targets)
    return {name: factors.update("cpu") for name, factors in known.items()}


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_what_is_written_in_a_layout_is_read_as_it_was(name, layout):
    family = families.tiny(name)
    tensors = attached(
        [target for target in family.targets() if target.part == "denoiser"], conv_rank=2, conv_alpha=1.0
    ).state_dict()
    expected = updates(tensors, family.layers())
    found = updates(layouts.write(tensors, family.layers(), layout), family.layers())
    assert set(found) == set(expected)
    for layer, update in expected.items():
        torch.testing.assert_close(found[layer], update, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_a_training_begins_with_a_file_in_any_layout(tmp_path, layout, kind):
    family, path = families.tiny("sdxl"), tmp_path / "a.safetensors"
    targets = [target for target in family.targets() if target.part == "denoiser"]
    made = attached(targets, module=kind)
    lora_file.save_adapter(path, layouts.write(made.state_dict(), family.layers(), layout))
    tensors = lora_file.load_adapter(path, lambda own: in_our_writing("a", own, family.layers()))
    again = adapters.attach(targets, module=kind, rank=4, alpha=1.5)
    if kind == "lora" and not layouts.LAYOUTS[layout].has_alpha:
        again = adapters.attach(targets, rank=4, alpha=4)  # the scale is in the numbers
    again.load_state_dict(tensors)
    for name, layer in made.layers.items():
        torch.testing.assert_close(again.layers[name].norm(), layer.norm())


def test_the_alpha_of_peft_is_that_of_every_layer():
    target = Target(nn.Linear(3, 5), "lora_unet_a", "unet", module="unet.a")
    file = {"unet.a.lora_A.weight": torch.ones(4, 3), "unet.a.lora_B.weight": torch.ones(5, 4), 3: torch.ones(1)}
    ours = in_our_writing("a", file, [target], {"lora_adapter_metadata": '{"unet.lora_alpha": 2}'})
    assert list(ours) == ["lora_unet_a.lora_down.weight", "lora_unet_a.alpha", "lora_unet_a.lora_up.weight", 3]
    assert ours["lora_unet_a.alpha"] == 2


def test_names_are_those_of_each_program():
    layers = {target.saved_as: target for target in families.architecture("sdxl").layers()}
    of = {name: layout.name_of for name, layout in layouts.LAYOUTS.items()}
    target = layers["lora_unet_input_blocks_3_0_op"]
    assert of["original"](target) == "diffusion_model.input_blocks.3.0.op"
    assert of["diffusers"](target) == "unet.down_blocks.0.downsamplers.0.conv"
    text = layers["lora_te2_text_model_encoder_layers_0_mlp_fc1"]
    assert of["diffusers"](text) == "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"


def test_kohya_is_what_is_trained_to_the_bit():
    tensors = attached([Target(nn.Linear(3, 5), "lora_unet_a", "denoiser")]).state_dict()
    written = layouts.write(tensors, [], "kohya")
    assert {name: id(tensor) for name, tensor in written.items()} == {name: id(t) for name, t in tensors.items()}


# ---- layers that the original model keeps as one ----


def attention():
    """Query, key and value of 4, 4 and 6 outputs; the original model keeps them as one layer of 14."""
    original = "diffusion_model.blocks.0.attention.qkv"
    return [
        Target(
            nn.Linear(3, outputs, bias=False), f"lora_unet_blocks_0_attention_to_{letter}", "denoiser",
            module=f"transformer.blocks.0.attention.to_{letter}", original=original, original_row=row,
        )
        for letter, row, outputs in (("q", 0, 4), ("k", 4, 4), ("v", 8, 6))
    ]  # fmt: skip


@pytest.mark.parametrize("adapted", [(0, 1, 2), (0, 2), (1,)])
def test_fused_it_is_one_layer_of_the_same_update(adapted):
    targets = attention()
    tensors = attached([targets[place] for place in adapted]).state_dict()
    written = layouts.write(tensors, targets, "original")
    (name,) = {layouts.layer_of(key) for key in written}
    assert name == "diffusion_model.blocks.0.attention.qkv"
    assert set(written) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}  # no alpha
    (whole,) = read_factors("a", written).values()
    expected = updates(tensors, targets)
    rows = [expected.get(target.saved_as, torch.zeros_like(target.layer.weight)) for target in targets]
    torch.testing.assert_close(whole.update("cpu"), torch.cat(rows), rtol=1e-5, atol=1e-6)
    found = updates(written, targets)
    for layer, update in expected.items():
        torch.testing.assert_close(found[layer], update, rtol=1e-5, atol=1e-6)


def test_sd_scripts_names_of_a_fused_layer_are_read_too():
    targets = attention()
    down, up = torch.randn(2, 3), torch.randn(14, 2)
    name = "lora_unet_blocks_0_attention_qkv"
    found = updates({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, targets)
    torch.testing.assert_close(torch.cat(list(found.values())), up @ down)


def test_a_layer_without_a_name_in_the_layout_keeps_ours():
    tensors = attached([Target(nn.Linear(3, 5), "lora_te1_a", "text_encoder")]).state_dict()
    assert set(layouts.write(tensors, [Target(nn.Linear(3, 5), "lora_te1_a", "text_encoder")], "original")) == set(
        tensors
    )


def test_other_kinds_keep_their_endings():
    target = Target(nn.Linear(8, 8), "lora_unet_a_b", "denoiser", original="diffusion_model.a.b")
    tensors = attached([target], module="loha").state_dict()
    written = layouts.write(tensors, [target], "original")
    assert set(written) == {name.replace("lora_unet_a_b", "diffusion_model.a.b") for name in tensors}
