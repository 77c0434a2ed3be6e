"""Units of several paths that are stacked and added up or weighed against each other (selective kernels)."""

from __future__ import annotations

import planted
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.trace import trace


class Selective(nn.Module):
    """Two convolutions; each channel of the result is a mixture of theirs, in shares that depend on both."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(3, width, 3, padding=d + 1, dilation=d + 1) for d in range(2))
        self.fewer, self.shares = nn.Conv2d(width, 5, 1), nn.Conv2d(5, 2 * width, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([F.relu(path(x)) for path in self.paths], dim=1)
        seen = both.sum(1).mean((2, 3), keepdim=True)
        shares = self.shares(F.relu(self.fewer(seen)))
        shares = torch.softmax(shares.view(len(x), 2, -1, 1, 1), dim=1)
        return self.head((both * shares).sum(dim=1)).mean((2, 3))


class Votes(nn.Module):
    """A softmax over all units there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.softmax(self.a(x), dim=-1))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_channel_of_all_paths_and_its_shares_are_one_unit() -> None:
    torch.manual_seed(0)
    model, x = Selective().double().eval(), images(24)
    graph = checked(model, trace(model, x), x[:2])
    live = {group.name: len(group.units) for group in graph.groups if group.frozen is None}
    assert live == {"paths.0": 6, "fewer": 5}
    wide = planted.split(model, graph, {"paths.0": {1: 3, 4: 2}}).model
    small, plan = exact_compress(wide, checked(wide, trace(wide, x), x[:2]), x, effort=0.0)
    assert plan.removed == 3
    with torch.no_grad():
        assert moved([wide(x)], [small(x)]) < 1e-10


def test_a_softmax_over_units_that_nothing_pairs_stays_frozen() -> None:
    graph = trace(Votes().eval(), torch.randn(4, 5))
    assert next(group.frozen for group in graph.groups) == "softmax over units"
