"""Where a NaN comes from: the first operator of a pass whose result is not finite, and the block that it belongs to."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from library.hardware.blocks import Result
from library.messages import say


def first_bad(inputs: dict[str, Tensor | None], run: Callable[["Hunt"], object]) -> str:
    """What is not finite first.

    Args:
        inputs: what goes in, by a name for the person; looked at before anything runs.
        run: the forward and backward pass; may have its blocks observed by the hunt's `block`.

    Returns:
        A clause such as "the latents" or "down_blocks.1.resnets.0 (convolution, forward)".
    """
    for name, tensor in inputs.items():
        if tensor is not None and not _is_finite(tensor):
            return name
    with Hunt() as hunt:
        run(hunt)
    return hunt.first_bad or say("it did not happen again on a second try", "重算时没有再出现")


class Hunt(TorchDispatchMode):
    """Looks at every result. Slow: it waits for the device each time."""

    def __init__(self):
        super().__init__()
        self.first_bad: str | None = None
        self._block = ""

    def block(self, name: str, function: Callable[..., Result], *arguments: object) -> Result:
        """Run a block, and remember its name: a `blocks.Observer`."""
        self._block = name
        result = function(*arguments)
        self._block = ""
        return result

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        makes_room = func.overloadpacket.__name__.startswith(("empty", "new_empty"))
        if self.first_bad is None and not makes_room and not all(map(_is_finite, _tensors(result))):
            place = self._block or say("between the blocks, or in the backward pass", "模块之间或反向传播中")
            self.first_bad = f"{place} ({func.overloadpacket.__name__})"
        return result


def _tensors(result: object) -> Iterable[Tensor]:
    results = result if isinstance(result, (tuple, list)) else (result,)
    return [tensor for tensor in results if isinstance(tensor, Tensor) and tensor.is_floating_point()]


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all of them are; waits for the device."""
    return all(map(_is_finite, tensors))
