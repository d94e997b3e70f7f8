"""CUDA graphs: a step's thousands of kernels are recorded once for each shape of batch, and then started as one.

A fast GPU waits for Python: a step of SDXL starts about ten thousand kernels. A recorded step is started by one call,
and gives the same bits. What it reads and writes lies at fixed addresses:

    inputs      are copied into buffers of the recording's own; so everything left to chance is drawn outside
    weights     are changed in place by the optimizer
    gradients   are added to the adapters' fixed buffers, as without a graph
    outputs     are copied out before the next replay overwrites them

Numbers that Python knows (the adapters' strength, "in training") are part of the recording: they must not change while
it is used. Images and captions that are encoded on the fly, gradient checkpointing without dropout and any loss scale
are all right: they happen outside, or the same way each time. Dropout is not: each pass would drop what the first did.

Nothing is taken on trust. A recording is compared with the plain step before it is used; where it differs, or anything
goes wrong, training goes on without graphs, and one line says so.

All recordings share one pool of memory, as large as the largest of them needs. A shape that is not recorded needs its
own beside it: where that does not fit, they are disabled.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from library.messages import say

Tensors = Sequence[Tensor | None]
Key = tuple[tuple[torch.Size, torch.dtype] | None, ...]  # shapes of a step's inputs
WARM_UP = 2  # plain passes of a shape before it is recorded: libraries choose their kernels; rare shapes never are
MOST_SHAPES = 16  # a recording of SDXL's step takes some 10 MB beside the pool
SPREAD = 4  # times the difference between two replays: as far as a replay may be from the plain step
NOISE = 0.02  # of the gradients' length: two replays that differ by more cannot be told from wrong ones


def reason_unavailable(device: torch.device, *, is_random: bool) -> str | None:
    """Why a step cannot be recorded here, for the person; None: it can.

    Args:
        is_random: the step itself draws random numbers (dropout).
    """
    if device.type != "cuda":
        return say("only NVIDIA GPUs have them", "只有 NVIDIA 显卡才有")
    if torch.version.hip:  # capture has crashed, and replays have silently trained worse: pytorch #155720, #187715
        return say("they are not reliable on AMD GPUs", "在 AMD 显卡上不可靠")
    if is_random:
        return say("dropout uses new random numbers at each step", "dropout 每步都要取新的随机数")
    return None


class PlainStep:
    """A step that is computed anew each time: a `contracts.Step`."""

    def __init__(self, step: Callable[..., Tensors]):
        self.step = step

    def __call__(self, *inputs: Tensor | None, **conditioning: Tensor) -> Tensors:
        return self.step(*inputs, **conditioning)

    plain = __call__

    def clear(self) -> None:
        """Nothing is held."""

    def disable(self) -> bool:
        return False


class Recorder(Protocol):
    """What is asked of a device; see `CudaRecorder`."""

    def warm_up(self, function: Callable[[], Tensors]) -> Tensors:
        """Run a function plainly, in the way in which it will be recorded."""

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], object], Tensors]:
        """Record what a function asks of the device: a call that does it again, and the outputs it then fills."""

    def forget(self) -> None:
        """All recordings are gone: give their memory back."""


class CudaRecorder:
    """Records on an NVIDIA GPU. Recording happens on a stream of its own, replay on the current one."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Tensors]) -> Tensors:
        # On the stream of the recording: cuBLAS has a workspace for each stream, and a gradient's accumulator stays on
        # the stream it was made on. Each stream waits for the other, so tensors of one may be freed in the other.
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = function()
        current.wait_stream(self.stream)
        return results

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], object], Tensors]:
        gc.collect()  # a tensor or graph that dies while recording would be freed within it
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what the plain step has used, the recording will use
        graph = torch.cuda.CUDAGraph()
        # Not `with torch.cuda.graph(...)`: where a recording fails at its end, that leaves its stream the current one.
        with torch.cuda.stream(self.stream):
            # "thread_local": other threads may read images ahead into page-locked memory meanwhile
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                outputs = function()
            finally:
                graph.capture_end()
        return graph.replay, outputs

    def forget(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()  # a pool whose last graph is gone must not be used again
        gc.collect()
        torch.cuda.empty_cache()


class Recording:
    """A step of one shape."""

    def __init__(self, step: Callable[..., Tensors], recorder: Recorder, inputs: Tensors, named: dict[str, Tensor]):
        # Recorded with zeros: if a value of this batch found its way into the recording, the comparison would show it.
        self.buffers = [None if x is None else torch.zeros_like(x) for x in inputs]
        self.named = {name: torch.zeros_like(x) for name, x in named.items()}
        self.replay, self.outputs = recorder.record(lambda: step(*self.buffers, **self.named))

    def __call__(self, inputs: Tensors, named: dict[str, Tensor]) -> Tensors:
        buffers, tensors = [*self.buffers, *self.named.values()], [*inputs, *named.values()]
        for buffer, tensor in zip(buffers, tensors, strict=True):
            if buffer is not None and tensor is not None:
                buffer.copy_(tensor, non_blocking=True)
        self.replay()
        return _copies(self.outputs)


class Graphs:
    """A step that is plain at first, then recorded: a `contracts.Step`.

    Args:
        step: forward and backward of one batch. Takes tensors (or None) and gives tensors (or None), the loss first;
            reads nothing else that changes its address, adds gradients to `gradients` in place, draws no random
            numbers, and never asks the device for a value.
        gradients: the buffers; they must stay where they are.
        recorder: of the device.
        tell: called with one line if recording fails or gives something else.
    """

    def __init__(
        self, step: Callable[..., Tensors], gradients: Sequence[Tensor], recorder: Recorder, tell: Callable[[str], None]
    ):
        self.step, self.gradients, self.recorder, self.tell = step, list(gradients), recorder, tell
        self.is_on = True
        self._plain_runs: dict[Key, int] = {}
        self._recordings: dict[Key, Recording] = {}

    @property
    def description(self) -> str:
        """One line for the person."""
        return say(
            f"CUDA graphs: up to {MOST_SHAPES} shapes of batches, each recorded after {WARM_UP} plain ones",
            f"CUDA graphs：最多录制 {MOST_SHAPES} 种批次形状，每种先照常运行 {WARM_UP} 批再录制",
        )

    def __call__(self, *inputs: Tensor | None, **named: Tensor) -> Tensors:
        """What `step` gives; its gradients are in the buffers."""
        if not self.is_on:
            return self.plain(*inputs, **named)
        key = tuple(None if x is None else (x.shape, x.dtype) for x in (*inputs, *named.values()))
        if key in self._recordings:
            return self._recordings[key](inputs, named)
        self._plain_runs[key] = self._plain_runs.get(key, 0) + 1
        if self._plain_runs[key] <= WARM_UP or len(self._recordings) == MOST_SHAPES:
            return self._plainly(inputs, named)
        return self._record(key, inputs, named)

    def plain(self, *inputs: Tensor | None, **named: Tensor) -> Tensors:
        """What `step` gives, by itself."""
        return self.step(*inputs, **named)

    def clear(self) -> None:
        """Give the recordings' memory back; they are made anew when their shapes come again.

        Before anything else needs much memory, or moves the model or the adapters.
        """
        self._recordings.clear()
        self.recorder.forget()

    def disable(self) -> bool:
        """Do without from now on, where memory ran out; False: nothing is recorded, so that would not help."""
        if not self._recordings:
            return False
        self.is_on = False
        self.clear()
        return True

    def _plainly(self, inputs: Tensors, named: dict[str, Tensor]) -> Tensors:
        return self.recorder.warm_up(lambda: self.step(*inputs, **named))

    def _record(self, key: Key, inputs: Tensors, named: dict[str, Tensor]) -> Tensors:
        """The plain step's results, whatever becomes of the recording."""
        before = self._copied_gradients()
        results = self._plainly(inputs, named)
        if not _are_finite([*results, *self.gradients]):  # overflow at too large a loss scale
            return results
        after = self._copied_gradients()
        recording: Recording | None = None
        try:
            recording = Recording(self.step, self.recorder, inputs, named)
            problem = self._difference(partial(recording, inputs, named), before, [*results, *after])
        except Exception as error:  # torch, its allocator and the driver each have their own kinds
            problem = _cause(error)
        self._restore(after)
        if problem is None and recording is not None:
            self._recordings[key] = recording
            return results
        recording = None  # it holds memory that is to be given back
        self.is_on = False
        self.clear()
        self.tell(
            say(
                f"CUDA graphs are off, training goes on without them ({problem})",
                f"已关闭 CUDA graphs，训练照常继续（{problem}）",
            )
        )
        return results

    def _difference(self, replay: Callable[[], Tensors], before: Sequence[Tensor], expected: Tensors) -> str | None:
        """How a replay differs from the plain step, for the person; None: in nothing that matters.

        Bit by bit. Some kernels (attention's backward pass among them) add in any order, and give other bits each time
        they run: then two replays differ, and their difference is the measure.
        """

        def replayed() -> Tensors:
            self._restore(before)
            return [*replay(), *self._copied_gradients()]

        first = replayed()
        if _are_same(first, expected):
            return None
        second = replayed()
        if not _are_same(first[:1], expected[:1]):
            return say("a replay gave another loss", "重放得到的 loss 不同")
        for ours, again, theirs in zip(first, second, expected, strict=True):
            if ours is None or again is None or theirs is None:
                continue
            ours, again, theirs = ours.float(), again.float(), theirs.float()
            spread, distance = (ours - again).norm(), (ours - theirs).norm()
            if not (distance <= SPREAD * spread and spread <= NOISE * theirs.norm()):
                return say("a replay gave other gradients", "重放得到的梯度不同")
        return None

    def _copied_gradients(self) -> list[Tensor]:
        return [gradient.clone() for gradient in self.gradients]

    def _restore(self, values: Sequence[Tensor]) -> None:
        for gradient, value in zip(self.gradients, values, strict=True):
            gradient.copy_(value)


def _copies(tensors: Tensors) -> list[Tensor | None]:
    return [None if x is None else x.clone() for x in tensors]


def _are_same(first: Tensors, second: Tensors) -> bool:
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _are_finite(tensors: Tensors) -> bool:
    return all(x is None or bool(x.isfinite().all()) for x in tensors)


def _cause(error: BaseException) -> str:
    """The first line of the first error: a recording that was broken off fails once more when it is ended."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]
