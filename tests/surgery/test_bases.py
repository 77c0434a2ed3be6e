"""Bases of attention: the function stays, and what matters least stands last."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from planted_attention import lively
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from compressor.observe import observe, sampled_log_likelihood
from compressor.planning.allocation import Allocator
from compressor.planning.paths import find_path
from compressor.sources.samples import Batch
from compressor.surgery.bases import balancing, basis_taps, in_balanced_bases
from compressor.units.dense import in_dense_form
from compressor.units.graph import UnitGraph, clusters
from compressor.units.heads import attentions
from compressor.units.sizes import Sizes
from compressor.units.trace import trace

X = torch.randn(48, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
NAME = "encoder.layers.encoder_layer_0.self_attention"


@pytest.fixture(scope="module")
def opened() -> tuple[nn.Module, UnitGraph]:
    torch.manual_seed(0)
    whole = lively(VisionTransformer(16, 8, 1, 4, 24, 40, num_classes=5))
    model = in_dense_form(whole, X)
    return model, trace(model, X)


def batches() -> Iterator[Any]:
    for ids in torch.arange(len(X)).split(16):
        yield Batch(ids, X[ids], None)


def test_both_moments_become_the_same_falling_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(40, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    moments, gradients = (part.T @ part for part in parts)
    forward, backward = balancing(moments, gradients)
    torch.testing.assert_close(forward @ backward, torch.eye(6, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    one, other = forward @ moments @ forward.T, backward.T @ gradients @ backward
    torch.testing.assert_close(one, torch.diag(one.diagonal()), rtol=1e-9, atol=1e-9 * float(one.max()))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(one.max()))
    assert bool((one.diagonal().diff() < 0).all())


def test_directions_without_variance_leave_the_basis_invertible() -> None:
    moments = torch.diag(torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64))
    forward, backward = balancing(moments, torch.zeros(4, 4, dtype=torch.float64))
    torch.testing.assert_close(forward @ backward, torch.eye(4, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_the_function_stays_and_query_dimensions_are_in_order(opened: tuple[nn.Module, UnitGraph]) -> None:
    model, graph = opened
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = observe(model, graph, batches, len(X), taps=basis_taps(model))
    turned = in_balanced_bases(model, seen)
    with torch.no_grad():
        torch.testing.assert_close(turned(X), model(X), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    attention = attentions(turned)[NAME]
    assert not torch.equal(attention.q.weight, before[f"{NAME}.q.weight"])
    alone = observe(turned, graph, batches, len(X)).pairs[f"{NAME}.q"].gram.diagonal().reshape(4, 6).sum(0)
    assert float(alone[:3].sum()) > 5 * float(alone[3:].sum())


def test_what_a_query_dimension_is_worth_is_the_slope_of_scaling_it(opened: tuple[nn.Module, UnitGraph]) -> None:
    model, graph = opened
    gram = observe(model, graph, batches, len(X), seed=5).pairs[f"{NAME}.q"].gram
    factors = torch.ones(len(X), 24, dtype=torch.float64, requires_grad=True)
    probe = copy.deepcopy(model)
    layer = attentions(probe)[NAME].q

    def scaled(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out * factors[:, None, :]

    layer.register_forward_hook(scaled)
    sampled_log_likelihood(probe(X), torch.arange(len(X)), 5 + 7919).backward()
    slopes = factors.grad
    assert slopes is not None
    torch.testing.assert_close(gram, slopes.T @ slopes, rtol=1e-6, atol=1e-8 * float(gram.max()))


def test_paths_of_queries_values_and_heads(opened: tuple[nn.Module, UnitGraph]) -> None:
    model, graph = opened
    seen = observe(model, graph, batches, len(X))
    for leaf, size in (("q", 6), ("v", 6), ("heads", 4)):
        group = next(group for group in graph.groups if group.name == f"{NAME}.{leaf}")
        path = find_path(model, graph, [group], seen, {tap.module: True for tap in graph.taps})
        assert len(path.order) == size - 1
        assert set(path.order.tolist()) < set(group.units.tolist())
        assert float(path.increments.sum()) > 0


def test_alignment_counts_features_not_units(opened: tuple[nn.Module, UnitGraph]) -> None:
    model, graph = opened
    seen, inside = observe(model, graph, batches, len(X)), {tap.module: True for tap in graph.taps}
    paths = [find_path(model, graph, cluster, seen, inside) for cluster in clusters(graph)]
    kept = Allocator(graph, paths, Sizes(model, graph), block=8).plan("params", 0.8).kept
    own = {name.rpartition(".")[2]: len(units) for name, units in kept.items()}
    assert own.pop("0", 8) % 8 == 0  # the hidden units of the MLP
    assert set(own) <= {"heads", "q", "v"}
    assert own
    assert all(own.get(leaf, 6) % 2 == 0 for leaf in ("q", "v"))  # of four features each
