"""Folds of exact mode: what the dropped units of one group are rebuilt from.

Shape letters: D dropped units, K kept units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from compressor.units.cut import emptiable, keep_mask
from compressor.units.graph import UnitGraph


@dataclass(frozen=True)
class Fold:
    """How the dropped units of one group are rebuilt at each tap: `x[dropped] = expand @ x[kept] +
    offset`.
    """

    group: str
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    expand: Mapping[str, Tensor]
    """Tap (its module) -> (D, K) float64."""
    offset: Mapping[str, Tensor]
    """Tap -> (D,) float64."""


def never_empty(graph: UnitGraph, folds: Sequence[Fold]) -> list[Fold]:
    """The folds, with a unit taken back for each layer that would be left without any."""
    found = {fold.group: fold for fold in folds}
    for units in emptiable(graph):
        mask = keep_mask(graph, {name: fold.kept for name, fold in found.items()})
        if not mask[units].any():
            owner = next(group for group in graph.groups if units[0] in group.units)
            found[owner.name] = _with(found[owner.name], int(np.flatnonzero(owner.units == units[0])[0]))
    return [fold for fold in found.values() if fold.dropped]


def _with(fold: Fold, unit: int) -> Fold:
    """The fold of which `unit` stays after all: nothing else is rebuilt from it."""
    kept = sorted((*fold.kept, unit))
    rows = [place for place, dropped in enumerate(fold.dropped) if dropped != unit]
    expand = {}
    for tap, old in fold.expand.items():
        new = torch.zeros(len(rows), len(kept), dtype=old.dtype)
        new[:, [kept.index(k) for k in fold.kept]] = old[rows]
        expand[tap] = new
    offset = {tap: shift[rows] for tap, shift in fold.offset.items()}
    dropped = tuple(fold.dropped[row] for row in rows)
    return replace(fold, kept=tuple(kept), dropped=dropped, expand=expand, offset=offset)
