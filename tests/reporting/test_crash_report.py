"""The report of a crash says the cause and a cure first, and nothing that is secret."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors import SafetensorError

from library.messages import UserError, set_language
from library.reporting import crash_report


def caught(error, cause=None):
    """The error as it looks when it was raised."""
    try:
        raise error from cause
    except type(error) as raised:
        return raised


class AcceleratorError(RuntimeError):
    pass


KNOWN = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "train_batch_size = 1"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), "train_batch_size = 1"),
    (RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"), "train_batch_size = 1"),
    (MemoryError(), "page file"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"), "page file"),
    (OSError(28, "No space left on device"), "the disk is full"),
    (OSError(5, "Input/output error"), "its cable"),
    (RuntimeError("HIP error: invalid device function"), "HSA_OVERRIDE_GFX_VERSION=10.3.0"),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "a new card needs a newer"),
    (RuntimeError("Memory access fault by GPU node-1 (Agent handle: 0x55)"), "ROCR_VISIBLE_DEVICES=0"),
    (AcceleratorError("CUDA error: an illegal memory access was encountered"), "update the driver"),
    (ImportError("DLL load failed while importing _C: The specified module could not be found."), "Redistributable"),
    (ModuleNotFoundError("No module named 'diffusers'"), "pip install -r requirements.txt"),
    (PermissionError(13, "Permission denied"), "another program is using it"),
    (SafetensorError("Error while deserializing header: HeaderTooLarge"), "copy it again"),
    (FloatingPointError("the loss of step 7 is nan"), "lower learning_rate"),
]


@pytest.mark.parametrize(("error", "cure"), KNOWN, ids=lambda value: str(value)[:30])
def test_a_known_cause_is_told_with_its_cure_in_one_line(error, cure):
    line = crash_report.cause_line(error)
    assert line.startswith(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".strip())
    assert cure in line
    assert "\n" not in line
    set_language("zh")
    assert "可能的解决办法：" in crash_report.cause_line(error)


def test_every_row_is_tried_above():
    """So that no row hides another."""
    for _, english, _ in crash_report.CAUSES:
        assert any(english in crash_report.cause_line(error) for error, _ in KNOWN), english


def test_the_cause_behind_an_error_is_known_too():
    error = caught(UserError("it.safetensors: cannot be written"), cause=OSError(28, "full"))
    assert "UserError: it.safetensors: cannot be written. Likely fix: the disk is full" in (
        crash_report.cause_line(error)
    )
    assert crash_report.cause_line(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"


@dataclasses.dataclass
class Options:
    network_dim: int = 16
    output_name: str = "mytag"
    hf_token: str = "secret0"
    api_key: str | None = None
    training_comment: str = "see https://me:secret1@example.org/x?access_token=secret2&page=3"


def written(folder, error=None, **options):
    given = dict(config=Options(), facts={"device": "cuda (A card)", "step": 41}, last_lines=["step 40", "step 41"])
    path = crash_report.write(folder, error or caught(RuntimeError("HIP error: x")), **(given | options))
    return path, path.read_text(encoding="utf-8")


def test_the_report_holds_what_a_helper_needs_and_begins_with_the_cause(tmp_path):
    path, text = written(tmp_path)
    assert path == tmp_path / "crash_report.txt"
    assert os.listdir(tmp_path) == ["crash_report.txt"]
    assert text.splitlines()[1].startswith("RuntimeError: HIP error: x. Likely fix:")
    for part in (
        "network_dim = 16", "output_name = 'mytag'", "api_key = None", "device = 'cuda (A card)'", "step = 41",
        f"torch = '{torch.__version__.split('+')[0]}", "python = '3.", "step 40\nstep 41", "raise error from",
    ):  # fmt: skip
        assert part in text
    written(tmp_path, caught(ValueError("another")))
    assert "HIP" not in path.read_text(encoding="utf-8")


def test_nothing_secret_stands_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_VARIABLE", "secret3")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/somebody")
    message = (
        "401 for hf_secret4AAAAAAAA with Authorization: Bearer secret5AAAAAAAA; --wandb_api_key secret6 "
        f'password="secret7 secret7" {json.dumps({"token": "secret8"})} /home/somebody/set, /data/home/somebody/x'
    )
    _, text = written(tmp_path, caught(RuntimeError(message)), facts={"proxy_password": "secret9"})
    assert "secret" not in text
    assert "~/set" in text
    assert "/data/home/somebody/x" in text  # another folder
    assert "page=3" in text
    assert "hf_token = ***" in text


def test_errors_about_keys_stay_readable():
    for text in ("KeyError: 'lora_unet_a'", 'Missing key(s) in state_dict: "a.weight"', "keys == 3"):
        assert crash_report._harmless(text) == text


def test_where_the_folder_cannot_be_written_it_lies_elsewhere_or_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crash_report.tempfile, "gettempdir", lambda: str(tmp_path))
    path, text = written(tmp_path / "missing")
    assert path == tmp_path / "crash_report.txt"
    assert "HIP error" in text

    def full(*_):
        raise OSError(28, "No space left on device")

    path.unlink()
    monkeypatch.setattr(os, "fsync", full)
    error = caught(RuntimeError("HIP error: x"))
    assert (
        crash_report.write(tmp_path, error, config=Options(), facts={}, last_lines=[]) == tmp_path / "crash_report.txt"
    )
    assert os.listdir(tmp_path) == []
    assert "HIP error: x" in capsys.readouterr().err


def test_a_broken_value_does_not_hide_the_crash(tmp_path):
    class Broken:
        def __repr__(self):
            raise ZeroDivisionError("broken repr")

    _, text = written(tmp_path, facts={"device": Broken()})
    assert text.startswith("RuntimeError: HIP error: x")


def test_errors_that_name_one_another_in_a_circle_end():
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert crash_report.cause_line(first) == "RuntimeError: one"
