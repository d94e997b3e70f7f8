"""The first step of each size of batch: kernels are tuned there where that costs time, and that is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from library.contracts import Batch
from library.messages import log, say
from library.training.run import Run


class Tuning:
    """Called with a step's batches: a context in which kernels for new sizes are tuned."""

    def __init__(self, run: Run):
        self.device = run.device
        self.bucket_count = len(run.plan.sizes)
        self.met: set[tuple[int, ...]] = set()  # shapes of batches

    @contextmanager
    def __call__(self, batches: list[Batch | None]) -> Iterator[None]:
        tensors = [batch.pixels if batch.latents is None else batch.latents for batch in batches if batch]
        new = {tuple(tensor.shape) for tensor in tensors if tensor is not None} - self.met
        if not (new and self.device.tunes_per_shape):
            yield
            return
        self.met |= new
        done, count = len({shape[-2:] for shape in self.met}), self.bucket_count
        log.info(say(f"tuning bucket {done} of {count}", f"正在调优第 {done} 个桶，共 {count} 个"))
        with self.device.tuning():
            yield
