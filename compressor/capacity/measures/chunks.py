"""How much of a layer does a random chunk of its units determine? (Doimo et al., arXiv:2106.03485; R² and residuals.)

All of it comes from one Gram matrix: a chunk's regression is a block of the covariance, so the data is read once.
N samples, U units, K units of a chunk, O units outside it.

Two things rise mechanically with the chunk and say nothing of the network, so both are also given for the units
*outside* the chunk: a chunk's own units are predicted exactly, and their residuals are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from compressor.capacity.measures.checks import (
    Array,
    Features,
    covariance_of,
    features_of,
    live_columns,
    sizes_of,
    whole_number,
)
from compressor.errors import DataError

WHERE = "chunk reconstruction"
RIDGE = 1e-8
"""Penalty of the regression as a part of the units' mean variance (the authors': 1e-8 whatever the variance)."""
ROUNDING, ROUNDING_SHARE = 1e-8, 1e-6
"""Added to the product of two residual deviations: the authors' 1e-8, but no more than this part of the units' mean
variance, so that a layer of tiny activations is not called uncorrelated."""
NOTHING = 1e-11
"""A residual variance below this part of the unit's own is rounding, and correlates with nothing."""


@dataclass(frozen=True, slots=True)
class ChunkReconstruction:
    """What chunks of `size` units determine of the whole layer; each array (repeats,) has one entry per chunk."""

    size: int
    r2: Array
    """1 - Σ residual variances / Σ variances over all units, the chunk's own included."""
    r2_outside: Array
    """The same over the units outside the chunk; NaN where there is none."""
    residual_correlation: Array
    """Mean |correlation| of the residuals over all pairs of units that vary (0 for pairs with the chunk's own)."""
    residual_correlation_outside: Array
    """The same over pairs of units outside the chunk; NaN where there is none. Null: `correlation_null`."""


def ladder(units: int) -> list[int]:
    """Chunk sizes 1 .. units, each about twice the one before: units // 2**i."""
    return sorted({units >> i for i in range(whole_number(units, "ladder: units", 1).bit_length())})


def draws(units: int, size: int, repeats: int, seed: int) -> Iterator[Array]:
    """`repeats` chunks: sorted unit numbers drawn without replacement. The same whatever other sizes are drawn."""
    generator = np.random.default_rng([seed, size])
    for _ in range(repeats):
        yield np.sort(generator.choice(units, size, replace=False))


def chunk_reconstruction(
    features: Features, sizes: Sequence[int], repeats: int, seed: int, held_out: Features | None = None
) -> list[ChunkReconstruction]:
    """Regress all units of `features` (samples, units) on random chunks of each of `sizes`, `repeats` times.

    Ridge regression with intercept (penalty `RIDGE`), fitted on `features`, scored there or on `held_out` (samples,
    units) where given: only that is free of the rise K/N of a fit's own samples. Variances are centred on the samples
    scored. float64. Chunks are drawn from all units, dead ones too; dead ones count in no pair.

    Raises DataError for features as `similar_units`, for no more than max(sizes) + 1 samples (every chunk would fit
    them), and where `held_out` has other units; UsageError for sizes, repeats or a seed that are not whole numbers in
    range.
    """
    fitted = features_of(features, WHERE)
    chosen = sizes_of(sizes, fitted.shape[1], WHERE)
    times, start = whole_number(repeats, f"{WHERE}: repeats", 1), whole_number(seed, f"{WHERE}: seed", 0)
    if len(fitted) <= max(chosen) + 1:
        expected = f"more than {max(chosen) + 1} for chunks of {max(chosen)} units"
        raise DataError(WHERE, f"{len(fitted)} samples", expected, "measure on more data, or smaller chunks")
    layer = _Layer.of(fitted, held_out)
    found = []
    for size in chosen:
        rows = [layer.explained(chunk) for chunk in draws(fitted.shape[1], size, times, start)]
        found.append(ChunkReconstruction(size, *np.array(rows, dtype=np.float64).T))
    return found


@dataclass(frozen=True)
class _Layer:
    """Covariances (U, U) of the samples fitted and scored, and which units vary on both."""

    fitted: Tensor
    scored: Tensor
    live: Tensor

    @classmethod
    def of(cls, fitted: Tensor, held_out: Features | None) -> _Layer:
        covariance, live = covariance_of(fitted), live_columns(fitted, WHERE)
        if held_out is None:
            return cls(covariance, covariance, live)
        other = features_of(held_out, f"{WHERE}: held_out").to(fitted.device)
        if other.shape[1] != fitted.shape[1]:
            expected = f"{fitted.shape[1]}, as in the features fitted"
            raise DataError(f"{WHERE}: held_out", f"{other.shape[1]} units", expected, "take the same layer")
        return cls(covariance, covariance_of(other), live & live_columns(other, f"{WHERE}: held_out"))

    def explained(self, chunk: Array) -> tuple[float, float, float, float]:
        """R² of all and of outside units, mean |residual correlation| of all and of outside pairs."""
        inside = torch.zeros(len(self.live), dtype=torch.bool, device=self.live.device)
        inside[torch.from_numpy(chunk).to(inside.device)] = True
        # a small chunk leaves nearly all units outside: cheaper to compute all than to gather those
        units = None if 4 * len(chunk) <= len(inside) else (~inside).nonzero()[:, 0]
        rest = self.residual(inside.nonzero()[:, 0], units)
        own, live = _at(inside, units), _at(self.live, units)
        variance = self.scored.diagonal()
        left, outside = float(rest.diagonal()[~own].sum()), float(variance[~inside].sum())
        pairs, alone = _pairs(int(self.live.sum())), _pairs(int((self.live & ~inside).sum()))
        rounding = min(ROUNDING, ROUNDING_SHARE * float(variance.mean()))
        left_over = rest.diagonal() > NOTHING * _at(variance, units)
        total = _correlation_sum(rest, live & ~own & left_over, rounding)
        return (
            1 - left / float(variance.sum()),
            1 - left / outside if outside > 0 else math.nan,
            total / pairs if pairs else math.nan,
            total / alone if alone else math.nan,
        )

    def residual(self, k: Tensor, units: Tensor | None) -> Tensor:
        """(O, O) covariance of what chunk `k` leaves of these units (None: all), on the samples scored."""
        columns = self.fitted[k]
        system, cross = columns[:, k], _at(columns.T, units).T.clone()
        penalty = RIDGE * self.fitted.diagonal().mean()
        system.diagonal().add_(penalty)
        weights = torch.cholesky_solve(cross, torch.linalg.cholesky(system))  # (K, O)
        square = self.scored if units is None else self.scored[units][:, units]
        if self.scored is self.fitted:  # the normal equations save a product
            return torch.addmm(square, weights.T, cross.add_(weights, alpha=float(penalty)), alpha=-1)
        columns = self.scored[k]
        half = weights.T @ torch.addmm(_at(columns.T, units).T, columns[:, k], weights, alpha=-0.5)
        return square - half - half.T


def _at(values: Tensor, units: Tensor | None) -> Tensor:
    return values if units is None else values[units]


def _correlation_sum(covariance: Tensor, counted: Tensor, rounding: float) -> float:
    """Sum over pairs of counted units of |covariance| / (product of deviations + rounding); uses `covariance` up."""
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    covariance[~counted] = 0.0
    covariance[:, ~counted] = 0.0
    ratio = covariance.abs_().div_(torch.outer(deviation, deviation).add_(rounding))
    return float(ratio.sum() - ratio.diagonal().sum()) / 2


def _pairs(units: int) -> int:
    return units * (units - 1) // 2


def correlation_null(samples: int, size: int = 0) -> float:
    """Mean |correlation| of independent units on `samples` samples: about sqrt(2 / (π samples)), exact for normal ones.

    Where the samples scored are those of the fit, `size` regressors take as many degrees of freedom away.

    >>> round(correlation_null(10_000), 4)
    0.008
    """
    where = "null of the residual correlation"
    free = whole_number(samples, where, 3) - whole_number(size, where, 0)
    if free < 3:
        raise DataError(where, f"{samples} samples, {size} regressors", "3 samples more", "score on more data")
    return math.exp(float(gammaln((free - 1) / 2) - gammaln(free / 2))) / math.sqrt(math.pi)
