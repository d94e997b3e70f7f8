"""Where the curves of a run go, beside run.jsonl: TensorBoard, Weights & Biases. To add one: add a row to KINDS.

Each is imported only when asked for. What is written has the names of sd-scripts: loss/current, lr/unet, ...
"""

import dataclasses
import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from library.messages import UserError, say
from library.options.declaration import Value, Values
from library.options.training import SECRETS, Config

PROJECT_NAME = "network_train"  # sd-scripts' default name of a project


class Tracker(Protocol):
    """What draws curves."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve; `step` counts epochs where the name says so ("loss/epoch_average")."""

    def add_config(self, config: dict[str, Value]) -> None:
        """The parameters of the run, to be shown beside the curves."""

    def close(self) -> None:
        """Write what waits."""


class Several:
    """A tracker that hands everything to others."""

    def __init__(self, trackers: list[Tracker]):
        self.trackers = trackers

    def add_scalar(self, name: str, value: float, step: int) -> None:
        for tracker in self.trackers:
            tracker.add_scalar(name, value, step)

    def add_config(self, config: dict[str, Value]) -> None:
        for tracker in self.trackers:
            tracker.add_config(config)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


class TensorBoard:
    """TensorBoard's files in the folder of the run; what they tell of steps after `first_step` is purged."""

    def __init__(self, config: Config, settings: Values, session_id: int, started_at: float, first_step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(_tensorboard_is_missing()) from None
        folder = str(folder_of(config, started_at))
        self.writer = SummaryWriter(**{"log_dir": folder, "purge_step": first_step + 1} | settings)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def add_config(self, config: dict[str, Value]) -> None:
        lines = [f"| {name} | {json.dumps(value, ensure_ascii=False)} |" for name, value in config.items()]
        self.writer.add_text("config", "\n".join(["| name | value |", "|---|---|", *lines]))

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run on Weights & Biases; going on with a training state goes on with the same one.

    Points of the same step are sent together. Curves over epochs have an axis of their own, for wandb takes no step
    that is before the last.
    """

    def __init__(self, config: Config, settings: Values, session_id: int, started_at: float, first_step: int):
        import wandb

        given = {
            "project": config.log_tracker_name or PROJECT_NAME,
            "name": config.wandb_run_name,
            "dir": config.logging_dir,
            "id": f"{session_id:08x}",
            "resume": "allow",
        }
        try:
            self.run = wandb.init(**given | settings)
            self.run.define_metric("*", step_metric="step")
        except Exception as error:  # its own classes, and those of what it stands on
            raise UserError(_wandb_cannot_start(error)) from error
        self.point: dict[str, float] = {}
        self.over_epochs: set[str] = set()

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if "epoch" in name and name not in self.over_epochs:
            self.run.define_metric(name, step_metric="epoch")  # its wildcards stand at the end only
            self.over_epochs.add(name)
        place = {"epoch" if "epoch" in name else "step": step}
        if not place.items() <= self.point.items():
            self._send()
        self.point |= place | {name: value}

    def add_config(self, config: dict[str, Value]) -> None:
        self.run.config.update(config, allow_val_change=True)

    def close(self) -> None:
        self._send()
        self.run.finish()

    def _send(self) -> None:
        if self.point:
            self.run.log(self.point)
        self.point = {}


KINDS: dict[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def wanted(config: Config) -> list[str]:
    """The trackers that the options ask for: keys of KINDS."""
    if config.log_with == "all":
        return list(KINDS)
    return [config.log_with] if config.log_with else ["tensorboard"] if config.logging_dir else []


def open_trackers(config: Config, *, session_id: int, started_at: float, first_step: int) -> Tracker | None:
    """Everything that the options ask for, as one; None: nothing.

    Args:
        session_id: the run's own, kept in its training states.
        started_at: of the run, seconds since 1970; kept in the same way, so that the folder stays the same.
        first_step: steps already done.

    Raises:
        UserError: a package is missing, or does not start.
    """
    settings = read_settings(config.log_tracker_config) if config.log_tracker_config else {}
    trackers = [
        KINDS[name](config, settings.get(name, {}), session_id, started_at, first_step) for name in wanted(config)
    ]
    if not trackers:
        return None
    tracker = Several(trackers)
    if config.log_config:
        tracker.add_config({n: value for n, value in dataclasses.asdict(config).items() if n not in SECRETS})
    return tracker


def folder_of(config: Config, started_at: float) -> Path:
    """Where TensorBoard's files go: logging_dir, in it log_prefix with the time, in it log_tracker_name."""
    folder = Path(config.logging_dir or "")  # checked: TensorBoard needs it
    if config.log_prefix:
        folder /= config.log_prefix + time.strftime("%Y%m%d%H%M%S", time.localtime(started_at))
    return folder / config.log_tracker_name if config.log_tracker_name else folder


def read_settings(path: str) -> dict[str, Values]:
    """The tables of a .toml file, each for the tracker of its name. Raises UserError."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        problem = say(
            f"log_tracker_config = {path} is not valid TOML: {error}",
            f"log_tracker_config = {path} 不合 TOML 写法：{error}",
        )
        raise UserError(problem) from error
    known = ", ".join(f"[{name}]" for name in KINDS)
    problems = [
        say(
            f"log_tracker_config = {path}: {name} is not one of {known}; put its lines under one of them",
            f"log_tracker_config = {path}：{name} 不是 {known} 之一；请把它写在其中一个之下",
        )
        for name, table in tables.items()
        if name not in KINDS or not isinstance(table, dict)
    ]
    if problems:
        raise UserError(problems)
    return tables


# ---- what is said ----


def _tensorboard_is_missing() -> str:
    return say(
        "logging_dir is set, but the package tensorboard is missing: pip install tensorboard, or set "
        "logging_dir = None (run.jsonl has the same numbers).",
        "设置了 logging_dir，但没有安装 tensorboard：请 pip install tensorboard，或设 logging_dir = None"
        "（run.jsonl 里有同样的数据）。",
    )


def _wandb_cannot_start(error: Exception) -> str:
    return say(
        f"wandb cannot start ({error}). Log in once with `wandb login`, or set wandb_api_key; offline, "
        "set WANDB_MODE=offline; or remove log_with.",
        f"wandb 无法启动（{error}）。请先运行 wandb login 登录一次，或填写 wandb_api_key；"
        "没有网络请设 WANDB_MODE=offline；也可以不填 log_with。",
    )
