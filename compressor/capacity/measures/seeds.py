"""Intervals over seeds: a bootstrap standard error with Student's t, because seeds are few. S seeds.

A percentile bootstrap of 3 seeds cannot leave the range of the 3 values and covers a mean in about 3 of 4 studies
instead of 95 %; the standard error, corrected for S, with t at S - 1 degrees of freedom does cover it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from compressor.capacity.measures.checks import Array, share, values_of

ENUMERATED = 5
"""Up to so many seeds all resamples are enumerated (126 of 5); beyond, `RESAMPLES` are drawn."""
RESAMPLES = 500
ROUNDING = 1e-12
"""Spread of the resamples, as a part of the largest number involved, that is left by arithmetic alone."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of all seeds, and a two-sided interval; unbounded where one seed alone says nothing of others."""

    value: float
    interval: tuple[float, float]
    seeds: int


def over_seeds(values: Any, statistic: Callable[[Array], float] | None = None, confidence: float = 0.95) -> Estimate:
    """`statistic` (by default the mean) of `values`, whose first axis (S, ...) is seeds, with its interval.

    `statistic` takes an array (S, ...) of resampled seeds and returns a number. The interval is value ± t(S - 1)
    standard errors; the bootstrap's standard error is enlarged by sqrt(S / (S - 1)). Whole seeds are resampled, never
    positions or widths; seeds that agree have an interval without width, whatever order their numbers are added in.
    Deterministic. Raises DataError for values that are not finite, UsageError for a confidence
    outside (0, 1).

    >>> over_seeds([1.0, 2.0, 3.0]).value
    2.0
    """
    level = share(confidence, "interval over seeds: confidence")
    rows = values_of(values, "interval over seeds", dims=(1, 2, 3))
    measure = _mean if statistic is None else statistic
    value, seeds = float(measure(rows)), len(rows)
    if seeds < 2:
        return Estimate(value, (-math.inf, math.inf), seeds)
    draws, weights = _resamples(seeds)
    found = np.array([measure(rows[list(draw)]) for draw in draws], dtype=np.float64)
    centre = np.average(found, weights=weights)
    if np.ptp(found) <= ROUNDING * max(np.abs(rows).max(), abs(value)) or (rows == rows[:1]).all():
        return Estimate(value, (value, value), seeds)
    error = math.sqrt(np.average((found - centre) ** 2, weights=weights) * seeds / (seeds - 1))
    reach = float(stats.t.isf((1 - level) / 2, seeds - 1)) * error
    return Estimate(value, (value - reach, value + reach), seeds)


def _mean(rows: Array) -> float:
    return float(rows.mean())


def _resamples(seeds: int) -> tuple[list[tuple[int, ...]], Array]:
    """Draws of seeds with replacement, and how likely each is."""
    if seeds > ENUMERATED:
        drawn = np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))
        return [tuple(row) for row in drawn.tolist()], np.full(RESAMPLES, 1 / RESAMPLES)
    draws = list(itertools.combinations_with_replacement(range(seeds), seeds))
    ways = [math.factorial(seeds) / math.prod(math.factorial(draw.count(i)) for i in range(seeds)) for draw in draws]
    return draws, np.array(ways) / seeds**seeds
