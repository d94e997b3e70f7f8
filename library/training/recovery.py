"""What happens when a step does not go well; the loop in train_network.py says what happens when it does.

NaN           back to the last state, then step by step to the batch that brings it, which is named and left out
memory full   the same arithmetic again with less memory, the cheapest measure first
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from library.contracts import Batch
from library.messages import UserError, log, say
from library.options.derived import trains_text_encoder
from library.training.inputs import Inputs, seed_step
from library.training.run import Run, Training
from library.training.soundness import is_sound, not_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from library.hardware.nan import Hunt
    from library.storage.training_state import State
    from library.training.outputs import Outputs

SMALLEST_CHUNK = 8 * 2**20  # bytes of attention at once: with less it gets slow
Draw = Callable[[Run, Training, Batch, "torch.Generator"], Inputs]
Backward = Callable[[Run, Training, Inputs, float], "Tensor"]


class Recovery:
    """A context manager round the loop: within, a fault ends the loop, and it can begin again at `position`.

    Args:
        outputs: None in all processes but the first.
        draw, backward: of train_network: a step's inputs, and its passes, to do them once more slowly.

    Raises:
        UserError: NaN came a second time, or there is no memory left to save.
    """

    def __init__(self, run: Run, training: Training, outputs: Outputs | None, draw: Draw, backward: Backward):
        self.run, self.training, self.outputs = run, training, outputs
        self.draw, self.backward = draw, backward
        self.position = run.position
        self.skipped = set(run.skipped)
        self.until = 0  # steps up to this one are looked at closely, each on its own

    def say(self, line: str) -> None:
        """Say something in the middle of the run; processes that do not talk, as an error."""
        (log.info if self.outputs else log.error)(line)

    # ---- Round the loop ----

    def __enter__(self) -> Recovery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Whether the loop can begin again, at `position`."""
        from library.hardware import memory

        if isinstance(error, FloatingPointError):
            self._go_back(self._state_before(error))
            return True
        if memory.is_full(error):  # while the optimizer stepped: a part of it may have been done
            measure = (
                use_less_memory(self.run, self.training) if self.outputs and self.run.processes.count == 1 else None
            )
            if measure is None or self.outputs is None:
                raise memory_full(str(error)) from None
            self.say(say(f"out of memory: {measure}", f"显存不足：{measure}"))
            self._go_back(self.outputs.saver.load_state())
            return True
        return False

    def _state_before(self, error: FloatingPointError) -> State:
        """The last state, from which each step up to the bad one is to be looked at."""
        processes, outputs = self.run.processes, self.outputs
        bad_step: int = processes.broadcast(getattr(error, "step", outputs.run_log.step) if outputs else None)
        if self.until >= bad_step:  # it was looked at, and nothing helped
            raise not_finite(str(error)) from None
        self.until = bad_step
        state = processes.broadcast(outputs.saver.load_state() if outputs else None)
        self.say(_goes_back(error, state))
        return state

    def _go_back(self, state: State) -> None:
        self.training.restore(state)
        self.position = state.position
        if self.outputs:
            self.outputs.open_log(state.position.global_step)

    # ---- Round the passes of a step ----

    def with_room_for(self, passes: Callable[[], Tensor], step: int) -> Tensor:
        """What a step's passes give; where memory runs out they are done again with less, the same arithmetic."""
        from library.hardware import memory

        while True:
            try:
                return passes()
            except RuntimeError as error:
                if not memory.is_full(error):
                    raise
                reason = str(error)
            # outside of `except`: its traceback would hold the tensors of the failed pass
            self.training.adapters.refresh()  # forgets what was gathered
            measure = use_less_memory(self.run, self.training)
            memory.free_unused()
            if measure is None:
                raise memory_full(reason)
            self.say(say(f"out of memory at step {step + 1}: {measure}", f"第 {step + 1} 步显存不足：{measure}"))
            if self.outputs:
                self.outputs.run_log.event("out of memory", step=step, done=measure)

    def leaves_out(self, step: int, batches: list[Batch | None], loss: Tensor) -> bool:
        """Whether the step's batches gave NaN, now that it is looked for, or when it was.

        Raises:
            UserError: they are not the first.
        """
        if step + 1 in self.skipped:
            return True
        if step >= self.until or is_sound(self.training, loss):
            return False
        cause = self.cause_of_nan(step, batches)
        if self.skipped:
            raise not_finite(cause)
        self.say(say(f"{cause}. Skipping this batch", f"{cause}。跳过这个批次"))
        self.skipped.add(step + 1)
        return True

    def cause_of_nan(self, step: int, batches: list[Batch | None]) -> str:
        """Do a step's passes once more, slowly: which tensor is the first that is not finite, in which batch."""
        import torch

        from library.hardware import nan

        run, training, generator = self.run, self.training, torch.Generator()
        causes = []
        for place, batch in enumerate(batches):
            if batch is None:
                continue
            seed_step(generator, run.seed, step, place)
            inputs = self.draw(run, training, batch, generator)

            def passes(hunt: Hunt, inputs: Inputs = inputs) -> None:
                with training.blocks.observed(hunt.block):
                    self.backward(run, training, inputs, 1.0)

            named = {
                say("the latents", "图片编码"): batch.latents,
                say("the noisy latents", "加噪后的图片编码"): inputs.noisy,
            }
            for name, tensor in (inputs.text_embeddings or {}).items():
                named[say(f"the captions' {name}", f"标注编码（{name}）")] = tensor
            causes.append(_nan_first_in(nan.first_bad(named, passes), step, batch, inputs.t))
        training.adapters.gather()
        return "; ".join(causes)


def use_less_memory(run: Run, training: Training) -> str | None:
    """Take the next measure, the cheapest first; what it is and what it costs. None: there is none left."""
    from library.hardware.attention import Attention

    denoiser, plan = training.family.denoiser, training.memory
    if training.step.disable():
        return say("CUDA graphs are off now, somewhat slower", "不再使用 CUDA graphs，略慢")
    assert denoiser.execution is not None, "set when the adapters were attached"
    attend = denoiser.execution.attend
    assert isinstance(attend, Attention)
    if attend.kind == "chunked" and attend.chunk_bytes > SMALLEST_CHUNK:
        attend = dataclasses.replace(attend, chunk_bytes=attend.chunk_bytes // 2)
        denoiser.compute_with(denoiser.execution._replace(attend=attend))
        size = attend.chunk_bytes >> 20
        return say(f"attention in chunks of {size} MiB, hardly slower", f"注意力改为每块 {size} MiB，几乎不变慢")
    for name, module in training.family.modules().items():
        is_idle = name.startswith("text_encoder") and not trains_text_encoder(run.settings)
        if is_idle and next(module.parameters()).device.type != "cpu":
            module.to("cpu")
            return say(f"{name} works on the CPU, somewhat slower", f"{name} 移到 CPU 上运行，略慢")
    costs, blocks = plan.unlimited.blocks, training.blocks
    left = [name for name in costs if name not in blocks.recomputed]
    if left:
        left.sort(key=lambda name: costs[name].kept / max(1, costs[name].flops), reverse=True)
        more = left[: max(1, (len(left) + 1) // 2)]
        blocks.recomputed |= frozenset(more)
        extra = sum(costs[name].flops for name in more) / plan.unlimited.flops
        count, of = len(blocks.recomputed), len(costs)
        return say(
            f"{count} of {of} blocks are now checkpointed, {extra:.0%} more compute",
            f"现在 {of} 个模块中有 {count} 个启用了梯度检查点，计算量增加 {extra:.0%}",
        )
    if training.batch_parts < run.plan.batch_size:
        training.batch_parts *= 2
        return say(
            f"each batch is processed in {training.batch_parts} parts, with the same result; slower",
            f"每个批次分 {training.batch_parts} 次计算，结果不变，较慢",
        )
    return None


# ---- What is said ----


def _goes_back(error: FloatingPointError, state: State) -> str:
    step = state.position.global_step
    return say(
        f"{error}. Returning to the state of step {step} to find the cause",
        f"{error}。退回第 {step} 步的状态，查找原因",
    )


def _nan_first_in(cause: str, step: int, batch: Batch, t: Tensor) -> str:
    images = ", ".join(str(sample.image_path) for sample in batch.samples)
    times = ", ".join(f"{float(one):g}" for one in t)
    return say(
        f"step {step + 1}: NaN or infinity, first in {cause}; images: {images}; timesteps: {times}",
        f"第 {step + 1} 步出现 NaN 或无穷大，最先出现在：{cause}；图片：{images}；时间步：{times}",
    )


def memory_full(reason: str) -> UserError:
    """The error where no measure is left."""
    first = reason.splitlines()[0] if reason else "out of memory"
    return UserError(
        say(
            f"the device's memory is full, and there is nothing left to reduce ({first}). Lower resolution or "
            "network_dim, set text_encoder_lr = 0 or int8_base = True, or close other programs.",
            f"显存不足，已没有可再节省的部分（{first}）。请降低 resolution 或 network_dim，设 text_encoder_lr = 0 或 "
            "int8_base = True，或关闭其他程序。",
        )
    )
