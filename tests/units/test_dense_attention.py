"""Heads and dimensions of attention as units: traced, proven by dry runs, cut, and removed where weights prove it."""

from __future__ import annotations

import copy

import planted
import planted_zoo
import pytest
import torch
from planted_attention import lively, plant
from torch import nn
from torchvision.models import VisionTransformer

from compressor.attention.dense import DenseAttention
from compressor.attention.known import reader_of
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import certify, checked
from compressor.units.cut import cut
from compressor.units.dense import in_dense_form
from compressor.units.heads import attentions
from compressor.units.sizes import Sizes, size_of
from compressor.units.trace import trace

ATTENTION = "encoder.layers.encoder_layer_0.self_attention"
X = torch.randn(24, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def vit(layers: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return lively(VisionTransformer(16, 8, layers, 4, 24, 40, num_classes=5))


def test_heads_and_dimensions_are_groups_that_pass_the_dry_run() -> None:
    model = in_dense_form(vit(), X)
    graph = checked(model, trace(model, X), X)
    groups = {g.name: (len(g.units), g.frozen) for g in graph.groups if g.name.startswith(ATTENTION)}
    assert groups == {f"{ATTENTION}.heads": (4, None), f"{ATTENTION}.q": (6, None), f"{ATTENTION}.v": (6, None)}
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in vit().parameters())


def test_a_cut_of_all_three_is_certified_counted_and_keeps_the_scale() -> None:
    model = in_dense_form(vit(), X)
    graph = trace(model, X)
    kept = {f"{ATTENTION}.heads": (0, 2, 3), f"{ATTENTION}.q": (1, 4), f"{ATTENTION}.v": (0, 2, 3, 5)}
    small = cut(model, graph, kept)
    attention = small.get_submodule(ATTENTION)
    assert isinstance(attention, DenseAttention)
    assert [layer.weight.shape[0] for layer in (attention.q, attention.k, attention.v)] == [6, 6, 12]
    assert attention.scale.tolist() == [6**-0.5] * 3
    assert small(X).shape == (24, 5)
    assert certify(model, small, graph, kept, X) == {}
    assert size_of(model, graph, kept)["params"] == sum(p.numel() for p in small.parameters())


def test_savings_of_heads_and_dimensions_are_those_of_real_cuts() -> None:
    model = in_dense_form(vit(), X)
    graph = trace(model, X)
    sizes, by_name = Sizes(model, graph), {group.name: group for group in graph.groups}
    mask = torch.ones(graph.n_units, dtype=torch.bool).numpy()
    mask[by_name[f"{ATTENTION}.heads"].units[1]] = mask[by_name[f"{ATTENTION}.v"].units[0]] = False
    saving, whole = sizes.saving("params", mask), sizes.total("params", mask)
    for leaf in ("heads", "q", "v"):
        unit = by_name[f"{ATTENTION}.{leaf}"].units[3]
        less = mask.copy()
        less[unit] = False
        assert saving[unit] == whole - sizes.total("params", less)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_mode_finds_planted_units_of_the_mlp_values_queries_and_heads(dtype: torch.dtype) -> None:
    lean = vit(2)
    first = in_dense_form(lean, X, normal=False)
    for name, attention in attentions(first).items():
        reader = reader_of(first, name)
        assert reader is not None
        plant(attention, reader)
    graph = trace(first, X)
    wide = planted.split(first, graph, {"encoder.layers.encoder_layer_0.mlp.0": {3: 3, 7: 2}}).model.to(dtype)
    images = X.to(dtype)
    opened = in_dense_form(wide_again(wide, lean).to(dtype), images)
    small, plan = exact_compress(opened, trace(opened, images), images, effort=0.0)
    gone = {fold.group.removeprefix("encoder.layers."): len(fold.dropped) for fold in plan.folds}
    expected = {"encoder_layer_0.mlp.0": 3}
    for block in ("encoder_layer_0", "encoder_layer_1"):
        expected |= {f"{block}.self_attention.{leaf}": 1 for leaf in ("heads", "q", "v")}
    assert gone == expected
    assert plan.taken_back == ()
    fresh = torch.randn(8, 3, 16, 16, dtype=dtype)
    with torch.no_grad():
        assert moved([wide(fresh)], [small(fresh)]) < (1e-10 if dtype == torch.float64 else 1e-4)


def wide_again(dense: nn.Module, original: nn.Module) -> nn.Module:
    """A planted network with its attention in torch's own class again, as a user would bring it."""
    from compressor.attention.known import plain_again

    made = plain_again(copy.deepcopy(dense), copy.deepcopy(original).to(next(dense.parameters())))
    assert not attentions(made)
    return made


def test_attention_that_is_not_followed_has_no_taps_of_its_own() -> None:
    model = vit()
    graph = trace(model, X)
    assert all(isinstance(model.get_submodule(tap.module), (nn.Linear, nn.Conv2d)) for tap in graph.taps)
    assert not any(group.frozen is None and "attention" in group.name for group in graph.groups)


def test_a_lean_network_stays_whole() -> None:
    lean = vit()
    opened = in_dense_form(lean, X)
    small, plan = exact_compress(opened, trace(opened, X), X, effort=0.0)
    assert plan.removed == 0
    with torch.no_grad():
        torch.testing.assert_close(small(X), lean(X), rtol=1e-12, atol=1e-12)


def test_a_network_without_attention_is_handed_back_itself() -> None:
    model, inputs = planted.small("dense")
    assert in_dense_form(model, inputs) is model


@pytest.mark.slow
def test_every_planted_unit_of_vit_b_16_goes() -> None:
    lean, images = planted_zoo.lean("vit_b_16", torch.float64)
    first = in_dense_form(lean, images, normal=False)
    planted_in = attentions(first)
    for name, attention in planted_in.items():
        reader = reader_of(first, name)
        assert reader is not None
        plant(attention, reader)
    graph = trace(first, images)
    chosen = {group.name: {5: 3} for group in graph.groups if group.frozen is None and "mlp" in group.name}
    wide = planted.split(first, graph, chosen).model
    opened = in_dense_form(wide_again(wide, lean), images)
    small, plan = exact_compress(opened, trace(opened, images), images, effort=0.0)
    expected = dict.fromkeys(chosen, 2)
    expected |= {f"{name}.{leaf}": 1 for name in planted_in for leaf in ("heads", "q", "v")}
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == expected
    assert plan.taken_back == ()
    fresh = torch.randn(4, *images.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        assert moved([wide(fresh)], [small(fresh)]) < 1e-10
