"""Gated units (products of what two layers write) that one factor alone makes zero, for every input.

Where the values of a unit are zero by their weights its gate cannot matter. That is told by trial, on a copy: whatever
else writes the unit gets random weights and biases of both signs and many sizes, again and again, and the unit must
read as exactly zero, wherever it is read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.planning.reading import Spot, visit_taps
from compressor.units.graph import Axis, UnitGraph

DRAWS = 6
"""Pairs of opposite weights: of two gates of opposite sign, one is open."""
SIZES = (1.0, 10.0, 0.1)
"""Factors on the size of the weights: a gate may be shut for small values, or full for large ones."""


def shut(
    net: nn.Module, graph: UnitGraph, spots: Mapping[str, list[Spot]], batches: Iterable[tuple[int, Any]]
) -> np.ndarray:
    """(n_units,) bool: some, not all, of what writes the unit has zero weights, and the rest cannot make it anything
    but zero. `net` is in float64 and stays as it is; `batches` are inputs with their number of samples.
    """
    writers = [axis for axis in graph.axes if axis.role == "produces"]
    moves = {(a.tensor, a.axis): _moves(net, a) for a in writers if _tensor(net, a.tensor).dim() > 1}
    dead, alive = (np.zeros(graph.n_units + 1, dtype=bool) for _ in range(2))
    for axis in writers:
        if (axis.tensor, axis.axis) in moves:
            rows = moves[axis.tensor, axis.axis]
            alive[axis.units[rows]] = True
            dead[axis.units[~rows]] = True
    tapped = np.zeros(graph.n_units + 1, dtype=bool)
    for group in graph.groups:
        tapped[group.units] = bool(spots.get(group.name))
    found = dead & alive & tapped
    found[-1] = False
    batches = list(batches) if found.any() else []
    for draw in range(2 * DRAWS):
        if not found.any():
            break
        probe, generator = copy.deepcopy(net), torch.Generator().manual_seed(draw // 2)
        for axis in writers:
            _draw(probe, axis, _of_weight(axis, moves), found, draw, generator)
        found[_not_zero(probe, graph, spots, batches)] = False
    return found[:-1]


def _tensor(net: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(net.get_submodule(owner), leaf).detach()


def _moves(net: nn.Module, axis: Axis) -> np.ndarray:
    return _tensor(net, axis.tensor).movedim(axis.axis, 0).flatten(1).any(1).cpu().numpy()


def _of_weight(axis: Axis, moves: Mapping[tuple[str, int], np.ndarray]) -> np.ndarray | None:
    """The rows of a weight that are not zero; for a bias those of its layer's weight. A weight tied to another's has
    several axes that write units."""
    weight = f"{axis.tensor.rpartition('.')[0]}.weight"
    if (axis.tensor, axis.axis) in moves:
        return moves[axis.tensor, axis.axis] if axis.tensor == weight else None
    return next((rows for (name, _), rows in moves.items() if name == weight and len(rows) == len(axis.units)), None)


def _draw(
    probe: nn.Module, axis: Axis, moves: np.ndarray | None, found: np.ndarray, draw: int, generator: torch.Generator
) -> None:
    """Random numbers for the rows of the units `found` that are not zero, with the other sign in odd draws."""
    if moves is None or len(moves) != len(axis.units):
        return
    lines = _tensor(probe, axis.tensor).movedim(axis.axis, 0)
    rows = torch.from_numpy(np.flatnonzero(moves & found[axis.units]))
    drawn = torch.randn(lines[rows].shape, generator=generator, dtype=torch.float64)
    size = SIZES[draw // 2 % len(SIZES)] * (-1) ** draw / max(1, drawn[:1].numel()) ** 0.5
    lines[rows] = (size * drawn).to(lines)


def _not_zero(
    probe: nn.Module, graph: UnitGraph, spots: Mapping[str, list[Spot]], batches: Iterable[tuple[int, Any]]
) -> np.ndarray:
    """Numbers of the units that are not zero somewhere."""
    units = {group.name: group.units for group in graph.groups}
    loud: list[np.ndarray] = []

    def visit(place: int, read: Tensor) -> None:
        for name, there in spots.items():
            for spot in there:
                if spot.tap == place:
                    some = (spot.rows(read.flatten(0, 1)) != 0).any(0).cpu().numpy()
                    loud.append(units[name][some])

    places = {spot.tap for there in spots.values() for spot in there}
    visit_taps(probe, graph.taps, batches, dict.fromkeys(sorted(places), visit))
    return np.unique(np.concatenate(loud)) if loud else np.empty(0, dtype=np.int64)
