"""Tables of layer times read as sizes: interpolation, the block's staircase, savings; targets are hit by allocation."""

from __future__ import annotations

import itertools

import numpy as np
import planted
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import UsageError
from compressor.planning.allocation import Allocator
from compressor.planning.paths import Path
from compressor.planning.timing import LATENCY, LayerTimes, TimedSizes, falling
from compressor.units.cut import positions
from compressor.units.graph import UnitGraph
from compressor.units.sizes import Sizes
from compressor.units.trace import trace


def plane(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A bilinear time: interpolation must be exact for it."""
    return 3.0 + 0.5 * first + 0.25 * second + 0.125 * first * second


def table(graph: UnitGraph, model: torch.nn.Module) -> list[LayerTimes]:
    """A bilinear time for every layer of the graph."""
    found = []
    for operation in graph.operations:
        size = model.get_parameter(operation.weight).shape
        widths = [(max(1, int(w) // 4), max(1, int(w) // 2), int(w)) for w in size[:2]]
        grid = tuple(tuple(sorted(set(w))) for w in widths)
        micros = plane(*np.meshgrid(*(np.array(w, dtype=float) for w in grid), indexing="ij"))
        reads = 0 if size[1] == 1 else 1
        found.append(LayerTimes(operation.weight, (grid[0], grid[1]), micros, reads, float(size[reads])))
    return found


def made(name: str, block: int = 1, rest: float = 7.0) -> tuple[TimedSizes, UnitGraph, torch.nn.Module]:
    torch.manual_seed(0)
    build, shape = planted.SMALL[name]
    model = build().eval()  # type: ignore[call-arg]
    graph = trace(model, torch.randn(2, *shape))
    return TimedSizes(Sizes(model, graph), graph, table(graph, model), rest, block), graph, model


@given(st.floats(1, 64), st.floats(1, 32))
def test_a_bilinear_time_is_read_exactly_everywhere(first: float, second: float) -> None:
    widths = (16, 32, 64), (4, 32)
    grid = np.meshgrid(np.array(widths[0], dtype=float), np.array(widths[1], dtype=float), indexing="ij")
    layer = LayerTimes("w", widths, plane(*grid), 1, 1.0)
    assert float(layer.at(first, second)) == pytest.approx(float(plane(np.array(first), np.array(second))))


def test_an_axis_that_cannot_shrink_has_one_width() -> None:
    layer = LayerTimes("w", ((8, 16), (3,)), np.array([[2.0], [4.0]]), 1, 1.0)
    assert layer.at(np.array([12, 16, 4]), 3).tolist() == [3.0, 4.0, 1.0]
    assert float(layer.at(0, 3)) == 0.0


def test_contradicting_times_give_way_to_the_smaller_one() -> None:
    noisy = np.array([[5.0, 4.0, 9.0], [6.0, 7.0, 8.0]])
    assert falling(noisy).tolist() == [[4.0, 4.0, 8.0], [6.0, 7.0, 8.0]]


@pytest.mark.parametrize("name", planted.SMALL)
def test_the_saving_of_a_unit_is_what_the_network_loses_without_it(name: str) -> None:
    sizes, graph, _ = made(name)
    generator = np.random.default_rng(0)
    mask = generator.random(graph.n_units) < 0.7
    saving = sizes.saving(LATENCY, mask)
    for unit in generator.choice(np.flatnonzero(mask), 6):
        less = mask.copy()
        less[unit] = False
        assert saving[unit] == pytest.approx(sizes.total(LATENCY, mask) - sizes.total(LATENCY, less), abs=1e-9)
    assert not saving[~mask].any()


def test_totals_stand_on_the_blocks_staircase() -> None:
    sizes, graph, _ = made("plain" if "plain" in planted.SMALL else next(iter(planted.SMALL)), block=4, rest=0.0)
    mask = np.ones(graph.n_units, dtype=bool)
    line = next(axis.units for axis in graph.axes if (axis.units >= 0).all() and len(axis.units) >= 8)
    totals = []
    for unit in line[:8]:
        mask[unit] = False
        totals.append(sizes.total(LATENCY, mask))
    width = len(line)
    steps = [-(-(width - gone) // 4) for gone in range(1, 9)]
    assert len(positions(line, mask)) == width - 8
    assert [a == b for a, b in itertools.pairwise(totals)] == [a == b for a, b in itertools.pairwise(steps)]


def test_other_measures_are_the_plain_ones() -> None:
    sizes, graph, model = made(next(iter(planted.SMALL)))
    mask = np.ones(graph.n_units, dtype=bool)
    assert sizes.total("params", mask) == sum(p.numel() for p in model.parameters())
    assert (sizes.saving("macs", mask) == Sizes(model, graph).saving("macs", mask)).all()


@pytest.mark.parametrize("name", planted.SMALL)
def test_an_allocation_hits_a_share_of_the_time(name: str) -> None:
    sizes, graph, _ = made(name)
    generator = np.random.default_rng(0)
    paths = []
    for group in graph.groups:
        if group.frozen is None:
            order = group.units[generator.permutation(len(group.units))[:-1]]
            paths.append(Path(order, np.sort(generator.exponential(size=len(order)) ** 3)))
    allocator = Allocator(graph, paths, sizes)
    whole = sizes.total(LATENCY, allocator.full())
    least = allocator.smallest(LATENCY) / whole
    for share in (0.9, least + 0.4 * (1 - least)):
        plan = allocator.plan(LATENCY, share)
        mask = allocator.full()
        for group in graph.groups:
            if group.name in plan.kept:
                mask[group.units] = False
                mask[group.units[list(plan.kept[group.name])]] = True
        assert 0.8 * share * whole < sizes.total(LATENCY, mask) <= share * whole
    with pytest.raises(UsageError, match="microseconds"):
        allocator.plan(LATENCY, 0.9 * least)
