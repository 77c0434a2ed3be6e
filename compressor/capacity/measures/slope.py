"""How does error fall with size? error = floor + amplitude · size^slope, all three fitted together.

The slope depends on the floor (arXiv:2106.03485 calls it error_infinity and takes it from ensembles): moving the floor
by 0.002 at an excess of 0.005 moves the slope by 0.1 to 0.2. So it is fitted, or scanned by giving it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from compressor.capacity.measures.checks import Array, share, values_of
from compressor.capacity.measures.seeds import over_seeds
from compressor.errors import DataError

STEEPEST = 10.0
_FLOORS = np.append(0.0, 1 - np.geomspace(0.9, 1e-3, 24))
"""Floors to start from, as parts of the smallest error; the best `_TRIED` straight lines above them are refined."""
_TRIED = 2


@dataclass(frozen=True, slots=True)
class Slope:
    """The exponent (negative where error falls), its interval, and the rest of the fit."""

    value: float
    interval: tuple[float, float]
    floor: float
    amplitude: float


def fitted_slope(sizes: Any, errors: Any, floor: float | None = None, *, confidence: float = 0.95) -> Slope:
    """Least squares on the logarithm of `errors`, (sizes,) or (seeds, sizes), whose mean curve counts.

    `floor` fixes error_infinity; else it is fitted within [0, smallest error). Hand over only sizes of one regime (from
    w* on), and not the whole width: a chunk of all units has no spread and bends the end of the curve down.

    The interval is over seeds (see `over_seeds`), the floor fitted again in every resample. For one curve it comes
    from its scatter around the fit (linearised, Student's t), and is unbounded where no point is left over.

    Raises DataError for fewer than 3 sizes (2 with a floor), sizes or errors that are not positive, and a floor that
    is not below every error.
    """
    level = share(confidence, "slope: confidence")
    x = values_of(sizes, "slope: sizes")
    curves = np.atleast_2d(values_of(errors, "slope: errors", dims=(1, 2)))
    _check(x, curves, floor)
    logs = np.log(x / x[0])
    best = _fit(logs, curves.mean(0), floor, None)
    if len(curves) > 1:

        def again(rows: Array) -> float:
            return float(_fit(logs, rows.mean(0), floor, best.x).x[1])

        interval = over_seeds(curves, again, level).interval
    else:
        interval = _linearised(best, level)
    end = float(best.x[2]) if floor is None else float(floor)
    slope = float(best.x[1])
    return Slope(slope, interval, end, math.exp(float(best.x[0]) - slope * math.log(x[0])))


def _check(x: Array, curves: Array, floor: float | None) -> None:
    least = 3 if floor is None else 2
    if len(x) != curves.shape[1] or len(set(x.tolist())) < least:
        got = f"{len(x)} sizes for {curves.shape[1]} errors"
        raise DataError("slope", got, f"an error for each of at least {least} sizes", "use a longer ladder")
    if (x <= 0).any() or (curves.mean(0) <= 0).any():
        raise DataError("slope", "a size or an error of 0", "positive numbers", "leave out sizes without an error")
    if floor is not None and not 0 <= floor < curves.mean(0).min():
        expected = f"a number from 0, below the smallest error {curves.mean(0).min():g}"
        raise DataError("slope: floor", f"{floor}", expected, "lower the floor")


def _fit(logs: Array, errors: Array, floor: float | None, start: Array | None) -> Any:
    """The best of several starts; parameters (log amplitude at the first size, slope, and the floor if it is free)."""
    target, smallest = np.log(errors), float(errors.min())

    def misfit(p: Array) -> Array:
        end = p[2] if floor is None else floor
        return np.log(end + np.exp(p[0] + p[1] * logs)) - target

    def slopes(p: Array) -> Array:
        end = p[2] if floor is None else floor
        above = np.exp(p[0] + p[1] * logs)
        columns = [above, above * logs, np.ones_like(logs)] if floor is None else [above, above * logs]
        return np.stack(columns, axis=1) / (end + above)[:, None]

    ends = smallest * _FLOORS if floor is None else [floor]
    starts = [_line(logs, errors, end, floor is None) for end in ends]
    if start is not None:
        starts.append(start if floor is not None else np.append(start[:2], min(start[2], 0.999 * smallest)))
    starts = sorted(starts, key=lambda p: float(np.square(misfit(p)).sum()))[:_TRIED]
    low, high = [-np.inf, -STEEPEST], [np.inf, STEEPEST]
    if floor is None:
        low, high = [*low, 0.0], [*high, smallest]
    jacobian: Any = slopes  # scipy's types know its names only
    fits = [
        optimize.least_squares(misfit, np.clip(p, low, high), jacobian, bounds=(low, high), xtol=1e-14, ftol=1e-14,
                               gtol=1e-14, x_scale="jac", max_nfev=200)
        for p in starts
    ]  # fmt: skip
    return min(fits, key=lambda fit: fit.cost)


def _line(logs: Array, errors: Array, end: float, free: bool) -> Array:
    """A straight line of log excess errors as a start."""
    slope, height = np.polyfit(logs, np.log(errors - end), 1)
    return np.array([height, slope, end] if free else [height, slope])


def _linearised(fit: Any, level: float) -> tuple[float, float]:
    left = len(fit.fun) - len(fit.x)
    if left < 1:
        return -math.inf, math.inf
    spread = np.linalg.pinv(fit.jac.T @ fit.jac) * (2 * fit.cost / left)
    reach = float(stats.t.isf((1 - level) / 2, left)) * math.sqrt(max(float(spread[1, 1]), 0.0))
    return float(fit.x[1]) - reach, float(fit.x[1]) + reach
