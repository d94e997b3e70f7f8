"""LoRA files in a model's weights: every writing of them, the same image as diffusers', and out again to the bit."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from library import adapters, families
from library.contracts import Target
from library.diffusion import prompts, sampling
from library.lora_files import layouts, merging
from library.lora_files.factors import Factors, read_factors
from library.lora_files.merging import Merging, Strength
from library.messages import UserError, set_language

SIZE = 64


def random_lora(family, rank=2, seed=0, conv=False, size=0.5, alpha=1.0):
    """A file's tensors in kohya's writing, large enough to be seen."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in family.targets():
        if target.needs_conv_dim and not conv:
            continue
        shape = target.layer.weight.shape
        tensors[f"{target.saved_as}.lora_down.weight"] = size * torch.randn(rank, *shape[1:], generator=draw)
        tensors[f"{target.saved_as}.lora_up.weight"] = size * torch.randn(
            shape[0], rank, *[1] * (len(shape) - 2), generator=draw
        )
        tensors[f"{target.saved_as}.alpha"] = torch.tensor(alpha)
    return tensors


def weights(family):
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in family.modules().items()
        for name, tensor in module.state_dict().items()
    }


def read(tensors, metadata=None):
    return read_factors("my.safetensors", tensors, metadata)


# ---- into the weights, and out ----


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_merged_model_computes_what_the_trained_one_does(name):
    """The adapter beside each layer and the adapter in its weight are the same function."""
    family = families.tiny(name)
    tensors = random_lora(family, rank=2, conv=True, size=0.2)
    sizes = family.size_conditioning(sampling.image_sizes(SIZE, SIZE))
    noisy, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    with torch.no_grad():
        attached = adapters.attach(family.targets(), rank=2, alpha=1, conv_rank=2, conv_alpha=1)
        attached.load_state_dict(tensors)
        attached.multiplier = 0.6
        expected = family.predict(noisy, t, family.encode_captions(["a red hat"]) | sizes)
        attached.detach_from_model()
        base = family.predict(noisy, t, family.encode_captions(["a red hat"]) | sizes)
        with Merging(family.layers()) as model:
            model.apply([Strength(read(tensors), 0.6, 0.6)])
            merged = family.predict(noisy, t, family.encode_captions(["a red hat"]) | sizes)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    assert (base - expected).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_weights_come_back_to_the_bit(dtype):
    family = families.tiny("sd1")
    for module in family.modules().values():
        module.to(dtype)
    before = weights(family)
    first, second = read(random_lora(family, conv=True)), read(random_lora(family, seed=1))
    with Merging(family.layers()) as model:
        model.apply([Strength(first, 0.6, 0.6), Strength(second, 0.5, 0.5)])
        model.apply([Strength(second, 1.0, 0.0)])
        changed = {name for name, tensor in weights(family).items() if not torch.equal(tensor, before[name])}
        model.apply([Strength(first, 0.3, 0.3)])
    assert changed
    assert all(name.startswith("text_encoder.") for name in changed)
    after = weights(family)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_ctrl_c_in_the_middle_of_merging_leaves_the_weights_whole(monkeypatch):
    family = families.tiny("sd1")
    before, calls = weights(family), []
    whole = Factors.update

    def update(self, *given):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(Factors, "update", update)
    with pytest.raises(KeyboardInterrupt), Merging(family.layers()) as model:
        model.apply([Strength(read(random_lora(family)), 1, 1)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(family).items())


def test_several_files_add_up_with_their_own_strengths():
    """W + s1 alpha1 / r1 up1 down1 + s2 ..., in float32 and rounded once."""
    layer = torch.nn.Linear(3, 4).to(torch.bfloat16).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    one, two = ((torch.randn(r, 3, generator=draw), torch.randn(4, r, generator=draw)) for r in (2, 5))
    files = [
        read({"x.lora_down.weight": one[0], "x.lora_up.weight": one[1], "x.alpha": torch.tensor(1.0)}),
        read({"x.lora_down.weight": two[0], "x.lora_up.weight": two[1]}),  # no alpha: the rank
    ]
    expected = layer.weight.float() + 0.6 * 0.5 * one[1] @ one[0] + -0.5 * two[1] @ two[0]
    with Merging([Target(layer, "x", "denoiser")]) as model:
        model.apply([Strength(files[0], 0, 0.6), Strength(files[1], 9, -0.5)])
        assert torch.equal(layer.weight, expected.to(torch.bfloat16))


def test_a_convolution_in_three_steps_is_their_composition():
    """LyCORIS' CP form: 1x1, k x k within the rank, 1x1."""
    draw = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(*s, generator=draw) for s in ((2, 5, 1, 1), (2, 2, 3, 3), (4, 2, 1, 1)))
    factors = read({"x.lora_down.weight": down, "x.lora_mid.weight": mid, "x.lora_up.weight": up})["x"]
    image = torch.randn(1, 5, 6, 6, generator=draw)
    conv = torch.nn.functional.conv2d
    expected = conv(conv(conv(image, down), mid, padding=1), up)
    torch.testing.assert_close(conv(image, factors.update("cpu"), padding=1), expected, rtol=1e-4, atol=1e-4)


# ---- writings ----


def renamed(family, tensors, prefixes, ends):
    """Kohya's tensors under diffusers' names with dots."""
    names = {}
    for part, prefix in prefixes.items():
        for name, layer in family.modules()[part].named_modules():
            names[layer] = f"{prefix}.{name}"
    saved = {target.saved_as: names[target.layer] for target in family.targets() if target.layer in names}
    return {
        saved[key.partition(".")[0]] + ends[end]: tensor
        for key, tensor in tensors.items()
        for end in ends
        if key.endswith(end)
    }


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_diffusers_and_pefts_files_are_the_same_files(name):
    family = families.tiny(name)
    tensors = {key: tensor for key, tensor in random_lora(family).items() if not key.endswith("alpha")}
    prefixes = {part: own.folder for part, own in family.facts.parts.items()}
    kohya = {key: value.update("cpu") for key, value in read(tensors).items()}
    for ends in (
        {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"},
        {".lora_down.weight": ".lora.down.weight", ".lora_up.weight": ".lora.up.weight"},
    ):
        found = read(renamed(family, tensors, prefixes, ends))
        known = merging.fit("a", found, family.layers())
        assert set(known) == set(kohya)
        assert all(torch.equal(value.update("cpu"), kohya[key]) for key, value in known.items())


def test_the_alpha_of_a_peft_file_stands_in_its_metadata():
    tensors = {"unet.a.lora_A.weight": torch.ones(4, 3), "unet.a.lora_B.weight": torch.ones(5, 4)}
    assert read(tensors, {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 2}'})["unet.a"].scale == 0.5
    assert read(tensors, {"lora_adapter_metadata": "broken"})["unet.a"].scale == 1
    with pytest.raises(UserError, match="layers have strengths of their own .unet.alpha_pattern"):
        read(tensors, {"lora_adapter_metadata": '{"unet.alpha_pattern": {"x": 8}}'})


def test_sdxl_files_with_diffusers_names_and_underscores_fit():
    family = families.tiny("sdxl")
    layers = layouts.by_name(family.layers())
    for name, module in family.unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            assert [target.layer for target in layers["lora_unet_" + name.replace(".", "_")]] == [module]
            assert [target.layer for target in layers[f"unet.{name}"]] == [module]
    assert layers["lora_unet_input_blocks_0_0"][0].layer is family.unet.conv_in
    assert {target.saved_as for target in family.targets()} <= set(layers)


# ---- what is told ----


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_x.oft_blocks", "OFT"),
        ("lora_unet_x.diff", "full"),
    ],
)
def test_other_kinds_are_refused_by_name(key, kind):
    with pytest.raises(
        UserError, match=f"my.safetensors: is a {kind}. LoRA, LoCon, LoHa, LoKr and DoRA can .* this can't"
    ):
        read({key: torch.ones(1), "lora_unet_x.alpha": torch.ones(())})


def test_what_is_no_lora_or_is_damaged_is_told():
    with pytest.raises(UserError, match='is no LoRA: it contains 1 tensors such as "model.diffusion_model.out.2.bias"'):
        read({"model.diffusion_model.out.2.bias": torch.ones(4)})
    with pytest.raises(UserError, match="is empty"):
        read({})
    down, up = torch.ones(2, 3), torch.ones(4, 2)
    for broken in ({"lora_down.weight": down}, {"lora_down.weight": down * torch.nan, "lora_up.weight": up}):
        with pytest.raises(UserError, match="lora_unet_a lack a part, have an impossible shape or contain NaN"):
            read({f"lora_unet_a.{key}": tensor for key, tensor in broken.items()})
    with pytest.raises(UserError, match="impossible shape"):
        read({"lora_unet_a.lora_down.weight": down, "lora_unet_a.lora_up.weight": up.T})


@pytest.mark.parametrize(("made", "used"), [("sdxl", "sd1"), ("sd1", "sdxl"), ("sd1", "sd2"), ("sd2", "sd1")])
def test_a_lora_of_another_line_is_told_with_both_lines(made, used):
    file = {
        f"{target.saved_as}.lora_{end}.weight": torch.zeros(shape)
        for target in families.architecture(made).targets()
        if not target.needs_conv_dim
        for end, shape in (("down", (1, *target.layer.weight.shape[1:])), ("up", (len(target.layer.weight), 1)))
    }
    lines = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
    layers, factors = families.architecture(used).layers(), read(file)
    made_for = merging.family_of(factors, {}, families.all_facts())
    assert made_for.name == made
    told = dict(made_for=made_for, base=families.facts_of(used))
    with pytest.raises(UserError, match=f"It was made for {lines[made]}, this is {lines[used]}"):
        merging.fit("my.safetensors", factors, layers, **told)
    set_language("zh")
    with pytest.raises(UserError, match=f"它是为 {lines[made]} 训练的，而底模是 {lines[used]}"):
        merging.fit("my.safetensors", factors, layers, **told)


def test_strange_layers_are_counted_and_named():
    family = families.tiny("sd1")
    tensors = random_lora(family) | {
        f"lora_unet_extra_{n}.{end}": torch.ones(2, 2)
        for n in range(5)
        for end in ("lora_down.weight", "lora_up.weight")
    }
    told = "5 of its .* layers are not in this base model: lora_unet_extra_0, .* and 2 more. It was made for another"
    with pytest.raises(UserError, match=told):
        merging.fit("my.safetensors", read(tensors), family.layers())


# ---- the same image as diffusers' own loading ----


def pipeline(family):
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace",
        prediction_type="epsilon",
    )  # fmt: skip
    parts = dict(vae=family.vae, text_encoder=family.text_encoder, tokenizer=family.tokenizer, unet=family.unet)
    if family.facts.name == "sdxl":
        parts |= dict(text_encoder_2=family.text_encoder_2, tokenizer_2=family.tokenizer_2)
        made = StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    else:
        made = StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    made.set_progress_bar_config(disable=True)
    return made


def ours(family, loras, prompt, seed=3):
    """The latents that we draw with these (tensors, strength)."""
    drawn = []
    decode = family.decode_latents
    family.decode_latents = lambda latents: (drawn.append(latents), decode(latents))[1]
    sizes = family.size_conditioning(sampling.image_sizes(SIZE, SIZE))
    wanted = sampling.Prompt("", width=SIZE, height=SIZE, seed=seed, step_count=6, scale=5.0, sampler="euler")
    with Merging(family.layers()) as model, torch.no_grad():
        model.apply([Strength(read(tensors), strength, strength) for tensors, strength in loras])
        told = (
            family.encode_weighted(prompts.parse(prompt).weighted) | sizes,
            family.encode_weighted([], is_negative=True) | sizes,
        )
        sampling.generate_encoded(family, wanted, *told)
    return drawn[0]


@pytest.mark.slow("draws with the pipelines of diffusers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_image_is_the_one_that_diffusers_draws_with_the_same_files(name):
    """`load_lora_weights` and `set_adapters` at 0.6, and two files at 0.6 and 0.5: same noise, same latents."""
    family, prompt = families.tiny(name), "1girl, red hair"
    first, second = random_lora(family, size=0.3), random_lora(family, rank=3, seed=1, size=0.3, alpha=2.0)
    mine = [ours(family, loras, prompt) for loras in ([], [(first, 0.6)], [(first, 0.6), (second, 0.5)])]
    pipe = pipeline(family)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def theirs():
        return pipe(
            prompt, latents=noise.clone(), num_inference_steps=6, guidance_scale=5.0, height=SIZE, width=SIZE,
            output_type="latent",
        ).images  # fmt: skip

    drawn = [theirs()]
    pipe.load_lora_weights(dict(first), adapter_name="first")
    pipe.set_adapters(["first"], [0.6])
    drawn.append(theirs())
    pipe.load_lora_weights(dict(second), adapter_name="second")
    pipe.set_adapters(["first", "second"], [0.6, 0.5])
    drawn.append(theirs())
    for one, other in zip(mine, drawn, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert (drawn[0] - drawn[1]).abs().mean() > 0.05
    assert (drawn[1] - drawn[2]).abs().mean() > 0.05
