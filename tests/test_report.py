"""What a run writes down is what happened, and a loss that is not a number does not pass."""

import io
import json

import pytest
import torch

from library.report import Report


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_step_stands_in_the_file_with_its_loss(tmp_path):
    out = io.StringIO()
    report = Report(tmp_path / "run.jsonl", 4, stream=out)
    for step, loss in enumerate((1.0, 2.0, 3.0, 6.0), 1):
        report.losses(1 + step // 3, step, torch.tensor(loss), {"unet": 1e-4})
        if step == 2:
            report.epoch_end(1)
    report.close()
    events = lines(tmp_path / "run.jsonl")
    assert [(e["step"], e["loss"], e["lr/unet"]) for e in events if e["event"] == "step"] == [
        (1, 1.0, 1e-4), (2, 2.0, 1e-4), (3, 3.0, 1e-4), (4, 6.0, 1e-4)]  # fmt: skip
    assert [e["loss"] for e in events if e["event"] == "epoch"] == [1.5]
    assert "step 4/4" in out.getvalue()
    assert "loss 4.5000" in out.getvalue()


def test_losses_are_not_read_at_every_step(tmp_path):
    """Reading a loss waits for the GPU; here the reading is counted."""
    reads = []

    class Loss:
        def __float__(self):
            reads.append(1)
            return 1.0

    report = Report(tmp_path / "run.jsonl", 1000, stream=io.StringIO())
    for step in range(1, 100):
        report.losses(1, step, Loss(), {})
    assert not reads
    report.close()
    assert len(reads) == 99


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_with_its_step(tmp_path, bad):
    report = Report(tmp_path / "run.jsonl", 10, stream=io.StringIO())
    report.losses(1, 1, torch.tensor(1.0), {})
    report.losses(1, 2, torch.tensor(bad), {})
    with pytest.raises(FloatingPointError, match="step 2"):
        report.read()


def test_a_continued_run_is_appended_and_counts_on(tmp_path):
    first = Report(tmp_path / "run.jsonl", 4, stream=io.StringIO())
    first.losses(1, 1, torch.tensor(1.0), {})
    first.close()
    second = Report(tmp_path / "run.jsonl", 4, first_step=1, stream=io.StringIO())
    second.losses(1, 2, torch.tensor(1.0), {})
    second.close()
    assert [e["step"] for e in lines(tmp_path / "run.jsonl")] == [1, 2]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path / "run.jsonl", 2, logging_dir=tmp_path / "log", stream=io.StringIO())
    for step in (1, 2):
        report.losses(1, step, torch.tensor(float(step)), {"unet": 1e-4})
    report.close()
    log = EventAccumulator(str(tmp_path / "log"))
    log.Reload()
    assert [scalar.value for scalar in log.Scalars("loss/current")] == [1.0, 2.0]
