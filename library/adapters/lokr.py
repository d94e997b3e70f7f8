"""LoKr: a layer's update as a Kronecker product. Yeh et al. 2023, arXiv:2309.14859 (LyCORIS), section 3.

    dW = scale * kron(w1, w2),    w1 (m1, n1),  w2 (m2, n2 k k) = w2_a w2_b,    m1 m2 = m,  n1 n2 = n

Small files: m1 and n1 are near the square roots of m and n, or near `factor`. Where the rank would not be less than
half of w2's sides, w2 is trained whole. Written as `lokr_w1`, `lokr_w2` or `lokr_w2_a`, `lokr_w2_b`; read by A1111,
Forge, ComfyUI and LyCORIS. diffusers 0.42 loads such files for other families only.

The scale is alpha / rank, and 1 where w2 is whole: so all of them read it. `w2_b` (or w2) starts at zero and the others
random, so training starts at the base model exactly.
"""

import math

import torch
from torch import Tensor, nn

from library.adapters.layer import WholeLayer, generator_of, gradient_of, kaiming
from library.adapters.linear_ops import Layer


class LokrLayer(WholeLayer):
    """See `WholeLayer`.

    Args:
        factor: the side of w1, as near to it as a divisor is; None: the square root.
        seed, name: of the initial weights, as in `LoraLayer`.
    """

    FILE_NAMES = {"w1": "lokr_w1", "w2": "lokr_w2", "w2_a": "lokr_w2_a", "w2_b": "lokr_w2_b"}
    RANK_AXIS = {"w2_a": 1, "w2_b": 0}
    PLUS = "w1"  # as in sd-scripts' networks/lokr.py

    w1: nn.Parameter
    w1_master: Tensor
    w2: nn.Parameter
    w2_master: Tensor
    w2_a: nn.Parameter
    w2_a_master: Tensor
    w2_b: nn.Parameter
    w2_b_master: Tensor

    def __init__(
        self,
        layer: Layer,
        rank: int,
        alpha: float | None = None,
        *,
        factor: int | None = None,
        seed: int = 0,
        name: str = "",
        **dropouts: float,
    ):
        outputs, inputs, *kernel = layer.weight.shape
        (m1, m2), (n1, n2) = divisors(outputs, factor), divisors(inputs, factor)
        generator = generator_of(seed, name)
        start = {"w1": kaiming(m1, n1, generator=generator)}
        if 2 * rank < max(m2, n2):
            start["w2_a"] = kaiming(m2, rank, generator=generator)
            start["w2_b"] = torch.zeros(rank, n2 * math.prod(kernel))
        else:
            start["w2"] = torch.zeros(m2, n2, *kernel)
            alpha = rank
        super().__init__(layer, rank, alpha, start, **dropouts)

    def matrix(self, *tensors: Tensor) -> Tensor:
        w1, *of_second = tensors
        second = of_second[0].flatten(1) if len(of_second) == 1 else of_second[0] @ of_second[1]
        return torch.kron(w1 * self.scale, second)

    def make(self, prepared: None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = self.w1.detach() * self.scale
        second = self.w2.detach().flatten(1) if "w2" in self.attributes else self.w2_a.detach() @ self.w2_b.detach()
        return torch.kron(first, second), (first, second)

    def backward(self, gradient: Tensor, kept: tuple[Tensor, Tensor]) -> None:
        first, second = kept
        (m1, n1), (m2, n2) = first.shape, second.shape
        blocks = gradient.view(m1, m2, n1, n2).transpose(1, 2).reshape(m1 * n1, m2 * n2)
        gradient_of(self.w1).view(-1).addmv_(blocks, second.flatten(), alpha=self.scale)
        of_second = (first.view(1, -1) @ blocks).view(m2, n2)
        if "w2" in self.attributes:
            gradient_of(self.w2).flatten(1).add_(of_second)
        else:
            gradient_of(self.w2_a).addmm_(of_second, self.w2_b.detach().T)
            gradient_of(self.w2_b).addmm_(self.w2_a.detach().T, of_second)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """() Frobenius norm of the update: that of a Kronecker product is the product of the norms."""
        second = self.w2_master if "w2" in self.attributes else self.w2_a_master @ self.w2_b_master
        return torch.linalg.vector_norm(self.w1_master) * torch.linalg.vector_norm(second) * self.scale

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        for master in self.masters():
            master *= ratio ** (1 / len(self.attributes))  # an equal share for each factor


def divisors(size: int, factor: int | None = None) -> tuple[int, int]:
    """Two numbers whose product is `size`, the smaller one first.

    Args:
        factor: one of them, where it divides `size`, else the smaller one is the largest divisor not above it; None:
            as near to the square root as can be.

    Source: LyCORIS's `factorization`, whose values these are; a factor of -1 is our None.
    """
    if factor and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = min(math.isqrt(size), factor or size)
    smaller = next(number for number in range(limit, 0, -1) if size % number == 0)
    return smaller, size // smaller
