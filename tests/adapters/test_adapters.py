"""LoRA layers against W + scale * up @ down, peft and finite differences; names in the file; what errors say."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from library.adapters import attach, linear_ops
from library.contracts import Target
from library.messages import UserError

LINEAR, CONV1, CONV3 = "lora_te_fc1", "lora_unet_proj_in", "lora_unet_conv1"


class Tiny(nn.Module):
    """A linear layer, a 1x1 and a 3x3 convolution."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.conv1 = nn.Conv2d(5, 8, 1)
        self.conv3 = nn.Conv2d(8, 7, 3, stride=2, padding=1)

    def forward(self, x):  # (B, 12, 6) -> (B, 7, 2, 2)
        return self.conv3(self.conv1(self.linear(x).transpose(1, 2).reshape(len(x), 5, 4, 3)))

    def targets(self):
        return [
            Target(self.linear, LINEAR, "text_encoder"),
            Target(self.conv1, CONV1, "denoiser"),
            Target(self.conv3, CONV3, "denoiser", needs_conv_dim=True),
        ]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(1))


def trained(model, **settings):
    """Adapters whose up is not zero."""
    adapters = attach(model.targets(), **(dict(rank=4, alpha=2, conv_rank=3, conv_alpha=1) | settings))
    return fill_ups(adapters)


def fill_ups(adapters):
    generator = torch.Generator().manual_seed(2)
    for layer in adapters.layers.values():
        layer.up_master.copy_(torch.randn(layer.up.shape, generator=generator))
    adapters.refresh()
    return adapters


def gradients(adapters):
    """What the last backward pass left, by layer; forgotten afterwards."""
    found = {name: (layer.down.grad.clone(), layer.up.grad.clone()) for name, layer in adapters.layers.items()}
    adapters.refresh()
    return found


def merged(model, adapters):
    """A copy of the model with W + scale * up @ down in place of W, from the file's tensors alone."""
    result = Tiny()
    result.load_state_dict(model.state_dict())
    tensors = adapters.state_dict()
    for name, layer in {LINEAR: result.linear, CONV1: result.conv1, CONV3: result.conv3}.items():
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        scale = tensors[f"{name}.alpha"] / down.shape[0]
        layer.weight.data += scale * (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
    return result


def test_attaching_changes_nothing_until_something_is_learned(model, x):
    before = model(x)
    attach(model.targets(), rank=4, conv_rank=2)
    assert torch.equal(model(x), before)


def test_output_is_that_of_the_merged_weights(model, x):
    adapters = trained(model)
    torch.testing.assert_close(model(x), merged(model, adapters)(x), rtol=1e-4, atol=1e-4)


def test_multiplier_turns_the_update_down_and_off(model, x):
    base = model.linear(x)
    adapters = trained(model)
    full = model.linear(x)
    adapters.multiplier = 0.5
    torch.testing.assert_close(model.linear(x), (base + full) / 2)
    adapters.multiplier = 0
    assert torch.equal(model.linear(x), base)
    assert adapters.multiplier == 0


def test_gradients_are_those_of_the_merged_weights(model, x):
    """dL/dW is G; then dL/dup = scale G down^T and dL/ddown = scale up^T G."""
    adapters = trained(model)
    model(x).square().sum().backward()
    reference = merged(model, adapters)
    reference(x).square().sum().backward()
    for name, layer in {LINEAR: reference.linear, CONV1: reference.conv1, CONV3: reference.conv3}.items():
        ours, g = adapters.layers[name], layer.weight.grad.flatten(1)
        torch.testing.assert_close(
            ours.up.grad.flatten(1), ours.scale * g @ ours.down.flatten(1).T, rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            ours.down.grad.flatten(1), ours.scale * ours.up.flatten(1).T @ g, rtol=1e-3, atol=1e-3
        )
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("settings", [{}, dict(dropout=0.4), dict(rank_dropout=0.4), dict(rank=5, conv_rank=7)])
def test_fast_functions_agree_with_the_plain_ones(model, x, settings):
    """Forward, gradient of the input, gradients of every layer; with the same dropout masks."""
    model.double()
    x = x.double()
    adapters = trained(model, **settings)
    found = []
    for is_fused in (False, True):
        for layer in adapters.layers.values():
            layer.is_fused = is_fused
        torch.manual_seed(3)
        source = x.clone().requires_grad_()
        y = model(source)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y.detach(), source.grad, *(g for pair in gradients(adapters).values() for g in pair)])
    for plain, fast in zip(*found, strict=True):
        assert plain.any()
        torch.testing.assert_close(fast, plain)


def test_output_and_gradients_are_those_of_peft(model, x):
    peft = pytest.importorskip("peft")
    other = copy.deepcopy(model)
    adapters = trained(model)
    settings = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["linear", "conv1", "conv3"], rank_pattern={"conv3": 3},
        alpha_pattern={"conv3": 1},
    )  # fmt: skip
    theirs = peft.inject_adapter_in_model(settings, other)
    layers = {LINEAR: theirs.linear, CONV1: theirs.conv1, CONV3: theirs.conv3}
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(adapters.layers[name].down)
        layer.lora_B["default"].weight.data.copy_(adapters.layers[name].up)
    ours, reference = model(x), theirs(x)
    torch.testing.assert_close(ours, reference)
    ours.square().sum().backward()
    reference.square().sum().backward()
    for name, layer in layers.items():
        torch.testing.assert_close(adapters.layers[name].down.grad, layer.lora_A["default"].weight.grad)
        torch.testing.assert_close(adapters.layers[name].up.grad, layer.lora_B["default"].weight.grad)


def test_linear_op_agrees_with_finite_differences():
    torch.manual_seed(0)
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(2, 5), (2, 4), (3, 4), (5, 3)]
    ]
    mask = torch.tensor([[1.0, 0, 2], [0.5, 1, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: linear_ops.linear(*t, 0.7, mask), tensors)


def test_conv_op_agrees_with_finite_differences():
    torch.manual_seed(0)
    shapes = [(1, 4, 3, 3), (1, 2, 5, 5), (3, 2, 3, 3), (4, 3, 1, 1)]
    tensors = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    hook = dict(stride=(2, 2), padding=(1, 1), dilation=(1, 1))
    assert torch.autograd.gradcheck(lambda *t: linear_ops.conv2d(*t, 0.7, **hook), tensors)


def test_names_shapes_and_alphas_are_those_of_the_file(model):
    tensors = attach(model.targets(), rank=4, alpha=2, conv_rank=3, conv_alpha=1).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"{LINEAR}.lora_down.weight": (4, 6), f"{LINEAR}.lora_up.weight": (5, 4), f"{LINEAR}.alpha": (),
        f"{CONV1}.lora_down.weight": (4, 5, 1, 1), f"{CONV1}.lora_up.weight": (8, 4, 1, 1), f"{CONV1}.alpha": (),
        f"{CONV3}.lora_down.weight": (3, 8, 3, 3), f"{CONV3}.lora_up.weight": (7, 3, 1, 1), f"{CONV3}.alpha": (),
    }  # fmt: skip
    assert [float(tensors[f"{name}.alpha"]) for name in (LINEAR, CONV1, CONV3)] == [2, 2, 1]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize("alpha", [None, 0])
def test_without_alpha_it_is_the_rank(model, alpha):
    adapters = attach(model.targets(), rank=4, alpha=alpha)
    assert {layer.alpha for layer in adapters.layers.values()} == {4}


def test_convolutions_need_conv_dim(model):
    assert CONV3 not in attach(model.targets(), rank=4).layers


def test_parts_hold_their_parameters_in_order(model):
    adapters = attach(model.targets(), rank=4, conv_rank=2)
    parts = adapters.parts()
    assert list(parts) == ["text_encoder", "denoiser"]
    assert [id(p) for part in parts.values() for p in part] == [id(p) for p in adapters.parameters()]
    layers = [adapters.layers[name] for name in (LINEAR, CONV1, CONV3)]
    single = [parameter for part in adapters.parts(is_flat=False).values() for parameter in part]
    assert [id(p.untyped_storage()) for p in single] == [id(m.untyped_storage()) for x in layers for m in x.masters()]
    for parameter, master in zip(single, [m for layer in layers for m in layer.masters()], strict=True):
        assert parameter.data_ptr() == master.data_ptr()
        assert parameter.shape == master.shape


def test_initial_weights_depend_on_the_seed_alone():
    def down(seed, name=LINEAR, others=True):
        targets = Tiny().targets()  # whose own weights are random anew
        targets = targets if others else [target for target in targets if target.saved_as == name]
        return attach(targets, rank=4, conv_rank=4, seed=seed).layers[name].down.data

    assert torch.equal(down(1), down(1))
    assert torch.equal(down(1, CONV3), down(1, CONV3, others=False))  # nor on which others are adapted
    assert not torch.equal(down(1), down(2))
    assert down(1).abs().max() <= 1 / 6**0.5  # kaiming_uniform with a = sqrt(5): 1 / sqrt(inputs)
    assert down(1, CONV3).abs().max() > 0.9 / 72**0.5


def test_layers_of_one_shape_start_differently():
    layers = [nn.Linear(6, 5), nn.Linear(6, 5)]
    targets = [Target(layer, f"lora_unet_{i}", "denoiser") for i, layer in enumerate(layers)]
    first, second = attach(targets, rank=4).layers.values()
    assert not torch.equal(first.down, second.down)


def test_attaching_draws_no_global_random_numbers(model):
    before = torch.get_rng_state()
    attach(model.targets(), rank=4, conv_rank=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masters_stay_float32_on_a_half_precision_model(model, x, dtype):
    model.to(dtype)
    adapters = trained(model)
    y = model(x.to(dtype))
    assert y.dtype == dtype
    y.float().square().mean().backward()
    adapters.gather()
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in adapters.parameters()} == {torch.float32}
    assert all(p.grad.any() for p in adapters.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_flat_tensor_and_one_for_each_layer_learn_alike(x, dtype):
    found = []
    for is_flat in (True, False):
        torch.manual_seed(0)
        model = Tiny().requires_grad_(False).to(dtype)
        adapters = trained(model)
        parameters = [parameter for part in adapters.parts(is_flat=is_flat).values() for parameter in part]
        optimizer = torch.optim.AdamW(parameters, lr=0.01)
        for _ in range(3):
            for _ in range(2):  # batches of one step
                model(x.to(dtype)).float().square().mean().backward()
                adapters.gather()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            adapters.refresh()
        found.append({name: tensor.clone() for name, tensor in adapters.state_dict().items()})
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor)


def test_the_model_sees_what_the_optimizer_changed_and_gradients_start_anew(model, x):
    adapters = trained(model.bfloat16())
    model(x.bfloat16()).sum().backward()
    adapters.gather()
    layer = adapters.layers[LINEAR]
    layer.masters()[1].fill_(3)
    assert not (layer.up == 3).all()
    adapters.refresh()
    assert (layer.up == 3).all()
    assert not layer.up.grad.any()
    assert all(parameter.grad is None for parameter in adapters.parameters())


def test_gradients_of_many_batches_are_summed_in_float32(model, x):
    """In bfloat16 a small one added to 256 large ones would vanish."""
    adapters = trained(model.bfloat16())
    (te, _) = adapters.parameters()
    flat = adapters.flat_parameters["text_encoder"]
    for size in (256.0, 1.0):
        flat.gradient.fill_(size)
        adapters.gather()
    assert (te.grad == 257).all()


def test_dropout_keeps_the_mean_and_acts_in_training_only(model):
    x = torch.randn(1, 12, 6).expand(4000, 12, 6)
    base = model.linear(x)
    for setting in ["dropout", "rank_dropout"]:
        adapters = trained(model, **{setting: 0.5})
        with torch.no_grad():
            update = model.linear(x) - base
            adapters.eval()
            full = model.linear(x) - base
        assert not torch.allclose(update, full)
        torch.testing.assert_close(full, full[:1].expand_as(full))  # nothing dropped: the same for every sample
        torch.testing.assert_close(update.mean(0), full.mean(0), rtol=0.2, atol=0.1)
        adapters.detach_from_model()


def test_rank_dropout_drops_whole_channels_of_a_sample(model, x):
    masks = trained(model, rank_dropout=0.5).layers[LINEAR].update().mask_of
    mask = masks.draw(torch.zeros(50, 12, 4), -1)
    assert mask.shape == (50, 1, 4)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert masks.draw(torch.zeros(50, 3, 2, 2), 1).shape == (50, 3, 1, 1)


def test_module_dropout_skips_the_whole_update_at_its_share_of_steps(model, x):
    base = model.linear(x)
    trained(model, module_dropout=0.25)
    skipped = sum(torch.equal(model.linear(x), base) for _ in range(400))
    assert 60 < skipped < 140


def test_dropout_is_the_same_when_a_block_is_computed_again(model, x):
    """Gradient checkpointing runs forward twice; other masks the second time would give wrong gradients."""
    adapters = trained(model, dropout=0.3, rank_dropout=0.3, module_dropout=0.3)
    found = []
    for run in [model, lambda x: checkpoint(model, x, use_reentrant=False)]:
        torch.manual_seed(7)
        run(x.clone().requires_grad_()).square().sum().backward()
        found.append(gradients(adapters))
    for name in adapters.layers:
        for a, b in zip(found[0][name], found[1][name], strict=True):
            assert torch.equal(a, b)
    assert any(gradient.any() for pair in found[0].values() for gradient in pair)


def test_norm_is_that_of_the_built_update(model):
    adapters = trained(model)
    reference = merged(model, adapters)
    for name, layer, plain in [(LINEAR, reference.linear, model.linear), (CONV3, reference.conv3, model.conv3)]:
        torch.testing.assert_close(adapters.layers[name].norm(), (layer.weight - plain.weight).norm())
    unet = torch.stack([adapters.layers[name].norm() for name in (CONV1, CONV3)]).norm()
    assert adapters.norms()["denoiser"] == pytest.approx(float(unet))


def test_limit_norms_shrinks_only_what_is_too_large(model):
    adapters = trained(model)
    norms = {name: float(layer.norm()) for name, layer in adapters.layers.items()}
    limit = sorted(norms.values())[1]  # the middle one is exactly at the limit
    kept = {name: layer.down.clone() for name, layer in adapters.layers.items()}
    assert int(adapters.limit_norms(limit * 1.0001)) == 1
    for name, layer in adapters.layers.items():
        if norms[name] > limit:
            assert float(layer.norm()) == pytest.approx(limit * 1.0001, rel=1e-4)
        else:
            assert torch.equal(layer.down, kept[name])


def test_what_is_saved_can_be_loaded_again(model, x):
    first = trained(model)
    expected = model(x)
    tensors = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    first.detach_from_model()
    second = attach(model.targets(), rank=4, alpha=2, conv_rank=3, conv_alpha=1, seed=9)
    assert not torch.equal(model(x), expected)
    second.load_state_dict(tensors)
    assert torch.equal(model(x), expected)


def load_problem(model, tensors, **settings):
    adapters = attach(model.targets(), **(dict(rank=4, alpha=2, conv_rank=3, conv_alpha=1) | settings))
    before = {name: tensor.clone() for name, tensor in adapters.state_dict().items()}
    with pytest.raises(UserError) as error:
        adapters.load_state_dict(tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapters.state_dict().items())
    return str(error.value)


def test_what_does_not_fit_is_named_with_its_cure(model):
    tensors = {name: tensor.clone() for name, tensor in trained(model).state_dict().items()}
    message = load_problem(model, tensors, rank=8, alpha=2, conv_rank=5)
    assert "Set network_dim = 4" in message
    assert "Set conv_dim = 3" in message
    assert len(message.splitlines()) == 3  # a heading and one line per cause
    assert "Set network_alpha = 2" in load_problem(model, tensors, alpha=4)
    message = load_problem(model, {k: v for k, v in tensors.items() if not k.startswith("lora_te")})
    assert f"{LINEAR}.lora_down.weight" in message
    assert "text_encoder_lr = 0" in message
    message = load_problem(model, tensors | {"lora_unet_other.lora_up.weight": torch.zeros(1)})
    assert "lora_unet_other" in message
    assert "would be lost" in message
    wrong = {f"{LINEAR}.lora_down.weight": torch.zeros(4, 7)}
    message = load_problem(model, tensors | wrong)
    assert "4x7" in message
    assert "4x6" in message
    assert "kind of base model" in message


def test_a_file_without_alpha_means_alpha_is_the_rank(model):
    tensors = {k: v.clone() for k, v in trained(model, alpha=4, conv_alpha=3).state_dict().items()}
    attach(model.targets(), rank=4, conv_rank=3).load_state_dict({k: v for k, v in tensors.items() if "alpha" not in k})


def test_detaching_gives_the_layers_back_as_they_were(model, x):
    before = model(x)
    first = trained(model)
    with_first = model(x)
    second = trained(model)
    assert not torch.equal(model(x), with_first)  # several adapters add up
    second.detach_from_model()
    assert torch.equal(model(x), with_first)
    first.detach_from_model()
    assert torch.equal(model(x), before)
    assert "forward" not in vars(model.linear)


def test_the_base_models_own_names_are_untouched(model):
    before = list(model.state_dict())
    trained(model)
    assert list(model.state_dict()) == before
    assert len(list(model.parameters())) == len(before)


def test_moving_keeps_the_parameters_that_the_optimizer_holds(model):
    adapters = trained(model)
    before = [id(p) for p in adapters.parameters()]
    assert [id(p) for p in adapters.to("cpu").parameters()] == before


def test_unknown_kind_names_the_near_one(model):
    with pytest.raises(UserError, match="Did you mean lora?"):
        attach(model.targets(), module="lorra", rank=4)


def test_plain_functions_equal_their_formula():
    x, down, up = torch.randn(2, 3, 6), torch.randn(4, 6), torch.randn(5, 4)
    expected = 1 + 0.5 * functional.linear(functional.linear(x, down), up)
    torch.testing.assert_close(linear_ops.linear(torch.ones(2, 3, 5), x, down, up, 0.5), expected)


def test_norms_of_blocks_are_those_of_their_layers_together(model):
    adapters = trained(model)
    updates = {name: float(layer.norm()) for name, layer in adapters.layers.items()}
    found = adapters.block_norms()
    assert list(found) == ["BASE", "TIME"]  # names of a toy: of no block
    assert found["BASE"] == pytest.approx(updates[LINEAR])
    assert found["TIME"] == pytest.approx((updates[CONV1] ** 2 + updates[CONV3] ** 2) ** 0.5)
