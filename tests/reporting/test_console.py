"""The terminal shows what the options say, a file gets the same lines, and afterwards all is as before."""

import dataclasses
import io
import sys
from contextlib import suppress

import pytest

from library.messages import TERMINAL, UserError, log, set_language
from library.options.training import Config
from library.reporting.console import as_asked, progress_stream

LINES = ["device cpu", "note: 3 images are small", "注意：图片太小", "step 1/4"]


class Terminal(io.StringIO):
    def fileno(self):
        return 1

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language("en")


def config(**options):
    return dataclasses.replace(Config(), **options)


def speak():
    """Say LINES, and an error."""
    log.info("device cpu")
    log.warning("3 images are small")
    set_language("zh")
    log.warning("图片太小")
    log.info("step 1/4")
    log.error("wrong")


@pytest.mark.parametrize(
    ("level", "shown"),
    [("DEBUG", LINES), ("INFO", LINES), ("WARNING", LINES[1:3]), ("ERROR", []), ("CRITICAL", [])],
)
def test_each_level_shows_its_lines_and_errors_always(level, shown, capsys, tmp_path):
    with as_asked(config(console_log_level=level, console_log_file=str(tmp_path / "new" / "log.txt"))):
        speak()
    said = capsys.readouterr()
    assert said.out.splitlines() == shown
    assert said.err == "wrong\n"
    assert (tmp_path / "new" / "log.txt").read_text("utf-8").splitlines() == [*shown, "wrong"]


def test_a_name_that_is_not_utf_8_is_copied_with_a_question_mark(tmp_path):
    with as_asked(config(console_log_file=str(tmp_path / "log.txt"))):
        log.info("2_\udcd2\udcfe: read as GBK")
    assert (tmp_path / "log.txt").read_text("utf-8") == "2_??: read as GBK\n"


def test_afterwards_everything_is_shown_again_and_nothing_is_copied(tmp_path, capsys):
    handlers, level = list(log.handlers), TERMINAL.level
    for text in ("one", "two"):
        with (
            suppress(RuntimeError),
            as_asked(config(console_log_level="WARNING", console_log_file=str(tmp_path / "log"))),
        ):
            log.warning(text)
            raise RuntimeError
    log.info("three")
    assert (log.handlers, TERMINAL.level) == (handlers, level)
    assert (tmp_path / "log").read_text("utf-8") == "note: one\nnote: two\n"
    assert capsys.readouterr().out == "note: one\nnote: two\nthree\n"


def test_the_progress_bar_is_for_a_terminal_that_shows_everything(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert progress_stream(config()) is sys.stdout
    assert progress_stream(config(console_log_simple=True)) is None
    assert progress_stream(config(console_log_level="WARNING")) is None
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert progress_stream(config()) is None


def test_the_progress_bar_is_not_in_the_file(monkeypatch, tmp_path):
    from tqdm import tqdm

    monkeypatch.setattr(sys, "stdout", Terminal())
    with as_asked(config(console_log_file=str(tmp_path / "log"))):
        bar = tqdm(total=2, file=progress_stream(config()), mininterval=0)
        bar.update(1)
        log.info("saved")
        bar.close()
    assert "1/2" in sys.stdout.getvalue()
    assert (tmp_path / "log").read_text("utf-8") == "saved\n"


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match="log.txt cannot be written .*Choose another place")
    with refused, as_asked(config(console_log_file=str(tmp_path / "file" / "log.txt"))):
        pass
