"""Budget in, ratio out: find, on the tune split, the sizes that are worth judging.

Candidates are built by whoever calls (surgery lies above this floor). On the tune split each one's losses and gains are
scaled to the number of judge samples: a size is *promising* if a judge split of that size would be expected to pass it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from compressor.algebra.intervals import paired_bounds

Built = TypeVar("Built")
LIMIT = 8
"""Candidates that a search builds at most."""


@dataclass(frozen=True)
class Tuned:
    """A candidate on the tune split: samples it lost and won against the original (sums of shares, for scores)."""

    losses: float
    gains: float
    samples: int

    @property
    def difference(self) -> float:
        """Accuracy (or agreement) difference in percentage points."""
        return 100.0 * (self.gains - self.losses) / max(self.samples, 1)

    @property
    def error(self) -> float:
        """Standard error of the difference, in points (of scores at most that)."""
        return 100.0 * math.sqrt(self.losses + self.gains) / max(self.samples, 1)

    def expected_lower(self, judge_samples: int, confidence: float) -> float:
        """The lower bound in points that `judge_samples` samples with these rates would give."""
        scale = judge_samples / max(self.samples, 1)
        losses, gains = math.ceil(self.losses * scale), math.floor(self.gains * scale)
        if losses + gains > judge_samples:
            gains = judge_samples - losses
        return 100.0 * paired_bounds(losses, max(gains, 0), judge_samples, confidence)[0]


@dataclass(frozen=True)
class Candidate(Generic[Built]):
    """One size that was built and tuned."""

    share: float
    built: Built
    tuned: Tuned
    expected_lower: float


def search(
    build: Callable[[float], tuple[Built, Tuned]],
    *,
    smallest: float,
    judge_samples: int,
    max_drop: float,
    confidence: float,
    ratio: float = 1.12,
    limit: int = LIMIT,
) -> list[Candidate[Built]]:
    """Bisect the share of the size (on a log scale) between promising and not; return what to judge, largest first.

    All promising sizes are returned, and one step below them: fixed-sequence testing makes that step free of charge.
    `smallest` is the least share that can be built; the search ends when two neighbours differ by less than `ratio`.
    """
    low, high = max(smallest, 1e-4), 1.0
    found: list[Candidate[Built]] = []
    share = min(0.5, math.sqrt(low * high)) if low < 0.25 else math.sqrt(low * high)
    for _ in range(limit):
        built, tuned = build(share)
        lower = tuned.expected_lower(judge_samples, confidence)
        found.append(Candidate(share, built, tuned, lower))
        if lower >= -max_drop:
            high = share
        else:
            low = share
        if high / low < ratio or high <= smallest * 1.001:
            break
        share = math.sqrt(low * high)
    return _to_judge(found, max_drop)


def _to_judge(found: list[Candidate[Built]], max_drop: float) -> list[Candidate[Built]]:
    distinct = {id(candidate.built): candidate for candidate in found}
    ordered = sorted(distinct.values(), key=lambda candidate: -candidate.share)
    promising = [candidate for candidate in ordered if candidate.expected_lower >= -max_drop]
    if not promising:
        return ordered[:1]
    below = [candidate for candidate in ordered if candidate.share < promising[-1].share]
    return promising + below[:1]
