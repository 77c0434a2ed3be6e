"""Sizes are arithmetic on the graph; here they are compared with networks that were really cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from unit_planted import PATTERNS

from compressor.units.check import checked, random_halves
from compressor.units.cut import cut, keep_mask
from compressor.units.graph import UnitGraph
from compressor.units.program import forward
from compressor.units.sizes import Sizes
from compressor.units.trace import trace

NAMES = (
    "plain", "concat", "residual", "flattened", "squeeze_excite", "depthwise", "depthwise_multiplier_two",
    "transposed", "one_dimensional", "three_dimensional", "layer_scale", "shared_module_twice", "grouped",
    "encoder_hidden", "channels_last_linear", "embedding",
)  # fmt: skip


def graph_of(name: str) -> tuple[nn.Module, Any, UnitGraph]:
    torch.manual_seed(5)
    model, inputs = PATTERNS[name].build().eval(), PATTERNS[name].inputs()
    return model, inputs, checked(model, trace(model, inputs), inputs)


def counted_macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates per sample, counted by hooks on conv and linear layers, not from the graph."""
    total = 0

    def count(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        if isinstance(module, nn.Linear):
            total += out.numel() // out.shape[0] * weight.shape[1]
        elif getattr(module, "transposed", False):
            total += args[0].numel() // out.shape[0] * weight[0].numel()
        else:
            total += out.numel() // out.shape[0] * weight[0].numel()

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        forward(model, inputs)
    torch.backends.mha.set_fastpath_enabled(True)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", NAMES)
def test_totals_equal_those_of_the_cut_network(name: str) -> None:
    model, inputs, graph = graph_of(name)
    live = [group.name for group in graph.groups if group.frozen is None]
    sizes = Sizes(model, graph)
    for kept in ({}, random_halves(graph, live, 1, 0), random_halves(graph, live, 1, 1)):
        mask = keep_mask(graph, kept)
        small = cut(model, graph, kept)
        assert sizes.total("params", mask) == sum(p.numel() for p in small.parameters())
        if name != "encoder_hidden":  # its attention has functional weights, which hooks do not see
            assert sizes.total("macs", mask) == counted_macs(small, inputs)


@pytest.mark.parametrize("name", ["residual", "concat", "depthwise", "flattened"])
@pytest.mark.parametrize("measure", ["params", "macs"])
def test_savings_are_differences_of_totals(name: str, measure: str) -> None:
    model, _, graph = graph_of(name)
    sizes = Sizes(model, graph)
    group = next(g for g in graph.groups if g.name == PATTERNS[name].of)
    mask = keep_mask(graph, {group.name: tuple(range(1, len(group.units)))})
    saving = sizes.saving(measure, mask)
    for unit in group.units[1:4]:
        less = mask.copy()
        less[unit] = False
        assert sizes.total(measure, mask) - sizes.total(measure, less) == round(saving[unit])
    assert np.all(saving[~mask] == 0)
