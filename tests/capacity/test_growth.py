"""Growth per doubling, intervals over seeds, and how error falls with size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compressor.capacity.measures import fitted_slope, growth, over_seeds
from compressor.errors import DataError, UsageError


def test_a_constant_share_grows_by_exactly_two() -> None:
    found = growth([0.25 * w for w in (1, 2, 4, 8, 16)])
    assert found.value == pytest.approx(2.0, abs=1e-14)
    assert found.interval == pytest.approx((2.0, 2.0), abs=1e-12)


def test_growth_is_from_end_to_end_and_the_mean_of_ratios_is_not() -> None:
    curve = [1.0, 4.0, 4.0]  # ratios 4 and 1, mean 2.5
    assert growth(curve).value == pytest.approx(2.0, abs=1e-14)


def test_the_end_to_end_estimate_is_unbiased_where_the_mean_of_ratios_is_not() -> None:
    rng = np.random.default_rng(0)
    noisy = 2.0 ** np.arange(5) * np.exp(0.2 * rng.standard_normal((600, 5)))
    estimates = [growth(curve).value for curve in noisy]
    ratios = (noisy[:, 1:] / noisy[:, :-1]).mean()
    assert np.mean(estimates) == pytest.approx(2.0, abs=0.03)
    assert ratios > 2.05


def test_doublings_say_how_far_the_ends_lie_apart() -> None:
    assert growth([1.0, 8.0], doublings=3).value == pytest.approx(2.0, abs=1e-14)


def test_one_curve_covers_the_truth_where_its_noise_is_noise() -> None:
    rng = np.random.default_rng(1)
    truth = [growth(2.2 ** np.arange(5) * np.exp(0.1 * rng.standard_normal(5))).interval for _ in range(300)]
    assert np.mean([low <= 2.2 <= high for low, high in truth]) >= 0.92


def test_two_widths_of_one_seed_bound_nothing() -> None:
    assert growth([1.0, 2.0]).interval == (0.0, math.inf)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_over_few_seeds_cover_the_truth(seeds: int) -> None:
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(150):
        curves = 1.9 ** np.arange(4) * np.exp(0.1 * rng.standard_normal((seeds, 4)))
        low, high = growth(curves).interval
        inside.append(low <= 1.9 <= high)
    assert np.mean(inside) >= 0.92


def test_the_interval_of_a_mean_is_students() -> None:
    from scipy import stats

    values = [1.0, 2.5, 2.0, 4.0]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert over_seeds(values).interval == pytest.approx(expected, abs=1e-12)
    many = np.random.default_rng(0).standard_normal(40)
    assert over_seeds(many).interval == pytest.approx(stats.t.interval(0.95, 39, many.mean(), stats.sem(many)), abs=0.1)


def test_one_seed_says_nothing_of_others() -> None:
    assert over_seeds([3.0]).interval == (-math.inf, math.inf)


@pytest.mark.parametrize("seeds", [2, 3, 5, 7])
def test_seeds_that_agree_have_no_spread_whatever_their_number_is(seeds):
    """Sums of equal numbers differ in the last digit by how often each is drawn: that is not a spread of seeds."""
    generator = np.random.default_rng(0)
    for numbers in 100 * generator.random((30, 3)):
        rows = np.tile(numbers, (seeds, 1))
        found = over_seeds(rows, lambda rows: float((rows[:, -1] - rows[:, 0]).mean()))
        assert found.interval == (found.value, found.value)
        rows[:, 1] = generator.random(seeds)  # what the statistic does not read
        found = over_seeds(rows, lambda rows: float((rows[:, -1] - rows[:, 0]).mean()))
        assert found.interval == (found.value, found.value)
    assert np.ptp(over_seeds([1.0, 1.0, 1.0 + 1e-9]).interval) > 0


def test_whole_seeds_are_resampled() -> None:
    curves = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])  # seeds differ, the ratio does not
    found = over_seeds(curves, lambda rows: float(rows[:, 1].mean() / rows[:, 0].mean()))
    assert found.value == 2.0
    assert found.interval == pytest.approx((2.0, 2.0), abs=1e-12)


@pytest.mark.parametrize(
    "bad", [[1.0], [], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [[1.0], [2.0]], "ab", [[[1.0]]]]
)
def test_curves_without_a_growth_are_refused(bad: object) -> None:
    with pytest.raises(DataError):
        growth(bad)


def test_levels_and_doublings_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError):
        growth([1, 2], confidence=95)
    with pytest.raises(UsageError):
        growth([1, 2], doublings=0)


# -- slope ------------------------------------------------------------------------------------------------------------

SIZES = np.array([32, 64, 128, 256, 512])


def falling(slope: float = -0.5, floor: float = 0.04, amplitude: float = 0.3) -> np.ndarray:
    return floor + amplitude * SIZES**slope


def test_slope_floor_and_amplitude_are_found_together() -> None:
    found = fitted_slope(SIZES, falling())
    assert (found.value, found.floor, found.amplitude) == pytest.approx((-0.5, 0.04, 0.3), abs=1e-8)
    assert found.interval == pytest.approx((-0.5, -0.5), abs=1e-6)


def test_a_straight_line_of_logarithms_without_a_floor_is_least_squares() -> None:
    errors = falling(floor=0.0) * np.exp(0.1 * np.random.default_rng(0).standard_normal(5))
    slope, height = np.polyfit(np.log(SIZES), np.log(errors), 1)
    found = fitted_slope(SIZES, errors, floor=0.0)
    assert (found.value, found.amplitude) == pytest.approx((slope, math.exp(height)), abs=1e-8)


def test_a_wrong_floor_moves_the_slope() -> None:
    errors = falling(floor=0.04, amplitude=0.06)
    assert fitted_slope(SIZES, errors, floor=0.038).value > -0.45 > fitted_slope(SIZES, errors, floor=0.041).value


def test_seeds_give_the_slope_an_interval() -> None:
    rng = np.random.default_rng(3)
    curves = falling(floor=0.0) * np.exp(0.02 * rng.standard_normal((3, 5)))
    found = fitted_slope(SIZES, curves, floor=0.0)
    assert found.interval[0] < -0.5 < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.2


def test_as_many_points_as_parameters_bound_nothing() -> None:
    assert fitted_slope(SIZES[:3], falling()[:3]).interval == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("sizes", "errors", "floor"),
    [
        (SIZES[:2], falling()[:2], None),
        (SIZES[:4], falling(), None),
        (SIZES, falling() * [1, 1, 0, 1, 1], None),
        (SIZES, falling(), 0.06),
        (SIZES, falling(), -0.1),
        (SIZES, [1, 2, 3, 4, float("nan")], None),
    ],
)
def test_ladders_without_a_slope_are_refused(sizes: np.ndarray, errors: np.ndarray, floor: float | None) -> None:
    with pytest.raises(DataError):
        fitted_slope(sizes, errors, floor)
