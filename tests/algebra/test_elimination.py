"""The elimination path against a brute-force one that solves least squares anew for every unit it might drop."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.algebra import elimination
from compressor.algebra.elimination import QuadraticState, TapState, eliminate, precision
from compressor.algebra.moments import Moments
from compressor.algebra.ridge import solve_ridge


@dataclass
class Problem:
    """One tap: covariance H (D, D), weights (O, D), curvature (O, O), regressors of each unit."""

    covariance: Tensor
    weight: Tensor
    curvature: Tensor
    blocks: list[list[int]]
    units: list[int]

    def state(self) -> TapState:
        longest = max(len(b) for b in self.blocks)
        padded = np.array([b + [-1] * (longest - len(b)) for b in self.blocks])
        product = self.weight.T @ self.curvature @ self.weight / 2
        return TapState(torch.linalg.inv(self.covariance), product, padded, np.array(self.units))

    def loss(self, gone: set[int]) -> float:
        """½ tr(F ΔW H ΔWᵀ) for the best weights on the regressors that stay."""
        out = [d for u, b in zip(self.units, self.blocks, strict=True) if u in gone for d in b]
        if not out:
            return 0.0
        stay = [d for d in range(len(self.covariance)) if d not in out]
        h = self.covariance
        best = torch.zeros_like(self.weight)
        best[:, stay] = torch.linalg.solve(h[stay][:, stay], (self.weight @ h[:, stay]).T).T
        change = best - self.weight
        return float(torch.trace(self.curvature @ change @ h @ change.T) / 2)


def problem(blocks: list[list[int]], units: list[int], seed: int, spare: int = 0, outputs: int = 4) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    size = sum(len(b) for b in blocks) + spare
    rows = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    rows = rows @ (torch.eye(size) + 0.4 * torch.randn(size, size, generator=generator, dtype=torch.float64))
    curved = torch.randn(outputs, outputs, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    return Problem(rows.T @ rows / len(rows), weight, curved @ curved.T, blocks, units)


def brute(problems: list[Problem], groups: list[int], worth: list[float]) -> tuple[list[int], list[float]]:
    """The same path, by trying every drop."""
    gone: set[int] = set()
    order, increments = [], []
    while True:
        left = [groups.count(g) - sum(groups[u] == g for u in gone) for g in range(max(groups) + 1)]
        free = [u for u in range(len(groups)) if u not in gone and left[groups[u]] > 1]
        if not free:
            return order, increments
        now = sum(p.loss(gone) for p in problems)
        cost = {u: sum(p.loss(gone | {u}) for p in problems) - now for u in free}
        unit = min(free, key=lambda u: cost[u] / worth[u])
        gone.add(unit)
        order.append(unit)
        increments.append(cost[unit])


def layout(sizes: list[int], seed: int, spare: int = 0) -> list[list[int]]:
    """Regressors in random order, dealt out to units of these sizes."""
    order = np.random.default_rng(seed).permutation(sum(sizes) + spare).tolist()
    ends = np.cumsum(sizes)
    return [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]


CASES = {
    "dense": [([1] * 12, list(range(12)), 0)],
    "kernels": [([4] * 7, list(range(7)), 0)],
    "uneven blocks": [([3, 1, 2, 5, 1, 2], list(range(6)), 0)],
    "entries of no unit": [([2] * 6, list(range(6)), 5)],
    "two taps": [([1] * 9, list(range(9)), 0), ([3] * 9, [8, 7, 6, 5, 4, 3, 2, 1, 0], 0)],
    "taps that see a part": [([1] * 5, [0, 2, 4, 6, 7], 2), ([2, 1, 3, 2, 1], [1, 3, 5, 6, 0], 0)],
}


@pytest.mark.parametrize("pending", [1, 3, 128])
@pytest.mark.parametrize("name", CASES)
def test_order_and_costs_are_those_of_brute_force(name: str, pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "PENDING", pending)
    taps = [problem(layout(s, i, spare), u, 10 + i, spare) for i, (s, u, spare) in enumerate(CASES[name])]
    count = 1 + max(max(p.units) for p in taps)
    order, increments = eliminate([p.state() for p in taps], torch.zeros(count, dtype=torch.long))
    expected, costs = brute(taps, [0] * count, [1.0] * count)
    assert order == expected
    assert len(order) == count - 1
    assert increments == pytest.approx(costs, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("pending", [2, 128])
def test_groups_keep_their_last_unit_and_worth_decides(pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "PENDING", pending)
    one = problem(layout([2] * 10, 3), list(range(10)), 5)
    groups = [0, 1, 0, 1, 2, 2, 2, 3, 0, 1]
    worth = [1.0, 9.0, 2.0, 5.0, 0.1, 3.0, 1.0, 7.0, 0.5, 2.0]
    order, increments = eliminate([one.state()], torch.tensor(groups), torch.tensor(worth))
    expected, costs = brute([one], groups, worth)
    assert order == expected
    assert 7 not in order  # alone in its group
    assert increments == pytest.approx(costs, rel=1e-8, abs=1e-10)


def test_costs_stay_right_over_hundreds_of_drops() -> None:
    size = 400
    one = problem([[d] for d in range(size)], list(range(size)), 7)
    order, increments = eliminate([one.state()], torch.zeros(size, dtype=torch.long))
    for length in (100, 250, 390):
        exact = one.loss(set(order[:length]))
        assert sum(increments[:length]) == pytest.approx(exact, rel=1e-8)
        step = one.loss(set(order[: length + 1])) - exact
        assert increments[length] == pytest.approx(step, rel=1e-6)


def test_the_predicted_loss_of_copies_is_almost_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    rows = torch.cat([rows, 3.0 * rows[:, [1]], rows[:, [0]] - rows[:, [2]]], 1)
    inverse, alive = precision(rows.T @ rows / 500, 1e-7)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    order, increments = eliminate(
        [TapState(inverse, weight.T @ weight, np.arange(8)[:, None], np.arange(8))], torch.zeros(8, dtype=torch.long)
    )
    assert bool(alive.all())
    assert set(order[:2]) <= {0, 1, 2, 6, 7}
    assert max(increments[:2]) < 1e-4 * increments[2]


def test_units_that_no_tap_reads_go_first_and_cost_nothing() -> None:
    one = problem([[0], [1], [2]], [0, 2, 4], 2)
    order, increments = eliminate([one.state()], torch.zeros(5, dtype=torch.long))
    assert order[:2] == [1, 3]
    assert increments[:2] == [0.0, 0.0]


def test_precision_is_the_inverse_and_treats_scales_alike() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(200, 7, generator=generator, dtype=torch.float64)
    covariance = rows.T @ rows / 200
    scale = torch.tensor([1e-2, 1.0, 1e3, 10.0, 1.0, 0.1, 1e2], dtype=torch.float64)
    plain, _ = precision(covariance, 0.01)
    scaled, _ = precision(covariance * torch.outer(scale, scale), 0.01)
    assert torch.allclose(scaled * torch.outer(scale, scale), plain, rtol=1e-9)
    ridged = covariance + 0.01 * torch.diag(covariance.diagonal())
    assert torch.allclose(plain @ ridged, torch.eye(7, dtype=torch.float64), atol=1e-10)


def test_regressors_without_variance_are_named_and_stand_apart() -> None:
    covariance = torch.diag(torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64))
    covariance[0, 2] = covariance[2, 0] = 0.5
    inverse, alive = precision(covariance, 0.0)
    assert alive.tolist() == [True, False, True]
    assert inverse[1].tolist() == [0.0, 1.0, 0.0]
    assert torch.allclose(inverse[[0, 2]][:, [0, 2]], torch.linalg.inv(covariance[[0, 2]][:, [0, 2]]))
    _, none = precision(torch.zeros(2, 2, dtype=torch.float64), 1e-3)
    assert not none.any()


@pytest.mark.slow
def test_a_layer_of_4096_units_takes_under_a_minute_on_two_cores() -> None:
    size = 4096
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(size, size, generator=generator, dtype=torch.float32)
    covariance = (factor.T @ factor / size).double() + 0.1 * torch.eye(size, dtype=torch.float64)
    weight = torch.randn(10, size, generator=generator, dtype=torch.float64)
    start = time.process_time()  # seconds of work: other programs on the machine do not count
    inverse, _ = precision(covariance, 1e-3)
    state = TapState(inverse, weight.T @ weight, np.arange(size)[:, None], np.arange(size))
    order, _ = eliminate([state], torch.zeros(size, dtype=torch.long))
    assert len(order) == size - 1
    assert time.process_time() - start < 2 * 60


def test_units_that_nothing_takes_over_cost_what_their_joint_form_says():
    generator = torch.Generator().manual_seed(0)
    part = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    gram = part.T @ part
    order, increments = eliminate([QuadraticState(gram, np.arange(5))], np.zeros(5, dtype=int))
    assert sorted([*order, *(set(range(5)) - set(order))]) == list(range(5))
    assert order[0] == int(gram.diagonal().argmin())
    total = 0.0
    for count, increment in enumerate(increments, 1):
        gone = order[:count]
        joint = 0.5 * float(gram[gone][:, gone].sum())
        assert increment == pytest.approx(max(joint - total, 0.0))
        total = joint


def test_precision_in_the_memory_of_the_covariance_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(300, 90, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows[:, [4, 50]] = 0.0
    covariance = rows.T @ rows / 300
    given = covariance.clone()
    inverse, alive = precision(given, 1e-3)
    assert torch.equal(given, covariance)
    again, same = precision(given, 1e-3, consume=True)
    assert torch.equal(again, inverse)
    assert torch.equal(same, alive)
    assert (~alive).nonzero().flatten().tolist() == [4, 50]
    monkeypatch.setattr(elimination, "AT_ONCE", 32)
    assert torch.allclose(precision(covariance, 1e-3)[0], inverse, rtol=1e-11, atol=1e-13)


MEMORY = """
import resource, sys, torch
from compressor.algebra import elimination
from compressor.algebra.elimination import precision

elimination.AT_ONCE = 400

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

size = 2400  # more than 32 MB, which the system gives and takes back one by one
precision(torch.eye(600, dtype=torch.float64), 1e-3)
covariance = torch.eye(size, dtype=torch.float64)
before = peak()
precision(covariance, 1e-3, consume=True)
print((peak() - before) / (8 * size**2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes of ru_maxrss")
def test_wide_layers_need_little_more_than_two_matrices_at_a_time() -> None:
    """Those of 16,384 units take 2 GB each."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3.0  # beside the covariance, with the libraries' own; more than four without care


def test_signals_that_float32_hardly_holds_end_no_run():
    """Moments of an untrained deep network may be all rounding: not positive definite, whatever the ridge."""
    rows = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)) * 1e-21
    moments = Moments.empty(torch.zeros(30))
    moments.add(rows)
    inverse, alive = precision(moments.covariance(), 1e-3)
    assert not alive.any()
    assert torch.isfinite(inverse).all()
    weight = solve_ridge(moments.gram, moments.gram[:2], torch.zeros(2, 30, dtype=torch.float64), 1e-3)
    assert torch.isfinite(weight).all()
