"""One run on several devices or machines: every process does the same loop on its share of each step's batches.

A step's batches are dealt out in turn, gradients are summed once, in one flat tensor, and each process takes the same
step; so the result is that of one process with as many batches to a step (gradient_accumulation_steps), to rounding.
The first process alone reads and writes files and talks; what it decides for all (stop, go back) it tells at each step
through the host, so that no device waits for it.

accelerate forms the group; `accelerate launch train_network.py ...` and `torchrun` work as well as `launch`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from library.messages import UserError, say
from library.options.training import Config

if TYPE_CHECKING:  # processes are started before torch is imported
    from torch import Tensor, distributed

PATIENCE = 12 * 60  # minutes: the first process may encode 100,000 images while the others wait
POLL_SECONDS = 0.2
Value = TypeVar("Value")


def is_launched() -> bool:
    """Whether this process is one of several that somebody has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_wanted(config: Config) -> bool:
    """Whether several are to be started."""
    return (config.num_processes > 1 or config.num_machines > 1) and not is_launched()


def launch(config: Config, command: list[str]) -> int:
    """Start this machine's processes and wait for them; where one fails, the others are ended.

    Args:
        command: of one process.

    Returns:
        The first exit code that is not 0, or 0.
    """
    port = config.main_process_port or (29500 if config.num_machines > 1 else _free_port())
    shared = dict(
        os.environ,
        WORLD_SIZE=str(config.num_processes * config.num_machines),
        LOCAL_WORLD_SIZE=str(config.num_processes),
        MASTER_ADDR=config.main_process_ip or "127.0.0.1",
        MASTER_PORT=str(port),
    )
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.num_processes)))
    first = config.machine_rank * config.num_processes
    children = [
        subprocess.Popen(command, env=shared | dict(RANK=str(first + local), LOCAL_RANK=str(local)))
        for local in range(config.num_processes)
    ]
    try:
        while True:
            codes = [child.poll() for child in children]
            failed = next((code for code in codes if code), None)
            if failed is not None or None not in codes:
                return failed or 0
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:  # they got it too; they finish their step and save
        return max(child.wait() for child in children)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ProcessGroup:
    """The processes of this run, seen from one of them; alone, nothing below costs anything.

    Args:
        is_cpu: computes on the CPU though there are GPUs.
        patience: minutes to wait for the others; None: half a day.

    Raises:
        UserError: the processes do not find one another.
    """

    def __init__(self, is_cpu: bool = False, patience: int | None = None):
        self.rank, self.count = 0, 1
        self.device: str | None = None  # this process's own; None: as the user says
        self._host: distributed.ProcessGroup | None = None  # over the host; None: this process is alone
        if not is_launched():
            return
        import torch
        from accelerate import PartialState

        timeout = timedelta(minutes=patience or PATIENCE)
        try:
            is_cpu = is_cpu or not torch.cuda.is_available()
            # Windows' builds of torch have no NCCL, which accelerate takes for GPUs; gloo sums their tensors, too.
            others = {} if is_cpu or torch.distributed.is_nccl_available() else {"backend": "gloo"}
            state = PartialState(cpu=is_cpu, timeout=timeout, **others)
            host = torch.distributed.new_group(backend="gloo", timeout=timeout)  # int: for those outside of it
        except (RuntimeError, ValueError, OSError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(_processes_apart(where, _first_line(error))) from None
        self._host = cast("distributed.ProcessGroup", host)
        self.rank, self.count, self.device = state.process_index, state.num_processes, str(state.device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: list[Tensor | None]) -> None:
        """Sum each tensor over all processes, in place, on the device."""
        if self.count > 1:
            import torch

            for tensor in tensors:
                assert tensor is not None, "each process has the gradient of every parameter"
                torch.distributed.all_reduce(tensor)

    def broadcast(self, value: Value | None) -> Value:
        """What the first process says, any object; each process calls this at the same place.

        Args:
            value: None in all processes but the first.
        """
        box = [value]
        if self.count > 1:
            import torch

            torch.distributed.broadcast_object_list(box, src=0, group=self._host)
        assert box[0] is not None, "the first process says something"
        return box[0]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            import torch

            torch.distributed.barrier(group=self._host)

    def broadcast_code(self, value: int) -> int:
        """`broadcast` for a number, and quick enough for each step."""
        if self.count == 1:
            return value
        import torch

        box = torch.tensor([value])
        torch.distributed.broadcast(box, src=0, group=self._host)
        return int(box)

    def leave(self) -> None:
        """End the group. Without it torch complains at the end of the process."""
        if self.count > 1:
            import torch

            torch.distributed.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _processes_apart(where: str, reason: str) -> str:
    return say(
        f"the processes do not find one another at {where} ({reason}). Check main_process_ip "
        "and main_process_port (the first machine's, open in its firewall), and that each machine has its "
        "own machine_rank, counted from 0.",
        f"各进程无法在 {where} 会合（{reason}）。请检查 main_process_ip 和 main_process_port"
        "（填第一台机器的，并在防火墙放行），以及各机器的 machine_rank 是否从 0 起互不相同。",
    )
