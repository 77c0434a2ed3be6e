"""Thresholds and areas of agreement curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compressor.capacity.measures import agreement_threshold, prunable, removable_area, targeted_gap
from compressor.errors import DataError, UsageError

SIXTHS = np.arange(7) / 6
PAPER = np.array([1.0, 0.89, 0.82, 0.74, 0.44, 0.18, 0.10])
"""AlexNet at four times its width, unregularised, read off arXiv:1912.04783's figure."""


def test_the_first_crossing_is_interpolated() -> None:
    assert agreement_threshold(SIXTHS, PAPER) == pytest.approx(2 / 6 + (0.02 / 0.08) / 6, abs=1e-12)
    assert agreement_threshold([0, 1], [1, 0]) == pytest.approx(0.2, abs=1e-12)
    assert agreement_threshold([0, 1], [1, 0], level=0.5) == pytest.approx(0.5, abs=1e-12)


def test_a_curve_that_recovers_counts_to_its_first_crossing() -> None:
    assert agreement_threshold([0, 0.5, 0.75, 1], [1, 0.7, 0.9, 0.0]) == pytest.approx(0.5 * 0.2 / 0.3, abs=1e-12)


def test_a_curve_exactly_at_the_level_is_not_below_it() -> None:
    assert agreement_threshold([0, 0.5, 1], [1, 0.8, 0.0]) == 0.5


def test_curves_that_do_not_cross_say_so() -> None:
    assert agreement_threshold(SIXTHS, [1.0] * 7) == 1.0
    assert math.isnan(agreement_threshold([0, 0.5], [1.0, 0.9]))  # ends before everything is ablated
    assert math.isnan(agreement_threshold([0, 1], [0.7, 0.1]))


def test_an_oracle_agrees_on_falling_curves() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        curve = np.append(1.0, np.sort(rng.uniform(0, 1, 6))[::-1])
        expected = np.interp(-0.8, -curve, SIXTHS)
        if curve[-1] < 0.8:
            assert agreement_threshold(SIXTHS, curve) == pytest.approx(expected, abs=1e-8)


def test_prunable_gives_every_order_and_not_only_the_luckiest() -> None:
    found = prunable([0, 1], [[1, 0], [1, 0.5]])
    assert found.per_order.tolist() == pytest.approx([0.2, 0.4], abs=1e-12)
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, 0.2, 0.4), abs=1e-12)


def test_removable_is_the_plain_mean_and_the_gap_a_difference_of_means() -> None:
    assert removable_area(PAPER) == pytest.approx(PAPER.mean(), abs=1e-15)
    assert removable_area([PAPER, PAPER / 2]) == pytest.approx(0.75 * PAPER.mean(), abs=1e-15)
    assert targeted_gap([PAPER, PAPER], PAPER / 2) == pytest.approx(PAPER.mean() / 2, abs=1e-15)


@pytest.mark.parametrize(
    ("fractions", "agreement"),
    [
        ([0, 1], [1, 0.5, 0]),
        ([0], [1]),
        ([0, 0], [1, 0]),
        ([1, 0], [1, 0]),
        ([0, 2], [1, 0]),
        ([0, 1], [100, 0]),
        ([0, 1], [1, -0.1]),
        ([0, 1], [1, float("nan")]),
        ([0, 1], [["a"], ["b"]]),
        ([], []),
    ],
)
def test_curves_that_are_none_are_refused(fractions: list[float], agreement: list[float]) -> None:
    with pytest.raises(DataError):
        agreement_threshold(fractions, agreement)


def test_levels_and_lengths_are_checked() -> None:
    with pytest.raises(UsageError):
        agreement_threshold([0, 1], [1, 0], level=80)
    with pytest.raises(DataError, match="fractions"):
        targeted_gap([1, 0.5, 0], [1, 0])
