"""Which units can go at once is measured, and what the limit admits is what was measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import compressor
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


class _Halves(nn.Module):
    """Unit 0 raises class 0 in the left half of a map as much as class 1 in the right half; on average it does
    nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.read = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
        self.write.weight.data = torch.tensor([[1.0], [0.001]])[:, :, None, None]
        self.write.bias.data.zero_()
        self.read.weight.data = torch.tensor([[4.0, 0.01], [-4.0, 0.0]])[:, :, None, None]
        self.read.bias.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.write(x))


def test_a_unit_that_only_moves_answers_within_a_map_is_needed() -> None:
    x = torch.randn(600, 1, 4, 4, generator=torch.Generator().manual_seed(0)).abs()
    x[..., 2:] = -x[..., :2]
    labels = (x[:, 0] < 0).long()

    found = compressor.analyze(_Halves().eval(), (x, labels))

    assert [found["findings"][kind] for kind in ("needed", "removable")] == [1, 1]
    tried = {one["units"][0]: one for one in found["ablation"]["tried"]}
    assert tried[0]["measured"] > 0.3 > 100 * tried[1]["measured"]
    assert 0.1 < tried[0]["measured"] / tried[0]["predicted"] < 10
