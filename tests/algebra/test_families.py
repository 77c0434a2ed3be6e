"""Covers and bases against answers known beforehand and against numpy's least squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compressor.algebra.families import Span, cover, explained, factor, samples_for_pairs


def everyone(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


def test_cover_takes_the_leader_of_most_then_of_most_worth() -> None:
    similar = torch.eye(6)
    for i, j in [(0, 1), (1, 2), (1, 3), (4, 5)]:
        similar[i, j] = similar[j, i] = 0.97
    worth = torch.tensor([9.0, 0, 9, 9, 1, 2])
    of = cover(similar, everyone(6), everyone(6), worth, 0.95)
    assert of.tolist() == [1, -1, 1, 1, 5, -1]


def test_cover_names_the_most_similar_leader_and_only_leaders() -> None:
    similar = torch.eye(5)
    for i, j, value in [(0, 1, 0.96), (0, 2, 0.96), (3, 4, 0.96), (3, 1, 0.96), (3, 0, 0.99)]:
        similar[i, j] = similar[j, i] = value
    leaders = torch.tensor([True, True, True, False, False])
    of = cover(similar, everyone(5), leaders, torch.zeros(5), 0.95)
    assert of.tolist() == [-1, 0, 0, 0, -1]  # 4 is only similar to 3, which may not lead
    fixed = torch.tensor([False, True, True, True, True])
    assert cover(similar.fill_(1.0), fixed, leaders, torch.zeros(5), 0.95)[0] == -1


def test_cover_keeps_its_promises_on_random_similarities() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        similar = torch.rand(30, 30, generator=generator)
        of = cover(similar, everyone(30), everyone(30), torch.rand(30, generator=generator), 0.9)
        lead = torch.unique(of[of >= 0])
        assert bool((of[lead] == -1).all())
        for i in range(30):
            if of[i] >= 0:
                assert similar[i, of[i]] >= 0.9
                assert similar[i, of[i]] == similar[i, lead].max()
            elif i not in lead:
                assert all(similar[i, j] < 0.9 for j in lead.tolist())
    assert cover(torch.zeros(0, 0), everyone(0), everyone(0), torch.zeros(0), 0.9).tolist() == []


def correlation(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.nan_to_num(np.corrcoef(rows.T)))


def r2(rows: np.ndarray, unit: int, kept: list[int]) -> float:
    centred = rows - rows.mean(0)
    fit = np.linalg.lstsq(centred[:, kept], centred[:, unit], rcond=None)[0]
    return 1 - float(((centred[:, unit] - centred[:, kept] @ fit) ** 2).sum() / (centred[:, unit] ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_explained_shares_are_those_of_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 20)) + 0.3 * rng.normal(size=(500, 20))
    kept = torch.zeros(20, dtype=torch.bool)
    kept[[3, 11]] = True
    spans = [Span(correlation(rows), torch.arange(20), 500)]
    share = explained(spans, ~kept, kept, torch.rand(20), 0.9)
    found = [i for i in range(20) if not math.isnan(share[i])]
    donors = [i for i in range(20) if i not in found]
    assert found
    assert {3, 11} <= set(donors)
    shrink = (500 - len(donors) - 1) / 500
    for unit in found:
        assert float(share[unit]) == pytest.approx(1 - (1 - r2(rows, unit, donors)) / shrink**2, abs=1e-6)
        assert share[unit] >= 0.9


def test_the_expected_share_holds_on_fresh_rows() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(10, 40))
    make = lambda n: rng.normal(size=(n, 10)) @ mix + 1.0 * rng.normal(size=(n, 40))  # noqa: E731
    rows, fresh = make(120), make(20000)
    share = explained(
        [Span(correlation(rows), torch.arange(40), 120)], everyone(40), ~everyone(40), torch.zeros(40), 0.7
    )
    found = np.flatnonzero(~torch.isnan(share).numpy())
    donors = np.setdiff1d(np.arange(40), found)
    fit = np.linalg.lstsq(
        rows[:, donors] - rows[:, donors].mean(0), rows[:, found] - rows[:, found].mean(0), rcond=None
    )[0]
    missed = (fresh[:, found] - fresh[:, donors] @ fit).var(0) / fresh[:, found].var(0)
    assert len(found) > 5
    assert float(np.mean(1 - missed)) == pytest.approx(float(share[found].mean()), abs=0.03)


def test_every_tap_must_explain_it() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 4))
    rows[:, 3] = rows[:, 0] + rows[:, 1]
    other = rng.normal(size=(300, 4))
    one, two = Span(correlation(rows), torch.arange(4), 300), Span(correlation(other), torch.arange(4), 300)
    nobody = ~everyone(4)
    assert int((~torch.isnan(explained([one], everyone(4), nobody, torch.zeros(4), 0.95))).sum()) == 1
    assert bool(torch.isnan(explained([one, two], everyone(4), nobody, torch.zeros(4), 0.95)).all())


@pytest.mark.parametrize("samples", [4, 12, 30])
def test_too_few_samples_explain_nothing(samples: int) -> None:
    rows = np.random.default_rng(0).normal(size=(samples, 40))
    share = explained(
        [Span(correlation(rows), torch.arange(40), samples)], everyone(40), ~everyone(40), torch.zeros(40), 0.9
    )
    assert bool(torch.isnan(share).all())


def test_samples_for_pairs_keeps_chance_low() -> None:
    count = samples_for_pairs(45, 0.8, chance=0.05)
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(2000):
        table = np.abs(np.corrcoef(rng.normal(size=(count, 10)).T)) - np.eye(10)
        seen += table.max() >= 0.8
    assert seen / 2000 < 0.07
    assert samples_for_pairs(10**6, 0.95) > samples_for_pairs(10, 0.95) >= 5


def test_fewer_samples_than_units_and_rounding_leave_a_factor():
    x = torch.randn(30, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = torch.corrcoef(x.T)
    matrix = matrix - 1e-7 * torch.eye(60, dtype=torch.float64)  # as float32 sums leave it
    lower = factor(matrix)
    assert torch.allclose(lower @ lower.T, matrix, atol=1e-5)
    span = Span(matrix, torch.arange(60), 30)
    span.keep(torch.arange(60) < 50)
    assert bool(torch.isinf(span.expected()).all())
