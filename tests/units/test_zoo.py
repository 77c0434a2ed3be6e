"""Torchvision's networks: their groups as golden text, and the dry run passes on every live group.

To write the golden files again: `COMPRESSOR_GOLDEN=1 pytest tests/units/test_zoo.py -m ""`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from compressor.units.check import checked
from compressor.units.graph import UnitGraph
from compressor.units.inspect import coverage
from compressor.units.trace import trace

GOLDEN = Path(__file__).parent / "golden"
QUICK = ("resnet18", "mobilenet_v3_small", "squeezenet1_1")
SLOW = (
    "densenet121", "googlenet", "inception_v3", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t",
    "shufflenet_v2_x0_5", "regnet_y_400mf", "mnasnet0_5",
)  # fmt: skip


def built(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    size = 96 if name == "inception_v3" else 64
    options = {"image_size": 64} if name == "vit_b_16" else {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    model = torchvision.models.get_model(name, weights=None, **options)
    return model, torch.randn(2, 3, size, size)


def text(graph: UnitGraph) -> str:
    lines = [coverage(graph)]
    for g in graph.groups:
        counts = f"{len(g.units)} units, {len(g.producers)} producers, {len(g.carriers)} carriers"
        lines.append(f"{g.name}: {counts}, {len(g.consumers)} consumers" + (f"; {g.frozen}" if g.frozen else ""))
    return "\n".join(lines) + "\n"


def matches_golden(name: str, graph: UnitGraph) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("COMPRESSOR_GOLDEN"):
        path.write_text(text(graph))
    assert text(graph) == path.read_text()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_groups_are_golden_and_pass_the_dry_run(name: str) -> None:
    model, inputs = built(name)
    graph = trace(model, inputs)
    matches_golden(name, graph)
    after = checked(model, graph, inputs)
    fallen = [b.frozen for a, b in zip(graph.groups, after.groups, strict=True) if a.frozen != b.frozen]
    assert fallen == []
