"""What the curve of agreement against the share of ablated units says (arXiv:1912.04783 v2: removable; v5: prunable).

The two versions' measures are not interchangeable: A has no threshold, x* has one. R random orders, F fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.capacity.measures.checks import Array, share, values_of
from compressor.errors import DataError


@dataclass(frozen=True, slots=True)
class Prunable:
    """x*, the share of units that can be ablated before agreement falls below the level, over random orders.

    The paper takes the luckiest order (`high`; for non-prunability too); `mean` is the honest one. NaN where an order
    has none (see `agreement_threshold`).
    """

    mean: float
    low: float
    high: float
    per_order: Array


def agreement_threshold(fractions: Any, agreement: Any, level: float = 0.8) -> float:
    """The fraction at which `agreement` (F,), linear between the points, *first* falls from >= `level` to below.

    1.0 where it never falls and the fractions reach 1. NaN where the curve does not say: where it starts below the
    level, or ends above it before everything is ablated.

    >>> round(agreement_threshold([0, 0.5, 1], [1.0, 0.9, 0.1]), 4)
    0.5625

    Raises DataError for fractions that do not rise within [0, 1], agreement outside [0, 1], unequal lengths;
    UsageError for a level outside (0, 1).
    """
    limit = share(level, "agreement threshold: level")
    x, a = _curve(fractions, agreement)
    below = np.flatnonzero(a < limit)
    if not len(below):
        return 1.0 if x[-1] == 1 else math.nan
    first = int(below[0])
    if first == 0:
        return math.nan
    before, after = a[first - 1], a[first]
    return float(x[first - 1] + (before - limit) / (before - after) * (x[first] - x[first - 1]))


def prunable(fractions: Any, agreement: Any, level: float = 0.8) -> Prunable:
    """x* of every order of `agreement` (R, F), or of one curve (F,); errors as `agreement_threshold`."""
    curves = np.atleast_2d(values_of(agreement, "prunable units", dims=(1, 2)))
    found = np.array([agreement_threshold(fractions, curve, level) for curve in curves])
    return Prunable(float(found.mean()), float(found.min()), float(found.max()), found)


def removable_area(agreement: Any) -> float:
    """A: the plain mean of `agreement` (R, F) or (F,) over fractions and orders, its ends included (v2).

    >>> removable_area([1.0, 0.5, 0.0])
    0.5
    """
    return float(_shares(agreement, "removable units").mean())


def targeted_gap(random: Any, targeted: Any) -> float:
    """Mean agreement under random orders minus that under most-similar-first orders, at the same fractions (v2).

    Positive where similar units stand in for one another. Raises DataError where the fractions differ in number.
    """
    by_chance, by_likeness = (_shares(curve, "targeted gap") for curve in (random, targeted))
    if by_chance.shape[-1] != by_likeness.shape[-1]:
        got = f"{by_chance.shape[-1]} and {by_likeness.shape[-1]} fractions"
        raise DataError("targeted gap", got, "the same fractions in both curves", "ablate both at the same fractions")
    return float(by_chance.mean() - by_likeness.mean())


def _curve(fractions: Any, agreement: Any) -> tuple[Array, Array]:
    x = values_of(fractions, "agreement threshold: fractions")
    a = values_of(agreement, "agreement threshold: agreement")
    if len(x) != len(a) or len(x) < 2:
        got = f"{len(x)} fractions and {len(a)} agreements"
        raise DataError("agreement threshold", got, "as many of both, at least 2", "hand over one curve")
    if (np.diff(x) <= 0).any() or x[0] < 0 or x[-1] > 1:
        raise DataError("agreement threshold: fractions", f"{x.tolist()}", "rising numbers in [0, 1]", "sort them")
    return x, _shares(a, "agreement threshold: agreement")


def _shares(values: Any, where: str) -> Array:
    found = values_of(values, where, dims=(1, 2))
    if (found < 0).any() or (found > 1 + 1e-12).any():
        got = f"values from {found.min():g} to {found.max():g}"
        raise DataError(where, got, "shares in [0, 1]", "divide percentages by 100")
    return found
