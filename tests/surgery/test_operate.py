"""Closed-form folds: exact where units are copies, better than cutting everywhere, and nothing given is changed."""

from __future__ import annotations

import math

import planted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.observe import Statistics, observe, readers
from compressor.sources.samples import Batch
from compressor.surgery.landing import Landing, landings
from compressor.surgery.operate import operate
from compressor.units.cut import cut
from compressor.units.graph import UnitGraph
from compressor.units.program import record
from compressor.units.trace import trace


def measured(model: nn.Module, x: Tensor) -> tuple[UnitGraph, Statistics, dict[str, Landing]]:
    graph = trace(model, x[:2])
    seen = observe(model, graph, lambda: (Batch(ids, x[ids], None) for ids in torch.arange(len(x)).split(32)), len(x))
    return graph, seen, {spot.module: spot for spot in landings(record(model, x[:2]))}


def moved(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        before, after = model(x), small(x)
    return float((before - after).norm() / (before - before.mean(0)).norm())


@pytest.mark.parametrize("ceiling", [4700, 60])
@pytest.mark.parametrize("name", planted.SMALL)
def test_clones_fold_away_exactly(name: str, ceiling: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per kernel tap, and per channel where there would be too many regressors."""
    monkeypatch.setattr(readers, "MAX_REGRESSORS", ceiling)
    lean, x = planted.small(name, count=96)
    graph = trace(lean, x[:2])
    chosen = planted.choose(graph, 1, groups=1.0, units=0.3)
    wide = planted.split(lean, graph, chosen, 1).model.eval()
    graph, seen, spots = measured(wide, x)
    kept = {}
    for group in graph.groups:
        if group.frozen is None and group.name in chosen:
            first, place = [], 0
            size = len(group.units) - sum(c - 1 for c in chosen[group.name].values())
            for unit in range(size):
                first.append(place)
                place += chosen[group.name].get(unit, 1)
            kept[group.name] = tuple(first)
    small = operate(wide, graph, seen, kept, spots, 1e-9)
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in lean.parameters())
    assert moved(wide, small, x) < 1e-6
    assert moved(wide, cut(wide, graph, kept), x) > 1e-2


@pytest.mark.parametrize("name", planted.SMALL)
def test_a_fold_beats_a_cut_and_changes_nothing_given(name: str) -> None:
    model, x = planted.small(name, count=200)
    graph, seen, spots = measured(model, x)
    kept = {g.name: tuple(range(math.ceil(0.7 * len(g.units)))) for g in graph.groups if g.frozen is None}
    before = {n: t.clone() for n, t in model.state_dict().items()}
    grams = {n: tap.moments.gram.clone() for n, tap in seen.taps.items()}
    random = torch.random.get_rng_state()
    small = operate(model, graph, seen, kept, spots, 1e-3)
    assert moved(model, small, x) < 0.9 * moved(model, cut(model, graph, kept), x)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(tap.moments.gram, grams[n]) for n, tap in seen.taps.items())
    assert torch.equal(random, torch.random.get_rng_state())
    again = operate(model, graph, seen, kept, spots, 1e-3)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in small.state_dict().items())


def test_an_empty_plan_is_a_copy() -> None:
    model, x = planted.small("convs")
    graph, seen, spots = measured(model, x)
    small = operate(model, graph, seen, {}, spots, 1e-3)
    assert small is not model
    assert torch.equal(small(x), model(x))


class NormBehind(nn.Module):
    """A convolution without bias in front of a norm: what is constant goes into the running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.c(F.relu(self.a(x))))).mean((2, 3)))


class Bare(nn.Module):
    """A convolution without bias and norm: a constant has no place."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, padding=padding, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.a(x)))).mean((2, 3)))


class Transposed(nn.Module):
    """Into a transposed convolution, and out of it."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=stride)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.a(x))))).mean((2, 3))


@pytest.mark.parametrize(
    ("build", "constant_fits"), [(NormBehind, True), (lambda: Bare(0), False), (lambda: Bare(1), False)]
)
def test_constants_go_where_they_have_a_place(build: type[nn.Module], constant_fits: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 6, 6, dtype=torch.float64)
    model = planted.awake(build().double(), x)
    with torch.no_grad():
        model.a.weight[2] = 0.0
        model.a.bias[2] = 1.5  # unit 2 is constant
    graph, seen, spots = measured(model, x)
    name = next(g.name for g in graph.groups if "a" in g.producers)
    small = operate(model, graph, seen, {name: (0, 1, 3, 4, 5, 6, 7)}, spots, 1e-9)
    assert small.c.bias is None
    assert (moved(model, small, x) < 1e-6) is constant_fits
    assert moved(model, small, x) < moved(model, cut(model, graph, {name: (0, 1, 3, 4, 5, 6, 7)}), x)


@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolutions_take_copies_and_no_constants(stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 5, 5, dtype=torch.float64)
    model = Transposed(stride).double().eval()
    with torch.no_grad():
        model.a.weight[5], model.a.bias[5] = 2 * model.a.weight[1], 2 * model.a.bias[1]
    graph, seen, spots = measured(model, x)
    name = next(g.name for g in graph.groups if "a" in g.producers)
    kept = {name: (0, 1, 2, 3, 4, 6, 7)}
    assert moved(model, operate(model, graph, seen, kept, spots, 1e-9), x) < 1e-6
    assert moved(model, cut(model, graph, kept), x) > 1e-2


def test_tokens_fold_like_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6), nn.Flatten(), nn.Linear(30, 4)).double()
    with torch.no_grad():
        model[0].weight[7], model[0].bias[7] = model[0].weight[3], model[0].bias[3]
    x = torch.randn(50, 5, 6, dtype=torch.float64)
    graph, seen, spots = measured(model, x)
    name = next(g.name for g in graph.groups if g.frozen is None and "0" in g.producers)
    small = operate(model, graph, seen, {name: (0, 1, 2, 3, 4, 5, 6, 8, 9)}, spots, 1e-9)
    assert moved(model, small, x) < 1e-6
