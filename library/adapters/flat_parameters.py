"""Where everything that is trained lies side by side, so that one operator does what a loop over layers would do.

    master      float32, what the optimizer changes, one flat tensor: a step of AdamW is one operator, not 722
    work        the same in the base model's dtype, which the forward and backward pass read (in fp32: master itself)
    gradient    in the base model's dtype; the backward pass adds to it, layer by layer (in fp32: also master.grad)

With the two moments of Adam that is 16 bytes for each number, as with float32 alone: a float32 gradient exists only
while the optimizer steps, when the activations are gone. 722 layers of SDXL, clipping and AdamW: 58 ms with torch's
foreach loops, 1 ms flat (docs/log.md).
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from library.adapters.layer import AdapterLayer
from library.adapters.linear_ops import Stack, dtype_of
from library.adapters.sizes import LrScale, ParamGroup

EVERYTHING = ParamGroup("", LrScale(), is_plus=False)
ALIGNMENT = 8  # numbers: matrix products want their operands to begin at 16 bytes


class FlatParameters:
    """The adapters of one part of the model, bound to flat memory.

    Args:
        layer_groups: layers that share an input and have one shape, and are laid side by side, all `down`s, then all
            `up`s; one alone otherwise.
        param_group_of: from a layer group's first layer and the name of a tensor to what the tensor is optimized with.
            What is of one such group lies together, to be changed by one operator at a learning rate of its own.
            Usually everything is of one, and lies layer group by layer group.
    """

    def __init__(
        self,
        layer_groups: Sequence[Sequence[AdapterLayer]],
        param_group_of: Callable[[AdapterLayer, str], ParamGroup] = lambda layer, attribute: EVERYTHING,
    ):
        self.layer_groups = [list(group) for group in layer_groups]
        self.param_group_of = param_group_of
        self.param_groups: dict[ParamGroup, slice] = {}  # of `master`, in its order
        layer = self.layer_groups[0][0]._layer[0]
        self._place(dtype_of(layer), layer.weight.device)

    def _place(self, dtype: torch.dtype, device: torch.device) -> None:
        # parameter group -> (row, column of `places`, numbers)
        wanted: dict[ParamGroup, list[tuple[list[int], int, int]]] = {}
        places, size = [], 0  # of each group: where the layers' first tensors begin, their second ones, ...
        for group in self.layer_groups:
            places.append([0] * len(group[0].attributes))
            for order, (attribute, master) in enumerate(zip(group[0].attributes, group[0].masters(), strict=True)):
                rooms = wanted.setdefault(self.param_group_of(group[0], attribute), [])
                rooms.append((places[-1], order, len(group) * master.numel()))
        for param_group, rooms in wanted.items():
            begin = size
            for row, order, room in rooms:
                row[order] = size
                size += room + -room % ALIGNMENT
            self.param_groups[param_group] = slice(begin, size)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        flat = torch.zeros(size, dtype=exact, device=device)
        if hasattr(self, "master"):
            self.master.grad = None
            self.master.data = flat
        else:
            self.master = nn.Parameter(flat)
        self.work = flat if dtype == exact else torch.zeros(size, dtype=dtype, device=device)
        self.gradient = torch.zeros_like(self.work)
        flats = (flat, self.work, self.gradient)
        for group, at in zip(self.layer_groups, places, strict=True):
            sizes = [master.numel() for master in group[0].masters()]
            for order, layer in enumerate(group):
                layer.bind(
                    *(
                        [whole[a + order * n : a + (order + 1) * n] for a, n in zip(at, sizes, strict=True)]
                        for whole in flats
                    )
                )
            self._stack(group, at, sizes)
        self.refresh()

    def _stack(self, group: list[AdapterLayer], at: list[int], sizes: list[int]) -> None:
        if len(group) == 1:
            return
        count, rank = len(group), group[0].rank
        views = []
        for whole in (self.work, self.gradient):
            down, up = (whole[a : a + count * n] for a, n in zip(at, sizes, strict=True))
            views += [down.view(count * rank, -1), up.view(count, -1, rank)]
        stack = Stack([layer._layer[0] for layer in group], *views)
        for layer in group:
            layer.stack = stack

    def gather(self) -> None:
        """Hand the gradients of a backward pass to the optimizer: `master.grad`, float32, summed over such calls."""
        if self.work.data_ptr() == self.master.data_ptr():
            self.master.grad = self.gradient
        elif self.master.grad is None:
            self.master.grad = self.gradient.to(self.master.dtype)
            self.gradient.zero_()
        else:
            self.master.grad.add_(self.gradient)
            self.gradient.zero_()

    def clear(self) -> None:
        """Forget the gradients."""
        self.master.grad = None
        self.gradient.zero_()

    def refresh(self) -> None:
        """After the optimizer has changed `master`: the forward pass sees it."""
        if self.work.data_ptr() != self.master.data_ptr():
            self.work.copy_(self.master.detach())

    def to(self, device: torch.device | str) -> None:
        """Move it; `master` stays the same object, so an optimizer that holds it goes on."""
        if self.work.device != torch.device(device):
            self._place(self.work.dtype, torch.device(device))
