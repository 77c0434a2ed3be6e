"""Dependent: is the unit a linear combination of the kept ones, wherever it is read?"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.algebra.families import Span, explained, factor
from compressor.findings.readings import Cluster, Reading


def dependent(
    cluster: Cluster,
    free: Tensor,
    kept: Tensor,
    worth: Tensor,
    tolerance: float,
    threshold: float,
    fresh: Cluster | None = None,
) -> Tensor:
    """(n,) share explained by the kept units at the worst tap, expected on unseen samples; nan where not
    dependent.

    `free` (n,) bool: units that may be claimed; `kept` (n,) bool: units that stay in any case. With `fresh`
    (the same cluster on other samples) the share is measured there with the coefficients fitted here, and
    must hold there too.
    """
    spans = [
        Span(reading.correlation(tolerance), reading.places, reading.moments.samples) for reading in cluster.readings
    ]
    share = explained(spans, free, kept, worth, threshold)
    found = ~torch.isnan(share)
    if fresh is None or not bool(found.any()):
        return share
    donors = kept | (free & ~found)
    there = {reading.tap: reading for reading in fresh.readings}
    for reading in cluster.readings:
        other = there.get(reading.tap)
        if other is None:
            share[reading.places] = torch.nan
        else:
            share = torch.minimum(share, _confirmed(reading, other, found, donors, tolerance).to(share))
    return torch.where(share >= threshold, share, torch.nan)


def _confirmed(reading: Reading, fresh: Reading, found: Tensor, donors: Tensor, tolerance: float) -> Tensor:
    """(n,) share of each found unit explained on fresh samples at one tap; 1 for all others."""
    result = torch.ones(found.shape, dtype=torch.float64, device=found.device)
    varies = reading.varies(tolerance) | fresh.varies(tolerance)
    rows = torch.nonzero(found[reading.places] & varies).flatten()
    columns = torch.nonzero(donors[reading.places] & reading.varies(tolerance)).flatten()
    first, second = reading.moments.covariance, fresh.moments.covariance
    scale = first.diagonal()[columns].sqrt()
    inner = first[columns][:, columns] / scale[:, None] / scale[None, :]
    cross = (first[rows][:, columns] / scale).T
    coefficients = torch.cholesky_solve(cross, factor(inner)).T / scale
    own = second.diagonal()[rows]
    missed = (
        own
        - 2 * (coefficients * second[rows][:, columns]).sum(1)
        + ((coefficients @ second[columns][:, columns]) * coefficients).sum(1)
    )
    shares = torch.where(own > 0, 1 - missed / own.clamp_min(1e-300), 0.0)
    result[reading.places[rows]] = shares.to(result)
    return result
