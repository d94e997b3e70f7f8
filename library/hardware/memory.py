"""What a run will need in memory, before anything is loaded, and what to do where it does not fit.

A step is run on torch's meta device, where tensors have shapes and no content: every operator is seen, every tensor's
birth and death is counted, and nothing is computed (`trace`). What a step needs is thereby exact; beside it stand the
weights, the adapters with their optimizer, and a workspace that the device's libraries take.

Where a step is too large, single blocks are computed a second time in the backward pass instead of kept (gradient
checkpointing), those first that free the most memory for the least arithmetic (`plan`). Checkpointing all of them, the
only choice elsewhere, costs a whole forward pass.
"""

import contextlib
import platform
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from library.hardware.blocks import Result
from library.messages import say

MIB = 2**20
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)
MOVES_NOTHING = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view"}
IN_PLACE = {"addmm_": "addmm", "baddbmm_": "baddbmm"}  # whose arithmetic torch's counter knows under another name


@dataclass
class Block:
    """A block that can be computed again."""

    kept: int = 0  # bytes that it keeps for the backward pass, besides its input and output
    flops: int = 0  # of its forward pass


@dataclass
class Cost:
    """What one step takes, forward and backward of one batch."""

    operators: int = 0  # dispatched, without views
    flops: int = 0
    kept: int = 0  # bytes alive between forward and backward
    peak: int = 0  # bytes alive at most
    largest: int = 0  # bytes of the largest single tensor
    blocks: dict[str, Block] = field(default_factory=dict)


class Like(NamedTuple):
    """All that there is to a tensor without content."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Value(NamedTuple):
    """Anything else; with its kind, for 1, 1.0 and True are equal."""

    kind: type
    itself: object


Likeness = Like | Value | tuple["Likeness", ...]
"""Of a tensor, of anything else, of a sequence or of arguments by name."""


class Outcome(NamedTuple):
    """What an operator took, and what it gave."""

    operators: int  # 0 for views and empty tensors
    flops: int
    is_new: bool  # gave new memory
    given: Likeness


# torch works out most operators' shapes in Python, which takes most of a trace's time. But a model repeats its blocks:
# what an operator gave for tensors without content, it gives again for others of the same form.
OUTCOMES: dict[tuple[object, ...], Outcome] = {}


def _likeness(value: object) -> Likeness:
    """Arguments or results as something to look up: tensors by their form, all else as it is."""
    if isinstance(value, Tensor):
        return Like(tuple(value.shape), value.stride(), value.dtype, value.device)
    if isinstance(value, dict):
        return tuple((Value(str, name), _likeness(each)) for name, each in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_likeness, value))
    return Value(type(value), value)


def _tensors(result: object) -> list[Tensor]:
    return [each for each in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(each, Tensor)]


def _outcome(func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object], result: object) -> Outcome:
    packet, returns = func.overloadpacket.__name__, func._schema.returns
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    operators, flops = int(not is_view and packet not in MOVES_NOTHING), 0
    known = getattr(torch.ops.aten, IN_PLACE[packet]) if packet in IN_PLACE else func.overloadpacket
    if operators and known in flop_registry:
        flops = flop_registry[known](*args, **kwargs, out_val=result)
    is_new = all(r.alias_info is None for r in returns) and packet != "_unsafe_view"
    return Outcome(operators, flops, is_new, _likeness(result))


def _can_be_repeated(outcome: Outcome, args: tuple[object, ...], called_with: Likeness, result: object) -> bool:
    """Whether nothing but the form of the arguments matters, and new tensors of the same form are all it gave."""
    tensors = _tensors(result)
    if not args or not _tensors(args[0]) or not tensors or not all(tensor.is_meta for tensor in tensors):
        return False
    if not outcome.is_new:
        return result is args[0] and outcome.given == called_with[0]  # changed in place, but not in its form
    if isinstance(result, list):
        return False
    bytes_by_storage = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    again = [tensor.untyped_storage().nbytes() for tensor in _tensors(_repeated(outcome.given))]
    return list(bytes_by_storage.values()) == again


def _repeated(given: Likeness) -> object:
    """What has this likeness; its tensors new ones."""
    if isinstance(given, Like):
        return torch.empty_strided(given.shape, given.strides, dtype=given.dtype, device=given.device)
    if isinstance(given, Value):
        return given.itself
    return tuple(map(_repeated, given))


class Trace(TorchDispatchMode):
    """Counts operators, arithmetic and living bytes of whatever runs inside it, on any device, backward pass included.

    Only what is made inside counts; tensors that were there before are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()
        self.live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        call = func, _likeness(args), _likeness(kwargs)
        outcome = OUTCOMES.get(call)
        if outcome is None:
            result = func(*args, **kwargs)
            outcome = _outcome(func, args, kwargs, result)
            if _can_be_repeated(outcome, args, call[1], result):
                OUTCOMES[call] = outcome
        else:
            result = _repeated(outcome.given) if outcome.is_new else args[0]
        self.cost.operators += outcome.operators
        self.cost.flops += outcome.flops
        if outcome.is_new:
            for tensor in _tensors(result):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        self.live += size
        self.cost.peak = max(self.cost.peak, self.live)
        self.cost.largest = max(self.cost.largest, size)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.live -= size

    def block(self, name: str, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a block and note what it keeps: a `blocks.Observer`."""
        live, flops = self.live, self.cost.flops
        result = function(*arguments)
        given = {tensor.untyped_storage() for tensor in _tensors(result)}
        kept = self.live - live - sum(storage.nbytes() for storage in given)
        self.cost.blocks[name] = Block(max(0, kept), self.cost.flops - flops)
        return result


def trace(forward: Callable[[Trace], Tensor]) -> Cost:
    """Cost of a step.

    Args:
        forward: everything up to the loss, a scalar; may have its blocks observed by the trace's `block`.
    """
    with Trace() as counted:
        loss = forward(counted)
        counted.cost.kept = counted.live
        loss.backward()
    return counted.cost


@dataclass(frozen=True)
class Plan:
    """What a run will hold in memory, and which blocks are computed twice so that it fits."""

    parts: dict[str, int]  # name for the person -> bytes
    cost: Cost
    recomputed: tuple[str, ...]
    budget: int | None  # bytes there are; None: unknown
    unlimited: Cost  # without checkpointing

    @property
    def need(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values()) + self.cost.peak

    @property
    def fits(self) -> bool:
        return self.budget is None or self.need <= self.budget

    @property
    def extra(self) -> float:
        """Share of arithmetic that is done twice."""
        return self.cost.flops / self.unlimited.flops - 1


def plan(
    measure: Callable[[Iterable[str]], Cost],
    parts: dict[str, int],
    budget: int | None,
    checkpointing: bool | str = "auto",
) -> Plan:
    """Choose what to compute twice.

    Args:
        measure: cost of a step with these blocks recomputed.
        parts: what is held besides a step's tensors, in bytes.
        budget: bytes there are.
        checkpointing: "auto": as few blocks as will do; True: all; False: none.
    """
    whole = measure(())
    gain = {name: block.kept / max(1, block.flops) for name, block in whole.blocks.items() if block.kept > 0}
    by_gain = sorted(gain, key=gain.__getitem__, reverse=True)
    recomputed, cost = (), whole
    room = None if budget is None else budget - sum(parts.values())
    if checkpointing is True:
        recomputed = tuple(by_gain)
        cost = measure(recomputed)
    elif checkpointing == "auto" and room is not None and whole.peak > room:
        count = 0
        while cost.peak > room and count < len(by_gain):
            saved = cost.peak - room
            while saved > 0 and count < len(by_gain):  # by the estimate; the trace then says what it came to
                saved -= whole.blocks[by_gain[count]].kept
                count += 1
            recomputed = tuple(by_gain[:count])
            cost = measure(recomputed)
    return Plan(parts, cost, recomputed, budget, whole)


def is_full(error: BaseException | None) -> bool:
    """Whether memory ran out, be it a GPU's, Apple's (whose error has no kind of its own) or the host's."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    )


def free_unused() -> None:
    """Give back what torch keeps of freed memory, so that a larger piece may fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def available(device: torch.device) -> int:
    """Bytes that can be used now, in all tensors of this process.

    On a GPU a twentieth is left alone: the desktop and the driver want room, and near the limit AMD's driver faults.
    """
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        return free - whole // 20
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(psutil.virtual_memory().available, *_from_cgroup())


def refuse_spilling(device: torch.device) -> None:
    """Let a GPU's full memory be an error where the driver would silently go on in main memory, 5 to 50 times slower.

    NVIDIA's driver does so on Windows (its "CUDA - Sysmem Fallback Policy") and under WSL; with a limit of its own
    torch raises as it does on Linux, and what makes a run smaller is tried.
    """
    if device.type != "cuda" or torch.version.hip or not (sys.platform == "win32" or "microsoft" in platform.release()):
        return
    limit = available(device) + torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.mem_get_info(device)[1]), device)


def _from_cgroup() -> list[int]:
    """A container's limit, less what it uses."""
    folder = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            return [int((folder / limit).read_text()) - int((folder / used).read_text())]
    return []


def weight_bytes(module: nn.Module) -> int:
    """Of all parameters and buffers, as they are now, also on the meta device."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def workspace(device: torch.device, model: nn.Module) -> int:
    """What the device's libraries take beside torch's tensors, in bytes.

    On the CPU oneDNN lays the weights of a convolution out anew at each use, in fp32: measured, twice the largest
    (docs/log.md). What cuBLAS, cuDNN and MIOpen take on a GPU is an estimate.
    """
    if device.type != "cpu":
        return 448 * MIB
    kernels = [layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return 2 * 4 * max(kernels, default=0)


def peak(device: torch.device) -> int | None:
    """Bytes that this process has held at most so far; on a GPU of torch's tensors. None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of KiB, on macOS of bytes
    return None if device.type != "cpu" else held if sys.platform == "darwin" else held * 1024


def table(plan: Plan, device: torch.device, title: str) -> str:
    """The plan for a person, in MiB, and what it means."""
    rows = [*plan.parts.items(), (say("peak of a step", "单步峰值"), plan.cost.peak)]
    rows.append((say("total", "合计"), plan.need))
    lines = [title]
    lines += [f"  {_padded(name, 34)}{size / MIB:8,.0f} MiB" for name, size in rows]
    if plan.budget is not None:
        lines.append(f"  {_padded(say(f'free on {device}', f'{device} 可用'), 34)}{plan.budget / MIB:8,.0f} MiB")
    if plan.recomputed:
        lines.append(_checkpointed(plan))
    else:
        lines.append(say("  enough memory: no gradient checkpointing is needed", "  显存充足，未启用梯度检查点"))
    return "\n".join(lines)


def _padded(text: str, width: int) -> str:
    """Chinese letters are two columns wide on a terminal."""
    return text + " " * max(1, width - sum(2 if ord(letter) > 0x2E7F else 1 for letter in text))


def to_int8(layer: nn.Linear | nn.Conv2d) -> None:
    """Hold a frozen layer's weight in 8 bits, with a factor for each row; `adapters.linear_ops` unpacks it.

    Rounding moves a weight by 0.8 % of its row's deviation (root mean square; scaled fp8 formats: 2.6 %). Half the
    memory of fp16, one pass over the weight more each time it is used.
    """
    weight = layer.weight.detach()
    flat = weight.float().flatten(1)
    scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    rounded = (flat / scale).round().to(torch.int8)
    layer.weight_scale = scale.to(weight.dtype)
    layer.weight = nn.Parameter(rounded.view(weight.shape), requires_grad=False)


def _checkpointed(plan: Plan) -> str:
    block_count = len(plan.unlimited.blocks)
    freed = (plan.unlimited.peak - plan.cost.peak) / MIB
    return say(
        f"  {len(plan.recomputed)} of {block_count} blocks are checkpointed: {freed:,.0f} MiB less, "
        f"{plan.extra:.0%} more compute",
        f"  {block_count} 个模块中有 {len(plan.recomputed)} 个启用梯度检查点：省 {freed:,.0f} MiB，计算量多 "
        f"{plan.extra:.0%}",
    )
