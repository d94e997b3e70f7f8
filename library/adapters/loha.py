"""LoHa: a layer's update as the elementwise product of two low-rank matrices. Hyeon-Woo et al. 2021, arXiv:2108.06098.

    dW = alpha / rank * (w1_a w1_b) * (w2_a w2_b)

Its rank is up to r², from as many numbers as LoRA has with 2 r. A convolution's kernel counts as inputs: w_b is
(r, n k k), as in LyCORIS without Tucker decomposition. Written as `hada_w1_a`, `hada_w1_b`, `hada_w2_a`, `hada_w2_b`;
read by A1111, Forge, ComfyUI and LyCORIS. diffusers loads no such file.

`w2_a` starts at zero and the others random, of the deviations that LyCORIS takes, so training starts at the base model
exactly.
"""

import torch
from torch import Tensor, nn

from library.adapters.layer import WholeLayer, generator_of, gradient_of
from library.adapters.linear_ops import Layer


class LohaLayer(WholeLayer):
    """See `WholeLayer`.

    Args:
        seed, name: of the initial weights, as in `LoraLayer`.
    """

    FILE_NAMES = {"w1_a": "hada_w1_a", "w1_b": "hada_w1_b", "w2_a": "hada_w2_a", "w2_b": "hada_w2_b"}
    RANK_AXIS = {"w1_a": 1, "w1_b": 0, "w2_a": 1, "w2_b": 0}
    PLUS = "w2_a"  # as in sd-scripts' networks/loha.py

    w1_a: nn.Parameter
    w1_a_master: Tensor
    w1_b: nn.Parameter
    w1_b_master: Tensor
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
        seed: int = 0,
        name: str = "",
        **dropouts: float,
    ):
        outputs, inputs = layer.weight.flatten(1).shape
        generator = generator_of(seed, name)
        start = {
            "w1_a": torch.randn(outputs, rank, generator=generator) * 0.1,
            "w1_b": torch.randn(rank, inputs, generator=generator),
            "w2_a": torch.zeros(outputs, rank),
            "w2_b": torch.randn(rank, inputs, generator=generator),
        }
        super().__init__(layer, rank, alpha, start, **dropouts)

    def matrix(self, *tensors: Tensor) -> Tensor:
        w1_a, w1_b, w2_a, w2_b = tensors
        return (w1_a @ w1_b) * (w2_a @ w2_b) * self.scale

    def make(self, prepared: None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = self.w1_a.detach() @ self.w1_b.detach()  # (m, n k k)
        second = (self.w2_a.detach() @ self.w2_b.detach()).mul_(self.scale)
        return first * second, (first, second)

    def backward(self, gradient: Tensor, kept: tuple[Tensor, Tensor]) -> None:
        first, second = kept
        of_first, of_second = second.mul_(gradient), first.mul_(gradient)  # in place: nobody asks for them again
        gradient_of(self.w1_a).addmm_(of_first, self.w1_b.detach().T)
        gradient_of(self.w1_b).addmm_(self.w1_a.detach().T, of_first)
        gradient_of(self.w2_a).addmm_(of_second, self.w2_b.detach().T, alpha=self.scale)
        gradient_of(self.w2_b).addmm_(self.w2_a.detach().T, of_second, alpha=self.scale)

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        for master in self.masters():
            master *= ratio**0.25  # a quarter for each factor
