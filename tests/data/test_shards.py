"""Rows survive whatever happens to their process and their files, and a wrong one is never handed out."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from library.data import shards
from library.data.shards import HEADER, RECORD, Lost, Memory, Shards
from library.messages import UserError

ROOT = Path(__file__).parents[2]
SHAPE = (2, 3)
BYTES = 12  # of a row


def key(number):
    return hashlib.sha256(str(number).encode()).digest()


def row(number, shape=SHAPE):
    """Follows from the number, so that any row can be recognised."""
    return np.random.default_rng(number).standard_normal(shape).astype(np.float16)


def batch(*numbers, shape=SHAPE):
    return [key(number) for number in numbers], [np.stack([row(number, shape) for number in numbers])]


def append(store, *numbers, shape=SHAPE):
    assert list(store.append([batch(*numbers, shape=shape)])) == [len(numbers)]


def kept(store, numbers):
    """Those of the numbers that are there; each must be what it was."""
    found = store.find([key(number) for number in numbers])
    here = [number for number, at in zip(numbers, found, strict=True) if at >= 0]
    if here:
        (rows,) = store.read(found[found >= 0].tolist())
        assert np.array_equal(rows, batch(*here)[1][0])
    return here


def files(folder, ending):
    return sorted(folder.glob(f"*.{ending}"))


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return Shards(tmp_path / "cache", "a") if request.param == "disk" else Memory()


def test_rows_come_back_under_their_keys(store):
    assert store.find([key(1)]).tolist() == [-1]
    assert list(store.append([batch(*range(500)), batch(*range(500, 2000))])) == [500, 1500]
    asked = np.random.default_rng(0).permutation(3000).tolist()
    assert kept(store, asked) == [number for number in asked if number < 2000]


def test_rows_have_parts_and_shapes_do_not_mix(store):
    """A caption has states and perhaps a pooled vector."""
    store_parts = [np.stack([row(1, (7, 4)), row(2, (7, 4))]), np.stack([row(3, (5,)), row(4, (5,))])]
    list(store.append([([key(1), key(2)], store_parts), batch(3, 4)]))
    states, pooled = store.read(store.find([key(2), key(1)]).tolist())
    assert np.array_equal(states, store_parts[0][::-1])
    assert np.array_equal(pooled, store_parts[1][::-1])
    assert kept(store, [3, 4]) == [3, 4]


def test_keys_that_begin_alike_are_told_apart(tmp_path):
    """Numbers are found by the first eighth of the key; a row of another key must not be taken for it."""
    store = Shards(tmp_path, "a")
    alike = [b"12345678" + bytes(23) + bytes([last]) for last in (1, 2)]
    list(store.append([(alike[:1], [row(1)[None]])]))
    assert store.find(alike).tolist() == [0, -1]


def test_who_has_another_group_does_not_see_them(tmp_path):
    append(Shards(tmp_path, "a"), 1)
    assert Shards(tmp_path, "b").find([key(1)]).tolist() == [-1]


def test_the_next_run_appends_to_the_same_file_until_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * BYTES)
    for number in range(0, 10, 2):
        append(Shards(tmp_path, "a"), number, number + 1)
    assert sorted(file.stat().st_size for file in files(tmp_path, "rows")) == [2 * BYTES, 4 * BYTES, 4 * BYTES]
    assert kept(Shards(tmp_path, "a"), range(10)) == list(range(10))
    list(Shards(tmp_path, "a").append([batch(number) for number in range(10, 16)]))  # also within one run
    assert max(file.stat().st_size for file in files(tmp_path, "rows")) == 4 * BYTES


def test_few_files_are_open_however_many_there_are(tmp_path, monkeypatch):
    """A process may have 256 to 1,024 of them, and ten million images fill thousands."""
    monkeypatch.setattr(shards, "SHARD_BYTES", BYTES)
    monkeypatch.setattr(shards, "FILES_OPEN", 3)
    append(Shards(tmp_path, "a"), 0)
    list(Shards(tmp_path, "a").append([batch(number) for number in range(1, 9)]))
    for index in files(tmp_path, "index")[:5]:
        with open(index, "r+b") as header:  # never closed in good order: every row is compared at the start
            header.write(HEADER.pack(shards.MAGIC, 0, 0, 0, 0))
    store = Shards(tmp_path, "a")
    assert sum(shard.is_open for shard in store._shards) == 0
    for number in np.random.default_rng(0).integers(0, 9, 50).tolist():
        assert kept(store, [number]) == [number]
        assert sum(shard.is_open for shard in store._shards) <= 3


def test_whoever_encodes_need_not_wait_for_the_disk(tmp_path, monkeypatch):
    second_is_made, slow = threading.Event(), shards._Tail.append
    in_time = []

    def write(tail, keys, rows):
        in_time.append(second_is_made.wait(10))
        slow(tail, keys, rows)

    def batches():
        yield batch(1)
        second_is_made.set()
        yield batch(2)

    monkeypatch.setattr(shards._Tail, "append", write)
    assert list(Shards(tmp_path, "a").append(batches())) == [1, 1]
    assert in_time == [True, True]


def test_what_was_made_before_a_failure_is_kept(tmp_path):
    def batches():
        yield batch(1)
        yield batch(2)
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        list(Shards(tmp_path, "a").append(batches()))
    assert kept(Shards(tmp_path, "a"), [1, 2, 3]) == [1, 2]


# ---- killed, torn, damaged ----

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.data.test_shards import Shards, batch
first, count, only = (int(number) for number in sys.argv[3:])
numbers = range(first, first + count)
waits = True
for done in Shards(Path(sys.argv[2]), "a").append(batch(*range(at, at + only)) for at in numbers[::only]):
    print(done, flush=True)
    if waits:
        sys.stdin.readline()
        waits = False
"""


def writer(folder, first, count, batch_size):
    """A process that appends rows and prints a line for each batch that it says is kept. After the first it waits."""
    command = [sys.executable, "-c", WRITER, str(ROOT), str(folder), *map(str, (first, count, batch_size))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_while_it_appends_every_finished_row_is_found_and_no_wrong_one(tmp_path):
    acknowledged = []
    for start in (0, 10**6, 2 * 10**6):
        process = writer(tmp_path, start, 10**6, 3)
        print(file=process.stdin, flush=True)
        lines = [process.stdout.readline() for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        acknowledged += range(start, start + 3 * len(lines))
        perhaps = range(start + 3 * len(lines), start + 3 * len(lines) + 60)  # `kept` compares those that are there
        assert kept(Shards(tmp_path, "a"), [*acknowledged, *perhaps])[: len(acknowledged)] == acknowledged
    store = Shards(tmp_path, "a")
    append(store, 10**9)
    assert kept(store, [*acknowledged, 10**9]) == [*acknowledged, 10**9]
    assert len(files(tmp_path, "rows")) == 1


def test_cut_off_at_any_byte_finished_rows_are_found_and_the_next_run_goes_on(tmp_path):
    """What SIGKILL can leave of a write is its beginning; rows are written first, their records afterwards."""
    append(Shards(tmp_path / "whole", "a"), 1, 2)
    (rows,), (index,) = files(tmp_path / "whole", "rows"), files(tmp_path / "whole", "index")
    data, records = rows.read_bytes(), index.read_bytes()
    begun = HEADER.pack(shards.MAGIC, 0, 0, 0, 0) + records[HEADER.size :]  # the header is only filled in at the end
    states = [(cut, HEADER.size + RECORD.itemsize, [1]) for cut in range(BYTES, len(data))]
    states += [(len(data), cut, [1]) for cut in range(HEADER.size + RECORD.itemsize, len(begun))]
    states += [(0, cut, []) for cut in range(HEADER.size + 1)]
    states += [(len(data), len(begun), [1, 2])]
    for number, (rows_end, index_end, expected) in enumerate(states):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / rows.name).write_bytes(data[:rows_end])
        (folder / index.name).write_bytes(begun[:index_end])
        store = Shards(folder, "a")
        assert kept(store, [1, 2]) == expected
        assert not store.damaged
        append(store, 3, 4)
        assert kept(store, [1, 2, 3, 4]) == [*expected, 3, 4]
        assert kept(Shards(folder, "a"), [1, 2, 3, 4]) == [*expected, 3, 4]


@pytest.mark.parametrize(("write_count", "expected"), [(0, [1]), (1, [1]), (2, [1, 2])])
def test_dying_between_two_writes_leaves_no_record_without_its_row(tmp_path, monkeypatch, write_count, expected):
    append(Shards(tmp_path, "a"), 1)
    done, really = [], shards._write

    def die(file, data):
        if len(done) == write_count:
            raise OSError("dead")
        done.append(data)
        really(file, data)

    monkeypatch.setattr(shards, "_write", die)
    with pytest.raises(UserError, match="dead"):
        append(Shards(tmp_path, "a"), 2)
    monkeypatch.undo()
    store = Shards(tmp_path, "a")
    assert not store.damaged
    assert kept(store, [1, 2]) == expected


def test_after_a_power_cut_records_without_their_rows_name_nothing(tmp_path):
    append(Shards(tmp_path, "a"), 1, 2, 3)
    (rows,), (index,) = files(tmp_path, "rows"), files(tmp_path, "index")
    rows.write_bytes(rows.read_bytes()[:BYTES] + bytes(BYTES))
    index.write_bytes(HEADER.pack(shards.MAGIC, 0, 0, 0, 0) + index.read_bytes()[HEADER.size :])
    store = Shards(tmp_path, "a")
    assert store.damaged == {key(2), key(3)}
    assert kept(store, [1, 2, 3]) == [1]
    append(store, 2)
    assert kept(store, [1, 2, 3]) == [1, 2]
    assert not Shards(tmp_path, "a").damaged  # they were struck out


@pytest.mark.parametrize("place", range(RECORD.itemsize))
def test_a_damaged_record_names_no_row(tmp_path, place):
    append(Shards(tmp_path, "a"), 1, 2)
    (index,) = files(tmp_path, "index")
    data = bytearray(index.read_bytes())
    data[HEADER.size + RECORD.itemsize + place] ^= 4
    index.write_bytes(data)
    store = Shards(tmp_path, "a")
    assert kept(store, [1, 2]) == [1]
    append(store, 2)
    assert kept(Shards(tmp_path, "a"), [1, 2]) == [1, 2]


def test_an_index_of_other_rows_names_none_of_these(tmp_path):
    """As a tool may leave it that copies a folder while it is written to."""
    for number, folder in enumerate(("one", "two")):
        append(Shards(tmp_path / folder, "a"), 10 * number, 10 * number + 1)
    (one,), (two,) = files(tmp_path / "one", "index"), files(tmp_path / "two", "index")
    shutil.copy(two, one)
    store = Shards(tmp_path / "one", "a")
    assert kept(store, [0, 1, 10, 11]) == []
    append(store, 10)
    assert kept(Shards(tmp_path / "one", "a"), [0, 1, 10, 11]) == [10]


def test_a_row_that_decays_unnoticed_is_noticed_when_it_is_read(tmp_path):
    append(Shards(tmp_path, "a"), 1, 2)
    (rows,), (index,) = files(tmp_path, "rows"), files(tmp_path, "index")
    data = bytearray(rows.read_bytes())
    data[-1] ^= 1
    rows.write_bytes(data)
    with open(index, "r+b") as file:  # nobody wrote, so size and dates still agree
        file.write(shards._header(rows))
    store = Shards(tmp_path, "a")
    assert not store.damaged
    found = store.find([key(1), key(2)]).tolist()
    with pytest.raises(Lost) as lost:
        store.read(found)
    assert lost.value.at == 1
    assert np.array_equal(store.read(found[:1])[0][0], row(1))
    assert Shards(tmp_path, "a").damaged == {key(2)}


def test_files_that_are_no_shards_are_left_alone(tmp_path):
    for name in ("a.2x3.x.index", "a.index", "a.2xb.c.index"):
        (tmp_path / name).write_bytes(b"something else" * 10)
    store = Shards(tmp_path, "a")
    append(store, 1)
    assert kept(store, [1]) == [1]
    assert (tmp_path / "a.2x3.x.index").read_bytes() == b"something else" * 10


# ---- several processes ----


def test_two_processes_at_once_lose_nothing_of_each_other(tmp_path):
    processes = [writer(tmp_path, first, 3000, 5) for first in (0, 1500)]  # half of it both
    assert [process.stdout.readline() for process in processes] == ["5\n", "5\n"]  # both have begun
    for process in processes:
        print(file=process.stdin, flush=True)
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(files(tmp_path, "rows")) == 2
    assert kept(Shards(tmp_path, "a"), range(4500)) == list(range(4500))


def test_who_finds_a_shard_being_written_begins_another_and_reads_both(tmp_path):
    first, second = Shards(tmp_path, "a").append(batch(number) for number in range(9)), Shards(tmp_path, "a")
    next(first)
    append(second, 20)
    assert kept(second, [0, 20]) == [0, 20]
    list(first)
    assert len(files(tmp_path, "rows")) == 2
    assert kept(Shards(tmp_path, "a"), [*range(9), 20]) == [*range(9), 20]


# ---- age ----


def grow_old(folder, days):
    for index in files(folder, "index"):
        os.utime(index, (time.time() - days * 86400,) * 2)


@pytest.mark.parametrize(("days", "is_left"), [(29, True), (31, False)])
def test_what_nobody_asked_for_in_thirty_days_is_deleted(tmp_path, days, is_left):
    append(Shards(tmp_path, "old"), 1)
    grow_old(tmp_path, days)
    store = Shards(tmp_path, "new")
    append(store, 2)
    store.sweep()
    assert (kept(Shards(tmp_path, "old"), [1]) == [1]) == is_left
    assert len(files(tmp_path, "rows")) == len(files(tmp_path, "index")) == 1 + is_left
    assert kept(store, [2]) == [2]


def test_asking_for_one_row_keeps_its_shard(tmp_path):
    append(Shards(tmp_path, "a"), 1, 2)
    grow_old(tmp_path, 1000)
    store = Shards(tmp_path, "a")
    store.find([key(2)])
    store.sweep()
    assert kept(Shards(tmp_path, "a"), [1, 2]) == [1, 2]


def test_a_shard_that_is_written_is_not_deleted_however_old(tmp_path):
    writing = Shards(tmp_path, "a").append(batch(number) for number in range(9))
    next(writing)
    grow_old(tmp_path, 1000)
    Shards(tmp_path, "b").sweep()
    list(writing)
    assert kept(Shards(tmp_path, "a"), range(9)) == list(range(9))


def test_rows_whose_index_is_gone_are_deleted(tmp_path):
    append(Shards(tmp_path, "a"), 1)
    (index,) = files(tmp_path, "index")
    index.unlink()
    Shards(tmp_path, "a").sweep()
    assert files(tmp_path, "rows") == []


def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path, monkeypatch):
    append(Shards(tmp_path, "a"), 1)

    class Full(shards.FileIO):
        def write(self, data):
            if self.tell() + len(data) > BYTES + 5 and str(self.name).endswith(".rows"):
                if self.tell() >= BYTES + 5:
                    raise OSError(28, "No space left on device")
                data = data[:5]  # a nearly full disk takes a part
            return super().write(data)

    monkeypatch.setattr(shards, "FileIO", Full)
    with pytest.raises(UserError, match=r"No space left on device.*choose another cache_dir"):
        append(Shards(tmp_path, "a"), 2, 3)
    monkeypatch.undo()
    assert kept(Shards(tmp_path, "a"), [1, 2, 3]) == [1]
