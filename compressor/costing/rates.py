"""How fast this machine does what the stages are made of: short measurements of the functions that the stages call.

Each is fitted to the powers that its arithmetic has, with non-negative coefficients (Lawson & Hanson 1974), by relative
error. Times are the least of two, since disturbances only add.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from compressor.algebra.elimination import TapState, eliminate, precision
from compressor.algebra.moments import Moments
from compressor.algebra.ridge import solve_ridge

GRAMS = ((64, 256), (1024, 256), (64, 1024), (1024, 1024), (4096, 512))
"""Rows and regressors of the products that are timed."""
WIDTHS = {1: (128, 256, 512, 1024), 9: (144, 288, 576, 1152)}
"""Regressors of the layers whose elimination is timed, for units of one regressor and of nine."""
SOLVES = (256, 512, 1024)


@dataclass(frozen=True)
class Rates:
    """Coefficients in seconds.

    `gram`: of D^2 for each batch, R·D and R·D^2. `single` and `block`: elimination of D regressors, in units of one
    and of nine: of D, D^2 and D^3. `solve`: a ridge regression, of D^2 and D^3. `flops`: of a float32 product.
    """

    gram: tuple[float, ...]
    single: tuple[float, ...]
    block: tuple[float, ...]
    solve: tuple[float, ...]
    flops: float
    threads: int
    seconds: float

    def products(self, batches: float, rows: float, size: float) -> float:
        """Seconds to add `rows` (in all) of `size` numbers to second moments, in so many batches."""
        per_batch, linear, square = self.gram
        return per_batch * batches * size**2 + linear * rows * size + square * rows * size**2

    def elimination(self, regressors: int, block: int) -> float:
        """Seconds from the sums of a tap to its path."""
        coefficients = self.single if block == 1 else self.block
        return sum(c * float(regressors) ** (power + 1) for power, c in enumerate(coefficients))

    def regression(self, regressors: float) -> float:
        """Seconds to solve for a consumer's weights."""
        return self.solve[0] * regressors**2 + self.solve[1] * regressors**3

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def measured_rates() -> Rates:
    """Measure on the CPU, with as many threads as torch has. Takes some seconds; the random state stays as it was."""
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        grams = [(_product(rows, size), (size**2, rows * size, rows * size**2)) for rows, size in GRAMS]
        paths = {block: [(_path(d, block), (d, d**2, d**3)) for d in widths] for block, widths in WIDTHS.items()}
        solves = [(_solve(d), (d**2, d**3)) for d in SOLVES]
        left, right = torch.randn(2, 1024, 1024).unbind()
        flops = 2 * 1024**3 / least(lambda: left @ right, 3)
    found = (_fitted(grams), _fitted(paths[1]), _fitted(paths[9]), _fitted(solves), flops)
    return Rates(*found, torch.get_num_threads(), time.perf_counter() - begin)


def least(call: Callable[[], Any], times: int = 2) -> float:
    """The least seconds of some calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def _fitted(points: Sequence[tuple[float, Sequence[float]]]) -> tuple[float, ...]:
    """Non-negative coefficients of the powers, by relative error."""
    seconds = np.array([point[0] for point in points])
    powers = np.array([point[1] for point in points], dtype=float)
    scale = powers.max(0)
    return tuple(float(c) for c in nnls(powers / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale)


def _product(rows: int, size: int) -> float:
    values, moments = torch.randn(rows, size), Moments.empty(torch.zeros(size))
    return least(lambda: moments.add(values))


def _path(regressors: int, block: int) -> float:
    units = regressors // block
    rows = torch.randn(2 * regressors, regressors)
    covariance = (rows.T @ rows).double() / len(rows)
    weight = torch.randn(64, regressors).double()
    blocks = np.arange(regressors).reshape(units, block)

    def run() -> None:
        inverse, _ = precision(covariance, 1e-3)
        state = TapState(inverse, weight.T @ weight, blocks, np.arange(units))
        eliminate([state], np.zeros(units, dtype=np.int64))

    return least(run)


def _solve(regressors: int) -> float:
    rows = torch.randn(2 * regressors, regressors).double()
    gram, cross = rows.T @ rows / len(rows), torch.randn(64, regressors).double()
    return least(lambda: solve_ridge(gram, cross, torch.zeros_like(cross), 1e-3))
