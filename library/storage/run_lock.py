"""A run's hold on its name: no other run takes the name, and writes over its files, while it lasts."""

from dataclasses import dataclass
from pathlib import Path

from library import files
from library.messages import UserError, say
from library.storage.problems import explain_write_errors
from library.storage.saves import is_taken


@dataclass
class RunLock:
    """A run's hold on its name, `<name>.lock`: no other run takes the name while this process lives."""

    name: str  # of all files of the run
    lock: files.Lock

    def move_to(self, other: "RunLock") -> None:
        """Give the name up for another one that is held already."""
        self.release()
        self.name, self.lock = other.name, other.lock

    def release(self) -> None:
        """Give the name up and remove the lock file."""
        self.lock.release()


def lock_name(output_dir: Path, name: str) -> RunLock:
    """Take hold of the name of a run that is to go on.

    Raises:
        UserError: it is being trained at this moment, or the folder cannot be written.
    """
    path = output_dir / f"{name}.lock"
    with explain_write_errors(path):
        lock = files.lock(path)
    if lock is None:
        raise UserError(_under_way(output_dir, name, files.lock_holder(path)))
    return RunLock(name, lock)


def lock_free_name(output_dir: Path, output_name: str) -> RunLock:
    """Take hold of a name for a new run: `free_name`, and never the one that another run takes at the same moment."""
    for name in files.numbered(output_name):
        if is_taken(output_dir, name):
            continue
        path = output_dir / f"{name}.lock"
        with explain_write_errors(path):
            output_dir.mkdir(parents=True, exist_ok=True)
            lock = files.lock(path)
        if lock is None:
            continue
        held = RunLock(name, lock)
        if not is_taken(output_dir, name):  # it was not a moment ago: another run may have come and gone since
            return held
        held.release()
    raise AssertionError("there is always one more name")


def _under_way(output_dir: Path, name: str, holder: str) -> str:
    return say(
        f"{name} in {output_dir} is being trained right now by {holder}. Wait for it or stop it; or choose "
        "another output_name and leave resume empty.",
        f"{output_dir} 中的 {name} 正在训练（{holder}）。请等它结束或先停止它；"
        "也可以换一个 output_name，并把 resume 留空。",
    )
