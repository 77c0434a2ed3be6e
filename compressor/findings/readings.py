"""What the units of a cluster do at the taps that read them: one covariance over units per tap.

A cluster is a set of live groups that meet at a tap (branches of a concatenation); frozen units read at the
same taps belong to it as possible donors, never as units that a finding speaks about. Shape letters: U units
of a tap, E entries per unit, K kernel taps, D regressors, n units of a cluster.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.moments import ROUNDING
from compressor.observe import Statistics, TapStatistics, blocks_of
from compressor.units.graph import Tap, UnitGraph, clusters


@dataclass(frozen=True)
class Kernel:
    """Number of kernel taps of a consumer, and which of them never read the padding."""

    size: int = 1
    inside: tuple[int, ...] = (0,)


def kernel_of(tap: Tap, module: nn.Module) -> Kernel:
    """The kernel of a consumer. Where every kernel tap reads padding somewhere, all count as inside."""
    if tap.kind != "conv":
        return Kernel(math.prod(_weight(module).shape[2:]) if tap.kind == "conv_transpose" else 1)
    sizes = tuple(int(k) for k in _weight(module).shape[2:])
    conv: Any = module
    lines = []
    for d, size in enumerate(sizes):
        reach = conv.dilation[d] * (size - 1)
        left = {"same": reach // 2, "valid": 0}[conv.padding] if isinstance(conv.padding, str) else conv.padding[d]
        right = reach - left if conv.padding == "same" else left
        lines.append([j for j in range(size) if left <= j * conv.dilation[d] <= reach - right] or list(range(size)))
    inside = [int(np.ravel_multi_index(place, sizes)) for place in itertools.product(*lines)]
    return Kernel(math.prod(sizes), tuple(inside))


def _weight(module: nn.Module) -> Tensor:
    weight: Any = module.weight
    return weight


@dataclass(frozen=True)
class UnitMoments:
    """Moments per unit at one tap, float64 on the statistics' device.

    `units` (U,) numbers in the graph; `mean` (U,) and `covariance` (U, U) averaged over the entries of a
    flattened unit and over the kernel taps that never read padding, each centred on its own mean (a constant
    per entry folds away); `level` (U,) root mean square of the entries' means; `restless` (U,) the largest
    variance of any entry, also counting what only the kernel taps at the border see. It is 0 for a unit that
    is constant, padding or not.
    """

    units: np.ndarray
    mean: Tensor
    covariance: Tensor
    level: Tensor
    restless: Tensor
    samples: int


def unit_moments(statistics: TapStatistics, tap: Tap, kernel: Kernel) -> UnitMoments:
    """Moments per unit from the moments per regressor. Units with fewer entries than others are filled with
    zeros.
    """
    wide = statistics.per_kernel
    blocks = blocks_of(tap, wide, kernel.size)
    taps, inside = (kernel.size, list(kernel.inside)) if wide else (1, [0])
    device = statistics.moments.total.device
    longest = max(len(b) for b in blocks.values())
    index = torch.tensor([b + [-1] * (longest - len(b)) for b in blocks.values()], device=device)
    there = (index >= 0).view(len(blocks), -1, taps)
    index = index.clamp_min(0).view(len(blocks), -1, taps)
    covariance = statistics.moments.covariance()
    variance = torch.where(there, covariance.diagonal().clamp_min(0)[index], 0.0)
    means = torch.where(there, statistics.moments.mean()[index], 0.0)
    known = there[:, :, inside].flatten(1)
    counts = known.sum(1).clamp_min(1)
    total = covariance.new_zeros(len(blocks), len(blocks))
    chosen = index[:, :, inside].flatten(1)
    for column, filled in zip(chosen.T, known.T, strict=True):
        part = covariance[column[:, None], column[None, :]]
        total += part if bool(filled.all()) else part * (filled[:, None] & filled[None, :])
    # E[x (x - c)] is 0 for a unit that is c inside the map and 0 in the padding, whatever the padding's share
    centre = means[:, :, inside].mean(2, keepdim=True)
    second = variance + means.square()
    border = (second - centre * means).abs()
    border[border <= ROUNDING * second] = 0.0  # a difference of numbers that are rounded so
    border[:, :, inside] = variance[:, :, inside]
    return UnitMoments(
        units=np.fromiter(blocks, dtype=np.int64),
        mean=means[:, :, inside].flatten(1).sum(1) / counts,
        covariance=total / chosen.shape[1],
        level=(means[:, :, inside].square().flatten(1).sum(1) / counts).sqrt(),
        restless=border.flatten(1).max(1).values,
        samples=statistics.samples,
    )


@dataclass(frozen=True)
class Reading:
    """Unit moments of one tap; `places` (U,) says where each of its units stands in the cluster."""

    tap: str
    places: Tensor
    moments: UnitMoments

    def varies(self, tolerance: float) -> Tensor:
        """(U,) bool: the unit's deviation is above `tolerance` of its level and of the largest deviation
        here.
        """
        moments = self.moments
        share = max(tolerance**2, 4 * torch.finfo(moments.restless.dtype).eps)
        size = torch.maximum(moments.level.square(), moments.covariance.diagonal().max().clamp_min(0))
        return ~(moments.restless <= share * size)  # what is not finite varies, so nothing is claimed of it

    def correlation(self, tolerance: float) -> Tensor:
        """(U, U) correlations; all 0 for units that do not vary, 1 on the diagonal of those that do."""
        covariance, varies = self.moments.covariance, self.varies(tolerance)
        variance = covariance.diagonal()
        usable = varies & (variance > 0) & torch.isfinite(variance)
        scale = torch.where(usable, variance, 1.0).sqrt()
        result = (covariance / scale[:, None] / scale[None, :]).clamp(-1, 1)
        result = torch.where(usable[:, None] & usable[None, :], result, 0.0)
        result.diagonal().copy_(varies.to(result.dtype))
        return result


@dataclass(frozen=True)
class Cluster:
    """Units that meet at taps. `numbers` (n,) in the graph; `live` (n,) bool: units that findings speak
    about.

    `complete` (n,) bool: every tap that reads the unit was observed (nothing is claimed of other units).
    """

    numbers: np.ndarray
    live: Tensor
    complete: Tensor
    readings: tuple[Reading, ...]

    @property
    def samples(self) -> int:
        """Input samples behind the poorest reading: positions of one image are not independent."""
        return min((reading.moments.samples for reading in self.readings), default=0)


def observed(model: nn.Module, graph: UnitGraph, statistics: Statistics) -> list[Cluster]:
    """All clusters of the graph's live groups, in the order of their first group."""
    found = []
    for groups in clusters(graph):
        units = np.concatenate([group.units for group in groups])
        taps = [tap for tap in graph.taps if np.isin(tap.units, units).any()]
        found.append(_cluster(model, units, taps, statistics))
    return found


def _cluster(model: nn.Module, units: np.ndarray, taps: list[Tap], statistics: Statistics) -> Cluster:
    read = [tap.units[tap.units >= 0] for tap in taps]
    guests = np.setdiff1d(np.concatenate(read) if read else units, units)
    numbers = np.concatenate([units, guests])
    place = {int(u): i for i, u in enumerate(numbers)}
    complete = np.isin(numbers, np.concatenate(read)) if read else np.zeros(len(numbers), dtype=bool)
    readings = []
    device = torch.device("cpu")
    for tap, these in zip(taps, read, strict=True):
        seen = statistics.taps.get(tap.module)
        if seen is None or seen.moments.count == 0:
            complete &= ~np.isin(numbers, these)
            continue
        device = seen.moments.total.device
        moments = unit_moments(seen, tap, kernel_of(tap, model.get_submodule(tap.module)))
        places = torch.tensor([place[int(u)] for u in moments.units], device=device)
        readings.append(Reading(tap.module, places, moments))
    live = torch.arange(len(numbers), device=device) < len(units)
    return Cluster(numbers, live, torch.from_numpy(complete).to(device) & live, tuple(readings))
