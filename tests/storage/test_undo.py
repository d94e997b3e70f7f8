"""What a tool changed can be undone: after a kill at any moment, twice in a second, with links and odd names."""

import os
import random
import stat
from pathlib import Path

import pytest

from library.messages import UserError
from library.storage import undo as undo_module
from library.storage.undo import FOLDER, JOURNAL, Backup, undo


def contents(folder):
    """Every file below a folder but the kept ones, and every link with where it leads."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if FOLDER not in path.parts and (path.is_symlink() or path.is_file())
    }


def kept(folder):
    return sorted(path.name for path in (folder / FOLDER).glob("*")) if (folder / FOLDER).exists() else []


@pytest.fixture
def folder(tmp_path):
    """A set with names in several scripts, a sub-folder, an empty file and one that is no text."""
    folder = tmp_path / "图片 集"
    (folder / "手机").mkdir(parents=True)
    names = ("a.txt", "照片（1）.txt", "naïve café.txt", "ミク[1].txt", "手机/IMG 0001.caption", f"{'长' * 83}.txt")
    for number, name in enumerate(names):
        (folder / name).write_bytes(f"tag {number}".encode("gb18030") + b"\xff" * number)
    (folder / "empty.txt").write_bytes(b"")
    return folder


def change_all(folder):
    with Backup(folder, "edit_tags") as changes:
        for number, name in enumerate(contents(folder)):
            changes.write(folder / name, f"新 {number}".encode())
        changes.write(folder / "手机" / "new.txt", b"new")
    return changes


def test_undo_restores_every_byte_and_removes_what_was_new(folder):
    before = contents(folder)
    changes = change_all(folder)
    changed = contents(folder)
    assert changes.count == len(before) + 1
    assert changed["手机/new.txt"] == b"new"
    assert not set(changed.values()) & set(before.values())
    undone = undo(folder)
    assert contents(folder) == before
    assert len(undone.restored) == len(before) + 1
    assert undone.left == []
    assert kept(folder) == [f"{undone.name} undone"]
    assert undo(folder) == ("", [], [])  # nothing more


def test_nothing_is_kept_where_nothing_changes(folder):
    with Backup(folder, "edit_tags") as changes:
        for name, data in contents(folder).items():
            changes.write(folder / name, data)
    assert changes.count == 0
    assert kept(folder) == []


def test_runs_within_one_second_are_undone_the_newest_first(folder):
    """Also twelve of them, whose numbers would not sort as text, and of tools whose names sort otherwise."""
    states = []
    for number in range(12):
        states.append(contents(folder))
        with Backup(folder, random.Random(number).choice(["a", "z"])) as changes:
            changes.write(folder / "a.txt", str(number).encode())
            if number == 5:
                changes.write(folder / "five.txt", b"5")
    while states:
        undo(folder)
        assert contents(folder) == states.pop()


def test_runs_are_undone_in_their_order_where_the_clock_was_set_back(folder):
    change_all(folder)
    (made,) = (folder / FOLDER).iterdir()
    made.rename(made.with_name("2999-01-01 00.00.00 edit_tags"))
    changed = contents(folder)
    with Backup(folder, "edit_tags") as changes:
        changes.write(folder / "a.txt", b"later")
    assert undo(folder).name == "2999-01-01 00.00.01 edit_tags"
    assert contents(folder) == changed


class Killed(BaseException):
    """As the system's kill: nothing may clean up behind it."""


@pytest.mark.parametrize("call", range(40))
def test_a_run_killed_at_any_moment_leaves_whole_files_and_can_be_undone(folder, monkeypatch, call):
    """The run ends at its n-th step that touches the disk. Until then every file is its old or its new self."""
    before = contents(folder)
    seen = [0]

    def dying(real):
        def step(*arguments, **named):
            seen[0] += 1
            if seen[0] > call:
                raise Killed
            return real(*arguments, **named)

        return step

    for owner, name in (
        (Path, "write_bytes"), (undo_module.os, "replace"), (Path, "mkdir"), (Path, "unlink"),
        (undo_module.os, "fsync"), (undo_module.shutil, "copymode"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    with pytest.raises(Killed):
        change_all(folder)
    monkeypatch.undo()
    for name, data in contents(folder).items():
        if not name.endswith(".tmp"):
            assert data.startswith("新".encode()) or data == b"new" or data == before[name]
    undo(folder)
    left = {name: data for name, data in contents(folder).items() if not name.endswith(".tmp")}
    assert left == before


def test_ctrl_c_leaves_no_half_file(folder, monkeypatch):
    before = contents(folder)
    monkeypatch.setattr(undo_module.shutil, "copymode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        change_all(folder)
    assert contents(folder) == before


def test_a_journal_that_ends_in_half_a_line_is_undone(folder):
    """The power went while the line was written: that file had not been changed yet."""
    before = contents(folder)
    with Backup(folder, "edit_tags") as changes:
        changes.write(folder / "a.txt", b"changed")
    (journal,) = (folder / FOLDER).glob(f"*/{JOURNAL}")
    with open(journal, "ab") as file:
        file.write(b'{"path": "\\u7167\\u7247')
    assert undo(folder).restored == [folder / "a.txt"]
    assert contents(folder) == before


def test_what_was_changed_since_is_left_and_named(folder):
    before = contents(folder)
    change_all(folder)
    (folder / "a.txt").write_bytes(b"by hand")
    (folder / "empty.txt").unlink()
    (folder / "手机" / "new.txt").write_bytes(b"kept by hand")
    undone = undo(folder)
    assert set(undone.left) == {folder / "a.txt", folder / "empty.txt", folder / "手机" / "new.txt"}
    after = contents(folder)
    assert after.pop("手机/new.txt") == b"kept by hand"
    assert after.pop("a.txt") == b"by hand"
    assert after == {name: data for name, data in before.items() if name not in ("a.txt", "empty.txt")}


def test_an_undo_that_was_killed_goes_on(folder, monkeypatch):
    before = contents(folder)
    change_all(folder)
    calls = []
    real = undo_module._restore

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) > 3:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(undo_module, "_restore", dying)
    with pytest.raises(Killed):
        undo(folder)
    monkeypatch.undo()
    undone = undo(folder)
    assert len(undone.restored) == len(before) + 1 - 3
    assert undone.left == []
    assert contents(folder) == before


def test_a_link_becomes_a_file_and_a_link_again(folder, tmp_path):
    """What it leads to may belong to another set."""
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_bytes(b"theirs")
    (folder / "link.txt").symlink_to(elsewhere)
    (folder / "nowhere.txt").symlink_to(tmp_path / "gone.txt")
    before = contents(folder)
    with Backup(folder, "edit_tags") as changes:
        changes.write(folder / "link.txt", b"ours")
        changes.write(folder / "nowhere.txt", b"ours")
    assert elsewhere.read_bytes() == b"theirs"
    assert contents(folder)["link.txt"] == contents(folder)["nowhere.txt"] == b"ours"
    assert len(undo(folder).restored) == 2
    assert contents(folder) == before


def test_a_hard_link_elsewhere_keeps_what_it_had(folder, tmp_path):
    """sort_into_folders makes such: the set it was made from must not change with it."""
    os.link(folder / "a.txt", tmp_path / "a.txt")
    before = (tmp_path / "a.txt").read_bytes()
    change_all(folder)
    assert (tmp_path / "a.txt").read_bytes() == before


def test_a_folder_reached_by_a_link_may_be_undone_by_either_path_and_after_moving(folder, tmp_path):
    before = contents(folder)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    link = tmp_path / "deep" / "er" / "link"
    link.symlink_to(folder)
    with Backup(link, "edit_tags") as changes:
        changes.write(link / "手机" / "IMG 0001.caption", b"changed")
    moved = folder.rename(tmp_path / "moved")
    assert len(undo(moved).restored) == 1
    assert contents(moved) == before


def test_a_file_keeps_its_permissions(folder):
    (folder / "a.txt").chmod(0o640)
    change_all(folder)
    assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o640
    undo(folder)
    assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o640


def test_where_nothing_may_be_kept_nothing_is_changed(folder):
    """A folder that cannot be written to: here its place is taken by a file, which stops the superuser too."""
    (folder / FOLDER).write_bytes(b"")
    before = contents(folder)
    with pytest.raises(UserError, match=r"a\.txt cannot be changed .*can be undone"), Backup(folder, "x") as changes:
        changes.write(folder / "a.txt", b"changed")
    assert contents(folder) == before


def test_a_folder_in_a_files_place_is_told(folder):
    (folder / "folder.txt").mkdir()
    with pytest.raises(UserError, match=r"folder\.txt cannot be changed"), Backup(folder, "x") as changes:
        changes.write(folder / "folder.txt", b"changed")


def test_a_copy_that_is_gone_is_named_and_the_others_are_restored(folder):
    before = contents(folder)
    change_all(folder)
    (made,) = (folder / FOLDER).iterdir()
    copy = next(made.glob("*.txt"))
    data = copy.read_bytes()
    copy.unlink()
    with pytest.raises(UserError, match="Not everything could be undone") as caught:
        undo(folder)
    assert len(caught.value.problems) == 1
    copy.write_bytes(data)
    assert len(undo(folder).restored) == 1
    assert contents(folder) == before


def test_a_journal_that_was_written_on_windows_is_undone_elsewhere(folder):
    before = contents(folder)
    changes = change_all(folder)
    (journal,) = folder.glob(f"{FOLDER}/*/{JOURNAL}")
    journal.write_text(journal.read_text(encoding="utf-8").replace("/", "\\\\"), encoding="utf-8")  # as JSON has it
    assert len(undo(folder).restored) == changes.count
    assert contents(folder) == before


def test_where_nothing_could_be_undone_it_can_be_tried_again(folder):
    with Backup(folder, "edit_tags") as changes:
        changes.write(folder / "a.txt", b"new")
    (folder / "a.txt").write_bytes(b"by hand")
    for _ in range(2):
        undone = undo(folder)
        assert (undone.restored, [path.name for path in undone.left]) == ([], ["a.txt"])
