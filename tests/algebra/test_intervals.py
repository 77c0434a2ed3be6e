"""The bounds must hold for every truth at every n; enumeration decides, not an approximation."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from scipy import special, stats

from compressor.algebra.intervals import (
    NUISANCE_SHARE,
    _Tail,
    bounded_bounds,
    paired_bounds,
    samples_needed,
    smallest_decidable_drop,
)
from compressor.errors import DataError, UsageError


def outcomes(n: int) -> np.ndarray:
    return np.array([(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)])


def chances(table: np.ndarray, n: int, loss: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Multinomial probabilities, (truths, outcomes)."""
    lost, won = table.T
    rest = n - lost - won
    ways = special.gammaln(n + 1) - sum(special.gammaln(part + 1) for part in (lost, won, rest))
    loss, gain = loss[:, None], gain[:, None]
    none = np.maximum(1 - loss - gain, 0)
    return np.exp(ways + special.xlogy(lost, loss) + special.xlogy(won, gain) + special.xlogy(rest, none))


def truths(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(P(loss), P(gain)) over the whole triangle, finer towards its corners."""
    axis = np.unique(np.concatenate([np.linspace(0, 1, steps), np.geomspace(1e-4, 0.2, steps // 2)]))
    loss, gain = (grid.ravel() for grid in np.meshgrid(axis, axis))
    inside = loss + gain <= 1 + 1e-12
    return loss[inside], gain[inside]


@pytest.mark.parametrize(("n", "confidence"), [(1, 0.95), (2, 0.9), (5, 0.95), (11, 0.8), (11, 0.99), (18, 0.95)])
def test_both_limits_hold_for_every_truth(n: int, confidence: float) -> None:
    table = outcomes(n)
    limits = np.array([paired_bounds(int(lost), int(won), n, confidence) for lost, won in table])
    loss, gain = truths(41)
    chance, truth = chances(table, n, loss, gain), gain - loss
    np.testing.assert_allclose(chance.sum(1), 1, atol=1e-9)
    above = (chance * (limits[:, 0] > truth[:, None] + 1e-12)).sum(1)
    below = (chance * (limits[:, 1] < truth[:, None] - 1e-12)).sum(1)
    assert above.max() <= 1 - confidence
    assert below.max() <= 1 - confidence
    # and it spends what it may: a bound that never errs would tell nothing
    assert above.max() >= 0.6 * (1 - confidence)
    assert (limits[:, 0] <= (table[:, 1] - table[:, 0]) / n).all()


@pytest.mark.parametrize(("loss", "gain"), [(0.005, 0.0), (0.008, 0.003), (0.012, 0.012)])
def test_the_limit_holds_at_600_samples(loss: float, gain: float) -> None:
    n, alpha, errs = 600, 0.05, 0.0
    truth = gain - loss
    for m in range(45):
        low, high = -1, m  # more losses, lower limit: find the most losses at which the limit still errs
        while low < high:
            middle = (low + high + 1) // 2
            wrong = paired_bounds(middle, m - middle, n)[0] > truth
            low, high = (middle, high) if wrong else (low, middle - 1)
        errs += stats.binom.pmf(m, n, loss + gain) * stats.binom.cdf(low, m, loss / (loss + gain))
    assert 0.4 * alpha <= errs <= alpha


def test_limits_move_the_right_way() -> None:
    n = 40
    lower = {(lost, won): paired_bounds(lost, won, n)[0] for lost in range(8) for won in range(8)}
    for lost in range(7):
        for won in range(7):
            assert lower[lost + 1, won] < lower[lost, won] < lower[lost, won + 1]


def test_the_tail_probability_is_the_multinomial_sum() -> None:
    n, lost, won, z = 15, 3, 2, 1.645
    tail = _Tail(lost, won, n, z, 0.0, 1.0)
    table = outcomes(n)
    most = dict(zip(tail.m.astype(int).tolist(), tail.c.astype(int).tolist(), strict=True))
    inside = np.array([row[0] <= most[int(row.sum())] for row in table])
    assert 0 < inside.sum() < len(table)
    theta, delta = np.array([0.05, 0.3, 0.6, 1.0, 0.4]), np.array([-0.04, 0.1, -0.6, 0.2, 0.4])
    expected = (chances(table, n, (theta - delta) / 2, (theta + delta) / 2) * inside).sum(1)
    np.testing.assert_allclose(tail(theta, delta)[0], expected, atol=1e-10)
    step = 1e-6
    theta, delta = theta[:2], delta[:2]
    slope = (tail(theta, delta + step)[0] - tail(theta, delta - step)[0]) / (2 * step)
    np.testing.assert_allclose(tail(theta, delta)[1], slope, rtol=1e-5)


@pytest.mark.parametrize(("lost", "won", "n"), [(0, 0, 9), (2, 1, 9), (4, 4, 30), (9, 2, 60), (60, 60, 2000)])
def test_the_certified_minimum_agrees_with_a_dense_grid(lost: int, won: int, n: int) -> None:
    alpha = 0.05
    spent = alpha * NUISANCE_SHARE
    m = lost + won
    low = stats.beta.ppf(spent / 2, m, n - m + 1) if m else 1e-9
    high = stats.beta.ppf(1 - spent / 2, m + 1, n - m)
    tail = _Tail(lost, won, n, stats.norm.ppf(0.95), low, high)
    theta = np.linspace(low, high, 1000)
    small, large = -theta, theta
    for _ in range(30):
        middle = (small + large) / 2
        fits = tail(theta, middle)[0] <= alpha - spent
        small, large = np.where(fits, middle, small), np.where(fits, large, middle)
    found = paired_bounds(lost, won, n)[0]
    width = (won - lost) / n - small.min() + 1 / n
    assert small.min() - 0.01 * width <= found <= small.min() + 1e-8


def test_without_losses_600_samples_pass_half_a_point() -> None:
    assert paired_bounds(0, 0, 600)[0] >= -0.005
    assert paired_bounds(0, 0, 595)[0] < -0.005
    assert paired_bounds(1, 0, 600)[0] < -0.005
    assert 598 <= samples_needed(0.005) <= 600
    for n in (10, 600, 10_000):
        assert 1 - 0.05 ** (1 / n) <= smallest_decidable_drop(n) <= 1.003 * (1 - 0.05 ** (1 / n))


def test_smallest_decidable_drop_grows_with_discordance() -> None:
    drops = [smallest_decidable_drop(2000, discordance=share) for share in (0.0, 0.005, 0.02, 0.1)]
    assert drops == sorted(drops)
    assert 0.004 < drops[2] < 0.006  # 20 losses, 20 gains at 2,000: about half a point
    assert smallest_decidable_drop(3, discordance=1.0) <= 1


@pytest.mark.parametrize(("lost", "won"), [(500, 500), (60, 40), (3000, 2000), (4_000, 6_000)])
def test_large_comparisons_are_quick_and_near_the_normal_limit(lost: int, won: int) -> None:
    n = 10_000
    paired_bounds(1, 1, 50)
    begun = time.process_time()
    lower, upper = paired_bounds(lost, won, n, 0.951)
    assert time.process_time() - begun < 2  # both limits
    difference = (won - lost) / n
    half = stats.norm.ppf(0.951) * math.sqrt(max((won + lost) / n - difference**2, 0) / n)
    assert difference - 1.03 * half - 4 / n < lower <= difference - half
    assert difference + half <= upper < difference + 1.03 * half + 4 / n


def test_the_corners_stay_in_range() -> None:
    n = 10_000
    lower, upper = paired_bounds(0, n, n)
    assert 0.998 < lower < 1 - 1 / n
    assert upper == 1
    lower, upper = paired_bounds(n - 1, 1, n)
    assert -1 <= lower < -0.9998 < upper < -0.998


@pytest.mark.parametrize(("lost", "won", "n"), [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_do_not_fit_are_refused(lost: int, won: int, n: int) -> None:
    with pytest.raises(DataError, match="counts"):
        paired_bounds(lost, won, n)


@pytest.mark.parametrize("confidence", [0.3, 1.0, float("nan")])
def test_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(UsageError, match="confidence"):
        paired_bounds(0, 0, 10, confidence)
    with pytest.raises(UsageError, match="confidence"):
        bounded_bounds(np.zeros(5), confidence=confidence)


def test_betting_bounds_hold_on_skewed_scores() -> None:
    generator, n, trials, alpha = np.random.default_rng(0), 150, 300, 0.2
    for rate, size in ((0.02, 1.0), (0.3, 0.5)):  # rare large losses; frequent half losses with gains
        losses = -size * (generator.random((trials, n)) < rate)
        gains = 0.1 * generator.random((trials, n))
        truth = 0.05 - rate * size
        limits = np.array([bounded_bounds(row, confidence=1 - alpha) for row in losses + gains])
        allowed = alpha + 3 * math.sqrt(alpha * (1 - alpha) / trials)
        assert (limits[:, 0] > truth).mean() <= allowed
        assert (limits[:, 1] < truth).mean() <= allowed
        assert limits[:, 0].mean() > truth - 0.12


@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_betting_bounds_hold_for_every_sequence(confidence: float) -> None:
    n = 8
    rows = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    limits = np.array([bounded_bounds(row, confidence=confidence) for row in rows])
    gains = (rows > 0).sum(1)
    for rate in np.linspace(0, 1, 101):
        chance = rate**gains * (1 - rate) ** (n - gains)
        truth = 2 * rate - 1
        assert chance[limits[:, 0] > truth + 1e-9].sum() <= 1 - confidence + 1e-12
        assert chance[limits[:, 1] < truth - 1e-9].sum() <= 1 - confidence + 1e-12
    assert limits[-1, 0] > 0 > limits[0, 1]  # eight of eight do tell


def test_betting_order_is_that_of_the_keys() -> None:
    generator = np.random.default_rng(1)
    scores = generator.uniform(-1, 1, 80)
    keys = np.array([generator.bytes(16) for _ in range(80)], dtype="S16")
    shuffled = generator.permutation(80)
    assert bounded_bounds(scores, keys) == bounded_bounds(scores[shuffled], keys[shuffled])
    rows = keys.view(np.uint8).reshape(80, 16)
    assert bounded_bounds(scores, rows) == bounded_bounds(scores[shuffled], rows[shuffled])
    assert bounded_bounds(scores) == bounded_bounds(scores) != bounded_bounds(scores[shuffled])


def test_betting_bounds_scale_with_the_limit() -> None:
    scores = np.random.default_rng(2).uniform(-1, 1, 60)
    lower, upper = bounded_bounds(scores)
    np.testing.assert_allclose(bounded_bounds(scores * 3, limit=3.0), (3 * lower, 3 * upper))
    assert -1 <= lower < scores.mean() < upper <= 1


@pytest.mark.parametrize("scores", [[], [0.0, 1.5], [0.0, float("nan")]])
def test_scores_out_of_range_are_refused(scores: list[float]) -> None:
    with pytest.raises(DataError):
        bounded_bounds(np.array(scores))


def test_keys_must_fit() -> None:
    with pytest.raises(DataError, match="3 keys"):
        bounded_bounds(np.zeros(5), np.arange(3))
