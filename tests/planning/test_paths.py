"""Paths: clusters, what does not vary goes first at no cost, and predictions that match what cutting really costs."""

from __future__ import annotations

import planted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.observe import Statistics, observe
from compressor.planning.paths import Path, consumer_matrix, curved_product, find_path
from compressor.sources.samples import Batch
from compressor.surgery.landing import landings
from compressor.surgery.operate import operate
from compressor.units.graph import UnitGraph, clusters
from compressor.units.program import record
from compressor.units.trace import trace


def measured(model: nn.Module, x: Tensor, size: int = 64) -> tuple[UnitGraph, Statistics, dict[str, bool]]:
    graph = trace(model, x[:2])
    seen = observe(model, graph, lambda: (Batch(i, x[i], None) for i in torch.arange(len(x)).split(size)), len(x))
    return graph, seen, {spot.module: spot.intercept for spot in landings(record(model, x[:2]))}


def paths(model: nn.Module, x: Tensor, ridge: float = 1e-3) -> tuple[UnitGraph, list[Path]]:
    graph, seen, intercepts = measured(model, x)
    return graph, [find_path(model, graph, c, seen, intercepts, ridge=ridge) for c in clusters(graph)]


@pytest.mark.parametrize("name", planted.SMALL)
def test_every_group_keeps_one_unit_and_no_unit_goes_twice(name: str) -> None:
    model, x = planted.small(name)
    graph, found = paths(model, x)
    gone = [int(u) for path in found for u in path.order]
    assert len(set(gone)) == len(gone)
    for group in graph.groups:
        left = set(group.units.tolist()) - set(gone)
        assert len(left) == (1 if group.frozen is None else len(group.units))
    assert all((path.increments >= 0).all() for path in found)


def test_branches_of_a_concatenation_form_one_cluster() -> None:
    model, x = planted.small("concat")
    graph = trace(model, x[:2])
    joined = [{p for g in cluster for p in g.producers} for cluster in clusters(graph)]
    assert {"a", "b"} in joined
    model, x = planted.small("dense")
    assert all(len(cluster) == 1 for cluster in clusters(trace(model, x[:2])))


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("name", ["dense", "residual"])
def test_units_without_variance_go_first_and_cost_nothing(name: str, value: float) -> None:
    model, x = planted.small(name)
    with torch.no_grad():
        model.a.weight[[2, 5]] = 0.0
        model.a.bias[[2, 5]] = value
    graph, found = paths(model, x)
    mine = next(g for g in graph.groups if "a" in g.producers)
    path = next(p for p in found if set(p.order.tolist()) <= set(mine.units.tolist()))
    if name == "residual" and value:  # behind zero padding a constant has an edge: cheap, but not free
        assert path.increments[0] < 0.1 * path.increments[-1]
        return
    assert set(path.order[:2].tolist()) == set(mine.units[[2, 5]].tolist())
    assert path.increments[:2].tolist() == [0.0, 0.0]
    assert path.increments[2] > 0


def test_clones_go_before_units_that_stand_alone() -> None:
    lean, x = planted.small("convs", count=128)
    graph = trace(lean, x[:2])
    chosen = {g.name: {1: 2, 4: 3} for g in graph.groups if g.frozen is None}
    wide = planted.split(lean, graph, chosen, 0).model.eval()
    graph, found = paths(wide, x, ridge=1e-6)
    for path in found:
        group = next(g for g in graph.groups if int(path.order[0]) in g.units)
        first = {int(u) - int(group.units[0]) for u in path.order[:3]}
        assert first <= {1, 2, 5, 6, 7}  # two clones of unit 1, three of unit 4
        assert path.increments[:3].sum() < 1e-2 * path.increments[3:].sum()


def test_the_predicted_loss_is_near_the_measured_one() -> None:
    """Nats per sample against the network's own output: KL of the folded network."""
    lean, x = planted.small("dense", count=3000)
    graph, seen, intercepts = measured(lean, x, 500)
    spots = {spot.module: spot for spot in landings(record(lean, x[:2]))}
    for cluster in clusters(graph):
        path = find_path(lean, graph, cluster, seen, intercepts)
        group = cluster[0]
        for length in (2, 4):
            gone = set(path.order[:length].tolist())
            kept = {group.name: tuple(i for i, u in enumerate(group.units.tolist()) if u not in gone)}
            small = operate(lean, graph, seen, kept, spots, 1e-3)
            with torch.no_grad():
                before, after = lean(x).log_softmax(1), small(x).log_softmax(1)
            real = float(F.kl_div(after, before, log_target=True, reduction="batchmean"))
            assert real == pytest.approx(float(path.increments[:length].sum()), rel=0.5, abs=1e-6)


def test_worth_moves_dear_units_forward_in_a_cluster_of_groups() -> None:
    model, x = planted.small("concat")
    graph, seen, intercepts = measured(model, x)
    cluster = next(c for c in clusters(graph) if len(c) > 1)
    worth = torch.ones(graph.n_units, dtype=torch.float64).numpy()
    worth[cluster[0].units] = 1e6
    path = find_path(model, graph, cluster, seen, intercepts, worth)
    early = set(path.order[: len(cluster[0].units) - 1].tolist())
    assert early <= set(cluster[0].units.tolist())


def test_the_product_is_half_the_curved_weights() -> None:
    model, x = planted.small("residual")
    graph, seen, _ = measured(model, x)
    tap = next(t for t in graph.taps if t.module == "a")
    statistics = seen.taps["a"]
    curvature = statistics.curvature / statistics.samples
    flat = consumer_matrix(model.a, tap, True)
    assert torch.allclose(curved_product(flat, statistics), flat.T @ curvature @ flat / 2)
    per_channel = consumer_matrix(model.a, tap, False)
    weight = model.a.weight.detach()
    expected = torch.einsum("oukl,op,pvkl->uv", weight, curvature, weight) / 2
    assert torch.allclose(curved_product(per_channel, statistics), expected)
