"""What is said through the log, as the terminal shows it."""

import io
import sys

import pytest
from tqdm import tqdm

from library.messages import Note, is_terminal, log, prepare_streams, set_language


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language("en")


def test_lines_and_notes_go_to_stdout_and_errors_to_stderr(capsys):
    log.info("100% of 3 pictures")
    log.warning(Note("one is small", "red"))
    log.error(ValueError("no picture found"))
    said = capsys.readouterr()
    assert said.out == "100% of 3 pictures\nnote: one is small\n"
    assert said.err == "no picture found\n"


def test_a_note_is_marked_in_the_users_language(capsys):
    set_language("zh")
    log.warning("图片太小")
    assert capsys.readouterr().out == "注意：图片太小\n"


def test_a_line_stands_above_a_progress_bar(capsys):
    with tqdm(total=2, file=sys.stdout, ncols=40):
        log.info("saved")
    before, after = capsys.readouterr().out.split("saved\n")
    assert "0/2" in before
    assert before.endswith(" \r")  # wiped
    assert "0/2" in after  # drawn again


class OfIdle:
    """IDLE's window: it says that it is a terminal, and has no file."""

    def write(self, text):
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True

    def fileno(self):
        raise io.UnsupportedOperation


def test_without_a_window_or_in_idles_every_line_passes(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", OfIdle())
    prepare_streams()
    log.info("nobody reads this 图")
    log.error("图")
    assert not is_terminal(sys.stderr)
