"""Ranks and rates by block and by pattern, LoRA+, averages, what else changes how a LoRA learns: against plain sums."""

import gzip
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from library.adapters import KINDS, attach, sizes
from library.adapters.sizes import LrScale, Size, read_blocks, read_weights
from library.contracts import Target
from library.families.sd import SD1
from library.families.sdxl import SDXL
from library.messages import UserError
from library.optim.averages import Average
from library.optim.optimizers import parameter_groups
from library.options.checks import ConfigError, check
from library.options.training import Config
from library.training.attach import param_group_rates
from tests.conftest import events

DATA = Path(__file__).parents[1] / "golden"


def problems_of(**values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(values, {})
    return caught.value.problems


# ---- Blocks ----

LAYERS_IN_BLOCKS = {  # sd-scripts' index of a block -> its layers
    "sd15": dict.fromkeys((1, 2, 4, 5, 7, 8, 12, *range(16, 25)), 12),
    "sd21": dict.fromkeys((1, 2, 4, 5, 7, 8, 12, *range(16, 25)), 12),
    "sd15_conv": dict(
        enumerate((15, 15, 1, 16, 15, 1, 16, 15, 1, 3, 3, 18, 4, 4, 5, 16, 16, 17, 16, 16, 17, 16, 16, 16), 1)
    ),
    "sdxl": {5: 22, 6: 22, 8: 102, 9: 102, 11: 102, 13: 102, 14: 102, 15: 102, 16: 22, 17: 22, 18: 22},
    "sdxl_conv": dict(
        enumerate((3, 3, 1, 26, 25, 1, 106, 105, 3, 102, 3, 106, 106, 107, 26, 26, 27, 4, 4, 4), 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", LAYERS_IN_BLOCKS)
def test_every_layer_lies_in_the_block_where_sd_scripts_counts_it(model):
    with gzip.open(DATA / f"lora_keys_{model}.txt.gz", "rt") as file:
        names = [line.split()[0] for line in file]
    layout = SDXL.blocks if "sdxl" in model else SD1.blocks
    counts = Counter(map(layout.index, names))
    assert counts.pop(None) == sum(name.startswith("lora_te") for name in names)
    assert counts == LAYERS_IN_BLOCKS[model]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in", 1),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", 3),
        ("lora_unet_down_blocks_3_resnets_1_conv1", 11),
        ("lora_unet_mid_block_attentions_0_proj_in", 12),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", 15),
        ("lora_unet_up_blocks_3_attentions_2_proj_out", 24),
        ("lora_unet_input_blocks_1_0_in_layers_2", 2),
        ("lora_unet_middle_block_1_proj_in", 11),
        ("lora_unet_output_blocks_8_0_out_layers_3", 21),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", None),
    ],
)
def test_blocks_of_single_layers(name, index):
    layout = SDXL.blocks if any(word in name for word in ("input", "middle", "output")) else SD1.blocks
    assert layout.index(name) == index


def test_presets_of_rates_over_the_blocks_are_the_curves_of_their_names():
    sine = [math.sin(math.pi / 2 * index / 11) for index in range(12)]
    assert read_weights("sine", 12) == pytest.approx(sine)
    assert read_weights("cosine", 12) == pytest.approx(sine[::-1])
    assert read_weights("linear+0.25", 12) == pytest.approx([index / 11 + 0.25 for index in range(12)])
    assert read_weights("reverse_linear", 9) == pytest.approx([1 - index / 8 for index in range(9)])
    assert read_weights("zeros+.5", 9) == [0.5] * 9
    assert read_weights("1,,0.5", 12) == [1, 0, 0.5]
    assert read_weights(None, 12) is None


def test_lists_of_blocks_are_checked_against_the_base_model():
    assert read_blocks(Config(), SD1.blocks) == ((None,) * 5, [])
    blocks, notes = read_blocks(
        Config(down_lr_weight="0.1,0.3", mid_lr_weight="1,2", block_lr_zero_threshold=0.1), SD1.blocks
    )
    assert blocks.factors == [0, 0.3, *[1.0] * 23]
    assert notes == [
        "down_lr_weight has 2 values for 12 blocks: 1 for the others",
        "mid_lr_weight has 2 values for 1 block: the last are ignored",
    ]
    assert read_blocks(Config(up_lr_weight="zeros"), SDXL.blocks)[0].factors == [*[1.0] * 13, *[0.0] * 9, 1.0]
    with pytest.raises(UserError) as caught:
        read_blocks(Config(block_dims=[4] * 25, conv_block_alphas=[1.0] * 3), SDXL.blocks)
    assert caught.value.problems == [
        "block_dims has 25 values; this base model has 23 blocks: the embeddings, 9 down, 3 middle, 9 up, the output",
        "conv_block_alphas has 3 values; this base model has 23 blocks: the embeddings, 9 down, 3 middle, 9 up, "
        "the output",
    ]


# ---- Sizes ----

TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
DOWN, DOWN_CONV, MID, UP, UP_CONV = (
    f"lora_unet_{name}"
    for name in (
        "down_blocks_0_attentions_0_proj_in",
        "down_blocks_0_resnets_0_conv1",
        "mid_block_attentions_0_proj_in",
        "up_blocks_1_attentions_1_proj_in",
        "up_blocks_1_resnets_1_conv1",
    )
)
UP_EMBEDDING = "lora_unet_up_blocks_1_resnets_1_time_emb_proj"


def targets(dtype=torch.float32) -> list[Target]:
    torch.manual_seed(0)
    made = [Target(nn.Linear(6, 5), TEXT, "text_encoder")]
    made += [Target(nn.Linear(5, 4), name, "denoiser") for name in (DOWN, MID, UP)]
    made += [
        Target(nn.Conv2d(4, 4, 3, padding=1), name, "denoiser", needs_conv_dim=True) for name in (DOWN_CONV, UP_CONV)
    ]
    made += [Target(nn.Linear(4, 4), UP_EMBEDDING, "denoiser", needs_conv_dim=True)]
    for target in made:
        target.layer.requires_grad_(False).to(dtype)
    return made


def attached(family=SD1, dtype=torch.float32, faster=(), **options):
    config = Config(**(dict(network_dim=4, network_alpha=2.0) | options))
    made = targets(dtype)
    return config, attach(
        made,
        module=config.network_module,
        rank=config.network_dim,
        alpha=config.network_alpha,
        conv_rank=config.conv_dim,
        conv_alpha=config.conv_alpha,
        sizes=sizes.choose(made, config, family.blocks),
        faster=faster,
    )


def ranks_and_alphas(adapters) -> dict:
    return {name: (layer.rank, layer.alpha) for name, layer in adapters.layers.items()}


def with_values(count: int, **values) -> list:
    """25 values, all `count` but for those of blocks by name."""
    return [values.get(f"at{index}", count) for index in range(25)]


def test_nothing_asked_for_is_nothing_of_its_own():
    assert sizes.choose(targets(), Config(), SD1.blocks) == {}


def test_ranks_and_alphas_of_blocks():
    _, adapters = attached(block_dims=with_values(2, at12=0, at17=8), block_alphas=with_values(1.0, at17=4.0))
    assert ranks_and_alphas(adapters) == {TEXT: (4, 2.0), DOWN: (2, 1.0), UP: (8, 4.0)}
    _, adapters = attached(conv_block_dims=with_values(0, at17=3))
    others = {TEXT: (4, 2.0), DOWN: (4, 2.0), MID: (4, 2.0), UP: (4, 2.0)}
    assert ranks_and_alphas(adapters) == others | {UP_CONV: (3, 1.0), UP_EMBEDDING: (4, 2.0)}
    _, adapters = attached(conv_dim=2, block_dims=with_values(0, at17=8), conv_block_alphas=with_values(3.0))
    assert ranks_and_alphas(adapters) == {
        TEXT: (4, 2.0), UP: (8, 2.0), UP_EMBEDDING: (8, 2.0), DOWN_CONV: (2, 3.0), UP_CONV: (2, 3.0),
    }  # fmt: skip


def test_a_block_that_does_not_learn_is_left_out():
    _, adapters = attached(conv_dim=2, down_lr_weight="zeros", up_lr_weight="0.1", block_lr_zero_threshold=0.2)
    assert set(adapters.layers) == {TEXT, MID, UP, UP_CONV, UP_EMBEDDING}


def test_ranks_and_layers_by_patterns_of_names():
    options = dict(
        network_reg_dims=[r"up_blocks\.1.*conv1=3", "lora_unet_up.*proj_in=6", "up.*=2", "down.*conv1=0"],
        exclude_patterns=[".*_proj_in"],
        include_patterns=["up_.*"],
    )
    _, adapters = attached(conv_dim=8, **options)
    assert ranks_and_alphas(adapters) == {TEXT: (4, 2.0), UP: (6, 2.0), UP_CONV: (3, 2.0), UP_EMBEDDING: (2, 2.0)}
    _, adapters = attached(**options)
    assert ranks_and_alphas(adapters) == {TEXT: (4, 2.0), UP: (6, 2.0)}


def test_patterns_that_fit_nothing_are_told():
    with pytest.raises(UserError) as caught:
        attached(network_reg_lrs=["transformer.*=1e-4"], exclude_patterns=["blocks_0"])
    assert caught.value.problems == [
        f"{option}: {pattern} is the name of no layer that is trained; names are such as {TEXT}"
        for option, pattern in (("network_reg_lrs", "transformer.*"), ("exclude_patterns", "blocks_0"))
    ]
    with pytest.raises(UserError, match="no layer is left to train"):
        attached(exclude_patterns=[".*"])


@pytest.mark.parametrize("kind", ["lora", "loha", "dora"])
def test_a_files_ranks_are_taken(kind):
    options = dict(network_module=kind, rs_lora=True)
    _, first = attached(block_dims=with_values(2, at12=0, at17=8), conv_dim=3, **options)
    config = Config(network_dim=16, dim_from_weights=True, **options)
    made = targets()
    own = sizes.choose(made, config, SD1.blocks, sizes.of_file(first.state_dict()))
    second = attach(made, module=kind, rank=16, rank_stabilized=False, sizes=own)
    assert {name: layer.rank for name, layer in second.layers.items()} == {
        name: layer.rank for name, layer in first.layers.items()
    }


def test_a_files_alphas_are_taken_whatever_scaled_them():
    made = targets()
    tensors = attach(made, rank=4, alpha=3, rank_stabilized=True).state_dict()
    config = Config(rs_lora=True, dim_from_weights=True)
    own = sizes.choose(made, config, SD1.blocks, sizes.of_file(tensors))
    again = attach(targets(), rank=32, alpha=32, rank_stabilized=True, sizes=own)
    again.load_state_dict(tensors)
    assert {layer.alpha for layer in again.layers.values()} == {6.0}


def test_a_lokr_does_not_tell_its_ranks():
    with pytest.raises(UserError, match="the file does not tell its ranks"):
        sizes.of_file(attached(network_module="lokr")[1].state_dict())


# ---- Rates ----

PLUS = {"lora": "up", "dora": "up", "loha": "w2_a", "lokr": "w1"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_flat", [True, False])
def test_a_step_is_that_of_each_layer_at_its_own_rate(kind, dtype, is_flat):
    """Blocks, patterns and LoRA+ at once, against one plain step for each tensor."""
    config, adapters = attached(
        network_module=kind, learning_rate=0.5, text_encoder_lr=0.25, conv_dim=2, down_lr_weight="zeros+0.5",
        up_lr_weight="0.1,0.2,0.3,0.4,0.7", network_reg_lrs=["mid.*=0.05"], loraplus_unet_lr_ratio=4.0, dtype=dtype,
        faster=["denoiser"],
    )  # fmt: skip
    rates = {TEXT: 0.25, DOWN: 0.25, DOWN_CONV: 0.25, MID: 0.05, UP: 0.35, UP_CONV: 0.35, UP_EMBEDDING: 0.35}
    trained = adapters.param_groups(is_flat=is_flat)
    named = {group.name: parameters for group, parameters in trained.items()}
    assert set(named) == {
        "text_encoder", "unet_block1", "unet_block1 plus", "unet_reg0", "unet_reg0 plus", "unet_block17",
        "unet_block17 plus",
    }  # fmt: skip
    optimizer = torch.optim.SGD(parameter_groups(named, param_group_rates(config, trained)), lr=1.0)
    before, gradients = {}, {}
    generator = torch.Generator().manual_seed(3)
    for name, layer in adapters.layers.items():
        for attribute, master in zip(layer.attributes, layer.masters(), strict=True):
            before[name, attribute] = master.clone()
            gradients[name, attribute] = torch.randn(master.shape, generator=generator).to(dtype)
            getattr(layer, attribute).grad.copy_(gradients[name, attribute])
    adapters.gather()
    optimizer.step()
    adapters.refresh()
    for name, layer in adapters.layers.items():
        for attribute, master in zip(layer.attributes, layer.masters(), strict=True):
            is_plus = attribute == PLUS[kind] and name != TEXT
            rate = rates[name] * (4 if is_plus else 1)
            expected = before[name, attribute] - rate * gradients[name, attribute].float()
            torch.testing.assert_close(master, expected)
            torch.testing.assert_close(getattr(layer, attribute).data, expected.to(dtype))


def test_the_second_step_of_adam_is_that_of_each_layer_too():
    config, adapters = attached(
        learning_rate=0.1, up_lr_weight="linear+0.1", loraplus_lr_ratio=16.0, faster=["denoiser"]
    )
    trained = adapters.param_groups()
    groups = parameter_groups({one.name: its for one, its in trained.items()}, param_group_rates(config, trained))
    optimizer = torch.optim.AdamW(groups, fused=True)
    rate = 0.1 * (4 / 11 + 0.1) * 16
    layer = adapters.layers[UP]
    alone = nn.Parameter(layer.up_master.clone())
    plain = torch.optim.AdamW([alone], lr=rate)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        gradient = torch.randn(alone.shape, generator=generator)
        layer.up.grad.copy_(gradient)
        alone.grad = gradient.clone()
        adapters.gather()
        optimizer.step()
        plain.step()
        adapters.refresh()
    torch.testing.assert_close(layer.up_master, alone.detach())


def test_a_run_that_asks_for_nothing_has_one_tensor_for_each_part():
    _, adapters = attached(conv_dim=2)
    named = {group.name: parameters for group, parameters in adapters.param_groups().items()}
    assert {name: len(parameters) for name, parameters in named.items()} == {"text_encoder": 1, "unet": 1}
    assert named["unet"][0] is adapters.flat_parameters["denoiser"].master


def test_layers_of_one_input_are_one_product_only_where_they_learn_alike():
    shared = [Target(nn.Linear(5, 4).requires_grad_(False), f"q{n}", "denoiser", shares_input="x") for n in range(3)]
    own = {"q2": Size(lr_scale=LrScale("reg0", rate=1e-4))}
    adapters = attach(shared, rank=2, sizes=own)
    assert [len(group) for group in adapters.flat_parameters["denoiser"].layer_groups] == [2, 1]


# ---- Averages ----


def test_an_average_is_the_sum_of_its_definition_and_shows_itself_for_a_while():
    weights = nn.Parameter(torch.zeros(3))
    average = Average([weights], decay=0.9)
    expected = torch.zeros(3)
    for step in range(1, 200):
        with torch.no_grad():
            weights += torch.randn(3)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights.detach()
    torch.testing.assert_close(average.values[0], expected)
    kept = weights.detach().clone()
    with average.applied():
        torch.testing.assert_close(weights.detach(), expected)
    assert torch.equal(weights.detach(), kept)
    other = Average([weights], decay=0.9)
    other.load([expected])
    assert torch.equal(other.values[0], expected)


# ---- Runs ----


def weights_of(folder: Path, name: str = "it.safetensors") -> dict:
    return load_file(folder / name)


def same(first: dict, second: dict, beginning: str = "") -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first if name.startswith(beginning)
    )


FLOAT = dict(save_precision="float", lr_scheduler="constant")


def test_a_run_with_everything_goes_on_bit_for_bit(run):
    """The average, the frozen text encoder and the optimizer's many groups must all be in the state."""
    options = FLOAT | dict(
        ema_decay=0.8, stop_text_encoder_training=4, loraplus_lr_ratio=2.0, down_lr_weight="cosine+0.5", conv_dim=2,
        rank_dropout=0.2, module_dropout=0.2,
    )  # fmt: skip
    whole = run(output="whole", **options)
    for step in (3, 6):
        cut = run(output=f"cut{step}", save_state=True, save_every_n_steps=step, **options)
        run(output=f"cut{step}", resume=str(cut / f"it-step{step:08d}-state"), **options)
        assert same(weights_of(whole), weights_of(cut, "it-2.safetensors"))  # the finished run's file stays
    told = events(whole)[-1]
    assert {name for name in told if name.startswith("lr/")} == {
        f"lr/{part}{plus}" for part in ("text_encoder", "unet_block1", "unet_block12", "unet_block13", "unet_block14",
                                        "unet_block15", "unet_block16", "unet_block17", "unet_block3", "unet_block4")
        for plus in ("", " plus")
    }  # fmt: skip


def test_the_text_encoder_ends_as_it_was_when_it_was_stopped(run, capsys):
    """As in a run of so many steps; half-way is the same as the number of steps."""
    options = FLOAT | dict(save_every_n_steps=6)
    plain = run(output="plain", **options)
    by_steps = run(output="steps", stop_text_encoder_training=6, **options)
    by_share = run(output="share", stop_text_encoder_training="50%", **options)
    said = capsys.readouterr()
    assert (said.out + said.err).count("the text encoder is no longer trained") == 2
    run(output="late", stop_text_encoder_training=20, max_train_steps=2)
    assert "stop_text_encoder_training = 20 has no effect: the run has 2 steps" in capsys.readouterr().out
    then = weights_of(plain, "it-step00000006.safetensors")
    assert same(then, weights_of(by_steps), "lora_te")
    assert same(weights_of(by_steps), weights_of(by_share))
    assert not same(then, weights_of(by_steps), "lora_unet")
    assert not same(then, weights_of(plain), "lora_te")


def test_the_saved_average_is_that_of_the_weights_after_each_step(run):
    raw = run(output="raw", save_every_n_steps=1, **FLOAT)
    averaged = weights_of(run(output="average", ema_decay=0.5, **FLOAT))
    name = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    steps = [weights_of(raw, f"it-step{step:08d}.safetensors")[name] for step in range(1, 12)]
    expected = torch.zeros_like(steps[0])  # as `up` begins
    for step, weights in enumerate([*steps, weights_of(raw)[name]], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(averaged[name], expected)


def first_loss(folder: Path) -> float:
    return events(folder)[0]["loss"]


def test_merged_base_weights_predict_as_the_lora_beside_the_model_did(run):
    lora = run(output="lora", conv_dim=2, **FLOAT) / "it.safetensors"
    beside = run(output="beside", network_weights=str(lora), conv_dim=2, max_train_steps=2)
    merged = run(output="merged", base_weights=[str(lora)], max_train_steps=2)
    twice = run(output="twice", base_weights=[str(lora)] * 2, base_weights_multiplier=[0.25, 0.75], max_train_steps=2)
    none = run(output="none", base_weights=[str(lora)], base_weights_multiplier=[0.0], max_train_steps=2)
    plain = run(output="plain", max_train_steps=2)
    assert first_loss(merged) == pytest.approx(first_loss(beside), rel=1e-4)
    assert first_loss(twice) == pytest.approx(first_loss(merged), rel=1e-4)
    assert first_loss(merged) != pytest.approx(first_loss(plain), rel=1e-3)
    assert same(weights_of(none), weights_of(plain))


def test_base_weights_of_another_model_are_refused(run, tmp_path):
    lora = run("sdxl", output="lora") / "it.safetensors"
    with pytest.raises(UserError, match="layers are not in this base model"):
        run(base_weights=[str(lora)])


def test_a_file_says_the_ranks(run):
    first = run(output="first", network_dim=3, conv_dim=1, block_dims=[3] * 24 + [2], **FLOAT)
    again = run(
        output="again", network_weights=str(first / "it.safetensors"), dim_from_weights=True, network_dim=8,
        max_train_steps=2,
    )  # fmt: skip
    with safe_open(again / "it.safetensors", "pt") as file:
        assert file.metadata()["ss_network_dim"] == "3"
    shapes = [{name: tensor.shape for name, tensor in weights_of(folder).items()} for folder in (first, again)]
    assert shapes[0] == shapes[1]


def test_the_two_text_encoders_of_sdxl_have_rates_of_their_own(run):
    folder = run("sdxl", text_encoder_lr=[2e-3, 1e-3], lr_scheduler="constant", max_train_steps=2)
    step = events(folder)[0]
    assert (step["lr/text_encoder"], step["lr/text_encoder_2"], step["lr/unet"]) == (2e-3, 1e-3, 1e-2)
    folder = run("sdxl", output="one", text_encoder_lr=[0.0, 1e-3], max_train_steps=2)
    assert not any(name.startswith("lora_te1") for name in weights_of(folder))
    assert any(name.startswith("lora_te2") for name in weights_of(folder))
    with pytest.raises(UserError, match="this base model has one text encoder"):
        run(output="sd", text_encoder_lr=[2e-3, 1e-3])


def test_a_run_can_begin_in_the_middle(run):
    """The same images, noise and timesteps as the whole run sees there: with almost no learning, the same losses."""
    options = dict(learning_rate=1e-9, save_precision="float", resume="new")
    whole = [event["loss"] for event in events(run(output="whole", **options))]  # 2 epochs of 6 steps
    for output, more, first in (
        ("epoch", dict(initial_epoch=2), 6),
        ("step", dict(initial_step=8), 6),
        ("exact", dict(initial_step=8, skip_until_initial_step=True), 8),
    ):
        steps = events(run(output=output, **options, **more))
        assert [step["step"] for step in steps] == list(range(first + 1, 13))
        assert [step["loss"] for step in steps] == pytest.approx(whole[first:], rel=1e-4)
    with pytest.raises(UserError, match="nothing is left to train"):
        run(output="late", initial_epoch=3)


# ---- Weighted captions ----


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_weighted_words_have_their_states_multiplied_and_nothing_else(family):
    from library import families
    from library.diffusion import prompts

    model = families.tiny(family)
    plain = model.encode_captions(["red hair, smile"])
    model.weigh = prompts.weights
    same_again = model.encode_captions(["red hair, smile"])
    torch.testing.assert_close(same_again["states"], plain["states"])
    heavy = model.encode_captions(["(red hair, smile:1.5)"])
    ratio = heavy["states"] / plain["states"]
    count = sum(len(ids) for ids in model.tokenizer(["red hair, smile"], add_special_tokens=False)["input_ids"])
    torch.testing.assert_close(ratio[0, 1 : 1 + count], torch.full_like(ratio[0, 1 : 1 + count], 1.5))
    torch.testing.assert_close(heavy["states"][0, 1 + count :], plain["states"][0, 1 + count :])
    torch.testing.assert_close(heavy["states"][0, 0], plain["states"][0, 0])
    if "pooled" in plain:
        torch.testing.assert_close(heavy["pooled"], plain["pooled"])


def test_long_weighted_captions_are_cut_as_plain_ones():
    from library import families
    from library.diffusion import prompts

    model = families.tiny("sd1")
    model.chunk_count = 2
    caption = "one two three four five six seven eight nine ten " * 12
    plain = model.encode_captions([caption])
    model.weigh = prompts.weights
    torch.testing.assert_close(model.encode_captions([caption])["states"], plain["states"])


# ---- What is said ----


def test_values_are_read_in_the_ways_people_write_them():
    rows = ["2,4,0", ["2", "4", "0"], [2, 4, 0], ["2,4", "0"]]
    assert {tuple(check({"block_dims": row}, {})[0].block_dims) for row in rows} == {(2, 4, 0)}
    config, _ = check({"down_lr_weight": [0, 0.5, 1], "text_encoder_lr": ["5e-5"]}, {})
    assert (config.down_lr_weight, config.text_encoder_lr) == ("0,0.5,1", 5e-5)
    config, _ = check({"network_reg_dims": "a{1,2}=4,b.*=8"}, {})
    assert config.network_reg_dims == ["a{1,2}=4", "b.*=8"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            dict(down_lr_weight="cosin"),
            'down_lr_weight = "cosin" is not a list of numbers such as 0.5,1,1, nor one of cosine, sine, linear, '
            "reverse_linear, zeros, which may be followed by +0.25",
        ),
        (dict(mid_lr_weight="sine"), 'mid_lr_weight = "sine" is not a list of numbers such as 0.5,1,1'),
        (
            dict(network_reg_dims="a=b"),
            'network_reg_dims = "a=b" contains "a=b", which is not pattern=whole number',
        ),
        (
            dict(exclude_patterns=["("]),
            "exclude_patterns = ['('] contains \"(\", which is not a valid regular expression (missing ), "
            "unterminated subpattern at position 0)",
        ),
        (
            dict(dim_from_weights=True),
            "dim_from_weights = True needs network_weights: the file to take them from",
        ),
        (
            dict(loraplus_lr_ratio=4, optimizer_type="Prodigy", learning_rate=1),
            "loraplus_lr_ratio = 4.0 is not possible with Prodigy, which finds one learning rate for all layers: "
            'use another, such as "AdamW", or leave this out',
        ),
        *(
            (
                dict(optimizer_type=name, **rates),
                f"text_encoder_lr = {shown} gives the parts different learning rates ({listed}), and {name} finds one "
                "for all. Set unet_lr and text_encoder_lr to None (or one of them to 0, to freeze that part), and "
                "learning_rate to 1",
            )
            for name, rates, shown, listed in (
                ("Prodigy", dict(unet_lr=1, text_encoder_lr=0.5), "0.5", "1, 0.5"),
                ("DAdaptLion", dict(text_encoder_lr=0.5), "0.5", "1, 0.5"),
                ("DAdaptAdam", dict(learning_rate=0.5, unet_lr=1), "None", "1, 0.5"),
                ("Prodigy", dict(text_encoder_lr=[1, 0.5]), "[1.0, 0.5]", "1, 0.5"),
            )
        ),
        (
            dict(network_reg_lrs=["a=1"], optimizer_type="Adafactor"),
            "network_reg_lrs = ['a=1'] is not possible with Adafactor, which finds one learning rate for all "
            'layers: set optimizer_args = ["relative_step=False"], or leave this out',
        ),
        (
            dict(ema_decay=0.9, optimizer_type="AdamWScheduleFree"),
            "ema_decay = 0.9 is not possible with AdamWScheduleFree, which saves an average of its own. Remove one "
            "of them",
        ),
        (
            dict(text_encoder_lr=[1e-5, 2e-5, 3e-5]),
            "text_encoder_lr = [1e-05, 2e-05, 3e-05] are more than two learning rates: SDXL has two text encoders, "
            "other models one",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_cure(values, problem):
    assert problems_of(**values) == [problem]


@pytest.mark.parametrize(
    "rates",
    [
        dict(unet_lr=1, text_encoder_lr=1),
        dict(unet_lr=1, text_encoder_lr=0),
        dict(unet_lr=0, text_encoder_lr=1),
        dict(unet_lr=1, text_encoder_lr=0.5, network_train_unet_only=True),
        dict(learning_rate=0.7),
    ],
)
def test_one_rate_for_all_parts_that_are_trained_is_possible(rates):
    check(dict(optimizer_type="Prodigy", **rates), {})


def test_what_has_no_effect_is_said():
    _, warnings = check(
        dict(block_lr_zero_threshold=0.1, include_patterns=["a"], loraplus_text_encoder_lr_ratio=4, text_encoder_lr=0),
        {},
    )
    assert [line.partition(" has no effect without ")[2] for line in warnings[-3:]] == [
        "down_lr_weight / mid_lr_weight / up_lr_weight",
        "exclude_patterns",
        "text_encoder_lr",
    ]
