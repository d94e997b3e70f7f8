"""Pages open and the end of a run is announced where somebody watches, and nowhere else."""

import subprocess
import webbrowser
from pathlib import Path

import pytest

from library.options.declaration import PROJECT
from library.options.tools import TOOLS
from library.reporting import desktop


@pytest.fixture
def opened(monkeypatch):
    pages = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    return pages


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(desktop, "_is_terminal", lambda: True)


@pytest.mark.parametrize(
    ("platform", "environment", "answer"),
    [
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {}, False),
        ("win32", {}, True),
        ("darwin", {}, True),
        ("win32", {"CI": "true"}, False),
        ("linux", {"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "1.2.3.4"}, False),
        ("darwin", {"PYTEST_CURRENT_TEST": "x"}, False),
    ],
)
def test_a_screen_is_one_that_somebody_sits_before(terminal, platform, environment, answer):
    assert desktop.has_screen(platform, environment) is answer


def test_without_a_terminal_nobody_watches():
    assert not desktop.has_screen("win32", {})


def test_a_page_opens_when_it_is_asked_for_and_never_in_a_test_by_itself(opened, tmp_path):
    (tmp_path / "照片 a.html").write_text("")
    desktop.open_page(tmp_path / "照片 a.html", "auto")
    desktop.open_page(tmp_path / "照片 a.html", False)
    assert opened == []
    desktop.open_page(tmp_path / "照片 a.html", True)
    assert opened == [(tmp_path / "照片 a.html").as_uri()]


def test_a_browser_that_fails_costs_nothing(monkeypatch, tmp_path):
    def fail(page):
        raise OSError

    monkeypatch.setattr(webbrowser, "open", fail)
    (tmp_path / "a.html").write_text("")
    desktop.open_page(tmp_path / "a.html", True)


def test_only_the_end_of_a_long_run_is_announced(monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(desktop, "_message_command", lambda text: ["show", text])
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command))
    desktop.announce_end("mytag", desktop.LONG - 1, True)
    desktop.announce_end("mytag", desktop.LONG, False)
    desktop.announce_end("mytag", desktop.LONG, "auto")
    assert commands == []
    desktop.announce_end("mytag", desktop.LONG, True)
    assert [command[0] for command in commands] == ["show"]
    assert "\a" in capsys.readouterr().err


def test_every_script_that_leaves_a_page_opens_it():
    for file in TOOLS:
        source = (PROJECT / "tools" / file).read_text(encoding="utf-8")
        assert ("pages.write" in source) == ("desktop.open_page" in source), file
    assert "desktop.open_page" in Path(PROJECT / "library/training/outputs.py").read_text(encoding="utf-8")
