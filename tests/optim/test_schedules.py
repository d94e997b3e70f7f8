"""Schedules against diffusers' and transformers'."""

import warnings

import pytest
import torch
from torch import nn

from library.messages import UserError
from library.optim.schedules import SHAPES, advance, build, step_count_of


def optimizer(*rates):
    return torch.optim.SGD([dict(params=[nn.Parameter(torch.ones(1))], lr=rate) for rate in rates], lr=rates[0])


def rates(schedule, step_count):
    """Learning rates of the first group over the steps, and one beyond."""
    result = []
    for _ in range(step_count + 1):
        result.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return result


OF_BOTH = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt")


@pytest.mark.parametrize("name", OF_BOTH)
@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_schedules_are_those_of_diffusers_and_transformers(name, warmup, package):
    optimization = pytest.importorskip(f"{package}.optimization")
    if name == "constant":
        warmup = 0
    if name == "inverse_sqrt" and package == "diffusers":
        pytest.skip("diffusers has none")
    special = dict(cosine_with_restarts=dict(num_cycles=3), polynomial=dict(power=1.7)).get(name, {})
    theirs = dict(num_warmup_steps=warmup, num_training_steps=40)
    theirs |= dict(scheduler_specific_kwargs=special) if package == "transformers" else special
    reference = optimization.get_scheduler(name, optimizer(3e-4), **theirs)
    ours = build(name, optimizer(3e-4), step_count=40, warmup=warmup, cycles=3, power=1.7)
    assert rates(ours, 40) == pytest.approx(rates(reference, 40), abs=1e-15)


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("lowest", [0.0, 0.1])
def test_schedules_with_a_lowest_rate_are_those_of_transformers(warmup, lowest):
    optimization = pytest.importorskip("transformers.optimization")
    reference = optimization.get_cosine_with_min_lr_schedule_with_warmup(
        optimizer(3e-4), warmup, 40, num_cycles=0.5, min_lr_rate=lowest
    )
    ours = build("cosine_with_min_lr", optimizer(3e-4), step_count=40, warmup=warmup, lowest=lowest)
    assert rates(ours, 40) == pytest.approx(rates(reference, 40), abs=1e-15)
    reference = optimization.get_wsd_schedule(optimizer(3e-4), warmup, 12, 40, min_lr_ratio=lowest)
    ours = build("warmup_stable_decay", optimizer(3e-4), step_count=40, warmup=warmup, decay=12, lowest=lowest)
    assert rates(ours, 40) == pytest.approx(rates(reference, 40), abs=1e-15)


def test_inverse_sqrt_takes_its_own_timescale():
    optimization = pytest.importorskip("transformers.optimization")
    reference = optimization.get_inverse_sqrt_schedule(optimizer(1.0), 5, timescale=33)
    ours = build("inverse_sqrt", optimizer(1.0), step_count=40, warmup=5, timescale=33)
    assert rates(ours, 40) == pytest.approx(rates(reference, 40), abs=1e-15)


def test_pieces_are_those_of_diffusers():
    rules = "1:4,0.5:9,0.1"
    reference = pytest.importorskip("diffusers.optimization").get_piecewise_constant_schedule(optimizer(1.0), rules)
    ours = build("piecewise_constant", optimizer(1.0), step_count=20, args={"step_rules": rules})
    assert rates(ours, 20) == rates(reference, 20)
    with pytest.raises(UserError, match="step_rules"):
        build("piecewise_constant", optimizer(1.0), step_count=20)


def test_a_schedule_by_its_path_is_built_with_its_settings():
    for path in ("CosineAnnealingLR", "torch.optim.lr_scheduler.CosineAnnealingLR"):
        ours = build("cosine", optimizer(1.0), step_count=10, path=path, args={"T_max": 4})
        assert rates(ours, 4)[-1] == pytest.approx(0, abs=1e-12)
    for path, reason in (("no.such.Class", "cannot be imported"), ("ReduceLROnPlateau", "with the steps alone")):
        with pytest.raises(UserError, match=reason):
            build("cosine", optimizer(1.0), step_count=10, path=path)
    with pytest.raises(UserError, match="CosineAnnealingLR"):
        build("cosine", optimizer(1.0), step_count=10, path="CosineAnnealingLR", args={"x": 1})


def test_every_group_ends_polynomial_at_the_same_rate():
    schedule = build("polynomial", optimizer(1e-3, 1e-5), step_count=10)
    rates(schedule, 9)
    assert schedule.get_last_lr() == pytest.approx([1e-7, 1e-7])


def test_every_schedule_stays_put_after_the_end():
    for name in SHAPES:
        schedule = build(name, optimizer(1.0), step_count=10, cycles=2, decay=3)
        course = rates(schedule, 15)
        assert all(0 <= rate <= 1 for rate in course), name
        if name != "inverse_sqrt":
            assert course[10:] == pytest.approx([course[10]] * 6), name


@pytest.mark.parametrize(
    ("warmup", "expected"), [(0, 0), (100, 100), ("100", 100), (0.05, 50), ("0.05", 50), ("5%", 50), ("12.5%", 125)]
)
def test_warmup_is_steps_a_share_or_percent(warmup, expected):
    assert step_count_of("lr_warmup_steps", warmup, 1000) == expected


@pytest.mark.parametrize("warmup", [-1, "soon", 1.5, "-5%", "%", None])
def test_a_warmup_that_is_not_understood_is_an_error(warmup):
    with pytest.raises(UserError, match="lr_warmup_steps"):
        step_count_of("lr_warmup_steps", warmup, 1000)


def test_a_warmup_as_long_as_the_run_is_an_error():
    with pytest.raises(UserError, match="never reach"):
        step_count_of("lr_warmup_steps", 100, 100)
    with pytest.raises(UserError, match="never reach"):
        step_count_of("lr_warmup_steps", "100%", 100)


def test_what_cannot_be_is_said_with_its_cure():
    with pytest.raises(UserError, match="Did you mean cosine?"):
        build("cosin", optimizer(1.0), step_count=10)
    with pytest.raises(UserError, match="constant_with_warmup"):
        build("constant", optimizer(1.0), step_count=10, warmup=5)
    with pytest.raises(UserError, match="optimizer_type = Adafactor"):
        build("adafactor", optimizer(1.0), step_count=10)


@pytest.mark.parametrize("name", ["cosine", "adafactor"])
def test_adafactor_shows_the_rate_it_sets_itself(name):
    optimization = pytest.importorskip("transformers.optimization")
    parameter = nn.Parameter(torch.ones(4, 4))
    schedule = build(name, optimization.Adafactor([dict(params=[parameter], lr=None)]), step_count=10)
    parameter.grad = torch.ones_like(parameter)
    schedule.optimizer.step()
    schedule.step()
    assert float(schedule.get_last_lr()[0]) == pytest.approx(1e-2)  # RMS of the weights, 1, times at most 0.01


def test_a_saved_schedule_goes_on_where_it_was():
    straight, first, second = (build("cosine", optimizer(1.0), step_count=20, warmup=3) for _ in range(3))
    whole, half = rates(straight, 19), rates(first, 9)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert whole == half + rates(second, 9)


@pytest.mark.parametrize("name", [*SHAPES, "CosineAnnealingLR"])
@pytest.mark.parametrize("done", [0, 1, 7, 20, 31])
def test_a_schedule_that_is_advanced_has_the_bits_of_one_that_was_stepped(name, done):
    """No state is asked: so another rate, length or class counts from the step on at which a run goes on."""
    how = dict(step_count=20) | (dict(path=name, args=dict(T_max=20)) if name not in SHAPES else {})
    stepped, advanced = (build(name, optimizer(1e-3, 1e-4), **how) for _ in range(2))
    for _ in range(done):
        stepped.optimizer.step()
        stepped.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(advanced, done)
    for ours, theirs in zip(advanced.optimizer.param_groups, stepped.optimizer.param_groups, strict=True):
        assert ours["lr"] == theirs["lr"] <= theirs["initial_lr"]
    assert advanced.last_epoch == done


def test_a_schedule_that_is_over_before_the_run_goes_on_is_an_error():
    schedule = build("", optimizer(1e-3), step_count=20, path="OneCycleLR", args=dict(max_lr=1e-3, total_steps=5))
    with pytest.raises(UserError, match="OneCycleLR cannot go on after step 7"):
        advance(schedule, 7)
