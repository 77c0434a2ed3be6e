"""From points (share kept, points lost) to the figures of a comparison: the smallest share at an allowed loss, ratios.

A curve is read between its points on a log scale of the share. The smallest share is the first crossing from above:
what happens to be good again at a smaller size is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Reached:
    """The smallest share of the original at which no more than the allowed loss was lost.

    `censored`: the smallest size that was tried still lost no more; the true share is smaller.
    """

    share: float
    censored: bool


def reached(points: Sequence[tuple[float, float]], allowed: float) -> Reached:
    """Points are (share, loss in percentage points) of one method on one network; the original is (1, 0)."""
    share, loss = 1.0, 0.0
    for smaller, lost in sorted(points, reverse=True):
        if lost > allowed:
            part = (allowed - loss) / (lost - loss)
            return Reached(math.exp(math.log(share) + part * (math.log(smaller) - math.log(share))), False)
        share, loss = smaller, lost
    return Reached(share, True)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Geometric mean over networks (seeds) of `peer's share / our share`, and its interval at `confidence`.

    The interval is Student's on the logarithms; None with fewer than two seeds.
    """

    value: float
    interval: tuple[float, float] | None
    seeds: int
    confidence: float


def ratio(peers: Sequence[float], ours: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Shares of the same seeds in the same order."""
    logs = np.log(np.asarray(peers, dtype=float) / np.asarray(ours, dtype=float))
    middle = float(logs.mean())
    if len(logs) < 2:
        return Ratio(math.exp(middle), None, len(logs), confidence)
    half = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return Ratio(math.exp(middle), (math.exp(middle - half), math.exp(middle + half)), len(logs), confidence)


def best_peer(shares: Mapping[str, Sequence[float]]) -> str:
    """The peer with the smallest geometric mean of its shares: one peer for all seeds, chosen in its favour."""
    return min(shares, key=lambda name: float(np.log(shares[name]).mean()))
