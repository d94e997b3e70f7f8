"""Curves go where the options say, under the names of sd-scripts; a key goes nowhere."""

import dataclasses
import os
import sys

import pytest

from library.messages import UserError
from library.options.checks import ConfigError, check
from library.options.training import Config
from library.reporting import trackers

STAND_IN = '''
"""What wandb is to us: calls are kept instead of sent."""
calls = []


class Settings(dict):
    def update(self, values, **how):
        calls.append(("config", values))


class Run:
    config = Settings()

    def log(self, point):
        calls.append(("log", dict(point)))

    def define_metric(self, name, step_metric):
        assert "*" not in name[:-1]  # as the real one
        calls.append(("axis", (name, step_metric)))

    def finish(self):
        calls.append(("finish", None))


def init(**settings):
    calls.append(("init", settings))
    if settings.get("project") == "forbidden":
        raise RuntimeError("no such project")
    return Run()
'''


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The calls that a stand-in for the package gets."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    import wandb

    yield wandb.calls
    sys.modules.pop("wandb", None)


def opened(session_id=0xABC, started_at=1_700_000_000.0, first_step=0, **options):
    config = dataclasses.replace(Config(), **options)
    return trackers.open_trackers(config, session_id=session_id, started_at=started_at, first_step=first_step)


def scalars(folder, name="loss/current"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder))
    log.Reload()
    return [(scalar.step, scalar.value) for scalar in log.Scalars(name)]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (dict(), []),
        (dict(logging_dir="logs"), ["tensorboard"]),
        (dict(logging_dir="logs", log_with="tensorboard"), ["tensorboard"]),
        (dict(logging_dir="logs", log_with="wandb"), ["wandb"]),
        (dict(log_with="wandb"), ["wandb"]),
        (dict(logging_dir="logs", log_with="all"), ["tensorboard", "wandb"]),
    ],
)
def test_what_is_asked_for_is_opened(options, kinds):
    assert trackers.wanted(dataclasses.replace(Config(), **options)) == kinds


def test_nothing_is_opened_where_nothing_is_asked_for():
    assert opened() is None


def test_tensorboard_has_a_folder_for_each_run_and_project(tmp_path):
    pytest.importorskip("tensorboard")
    for options, name in (({}, "*"), (dict(log_prefix="a-"), "a-2023*/*"), (dict(log_tracker_name="b"), "b/*")):
        tracker = opened(logging_dir=str(tmp_path), **options)
        tracker.add_scalar("loss/current", 0.5, 1)
        tracker.close()
        (found,) = [path for path in tmp_path.glob(name) if path.is_file()]
        assert scalars(found) == [(1, 0.5)]


def test_tensorboard_shows_the_parameters_and_purges_what_is_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    settings = tmp_path / "t.toml"
    settings.write_text("[tensorboard]\nfilename_suffix = '.mine'\n", encoding="utf-8")
    for first_step, value in ((0, 0.5), (0, 0.25)):
        tracker = opened(logging_dir=str(tmp_path / "log"), first_step=first_step, log_config=True, wandb_api_key="key",
                         log_tracker_config=str(settings))  # fmt: skip
        tracker.add_scalar("loss/current", value, 1)
        tracker.close()
    assert scalars(tmp_path / "log")[-1] == (1, 0.25)
    written = b"".join(path.read_bytes() for path in (tmp_path / "log").glob("*.mine"))
    assert b"network_dim" in written
    assert b"wandb_api_key" not in written


def test_wandb_gets_a_run_of_its_own_that_going_on_continues(wandb):
    opened(log_with="wandb")
    opened(log_with="wandb", wandb_run_name="first", log_tracker_name="mine", logging_dir="logs")
    plain, named = (call[1] for call in wandb if call[0] == "init")
    assert plain == dict(project="network_train", name=None, dir=None, id="00000abc", resume="allow")
    assert named == dict(project="mine", name="first", dir="logs", id="00000abc", resume="allow")


def test_points_of_a_step_are_sent_together_and_epochs_have_an_axis_of_their_own(wandb):
    tracker = opened(log_with="wandb")
    for step in (1, 2):
        tracker.add_scalar("loss/current", step / 2, step)
        tracker.add_scalar("lr/unet", 1e-4, step)
    tracker.add_scalar("loss/epoch_average", 0.75, 1)
    tracker.close()
    assert [point for kind, point in wandb if kind == "log"] == [
        {"step": 1, "loss/current": 0.5, "lr/unet": 1e-4},
        {"step": 2, "loss/current": 1.0, "lr/unet": 1e-4},
        {"epoch": 1, "loss/epoch_average": 0.75},
    ]
    assert [axis for kind, axis in wandb if kind == "axis"] == [("*", "step"), ("loss/epoch_average", "epoch")]
    assert wandb[-1] == ("finish", None)


def test_a_whole_run_is_sent_and_its_key_is_in_no_file(run, wandb, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "")
    settings = tmp_path / "t.toml"
    settings.write_text("[wandb]\nnotes = 'a note'\n", encoding="utf-8")
    folder = run(
        log_with="wandb", wandb_run_name="it", wandb_api_key="k3y-of-mine", log_config=True, save_state=True,
        log_tracker_config=str(settings),
    )  # fmt: skip
    assert os.environ["WANDB_API_KEY"] == "k3y-of-mine"
    calls = dict(wandb)
    assert calls["init"]["name"] == "it"
    assert calls["init"]["notes"] == "a note"
    assert calls["config"]["network_dim"] == 2
    assert sum(kind == "log" and "loss/current" in point for kind, point in wandb) == 12
    said = capsys.readouterr()
    assert "k3y-of-mine" not in said.out + said.err + str(wandb)
    for path in folder.rglob("*"):
        assert path.is_dir() or b"k3y-of-mine" not in path.read_bytes(), path


def test_what_does_not_start_is_told_with_the_cure(wandb):
    with pytest.raises(UserError, match="wandb cannot start \\(no such project\\). Log in once"):
        opened(log_with="wandb", log_tracker_name="forbidden")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(log_with="tensorboard"), 'log_with = "tensorboard" needs logging_dir'),
        (dict(log_with="all", logging_dir="logs"), 'log_with = "all" needs the package wandb: pip install wandb'),
        (dict(log_with="mlflow"), 'log_with = "mlflow" is not one of "tensorboard", "wandb", "all"'),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(options, problem, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check(options | dict(pretrained_model_name_or_path=str(tmp_path), train_data_dir=str(tmp_path)), {})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[mlflow]\na = 1", "mlflow is not one of \\[tensorboard\\], \\[wandb\\]"), ("a = = 1", "is not valid TOML"),
     ("entity = 'me'", "entity is not one of")],
)  # fmt: skip
def test_settings_of_nothing_are_refused(tmp_path, text, problem):
    (tmp_path / "t.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=problem):
        trackers.read_settings(str(tmp_path / "t.toml"))
