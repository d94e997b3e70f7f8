"""Who starts a script with the wrong Python reads one sentence in both languages, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from library import start

PROJECT = Path(__file__).resolve().parent.parent


def ended(code: str) -> str:
    """What a program says on its way out, after importing ours."""
    program = f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n{code}"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    return done.stderr


def test_a_package_that_is_missing_is_named_with_the_python_that_lacks_it():
    """-S: without the virtual environment's packages, as a double click has it."""
    said = ended("import library\nimport PIL")
    assert said == start.missing("PIL") + "\n"
    assert sys.executable in said
    assert "pip install -r requirements.txt" in said
    assert "没有安装 PIL" in said


@pytest.mark.parametrize("code", ["import library.nowhere", "import library\n1 / 0"])
def test_a_mistake_of_ours_keeps_its_traceback(code):
    assert "Traceback" in ended(code)


def test_a_python_that_is_too_old_is_told_before_anything_else():
    said = ended("sys.version_info = (3, 10, 2)\nimport library")
    assert "needs Python 3.11 or newer" in said
    assert "是 3.10" in said
    assert "Traceback" not in said
