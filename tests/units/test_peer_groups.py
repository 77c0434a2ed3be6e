"""The same layers write the same units as in Torch-Pruning's graph, where that graph is known to be right."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from compressor.units.trace import trace

NAMES = ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121"]
LAYERS = (nn.Conv2d, nn.Linear)


def theirs(model: nn.Module, inputs: torch.Tensor) -> set[frozenset[str]]:
    """Producers of each of their groups; depthwise layers pass units on and are left out."""
    tp = pytest.importorskip("torch_pruning")
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=(inputs,), verbose=False)
    names = {module: name for name, module in model.named_modules()}
    found = set()
    for group in graph.get_all_groups(root_module_types=list(LAYERS)):
        writes, reads = set(), set()
        for item in group:
            if isinstance(item.dep.target.module, LAYERS):
                module = names[item.dep.target.module]
                if graph.is_out_channel_pruning_fn(item.dep.handler):
                    writes.add(module)
                if graph.is_in_channel_pruning_fn(item.dep.handler):
                    reads.add(module)
        found.add(frozenset(writes - {m for m in writes & reads if model.get_submodule(m).groups > 1}))  # type: ignore[operator]
    return found


@pytest.mark.parametrize("name", [*NAMES[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[2:])])
def test_producers_are_parted_as_by_torch_pruning(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    inputs = torch.randn(2, 3, 64, 64)
    graph = trace(model, inputs)
    assert {frozenset(group.producers) for group in graph.groups} == theirs(model, inputs)
