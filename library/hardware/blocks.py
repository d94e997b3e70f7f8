"""How the blocks of a denoiser are computed: the one place where a block is recomputed, observed or compiled.

A denoiser is a list of blocks (resnets, transformer blocks), each computed by a *block function*, (block, *arguments)
-> its result. Whoever computes a block calls `Blocks.run`, which decides the rest:

    recomputed  its inner activations are not kept but made again in the backward pass (gradient checkpointing)
    observed    somebody counts its memory (`memory.Trace.block`) or looks for the first NaN (`nan.Hunt.block`)
    compiled    another function, which gives the same, takes the place of its own

Our own forward pass of the U-Net calls `run` itself. The transformers of diffusers have a seam for it: `install`.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:  # the seam is all that is wanted of it
    from diffusers.models.modeling_utils import ModelMixin

Result = TypeVar("Result", bound=Tensor | tuple[Tensor, ...])
BlockFunction = Callable[..., Result]  # (block, *arguments) -> result


class Observer(Protocol):
    """Computes a block in the runner's place, and notes something about it."""

    def __call__(self, name: str, function: BlockFunction[Result], *arguments: object) -> Result: ...


class Blocks:
    """Runs the blocks of one denoiser.

    Args:
        recomputed: names of blocks that are computed a second time in the backward pass; may be changed between steps.
        is_random: blocks draw random numbers (dropout), which must be the same the second time.
    """

    def __init__(self, recomputed: Collection[str] = (), *, is_random: bool = False):
        self.recomputed = frozenset(recomputed)
        self.is_random = is_random
        self._observer: Observer | None = None
        self._compiled: dict[BlockFunction[Any], BlockFunction[Any]] = {}

    def run(self, name: str, function: BlockFunction[Result], *arguments: object) -> Result:
        """`function(*arguments)`, kept for the backward pass or computed again there.

        Args:
            name: of the block within the denoiser, "down_blocks.0.resnets.1".
            function: the block function; `arguments` begin with the block itself.
        """
        if self._observer:
            return self._observer(name, self._run, name, function, *arguments)
        return self._run(name, function, *arguments)

    def _run(self, name: str, function: BlockFunction[Result], *arguments: object) -> Result:
        function = self._compiled.get(function, function)
        if name not in self.recomputed or not torch.is_grad_enabled():
            return function(*arguments)
        # The check would compare what is kept both times; each recomputation of ours is tested instead.
        return checkpoint(
            function, *arguments, use_reentrant=False, preserve_rng_state=self.is_random, determinism_check="none"
        )

    @property
    def is_observed(self) -> bool:
        """Whether somebody looks at the blocks now: a recorded step would not pass through them."""
        return self._observer is not None

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Every block is computed by `observer` within."""
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    def compile(
        self,
        function: BlockFunction[Result],
        compiler: Callable[[BlockFunction[Result], BlockFunction[Result]], BlockFunction[Result]],
        plain: BlockFunction[Result],
    ) -> None:
        """Let a compiled function compute all blocks that `function` would compute from now on.

        Args:
            compiler: see `compilation.Compiler`.
            plain: gives the same as `function`, by operators that autograd knows: what is compiled.
        """
        self._compiled[function] = compiler(plain, function)

    def install(self, transformer: "ModelMixin") -> None:
        """Have a transformer of diffusers pass its blocks through `run` wherever gradients are on.

        It does so for gradient checkpointing, and calls whatever function it is given with each block and its
        arguments. Without gradients (previews) it calls the blocks directly.
        """
        name_of = {module: name for name, module in transformer.named_modules()}

        def run(block: nn.Module, *arguments: object) -> Tensor | tuple[Tensor, ...]:
            return self.run(name_of[block], call, block, *arguments)

        transformer.enable_gradient_checkpointing(run)


def call(block: nn.Module, *arguments: object) -> Tensor | tuple[Tensor, ...]:
    """The block function of a block that is computed by its own forward pass."""
    return block(*arguments)
