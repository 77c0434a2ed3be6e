"""Folds are exact: given the truth about dropped units, the smaller network is the same function."""

from __future__ import annotations

import copy

import planted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compressor
from compressor.errors import ModelError
from compressor.export.widths import compare, resized
from compressor.planning.folds import Fold
from compressor.surgery.exact import exact_compress, moved
from compressor.surgery.fold import folded
from compressor.units.trace import trace


def constant_fold(graph, name: str, unit: int, values: dict[str, float]) -> Fold:
    group = next(g for g in graph.groups if g.name == name)
    kept = tuple(u for u in range(len(group.units)) if u != unit)
    taps = {t.module: t for t in graph.taps if t.module in group.consumers}
    expand = {m: torch.zeros(1, len(kept), dtype=torch.float64) for m in taps}
    offset = {m: torch.tensor([values.get(m, 0.0)], dtype=torch.float64) for m in taps}
    return Fold(name, kept, (unit,), expand, offset)


def pushed(model: nn.Module, name: str, unit: int, value: float) -> nn.Module:
    """The model with one unit of a dense or conv layer made constant before its activation."""
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.weight[unit] = 0.0
        layer.bias[unit] = value
    return model


def test_a_constant_goes_into_the_bias_and_nothing_given_changes() -> None:
    model, x = planted.small("dense")
    pushed(model, "a", 3, 1.5)
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, x)
    small = folded(model, graph, [constant_fold(graph, "a", 3, {"b": 1.5})])
    assert moved([model(x)], [small(x)]) < 1e-12
    assert small.b.in_features == 15
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("with_norm", [True, False])
def test_a_constant_without_bias_goes_into_the_norm_or_a_new_bias(with_norm: bool) -> None:
    model, x = planted.small("convs")
    pushed(model, "b", 2, 0.7)
    graph = trace(model, x)
    norms = {"c": "end"} if with_norm else None
    small = folded(model, graph, [constant_fold(graph, "b", 2, {"c": 0.7})], norms)
    assert moved([model(x)], [small(x)]) < 1e-12
    assert (small.c.bias is None) is with_norm
    widths = compare(model, small)
    assert list(widths.added) == ([] if with_norm else ["c.bias"])
    again = resized(model, widths)
    again.load_state_dict(small.state_dict())
    assert moved([small(x)], [again(x)]) == 0.0


def test_a_new_bias_is_cut_with_the_outputs_it_belongs_to() -> None:
    model, x = planted.small("convs")
    pushed(model, "b", 2, 0.7)
    with torch.no_grad():
        model.head.weight[:, 16:20] = 0.0  # nobody reads unit 4 of the last convolution
    graph = trace(model, x)
    folds = [constant_fold(graph, "b", 2, {"c": 0.7}), constant_fold(graph, "c", 4, {})]
    small = folded(model, graph, folds)
    assert small.c.bias.shape == (11,)
    assert moved([model(x)], [small(x)]) < 1e-12


def test_a_constant_behind_zero_padding_is_refused() -> None:
    model, x = planted.small("convs")
    graph = trace(model, x)
    with pytest.raises(ModelError, match="zero padding"):
        folded(model, graph, [constant_fold(graph, "a", 2, {"b": 0.7})])


def test_float32_weights_stay_float32() -> None:
    model, x = planted.small("dense")
    model = pushed(model, "a", 0, 0.0).float()
    graph = trace(model, x.float())
    small = folded(model, graph, [constant_fold(graph, "a", 0, {})])
    assert {p.dtype for p in small.parameters()} == {torch.float32}


class Branches(nn.Module):
    """Two branches, concatenated, plus a layer as wide as both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.skip = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(3, 10, 3, padding=1)
        self.b, self.head = nn.Conv2d(10, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.a(x), self.c(x)], 1) + self.skip(x))
        return self.head(F.relu(self.b(x)).mean((2, 3)))


def test_a_branch_keeps_a_unit_where_all_of_its_units_could_go() -> None:
    torch.manual_seed(0)
    model, x = Branches().double().eval(), torch.randn(64, 3, 6, 6, dtype=torch.float64)
    model.b.weight.data[:, :4] = 0.0
    small, plan = exact_compress(model, trace(model, x), x)
    assert [fold.dropped for fold in plan.folds] == [(1, 2, 3)]
    assert len(plan.findings) == 3
    assert (small.get_parameter("a.weight").shape[0], small.get_parameter("skip.weight").shape[0]) == (1, 7)
    with torch.no_grad():
        assert moved([model(x)], [small(x)]) < 1e-10


def test_a_lossy_plan_leaves_no_branch_empty() -> None:
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(64, 3, 6, 6)
    model.b.weight.data[:, :4] *= 1e-6
    result = compressor.compress(model, (x, model(x).argmax(1)), keep="params=0.4", align=1)
    assert min(len(result.model.get_parameter(f"{name}.weight")) for name in ("a", "c", "skip")) >= 1
