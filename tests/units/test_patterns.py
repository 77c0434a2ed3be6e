"""Every wiring pattern is either exact under a cut, or refused in plain words; there is no third outcome."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from unit_planted import PATTERNS

from compressor.units.check import certify, checked
from compressor.units.cut import cut, keep_mask
from compressor.units.graph import UnitGraph
from compressor.units.program import call_arguments, tensors_in
from compressor.units.trace import trace

EXACT = [name for name, pattern in PATTERNS.items() if pattern.says is None]
REFUSED = [name for name, pattern in PATTERNS.items() if pattern.says is not None]


def built(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(3)
    return PATTERNS[name].build().double().eval(), to_double(PATTERNS[name].inputs())


def to_double(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {key: to_double(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(to_double(value) for value in inputs)
    return inputs.double() if inputs.is_floating_point() else inputs


def run(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        return tensors_in(model(*args, **kwargs))


def random_kept(graph: UnitGraph, names: list[str], seed: int) -> dict[str, tuple[int, ...]]:
    generator = np.random.default_rng(seed)
    sizes = {g.name: len(g.units) for g in graph.groups if g.name in names}
    return {
        name: tuple(sorted(generator.permutation(size)[: generator.integers(1, size)].tolist()))
        for name, size in sizes.items()
    }


def unread(model: nn.Module, graph: UnitGraph, kept: dict[str, tuple[int, ...]]) -> nn.Module:
    """A copy in which no consumer reads the dropped units."""
    whole, mask = copy.deepcopy(model), keep_mask(graph, kept)
    for axis in graph.axes:
        if axis.role == "consumes":
            gone = np.flatnonzero((axis.units >= 0) & ~mask[np.maximum(axis.units, 0)])
            whole.get_parameter(axis.tensor).data.index_fill_(axis.axis, torch.from_numpy(gone), 0.0)
    return whole


@pytest.mark.parametrize("name", EXACT)
def test_exact_patterns_are_live_and_cut_exactly(name: str) -> None:
    model, inputs = built(name)
    graph = checked(model, trace(model, inputs), inputs)
    groups = {group.name: group for group in graph.groups}
    assert groups[PATTERNS[name].of].frozen is None
    live = [group.name for group in graph.groups if group.frozen is None]
    for seed in (11, 12):
        kept = random_kept(graph, live, seed)
        whole = unread(model, graph, kept)
        small = cut(whole, graph, kept)
        for big, little in zip(run(whole, inputs), run(small, inputs), strict=True):
            torch.testing.assert_close(little, big, rtol=1e-9, atol=1e-11)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert certify(model, small, graph, kept, inputs) == {}


def test_enough_patterns_are_planted() -> None:
    assert len(EXACT) >= 50
    assert len(REFUSED) >= 30


@pytest.mark.parametrize("name", ["residual", "depthwise", "two_sided_slice"])
def test_nothing_given_is_changed(name: str) -> None:
    model, inputs = built(name)
    model.train()
    model.a.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    kept_inputs, state = inputs.clone(), torch.get_rng_state()
    checked(model, trace(model, inputs), inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(inputs, kept_inputs)
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
