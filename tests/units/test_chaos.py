"""Dry runs of networks that random weights make chaotic: their rounding says nothing, weights near their own do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor.units.check import checked
from compressor.units.trace import trace
from compressor.units.trial import Trial


class Steep(nn.Module):
    """Tame with its own small weights; each layer with weights of the usual size makes 20 times of what comes in."""

    def __init__(self, depth: int = 14) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(depth))
            self.head = nn.Linear(16, 3)
        for layer in self.layers:
            layer.weight.data.mul_(0.12)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(20 * layer(x))
        return self.head(x)


def test_chaos_freezes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = Steep().eval(), torch.randn(4, 16)
    graph = trace(network, inputs)
    found = {group.name: group.frozen for group in checked(network, graph, inputs).groups}
    assert {why for name, why in found.items() if name.startswith("layers.")} == {None}
    reference = Trial._reference
    monkeypatch.setattr(Trial, "_reference", lambda self, kept, draw, near=False: reference(self, kept, draw))
    assert any("outputs changed" in (group.frozen or "") for group in checked(network, graph, inputs).groups)
