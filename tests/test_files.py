"""Files are written whole or not at all, locked by one, and never take another's name."""

import hashlib
import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from library import files
from tests.held_files import sharing_violation

FULL = OSError(28, "No space left on device")


def fails(error):
    def call(*_, **__):
        raise error

    return call


@pytest.fixture
def path(tmp_path):
    path = tmp_path / f"{'图' * 80}.txt"  # as long as names can be: 244 bytes of 255
    path.write_bytes(b"old")
    return path


# ---- Written whole or not at all ----


def test_the_new_file_takes_the_place_of_the_old_one_at_the_end(path):
    with files.replacing(path) as half:
        half.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["body", "fsync", "replace"])
def test_after_an_exception_the_old_file_is_there_and_nothing_else(path, monkeypatch, where, error):
    if where != "body":
        monkeypatch.setattr(files.os, where, fails(error))

    def write():
        with files.replacing(path, is_synced=True) as half:
            half.write_bytes(b"new")
            if where == "body":
                raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("is_synced", [True, False])
def test_it_is_on_the_disk_before_it_gets_the_name(path, monkeypatch, is_synced):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *a, name=name, real=real: order.append(name) or real(*a))
    with files.replacing(path, is_synced=is_synced) as half:
        half.write_bytes(b"new")
    assert order == ["fsync"] * is_synced + ["replace"]


def test_what_a_kill_left_of_a_part_is_no_part_of_the_next(tmp_path):
    folder = tmp_path / "model"
    half = files.part_of(folder)
    assert half.name == "model.part"
    half.mkdir()
    (half / "left").touch()
    with files.replacing(folder, half):
        half.mkdir()
        (half / "new").touch()
    assert [entry.relative_to(tmp_path).as_posix() for entry in sorted(tmp_path.rglob("*"))] == ["model", "model/new"]


def test_threads_write_one_file_without_mixing(tmp_path):
    barrier = threading.Barrier(8, timeout=5)  # one that dies stops the others

    def write(number):
        for _ in range(5):
            barrier.wait()
            files.write(tmp_path / "new" / "a.txt", bytes([number]) * 10_000)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    data = (tmp_path / "new" / "a.txt").read_bytes()
    assert len(data) == 10_000
    assert len(set(data)) == 1
    assert os.listdir(tmp_path / "new") == ["a.txt"]


def test_a_file_that_another_program_reads_is_replaced_when_it_is_done(path, monkeypatch):
    real, refusals = os.replace, [sharing_violation(path)] * 3

    def busy(source, target):
        if refusals:
            raise refusals.pop()
        real(source, target)

    monkeypatch.setattr(files.os, "replace", busy)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("is_held", [True, False])
def test_a_file_that_stays_held_is_told_after_two_seconds_and_a_protected_one_at_once(path, monkeypatch, is_held):
    waits = []
    error = sharing_violation(path) if is_held else PermissionError(13, "Permission denied")
    monkeypatch.setattr(files.os, "replace", fails(error))
    monkeypatch.setattr(files.time, "sleep", waits.append)
    with pytest.raises(PermissionError):
        files.write(path, b"new")
    assert sum(waits) == pytest.approx(2 if is_held else 0)  # seconds
    assert path.read_bytes() == b"old"


def test_a_drive_that_numbers_its_files_anew_at_each_look_is_locked_all_the_same(path, monkeypatch):
    monkeypatch.setattr(files.os.path, "samestat", lambda *two: False)
    held = files.lock(path.with_suffix(".lock"))
    assert held is not None
    held.release()


def test_a_disk_that_gives_back_something_else_is_noticed(path, monkeypatch):
    assert files.write_verified(path, b"new") == hashlib.sha256(b"new").digest()
    real = os.fsync

    def lose(handle):
        real(handle)
        path.write_bytes(b"nex")

    monkeypatch.setattr(files.os, "fsync", lose)
    with pytest.raises(OSError, match="read back differs"):
        files.write_verified(path, b"new")


def test_removing_follows_no_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("link", "missing"):
        files.remove(tmp_path / name)
    assert os.listdir(tmp_path / "folder") == ["file"]
    files.remove(tmp_path / "folder")
    assert os.listdir(tmp_path) == []


# ---- Told apart ----


def test_a_file_is_told_by_its_bytes(tmp_path):
    data = bytes(range(256)) * 100
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(data) == files.sha256_of_file(tmp_path / "a") == hashlib.sha256(data).digest()
    assert files.sha256_of_file(tmp_path / "a", 1000) == hashlib.sha256(data[1000:]).digest()


def test_a_seed_depends_on_the_text_alone():
    assert files.seed_from("7 lora_unet_a") == int(hashlib.sha256(b"7 lora_unet_a").hexdigest()[:16], 16) // 2
    assert files.seed_from("图") < 2**63


# ---- Locks ----


def test_one_holds_a_lock_and_who_does_is_told(tmp_path):
    path = tmp_path / "a.lock"
    lock = files.lock(path)
    assert files.lock(path) is None
    assert files.lock_holder(path).startswith(f"process {os.getpid()} on {socket.gethostname()} since 2")
    lock.release()
    assert os.listdir(tmp_path) == []
    files.lock(path).release()


def test_a_lock_file_that_is_left_holds_nobody_up(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text("no JSON, and longer than what comes in its place" * 10)
    assert files.lock_holder(path) == "another process"
    lock = files.lock(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_lock_whose_file_its_holder_removes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Else two would hold a lock of one name: one on the removed file, one on the file that is made next."""
    path, real = tmp_path / "a.lock", files.try_lock

    def removed_before(handle):
        monkeypatch.undo()
        path.unlink()
        return real(handle)

    monkeypatch.setattr(files, "try_lock", removed_before)
    lock = files.lock(path)
    assert os.path.samestat(os.stat(path), os.fstat(lock.handle))
    assert files.lock(path) is None
    lock.release()


def test_a_disk_without_locks_guards_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files.fcntl, "flock", fails(OSError(95, "Operation not supported")))
    with open(tmp_path / "a", "wb") as file, pytest.raises(OSError, match="not supported"):
        files.try_lock(file.fileno())
    first, second = files.lock(tmp_path / "a.lock"), files.lock(tmp_path / "a.lock")
    for lock in (first, second):
        lock.release()


# ---- Names that are free ----


def test_a_free_name_counts_on(tmp_path):
    assert files.free_path(tmp_path / "a.b.txt").name == "a.b.txt"
    for name in ("a.b.txt", "a.b-2.txt", "a.b-4.txt"):
        (tmp_path / name).touch()
    assert files.free_path(tmp_path / "a.b.txt").name == "a.b-3.txt"
    names = files.numbered("a.b")
    assert [next(names) for _ in range(3)] == ["a.b", "a.b-2", "a.b-3"]
