"""A name that a run holds is taken by no other."""

import json
import os

import pytest

from library.messages import UserError
from library.storage import run_lock
from library.storage.saves import free_name


def test_a_name_that_a_run_holds_is_taken_by_no_other(tmp_path):
    folder = tmp_path / "not made yet"
    first, second = run_lock.lock_free_name(folder, "girl"), run_lock.lock_free_name(folder, "girl")
    assert (first.name, second.name) == ("girl", "girl-2")
    with pytest.raises(UserError, match=f"girl in .* is being trained right now by process {os.getpid()} on"):
        run_lock.lock_name(folder, "girl")
    first.release()
    going_on = run_lock.lock_name(folder, "girl")
    for held in (going_on, second):
        held.release()
    assert os.listdir(folder) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_of_a_killed_run_holds_nobody_up(tmp_path):
    child = os.fork()
    if not child:
        run_lock.lock_free_name(tmp_path, "girl")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == ["girl.lock"]
    assert free_name(tmp_path, "girl") == "girl"
    held = run_lock.lock_free_name(tmp_path, "girl")
    assert held.name == "girl"
    assert json.loads((tmp_path / "girl.lock").read_text())["pid"] == os.getpid()
    held.release()


def test_a_name_used_by_a_run_that_ended_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Between our look and our lock another run may have locked, written and released."""
    looks = []

    def is_taken_later(folder, name):
        looks.append(name)
        return looks.count("girl") > 1 and name == "girl"

    monkeypatch.setattr(run_lock, "is_taken", is_taken_later)
    assert run_lock.lock_free_name(tmp_path, "girl").name == "girl-2"
    assert os.listdir(tmp_path) == ["girl-2.lock"]
