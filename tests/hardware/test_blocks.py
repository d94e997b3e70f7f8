"""The runner of blocks: what it keeps, recomputes, observes and compiles; and the seam of diffusers."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from library.hardware.blocks import Blocks, call
from library.hardware.memory import trace
from library.hardware.nan import first_bad

N = 4000  # bytes of 1000 numbers


def curve(x):
    """Keeps what `sin` is given for its backward pass, beside its own result, where it is not recomputed."""
    return x.exp().sin().exp()


@pytest.fixture
def x():
    return torch.linspace(-1, 1, 1000).requires_grad_()


def output_and_gradient(blocks, x, function=curve):
    x.grad = None
    y = blocks.run("a", function, x)
    y.square().sum().backward()
    return y.detach(), x.grad


def test_a_recomputed_block_gives_the_same_bits(x):
    expected, found = output_and_gradient(Blocks(), x), output_and_gradient(Blocks(["a"]), x)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("recomputed", "kept"), [((), N), (["a"], 0), (["b"], N)])
def test_what_a_block_keeps_beside_its_input_and_output(x, recomputed, kept):
    blocks = Blocks(recomputed)

    def forward(counted):
        with blocks.observed(counted.block):
            return blocks.run("a", curve, x).sum()

    assert trace(forward).blocks["a"].kept == kept


def test_a_recomputed_block_drops_the_same_values(x):
    blocks = Blocks(["a"], is_random=True)
    y, gradient = output_and_gradient(blocks, x, lambda x: nn.functional.dropout(x, 0.5))
    assert torch.equal(gradient != 0, y != 0)


def test_without_gradients_nothing_is_recomputed(x):
    runs = []
    with torch.no_grad():
        Blocks(["a"]).run("a", lambda x: runs.append(1) or x, x)
    assert len(runs) == 1


def test_an_observer_is_told_the_name_of_every_block_within_and_of_none_after(x):
    names = []
    blocks = Blocks(["b"])
    with blocks.observed(lambda name, function, *arguments: names.append(name) or function(*arguments)):
        assert blocks.is_observed
        blocks.run("b", curve, blocks.run("a", curve, x)).sum().backward()
    assert not blocks.is_observed
    blocks.run("c", curve, x)
    assert names == ["a", "b"]


def test_an_observer_is_gone_after_an_error(x):
    blocks = Blocks()
    with pytest.raises(ZeroDivisionError), blocks.observed(lambda name, function, *arguments: 1 / 0):
        blocks.run("a", curve, x)
    assert not blocks.is_observed


@pytest.mark.parametrize("recomputed", [(), ["b"]])
def test_the_first_nan_is_found_in_its_block_recomputed_or_not(x, recomputed):
    blocks = Blocks(recomputed)

    def run(hunt):
        with blocks.observed(hunt.block):
            y = blocks.run("a", curve, x)
            blocks.run("b", lambda y: (y - 10).log(), y).sum().backward()

    assert first_bad({}, run) == "b (log)"


@pytest.mark.parametrize("recomputed", [(), ["a"]])
def test_a_compiled_function_takes_the_place_of_its_own_alone(x, recomputed):
    blocks, compiled = Blocks(recomputed), []
    blocks.compile(curve, lambda plain, fast: lambda x: compiled.append((plain, fast)) or fast(x), plain=torch.exp)
    expected = output_and_gradient(Blocks(), x)
    assert all(map(torch.equal, output_and_gradient(blocks, x), expected))
    assert set(compiled) == {(torch.exp, curve)}
    assert len(compiled) == 1 + len(recomputed)
    blocks.run("a", torch.sin, x)
    assert len(compiled) == 1 + len(recomputed)


# ---- The seam of diffusers' transformers ----


class Flux:
    """Two blocks with a pair of results, one with a single one."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
        self.image = torch.randn(1, 6, 4)
        self.rest = dict(
            encoder_hidden_states=torch.randn(1, 3, 8), pooled_projections=torch.randn(1, 8),
            timestep=torch.tensor([0.5]), img_ids=torch.randn(6, 3), txt_ids=torch.zeros(3, 3),
        )  # fmt: skip

    def output_and_gradient(self):
        image = self.image.clone().requires_grad_()
        output = self.model(image, **self.rest).sample
        output.square().sum().backward()
        return output.detach(), image.grad


NAMES = ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.0"]


@pytest.mark.parametrize("recomputed", [(), NAMES[1:], NAMES])
def test_a_transformer_of_diffusers_passes_its_blocks_through_the_runner(recomputed):
    flux, names = Flux(), []
    expected = flux.output_and_gradient()
    blocks = Blocks(recomputed)
    blocks.install(flux.model)
    with blocks.observed(lambda name, function, *arguments: names.append(name) or function(*arguments)):
        found = flux.output_and_gradient()
    assert all(map(torch.equal, found, expected))
    assert names == NAMES


def test_its_blocks_are_measured_and_recomputed_ones_keep_less():
    flux = Flux()
    flux.model.requires_grad_(False)
    kept = []
    for recomputed in ((), NAMES):
        blocks = Blocks(recomputed)
        blocks.install(flux.model)

        def loss(counted, blocks=blocks):
            with blocks.observed(counted.block):
                return flux.model(flux.image.clone().requires_grad_(), **flux.rest).sample.sum()

        kept.append(trace(loss).blocks)
    assert list(kept[0]) == list(kept[1]) == NAMES
    assert all(kept[0][name].kept > 0 == kept[1][name].kept for name in NAMES)


def test_its_blocks_are_compiled_as_one_function():
    flux, computed = Flux(), []
    blocks = Blocks()
    blocks.compile(call, lambda plain, fast: lambda block, *rest: computed.append(block) or fast(block, *rest), call)
    blocks.install(flux.model)
    flux.output_and_gradient()
    assert computed == [*flux.model.transformer_blocks, *flux.model.single_transformer_blocks]
