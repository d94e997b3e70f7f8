"""Singular values of a layer's update, and the best update of a smaller rank.

A LoRA's update is a product of two thin matrices; its singular values follow from the small square factors of their QR
decompositions, so the matrix itself, a thousand times larger, is never built. The difference of two models is no such
product: its singular values come from the Gram matrix of its shorter side. All in float64: the Gram matrix squares what
it is made of, and float32 would lose every value below 3e-4 of the largest.

Cut to the first r values the product is the nearest matrix of rank r, and what it is away is the root of the sum of the
dropped values' squares (Eckart and Young 1936).
"""

from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-6  # sd-scripts' MIN_SV: a matrix whose largest value is below it counts as zero
METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")


class Decomposition(NamedTuple):
    """left @ diag(values) @ right; float64."""

    left: Tensor  # (m, k) orthonormal columns
    values: Tensor  # (k,) falling, at least 0
    right: Tensor  # (k, n) orthonormal rows, those of a value 0 may be 0

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """(r, n) down and (m, r) up, float64, whose product is the nearest one of that rank.

        Each gets the roots of the values, so that neither leaves the range of half precision.
        """
        roots = self.values[:rank].sqrt()
        return roots[:, None] * self.right[:rank], self.left[:, :rank] * roots


class Likeness(NamedTuple):
    """What a product holds of the update that it is to be."""

    kept: float  # share of the Frobenius norm, at most what its error leaves; exactly cut: root of the kept squares
    error: float  # Frobenius norm of what the two differ by, as a share of the update's


def likeness(whole: tuple[Tensor, Tensor], written: tuple[Tensor, Tensor]) -> Likeness | None:
    """Of up @ down as it was written, rounded and clamped, to what it was to be; None where that is zero.

    By the small products of thin matrices, in float64: ‖A - B‖² = ‖A‖² - 2 <A, B> + ‖B‖².

    Args:
        whole, written: down (r, n) and up (m, r), each pair of a rank of its own.
    """
    (down, up), (down_w, up_w) = ([one.double() for one in pair] for pair in (whole, written))

    def inner(a_up: Tensor, a_down: Tensor, b_up: Tensor, b_down: Tensor) -> float:
        return float(((a_up.T @ b_up) * (a_down @ b_down.T)).sum())

    square = inner(up, down, up, down)
    if square <= 0:
        return None
    own = inner(up_w, down_w, up_w, down_w) / square
    error = max(0.0, 1 - 2 * inner(up, down, up_w, down_w) / square + own)
    return Likeness(max(0.0, min(own, 1 - error)) ** 0.5, error**0.5)


def of_product(down: Tensor, up: Tensor) -> Decomposition:
    """Of up @ down, without building it.

    Args:
        down: (r, n).
        up: (m, r).
    """
    left, left_small = torch.linalg.qr(up.double())  # (m, k) (k, r), k = min(m, r)
    right, right_small = torch.linalg.qr(down.double().T)
    inner_left, values, inner_right = torch.linalg.svd(left_small @ right_small.T, full_matrices=False)
    return Decomposition(left @ inner_left, values, inner_right @ right.T)


def of_matrix(matrix: Tensor) -> Decomposition:
    """Of a matrix (m, n), on its device. Vectors of values below 1e-8 of the largest, which are rounding, are 0."""
    matrix = matrix.double()
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = of_matrix(matrix.T)
        return Decomposition(right.T, values, left.T)
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)  # rising
    vectors = vectors.flip(1)
    rows = vectors.T @ matrix  # values * right
    values = torch.linalg.vector_norm(rows, dim=1)  # more exact than the roots of `squares`
    is_seen = values > 1e-8 * values.max()
    values = torch.where(is_seen, values, 0)
    return Decomposition(vectors, values, torch.where(is_seen[:, None], rows / values[:, None].clamp(min=1e-300), 0))


def choose_rank(values: Tensor, method: str, target: float, most: int) -> int:
    """How many singular values are kept, at least 1 and at most `most`.

    Args:
        values: (k,) falling.
        method: "sv_ratio": those above the largest / target; "sv_fro": as few as hold the share `target` of the
            Frobenius norm; "sv_cumulative": as few as hold that share of their sum.

    Source: the behaviour of sd-scripts' networks/resize_lora.py.
    """
    if values[0] <= LEAST:
        return 1
    if method == "sv_ratio":
        rank = int((values > values[0] / target).sum())
    else:
        weights, share = (values.square(), target**2) if method == "sv_fro" else (values, target)
        rank = int((weights.cumsum(0) / weights.sum() < share).sum()) + 1  # the one that reaches it counts too
    return max(1, min(rank, most, len(values)))


def clamped(down: Tensor, up: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Both with their extremes cut off, at plus and minus the quantile of all their values; 1: as they are.

    Source: sd-scripts' networks/extract_lora_from_models.py, where the singular values are all in `up`.
    """
    if quantile == 1:
        return down, up
    values = torch.cat([up.flatten(), down.flatten()])
    place = quantile * (len(values) - 1)  # torch.quantile takes no more than 2**24 of them
    below = int(place)
    low = values.kthvalue(below + 1).values
    high = values.kthvalue(min(below + 2, len(values))).values
    limit = float(torch.lerp(low, high, place - below))
    return down.clamp(-limit, limit), up.clamp(-limit, limit)
