"""A run ends after a step when it is asked to, by a signal or a file; a second Ctrl-C ends it at once."""

import os
import signal
import threading

import pytest

from library.training import stop
from library.training.stop import Stop


@pytest.fixture
def clock(monkeypatch):
    """clock.now is the time."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(stop.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_the_end_and_says_so(tmp_path, number, capfd):
    with Stop(tmp_path) as stopping:
        assert stopping.requested() is None
        signal.raise_signal(number)
        assert stopping.requested() == "signal"
        assert stopping.requested() == "signal"
    assert "stopping after this step" in capfd.readouterr().err


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once(tmp_path, first):
    with Stop(tmp_path):
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)  # an impatient system does not
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_a_stop_file_still_saves(tmp_path):
    (tmp_path / "STOP").touch()
    with Stop(tmp_path) as stopping:
        assert stopping.requested() == "file"
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_are_restored_also_after_an_error(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupted():
        with Stop(tmp_path):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """nohup and background jobs of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop(tmp_path) as stopping:
            signal.raise_signal(signal.SIGINT)
            assert stopping.requested() is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["STOP", "stop", "Stop.txt"])
def test_a_stop_file_asks_for_the_end_and_is_removed(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "stop words.txt").touch()
    (tmp_path / "save").mkdir()
    stopping = Stop(tmp_path)
    assert not stopping.save_requested()
    assert stopping.requested() == "file"
    assert stopping.requested() == "file"
    assert sorted(os.listdir(tmp_path)) == ["save", "stop words.txt"]


def test_a_save_file_asks_once(tmp_path, clock):
    stopping = Stop(tmp_path)
    assert not stopping.save_requested()
    for _ in range(2):
        (tmp_path / "save").touch()
        clock.now += stop.LOOK_SECONDS
        assert stopping.requested() is None  # this look does not swallow the wish
        assert stopping.save_requested()
        assert not stopping.save_requested()
        assert os.listdir(tmp_path) == []


def test_the_folder_is_not_looked_into_at_every_step(tmp_path, clock):
    stopping = Stop(tmp_path)
    stopping.requested()
    (tmp_path / "STOP").touch()
    clock.now += 0.9 * stop.LOOK_SECONDS
    assert stopping.requested() is None
    clock.now += 0.2 * stop.LOOK_SECONDS
    assert stopping.requested() == "file"


def test_a_file_that_cannot_be_removed_counts_once(tmp_path, clock, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "protected")

    (tmp_path / "SAVE").touch()
    monkeypatch.setattr(os, "unlink", refuse)
    stopping = Stop(tmp_path)
    assert stopping.save_requested()
    clock.now += stop.LOOK_SECONDS
    assert not stopping.save_requested()


def test_outside_the_main_thread_the_files_work(tmp_path):
    (tmp_path / "STOP").touch()
    answers = []

    def work():
        with Stop(tmp_path) as stopping:
            answers.append(stopping.requested())

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == ["file"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_that_is_away_stops_nothing(tmp_path):
    assert Stop(tmp_path / "gone").requested() is None
