"""Which device and number format are chosen, and whether bad devices are found: on machines only described here."""

import math
import time
from types import SimpleNamespace

import pytest
import torch

from library.hardware import device
from library.messages import UserError, set_language


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
        ("gfx1010", True, torch.float16),
        ("gfx906:sramecc+:xnack-", True, torch.float16),  # Vega
        ("gfx90a:sramecc+:xnack-", True, torch.bfloat16),
        ("gfx1100", True, torch.bfloat16),
    ],
)
def test_auto_takes_bf16_only_where_the_hardware_has_it(monkeypatch, architecture, has_bf16, dtype):
    pretend_gpu(monkeypatch, architecture, has_bf16)
    chosen = device.choose()
    assert (chosen.torch_device.type, chosen.dtype) == ("cuda", dtype)
    assert chosen.needs_loss_scale == (dtype == torch.float16)
    assert "a card" in chosen.description


def pretend_cpu(monkeypatch, gain: float, **capabilities: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(device, "_trial_seconds", lambda dtype: gain if dtype == torch.float32 else 1.0)


@pytest.mark.parametrize(
    ("width", "gain", "capabilities", "dtype"),
    [
        (320, 3.0, {}, torch.float32),
        (320, 3.0, {"avx512_bf16": True}, torch.bfloat16),
        (320, 3.0, {"amx_bf16": True}, torch.bfloat16),
        (320, 1.2, {"amx_bf16": True}, torch.float32),  # not clearly faster
        (64, 3.0, {"amx_bf16": True}, torch.float32),  # the miniature
    ],
)
def test_a_cpu_takes_bf16_only_where_it_is_clearly_faster(monkeypatch, width, gain, capabilities, dtype):
    pretend_cpu(monkeypatch, gain, **capabilities)
    chosen = device.choose(model_width=width)
    assert (chosen.torch_device.type, chosen.dtype, chosen.needs_loss_scale) == ("cpu", dtype, False)


def test_the_trial_draws_no_random_numbers():
    before = torch.get_rng_state()
    assert device._trial_seconds(torch.float32) < math.inf
    assert torch.equal(torch.get_rng_state(), before)


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
    assert device.choose("cuda:0").torch_device.index == 0
    with pytest.raises(UserError, match="sees 1 GPU"):
        device.choose("cuda:1")


def test_a_name_that_is_no_device_is_told():
    with pytest.raises(UserError, match="there is no such device"):
        device.choose("gpu")


# ---- tuning ----


def test_only_amd_cards_tune_per_shape(monkeypatch):
    pretend_gpu(monkeypatch, "gfx1031", True)
    amd = device.choose()
    assert (amd.tunes_per_shape, amd.bucket_limit, amd.architecture) == (True, 8, "gfx1031")
    pretend_gpu(monkeypatch, "", True)
    assert (device.choose().tunes_per_shape, device.choose().bucket_limit) == (False, None)
    assert device.choose("cpu").bucket_limit is None


@pytest.mark.parametrize(("architecture", "is_enabled"), [("gfx1031", True), ("gfx1031", False), ("", True)])
def test_tuning_is_on_within_and_off_after_even_if_a_step_fails(monkeypatch, architecture, is_enabled):
    calls = []
    monkeypatch.setattr(torch.cuda.tunable, "is_enabled", lambda: is_enabled)
    monkeypatch.setattr(torch.cuda.tunable, "tuning_enable", calls.append)
    chosen = device.Device(torch.device("cuda"), torch.float16, "", architecture)

    def step():
        with chosen.tuning():
            calls.append("step")
            raise MemoryError

    with pytest.raises(MemoryError):
        step()
    assert calls == ([True, "step", False] if architecture and is_enabled else ["step"])


# ---- self-test ----

NVIDIA = device.Device(torch.device("cuda"), torch.float16, "device cuda (a card)")
AMD = device.Device(torch.device("cuda"), torch.float16, "device cuda (a card)", "gfx1031")


@pytest.mark.parametrize("numbers", ["float32", "float16", "bfloat16"])
def test_a_sound_device_passes_in_every_number_format(numbers):
    errors = device.arithmetic_errors("cpu", numbers)
    assert errors.keys() == device.ARITHMETIC.keys()
    assert max(errors.values()) < device.TOLERANCE / 3


def fail_in_fp16(monkeypatch, kind: str, spoil):
    """A device that computes one thing wrongly: fp16 is the device here, fp32 the CPU that it is compared with."""
    chinese, compute = device.ARITHMETIC[kind]

    def spoiled(x):
        return spoil(compute(x)) if x.dtype == torch.float16 else compute(x)

    monkeypatch.setitem(device.ARITHMETIC, kind, (chinese, spoiled))
    monkeypatch.setattr(
        device, "arithmetic_errors", lambda _, numbers, test=device.arithmetic_errors: test("cpu", numbers)
    )


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.mark.parametrize("kind", device.ARITHMETIC)
@pytest.mark.parametrize(
    "spoil",
    [lambda y: y * 1.1, lambda y: y * 0, lambda y: y * math.nan, WrongGradient.apply],
    ids=["a tenth too large", "nothing written", "not a number", "wrong gradient"],
)
def test_wrong_numbers_are_found_and_named(monkeypatch, kind, spoil):
    fail_in_fp16(monkeypatch, kind, spoil)
    with pytest.raises(UserError, match=f"a card.*wrong results of {kind}\\).*HSA_OVERRIDE_GFX_VERSION.*update driver"):
        device.self_test(NVIDIA)


def test_a_device_that_refuses_is_told_with_its_cure(monkeypatch):
    def refuse(*_):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(device, "arithmetic_errors", refuse)
    with pytest.raises(UserError, match=r"no kernel image.*device\).*torch has no code for the card"):
        device.self_test(NVIDIA)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (
            "import os, sys; sys.stderr.write('Memory access fault by GPU node-1'); sys.stderr.flush(); os.abort()",
            "Memory access fault by GPU node-1.*ROCR_VISIBLE_DEVICES",
        ),
        ("raise RuntimeError('HIP error: invalid device function')", "invalid device function.*no code for the card"),
        ("import time; time.sleep(60)", "no answer within 1 s.*HSA_ENABLE_SDMA=0"),
        ("answer = {'convolutions': float('nan')}", "wrong results of convolutions.*MIOPEN_DEBUG_CONV_WINOGRAD=0"),
    ],
    ids=["crash", "error", "hang", "wrong"],
)
def test_under_rocm_a_child_that_fails_is_told_with_its_cure(monkeypatch, program, told):
    monkeypatch.setattr(device, "_in_child", lambda _, seconds, run=device._in_child: run(program, seconds))
    start = time.perf_counter()
    with pytest.raises(UserError, match=told):
        device.self_test(AMD, seconds=1 if "sleep" in program else 60)
    assert time.perf_counter() - start < 30


@pytest.mark.slow("a process that imports torch")
def test_under_rocm_the_arithmetic_runs_in_a_child(monkeypatch):
    monkeypatch.setattr(device, "arithmetic_errors", lambda *_: pytest.fail("not in this process"))
    on_cpu = lambda program, seconds, run=device._in_child: run(program.replace("'cuda'", "'cpu'"), seconds)  # noqa: E731
    monkeypatch.setattr(device, "_in_child", on_cpu)
    device.self_test(AMD)


def test_the_cpu_is_not_tested(monkeypatch):
    monkeypatch.setattr(device, "arithmetic_errors", lambda *_: pytest.fail("a waste of time"))
    device.self_test(device.choose("cpu"))


@pytest.mark.parametrize("cure", device.CURES, ids=[pattern or "any" for pattern, _, _ in device.CURES])
def test_cures_are_there_in_both_languages(cure):
    _, english, chinese = cure
    assert english.isascii()
    assert not chinese.isascii()


def test_a_failure_is_told_in_chinese(monkeypatch):
    fail_in_fp16(monkeypatch, "attention", lambda y: y * 0)
    set_language("zh")
    with pytest.raises(UserError, match="未通过运算测试（注意力结果有误）。可以尝试：请取消超频"):
        device.self_test(NVIDIA)
