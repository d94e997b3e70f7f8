"""DoRA: LoRA turns the weights that read an input, a number of its own scales them. Liu et al. 2024, arXiv:2402.09353.

    W' = magnitude * (W + D) / norm(W + D),    D = alpha / rank * up @ down,    dW = W' - W

The norm is that of each column, all weights that read one input, as the paper writes it; W is (m, n), magnitude
(1, n). The file holds it as `dora_scale`, (1, n) or (1, n, 1, 1), beside `lora_down` and `lora_up`, always in float32:
`lora_file.EXACT` says why. Read that way by A1111, Forge and ComfyUI. LyCORIS takes a number for each output unless it
is told `wd_on_output=False`; so it goes on with such a file in a training of that setting, and its tools, which make
their modules from a file alone, refuse it. With a number for each output, as in peft, A1111 would give another image,
and ComfyUI and Forge a third one, since they then divide by the norm of W alone. diffusers drops `dora_scale` with a
warning.

`magnitude` starts as the norm of W and `up` at zero, so training starts at the base model exactly. The gradient does
not go through the norm (section 4.3).
"""

import torch
from torch import Tensor, nn

from library.adapters.layer import WholeLayer, generator_of, gradient_of, kaiming
from library.adapters.linear_ops import Layer, frozen_matrix


class DoraLayer(WholeLayer):
    """See `WholeLayer`.

    Args:
        seed, name: of the initial `down`, as in `LoraLayer`.
    """

    FILE_NAMES = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale"}
    RANK_AXIS = {"down": 0, "up": 1}
    PLUS = "up"

    down: nn.Parameter
    down_master: Tensor
    up: nn.Parameter
    up_master: Tensor
    magnitude: nn.Parameter
    magnitude_master: Tensor

    def __init__(
        self,
        layer: Layer,
        rank: int,
        alpha: float | None = None,
        *,
        seed: int = 0,
        name: str = "",
        **dropouts: float,
    ):
        outputs, inputs, *kernel = layer.weight.shape
        ones = [1] * len(kernel)
        base_norm = _norms(_exact(frozen_matrix(layer)), inputs)
        start = {
            "down": kaiming(rank, inputs, *kernel, generator=generator_of(seed, name)),
            "up": torch.zeros(outputs, rank, *ones),
            "magnitude": base_norm.view(1, inputs, *ones),
        }
        super().__init__(layer, rank, alpha, start, **dropouts)
        self._base_norm = base_norm  # (n,) of W

    def bind(self, masters: list[Tensor], work: list[Tensor], gradients: list[Tensor]) -> None:
        super().bind(masters, work, gradients)
        self._base_norm = self._base_norm.to(masters[0].device)

    def matrix(self, *tensors: Tensor) -> Tensor:
        down, up, magnitude = tensors
        weight = _exact(frozen_matrix(self._layer[0]))
        turned = weight + _exact(up.flatten(1)) @ _exact(down.flatten(1)) * self.scale
        # Its exact value, for half precision would round away what it has learned; the gradient goes to `magnitude`.
        exact = self.magnitude_master + _exact(magnitude) - _exact(magnitude.detach())
        factor = exact.flatten() / _norms(turned.detach(), magnitude.shape[1])  # c
        return (self._of_columns(factor) * turned - weight).to(down.dtype)

    @torch.no_grad()
    def prepare(self) -> tuple[Tensor, Tensor, Tensor]:
        """(n k k,) c - 1 and c, with c = magnitude / norm(W + D); (n,) the norm. All exact.

        The norm comes from thin products: with D = scale up down, norm(W + D)² is norm(W)² plus the sums over the rank
        of 2 scale (up^T W) * down and scale² (up^T up down) * down.
        """
        down, up, base = self.down.flatten(1), self.up.flatten(1), self._base_norm
        exact_down, exact_up = down.to(base.dtype), up.to(base.dtype)
        turned = (exact_up.T @ exact_up) @ exact_down
        turned = torch.add(turned * self.scale, up.T @ frozen_matrix(self._layer[0]), alpha=2)
        grown = (turned * exact_down).sum(0).view(len(base), -1).sum(1) * self.scale  # norm(W + D)² - norm(W)²
        norm = _floor(torch.addcmul(grown, base, base)).sqrt_()
        more = ((self.magnitude_master.flatten() - base) - grown / (norm + base)) / norm
        return self._of_columns(more), self._of_columns(1 + more), norm

    def make(self, prepared: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """dW = (c - 1) W + c D: nothing small is added to something large."""
        more, factor, _ = prepared
        down, up, weight = self.down.detach().flatten(1), self.up.detach().flatten(1), frozen_matrix(self._layer[0])
        matrix = torch.addmm(weight * more.to(weight.dtype), up, (down * factor).to(down.dtype), alpha=self.scale)
        return matrix, prepared

    def backward(self, gradient: Tensor, kept: tuple[Tensor, Tensor, Tensor]) -> None:
        _, factor, norm = kept
        down, up = self.down.detach().flatten(1), self.up.detach().flatten(1)
        turned = (up.T @ gradient).to(norm.dtype)  # (r, n k k)
        gradient_of(self.down).flatten(1).add_(turned * factor, alpha=self.scale)
        gradient_of(self.up).flatten(1).addmm_(gradient, (down * factor).to(down.dtype).T, alpha=self.scale)
        of_factor = gradient.mul_(frozen_matrix(self._layer[0])).sum(0, dtype=norm.dtype)
        of_factor.add_((turned * down).sum(0), alpha=self.scale)
        gradient_of(self.magnitude).view(-1).add_(of_factor.view(len(norm), -1).sum(1) / norm)

    def _of_columns(self, values: Tensor) -> Tensor:
        """(n,) -> (n k k,): each input's value for all its columns."""
        return values.repeat_interleave(self.down[0, 0].numel()) if self.kernel else values

    @torch.no_grad()
    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._difference()[0])

    def _difference(self) -> tuple[Tensor, Tensor, Tensor]:
        """(m, n k k) dW and W, (n,) c, of the masters."""
        weight = _exact(frozen_matrix(self._layer[0]))
        turned = weight + self.up_master.flatten(1) @ self.down_master.flatten(1) * self.scale
        factor = self.magnitude_master.flatten() / _norms(turned, self.magnitude_master.shape[1])
        return self._of_columns(factor) * turned - weight, weight, factor

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """W + ratio dW = (1 + ratio (c - 1)) (W + s D) with s = ratio c / (1 + ratio (c - 1)), for each input."""
        difference, weight, factor = self._difference()
        along = ratio * factor / (1 + ratio * (factor - 1))
        magnitude = _norms(weight + ratio * difference, len(factor)).view_as(self.magnitude_master)
        self.down_master *= torch.where(ratio < 1, along, 1).view(1, -1, *[1] * len(self.kernel))
        self.magnitude_master.copy_(torch.where(ratio < 1, magnitude, self.magnitude_master))


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _floor(norm: Tensor) -> Tensor:
    """Norms to divide by: not 0 where all weights of an input are."""
    return norm.clamp_(min=torch.finfo(norm.dtype).tiny)


def _norms(matrix: Tensor, inputs: int) -> Tensor:
    """(m, n k k) -> (n,) of all that reads an input."""
    return _floor(torch.linalg.vector_norm(matrix.view(len(matrix), inputs, -1), dim=(0, 2)))
