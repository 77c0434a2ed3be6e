"""Allocation: the largest plan that is not above its target, in multiples of the block, at the least predicted loss."""

from __future__ import annotations

import itertools

import numpy as np
import planted
import pytest
import torch
from scipy.spatial import ConvexHull

from compressor.errors import UsageError
from compressor.planning.allocation import Allocator, _rounded_up, envelope
from compressor.planning.paths import Path
from compressor.units.cut import cut
from compressor.units.graph import UnitGraph
from compressor.units.sizes import Sizes
from compressor.units.trace import trace


def made(name: str, seed: int = 0, block: int = 1, width: int = 16) -> tuple[Allocator, torch.nn.Module, UnitGraph]:
    torch.manual_seed(seed)
    build, shape = planted.SMALL[name]
    model = (build(width) if name != "depthwise" else build(2 * width)).eval()  # type: ignore[call-arg]
    graph = trace(model, torch.randn(2, *shape))
    generator = np.random.default_rng(seed)
    paths = []
    for group in graph.groups:
        if group.frozen is None:
            order = group.units[generator.permutation(len(group.units))[:-1]]
            paths.append(Path(order, np.sort(generator.exponential(size=len(order)) ** 3)))
    return Allocator(graph, paths, Sizes(model, graph), block), model, graph


@pytest.mark.parametrize("measure", ["params", "macs"])
@pytest.mark.parametrize("name", planted.SMALL)
def test_the_target_is_hit_from_below(name: str, measure: str) -> None:
    allocator, model, graph = made(name)
    whole = allocator.sizes.total(measure, allocator.full())
    least = allocator.smallest(measure) / whole
    for share in (0.9, 0.6, least + 0.3 * (1 - least), least):
        plan = allocator.plan(measure, share)
        small = cut(model, graph, plan.kept)
        size = Sizes(small, trace(small, torch.randn(2, *planted.SMALL[name][1])))
        mask = np.ones(len(allocator.full()), dtype=bool)
        for group in graph.groups:
            if group.name in plan.kept:
                mask[group.units] = False
                mask[group.units[list(plan.kept[group.name])]] = True
        got = allocator.sizes.total(measure, mask)
        assert got <= share * whole
        assert got > share * whole - 0.15 * whole
        if measure == "params":
            assert sum(p.numel() for p in small.parameters()) == got
        assert size.total(measure, np.ones(size._n, dtype=bool)) == got
        assert plan.predicted_loss == pytest.approx(allocator.loss(mask))


@pytest.mark.parametrize("block", [4, 8])
@pytest.mark.parametrize("name", ["dense", "convs", "residual"])
def test_groups_are_multiples_of_the_block(name: str, block: int) -> None:
    allocator, _, graph = made(name, block=block, width=24)
    whole = allocator.sizes.total("params", allocator.full())
    for share in (0.8, 0.5):
        plan = allocator.plan("params", share)
        assert plan.kept
        for kept in plan.kept.values():
            assert len(kept) % block == 0
            assert len(kept) > 0
            assert list(kept) == sorted(set(kept))
        mask = np.ones(graph.n_units, dtype=bool)
        for group in graph.groups:
            mask[group.units] = False
            mask[group.units[list(plan.kept.get(group.name, range(len(group.units))))]] = True
        assert allocator.sizes.total("params", mask) <= share * whole


def test_a_width_that_is_no_multiple_may_stay_whole() -> None:
    allocator, _, _ = made("dense", block=16, width=20)
    plan = allocator.plan("params", 0.75)
    assert plan.kept
    assert all(len(kept) == 16 for kept in plan.kept.values())


def test_units_dropped_last_come_back_first() -> None:
    allocator, _, graph = made("dense", block=8)
    mask = allocator.full()
    path = allocator.paths[0]
    mask[path.order[:11]] = False
    rounded = allocator._rounded(mask)
    assert set(np.flatnonzero(rounded & ~mask)) == set(path.order[8:11])
    assert rounded[graph.groups[0].units].sum() == 8


@pytest.mark.parametrize("measure", ["params", "macs"])
def test_an_impossible_size_names_the_least_that_is_possible(measure: str) -> None:
    allocator, _, _ = made("residual", block=8)
    least = allocator.smallest(measure) / allocator.sizes.total(measure, allocator.full())
    with pytest.raises(UsageError, match=r"at least 0\.\d+: .*aligned to 8") as error:
        allocator.plan(measure, 0.9 * least)
    assert error.value.exit_code == 2
    assert f"--keep {measure}" in str(error.value)
    named = float(error.value.expected.split()[2].rstrip(":"))
    assert least <= named <= 1.001 * least
    allocator.plan(measure, named)


@pytest.mark.parametrize(
    ("share", "text"), [(0.748712, "0.7488"), (0.75, "0.75"), (1.00004e-5, "1.001e-05"), (1.0, "1"), (0.0, "0")]
)
def test_the_least_is_rounded_up(share: float, text: str) -> None:
    assert _rounded_up(share) == text


@pytest.mark.parametrize(("part", "helps"), [(0.99, True), (0.01, False)])
def test_alignment_is_named_where_it_alone_makes_a_size_impossible(part: float, helps: bool) -> None:
    allocator, _, _ = made("residual", block=8)
    least = allocator.smallest("params") / allocator.whole("params")
    with pytest.raises(UsageError) as error:
        allocator.plan("params", part * least)
    assert ("--align 1" in error.value.next_step) is helps
    with pytest.raises(UsageError) as error:
        made("residual")[0].plan("params", 0.001)
    assert "--align" not in error.value.next_step


def test_the_whole_size_drops_nothing_that_costs() -> None:
    allocator, _, _ = made("dense")
    assert allocator.plan("params", 1.0).predicted_loss < 1e-6


def test_smaller_targets_drop_more_and_lose_more() -> None:
    for name in planted.SMALL:
        allocator, _, _ = made(name, seed=1)
        least = allocator.smallest("params") / allocator.sizes.total("params", allocator.full())
        plans = [allocator.plan("params", s) for s in np.linspace(1.0, least, 8)]
        losses = [plan.predicted_loss for plan in plans]
        assert losses == sorted(losses)


def test_the_loss_is_near_the_least_of_all_plans_of_that_size() -> None:
    """Every pair of lengths of two paths is tried."""
    allocator, _, _ = made("dense", seed=3)
    whole = allocator.sizes.total("params", allocator.full())
    for share in (0.75, 0.5, 0.3):
        plan = allocator.plan("params", share)
        best = min(
            allocator.loss(mask)
            for stops in itertools.product(*[range(len(p.order) + 1) for p in allocator.paths])
            if allocator.sizes.total("params", mask := allocator._mask(stops)) <= share * whole
        )
        assert best - 1e-12 <= plan.predicted_loss <= 2.0 * best + 1e-6


def test_the_envelope_is_the_lower_convex_hull() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        saving = np.concatenate([[0.0], np.cumsum(generator.exponential(size=30))])
        loss = np.concatenate([[0.0], np.cumsum(generator.exponential(size=30) ** 4)])
        hull = envelope(saving, loss)
        points = np.stack([saving, loss], 1)
        corners = set(ConvexHull(points).vertices.tolist())
        slopes = np.diff(loss[hull]) / np.diff(saving[hull])
        assert (np.diff(slopes) > 0).all()
        assert set(hull.tolist()) <= corners
        assert hull[0] == 0
        assert hull[-1] == 30
        assert (np.interp(saving, saving[hull], loss[hull]) <= loss + 1e-9).all()
