"""How many principal directions does a layer's variance need? (arXiv:1912.04783 v5: "redundant" units.)

The numbers are shares of *directions*: they name no unit that could go, and units without variance count as
redundant. White noise has a value above 0 too, and a large one where samples are few: see `compressor.capacity.nulls`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.capacity.measures.checks import Features, covariance_of, features_of, live_columns

SMALL_SHARE = 0.05
"""Directions that together hold no more than this share of the variance are redundant (and the one that crosses)."""


@dataclass(frozen=True, slots=True)
class Redundancy:
    """Shares of redundant directions, and what they were measured on."""

    covariance: float
    """R95 = k / units, k the smallest number of smallest eigenvalues whose sum is above 5 % of the variance."""
    correlation: float
    """The same of the correlation matrix, where no unit counts for more than another (dead ones are zero rows)."""
    participation_ratio: float
    """(sum of eigenvalues)² / sum of squared eigenvalues of the covariance: directions in use, 1..units."""
    units: int
    samples: int


def redundancy95(x: Features) -> Redundancy:
    """R95 of a layer's activations `x` (samples, units), dead units included, in float64 with eigenvalues clipped at 0.

    >>> import torch
    >>> redundancy95(torch.cat([torch.eye(4), -torch.eye(4)]).double()).participation_ratio
    4.0

    Raises DataError for fewer than 3 samples or 2 units, values that are not finite floating numbers, and units
    that are all constant.
    """
    rows = features_of(x, "redundancy")
    return redundancy_of(covariance_of(rows), live_columns(rows, "redundancy"), len(rows))


def redundancy95_live(x: Features) -> Redundancy:
    """`redundancy95` of the units that vary alone: `units` counts only those. The same errors."""
    rows = features_of(x, "redundancy")
    rows = rows[:, live_columns(rows, "redundancy")]
    return redundancy_of(covariance_of(rows), torch.ones(rows.shape[1], dtype=torch.bool), len(rows))


def redundancy_of(covariance: Tensor, live: Tensor, samples: int) -> Redundancy:
    """`redundancy95` from the covariance (U, U) of `samples` activations, and which units vary (U,)."""
    live = live.to(covariance.device)
    covariance = torch.where(live[:, None] & live[None, :], covariance, 0.0)
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0)
    spread = torch.where(live, covariance.diagonal().clamp_min(0).sqrt(), 1.0)
    correlation = torch.linalg.eigvalsh(covariance / spread[:, None] / spread[None, :]).clamp_min(0)
    ratio = float(eigenvalues.sum().square() / eigenvalues.square().sum())
    return Redundancy(_share(eigenvalues), _share(correlation), ratio, len(covariance), samples)


def _share(ascending: Tensor) -> float:
    reached = ascending.cumsum(0) / ascending.sum() > SMALL_SHARE
    return (int(reached.int().argmax()) + 1) / len(ascending)
