"""Which units can go at once is measured, and what the limit admits is what was measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.findings.ablation import ablated, answers, reference
from compressor.findings.together import measured_limit
from compressor.observe import CLASSES
from compressor.sources.samples import as_samples
from compressor.units.trace import trace

ALLOWANCE = 0.05


@pytest.mark.parametrize("ties", [1, 3, 12])
def test_all_units_up_to_the_limit_were_taken_out_together(ties: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    model[2].weight.data *= 5  # type: ignore[operator]
    x = torch.randn(200, 6)
    samples, graph = as_samples((x, torch.zeros(200, dtype=torch.long))), trace(model, x[:2])
    losses = torch.arange(len(graph.groups[0].units), dtype=torch.float64) // ties

    limit = measured_limit(model, graph, losses, samples, ALLOWANCE)

    admitted = torch.nonzero(losses <= limit).flatten().tolist()
    with torch.no_grad():
        whole, means = reference(model, samples, graph.taps, CLASSES)
        with ablated(model, graph.taps, admitted, means):
            measured = CLASSES.apart(whole, answers(model, samples, CLASSES))[0]
    assert measured <= ALLOWANCE
    assert bool(admitted) == (ties < 12)
