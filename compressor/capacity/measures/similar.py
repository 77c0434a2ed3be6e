"""How many other units does a unit resemble? (Casper et al., arXiv:1912.04783 v2: "repeated" units.)"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.capacity.measures.checks import Array, Features, covariance_of, features_of, live_columns, share

WHERE = "similar units"


@dataclass(frozen=True, slots=True)
class SimilarUnits:
    """Counts of similar units. `mean` and `share` are over the units that vary; `dead` ones are only counted."""

    mean: float
    """Similar units per unit (raw: grows with width even where the share of similar pairs does not)."""
    share: float
    """`mean` divided by the number of other units that vary; 0 where there is no other."""
    per_unit: Array
    """(U,) int64: similar units of each unit; 0 for a dead unit."""
    dead: int
    """Units without variance: similar to none, and none is similar to them."""


def similar_units(x: Features, threshold: float = 0.5) -> SimilarUnits:
    """For each unit of `x` (samples, units) the number of other units with |Pearson correlation| >= `threshold`.

    >>> import numpy as np
    >>> one, other = np.eye(4)[:, :1], np.eye(4)[:, 1:2]
    >>> similar_units(np.hstack([one, -2 * one, other])).per_unit
    array([1, 1, 0])

    Raises DataError for fewer than 3 samples or 2 units, values that are not finite floating numbers, and units
    that are all constant; UsageError for a threshold outside (0, 1].
    """
    least = 1.0 if threshold == 1 and threshold is not True else share(threshold, f"{WHERE}: threshold")
    rows = features_of(x, WHERE)
    return similar_of(covariance_of(rows), live_columns(rows, WHERE), least)


def similar_of(covariance: Tensor, live: Tensor, threshold: float = 0.5) -> SimilarUnits:
    """`similar_units` from the covariance (U, U) of the activations, and which units vary (U,)."""
    covariance = covariance[live][:, live]
    spread = covariance.diagonal().sqrt()
    near = (covariance / spread[:, None] / spread[None, :]).abs() >= threshold * (1 - 1e-15)
    near.fill_diagonal_(False)
    counts = torch.zeros(len(live), dtype=torch.int64, device=live.device)
    counts[live] = near.sum(1)
    alive = int(live.sum())
    mean = float(counts[live].double().mean())
    return SimilarUnits(mean, mean / max(alive - 1, 1), counts.cpu().numpy(), len(live) - alive)
