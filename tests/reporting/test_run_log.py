"""What a run writes down is what happened, and a loss that is not a number does not pass."""

import json

import pytest
import torch

from library.reporting.run_log import RunLog


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_step_stands_in_the_file_with_its_loss(tmp_path, capsys):
    report = RunLog(tmp_path / "run.jsonl", 4)
    for step, loss in enumerate((1.0, 2.0, 3.0, 6.0), 1):
        report.losses(1 + step // 3, step, torch.tensor(loss), {"unet": 1e-4})
        if step == 2:
            report.epoch_end(1)
    report.close()
    events = lines(tmp_path / "run.jsonl")
    assert [(e["step"], e["loss"], e["lr/unet"]) for e in events if e["event"] == "step"] == [
        (1, 1.0, 1e-4), (2, 2.0, 1e-4), (3, 3.0, 1e-4), (4, 6.0, 1e-4)]  # fmt: skip
    assert [e["loss"] for e in events if e["event"] == "epoch"] == [1.5]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 4/4")
    assert "loss 4.5000" in line


def test_losses_are_not_read_at_every_step(tmp_path):
    """Reading a loss waits for the GPU; here the reading is counted."""
    reads = []

    class Loss:
        def __float__(self):
            reads.append(1)
            return 1.0

    report = RunLog(tmp_path / "run.jsonl", 1000)
    for step in range(1, 100):
        report.losses(1, step, Loss(), {})
    assert not reads
    report.close()
    assert len(reads) == 99


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_with_its_step(tmp_path, bad):
    report = RunLog(tmp_path / "run.jsonl", 10)
    report.losses(1, 1, torch.tensor(1.0), {})
    report.losses(1, 2, torch.tensor(bad), {})
    with pytest.raises(FloatingPointError, match="step 2"):
        report.read()


def test_a_continued_run_is_appended_and_counts_on(tmp_path):
    first = RunLog(tmp_path / "run.jsonl", 4)
    first.losses(1, 1, torch.tensor(1.0), {})
    first.close()
    second = RunLog(tmp_path / "run.jsonl", 4, first_step=1)
    second.losses(1, 2, torch.tensor(1.0), {})
    second.close()
    assert [e["step"] for e in lines(tmp_path / "run.jsonl")] == [1, 2]


def told(path, steps, first_step=0, epoch_length=4, closed=True):
    """A report of some steps, whose losses are their numbers."""
    report = RunLog(path, 100, first_step=first_step)
    for step in steps:
        report.losses(1 + (step - 1) // epoch_length, step, torch.tensor(float(step)), {})
        if step % epoch_length == 0:
            report.epoch_end(step // epoch_length)
    if closed:
        report.close()
    return report


@pytest.mark.parametrize("torn", [b"", b'{"event": "step", "step": 11, "lo', b"\0" * 50])
def test_steps_are_neither_missing_nor_doubled_after_going_on(tmp_path, torn):
    """Killed at step 10, its last line torn or lost to a power failure; continued from a state of step 6."""
    whole = told(tmp_path / "whole.jsonl", range(1, 13))
    told(tmp_path / "cut.jsonl", range(1, 11))
    with (tmp_path / "cut.jsonl").open("ab") as file:
        file.write(torn)
    told(tmp_path / "cut.jsonl", range(7, 13), first_step=6)

    def timeless(path):
        return [{key: value for key, value in event.items() if key != "time"} for event in lines(path)]

    assert timeless(tmp_path / "cut.jsonl") == timeless(tmp_path / "whole.jsonl")  # with the epochs' means
    assert [json.loads(line)["step"] for line in whole.last_steps(3)] == [10, 11, 12]


def test_an_epoch_that_was_told_is_not_told_again(tmp_path):
    """A state of an epoch's last step is written before the epoch ends; the loop then ends the epoch once more."""
    told(tmp_path / "run.jsonl", range(1, 5))
    again = told(tmp_path / "run.jsonl", [], first_step=4, closed=False)
    again.epoch_end(1)
    again.close()
    assert [event["event"] for event in lines(tmp_path / "run.jsonl")] == ["step"] * 4 + ["epoch"]


def test_a_loss_is_written_with_all_its_digits(tmp_path):
    loss = torch.tensor(1 / 3)
    report = RunLog(tmp_path / "run.jsonl", 2)
    report.losses(1, 1, loss, {})
    report.close()
    written = lines(tmp_path / "run.jsonl")[0]["loss"]
    assert torch.tensor(written).view(torch.int32) == loss.view(torch.int32)
    assert written == float(loss)


def test_a_flushed_step_survives_a_kill(tmp_path):
    report = told(tmp_path / "run.jsonl", [1, 2], closed=False)
    report.flush()
    assert [event["step"] for event in lines(tmp_path / "run.jsonl")] == [1, 2]
    assert report.last_steps(1) == (tmp_path / "run.jsonl").read_text().splitlines()[1:]


class FullFile:
    """A file whose disk takes some bytes more and then none."""

    def __init__(self, file, room):
        self.file, self.room, self.name = file, room, file.name

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        part = bytes(data[: self.room])
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_lines_that_a_full_disk_does_not_take_wait(tmp_path):
    report = told(tmp_path / "run.jsonl", [], closed=False)
    report.events = FullFile(report.events, room=20)
    report.losses(1, 1, torch.tensor(1.0), {})
    with pytest.raises(OSError, match="No space left"):
        report.flush()
    assert (tmp_path / "run.jsonl").stat().st_size == 20
    report.losses(1, 2, torch.tensor(2.0), {})
    report.events.room = 10_000
    report.flush()
    assert [event["step"] for event in lines(tmp_path / "run.jsonl")] == [1, 2]


def test_what_could_not_be_written_is_told_at_the_end(tmp_path, capsys):
    report = told(tmp_path / "run.jsonl", [], closed=False)
    report.events = FullFile(report.events, room=0)
    report.losses(1, 1, torch.tensor(1.0), {})
    report.close()
    assert "run.jsonl lacks its last 1 line" in capsys.readouterr().out


def test_what_draws_curves_gets_the_same_numbers(tmp_path):
    class Writer:
        def __init__(self):
            self.points, self.is_closed = [], False

        def add_scalar(self, name, value, step):
            self.points.append((name, value, step))

        def close(self):
            self.is_closed = True

    writer = Writer()
    report = RunLog(tmp_path / "run.jsonl", 2, writer=writer)
    for step in (1, 2):
        report.losses(1, step, torch.tensor(float(step)), {"unet": 1e-4})
    report.epoch_end(1)
    report.close()
    assert [point for point in writer.points if point[0] == "loss/current"] == [
        ("loss/current", 1.0, 1),
        ("loss/current", 2.0, 2),
    ]
    assert ("lr/unet", 1e-4, 2) in writer.points
    assert writer.points[-1] == ("loss/epoch_average", 1.5, 1)
    assert writer.is_closed
