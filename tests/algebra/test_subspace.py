"""One subspace for several readers: it finds what is planted, and never loses to the directions it starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.algebra.subspace import Reader, positive, shared_basis, without_mean


def spread(*sizes: float) -> Tensor:
    """A covariance with these variances along random directions orthogonal to the ones."""
    draw = torch.randn(len(sizes) + 1, len(sizes) + 1, dtype=torch.float64)
    draw[:, 0] = 1
    axes = torch.linalg.qr(draw)[0][:, 1:]
    return (axes * torch.tensor(sizes, dtype=torch.float64)) @ axes.T


class Calm(Reader):
    """A reader for whom no norm changes the length."""

    def wavering(self, basis: Tensor) -> Tensor:
        return basis.new_zeros(())


def reader(moments: Tensor, weight: Tensor) -> Reader:
    return Calm(moments, torch.zeros(len(moments), dtype=torch.float64), weight)


def directions(width: int, count: int) -> Tensor:
    return without_mean(torch.randn(width, count, dtype=torch.float64))


def test_columns_are_orthonormal_and_orthogonal_to_the_ones() -> None:
    torch.manual_seed(0)
    readers = [reader(spread(5, 4, 3, 2, 1, 1, 1), torch.eye(8, dtype=torch.float64)) for _ in range(2)]
    for size in (1, 4, 7):
        basis = shared_basis(readers, 8, size)
        assert torch.allclose(basis.T @ basis, torch.eye(size, dtype=torch.float64), atol=1e-12)
        assert float(basis.sum(0).abs().max()) < 1e-12


def test_what_two_readers_feel_is_found_below_louder_directions() -> None:
    torch.manual_seed(1)
    wanted = directions(9, 4)
    felt = [wanted[:, :2] @ wanted[:, :2].T, wanted[:, 2:] @ wanted[:, 2:].T]
    readers = [reader(spread(*[30.0] * 4, *[1.0] * 4), part) for part in felt]
    start = torch.linalg.eigh(sum(reader.moments for reader in readers))[1].flip(1)[:, :4]  # type: ignore[arg-type]
    lost = [float(sum(reader.lost(basis) for reader in readers)) for basis in (shared_basis(readers, 9, 4), start)]
    assert lost[0] < 1e-3 < 1.0 < lost[1]


def test_a_reader_alone_loses_what_reduced_rank_regression_says() -> None:
    torch.manual_seed(2)
    factor = torch.randn(6, 6, dtype=torch.float64)
    moments, weight = spread(9, 7, 5, 3, 2), factor @ factor.T
    values, vectors = torch.linalg.eigh(weight)
    root = vectors * values.sqrt()
    best = torch.linalg.eigvalsh(root.T @ moments @ root)[:-3].sum()
    only = reader(moments, weight)
    assert torch.isclose(only.lost(shared_basis([only], 6, 3)), best, rtol=1e-3)


def test_a_reader_of_two_views_asks_for_the_same_directions_in_both() -> None:
    torch.manual_seed(3)
    wanted = directions(6, 2)
    weight = torch.block_diag(wanted[:, :1] @ wanted[:, :1].T, wanted[:, 1:] @ wanted[:, 1:].T)
    only = reader(torch.block_diag(spread(4, 4, 4, 4, 4), spread(4, 4, 4, 4, 4)), weight)
    assert float(only.lost(shared_basis([only], 6, 2))) < 1e-4


def test_rounding_below_zero_is_not_taken_for_a_gain() -> None:
    torch.manual_seed(4)
    dented = spread(3, 2, 1, 1e-9, 1e-9) - 1e-7 * spread(0, 0, 0, 1, 1)
    only = reader(positive(dented), torch.eye(6, dtype=torch.float64))
    assert 0 <= float(only.lost(shared_basis([only], 6, 3))) < 1e-4
    assert float(torch.linalg.eigvalsh(positive(dented))[0]) > -1e-15


def test_how_much_the_length_wavers_is_what_gaussian_rows_show() -> None:
    torch.manual_seed(5)
    moments, mean = spread(6, 5, 4, 3, 2, 1, 1), directions(8, 1)[:, 0] * 3
    basis, weight = directions(8, 3), torch.eye(8, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moments)
    rows = mean + torch.randn(200_000, 8, dtype=torch.float64) @ (vectors * values.clamp_min(0).sqrt()).T
    kept = (rows @ basis).square().sum(1)
    missing = rows.square().sum(1) - kept
    wanted = missing.var() / (4 * kept.mean() ** 2) * rows.square().sum(1).mean()
    assert torch.isclose(Reader(moments, mean, weight).wavering(basis), wanted, rtol=0.03)


def test_of_guesses_that_are_equally_good_the_longest_is_taken() -> None:
    torch.manual_seed(6)
    wanted = directions(9, 3)
    moments = wanted @ torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()) @ wanted.T
    only = Reader(moments, torch.zeros(9).double(), torch.eye(9).double())
    tilted = without_mean(wanted + 0.3 * directions(9, 3))
    assert float(only.unguessed(tilted)) < 1e-4 < 1e-3 < float(only.wavering(tilted))
    assert float(only.lost(shared_basis([only], 9, 3))) < 1e-4
