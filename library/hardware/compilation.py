"""torch.compile for the U-Net's blocks, one resnet or transformer block at a time: an option, tried before it is used.

Blocks of one kind and shape share one compiled graph, so SDXL needs about a dozen for each shape of batch; each takes
some ten seconds to make. What is compiled is the plain way of computing a block, which autograd differentiates: the
fast functions add gradients in place behind autograd's back, where a compiler cannot follow.

A compiler may be missing, may fail, and on some GPUs its kernels have silently written nothing. So each block is run
both ways when its shape first comes, forward and backward, on what it is given; where that fails or the results differ,
it is computed as without the option, and one line says so.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from library.messages import say

Function = Callable[..., Tensor]  # (module, *tensors) -> tensor
MOST_GRAPHS = 128  # of one function, kinds of blocks times shapes of batches; the compiler is asked for no more
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # of the length


class Compiler:
    """Compiles block functions.

    Args:
        tell: called with one line if a compiled block cannot be used; no other is then compiled.
        backend: of torch.compile (`dynamo_backend`).
    """

    def __init__(self, tell: Callable[[str], None], backend: str = "inductor"):
        self.tell, self.backend = tell, backend
        self.is_on = True

    def __call__(self, plain: Function, fast: Function) -> Function:
        """A function that takes the place of two.

        Args:
            plain: (module, *tensors) -> tensor, for autograd and without random numbers: what is compiled.
            fast: gives the same; used where the compiled one is not: previews, and blocks that were found wanting.
        """
        try:
            torch._dynamo.config.recompile_limit = MOST_GRAPHS  # an argument of torch.compile since 2.13 only
            compiled = torch.compile(plain, dynamic=False, fullgraph=True, backend=self.backend)
        except Exception as error:  # not on this system, or not with this Python
            self._give_up(_cause(error))
            return fast
        # A verdict is never changed: a recomputed block must be computed the same way the second time.
        verdicts: dict[tuple[object, ...], bool] = {}

        def run(module: nn.Module, *tensors: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return fast(module, *tensors)
            key = (module, *((x.shape, x.dtype, x.requires_grad) for x in tensors))
            if key not in verdicts:
                verdicts[key] = self.is_on and self._is_right(compiled, plain, module, tensors)
            return (compiled if verdicts[key] else fast)(module, *tensors)

        return run

    def _is_right(self, compiled: Function, plain: Function, module: nn.Module, tensors: tuple[Tensor, ...]) -> bool:
        try:
            # Within a checkpoint: its hooks must not see this.
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
                pairs = zip(_results(compiled, module, tensors), _results(plain, module, tensors), strict=True)
            problem = None if all(_are_near(*pair) for pair in pairs) else say("its results differ", "结果不一致")
        except Exception as error:  # the compiler and its own compilers have many kinds
            problem = _cause(error)
        if problem is not None:
            self._give_up(problem)
        return problem is None

    def _give_up(self, reason: str) -> None:
        self.is_on = False
        self.tell(
            say(
                f"torch_compile: nothing more is compiled, training goes on without it ({reason})",
                f"torch_compile：不再继续编译，训练照常进行（{reason}）",
            )
        )


def _results(function: Function, module: nn.Module, tensors: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Output, and gradients of everything that has one; none of them is added to anything."""
    copies = [x.detach().requires_grad_(x.requires_grad) for x in tensors]
    output = function(module, *copies)
    if not output.requires_grad:  # nothing before it is trained
        return [output]
    # not random: the run's random numbers must not depend on this
    outer = torch.linspace(-0.01, 0.01, output.numel(), device=output.device).to(output.dtype).view_as(output)
    leaves = [x for x in (*copies, *_adapted(module)) if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, leaves, outer, allow_unused=True)]


def _adapted(module: nn.Module) -> list[Tensor]:
    """What is trained in a block: adapters lie beside its layers, not among its parameters."""
    adapters = (layer.__dict__.get("adapter") for layer in module.modules())
    return [parameter for adapter in adapters if adapter is not None for parameter in adapter.parameters()]


def _are_near(result: Tensor | None, expected: Tensor | None) -> bool:
    if result is None or expected is None:  # the keys and values of the captions are computed elsewhere
        return result is expected
    result, expected = result.cpu(), expected.cpu()  # Apple's MPS has no float64
    distance = torch.linalg.vector_norm(result - expected, dtype=torch.float64)
    return bool(distance <= TOLERANCE[expected.dtype] * torch.linalg.vector_norm(expected, dtype=torch.float64))


def _cause(error: Exception) -> str:
    """The first line of what the compiler has said; torch wraps it in an error of its own."""
    error = getattr(error, "inner_exception", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
