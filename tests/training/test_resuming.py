"""Going on with a run that has changed: from where, under which name, and with what the user asks for now."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import safe_open

from library.data.plan import Plan
from library.messages import Stopped, UserError
from library.options.training import Config
from library.storage import lora_file, training_state
from library.storage.training_state import Position, State
from library.training import resuming
from tests.conftest import draw_set, events
from tests.training.test_train import same_weights


def plan_of(batches: int, *, epochs: int | None = None, steps: int | None = None, group: int = 1) -> Plan:
    """A plan whose epochs are alike, as `make_plan` counts it."""
    batch_counts, step_counts = [], []
    while len(step_counts) != epochs and (steps is None or sum(step_counts) < steps):
        batch_counts.append(batches)
        own = -(-batches // group)
        step_counts.append(own if steps is None else min(own, steps - sum(step_counts)))
    return Plan(SimpleNamespace(), [], False, batch_counts, step_counts, [], group)


def state_at(plan: Plan, step: int, *, knows_length: bool = True) -> State:
    """The state of a run by that plan after so many steps."""
    epoch, before = 1, 0
    while step >= before + plan.step_counts[epoch - 1] and epoch < plan.epoch_count:
        before += plan.step_counts[epoch - 1]
        epoch += 1
    done = min((step - before) * plan.batches_per_step, plan.batch_counts[epoch - 1])
    facts = dict(name="it", epoch_batches=plan.batch_counts[epoch - 1]) if knows_length else dict(name="it")
    return State(Position(epoch, done, step), {}, {}, {}, facts=facts)


def trained_to(plan: Plan, position: Position) -> tuple[int, int]:
    """The step at which the loop of train_network.py ends, and how many it trains."""
    epoch_at, done, step = position
    for epoch in range(epoch_at, plan.epoch_count + 1):
        left = plan.batch_counts[epoch - 1] - done
        step = min(plan.step_count, step + -(-left // plan.batches_per_step))
        done = 0
    return step, step - position.global_step


PLANS = [dict(batches=batches, group=group) for batches, group in product((1, 4, 6, 7, 8, 13), (1, 2, 3))]


@pytest.mark.parametrize("end", [dict(epochs=3), dict(steps=17)], ids=["epochs", "steps"])
def test_whatever_changed_training_goes_on_to_the_end_that_the_plan_names(end):
    """A state of every step of every plan, in every other plan: epochs, or steps where they end the run, stay done."""
    config = Config(max_train_steps=end.get("steps"))
    for before, after, knows in product(PLANS, PLANS, (True, False)):
        then, now = plan_of(**before, **end), plan_of(**after, **end)
        for step in range(then.step_count):
            state = state_at(then, step, knows_length=knows)
            position = resuming.position_in(now, state, config)
            last, trained = trained_to(now, position)
            assert last == now.step_count, (before, after, state.position, position)
            assert trained > 0
            if "steps" in end:
                assert position.global_step == step
            else:
                assert position.epoch in (state.position.epoch, state.position.epoch + 1)
            if before == after:
                assert position == state.position


def test_the_share_of_an_epoch_that_was_begun_stays_done():
    state = state_at(plan_of(8, epochs=2), 4)
    assert resuming.position_in(plan_of(16, epochs=2), state, Config()) == Position(1, 8, 8)
    assert resuming.position_in(plan_of(8, epochs=2, group=2), state, Config()) == Position(1, 4, 2)
    assert resuming.position_in(plan_of(4, epochs=2), state, Config()) == Position(1, 2, 2)
    told = resuming.counted_anew(plan_of(16, epochs=2), state, Position(1, 8, 8))
    assert "0 of 2 are done, and 8 of the 16 batches of the next. Step 4 of then is step 8 of 32 now" in told


@pytest.mark.parametrize(
    ("plan", "config", "option"),
    [
        (plan_of(8, epochs=2), Config(max_train_epochs=2), "max_train_epochs = 2"),
        (plan_of(3, epochs=1), Config(max_train_epochs=1), "max_train_epochs = 1"),
        (plan_of(8, steps=16), Config(max_train_steps=16), "max_train_steps = 16"),
        (plan_of(5, steps=9), Config(max_train_steps=9), "max_train_steps = 9"),
    ],
)
def test_where_nothing_is_left_to_train_that_is_an_error(plan, config, option):
    finished = State(Position(3, 0, 16), {}, {}, {}, facts=dict(name="it"))
    with pytest.raises(UserError, match=f"{option} ends the run there or earlier: nothing is left to train"):
        resuming.position_in(plan, finished, config)


def config_of(folder: Path, state: Path, name: str = "it") -> Config:
    return Config(output_dir=str(folder), resume=str(state), output_name=name)


def saved(folder: Path, position: Position, **facts) -> State:
    state = State(position, {}, {}, {}, facts=dict(name="it", config=dict(output_name="it")) | facts)
    training_state.save_state(folder, state)
    return state


@pytest.mark.parametrize(
    ("later", "keeps"),
    [
        (None, True),
        ("it.safetensors", False),
        ("it-000001.safetensors", True),
        ("it-000002.safetensors", False),
        ("it-step00000008.ckpt", True),
        ("IT-step00000009.safetensors", False),
        ("it-000002-state", False),
        ("it-2.safetensors", True),
    ],
)
def test_a_run_keeps_its_name_where_nothing_of_it_would_be_written_over(tmp_path, later, keeps):
    state = saved(tmp_path / "it-000001-state", Position(2, 0, 8))
    if later:
        (tmp_path / later).touch()
    config = config_of(tmp_path, tmp_path / "it-000001-state")
    assert resuming.keeps_its_name(config, state) is keeps
    got, lock = resuming.lock_name(config, state)
    lock.release()
    free = "it-3" if later == "it-2.safetensors" else "it-2"
    assert (got, lock.name) == (state, "it" if keeps else free)


@pytest.mark.parametrize(
    ("position", "facts", "keeps"),
    [
        (Position(2, 0, 8), {}, True),
        (Position(2, 3, 11), {}, False),
        (Position(2, 0, 8), dict(finished=True), False),
    ],
)
def test_a_state_goes_on_under_its_name_only_if_no_later_one_is_kept(tmp_path, position, facts, keeps):
    saved(tmp_path / "it-state", position, **facts)
    state = saved(tmp_path / "it-000001-state", Position(2, 0, 8))
    assert resuming.keeps_its_name(config_of(tmp_path, tmp_path / "it-000001-state"), state) is keeps


def test_another_output_name_or_folder_is_used(tmp_path):
    state = saved(tmp_path / "it-state", Position(2, 0, 8))
    for config in (
        config_of(tmp_path, tmp_path / "it-state", "other"),
        config_of(tmp_path / "new", tmp_path / "it-state", "other"),
    ):
        _, lock = resuming.lock_name(config, state)
        lock.release()
        assert lock.name == "other"


# ---- Whole runs ----

T0 = dict(reg_data_dir=None, lr_scheduler="constant", learning_rate=1e-3, validation_split=0)


@pytest.fixture
def images(tmp_path):
    """images(5) -> a folder of so many images alike, each seen three times."""

    def images(count: int) -> str:
        folder = tmp_path / f"t{count}"
        if not folder.exists():
            draw_set(folder / "3_sks", ["sks, red hair"] * count, [(64, 64)] * count)
        return str(folder)

    return images


def rates_of(folder: Path, name: str = "it") -> dict[int, list[float]]:
    return {
        event["step"]: [value for key, value in event.items() if key.startswith("lr/")]
        for event in events(folder, name=name)
    }


def test_a_finished_runs_files_stay_and_an_added_image_is_trained_to_the_end(run, images, capsys):
    """6 steps are an epoch, and 8 with one image more."""
    options = T0 | dict(save_every_n_epochs=1, save_state=True)
    out = run(train_data_dir=images(4), **options)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with safe_open(out / "it.safetensors", "pt") as file:
        first_session = file.metadata()["ss_session_id"]
    capsys.readouterr()
    run(train_data_dir=images(5), resume=str(out / "it-000001-state"), **T0)
    said = capsys.readouterr().out
    assert "epochs are counted: 1 of 2 are done. Step 6 of then is step 8 of 16 now" in said
    assert "this run is named it-2" in said
    assert list(rates_of(out, "it-2")) == list(range(9, 17))
    with safe_open(out / "it-2.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == "16"
        assert file.metadata()["ss_session_id"] != first_session
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ({}, dict(learning_rate=1e-4), [1e-4] * 6),
        (dict(lr_scheduler="cosine", max_train_epochs=1), dict(learning_rate=1e-4), [1e-4] * 6),
        ({}, dict(lr_scheduler_type="CosineAnnealingLR", lr_scheduler_args=["T_max=6"]), [0.0, 6.7e-5, 2.5e-4]),
        (dict(optimizer_type="Lion"), dict(optimizer_type="AdamW", learning_rate=1e-4), [1e-4] * 6),
    ],
    ids=["rate", "schedule", "class", "optimizer"],
)
def test_what_is_asked_for_now_counts_from_the_next_step_on(run, images, capsys, then, now, expected):
    """Of a run that was at its end, too: its last rate was 0."""
    out = run(train_data_dir=images(4), **T0 | dict(max_train_epochs=1, save_state=True) | then)
    options = T0 | dict(max_train_epochs=2) | now
    run(train_data_dir=images(4), resume=str(out / "it-state"), **options)
    rates = rates_of(out, "it-2")
    assert rates[7] == pytest.approx([expected[0]] * 2, rel=0.01, abs=1e-12)
    assert [rates[7 + at][0] for at in range(len(expected))] == pytest.approx(expected, rel=0.01, abs=1e-12)
    with safe_open(out / "it-2.safetensors", "pt") as file:
        assert float(file.metadata()["ss_learning_rate"]) == options["learning_rate"]
    assert not same_weights(out / "it.safetensors", out / "it-2.safetensors")
    is_another = "optimizer_type" in now
    assert is_another is ("the LoRA goes on from there, but AdamW begins anew" in capsys.readouterr().out)


def test_what_is_told_as_saved_when_the_user_stops_is_there(run, images, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "STOP").touch()
    with pytest.raises(Stopped):
        run(train_data_dir=images(4), **T0)
    said = capsys.readouterr().out
    lora, state = out / "it-step00000001.safetensors", out / "it-state"
    assert f"stopped after step 1 of 12; saved the LoRA {lora} and the training state {state}" in said
    assert lora_file.load_adapter(lora)
    assert training_state.load_state(state).position == Position(1, 1, 1)


def test_auto_after_a_finished_run_says_what_it_does(run, images, capsys):
    options = T0 | dict(max_train_epochs=None, max_train_steps=3, save_state=True)
    out = run(train_data_dir=images(4), **options)
    capsys.readouterr()
    run(train_data_dir=images(5), resume="auto", **options)
    said = capsys.readouterr().out
    assert "this run is named it-2 and begins anew, as it is finished (step 3)" in said
    assert f'set resume = "{out / "it-state"}" and raise max_train_epochs or max_train_steps' in said
