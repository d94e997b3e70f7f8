"""Which device and number format are chosen, on machines that are only described here."""

from types import SimpleNamespace

import pytest
import torch

from library import device
from library.messages import UserError


def pretend_gpu(monkeypatch, architecture: str, has_bf16: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    properties = SimpleNamespace(gcnArchName=architecture) if architecture else SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)


@pytest.mark.parametrize(
    ("architecture", "has_bf16", "dtype"),
    [
        ("", True, torch.bfloat16),  # NVIDIA Ampere and later
        ("", False, torch.float16),  # Turing and older
        ("gfx1031", True, torch.float16),  # RX 6700 XT: torch says yes, but it is emulated and slow
        ("gfx1030:sramecc+:xnack-", True, torch.float16),
        ("gfx1100", True, torch.bfloat16),
    ],
)
def test_auto_takes_bf16_only_where_the_hardware_has_it(monkeypatch, architecture, has_bf16, dtype):
    pretend_gpu(monkeypatch, architecture, has_bf16)
    chosen = device.choose()
    assert (chosen.device.type, chosen.dtype) == ("cuda", dtype)
    assert chosen.needs_loss_scale == (dtype == torch.float16)
    assert "a card" in chosen.description


def test_without_a_gpu_it_is_the_cpu_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    chosen = device.choose()
    assert (chosen.device.type, chosen.dtype, chosen.needs_loss_scale) == ("cpu", torch.float32, False)


def test_the_user_is_obeyed(monkeypatch):
    pretend_gpu(monkeypatch, "gfx1031", True)
    assert device.choose("cpu", "bf16").dtype == torch.bfloat16
    assert device.choose("cuda", "no").dtype == torch.float32


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_told_with_its_likely_cause(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"sees \d GPU.*ROCm build"):
        device.choose(name)


def test_a_second_card_that_is_not_there_is_told(monkeypatch):
    pretend_gpu(monkeypatch, "", True)
    assert device.choose("cuda:0").device.index == 0
    with pytest.raises(UserError, match="sees 1 GPU"):
        device.choose("cuda:1")


def test_a_name_that_is_no_device_is_told():
    with pytest.raises(UserError, match="there is no such device"):
        device.choose("gpu")
