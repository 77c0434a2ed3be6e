"""Folds are exact: given the truth about dropped units, the smaller network is the same function."""

from __future__ import annotations

import copy

import planted
import pytest
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.export.widths import compare, resized
from compressor.planning.exact import Fold
from compressor.surgery.exact import moved
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
