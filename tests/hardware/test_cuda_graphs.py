"""CUDA graphs with a stand-in for the GPU: a tape of the very tensors and numbers that a recorded step worked with."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from library import families
from library.adapters import attach, linear_ops, recompute
from library.contracts import Execution
from library.diffusion import losses
from library.families import sdxl
from library.families.unet.forward import block_names
from library.hardware import cuda_graphs
from library.hardware.blocks import Blocks
from library.hardware.cuda_graphs import MOST_SHAPES, WARM_UP, Graphs, PlainStep, reason_unavailable
from library.messages import set_language


class Tape(TorchDispatchMode):
    """Records operators as a CUDA graph does: which memory they read and write; what Python knows is fixed.

    One difference remains: here recording also computes.
    """

    def __init__(self):
        super().__init__()
        self.entries = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):  # no view
            self.entries.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.entries:
            again = func(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class TapeRecorder:
    """A `cuda_graphs.Recorder` for the CPU."""

    def __init__(self):
        self.tapes, self.forgotten, self.replays = [], 0, 0

    def warm_up(self, function):
        return function()

    def record(self, function):
        tape = Tape()
        with tape:
            outputs = function()
        self.tapes.append(tape)

        def replay():
            self.replays += 1
            tape.replay()

        return replay, outputs

    def forget(self):
        self.tapes.clear()
        self.forgotten += 1


class Line:
    """A step whose right results are known: loss sum(weight * x), which adds x to the gradient of weight."""

    def __init__(self):
        self.weight, self.gradient = torch.ones(3), torch.zeros(3)
        self.runs = 0

    def __call__(self, x, shift=None):
        self.runs += 1
        total = x.sum(0)
        self.gradient.add_(total)
        loss = (self.weight * total).sum()
        return loss if shift is None else loss + shift, None


def graphs_of(step, recorder=None, gradients=None):
    said = []
    recorder = recorder or TapeRecorder()
    return Graphs(step, gradients or [step.gradient], recorder, said.append), recorder, said


def batch(number=1.0, count=2):
    return torch.full((count, 3), number)


def test_plain_at_first_then_recorded_then_only_replayed():
    step = Line()
    graphs, recorder, said = graphs_of(step)
    for number in range(WARM_UP):
        graphs(batch(float(number)))
    assert (step.runs, len(recorder.tapes)) == (WARM_UP, 0)
    graphs(batch())
    assert len(recorder.tapes) == 1
    runs = step.runs
    assert float(graphs(batch(5.0))[0]) == 30.0
    assert step.runs == runs
    assert not said


def test_every_pass_gives_what_the_step_gives_and_adds_its_gradient_once():
    """Also the pass that records, where the step runs twice and is replayed."""
    step = Line()
    graphs, recorder, _ = graphs_of(step)
    expected = torch.zeros(3)
    for number in range(1, 8):
        loss, none = graphs(batch(float(number)))
        expected += 2 * number
        assert float(loss) == 6 * number
        assert none is None
        assert torch.equal(step.gradient, expected)
    assert recorder.replays > 1


def test_weights_that_are_changed_in_place_are_seen():
    step = Line()
    graphs, recorder, _ = graphs_of(step)
    for _ in range(WARM_UP + 1):
        graphs(batch())
    step.weight.mul_(10)
    assert float(graphs(batch())[0]) == 60.0
    assert recorder.replays == 2


def test_outputs_outlive_the_next_replay():
    step = Line()
    graphs, _, _ = graphs_of(step)
    kept = [graphs(batch(float(number)))[0] for number in range(7)]
    assert [float(loss) for loss in kept] == [6.0 * number for number in range(7)]


def test_shapes_dtypes_and_absent_inputs_are_recorded_apart():
    step = Line()
    graphs, recorder, said = graphs_of(step)
    kinds = [(batch(), None), (batch(count=4), None), (batch().double(), None), (batch(), torch.tensor(0.5))]
    for _ in range(WARM_UP + 2):
        found = [float(graphs(*inputs)[0]) for inputs in kinds]
    assert found == [6.0, 12.0, 6.0, 6.5]
    assert len(recorder.tapes) == 4
    assert not said


def test_beyond_the_limit_shapes_stay_plain():
    step = Line()
    graphs, recorder, said = graphs_of(step)
    for _ in range(WARM_UP + 2):
        for count in range(1, MOST_SHAPES + 3):
            assert float(graphs(batch(count=count))[0]) == 3.0 * count
    assert len(recorder.tapes) == MOST_SHAPES
    assert not said


def stays_plain(step, recorder=None, reason=""):
    """Every pass gives what the step gives, though it is never replayed for good; one line says why."""
    graphs, recorder, said = graphs_of(step, recorder)
    expected = torch.zeros(3)
    for number in range(1, 9):
        expected += 2 * number
        assert float(graphs(batch(float(number)))[0]) == 6 * number
        assert torch.equal(step.gradient, expected)
    assert not graphs.is_on
    assert len(said) == 1
    assert reason in said[0]
    assert recorder.forgotten == 1
    replays = recorder.replays
    graphs(batch())
    assert recorder.replays == replays


def test_a_step_that_asks_the_device_for_a_value_stays_plain():
    class Asks(Line):
        def __call__(self, x):
            return torch.tensor(float((self.weight * x).sum())), super().__call__(x)[1]

    stays_plain(Asks(), reason="not permitted when stream is capturing")


def test_a_recording_that_fails_says_the_first_error():
    class Fails(TapeRecorder):
        def record(self, function):
            try:
                raise RuntimeError("the first thing\nand a long explanation")
            finally:
                raise RuntimeError("capture was invalidated")

    stays_plain(Line(), Fails(), reason="(the first thing)")


def test_no_memory_for_the_recording():
    class Full(TapeRecorder):
        def record(self, function):
            function()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    stays_plain(Line(), Full(), reason="CUDA out of memory")


def spoiled(change):
    """A recorder whose replays are followed by `change`, with the outputs."""

    class Spoils(TapeRecorder):
        def record(self, function):
            replay, outputs = super().record(function)
            return lambda: (replay(), change(outputs, self.replays)), outputs

    return Spoils()


@pytest.mark.parametrize("size", [1e-6, 1.0, float("nan")])
def test_a_replay_with_another_loss_is_found(size):
    def change(outputs, count):
        outputs[0].mul_(1 + size)

    stays_plain(Line(), spoiled(change), reason="another loss")


@pytest.mark.parametrize("size", [1e-6, 1.0, float("nan")])
def test_a_replay_with_other_gradients_is_found(size):
    step = Line()
    stays_plain(step, spoiled(lambda outputs, count: step.gradient[1].mul_(1 + size)), reason="other gradients")


def test_values_that_are_part_of_the_recording_are_found():
    """It is made with zeros in the inputs, so what was worked out by the host then is wrong for any batch."""

    class Host(TapeRecorder):
        def record(self, function):
            outputs = function()
            return lambda: setattr(self, "replays", self.replays + 1), outputs

    stays_plain(Line(), Host(), reason="another loss")


@pytest.mark.parametrize(("noise", "is_kept"), [(1e-5, True), (0.5, False)])
def test_kernels_that_add_in_any_order_are_allowed_their_own_noise_and_no_more(noise, is_kept):
    """Two replays differ: their difference is how far from the plain step they may be, if it is small."""
    step = Line()
    generator = torch.Generator().manual_seed(0)
    step.weight, step.gradient = torch.ones(1000), torch.zeros(1000)

    def change(outputs, count):
        step.gradient.mul_(1 + noise * torch.randn(1000, generator=generator))

    graphs, _, said = graphs_of(step, spoiled(change))
    for _ in range(WARM_UP + 1):
        graphs(torch.ones(2, 1000))
    assert graphs.is_on == is_kept
    assert bool(said) != is_kept


def test_noise_does_not_hide_a_wrong_gradient():
    step = Line()
    generator = torch.Generator().manual_seed(0)
    step.weight, step.gradient = torch.ones(1000), torch.zeros(1000)

    def change(outputs, count):
        step.gradient.mul_(1.001 + 1e-5 * torch.randn(1000, generator=generator))

    graphs, _, said = graphs_of(step, spoiled(change))
    for _ in range(WARM_UP + 1):
        graphs(torch.ones(2, 1000))
    assert "other gradients" in said[0]


def test_random_numbers_in_the_step_are_found():
    class Random(Line):
        def __call__(self, x):
            super().__call__(x)
            return torch.rand(()) + x.sum(), None

    graphs, _, said = graphs_of(Random())
    for _ in range(WARM_UP + 1):
        graphs(batch())
    assert "another loss" in said[0]


def test_overflow_at_too_large_a_loss_scale_puts_recording_off():
    step = Line()
    graphs, recorder, said = graphs_of(step)
    for number in [1.0] * WARM_UP + [float("inf")] * 2:
        graphs(batch(float(number)))
    assert not recorder.tapes
    step.gradient.zero_()
    graphs(batch())
    assert len(recorder.tapes) == 1
    assert not said


def test_where_memory_runs_out_the_recordings_can_be_disabled_once():
    class Large(Line):
        """A batch of 4 fits only where nothing is recorded."""

        def __call__(self, x):
            if len(x) == 4 and recorder.tapes:
                raise torch.OutOfMemoryError
            return super().__call__(x)

    step = Large()
    graphs, recorder, said = graphs_of(step)
    assert not graphs.disable()
    for _ in range(WARM_UP + 1):
        graphs(batch())
    with pytest.raises(torch.OutOfMemoryError):
        graphs(batch(count=4))
    assert graphs.disable()
    assert not graphs.disable()
    for _ in range(WARM_UP + 2):
        assert float(graphs(batch(count=4))[0]) == 12.0
    assert not recorder.tapes
    assert not said  # the caller says it


def test_the_plain_step_has_nothing_to_give_back():
    step = PlainStep(Line())
    assert float(step(batch())[0]) == float(step.plain(batch())[0])
    step.clear()
    assert not step.disable()


def test_whoever_observes_the_blocks_gets_a_step_that_is_not_recorded():
    step = Line()
    graphs, recorder, _ = graphs_of(step)
    for _ in range(WARM_UP + 2):
        graphs.plain(batch())
    assert not recorder.tapes


def test_what_was_cleared_is_recorded_anew():
    step = Line()
    graphs, recorder, _ = graphs_of(step)
    for _ in range(WARM_UP + 1):
        graphs(batch())
    graphs.clear()
    assert (len(recorder.tapes), recorder.forgotten) == (0, 1)
    assert float(graphs(batch(2.0))[0]) == 12.0
    assert len(recorder.tapes) == 1


def test_it_is_said_why_there_are_none(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    assert "NVIDIA" in reason_unavailable(torch.device("cpu"), is_random=False)
    assert "dropout" in reason_unavailable(torch.device("cuda"), is_random=True)
    assert reason_unavailable(torch.device("cuda"), is_random=False) is None
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD" in reason_unavailable(torch.device("cuda"), is_random=False)
    set_language("zh")
    assert "AMD 显卡" in reason_unavailable(torch.device("cuda"), is_random=False)


# ---------------------------------------------------------------------------------------------------------------------


class UNetStep:
    """The true step on a tiny model: the U-Net with adapters, its loss, and the gradients of the captions' states."""

    def __init__(self, family, dtype=torch.float32, *, is_recomputed=False, operations=linear_ops.FAST):
        self.family = family
        self.unet = family.modules()["denoiser"].to(dtype)
        targets = [target for target in family.targets() if target.part == "denoiser"]
        self.adapters = attach(targets, rank=2, alpha=1, conv_rank=2, seed=1)
        blocks = Blocks(block_names(self.unet) if is_recomputed else ())
        attend = functional.scaled_dot_product_attention
        family.denoiser.compute_with(Execution(operations, recompute, attend, blocks.run))
        self.flat = self.adapters.flat_parameters["denoiser"]
        self.optimizer = torch.optim.AdamW(self.adapters.parameters(), lr=1e-2)

    def __call__(self, noisy, t, target, mask, weights, scale, **conditioning):
        told = {name: x.detach().requires_grad_(name != "sizes") for name, x in conditioning.items()}
        prediction = self.family.predict(noisy, t, told)
        loss = (losses.per_sample(prediction, target, mask=mask) * weights).mean()
        loss.backward(scale)
        return loss.detach(), *(told[name].grad for name in self.family.facts.text_embeddings)

    def optimize(self):
        self.adapters.gather()
        self.optimizer.step()
        self.adapters.refresh()


def inputs_of(family, dtype, number, side=8, scale=1.0, is_masked=False):
    generator = torch.Generator().manual_seed(number)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    config = family.modules()["denoiser"].config
    given = [normal(2, 4, side, 8), torch.randint(0, 1000, (2,), generator=generator), normal(2, 4, side, 8)]
    given += [normal(2, 1, side, 8).sigmoid() if is_masked else None]
    given += [torch.tensor([1.0, 0.5]), torch.tensor(scale)]
    told = {"states": normal(2, 7, config.cross_attention_dim).to(dtype)}
    if family.facts.name == "sdxl":
        told |= {"pooled": normal(2, 20).to(dtype), "sizes": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    return given, told


@pytest.mark.slow("trains a tiny SDXL twice, each step on a tape")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_a_training_gives_the_same_bits_as_without_graphs(family, dtype, is_recomputed):
    """Losses, the gradients that the text encoder gets, and the weights, over steps in two shapes."""
    found = []
    for is_recorded in (False, True):
        model = families.tiny(family)
        step = UNetStep(model, dtype, is_recomputed=is_recomputed)
        graphs, recorder, said = graphs_of(step, gradients=[step.flat.gradient])
        results = []
        for number in range(10):
            given, told = inputs_of(model, dtype, number, side=8 + 4 * (number % 2), scale=2.0 ** (number // 3))
            results += (graphs if is_recorded else step)(*given, **told)
            step.optimize()
        found.append([*results, step.flat.master.detach().clone()])
        assert not said
        assert len(recorder.tapes) == 2 * is_recorded
    assert cuda_graphs._are_same(*found)
    first, last = found[0][0], found[0][-2 - len(model.facts.text_embeddings)]  # losses: the last ends with the weights
    assert first != last


def test_masked_batches_and_whole_ones_are_recorded_apart():
    found = []
    for is_recorded in (False, True):
        model = families.tiny("sd1")
        step = UNetStep(model)
        graphs, recorder, said = graphs_of(step, gradients=[step.flat.gradient])
        results = []
        for number in range(8):
            given, told = inputs_of(model, torch.float32, number, is_masked=number % 2 == 1)
            results += (graphs if is_recorded else step)(*given, **told)
            step.optimize()
        found.append([*results, step.flat.master.detach().clone()])
        assert not said
        assert len(recorder.tapes) == 2 * is_recorded
    assert cuda_graphs._are_same(*found)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_batches_of_one_step_are_added_up(family):
    """In fp32 the gradient buffer is not empty when the second batch is recorded."""
    model = families.tiny(family)
    step = UNetStep(model)
    graphs, recorder, said = graphs_of(step, gradients=[step.flat.gradient])
    for number in range(WARM_UP):
        given, told = inputs_of(model, torch.float32, number)
        graphs(*given, **told)
    found = []
    for run in (graphs, step):
        step.flat.clear()
        for number in range(3):
            given, told = inputs_of(model, torch.float32, number)
            run(*given, **told)
            step.adapters.gather()
        found.append(step.flat.master.grad.clone())
    assert torch.equal(*found)
    assert len(recorder.tapes) == 1
    assert not said


def test_nothing_in_the_step_comes_from_the_host():
    """A graph cannot copy from ordinary memory: on the meta device every tensor must be a meta tensor."""

    class Hosts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in tree_leaves((args, kwargs, result)):
                assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, func
            return result

    tiny = families.tiny("sdxl")
    model = sdxl.create("sdxl", tiny.noise, sdxl.TINY["sdxl"], "meta")
    step = UNetStep(model)
    given, told = inputs_of(model, torch.float32, 0, is_masked=True)
    given, told = [x.to("meta") for x in given], {name: x.to("meta") for name, x in told.items()}
    with Hosts():
        step(*given, **told)
