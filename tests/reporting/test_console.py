"""The terminal shows what the options say, a file gets the same lines, and afterwards all is as before."""

import dataclasses
import io
import sys
from contextlib import suppress

import pytest

from library.messages import UserError
from library.options.training import Config
from library.reporting.console import Console, told

LINES = ["device cpu", "note: 3 pictures are small", "注意：图片太小", "step 1/4"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def config(**options):
    return dataclasses.replace(Config(), **options)


@pytest.mark.parametrize(
    ("level", "shown"),
    [("DEBUG", LINES), ("INFO", LINES), ("WARNING", LINES[1:3]), ("ERROR", []), ("CRITICAL", [])],
)
def test_each_level_shows_its_lines_and_errors_always(level, shown, capsys, tmp_path):
    with told(config(console_log_level=level, console_log_file=str(tmp_path / "new" / "log.txt"))):
        for line in LINES:
            print(line)
        print("wrong", file=sys.stderr)
    said = capsys.readouterr()
    assert said.out.splitlines() == shown
    assert said.err == "wrong\n"
    assert (tmp_path / "new" / "log.txt").read_text("utf-8").splitlines() == [*shown, "wrong"]


def test_as_delivered_nothing_stands_between():
    before = sys.stdout
    with told(config()):
        assert sys.stdout is before


def test_the_file_is_appended_to_and_the_streams_come_back_after_an_error(tmp_path, capsys):
    before = sys.stdout, sys.stderr
    for text in ("one", "two"):
        with suppress(RuntimeError), told(config(console_log_file=str(tmp_path / "log.txt"))):
            print(text, end="")  # a line that is not ended is written all the same
            raise RuntimeError
    assert (sys.stdout, sys.stderr) == before
    assert (tmp_path / "log.txt").read_text("utf-8") == "one\ntwo\n"
    assert capsys.readouterr().out == "one\ntwo\n"


def test_the_progress_bar_is_for_a_terminal_that_shows_everything():
    assert Console(Terminal(), "all").isatty()
    assert not Console(Terminal(), "all", is_simple=True).isatty()
    assert not Console(Terminal(), "notes").isatty()
    assert not Console(io.StringIO(), "all").isatty()


def test_the_progress_bar_is_not_in_the_file():
    from tqdm import tqdm

    screen, copy = Terminal(), io.StringIO()
    console = Console(screen, "all", copy=copy)
    bar = tqdm(total=2, file=console, mininterval=0)
    bar.update(1)
    bar.clear()
    print("saved", file=console)
    bar.close()
    assert "1/2" in screen.getvalue()
    assert copy.getvalue() == "saved\n"


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match="log.txt cannot be written .*Choose another place")
    with refused, told(config(console_log_file=str(tmp_path / "file" / "log.txt"))):
        pass
