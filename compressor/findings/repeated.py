"""Repeated: does one kept unit do the same, up to scale, sign and offset, wherever this unit is read?"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.algebra.families import cover, samples_for_pairs
from compressor.findings.readings import Cluster


def similarity(cluster: Cluster, tolerance: float) -> Tensor:
    """(n, n): |correlation| of units i and j at the worst tap that reads i; 0 where a tap that i varies at
    lacks j.
    """
    size = len(cluster.numbers)
    result = torch.ones(size, size, dtype=torch.float64, device=cluster.live.device)
    anywhere = torch.zeros_like(cluster.live)
    for reading in cluster.readings:
        rows = result.new_zeros(len(reading.places), size)
        rows[:, reading.places] = reading.correlation(tolerance).abs().to(rows)
        varies = reading.varies(tolerance)
        anywhere[reading.places] |= varies
        rows[~varies] = 1.0
        result[reading.places] = torch.minimum(result[reading.places], rows)
    result[~anywhere] = 0.0
    return result


def repeated(
    cluster: Cluster, free: Tensor, donors: Tensor, similar: Tensor, worth: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """(n,) long the kept unit (place in the cluster) that each repeated unit repeats, -1 elsewhere; (n,) its
    score.

    `free` (n,) bool: units that may be claimed; `donors` (n,) bool: units that may be named. Nothing is
    claimed with so few samples that unrelated units would look alike.
    """
    count = int(donors.sum())
    nobody = torch.full(free.shape, -1, dtype=torch.long, device=free.device)
    if cluster.samples < samples_for_pairs(count * (count - 1) // 2, threshold):
        return nobody, torch.zeros_like(worth)
    of = cover(similar, free, donors, worth, threshold)
    score = torch.where(of >= 0, similar.gather(1, of.clamp_min(0)[:, None])[:, 0], 0.0)
    return of, score.to(worth)
