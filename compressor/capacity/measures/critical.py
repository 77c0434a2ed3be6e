"""From which size on does a chunk stand for the whole layer? The critical width w*, and clones = width / w*.

The paper (arXiv:2106.03485) draws w* by hand; this is an operational definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.capacity.measures.checks import whole_number
from compressor.capacity.measures.chunks import ChunkReconstruction, correlation_null
from compressor.capacity.measures.classification import ChunkErrors
from compressor.errors import DataError

TRAIN_ERROR = 1e-3
R2 = 0.98
TIMES_NULL = 2.0


@dataclass(frozen=True, slots=True)
class CriticalWidth:
    """The smallest chunk size that passes all three criteria (None: no size does), and each criterion alone."""

    value: int | None
    by_error: int | None
    """Mean chunk training error at most 1e-3 (or 1e-3 above the whole layer's)."""
    by_r2: int | None
    """Mean R² of the units outside at least 0.98."""
    by_correlation: int | None
    """Mean |residual correlation| of the units outside at most twice its null."""


def critical_width(
    train_errors: Sequence[ChunkErrors],
    reconstruction: Sequence[ChunkReconstruction],
    samples: int,
    full_error: float = 0.0,
) -> CriticalWidth:
    """w* from chunk errors on *training* samples and from a reconstruction scored on held-out samples.

    `samples` is the number of samples the reconstruction was scored on, `full_error` the whole layer's own training
    error. Sizes that have no unit outside say nothing of the last two criteria and do not pass them.

    Raises DataError where the two ladders share no size.
    """
    known = {entry.size: entry for entry in reconstruction}
    both = [(entry, known[entry.size]) for entry in sorted(train_errors, key=lambda e: e.size) if entry.size in known]
    if not both:
        got = f"sizes {[e.size for e in train_errors]} and {sorted(known)}"
        raise DataError("critical width", got, "sizes in common", "use one ladder of sizes for both")
    limit = TIMES_NULL * correlation_null(whole_number(samples, "critical width: samples", 3))

    def interpolates(error: ChunkErrors, _rest: ChunkReconstruction) -> bool:
        return float(error.errors.mean()) <= TRAIN_ERROR + max(full_error, 0.0)

    def determines(_error: ChunkErrors, rest: ChunkReconstruction) -> bool:
        return float(np.mean(rest.r2_outside)) >= R2

    def independent(_error: ChunkErrors, rest: ChunkReconstruction) -> bool:
        return float(np.mean(rest.residual_correlation_outside)) <= limit

    tests = (interpolates, determines, independent)
    return CriticalWidth(_first(both, *tests), *(_first(both, test) for test in tests))


def clones(units: int, critical: CriticalWidth) -> float | None:
    """How many times the critical width fits into `units`; None where there is no critical width."""
    return None if critical.value is None else units / critical.value


def _first(
    entries: Sequence[tuple[ChunkErrors, ChunkReconstruction]],
    *tests: Callable[[ChunkErrors, ChunkReconstruction], bool],
) -> int | None:
    return next((error.size for error, rest in entries if all(test(error, rest) for test in tests)), None)
