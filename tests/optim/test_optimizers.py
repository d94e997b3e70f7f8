"""Optimizers by name: what is built, what is said, and that Lion is its paper's algorithm."""

import copy
import sys

import pytest
import torch
from torch import nn

from library.messages import UserError
from library.optim import optimizers
from library.optim.optimizers import build, learning_rates, parameter_groups, parse_args


def parameters(*values):
    return [nn.Parameter(torch.tensor(value)) for value in values]


def groups(lr=1e-2):
    return [dict(name="unet", params=parameters([[1.0, -2.0], [0.5, 3.0]]), lr=lr)]


def take_steps(built, count=3):
    for _ in range(count):
        for group in built.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.detach().clone()  # of |p|² / 2
        built.optimizer.step()


def skip_unless_installed(name: str) -> None:
    for part, package in (("prodigy", "prodigyopt"), ("dadapt", "dadaptation"), ("schedulefree", "schedulefree")):
        if part in name.lower():
            pytest.importorskip(package)


@pytest.mark.parametrize("name", [*optimizers.OPTIMIZERS, "adamw", "LION", "torch.optim.RAdam"])
def test_every_optimizer_makes_a_loss_smaller(name):
    skip_unless_installed(name)
    finds_its_rate = name.lower().startswith(optimizers.OWN_RATES)
    group = groups(lr=1.0 if finds_its_rate else 1e-2)
    before = float(group[0]["params"][0].detach().norm())
    take_steps(build(name, group, learning_rate=1e-2), 10)
    assert float(group[0]["params"][0].detach().norm()) < before


def test_optimizers_are_the_classes_they_are_named_after():
    plain = build("AdamW", groups(), learning_rate=1)
    assert type(plain.optimizer) is torch.optim.AdamW
    assert plain.described_as == "torch.optim.adamw.AdamW"
    assert type(build("sgd", groups(), learning_rate=1).optimizer) is torch.optim.SGD
    nesterov = build("SGDNesterov", groups(), learning_rate=1, args={"momentum": 0.8}).optimizer.param_groups[0]
    assert (nesterov["momentum"], nesterov["nesterov"]) == (0.8, True)


def test_settings_reach_the_optimizer_and_its_description():
    built = build("AdamW", groups(3e-4), learning_rate=1, args={"weight_decay": 0.1, "betas": (0.9, 0.99)})
    group = built.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"], group["lr"], group["name"]) == (0.1, (0.9, 0.99), 3e-4, "unet")
    assert built.described_as == "torch.optim.adamw.AdamW(weight_decay=0.1, betas=(0.9, 0.99))"
    assert built.notices == []


def test_lion_takes_the_steps_of_its_paper():
    weight, momentum, lr, decay = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(3), 0.1, 0.2
    parameter = nn.Parameter(weight.clone())
    lion = optimizers.Lion([parameter], lr=lr, betas=(0.9, 0.99), weight_decay=decay)
    for gradient in torch.randn(6, 3, generator=torch.Generator().manual_seed(0)):
        parameter.grad = gradient.clone()
        lion.step()
        weight = weight - lr * ((0.9 * momentum + 0.1 * gradient).sign() + decay * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
        torch.testing.assert_close(parameter.detach(), weight)


def test_settings_are_read_as_python_values():
    lines = ["weight_decay=0.1", " betas = 0.9,0.99 ", "relative_step=False", "mode='min'", "eps=None"]
    assert parse_args(lines) == {
        "weight_decay": 0.1, "betas": (0.9, 0.99), "relative_step": False, "mode": "min", "eps": None,
    }  # fmt: skip
    assert parse_args(None) == {}


def test_every_setting_that_is_not_understood_is_named():
    with pytest.raises(UserError) as error:
        parse_args(["decouple=true", "0.1", "weight_decay=0.1", "x y=1"])
    assert len(error.value.problems) == 3
    assert "decouple=true" in str(error.value)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean AdamW"):
        build("AdanW", groups(), learning_rate=1)
    with pytest.raises(UserError, match="SGD has no setting betas. It has: momentum"):
        build("SGD", groups(), learning_rate=1, args={"betas": (0.9, 0.99)})
    with pytest.raises(UserError, match="Invalid beta parameter at index 0: 1.5"):
        build("AdamW", groups(), learning_rate=1, args={"betas": (1.5, 0.99)})
    with pytest.raises(UserError, match="pip install no_such_package"):
        build("no_such_package.Optimizer", groups(), learning_rate=1)
    with pytest.raises(UserError, match="torch.optim has no AdamWW"):
        build("torch.optim.AdamWW", groups(), learning_rate=1)
    with pytest.raises(UserError, match="not an optimizer"):
        build("torch.nn.Linear", groups(), learning_rate=1)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(UserError, match="pip install prodigyopt"):
        build("Prodigy", groups(1.0), learning_rate=1)


def test_prodigy_refuses_what_it_cannot_do_and_warns_of_small_rates():
    pytest.importorskip("prodigyopt")
    two = [dict(params=parameters([1.0]), lr=1.0), dict(params=parameters([1.0]), lr=0.5)]
    with pytest.raises(UserError, match="given 0.5, 1"):
        build("Prodigy", two, learning_rate=1)
    assert "The usual value is 1" in build("Prodigy", groups(1e-4), learning_rate=1).notices[0]
    assert build("Prodigy", groups(1.0), learning_rate=1).notices == []


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"])
def test_schedule_free_is_saved_as_its_average_and_goes_on_unchanged(name):
    pytest.importorskip("schedulefree")
    built, undisturbed = (build(name, groups(), learning_rate=1e-2) for _ in range(2))
    take_steps(built, 12)  # RAdam's first steps are none
    take_steps(undisturbed, 12)
    (parameter,) = built.optimizer.param_groups[0]["params"]
    trained = parameter.detach().clone()
    with optimizers.averaged(built.optimizer):
        assert not torch.equal(parameter, trained)
    torch.testing.assert_close(parameter.detach(), trained, rtol=1e-5, atol=1e-6)
    take_steps(built, 5)
    take_steps(undisturbed, 5)
    torch.testing.assert_close(parameter, undisturbed.optimizer.param_groups[0]["params"][0], rtol=1e-5, atol=1e-6)
    assert "needs no schedule" in built.notices[0]


def test_other_optimizers_are_saved_as_they_are():
    built = build("AdamW", groups(), learning_rate=1e-2)
    with optimizers.averaged(built.optimizer):
        take_steps(built, 1)


def test_adafactor_sets_its_own_rate_unless_told_not_to():
    own = build("Adafactor", groups(1e-2), learning_rate=1e-2)
    assert own.optimizer.param_groups[0]["lr"] is None
    assert "sets the learning rate itself" in own.notices[0]
    given = build("Adafactor", groups(1e-2), learning_rate=1e-2, args={"relative_step": False})
    assert given.optimizer.param_groups[0]["lr"] == 1e-2
    assert given.notices == []


def test_adamw8bit_falls_back_to_adamw_and_says_so(monkeypatch):
    built = build("AdamW8bit", groups(), learning_rate=1, args={"weight_decay": 0.1})
    assert type(built.optimizer) is torch.optim.AdamW
    assert "the device is cpu" in built.notices[0]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    reason = optimizers._why_no_bitsandbytes("bitsandbytes.optim.AdamW8bit", torch.device("cuda"))
    assert reason  # no CUDA here, or no bitsandbytes


def test_each_part_has_its_rate_and_zero_freezes():
    parts = {"text_encoder": parameters([1.0]), "text_encoder_2": parameters([1.0]), "denoiser": parameters([2.0])}
    assert learning_rates(parts, None, 5e-5, 1e-4) == {"text_encoder": 5e-5, "text_encoder_2": 5e-5, "denoiser": 1e-4}
    two = learning_rates(parts, None, [5e-5, 2e-5], 1e-4)
    assert two == {"text_encoder": 5e-5, "text_encoder_2": 2e-5, "denoiser": 1e-4}
    assert set(learning_rates(parts, None, [0.0, 2e-5], 1e-4)) == {"text_encoder_2", "denoiser"}
    only = parameter_groups(parts, learning_rates(parts, 2e-4, 0, 1e-4))
    assert [(group["name"], group["lr"], group["params"]) for group in only] == [("denoiser", 2e-4, parts["denoiser"])]
    with pytest.raises(UserError, match="nothing would be trained"):
        learning_rates(parts, 0, 0, 1e-4)
    with pytest.raises(UserError, match="nothing would be trained"):
        learning_rates({"denoiser": []}, None, None, 0)


@pytest.mark.parametrize(
    "name", ["AdamW", "Lion", "Adafactor", "SGDNesterov", "Prodigy", "DAdaptAdam", "AdamWScheduleFree"]
)
def test_a_saved_optimizer_goes_on_as_if_never_stopped(name):
    for part, package in (("Prodigy", "prodigyopt"), ("DAdapt", "dadaptation"), ("ScheduleFree", "schedulefree")):
        if part in name:
            pytest.importorskip(package)
    straight, first, second = (build(name, groups(1.0), learning_rate=1) for _ in range(3))
    take_steps(straight, 6)
    take_steps(first, 3)
    second.optimizer.param_groups[0]["params"][0].data.copy_(first.optimizer.param_groups[0]["params"][0])
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    take_steps(second, 3)
    for a, b in zip(straight.optimizer.param_groups, second.optimizer.param_groups, strict=True):
        assert torch.equal(a["params"][0], b["params"][0])


@pytest.mark.parametrize(
    ("name", "width", "rate"),
    [("AdamW", 320, 1e-4), ("AdamW", 64, 5e-4), ("Lion", 320, 3e-5), ("Prodigy", 64, 1.0), ("some.Adam", 320, 1e-4)],
)
def test_the_usual_rate_follows_the_optimizer_and_the_width(name, width, rate):
    assert optimizers.usual_learning_rate(name, width) == pytest.approx(rate)


@pytest.mark.parametrize("name", [*optimizers.OPTIMIZERS, "torch.optim.RAdam"])
def test_what_was_learned_is_taken_over_to_the_bit_and_what_is_asked_for_counts(name):
    skip_unless_installed(name)
    usual = 1.0 if name.lower().startswith(optimizers.OWN_RATES) else 1e-2

    def built(rate=usual, **args):
        return build(name, groups(rate), learning_rate=rate, args=args)

    whole = built()
    take_steps(whole, 3)
    saved = copy.deepcopy(whole.optimizer.state_dict())
    weights = whole.optimizer.param_groups[0]["params"][0].detach().clone()
    for rate, args in ((usual, {}), (usual / 2, dict(weight_decay=0.25))):
        now = built(rate, **args)
        with torch.no_grad():
            now.optimizer.param_groups[0]["params"][0].copy_(weights)
        asked = {key: value for key, value in now.optimizer.param_groups[0].items() if key in ("lr", "weight_decay")}
        assert optimizers.take_over(now.optimizer, copy.deepcopy(saved), args) == []
        group = now.optimizer.param_groups[0]
        assert {key: group[key] for key in asked} == asked
        learned = {"d", "k", "weight_sum", "d_numerator", "numerator_weighted"} & saved["param_groups"][0].keys()
        assert {key: group[key] for key in learned} == {key: saved["param_groups"][0][key] for key in learned}
        if rate == usual:
            take_steps(now, 2)
            take_steps(whole, 2)
            assert torch.equal(group["params"][0], whole.optimizer.param_groups[0]["params"][0])


def test_what_a_schedule_kept_in_a_group_is_not_taken_over():
    before, now = (build("AdamW", groups(rate), learning_rate=1).optimizer for rate in (1e-2, 1e-4))
    torch.optim.lr_scheduler.OneCycleLR(before, max_lr=1e-2, total_steps=9)
    assert optimizers.take_over(now, before.state_dict(), {}) == []
    group = now.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-4, (0.9, 0.999))
    assert not {"initial_lr", "max_lr"} & group.keys()


def test_groups_of_other_layers_begin_anew_and_are_named():
    before = build("AdamW", groups(), learning_rate=1)
    take_steps(before)
    smaller = dict(name="unet", params=parameters([1.0, 2.0]), lr=1e-2)
    now = build("AdamW", [smaller, dict(name="text_encoder", params=parameters([3.0]), lr=1e-2)], learning_rate=1)
    assert optimizers.take_over(now.optimizer, before.optimizer.state_dict(), {}) == ["unet", "text_encoder"]
    take_steps(now)


@pytest.mark.parametrize(
    ("name", "then", "now", "expected"),
    [
        ("AdamW", {}, dict(weight_decay=0.5, betas=(0.8, 0.9)), True),
        ("AdamW", {}, dict(amsgrad=True), False),
        ("AdamW", dict(amsgrad=True), {}, True),
        ("SGD", {}, dict(momentum=0.9), False),
        ("Prodigy", {}, dict(d_coef=2.0), True),
        ("Prodigy", {}, dict(slice_p=3), False),
        ("Adafactor", {}, dict(relative_step=False, scale_parameter=False), True),
        ("Adafactor", {}, dict(beta1=0.9), False),
    ],
)
def test_settings_that_want_something_else_remembered_are_known(name, then, now, expected):
    skip_unless_installed(name)
    assert optimizers.remembers_the_same(name, then, now, parameters([[1.0, 2.0]])[0]) is expected
