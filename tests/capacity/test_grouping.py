"""The clustering test finds planted groups, and none where units are mixtures plus noise."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.capacity.measures import clustering_test
from compressor.errors import DataError, UsageError


def copies(seed: int, groups: int = 6, each: int = 4, samples: int = 1_200, noise: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((samples, groups))
    return np.repeat(signal, each, axis=1) + noise * rng.standard_normal((samples, groups * each))


def mixtures(seed: int, units: int = 24, samples: int = 1_200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((40, units))  # more signals than a chunk can hold
    return rng.standard_normal((samples, 40)) @ directions


def test_one_copy_of_each_beats_random_chunks() -> None:
    found = clustering_test(copies(0), copies(1), size=6, repeats=39)
    assert (found.kind, found.p_value) == ("dealt", 1 / 40)
    assert found.effect > 0.1
    expected = 1 / (1 + 0.4**2)  # of a copy's variance its fellow knows corr² = (1 / 1.16)², on 18 outside units
    assert found.found == pytest.approx(expected**2, abs=0.02)


def test_r2_is_that_of_a_regression_on_the_data() -> None:
    fitted, scored = copies(0), copies(1)
    found = clustering_test(fitted, scored, size=12, repeats=19, swaps=0, seed=4)
    order = np.random.default_rng(4).permutation(24)
    values = []
    for chunk in (order[:12], order[12:]):
        rest = np.setdiff1d(np.arange(24), chunk)
        x, y = fitted[:, chunk] - fitted[:, chunk].mean(0), fitted[:, rest] - fitted[:, rest].mean(0)
        beta = np.linalg.lstsq(x, y, rcond=None)[0]
        left = scored[:, rest] - scored[:, chunk] @ beta
        values.append(1 - left.var(0).sum() / scored[:, rest].var(0).sum())
    assert found.random[0] == pytest.approx(np.mean(values), abs=1e-7)


def test_independent_units_have_no_groups() -> None:
    values = [
        clustering_test(
            np.random.default_rng(2 * s).standard_normal((300, 16)),
            np.random.default_rng(2 * s + 1).standard_normal((300, 16)),
            size=4, repeats=19, swaps=20,
        ).p_value
        for s in range(8)
    ]  # fmt: skip
    assert np.mean(np.array(values) <= 0.05) <= 0.25  # 5 % expected of 8: more than 2 has a chance of 6e-3
    assert np.mean(values) > 0.25


def test_the_same_seed_gives_the_same_answer_and_dead_units_are_left_out() -> None:
    fitted, scored = mixtures(0), mixtures(1)
    one = clustering_test(fitted, scored, size=4, repeats=19, swaps=20)
    dead = [np.column_stack([x, np.ones(len(x))]) for x in (fitted, scored)]
    two = clustering_test(dead[0], dead[1], size=4, repeats=19, swaps=20)
    assert (one.found, one.p_value) == pytest.approx((two.found, two.p_value), abs=1e-12)


def test_what_cannot_be_partitioned_is_refused() -> None:
    x = mixtures(0)
    with pytest.raises(DataError, match="clustering test"):
        clustering_test(x, x, size=13)
    with pytest.raises(DataError, match="held_out"):
        clustering_test(x, x[:, :20], size=4)
    with pytest.raises(UsageError, match="repeats"):
        clustering_test(x, x, size=4, repeats=5)
