"""Silent: does the unit vary at all, anywhere it is read?"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.findings.readings import Cluster


def silent(cluster: Cluster, tolerance: float) -> tuple[Tensor, Tensor]:
    """(n,) bool units without variance at any tap, and (n,) bool those of them that are constant but not
    zero.

    `tolerance` is the largest deviation, relative to the unit's level or to the liveliest unit of the tap.
    Holds for the samples observed: a unit may fire on others.
    """
    varies = torch.zeros_like(cluster.live)
    constant = torch.zeros_like(cluster.live)
    for reading in cluster.readings:
        moments = reading.moments
        size = torch.maximum(moments.level.max(), moments.covariance.diagonal().max().clamp_min(0).sqrt())
        varies[reading.places] |= reading.varies(tolerance)
        constant[reading.places] |= moments.level > tolerance * size
    quiet = cluster.complete & ~varies
    return quiet, quiet & constant
