"""LoHa, LoKr and DoRA: the fast functions against the plain ones, both against the files' formulas, peft and finite
differences; what half precision and 8-bit weights do to them; names, norms, and whole runs."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from library import families
from library.adapters import attach, linear_ops, recompute
from library.adapters.linear_ops import FAST, PLAIN
from library.adapters.lokr import divisors
from library.contracts import Target
from library.hardware.memory import to_int8
from library.messages import UserError
from tests.adapters.test_linear_ops import frozen, numbers, saved

WHOLE = ["loha", "lokr", "dora"]
DOUBLE = torch.float64
LAYERS = {
    "linear": lambda: nn.Linear(6, 10), "without bias": lambda: nn.Linear(6, 10, bias=False),
    "1x1": lambda: nn.Conv2d(6, 10, 1), "3x3": lambda: nn.Conv2d(6, 10, 3, padding=1),
    "stride 2": lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1),
}  # fmt: skip


def adapted(layers, kind, *, rank=1, alpha=2, **settings):
    """Adapters none of whose tensors is at its start."""
    targets = [Target(layer, f"lora_unet_{i}", "denoiser", False, "x") for i, layer in enumerate(layers)]
    return moved(attach(targets, module=kind, rank=rank, alpha=alpha, conv_rank=rank, conv_alpha=alpha, **settings))


def moved(adapters, size=0.5):
    for order, layer in enumerate(adapters.layers.values()):
        for place, master in enumerate(layer.masters()):
            spread = size * (master.abs().mean() or 1)
            master += spread * numbers(*master.shape, seed=10 * order + place).to(master)
    adapters.refresh()
    return adapters


def weight_from_file(tensors, weight):
    """The base weight and a file's tensors of one layer -> the weight that it asks for, by the kinds' definitions."""
    rank = next(
        (tensors[name].shape[0] for name in ("hada_w1_b", "lokr_w2_b", "lora_down.weight") if name in tensors), 1
    )
    scale = float(tensors["alpha"]) / rank
    if "hada_w1_a" in tensors:
        first = tensors["hada_w1_a"] @ tensors["hada_w1_b"]
        return weight + scale * (first * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])).view(weight.shape)
    if "lokr_w2" in tensors:  # its scale is 1, whatever alpha says
        second = tensors["lokr_w2"]
        first = tensors["lokr_w1"].view(*tensors["lokr_w1"].shape, *[1] * (second.dim() - 2))
        return weight + torch.kron(first, second)
    if "lokr_w1" in tensors:
        return weight + scale * torch.kron(tensors["lokr_w1"], tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]).view(
            weight.shape
        )
    low = scale * (tensors["lora_up.weight"].flatten(1) @ tensors["lora_down.weight"].flatten(1)).view(weight.shape)
    if "dora_scale" not in tensors:
        return weight + low
    others = [dim for dim in range(weight.dim()) if dim != 1]
    turned = weight + low
    return turned * tensors["dora_scale"] / turned.square().sum(others, keepdim=True).sqrt()


def of_layer(adapters, name="lora_unet_0"):
    tensors = {
        key.partition(".")[2]: tensor for key, tensor in adapters.state_dict().items() if key.startswith(f"{name}.")
    }
    return {key: tensor.clone() for key, tensor in tensors.items()}


def everything(operations, function, adapters, x, seed=0):
    """Outputs, the gradient of the input and all gradients of the adapters, which are forgotten afterwards."""
    torch.manual_seed(seed)
    for layer in adapters.layers.values():
        layer.is_fused = operations is FAST
    x = x.clone().requires_grad_()
    outputs = function(operations, x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    sum((y * numbers(*y.shape, seed=9 + i, dtype=y.dtype)).sum() for i, y in enumerate(outputs)).backward()
    found = [y.detach() for y in outputs] + [x.grad]
    found += [parameter.grad.clone() for layer in adapters.layers.values() for parameter in layer.parameters()]
    adapters.refresh()
    return found


def same(function, adapters, x, **tolerance):
    for seed in range(
        4 if any(layer.rank_dropout or layer.module_dropout for layer in adapters.layers.values()) else 1
    ):
        plain, fast = (everything(operations, function, adapters, x, seed) for operations in (PLAIN, FAST))
        for expected, found in zip(plain, fast, strict=True):
            torch.testing.assert_close(found, expected, **tolerance)
    assert all(expected.any() for expected in plain) or seed


def function_of(name, layers, recomputed=None):
    if name in ("3x3", "stride 2"):
        return lambda operations, x: [operations.convolve(x, layer, recomputed) for layer in layers]
    return lambda operations, x: operations.project(x, layers, recomputed)


def source_of(name, dtype=DOUBLE):
    return numbers(2, 6, 4, 5, dtype=dtype) if name in ("3x3", "stride 2") else numbers(2, 7, 6, dtype=dtype)


@pytest.mark.parametrize("settings", [{}, dict(rank_dropout=0.4), dict(module_dropout=0.5)])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", WHOLE)
def test_the_fast_functions_are_the_plain_ones(kind, name, settings):
    layers = [frozen(LAYERS[name](), seed=i) for i in range(2)]
    same(function_of(name, layers), adapted(layers, kind, **settings), source_of(name))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("kind", WHOLE)
def test_recomputing_captions_strength_and_layers_without_an_update(kind, rank):
    layers = [frozen(nn.Linear(6, 10), seed=i) for i in range(3)]
    trained = adapted(layers[:2], kind, rank=rank)
    trained.multiplier = 0.7
    same(function_of("linear", layers, recompute.LayerNorm(frozen(nn.LayerNorm(6)))), trained, source_of("linear"))
    same(lambda operations, x: operations.project_context(x, layers), trained, source_of("linear"))
    conv = frozen(LAYERS["3x3"]())
    norm = recompute.GroupNormSilu(frozen(nn.GroupNorm(2, 6)))
    same(function_of("3x3", [conv], norm), adapted([conv], kind, rank=rank), source_of("3x3"))
    trained.multiplier = 0
    found = everything(FAST, function_of("linear", layers), trained, source_of("linear"))
    assert not any(gradient.any() for gradient in found[4:])


@pytest.mark.parametrize("name", ["linear", "1x1", "3x3", "stride 2"])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("kind", WHOLE)
def test_outputs_and_gradients_are_those_of_the_weights_that_the_file_asks_for(kind, rank, name):
    """Autograd through the file's formula; of DoRA with the norm held fast, as its section 4.3 has it."""
    layer = frozen(LAYERS[name]())
    plain = copy.deepcopy(layer)
    trained = adapted([layer], kind, rank=rank)
    tensors = {key: tensor.requires_grad_(key != "alpha") for key, tensor in of_layer(trained).items()}
    weight = weight_from_file(tensors, plain.weight.detach())
    if kind == "dora":
        others = [dim for dim in range(weight.dim()) if dim != 1]
        low = weight_from_file({key: x for key, x in tensors.items() if key != "dora_scale"}, plain.weight.detach())
        norm = low.detach().square().sum(others, keepdim=True).sqrt()
        torch.testing.assert_close(low * tensors["dora_scale"] / norm, weight)
        weight = low * tensors["dora_scale"] / norm
    x = numbers(2, 6, 4, 5) if layer.weight.dim() == 4 else numbers(2, 7, 6)
    x = x.requires_grad_()
    if weight.dim() == 4:
        y = functional.conv2d(x, weight, plain.bias, layer.stride, layer.padding)
    else:
        y = functional.linear(x, weight, plain.bias)
    (y * numbers(*y.shape, seed=9)).sum().backward()
    found = everything(FAST, lambda _, x: layer(x), trained, x.detach())
    torch.testing.assert_close(found[0], y)
    torch.testing.assert_close(found[1], x.grad)
    gradients = [tensor.grad for key, tensor in tensors.items() if key != "alpha"]
    for ours, expected in zip(found[2:], gradients, strict=True):
        assert expected.any()
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
@pytest.mark.parametrize("name", ["linear", "3x3"])
def test_gradients_agree_with_finite_differences(kind, name):
    layer = frozen(LAYERS[name]())
    (trained,) = adapted([layer], kind).layers.values()
    assert torch.autograd.gradcheck(trained.matrix, [master.clone().requires_grad_() for master in trained.masters()])


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_updates_are_those_of_peft(kind):
    peft = pytest.importorskip("peft")
    layer = frozen(nn.Linear(6, 10), torch.float32)
    model = nn.ModuleDict({"linear": copy.deepcopy(layer)})
    trained = adapted([layer], kind, rank=2)
    of_kind = dict(init_weights=False) | (dict(decompose_factor=-1) if kind == "lokr" else {})
    config = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}[kind]
    theirs = peft.inject_adapter_in_model(config(r=2, alpha=2, target_modules=["linear"], **of_kind), model)["linear"]
    for name, tensor in of_layer(trained).items():
        if name != "alpha":
            getattr(theirs, name)["default"].data.copy_(tensor)
    x = numbers(3, 6, dtype=torch.float32)
    assert not torch.allclose(layer(x), functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), theirs(x))


@pytest.mark.parametrize("factor", [None, 2, 3, 4, 8, 16, 17])
def test_factors_are_those_of_peft(factor):
    layer = pytest.importorskip("peft.tuners.lokr.layer")
    for size in (1, 2, 7, 77, 127, 128, 250, 320, 360, 640, 768, 1280, 2560, 10240):
        first, second = divisors(size, factor)
        assert first * second == size
        assert (first, second) == tuple(sorted(layer.factorization(size, factor or -1)))


@pytest.mark.parametrize("name", ["linear", "1x1", "3x3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", WHOLE)
def test_training_starts_at_the_base_model_exactly(kind, dtype, name):
    layer = frozen(LAYERS[name](), dtype)
    x = source_of("3x3" if "x" in name else name, dtype)
    before = layer(x)
    attach([Target(layer, "lora_unet_0", "denoiser")], module=kind, rank=2, conv_rank=2)
    assert torch.equal(layer(x), before)


# ---- Half precision, memory, 8 bits ----


@pytest.mark.parametrize("name", ["linear", "3x3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", WHOLE)
def test_half_precision_does_not_round_a_small_update_away(kind, dtype, name):
    """An update of 1/1000 of the weights: in W + dW the rounding would be 21 % of it in fp16, 80 % in bf16."""
    layer = frozen(LAYERS[name](), dtype)
    trained = adapted([layer], kind, rank=2)
    (adapter,) = trained.layers.values()
    for _ in range(8):  # DoRA's is not linear in what is shrunk, but for small ones
        adapter.limit_norm(layer.weight.double().norm() / 1000)
    trained.refresh()
    exact = weight_from_file({k: v.double() for k, v in of_layer(trained).items()}, layer.weight.double())
    expected = (exact - layer.weight.double()).flatten(1)
    made = adapter.make(adapter.prepare())[0].double()
    assert expected.norm() == pytest.approx(float(layer.weight.double().norm()) / 1000, rel=1e-3)
    assert (made - expected).norm() < {torch.float16: 0.003, torch.bfloat16: 0.02}[dtype] * expected.norm()
    gradient = numbers(*expected.shape, dtype=dtype)
    adapter.backward(gradient.clone(), adapter.make(adapter.prepare())[1])
    masters = [master.double().requires_grad_() for master in adapter.masters()]
    double = frozen(LAYERS[name](), DOUBLE)
    double.weight.copy_(layer.weight)
    (reference,) = attach([Target(double, "lora_unet_0", "denoiser")], module=kind, rank=2, conv_rank=2, alpha=2,
                          conv_alpha=2).layers.values()  # fmt: skip
    for own, given in zip(reference.masters(), masters, strict=True):
        own.copy_(given.detach())
    (reference.matrix(*masters) * gradient.double()).sum().backward()
    for master, parameter in zip(masters, adapter.parameters(), strict=True):
        error = (parameter.grad.double() - master.grad).norm() / master.grad.norm()
        assert error < {torch.float16: 0.01, torch.bfloat16: 0.06}[dtype]


class Constant:
    """An update whose matrix is a number everywhere."""

    is_alone = True

    def __init__(self, layer, value):
        matrix = torch.full_like(layer.weight.flatten(1), value)
        leaf = torch.zeros((), requires_grad=True)
        self.update = lambda: linear_ops.WholeUpdate(lambda: (matrix.clone(), None), lambda gradient, kept: None, leaf)
        layer.__dict__["adapter"] = self


@pytest.mark.parametrize("layer", [nn.Linear(1024, 1024), nn.Conv2d(256, 256, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_update_below_the_spacing_of_the_weights_acts_in_both_directions(dtype, layer):
    """Weights of 1 and -1, and an eighth of their spacing: W + dW is W, and 1024 times nothing is nothing."""
    layer = copy.deepcopy(layer).to(dtype).requires_grad_(False)
    layer.weight.copy_(numbers(*layer.weight.shape).sign())
    layer.bias.zero_()
    value = torch.finfo(dtype).eps / 8
    assert torch.equal(layer.weight + value, layer.weight)
    x = torch.ones(1, 1, 1024, dtype=dtype) if layer.weight.dim() == 2 else torch.ones(1, 256, 2, 2, dtype=dtype)

    def found():
        source = x.clone().requires_grad_()
        y = FAST.convolve(source, layer) if layer.weight.dim() == 4 else FAST.project(source, [layer])[0]
        y.sum().backward()
        return y.detach().double().mean(), source.grad.double().mean()

    before = found()
    Constant(layer, value)
    for more, base, count in zip(found(), before, (1024, len(layer.weight)), strict=True):
        assert float(more - base) == pytest.approx(value * count, rel=0.1)


@pytest.mark.parametrize("kind", WHOLE)
def test_of_an_update_nothing_is_kept_but_the_source_of_the_input(kind):
    linear, conv = frozen(nn.Linear(6, 50)), frozen(nn.Conv2d(6, 50, 3))
    adapted([linear], kind, rank=2)
    adapted([conv], kind, rank=2)
    recomputed = recompute.Geglu()
    assert [x.numel() for x in saved(lambda o, x: o.project(x, [linear], recomputed), numbers(1, 2, 12))] == [2 * 12]
    assert [x.numel() for x in saved(lambda o, x: o.convolve(x, conv), numbers(1, 6, 4, 4))] == [6 * 16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", WHOLE)
def test_8_bit_layers_compute_what_their_unpacked_weights_say(kind, dtype):
    packed, unpacked = frozen(nn.Linear(32, 16), dtype), frozen(nn.Linear(32, 16), dtype)
    to_int8(packed)
    unpacked.weight.data = packed.weight * packed.weight_scale
    x = numbers(2, 8, 32, dtype=dtype)
    found = [everything(FAST, function_of("linear", [y]), adapted([y], kind, rank=2), x) for y in (packed, unpacked)]
    for ours, expected in zip(*found, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_large_convolution_of_few_places_is_a_matrix_product_and_the_same(monkeypatch, kind):
    monkeypatch.setattr(linear_ops, "LARGE_WEIGHT", 0)
    layer = frozen(LAYERS["3x3"](), torch.float32)
    trained, x = adapted([layer], kind, rank=2), numbers(2, 6, 4, 5, dtype=torch.float32)
    found = []
    for places in (0, 64):
        monkeypatch.setattr(linear_ops, "FEW_PLACES", places)
        found.append(everything(FAST, function_of("3x3", [layer]), trained, x))
    for folded, unfolded in zip(*found, strict=True):
        torch.testing.assert_close(unfolded, folded, rtol=1e-4, atol=1e-4)


def test_an_input_that_is_all_dead_gives_no_nan_with_dora():
    layer = frozen(nn.Linear(6, 5))
    layer.weight[:, 2] = 0
    trained = attach([Target(layer, "lora_unet_0", "denoiser")], module="dora", rank=2)
    found = everything(FAST, function_of("linear", [layer]), trained, source_of("linear"))
    assert all(tensor.isfinite().all() for tensor in found)


# ---- Norms ----


@pytest.mark.parametrize("name", ["linear", "3x3"])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("kind", WHOLE)
def test_norms_are_those_of_the_built_update_and_can_be_limited(kind, rank, name):
    """The direction stays: the whole dW is shrunk, DoRA's turned and scaled weights together."""
    layer = frozen(LAYERS[name]())
    trained = adapted([layer], kind, rank=rank)
    (adapter,) = trained.layers.values()
    before = weight_from_file(of_layer(trained), layer.weight) - layer.weight
    torch.testing.assert_close(adapter.norm(), before.norm())
    assert trained.norms() == {"denoiser": pytest.approx(float(before.norm()))}
    assert int(trained.limit_norms(2 * float(before.norm()))) == 0
    assert torch.equal(weight_from_file(of_layer(trained), layer.weight) - layer.weight, before)
    assert int(trained.limit_norms(0.4 * float(before.norm()))) == 1
    torch.testing.assert_close(weight_from_file(of_layer(trained), layer.weight) - layer.weight, 0.4 * before)


# ---- Files ----


def test_names_and_shapes_are_those_of_the_file():
    def found(kind, **settings):
        layers = [frozen(LAYERS[name]()) for name in ("linear", "3x3")]
        return {name: tuple(tensor.shape) for name, tensor in adapted(layers, kind, **settings).state_dict().items()}

    first, second = "lora_unet_0.", "lora_unet_1."
    assert found("loha", rank=2) == {
        first + "hada_w1_a": (10, 2), first + "hada_w1_b": (2, 6), first + "hada_w2_a": (10, 2),
        first + "hada_w2_b": (2, 6), first + "alpha": (),
        second + "hada_w1_a": (10, 2), second + "hada_w1_b": (2, 54), second + "hada_w2_a": (10, 2),
        second + "hada_w2_b": (2, 54), second + "alpha": (),
    }  # fmt: skip
    assert found("lokr", rank=2) == {
        first + "lokr_w1": (2, 2), first + "lokr_w2_a": (5, 2), first + "lokr_w2_b": (2, 3), first + "alpha": (),
        second + "lokr_w1": (2, 2), second + "lokr_w2_a": (5, 2), second + "lokr_w2_b": (2, 27), second + "alpha": (),
    }  # fmt: skip
    assert found("lokr", rank=4, factor=1) == {
        first + "lokr_w1": (1, 1), first + "lokr_w2_a": (10, 4), first + "lokr_w2_b": (4, 6), first + "alpha": (),
        second + "lokr_w1": (1, 1), second + "lokr_w2_a": (10, 4), second + "lokr_w2_b": (4, 54), second + "alpha": (),
    }  # fmt: skip
    assert found("lokr", rank=4) == {
        first + "lokr_w1": (2, 2), first + "lokr_w2": (5, 3), first + "alpha": (),
        second + "lokr_w1": (2, 2), second + "lokr_w2": (5, 3, 3, 3), second + "alpha": (),
    }  # fmt: skip
    assert found("dora", rank=2) == {
        first + "lora_down.weight": (2, 6), first + "lora_up.weight": (10, 2), first + "dora_scale": (1, 6),
        first + "alpha": (), second + "lora_down.weight": (2, 6, 3, 3), second + "lora_up.weight": (10, 2, 1, 1),
        second + "dora_scale": (1, 6, 1, 1), second + "alpha": (),
    }  # fmt: skip


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_saved_is_loaded_again_to_the_bit(kind, rank):
    layer = frozen(nn.Linear(6, 10), torch.bfloat16)
    first = adapted([layer], kind, rank=rank)
    x = source_of("linear", torch.bfloat16)
    expected, tensors = layer(x), {name: tensor.clone() for name, tensor in first.state_dict().items()}
    first.detach_from_model()
    second = attach([Target(layer, "lora_unet_0", "denoiser")], module=kind, rank=rank, alpha=2, seed=9)
    assert not torch.equal(layer(x), expected)
    second.load_state_dict(tensors)
    assert torch.equal(layer(x), expected)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in second.state_dict().items())


def load_problem(kind, tensors, **settings):
    layer = frozen(nn.Linear(6, 10), torch.float32)
    settings = dict(module=kind, rank=2, alpha=2) | settings
    with pytest.raises(UserError) as error:
        attach([Target(layer, "lora_unet_0", "denoiser")], **settings).load_state_dict(tensors)
    return str(error.value)


@pytest.mark.parametrize("kind", WHOLE)
def test_what_does_not_fit_is_named_with_its_cure(kind):
    layer = frozen(nn.Linear(6, 10), torch.float32)
    tensors = {name: tensor.clone() for name, tensor in adapted([layer], kind, rank=2).state_dict().items()}
    message = load_problem(kind, tensors, rank=1)
    assert "Set network_dim = 2" in message
    assert "Set network_alpha = 2" in load_problem(kind, tensors, alpha=1)
    for other in ({"lora", *WHOLE}) - {kind}:
        message = load_problem(other, tensors)
        assert f'Set network_module = "{kind}"' in message
        assert len(message.splitlines()) == 2


def test_another_factor_of_lokr_is_named():
    layer = frozen(nn.Linear(6, 10), torch.float32)
    tensors = {name: tensor.clone() for name, tensor in adapted([layer], "lokr", rank=2).state_dict().items()}
    assert "lokr_factor" in load_problem("lokr", tensors, factor=1)
    assert "lokr_factor" in load_problem("lokr", tensors, rank=4)


def test_rank_stabilized_scaling_is_in_the_alpha_of_the_file():
    """alpha / sqrt(rank), read as alpha / rank by everyone."""
    layer = frozen(nn.Linear(6, 10))
    x = source_of("linear")
    base = layer(x)
    trained = moved(attach([Target(layer, "lora_unet_0", "denoiser")], rank=4, alpha=3, rank_stabilized=True))
    tensors = of_layer(trained)
    product = tensors["lora_up.weight"] @ tensors["lora_down.weight"]
    torch.testing.assert_close(layer(x) - base, functional.linear(x, product) * 3 / 4**0.5)
    assert float(tensors["alpha"]) == 6
    torch.testing.assert_close(weight_from_file(tensors, layer.weight) - layer.weight, product * 3 / 4**0.5)
    tensors = {f"lora_unet_0.{name}": tensor.float() for name, tensor in tensors.items()}
    assert "Set network_alpha = 3" in load_problem("lora", tensors, rank=4, alpha=1, rank_stabilized=True)


# ---- Whole models and runs ----


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_unet_gives_what_diffusers_gives_with_the_plain_functions(kind):
    from tests.families.test_unet_forward import Case

    case = Case("sd1", module=kind)
    expected, found = case.everything(case.theirs), case.everything(case.forward())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def unet_output(unet):
    states = numbers(1, 7, unet.config.cross_attention_dim, dtype=torch.float32)
    with torch.no_grad():
        return unet(numbers(1, 4, 8, 8, dtype=torch.float32), torch.tensor([500]), states).sample


@pytest.mark.parametrize("kind", WHOLE)
def test_a_run_ends_in_a_file_that_changes_the_model_as_training_did(run, tiny_model, monkeypatch, capsys, kind):
    """The U-Net as trained, at the end of the run, against the base model with the weights that the file asks for."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from library.adapters import Adapters
    from library.storage import lora_file

    ended = []
    really = Adapters.state_dict
    monkeypatch.setattr(Adapters, "state_dict", lambda self: ended.append(self) or really(self))
    options = dict(network_module=kind, conv_dim=1, conv_alpha=1, save_precision="float", scale_weight_norms=0.3)
    folder = run(**options)
    said = capsys.readouterr().out
    tensors = load_file(folder / "it.safetensors")
    trained = ended[-1]
    family = families.open_model(str(tiny_model("sd1")), dtype=torch.float32, device="cpu")
    before = unet_output(family.unet)
    layers = {target.saved_as: target.layer for target in family.targets()}
    names = {name.partition(".")[0] for name in tensors}
    assert names == set(layers)
    for name in names:
        own = {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
        layer, adapter = layers[name], trained.layers[name]
        changed = weight_from_file(own, layer.weight.detach())
        torch.testing.assert_close((changed - layer.weight).norm(), adapter.norm(), rtol=1e-3, atol=1e-6)
        assert adapter.norm() <= 0.301
        layer.weight.data = changed
    assert not torch.allclose(unet_output(family.unet), before, rtol=1e-2, atol=1e-2)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    parts = {target.saved_as: target.part for target in family.targets()}
    norms = lora_file.read_back(folder / "it.safetensors", shapes, parts)
    if kind != "dora":  # whose magnitudes need the base model
        assert norms == pytest.approx(trained.norms(), rel=1e-3)
    assert all(norm > 0 for norm in norms.values())
    assert "saved" in said
    with safe_open(folder / "it.safetensors", "pt") as file:
        metadata = file.metadata()
    args = json.loads(metadata["ss_network_args"])
    algo = {"loha": "loha", "lokr": "lokr", "dora": "lora"}[kind]
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert (args.get("algo"), args.get("dora_wd"), args["conv_dim"]) == (algo, "True" if kind == "dora" else None, "1")
    again = run(output="again", network_weights=str(folder / "it.safetensors"), **options)
    assert load_file(again / "it.safetensors").keys() == tensors.keys()


def test_a_continued_run_gives_the_bits_of_an_unbroken_one(run):
    """With DoRA, of whose magnitudes half precision would lose some."""
    from safetensors.torch import load_file

    options = dict(network_module="dora", save_state=True, save_precision="float", mixed_precision="bf16")
    whole = load_file(run(output="whole", max_train_epochs=2, save_every_n_epochs=1, **options) / "it.safetensors")
    state = str(next(iter((run(output="part", save_every_n_epochs=1, **options)).glob("it-000001-state"))))
    resumed = load_file(run(output="rest", resume=state, **options) / "it.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_dropout_of_inner_values_is_refused_where_there_are_none():
    from library.options.checks import contradictions
    from library.options.training import Config

    assert not list(contradictions(Config(network_dropout=0.1)))
    ((names, text),) = contradictions(Config(network_module="lokr", network_dropout=0.1))
    assert names == ("network_dropout", "network_module")
    assert "Set it to None" in text
