"""The machine is told not to sleep while a run lasts, and is as before afterwards, also after an error."""

import sys
from contextlib import suppress

import pytest

from library.hardware import awake


@pytest.fixture
def told(monkeypatch):
    said = []
    monkeypatch.setattr(awake, "_tell_windows", said.append)
    return said


def test_windows_is_told_before_and_after_also_where_the_run_fails(told, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with suppress(ValueError), awake.kept_awake():
        assert told == [awake.WINDOWS_KEEP_AWAKE]
        raise ValueError
    assert told == [awake.WINDOWS_KEEP_AWAKE, awake.WINDOWS_AS_BEFORE]


def test_macos_has_a_program_for_it_and_does_without(monkeypatch):
    ended, commands = [], []

    class Helper:
        def __init__(self, command):
            commands.append(command[0])

        def terminate(self):
            ended.append(True)

    def missing(command):
        raise FileNotFoundError

    monkeypatch.setattr(sys, "platform", "darwin")
    for popen in (Helper, missing):
        monkeypatch.setattr(awake.subprocess, "Popen", popen)
        with awake.kept_awake():
            pass
    assert (commands, ended) == (["caffeinate"], [True])


def test_elsewhere_nothing_is_done(told, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    with awake.kept_awake():
        pass
    assert told == []
