"""DoRA: LoRA gives each input's direction, a vector of its own its magnitude. Liu et al. 2024, arXiv:2402.09353.

    W' = m * (W + D) / norm(W + D),    D = alpha / rank * up @ down,    dW = W' - W

The norm is that of each column, all weights that read one input, as the paper writes it (W is (m, n), m is (1, n)). The
file holds it as `dora_scale`, (1, n) or (1, n, 1, 1), beside `lora_down` and `lora_up`. Read that way by A1111, Forge, ComfyUI
and LyCORIS (`wd_on_output=False`, its default). With a magnitude for each output, as in peft, A1111 would give another
picture, and ComfyUI and Forge another one again, since they divide by the norm of W alone. diffusers leaves
`dora_scale` away with a warning.

m starts as the norm of W and `up` at zero, so training starts at the base model exactly. The gradient does not go
through the norm (section 4.3).
"""

import torch
from torch import Tensor, nn

from library.adapters.layer import WholeLayer, generator_of, kaiming
from library.adapters.linear_ops import dtype_of, frozen_matrix


class DoraLayer(WholeLayer):
    """See `WholeLayer`.

    Args:
        seed, name: of the initial `down`, as in `LoraLayer`.
    """

    FILE_NAMES = {"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale"}
    RANK_AXIS = {"down": 0, "up": 1}

    def __init__(
        self, layer: nn.Module, rank: int, alpha: float | None = None, *, seed: int = 0, name: str = "", **dropouts: float
    ):
        outputs, inputs, *kernel = layer.weight.shape
        ones = [1] * len(kernel)
        self_norm = _norms(_exact(frozen_matrix(layer)).view(outputs, inputs, -1))
        start = {
            "down": kaiming(rank, inputs, *kernel, generator=generator_of(seed, name)),
            "up": torch.zeros(outputs, rank, *ones),
            "magnitude": self_norm.view(1, inputs, *ones).clone(),
        }
        super().__init__(layer, rank, alpha, start, **dropouts)
        self._base_norm = self_norm  # (n,) of W

    def bind(self, masters: list[Tensor], work: list[Tensor], gradients: list[Tensor]) -> None:
        super().bind(masters, work, gradients)
        self._base_norm = self._base_norm.to(masters[0].device)

    def matrix(self, down: Tensor, up: Tensor, magnitude: Tensor) -> Tensor:
        weight = frozen_matrix(self._layer[0]).to(down.dtype).view(*self._layer[0].weight.shape[:2], -1)
        low = (up.flatten(1) @ down.flatten(1)).view(weight.shape) * self.scale
        with torch.no_grad():
            norm = _norms(_exact(weight) + _exact(low))
        # The exact value of m: half precision would round away what it has learned. Its gradient goes to `magnitude`.
        exact = self.magnitude_master.flatten() + (_exact(magnitude) - _exact(magnitude.detach())).flatten()
        turned = (exact / norm)[:, None] * (_exact(weight) + _exact(low))
        return (turned - _exact(weight)).to(down.dtype).flatten(1)

    def make(self) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """dW = (c - 1) W + c D with c = m / norm(W + D), so that nothing small is added to something large."""
        down, up = self.down.detach().flatten(1), self.up.detach().flatten(1)
        weight = self._weight()  # (m, n, k k)
        low = (up @ down).mul_(self.scale).view(weight.shape)
        base, exact = self._base_norm, self._base_norm.dtype
        grown = 2 * (weight * low).sum((0, 2), dtype=exact)
        grown += torch.linalg.vector_norm(low, dim=(0, 2), dtype=exact).square_()  # norm(W + D)² - norm(W)²
        norm = _floor((base.square() + grown).clamp_(min=0).sqrt_())
        more = ((self.magnitude_master.flatten() - base) - grown / _floor(norm + base)) / norm  # c - 1
        factor = (1 + more).to(weight.dtype)[:, None]
        return torch.addcmul(low * factor, weight, more.to(weight.dtype)[:, None]).flatten(1), (low, factor, norm)

    def backward(self, gradient: Tensor, kept: tuple[Tensor, Tensor, Tensor]) -> None:
        low, factor, norm = kept
        gradient = gradient.view(low.shape)
        weight = self._weight()
        of_magnitude = (gradient * weight).sum((0, 2), dtype=norm.dtype) + low.mul_(gradient).sum((0, 2), dtype=norm.dtype)
        self.magnitude.grad.view(-1).add_(of_magnitude / norm)
        of_low = (gradient * factor).flatten(1)
        self.down.grad.flatten(1).addmm_(self.up.detach().flatten(1).T, of_low, alpha=self.scale)
        self.up.grad.flatten(1).addmm_(of_low, self.down.detach().flatten(1).T, alpha=self.scale)

    def _weight(self) -> Tensor:
        layer = self._layer[0]
        return frozen_matrix(layer).view(*layer.weight.shape[:2], -1)

    @torch.no_grad()
    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._difference()[0])

    def _difference(self) -> tuple[Tensor, Tensor, Tensor]:
        """(m, n, k k) dW and W, (n,) c = m / norm(W + D), all exact."""
        weight = _exact(self._weight())
        low = (self.up_master.flatten(1) @ self.down_master.flatten(1)).view(weight.shape) * self.scale
        factor = self.magnitude_master.flatten() / _norms(weight + low)
        return (factor - 1)[:, None] * weight + factor[:, None] * low, weight, factor

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """W + ratio dW has columns along W + s D, with s = ratio c / (1 + ratio (c - 1)) for each input."""
        difference, weight, factor = self._difference()
        magnitude = _norms(weight + ratio * difference)
        along = ratio * factor / (1 + ratio * (factor - 1))
        self.down_master *= torch.where(ratio < 1, along, 1).view(1, -1, *[1] * len(self.kernel))
        self.magnitude_master.copy_(torch.where(ratio < 1, magnitude, self.magnitude_master.flatten()).view_as(self.magnitude_master))


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _floor(norm: Tensor) -> Tensor:
    """Norms to divide by: not 0 where a column of weights is all zero."""
    return norm.clamp_(min=torch.finfo(norm.dtype).tiny)


def _norms(weight: Tensor) -> Tensor:
    """(m, n, k k) -> (n,) of each column."""
    return _floor(torch.linalg.vector_norm(weight, dim=(0, 2)))
