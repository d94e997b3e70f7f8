"""Room on the disk is counted before, and a disk that fills up meanwhile ends no run."""

import errno
import os
import subprocess
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from library.messages import UserError, set_language
from library.options.training import Config
from library.storage import disk
from library.storage.disk import MIB, Need
from tests.held_files import sharing_violation


@pytest.fixture
def room(monkeypatch):
    """room(bytes): from now on so much is free."""
    usage = namedtuple("usage", "total used free")

    def room(size):
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage(0, 0, size))

    return room


def sizes(needs):
    return {need.what: need.size for need in needs}


def test_what_a_run_writes_is_counted():
    config = Config(output_dir="out", save_every_n_epochs=1, save_precision="fp16", sample_every_n_epochs=0)
    counts = dict(parameter_count=1000, epoch_count=10, step_count=100)
    assert sizes(disk.needed(config, **counts)) == {
        "LoRA files": 2000 * (9 + 2),  # of 9 epochs, the last one, and one beside while it is written
        "training states": 12000 * 2,
    }
    fewer = Config(
        output_dir="out", save_every_n_epochs=1, save_last_n_epochs=2, save_precision="float", save_state=True
    )
    assert sizes(disk.needed(fewer, **counts, cache_folder=Path("c"), cache_bytes=5)) == {
        "LoRA files": 4000 * (2 + 2),
        "training states": 12000 * (2 + 2),
        "encoded images and captions": 5,
    }
    assert sizes(disk.needed(config, **counts, keeps_best=True))["LoRA files"] == 2000 * (9 + 2 + 1)
    assert "previews" not in sizes(disk.needed(config, **counts, preview_count=2, preview_pixels=100))
    drawn = Config(sample_every_n_epochs=5, save_every_n_epochs=None)
    needs = sizes(disk.needed(drawn, **counts, preview_count=2, preview_pixels=100))
    assert needs["previews"] == 2 * 100 * 3 * (1 + 3)  # once in between; at the end at three strengths


def test_what_does_not_fit_is_told_with_numbers_and_cures(tmp_path, room):
    needs = [Need(tmp_path / "not made yet", "LoRA files", 300 * MIB), Need(tmp_path, "previews", 200 * MIB)]
    room(400 * MIB)
    with pytest.raises(UserError) as error:
        disk.check(needs)
    for part in (
        "500 MiB (LoRA files 300 MiB, previews 200 MiB)",
        "only 400 MiB",
        "Free 100 MiB",
        "save_last_n_epochs",
    ):
        assert part in str(error.value)
    set_language("zh")
    with pytest.raises(UserError, match="请腾出 100 MiB"):
        disk.check(needs)


def test_a_disk_that_will_be_nearly_full_is_told(tmp_path, room):
    needs = [Need(tmp_path, "LoRA files", 300 * MIB)]
    room(600 * MIB)
    assert "up to 300 MiB (LoRA files 300 MiB), and 600 MiB are free" in disk.check(needs)[0]
    room(300 * MIB + disk.MARGIN)
    assert disk.check(needs) == []


def test_free_space_is_that_of_the_disk_under_a_folder_not_made_yet(small_disk):
    assert 0.9 * MIB < disk.free(small_disk / "a" / "b") <= MIB


class Disk:
    """A write that fails so many times."""

    def __init__(self, *errors):
        self.errors, self.lines = list(errors), []

    def write(self):
        if self.errors:
            error = self.errors.pop(0)
            try:
                raise error
            except OSError as cause:
                raise UserError("cannot be written") from cause
        return "written"

    def writing(self, path, **options):
        given = dict(size=MIB, may_free=lambda: False, wait_seconds=0.0) | options
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk.log, "info", self.lines.append)
            return disk.writing(path, self.write, **given)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_write_is_tried_again_until_it_works_and_told_once(tmp_path, number):
    full = Disk(*(OSError(number, os.strerror(number)) for _ in range(3)))
    assert full.writing(tmp_path / "a.safetensors") == "written"
    first, last = full.lines
    assert "a.safetensors" in first
    assert "Ctrl-C to stop" in first
    assert ("disk full" in first) == (number in disk.FULL)
    assert "a.safetensors was written after 0 s" in last


def test_room_is_made_before_anybody_is_asked(tmp_path):
    full, old = Disk(*(OSError(errno.ENOSPC, "full") for _ in range(2))), ["epoch 1", "epoch 2", "epoch 3"]
    assert full.writing(tmp_path / "a", may_free=lambda: bool(old and old.pop(0))) == "written"
    assert old == ["epoch 3"]
    assert full.lines == []
    broken = Disk(OSError(errno.EIO, "broken"))
    broken.writing(tmp_path / "a", may_free=lambda: bool(old and old.pop(0)))
    assert old == ["epoch 3"]  # no file goes for a broken cable


def test_what_is_missing_is_told(tmp_path, room):
    room(10 * MIB)
    full = Disk(OSError(errno.ENOSPC, "full"))
    full.writing(tmp_path / "a", size=30 * MIB)
    assert f"free 20 MiB on {tmp_path}" in full.lines[0]


def test_a_file_that_another_program_holds_is_waited_for_and_named_unless_it_may_be_left_out(tmp_path):
    path = tmp_path / "a.safetensors"
    held = Disk(*[sharing_violation(path)] * 3)
    assert held.writing(path) == "written"
    assert f"{path} is open in another program: a web UI that has loaded it" in held.lines[0]
    with pytest.raises(UserError):
        Disk(sharing_violation(path)).writing(path, waits_for_holder=False)


def test_another_error_is_not_waited_for(tmp_path):
    with pytest.raises(UserError):
        Disk(PermissionError(errno.EACCES, "protected")).writing(tmp_path / "a")
    with pytest.raises(ZeroDivisionError):
        disk.writing(tmp_path, lambda: 1 / 0, size=1, may_free=lambda: False)


def test_the_user_can_stop_the_waiting(tmp_path):
    full = Disk(*(OSError(errno.ENOSPC, "full") for _ in range(99)))
    with pytest.raises(UserError):
        full.writing(tmp_path / "a", wait_seconds=1000.0, is_stopped=lambda: bool(full.lines))
    assert len(full.lines) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A true file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting is not allowed")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_true_disk_that_is_full_keeps_the_old_files_and_takes_the_new_when_there_is_room(small_disk, monkeypatch):
    """With the writer of LoRA files and states, whose errors must be known here."""
    import torch

    from library.storage import lora_file, training_state

    def lora(value):
        return {"lora_unet_a.lora_down.weight": torch.full((4, 12_500), float(value))}  # 200 kB

    def state(step):
        return training_state.State(training_state.Position(1, step, step), lora(step), {}, {})

    path, folder, lines = small_disk / "a.safetensors", small_disk / "a-state", []
    lora_file.save_adapter(path, lora(1))
    training_state.save_state(folder, state(1))
    (small_disk / "other.bin").write_bytes(bytes(disk.free(small_disk) - 50_000))
    assert disk.free(small_disk) < 100_000

    def write():
        training_state.save_state(folder, state(2))
        lora_file.save_adapter(path, lora(2))

    def told(line):
        lines.append(line)
        if len(lines) == 1:  # nothing is lost while we wait
            assert torch.equal(lora_file.load_adapter(path)["lora_unet_a.lora_down.weight"][0, :2], torch.ones(2))
            assert training_state.load_state(folder).position.global_step == 1
            threading.Timer(0.2, (small_disk / "other.bin").unlink).start()

    monkeypatch.setattr(disk.log, "info", told)
    disk.writing(path, write, size=400_000, may_free=lambda: False, wait_seconds=0.05)
    assert "disk full" in lines[0]
    assert len(lines) == 2
    assert training_state.load_state(folder).position.global_step == 2
    assert float(lora_file.load_adapter(path)["lora_unet_a.lora_down.weight"][0, 0]) == 2
