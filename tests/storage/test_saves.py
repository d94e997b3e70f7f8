"""What a run saves: names, which of them go, and which name is free."""

import os

import pytest

from library import files
from library.storage import saves, training_state
from library.storage.lora_file import save_adapter
from library.storage.saves import file_name, free_name, is_taken
from tests.storage.written import lora, state


def test_names_are_those_of_sd_scripts():
    assert file_name("girl", "safetensors") == "girl.safetensors"
    assert file_name("girl", "safetensors", epoch=4) == "girl-000004.safetensors"
    assert file_name("girl", "ckpt", step=500) == "girl-step00000500.ckpt"
    assert saves.state_name("girl", epoch=4) == "girl-000004-state"
    assert saves.state_name("girl") == "girl-state"


@pytest.mark.parametrize(
    "entry",
    ["girl.safetensors", "girl-000004.safetensors", "girl-step00000500.pt", "girl-state", "girl-000004-state",
     "girl.jsonl", "Girl.safetensors", "girl-previews", "girl.safetensors.part"],
)  # fmt: skip
def test_any_file_of_an_earlier_run_makes_its_name_taken(tmp_path, entry):
    assert free_name(tmp_path, "girl") == "girl"
    (tmp_path / entry).touch()
    assert free_name(tmp_path, "girl") == "girl-2"


def test_only_that_name_is_taken(tmp_path):
    for entry in ["girl2.safetensors", "girl-2.safetensors", "girl-2-000004.safetensors", "my girl.safetensors"]:
        (tmp_path / entry).touch()
    assert not is_taken(tmp_path, "girl")
    assert free_name(tmp_path / "not made yet", "girl") == "girl"
    (tmp_path / "girl.safetensors").touch()
    assert free_name(tmp_path, "girl") == "girl-3"
    assert free_name(tmp_path, "g.rl") == "g.rl"  # a name, not a pattern


def test_expired_saves_are_those_of_sd_scripts():
    assert [saves.expired_epoch(e, 2, 3) for e in (2, 4, 6, 8, 10)] == [None, None, None, 2, 4]
    assert saves.expired_epoch(8, 2, None) is None
    assert [saves.expired_step(s, 100, 250) for s in (100, 200, 300, 400, 500)] == [None, None, None, 100, 200]
    assert saves.expired_step(400, 100, 200) == 100  # that of 200 steps before is not older than 200
    assert saves.expired_step(150, 100, 1) is None  # a save that was asked for in between removes nothing
    assert saves.expired_step(400, 100, None) is None


def test_only_our_own_saves_are_removed(tmp_path):
    save_adapter(tmp_path / "a.safetensors", lora())
    training_state.save_state(tmp_path / "a-state", state())
    (tmp_path / "pictures").mkdir()
    for name in ["a.safetensors", "a-state", "pictures", "missing"]:
        saves.remove_save(tmp_path / name)
    assert os.listdir(tmp_path) == ["pictures"]


def test_a_save_that_another_program_holds_is_left_whole_or_gone_another_time(tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    save_adapter(tmp_path / "a.safetensors", lora())
    with open(tmp_path / "a.safetensors", "rb"):  # as a web UI does: tests/held_files.py
        assert not saves.remove_save(tmp_path / "a.safetensors")
    assert saves.remove_save(tmp_path / "a.safetensors")
    assert saves.remove_save(tmp_path / "a.safetensors")  # nothing is there


def test_room_is_made_by_the_oldest_epoch_but_the_last_good_file_stays(tmp_path):
    for epoch in (1, 2, 3):
        save_adapter(tmp_path / file_name("girl", "safetensors", epoch=epoch), lora())
    training_state.save_state(tmp_path / saves.state_name("girl", epoch=1), state())
    save_adapter(tmp_path / "girl-2-000001.safetensors", lora())
    assert saves.remove_oldest_epoch(tmp_path, "girl", keep=2)
    assert not saves.remove_oldest_epoch(tmp_path, "girl", keep=2)
    left = ["girl-000002.safetensors", "girl-000003.safetensors", "girl-2-000001.safetensors"]
    assert sorted(os.listdir(tmp_path)) == left
    assert saves.remove_oldest_epoch(tmp_path, "girl", keep=0)
    assert not saves.remove_oldest_epoch(tmp_path, "girl", keep=0)
