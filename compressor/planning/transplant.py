"""Are units wired alike? Units with equal weights that no sample moves give no sign of it; so, on a copy, they are
made into a unit that does vary, and must then read as that unit does, at every tap.

Together with equal weights this certifies copies for every input, also ones that no sample has shown.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.planning.reading import Spot, visit_taps
from compressor.units.graph import UnitGraph

ALIKE = 1e-9
"""Largest difference, relative to the donor's size, that counts as the same reading."""


def wired_alike(
    net: nn.Module,
    graph: UnitGraph,
    spots: Mapping[str, list[Spot]],
    units: Mapping[str, tuple[Tensor, int]],
    batches: Iterable[tuple[int, Any]],
) -> dict[str, Tensor]:
    """For each group, which of `units[group][0]` (bool) read as the unit `units[group][1]` does once they have its
    weights. `net` is in float64 and stays as it is; the donor must vary.
    """
    probe = copy.deepcopy(net)
    for group in graph.groups:
        if group.name in units:
            some, donor = units[group.name]
            with torch.no_grad():
                _give(probe, graph, {int(group.units[u]) for u in some.tolist()}, int(group.units[donor]))
    gap = {name: torch.zeros(len(some), dtype=torch.float64) for name, (some, _) in units.items()}
    size = dict.fromkeys(units, 0.0)

    def visit(place: int, read: Tensor) -> None:
        for name, (some, donor) in units.items():
            for spot in spots[name]:
                if spot.tap == place:
                    x = spot.rows(read.flatten(0, 1)).double().cpu()
                    off = (x[:, some] - x[:, [donor]]).abs().amax(0) / x[:, donor].abs().max().clamp_min(1e-300)
                    gap[name] = torch.maximum(gap[name], off)
                    size[name] = max(size[name], float((x[:, donor] - x[0, donor]).abs().max()))

    places = {spot.tap for name in units for spot in spots[name]}
    visit_taps(probe, graph.taps, batches, dict.fromkeys(sorted(places), visit))
    return {name: (found <= ALIKE) & (size[name] > 0) for name, found in gap.items()}


def _give(probe: nn.Module, graph: UnitGraph, receivers: set[int], donor: int) -> None:
    """Copy the donor's producers and carriers to the receivers, position by position."""
    for axis in graph.axes:
        if axis.role == "consumes" or donor not in axis.units:
            continue
        owner, _, leaf = axis.tensor.rpartition(".")
        tensor: Tensor = getattr(probe.get_submodule(owner), leaf)
        lines = tensor.detach().movedim(axis.axis, 0)
        given = lines[torch.from_numpy(axis.units == donor)].clone()
        for unit in receivers:
            mine = torch.from_numpy(axis.units == unit)
            if int(mine.sum()) == len(given):
                lines[mine] = given
