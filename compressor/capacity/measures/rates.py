"""How fast does a quantity grow with width? (arXiv:1912.04783 v5: growth rate g.)

The authors average the ratios of neighbouring widths, which noise biases upwards; here g is the end-to-end estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from compressor.capacity.measures.checks import Array, share, values_of
from compressor.capacity.measures.seeds import over_seeds
from compressor.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Growth:
    """Factor per doubling of the width: 2 means that the share of the units stays the same."""

    value: float
    interval: tuple[float, float]


def growth(values: Any, *, doublings: float | None = None, confidence: float = 0.95) -> Growth:
    """(last / first) ** (1 / doublings) of a quantity measured at growing widths.

    `values` is one curve (widths,), or (seeds, widths), whose mean curve counts. Each width is twice the one before,
    unless `doublings` says how many doublings lie between the first and the last.

    The interval: over seeds (see `over_seeds`), on the logarithm. For one curve it is what the scatter of that curve
    around a straight line of logarithms gives (Student's t): it knows nothing of other seeds, and is (0, inf) for
    fewer than 3 widths.

    >>> round(growth([1, 2, 4, 8]).value, 12)
    2.0

    Raises DataError for fewer than 2 widths and for values that are not positive and finite.
    """
    level = share(confidence, "growth: confidence")
    curves = np.atleast_2d(values_of(values, "growth", dims=(1, 2)))
    if curves.shape[1] < 2 or (curves <= 0).any():
        got = f"{curves.shape[1]} width(s)" if curves.shape[1] < 2 else f"the value {curves.min():g}"
        raise DataError("growth", got, "positive values at 2 widths or more", "leave out widths without a value")
    span = curves.shape[1] - 1 if doublings is None else doublings
    if not (isinstance(span, (int, float)) and span > 0 and math.isfinite(span)):
        raise UsageError("growth: doublings", f"{doublings!r}", "a positive number", "log2(last width / first width)")

    def rate(rows: Array) -> float:
        mean = rows.mean(0)
        return float(np.log(mean[-1] / mean[0]) / span)

    if len(curves) > 1:
        low, high = over_seeds(curves, rate, level).interval
    else:
        low, high = _of_one_curve(np.log(curves[0]), rate(curves), span, level)
    return Growth(math.exp(rate(curves)), (math.exp(low), math.exp(high) if high < 700 else math.inf))


def _of_one_curve(logs: Array, rate: float, span: float, level: float) -> tuple[float, float]:
    """Limits of the log rate if deviations from a straight line are independent noise of one size."""
    places = np.arange(len(logs))
    free = len(logs) - 2
    if free < 1:
        return -math.inf, math.inf
    line = np.polynomial.Polynomial.fit(places, logs, 1)
    noise = math.sqrt(float(np.square(logs - line(places)).sum()) / free)
    reach = float(stats.t.isf((1 - level) / 2, free)) * noise * math.sqrt(2) / span
    return rate - reach, rate + reach
