"""From paths to a plan of a given size: one threshold on predicted loss per saved parameter (or MAC) over all paths.

Along each path the lower convex envelope of (saving, cumulative loss) decides where stopping pays (a running maximum of
marginal costs is not optimal); savings are recomputed as neighbours shrink, and the threshold is bisected on the real
size of the network that results. Groups are rounded up to multiples of the runtime's block inside the bisection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from compressor.errors import UsageError
from compressor.planning.paths import Path
from compressor.planning.timing import LATENCY
from compressor.records import Plan
from compressor.units.cut import emptiable
from compressor.units.graph import UnitGraph, axis_lines
from compressor.units.sizes import SizeTable

ROUNDS = 6
UNITS = {LATENCY: "microseconds"}


def envelope(saving: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the lower convex hull of the points (saving, loss), both non-decreasing, starting at (0, 0)."""
    hull: list[int] = []
    for i in range(len(saving)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (loss[b] - loss[a]) * (saving[i] - saving[a]) >= (loss[i] - loss[a]) * (saving[b] - saving[a]):
                hull.pop()
            else:
                break
        hull.append(i)
    return np.array(hull)


@dataclass(frozen=True)
class Allocator:
    """Everything needed to turn a target size into a plan: `Allocator(...).plan("params", 0.35)`."""

    graph: UnitGraph
    paths: Sequence[Path]
    sizes: SizeTable
    block: int = 1
    original: Mapping[str, float] = field(default_factory=dict)
    """Sizes that shares are told of, where they are not those of the network that is cut."""

    def full(self) -> np.ndarray:
        """Mask of all units."""
        return np.ones(self.graph.n_units, dtype=bool)

    def whole(self, measure: str) -> float:
        """The size that shares are shares of."""
        return self.original.get(measure, self.sizes.total(measure, self.full()))

    def smallest(self, measure: str) -> float:
        """Size if every path is followed to its end."""
        return self.sizes.total(measure, self._rounded(self._mask([len(p.order) for p in self.paths])))

    def plan(self, measure: str, share: float) -> Plan:
        """The plan whose `measure` (`params`, `macs`, `latency`) is the largest not above `share` of the original.

        Raises UsageError where even the smallest network is larger.
        """
        whole = self.whole(measure)
        least = self.smallest(measure)
        if least > share * whole:
            named = _rounded_up(least / whole)
            raise UsageError(
                f"--keep {measure}={share:g}",
                f"{share:.4g} of {whole:,.0f} {UNITS.get(measure, measure)}",
                f"at least {named}: groups keep a unit (aligned to {self.block}), frozen layers stay",
                self._unaligned(measure, share * whole)
                + "ask for more, or see `compressor inspect` for what is frozen.",
            )
        mask = self.full()
        for _ in range(ROUNDS):  # savings depend on the neighbours' widths: repeat at the widths found
            new = self._at_target(measure, share * whole, self._savings(measure, mask))
            if (new == mask).all():
                break
            mask = new
        return Plan(kept=self.kept(mask), predicted_loss=self.loss(mask))

    def _unaligned(self, measure: str, target: float) -> str:
        """The way out where only alignment makes a size impossible; else nothing."""
        least = self.smallest(measure) if self.block <= 1 else replace(self, block=1).smallest(measure)
        return f"`--align 1` ({_rounded_up(least / self.whole(measure))} can be had so), " if least <= target else ""

    def kept(self, mask: np.ndarray) -> dict[str, tuple[int, ...]]:
        """Group name -> indices that stay, for groups that lose units."""
        found = {}
        for group in self.graph.groups:
            if group.frozen is None and not mask[group.units].all():
                found[group.name] = tuple(np.flatnonzero(mask[group.units]).tolist())
        return found

    def loss(self, mask: np.ndarray) -> float:
        """Predicted loss in nats of what `mask` drops."""
        return float(sum(path.increments[~mask[path.order]].sum() for path in self.paths))

    def _savings(self, measure: str, mask: np.ndarray) -> np.ndarray:
        saving = self.sizes.saving(measure, mask)
        if mask.all():
            return saving
        full = self.sizes.saving(measure, self.full())
        for path in self.paths:  # units already gone count with what a kept one of their path saves now
            kept, gone = path.order[mask[path.order]], path.order[~mask[path.order]]
            rate = saving[kept].sum() / max(full[kept].sum(), 1e-9) if len(kept) else 1.0
            saving[gone] = full[gone] * rate
        return saving

    def _at_target(self, measure: str, target: float, saving: np.ndarray) -> np.ndarray:
        low, high = -90.0, 30.0  # log of the threshold in nats per saved unit of size
        hulls = [self._hull(path, saving) for path in self.paths]
        best = self._rounded(self._mask([len(p.order) for p in self.paths]))
        for _ in range(60):
            middle = (low + high) / 2
            stops = [int(hull[int((slopes <= math.exp(middle)).sum())]) for hull, slopes in hulls]
            mask = self._rounded(self._mask(stops))
            if self.sizes.total(measure, mask) > target:
                low = middle
            else:
                high, best = middle, mask
        return best

    @staticmethod
    def _hull(path: Path, saving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gained = np.concatenate([[0.0], np.cumsum(np.maximum(saving[path.order], 1e-9))])
        loss = np.concatenate([[0.0], np.cumsum(path.increments)])
        hull = envelope(gained, loss)
        return hull, np.diff(loss[hull]) / np.diff(gained[hull])

    def _mask(self, stops: Sequence[int]) -> np.ndarray:
        mask = self.full()
        for path, stop in zip(self.paths, stops, strict=True):
            mask[path.order[:stop]] = False
        return mask

    def _rounded(self, mask: np.ndarray) -> np.ndarray:
        """Units that were dropped last come back until no layer is empty and every group is a multiple of the block
        (or whole)."""
        if self.block <= 1 and not self._emptiable:
            return mask
        mask = mask.copy()
        rank = {int(unit): i for path in self.paths for i, unit in enumerate(path.order)}
        for units in self._emptiable:
            if not mask[units].any():
                mask[max(units.tolist(), key=lambda u: rank.get(u, -1))] = True
        for group in self.graph.groups:
            gone = [int(u) for u in group.units if not mask[u]]
            short = -(len(group.units) - len(gone)) % self._steps.get(group.name, self.block)
            back = sorted(gone, key=lambda u: -rank[u])[:short]
            mask[back] = True
        return mask

    @cached_property
    def _emptiable(self) -> list[np.ndarray]:
        return emptiable(self.graph)

    @cached_property
    def _steps(self) -> dict[str, int]:
        """Groups whose units are several features each (dimensions of all heads, whole heads): a step smaller than the
        block makes their layers multiples of the block."""
        lines, found = axis_lines(self.graph.axes), {}
        owner = {int(unit): group.name for group in self.graph.groups for unit in group.units[:1]}
        for axis in self.graph.axes:
            if lines[axis.tensor][axis.axis].ndim > 1:
                units, counts = np.unique(axis.units, return_counts=True)
                for unit, each in zip(units.tolist(), counts.tolist(), strict=True):
                    if unit in owner:
                        found[owner[unit]] = self.block // math.gcd(self.block, each)
        return found


def _rounded_up(share: float) -> str:
    """A share in four digits that can be had when it is typed: the rounding goes up."""
    if share <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(share)) - 3)
    return f"{math.ceil(share / unit - 1e-9) * unit:.4g}"
