"""Copies and combinations are found on rows, jointly over taps; what is not exact is not."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.algebra.span import coefficients, columns, copies, eligible, spanned, suspects

TOLERANCE = 1e-9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_present(units: int) -> Tensor:
    return torch.ones(units, dtype=torch.bool)


def test_copies_must_hold_at_every_tap() -> None:
    first, second = draw(100, 6), draw(80, 6, seed=1)
    first[:, 3], second[:, 3] = 2 * first[:, 1], -0.5 * second[:, 1]
    first[:, 4] = 3 * first[:, 0]  # a copy at the first tap alone
    taps = [columns(first, all_present(6), False), columns(second, all_present(6), False)]
    of = copies(taps, eligible(taps), TOLERANCE)
    pairs = {(u, int(of[u])) for u in range(6) if of[u] != u}
    assert pairs in ({(3, 1)}, {(1, 3)})
    assert int(copies(taps[:1], eligible(taps[:1]), TOLERANCE)[0]) == 4


def test_a_constant_counts_only_where_it_may() -> None:
    rows = draw(100, 4)
    rows[:, 2] = 0.5 * rows[:, 0] + 3.0
    for intercept in (True, False):
        tap = columns(rows, all_present(4), intercept)
        found = copies([tap], eligible([tap]), TOLERANCE)
        assert (int(found[2]) == 0) is intercept


def test_nearly_a_copy_is_none() -> None:
    rows = draw(400, 3)
    rows[:, 2] = rows[:, 0] + 1e-7 * rows[:, 1]
    tap = columns(rows, all_present(3), False)
    assert int(copies([tap], eligible([tap]), TOLERANCE)[2]) == 2
    assert int(copies([tap], eligible([tap]), 1e-5)[2]) == 0


def test_units_absent_at_a_tap_need_nothing_there() -> None:
    first, second = draw(90, 4), draw(90, 4, seed=2)
    first[:, 1] = first[:, 0]
    here = torch.tensor([True, False, True, True])
    second[:, 1] = 0.0
    taps = [columns(first, all_present(4), False), columns(second, here, False)]
    assert copies(taps, eligible(taps), TOLERANCE).tolist() == [0, 1, 2, 3]
    here[0] = False
    taps[1] = columns(second * here, here, False)
    assert sorted(copies(taps, eligible(taps), TOLERANCE)[:2].tolist()) in ([0, 0], [1, 1])


def test_combinations_keep_their_circuits_apart() -> None:
    first, second = draw(200, 12), draw(300, 12, seed=3)
    for rows, a in ((first, 0.3), (second, -2.0)):
        rows[:, 5] = a * rows[:, 0] + rows[:, 1]
        rows[:, 9] = rows[:, 6] - a * rows[:, 7] + 0.1 * rows[:, 8]
    taps = [columns(first, all_present(12), False), columns(second, all_present(12), True)]
    parts = [part.tolist() for part in suspects(taps, torch.arange(12))]
    assert parts == [[0, 1, 5], [6, 7, 8, 9]]
    for part in parts:
        found, bases = spanned(taps, torch.tensor(part), TOLERANCE)
        assert len(found) == 1
        for tap, basis in zip(taps, bases, strict=True):
            share = coefficients(tap, found, basis, TOLERANCE)
            torch.testing.assert_close(tap.x[:, basis] @ share.T, tap.x[:, found], rtol=0, atol=1e-12)


def test_independent_columns_have_no_suspects() -> None:
    tap = columns(draw(400, 150), all_present(150), True)
    assert suspects([tap], torch.arange(150)) == []
    assert len(spanned([tap], torch.arange(40), TOLERANCE)[0]) == 0


def test_rank_is_revealed_in_a_wide_linear_layer() -> None:
    tap = columns(draw(300, 7) @ draw(7, 60, seed=4), all_present(60), False)
    (part,) = suspects([tap], torch.arange(60))
    found, (basis,) = spanned([tap], part, TOLERANCE)
    assert (len(found), len(basis)) == (53, 7)


def test_bases_differ_per_tap_where_ranks_do() -> None:
    first, second = draw(200, 5), draw(200, 5, seed=5)
    first[:, 2] = first[:, 0]  # dependent here, but needed at the second tap
    first[:, 4], second[:, 4] = first[:, 0] + first[:, 1], second[:, 1] - second[:, 2]
    taps = [columns(first, all_present(5), False), columns(second, all_present(5), False)]
    found, bases = spanned(taps, torch.arange(5), TOLERANCE)
    assert len(found) == 1
    assert [len(basis) for basis in bases] == [3, 4]


def test_directions_of_very_different_size_keep_their_digits() -> None:
    x = draw(300, 40)
    x[:, 1::2] = x[:, ::2] + 1e-6 * x[:, 1::2]  # independent, though barely
    x[:, 39] = x[:, :20] @ draw(20, seed=7)
    tap = columns(x, all_present(40), False)
    found, (basis,) = spanned([tap], torch.arange(40), TOLERANCE)
    assert (len(found), len(basis)) == (1, 39)
    frame = torch.linalg.qr(x[:, basis])[0]
    outside = x[:, found] - frame @ (frame.T @ x[:, found])
    assert float(outside.norm() / x[:, found].norm()) < TOLERANCE
