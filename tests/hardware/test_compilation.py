"""Compiled blocks against the fast functions, and compilers that are missing, fail, or compute something else."""

import shutil

import pytest
import torch
from functorch.compile import make_boxed_compiler
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch.nn import functional

from library import families
from library.adapters import attach, linear_ops, recompute
from library.contracts import Execution
from library.families.unet.forward import UNetForward, block_names
from library.hardware.blocks import Blocks
from library.hardware.compilation import Compiler


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    counters.clear()


class Small:
    """A tiny SDXL whose adapters have learned something; `forward` gives everything that its training depends on."""

    def __init__(self):
        self.family = families.tiny("sdxl")
        self.unet = self.family.modules()["denoiser"]
        targets = [target for target in self.family.targets() if target.part == "denoiser"]
        self.adapters = attach(targets, rank=2, alpha=1, conv_rank=2, seed=1)
        self.flat = self.adapters.flat_parameters["denoiser"]
        self.change_weights(1)

    def change_weights(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.flat.master.data.copy_(0.1 * torch.randn(self.flat.master.shape, generator=generator))
        self.flat.refresh()

    def functions(self, operations, blocks=None):
        attend = functional.scaled_dot_product_attention
        return UNetForward(self.unet, Execution(operations, recompute, attend, (blocks or Blocks()).run))

    def compiled(self, compiler, recomputed=(), kinds=("resnet", "transformer_block")):
        """As `train_network.build` does it."""
        for layer in self.adapters.layers.values():
            layer.is_fused = False
        blocks = Blocks(recomputed)
        plain, fast = self.functions(linear_ops.PLAIN), self.functions(linear_ops.FAST, blocks)
        for kind in kinds:
            blocks.compile(getattr(fast, kind), compiler, getattr(plain, kind))
        return fast

    def forward(self, function):
        """Prediction, gradients of the adapters, of the captions' states and of the pooled captions."""
        self.family.denoiser = function
        self.flat.clear()
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        states, pooled = normal(2, 7, 40).requires_grad_(), normal(2, 20).requires_grad_()
        conditioning = dict(states=states, pooled=pooled, sizes=torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2))
        predicted = self.family.predict(normal(2, 4, 8, 8), torch.tensor([3, 500]), conditioning)
        predicted.square().mean().backward()
        return predicted.detach(), self.flat.gradient.clone(), states.grad, pooled.grad


@pytest.mark.slow("compiles 8 kinds of blocks")
def test_a_compiled_unet_gives_the_same_and_blocks_of_one_kind_share_a_graph():
    """No block breaks into several graphs; trying the blocks adds nothing to the gradients."""
    small, said = Small(), []
    function = small.compiled(Compiler(said.append, "aot_eager"))
    kinds = 7  # shapes of resnets, those with a shortcut apart; and one of transformer blocks
    for seed in (1, 2):  # other weights, and by then nothing is tried any more
        small.change_weights(seed)
        found = small.forward(function)
        expected = small.forward(small.functions(linear_ops.FAST))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert counters["stats"]["unique_graphs"] == kinds + 1
    assert not said
    assert not counters["graph_break"]


@pytest.mark.slow("compiles transformer blocks")
def test_recomputed_blocks_are_compiled_too():
    """The first call, where each is tried, comes from within the checkpoint."""
    small, said = Small(), []
    compiler = Compiler(said.append, "aot_eager")
    function = small.compiled(compiler, recomputed=block_names(small.unet), kinds=["transformer_block"])
    expected = small.forward(small.functions(linear_ops.FAST))
    for _ in range(2):
        torch.testing.assert_close(small.forward(function), expected, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
    assert not said


class Toy:
    """Blocks of one linear layer each."""

    def __init__(self, backend):
        self.said, self.fast_runs = [], 0
        self.compiler = Compiler(self.said.append, backend)
        self.run = self.compiler(self.plain, self.fast)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(5, 4, generator=generator)
        self.block = nn.Linear(4, 4)

    @staticmethod
    def plain(module, x):
        return module(x).sin()

    def fast(self, module, x):
        self.fast_runs += 1
        return self.plain(module, x)


def broken(graph, inputs):
    raise RuntimeError("no compiler was found\nand a long explanation")


@make_boxed_compiler
def silent(graph, inputs):
    """Kernels that write nothing."""
    return lambda *given: [None if x is None else torch.zeros_like(x) for x in graph(*given)]


@make_boxed_compiler
def right(graph, inputs):
    return graph.forward


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (broken, "no compiler was found"),
        ("no_such_backend", "no_such_backend"),
        (aot_autograd(fw_compiler=silent, bw_compiler=right), "its results differ"),
        (aot_autograd(fw_compiler=right, bw_compiler=silent), "its results differ"),
    ],
    ids=["fails", "is missing", "forward is wrong", "backward is wrong"],
)
def test_where_the_compiler_fails_or_errs_training_goes_on_without_it(backend, reason):
    toy = Toy(backend)
    for block in (toy.block, nn.Linear(4, 4)):
        x = toy.x.clone().requires_grad_()
        y = toy.run(block, x)
        y.sum().backward()
        assert torch.equal(y, toy.plain(block, x))
        assert x.grad.any()
    assert toy.fast_runs == 2
    assert len(toy.said) == 1
    assert reason in toy.said[0]
    assert "\n" not in toy.said[0]


def test_a_right_compiler_is_used_and_the_fast_function_is_not():
    toy = Toy("aot_eager")
    toy.run(toy.block, toy.x.requires_grad_()).sum().backward()
    assert toy.fast_runs == 0
    assert counters["stats"]["unique_graphs"] == 1
    assert not toy.said


def test_blocks_found_right_stay_compiled_when_another_is_found_wrong():
    """A checkpoint computes them a second time, and it must be in the same way."""
    answers = [lambda graph, inputs: graph.forward, broken]
    toy = Toy(lambda graph, inputs: answers.pop(0)(graph, inputs))
    x = toy.x.requires_grad_()
    toy.run(toy.block, x)
    toy.run(toy.block, x[:2])
    assert (toy.fast_runs, len(toy.said)) == (1, 1)
    toy.run(toy.block, x)
    assert toy.fast_runs == 1
    toy.run(toy.block, x[:3])  # not tried any more
    assert (toy.fast_runs, len(toy.said), len(answers)) == (2, 1, 0)


def test_previews_are_not_compiled():
    toy = Toy(broken)
    with torch.no_grad():
        toy.run(toy.block, toy.x)
    assert toy.fast_runs == 1
    assert not toy.said


def test_random_numbers_do_not_depend_on_it():
    toy = Toy("aot_eager")
    before = torch.get_rng_state()
    toy.run(toy.block, toy.x.requires_grad_())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow("starts a C++ compiler")
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_the_usual_backend_compiles_a_transformer_block():
    small, said = Small(), []
    compile_function = Compiler(said.append)
    plain, fast = (small.functions(operations).transformer_block for operations in (linear_ops.PLAIN, linear_ops.FAST))
    for layer in small.adapters.layers.values():
        layer.is_fused = False
    block = small.unet.mid_block.attentions[0].transformer_blocks[0]
    generator = torch.Generator().manual_seed(0)
    tokens, key, value = (torch.randn(2, count, 16, generator=generator).requires_grad_() for count in (16, 7, 7))
    found = []
    for run in (compile_function(plain, fast), fast):
        small.flat.clear()
        output = run(block, tokens, key, value)
        gradients = torch.autograd.grad(output.square().sum(), (tokens, key, value))
        found.append([output.detach(), *gradients])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not said
