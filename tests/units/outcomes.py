"""What comes of a network whose live groups are cut at random: the same outputs, a refusal with reasons, or wrong."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from unit_planted import PATTERNS

from compressor.errors import CompressorError
from compressor.units.check import certify, checked
from compressor.units.cut import cut, keep_mask
from compressor.units.graph import UnitGraph
from compressor.units.program import forward, tensors_in
from compressor.units.trace import trace


def built(name: str) -> tuple[nn.Module, Any]:
    """The planted pattern of that name and its inputs, in float64."""
    torch.manual_seed(3)
    return PATTERNS[name].build().double().eval(), to_double(PATTERNS[name].inputs())


def to_double(inputs: Any) -> Any:
    """The same inputs in float64."""
    if isinstance(inputs, dict):
        return {key: to_double(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(to_double(value) for value in inputs)
    return inputs.double() if inputs.is_floating_point() else inputs


def run(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """All tensors that come out."""
    with torch.no_grad():
        return tensors_in(forward(model, inputs))


def random_kept(graph: UnitGraph, names: list[str], seed: int) -> dict[str, tuple[int, ...]]:
    """Of each group at least one unit, at random, and not all where it has more than one."""
    generator = np.random.default_rng(seed)
    sizes = {g.name: len(g.units) for g in graph.groups if g.name in names}
    return {
        name: tuple(sorted(generator.permutation(size)[: generator.integers(1, max(size, 2))].tolist()))
        for name, size in sizes.items()
    }


def unread(model: nn.Module, graph: UnitGraph, kept: dict[str, tuple[int, ...]]) -> nn.Module:
    """A copy in which no consumer reads the dropped units: what the cut network must equal."""
    whole, mask = copy.deepcopy(model), keep_mask(graph, kept)
    for axis in graph.axes:
        if axis.role == "consumes":
            gone = np.flatnonzero((axis.units >= 0) & ~mask[np.maximum(axis.units, 0)])
            whole.get_parameter(axis.tensor).data.index_fill_(axis.axis, torch.from_numpy(gone), 0.0)
    return whole


def live_groups(graph: UnitGraph) -> list[str]:
    """Names of the groups that may be cut."""
    return [group.name for group in graph.groups if group.frozen is None]


def outcome(model: nn.Module, inputs: Any, seeds: Sequence[int] = (0,)) -> str:
    """`exact`: what is live was cut, outputs stay. `refused`: nothing is live, or no graph. `wrong`: anything else.

    Float64 networks in eval mode; one cut for each seed.
    """
    try:
        graph = checked(model, trace(model, inputs), inputs)
    except CompressorError:
        return "refused"
    live = live_groups(graph)
    if not live:
        return "refused" if all(group.frozen for group in graph.groups) else "wrong"
    for seed in seeds:
        kept = random_kept(graph, live, seed)
        whole = unread(model, graph, kept)
        apart = zip(run(whole, inputs), run(cut(whole, graph, kept), inputs), strict=True)
        if not all(torch.allclose(little, big, rtol=1e-9, atol=1e-11) for big, little in apart):
            return "wrong"
        if certify(model, cut(model, graph, kept), graph, kept, inputs):
            return "wrong"
    return "exact"
