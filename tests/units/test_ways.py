"""Networks that choose their way by values: what another way reads stays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.units.check import checked
from compressor.units.graph import UnitGraph
from compressor.units.trace import trace


def graph_of(model: nn.Module, inputs: Tensor) -> UnitGraph:
    return checked(model, trace(model, inputs), inputs)


def frozen(graph: UnitGraph) -> dict[str, str]:
    return {group.name: group.frozen for group in graph.groups if group.frozen is not None}


def batch(count: int = 64) -> Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(0))


class Ways(nn.Module):
    """A layer that is read by one layer, and by another one where the inputs are large."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 16), nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.a(x))
        return self.c(hidden) if x.mean() > 1e9 else self.b(hidden)


class Halves(Ways):
    """Units that are told apart by their place, where the inputs are large."""

    def forward(self, x: Tensor) -> Tensor:
        large = bool(x.abs().max() > 50)
        x = F.relu(self.a(x))
        return self.b(torch.cat([x[:, :8], 2 * x[:, 8:16]], 1) if large else x) + self.c(x)


class Signed(Ways):
    """Another way that does the same to every unit."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x if float(x.sum()) > 0 else -x)
        return self.b(F.relu(x)) + self.c(x)


class Experts(nn.Module):
    """A trunk, and three experts of which each sample asks one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.choice = nn.Linear(10, 16), nn.Linear(10, 3)
        self.experts = nn.ModuleList(nn.Linear(16, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden, best = F.relu(self.a(x)), self.choice(x).argmax(1)
        out = x.new_zeros(len(x), 5)
        for place, expert in enumerate(self.experts):
            index = (best == place).nonzero(as_tuple=True)[0]
            if index.numel():
                out[index] = expert(hidden[index])
        return out


def test_units_that_an_unreached_layer_may_read_stay() -> None:
    torch.manual_seed(0)
    assert "on another way" in frozen(graph_of(Ways(), batch()))["a"]


def test_units_are_cut_on_other_inputs_too() -> None:
    torch.manual_seed(0)
    assert "dry run" in frozen(graph_of(Halves(), batch()))["a"]


def test_another_way_that_fits_is_no_hindrance() -> None:
    torch.manual_seed(0)
    assert "a" not in frozen(graph_of(Signed(), batch()))


def test_experts_that_some_sample_reaches_are_followed() -> None:
    torch.manual_seed(0)
    model = Experts()
    assert "a" not in frozen(graph_of(model, batch()))
    with torch.no_grad():
        model.choice.bias[2] = -1e9
    assert "`experts.2` on another way" in frozen(graph_of(model, batch()))["a"]
