"""Singular values without the matrix: equal to torch's own of the whole, best at every rank; ranks by definition."""

import pytest
import torch

from library.lora_files import low_rank


def thin(m=9, n=14, r=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(r, n, generator=draw), torch.randn(m, r, generator=draw)


@pytest.mark.parametrize("shape", [(9, 14, 4), (14, 9, 4), (3, 20, 5), (20, 3, 5), (6, 6, 6), (5, 7, 1)])
def test_a_product_is_taken_apart_as_its_matrix_is(shape):
    """Also where the rank is more than a side."""
    down, up = thin(*shape)
    matrix = up.double() @ down.double()
    found = low_rank.of_product(down, up)
    expected = torch.linalg.svdvals(matrix)[: len(found.values)]
    torch.testing.assert_close(found.values, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.left @ torch.diag(found.values) @ found.right, matrix, rtol=1e-10, atol=1e-10)
    same = low_rank.of_matrix(matrix)
    torch.testing.assert_close(same.values[: len(expected)], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same.left @ torch.diag(same.values) @ same.right, matrix, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_what_is_cut_is_away_by_the_root_of_the_dropped_squares(rank):
    """Eckart-Young: no matrix of that rank is nearer."""
    down, up = thin()
    matrix = up.double() @ down.double()
    found = low_rank.of_product(down, up)
    cut_down, cut_up = found.cut(rank)
    assert cut_down.shape == (rank, 14)
    assert cut_up.shape == (9, rank)
    away = torch.linalg.matrix_norm(matrix - cut_up @ cut_down)
    torch.testing.assert_close(away, found.values[rank:].square().sum().sqrt(), rtol=1e-6, atol=1e-10)
    share = low_rank.likeness((down, up), (cut_down, cut_up))
    kept = torch.linalg.matrix_norm(cut_up @ cut_down) / torch.linalg.matrix_norm(matrix)
    assert share.kept == pytest.approx(float(kept), rel=1e-9)
    assert share.error == pytest.approx(float(away / torch.linalg.matrix_norm(matrix)), rel=1e-6, abs=1e-7)
    torch.testing.assert_close(cut_down.norm(dim=1), cut_up.norm(dim=0))  # neither leaves the range of fp16 first


def test_what_was_clamped_or_added_is_not_called_kept():
    """Of what is written counts what is right of it, and no more than there is of it."""
    down, up = thin()
    matrix = up.double() @ down.double()
    for clamped in (low_rank.clamped(down, up, 0.9), low_rank.clamped(down, up, 0.6), (down, 1.5 * up), (down, -up)):
        written = clamped[1].double() @ clamped[0].double()
        own, error = (
            torch.linalg.matrix_norm(one) / torch.linalg.matrix_norm(matrix) for one in (written, written - matrix)
        )
        share = low_rank.likeness((down, up), clamped)
        assert share.error == pytest.approx(float(error), rel=1e-6)
        assert share.kept == pytest.approx(min(float(own), max(0.0, 1 - float(error) ** 2) ** 0.5), rel=1e-6)
        assert share.kept < 0.99


def test_a_matrix_of_zeros_and_one_of_small_rank_are_no_trouble():
    nothing = low_rank.of_matrix(torch.zeros(3, 5))
    assert not nothing.values.any()
    assert not any(tensor.any() for tensor in nothing.cut(2))
    assert all(tensor.isfinite().all() for tensor in nothing)
    assert low_rank.likeness(nothing.cut(2), nothing.cut(1)) is None  # neither all nor nothing was kept
    down, up = thin(r=2)
    found = low_rank.of_matrix(up @ down)
    torch.testing.assert_close((found.cut(2)[1] @ found.cut(2)[0]).float(), up @ down, rtol=1e-5, atol=1e-5)


def test_small_values_beside_large_ones_are_seen():
    """float32 would lose the last: its square is below the rounding of the first one's."""
    values = torch.tensor([100.0, 1.0, 1e-3], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(8, 3, generator=draw, dtype=torch.float64))[0] for _ in range(2))
    found = low_rank.of_matrix(left @ torch.diag(values) @ right.T)
    torch.testing.assert_close(found.values[:3], values, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("method", "target", "rank"),
    [
        # sum 16, squares 64 16 4 1 1 = 86
        ("sv_ratio", 2, 1),  # above 4: only 8, for 4 is not above it
        ("sv_ratio", 2.01, 2),
        ("sv_ratio", 5, 3),
        ("sv_ratio", 1, 1),
        ("sv_cumulative", 12 / 16, 2),  # reached by exactly two
        ("sv_cumulative", 12.1 / 16, 3),
        ("sv_cumulative", 1, 5),
        ("sv_fro", (64 / 86) ** 0.5 - 1e-6, 1),
        ("sv_fro", (64 / 86) ** 0.5 + 1e-6, 2),
        ("sv_fro", (84 / 86) ** 0.5 + 1e-6, 4),
    ],
)
def test_the_rank_is_chosen_by_its_definition(method, target, rank):
    values = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert low_rank.choose_rank(values, method, target, 64) == rank
    assert low_rank.choose_rank(values, method, target, 2) == min(rank, 2)
    assert low_rank.choose_rank(values * 1e-7, method, target, 64) == 1  # nothing was learned


@pytest.mark.parametrize("method", low_rank.METHODS)
def test_a_larger_target_keeps_no_less(method):
    values = torch.rand(30, generator=torch.Generator().manual_seed(0)).sort(descending=True).values
    targets = (1, 2, 5, 20, 1000) if method == "sv_ratio" else (0.1, 0.5, 0.9, 0.99, 1)
    ranks = [low_rank.choose_rank(values, method, target, 30) for target in targets]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


def test_extremes_are_cut_at_the_quantile_that_torch_knows():
    down, up = thin()
    limit = torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.9)
    cut = low_rank.clamped(down, up, 0.9)
    torch.testing.assert_close(cut[0], down.clamp(-limit, limit))
    torch.testing.assert_close(cut[1], up.clamp(-limit, limit))
    assert float(cut[0].max()) < float(down.max())
    assert low_rank.clamped(down, up, 1)[0] is down
