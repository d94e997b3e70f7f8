"""The fast functions against the plain ones: outputs, all gradients, orders of multiplication, dropout, 8-bit weights,
and how many operators they take."""

import copy

import pytest
import torch
from torch import nn

from library.adapters import attach, linear_ops, recompute
from library.adapters.linear_ops import FAST, PLAIN, THIN, Order, best_order
from library.contracts import Target
from library.hardware.memory import Trace, to_int8

DOUBLE = torch.float64


def numbers(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def frozen(layer, dtype=DOUBLE, seed=0):
    """The layer with weights of a seed, of a size that keeps the scale of its input."""
    layer = layer.to(dtype).requires_grad_(False)
    for order, parameter in enumerate(layer.parameters()):
        parameter.copy_(numbers(*parameter.shape, seed=100 * seed + order) / parameter[0].numel() ** 0.5)
    return layer


def adapted(layers, *, rank=3, ranks=None, together=True, **settings):
    """Adapters of these layers whose `up` is not zero; None in `ranks`: that layer is left out."""
    ranks = ranks or [rank] * len(layers)
    targets = [
        Target(layer, f"lora_unet_{i}", "denoiser", False, "x" if together else None) for i, layer in enumerate(layers)
    ]
    chosen = [(target, r) for target, r in zip(targets, ranks, strict=True) if r]
    if not chosen:
        return []
    found = []
    for r in sorted({r for _, r in chosen}):
        some = [target for target, own in chosen if own == r]
        adapters = attach(some, rank=r, alpha=2, conv_rank=r, conv_alpha=2, **settings)
        for order, layer in enumerate(adapters.layers.values()):
            layer.up_master.copy_(numbers(*layer.up_master.shape, seed=50 + order) / 2)
        adapters.refresh()
        found.append(adapters)
    return found


def everything(operations, function, adapters, *inputs, seed=0):
    """Outputs, the gradients of the inputs and those of the adapters, which are forgotten afterwards."""
    torch.manual_seed(seed)  # of dropout
    for each in adapters:
        for layer in each.layers.values():
            layer.is_fused = operations is FAST
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = function(operations, *inputs)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum((y * numbers(*y.shape, seed=9 + i, dtype=y.dtype)).sum() for i, y in enumerate(outputs)).backward()
    found = [y.detach() for y in outputs] + [x.grad for x in inputs]
    found += [grad.clone() for each in adapters for x in each.layers.values() for grad in (x.down.grad, x.up.grad)]
    for each in adapters:
        each.refresh()
    return found


def same(function, adapters, *inputs):
    """Whatever is dropped: with several seeds, at one of which nothing is zero."""
    found = [
        list(
            zip(
                *(everything(operations, function, adapters, *inputs, seed=seed) for operations in (PLAIN, FAST)),
                strict=True,
            )
        )
        for seed in range(6)
    ]
    for of_seeds in zip(*found, strict=True):
        assert any(expected.any() for expected, _ in of_seeds)
        for expected, fast in of_seeds:
            torch.testing.assert_close(fast, expected)


def projection(layers, recomputed=None):
    return lambda operations, x: operations.project(x, layers, recomputed)


def of_images(channels):
    """What is recomputed, and the shape of its source for 6 inputs of a linear layer."""
    norm = frozen(nn.GroupNorm(2, channels))
    return recompute.GroupNormTokens(norm), (2, channels, 2, 4)


RECOMPUTED = {
    "none": lambda: (None, (2, 8, 6)),
    "LayerNorm": lambda: (recompute.LayerNorm(frozen(nn.LayerNorm(6))), (2, 8, 6)),
    "GroupNormTokens": lambda: of_images(6),
    "Geglu": lambda: (recompute.Geglu(), (2, 8, 12)),
}


@pytest.mark.parametrize("name", RECOMPUTED)
@pytest.mark.parametrize("ranks", [[3, 3, 3], [2, 3, 3], [3, None, 3], [None, None, None]])
def test_projections_of_one_input_are_those_of_the_plain_functions(name, ranks):
    """q, k and v: with updates side by side in memory, of unequal ranks, of some layers only, of none."""
    recomputed, shape = RECOMPUTED[name]()
    layers = [frozen(nn.Linear(6, 5, bias=i == 0), seed=i) for i in range(3)]
    same(projection(layers, recomputed), adapted(layers, ranks=ranks), numbers(*shape))


ORDERS = [  # tokens, n, m, rank, dtype
    (4, 16, 16, 2, DOUBLE, THIN),
    (12, 16, 16, 2, DOUBLE, Order(True, False, False)),
    (40, 16, 16, 2, DOUBLE, Order(True, True, False)),
    (40, 8, 8, 8, DOUBLE, Order(True, True, True)),
    (40, 8, 8, 8, torch.bfloat16, Order(False, False, True)),
    (40, 8, 8, 8, torch.float16, Order(False, False, True)),
    (40, 16, 16, 2, torch.float16, THIN),
]


@pytest.mark.parametrize(("tokens", "n", "m", "rank", "dtype", "order"), ORDERS)
@pytest.mark.parametrize("needs_input", [True, False])
def test_every_order_of_multiplication_gives_the_same(tokens, n, m, rank, dtype, order, needs_input):
    """Half precision: within the rounding of a few results of this size, compared with exact arithmetic."""
    assert best_order(tokens, n, m, rank, may_merge=dtype == DOUBLE) == order
    layers = [frozen(nn.Linear(n, m), dtype, seed=i) for i in range(2)]
    adapters = adapted(layers, rank=rank)
    x = numbers(2, tokens // 2, n, dtype=dtype)

    def function(operations, x):
        return operations.project(x if needs_input else x.detach(), layers)

    def found(operations, adapters, x):
        inputs = everything(operations, function, adapters, x)
        return [tensor for tensor in inputs if tensor is not None]

    fast = found(FAST, adapters, x)
    exact = [copy.deepcopy(layer.double()) for layer in layers]
    for layer in exact:
        layer.__dict__.pop("forward"), layer.__dict__.pop("adapter")
    others = adapted(exact, rank=rank)
    for ours, theirs in zip(adapters[0].layers.values(), others[0].layers.values(), strict=True):
        for own, other in zip(ours.masters(), theirs.masters(), strict=True):
            other.copy_(own.to(dtype))  # what the half-precision layer computes with
    layers[:] = exact
    for mine, expected in zip(fast, found(PLAIN, others, x.double()), strict=True):
        error = (mine.double() - expected).norm() / expected.norm()
        assert error < {DOUBLE: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]


def test_halves_are_never_merged():
    """At 1/1000 of a weight the rounding of the sum would swallow 21 % of the update in fp16, 80 % in bf16."""
    for tokens in (1, 100, 10_000):
        order = best_order(tokens, 320, 320, 8, may_merge=False)
        assert not order.merges_forward
        assert not order.merges_backward


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("settings", [{}, dict(dropout=0.4), dict(rank_dropout=0.4), dict(module_dropout=0.5)])
def test_dropout_and_batches(batch, settings):
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(3)]
    same(projection(layers), adapted(layers, **settings), numbers(batch, 8, 6))


@pytest.mark.parametrize("strength", [0.5, 0])
def test_strength(strength):
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(3)]
    (adapters,) = adapted(layers)
    adapters.multiplier = strength
    x = numbers(2, 8, 6)
    plain, fast = (everything(operations, projection(layers), [adapters], x) for operations in (PLAIN, FAST))
    for expected, found in zip(plain, fast, strict=True):
        torch.testing.assert_close(found, expected)
    assert all(gradient.any() == (strength > 0) for gradient in fast[-6:])


def test_a_1x1_convolution_is_a_projection_of_tokens():
    layer = frozen(nn.Conv2d(6, 5, 1))
    adapters = adapted([layer])
    same(projection([layer]), adapters, numbers(2, 8, 6))
    recomputed, shape = of_images(6)
    same(projection([layer], recomputed), adapters, numbers(*shape))


def test_two_dimensions_are_enough():
    """The time embedding's layers see (B, n)."""
    layers = [frozen(nn.Linear(6, 5))]
    same(projection(layers), adapted(layers), numbers(4, 6))


# ---- Captions ----


def of_captions(layers):
    return lambda operations, x: operations.project_context(x, layers)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ranks", [[3] * 5, [2, 2, 2, 3, None], [None] * 5])
def test_captions_keys_and_values_are_those_of_the_plain_functions(batch, ranks):
    """Layers of two shapes, with a bias and without: two stacks and what is left over."""
    layers = [frozen(nn.Linear(6, 4 if i < 2 else 5, bias=i == 4), seed=i) for i in range(5)]
    same(of_captions(layers), adapted(layers, ranks=ranks), numbers(batch, 7, 6))


def test_captions_without_a_gradient_of_their_own():
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(3)]
    adapters = adapted(layers)
    for function in (projection(layers), of_captions(layers)):
        found = []
        for operations in (PLAIN, FAST):
            for layer in adapters[0].layers.values():
                layer.is_fused = operations is FAST
            sum(y.square().sum() for y in function(operations, numbers(2, 7, 6))).backward()
            found.append(adapters[0].flat_parameters["denoiser"].gradient.clone())
            adapters[0].refresh()
        assert found[0].any()
        torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("kind", ["dropout", "rank_dropout"])
def test_stacked_layers_have_masks_of_their_own(kind):
    """Drawn for all at once, so others than the plain functions'; put into their formula they give the same."""
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(3)]
    (adapters,) = adapted(layers, **{kind: 0.5})
    x = numbers(2, 7, 6)
    torch.manual_seed(5)
    outputs = FAST.project_context(x, layers)
    torch.manual_seed(5)
    masks = linear_ops.Masks(*(0.5 if name == kind else 0.0 for name in ("dropout", "rank_dropout")))
    drawn = masks.draw(x.new_empty(3 * 2, 7, 3), -1).unflatten(0, (3, 2))
    assert not torch.equal(drawn[0], drawn[1])
    for layer, mask, y in zip(adapters.layers.values(), drawn, outputs, strict=True):
        base = nn.functional.linear(x, layer._layer[0].weight, layer._layer[0].bias)
        torch.testing.assert_close(y, linear_ops.linear(base, x, layer.down, layer.up, 2 / 3, mask))


def test_stacked_layers_with_dropout_have_the_gradients_of_their_masks():
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(3)]
    adapters = adapted(layers, dropout=0.5)
    check_by_differences(adapters[0], lambda: sum(y.square().sum() for y in seeded(layers)))


def seeded(layers):
    torch.manual_seed(5)
    return FAST.project_context(numbers(2, 7, 6), layers)


def test_skipped_updates_are_drawn_once_for_each_layer():
    """Not once for a stack, nor twice: a half must be skipped, and all cases must occur."""
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(2)]
    x = numbers(1, 7, 6)
    bases = [layer(x) for layer in layers]
    adapted(layers, module_dropout=0.5)
    torch.manual_seed(0)
    skipped = [
        tuple(torch.allclose(y, base) for y, base in zip(FAST.project_context(x, layers), bases, strict=True))
        for _ in range(200)
    ]
    counts = {case: skipped.count(case) for case in set(skipped)}
    assert len(counts) == 4
    assert min(counts.values()) > 30


def test_an_adapter_on_top_of_one_stacked_layer_is_heeded():
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(3)]
    adapters = adapted(layers) + adapted(layers, ranks=[None, 2, None])
    same(of_captions(layers), adapters, numbers(2, 7, 6))
    same(projection(layers), adapters, numbers(2, 7, 6))


# ---- Convolutions ----


def convolution(layer, recomputed=None):
    return lambda operations, x, *shift: operations.convolve(x, layer, recomputed, *shift)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.parametrize("name", ["none", "GroupNormSilu", "Enlarge", "stride 2", "1x1"])
def test_convolutions_are_those_of_the_plain_functions(name, rank, batch):
    recomputed = {
        "GroupNormSilu": recompute.GroupNormSilu(frozen(nn.GroupNorm(2, 6))), "Enlarge": recompute.Enlarge((9, 10)),
    }.get(name)  # fmt: skip
    size, stride = (1, 1) if name == "1x1" else (3, 2 if name == "stride 2" else 1)
    layer = frozen(nn.Conv2d(6, 5, size, stride=stride, padding=size // 2))
    adapters = adapted([layer], ranks=[rank])
    same(convolution(layer, recomputed), adapters, numbers(batch, 6, 5, 5))
    same(convolution(layer, recomputed), adapters, numbers(batch, 6, 5, 5), numbers(batch, 5, seed=1))


@pytest.mark.parametrize("settings", [dict(dropout=0.4), dict(rank_dropout=0.4), dict(module_dropout=0.5)])
def test_convolutions_with_dropout(settings):
    layer = frozen(nn.Conv2d(6, 5, 3, padding=1))
    same(convolution(layer), adapted([layer], **settings), numbers(2, 6, 5, 5))


def test_a_convolution_in_channels_last_gets_its_update():
    layer = frozen(nn.Conv2d(6, 5, 3, padding=1)).to(memory_format=torch.channels_last)
    x = numbers(2, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    same(convolution(layer), adapted([layer]), x)


# ---- Finite differences ----


def check_by_differences(adapters, loss, size=1e-6):
    """The adapters' gradient, along a random direction, against two losses beside each other."""
    loss().backward()
    adapters.gather()
    (master,) = adapters.parameters()
    direction = numbers(len(master), seed=77)
    expected = float(master.grad @ direction)
    values = []
    for sign in (1, -1):
        master.data += sign * size * direction
        adapters.refresh()
        with torch.no_grad():
            values.append(float(loss()))
        master.data -= sign * size * direction
    assert abs(expected) > 1e-3
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", RECOMPUTED)
@pytest.mark.parametrize("tokens_per_image", [8, 2])
def test_projections_agree_with_finite_differences(name, tokens_per_image):
    recomputed, shape = RECOMPUTED[name]()
    shape = shape if len(shape) == 4 else (2, tokens_per_image, shape[2])
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(2)]
    (adapters,) = adapted(layers, rank=2)
    source = numbers(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(FAST.project(x, layers, recomputed)), [source])
    adapters.refresh()
    check_by_differences(adapters, lambda: sum(y.pow(3).sum() for y in FAST.project(source, layers, recomputed)))


def test_captions_agree_with_finite_differences():
    layers = [frozen(nn.Linear(6, 5), seed=i) for i in range(3)]
    (adapters,) = adapted(layers, rank=2)
    source = numbers(2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(FAST.project_context(x, layers)), [source])
    adapters.refresh()
    check_by_differences(adapters, lambda: sum(y.pow(3).sum() for y in FAST.project_context(source, layers)))


@pytest.mark.parametrize("recomputed", [None, recompute.Enlarge((5, 6))])
def test_convolutions_agree_with_finite_differences(recomputed):
    layer = frozen(nn.Conv2d(3, 4, 3, padding=1))
    (adapters,) = adapted([layer], rank=2)
    source, shift = numbers(2, 3, 3, 3).requires_grad_(), numbers(2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, shift: FAST.convolve(x, layer, recomputed, shift), [source, shift])
    adapters.refresh()
    check_by_differences(adapters, lambda: FAST.convolve(source, layer, recomputed, shift).pow(3).sum())


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float16])
def test_gradients_add_up_over_backward_passes(dtype):
    linear, conv = frozen(nn.Linear(6, 5), dtype), frozen(nn.Conv2d(6, 5, 3, padding=1), dtype)
    captions = [frozen(nn.Linear(6, 5), dtype, seed=i) for i in range(2)]
    (adapters,) = adapted([linear, conv, *captions])
    found = []
    for _ in range(2):
        y = FAST.project(numbers(2, 8, 6, dtype=dtype), [linear])[0].sum()
        y = y + FAST.convolve(numbers(2, 6, 5, 5, dtype=dtype), conv).sum()
        (y + sum(x.sum() for x in FAST.project_context(numbers(2, 7, 6, dtype=dtype), captions))).backward()
        adapters.gather()
        found.append([p.grad.clone() for p in adapters.parameters()])
    for once, twice in zip(*found, strict=True):
        assert once.any()
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-3)


# ---- What it takes ----


def operators(function, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    with Trace() as counted:
        outputs = function(FAST, *inputs)
        sum(y.sum() for y in (outputs if isinstance(outputs, list) else [outputs])).backward()
    return counted.cost.operators


@pytest.mark.parametrize(("tokens", "n", "m", "rank", "dtype", "order"), ORDERS)
def test_at_most_7_operators_more_for_each_linear_layer(tokens, n, m, rank, dtype, order):
    for count in (1, 3):
        layers = [frozen(nn.Linear(n, m), dtype, seed=i) for i in range(count)]
        x = numbers(1, tokens, n, dtype=dtype)
        for recomputed in (None, recompute.LayerNorm(frozen(nn.LayerNorm(n), dtype))):
            before = operators(projection(layers, recomputed), x)
            (adapters,) = adapted(layers, rank=rank)
            assert 0 < operators(projection(layers, recomputed), x) - before <= 7 * count
            adapters.detach_from_model()


def test_layers_of_one_input_share_the_products_with_down():
    """1 instead of 3 for the inner values, for the gradient of down, and for what goes back to the input."""
    layers = [frozen(nn.Linear(64, 64), seed=i) for i in range(3)]
    counts = []
    for together in (True, False):
        (adapters,) = adapted(layers, rank=2, together=together)
        counts.append(operators(projection(layers), numbers(1, 8, 64)))
        adapters.detach_from_model()
    assert counts[0] == counts[1] - 6


def test_at_most_7_operators_more_for_each_convolution():
    layer = frozen(nn.Conv2d(6, 5, 3, padding=1))
    inputs = numbers(2, 6, 5, 5), numbers(2, 5, seed=1)
    before = operators(convolution(layer), *inputs)
    adapted([layer])
    assert 0 < operators(convolution(layer), *inputs) - before <= 7


def test_captions_keys_and_values_take_few_operators_together():
    layers = [frozen(nn.Linear(64, 64), seed=i) for i in range(20)]
    before = operators(of_captions(layers), numbers(1, 8, 64))
    adapted(layers, rank=2)
    assert operators(of_captions(layers), numbers(1, 8, 64)) <= before + 20


def saved(function, *inputs):
    """What the forward pass keeps for the backward pass."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
        function(FAST, *[x.clone().requires_grad_() for x in inputs])
    return found


def test_of_what_is_recomputed_only_its_source_is_kept():
    layer = frozen(nn.Linear(6, 50))
    adapted([layer], rank=2)
    kept = saved(projection([layer], recompute.Geglu()), numbers(1, 2, 12))
    assert sorted(x.numel() for x in kept) == [2 * 2, 2 * 12]  # and the inner values


def test_a_frozen_convolution_keeps_nothing():
    assert saved(convolution(frozen(nn.Conv2d(6, 5, 3))), numbers(2, 6, 5, 5)) == []


# ---- 8 bits ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_8_bit_layers_compute_what_their_unpacked_weights_say(dtype):
    packed = [frozen(nn.Linear(32, 16), dtype, seed=i) for i in range(2)]
    unpacked = copy.deepcopy(packed)
    for layer, other in zip(packed, unpacked, strict=True):
        to_int8(layer)
        assert layer.weight.dtype == torch.int8
        assert layer.weight_scale.dtype == dtype
        other.weight.data = layer.weight * layer.weight_scale
    x = numbers(2, 8, 32, dtype=dtype)
    for function in (projection, of_captions):
        found = [everything(FAST, function(layers), adapted(layers), x) for layers in (packed, unpacked)]
        for ours, expected in zip(*found, strict=True):
            assert torch.equal(ours, expected)
        for layer in (*packed, *unpacked):
            layer.__dict__.pop("forward"), layer.__dict__.pop("adapter")


def test_8_bits_move_a_weight_by_less_than_1_percent():
    layer = frozen(nn.Linear(1280, 640), torch.float32)
    before = layer.weight.clone()
    to_int8(layer)
    error = (layer.weight * layer.weight_scale - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert 0.005 < error < 0.0085  # 0.8 %


def test_an_unpacked_weight_is_not_kept():
    layer = frozen(nn.Linear(32, 16), torch.float16)
    adapted([layer])
    to_int8(layer)
    kept = saved(projection([layer]), numbers(1, 4, 32, dtype=torch.float16))
    assert sum(x.nbytes for x in kept) == 2 * (4 * 32 + 4 * 3)  # the input and the inner values


@pytest.mark.parametrize("has_lora", [False, True])
def test_a_large_convolution_of_few_places_is_a_matrix_product_and_the_same(monkeypatch, has_lora):
    monkeypatch.setattr(linear_ops, "LARGE_WEIGHT", 0)
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1).requires_grad_(False)
    x, weights = torch.randn(2, 6, 4, 5), torch.randn(2, 8, 4, 5)
    attached = attach([Target(layer, "lora_unet_conv", "denoiser", True)], rank=2, conv_rank=2) if has_lora else None
    if attached:
        attached.layers["lora_unet_conv"].up_master.normal_()
        attached.refresh()
    found = []
    for places in (0, 64):
        monkeypatch.setattr(linear_ops, "FEW_PLACES", places)
        source = x.clone().requires_grad_()
        y = linear_ops.convolve(source, layer)
        (y * weights).sum().backward()
        found.append([y.detach(), source.grad])
        if attached:
            found[-1].append(attached.flat_parameters["denoiser"].gradient.clone())
            attached.refresh()
    for folded, unfolded in zip(*found, strict=True):
        assert folded.any()
        torch.testing.assert_close(unfolded, folded, rtol=1e-4, atol=1e-5)


def test_which_convolutions_are_unfolded():
    large = nn.Conv2d(1280, 1280, 3, padding=1, device="meta")
    large.weight = nn.Parameter(torch.empty(1).expand(1280, 1280, 3, 3), requires_grad=False)
    few, many = torch.empty(1, 1280, 8, 8), torch.empty(2, 1280, 8, 8)
    assert linear_ops._is_better_unfolded(large, few)
    assert not linear_ops._is_better_unfolded(large, many)
    assert not linear_ops._is_better_unfolded(large, few.half())
    assert not linear_ops._is_better_unfolded(large, few.to("meta"))
    assert not linear_ops._is_better_unfolded(nn.Conv2d(1280, 8, 3, padding=1), few)
