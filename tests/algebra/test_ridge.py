"""Ridge regression from sums: equal to least squares on rows, and to the prior where the data say nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressor.algebra.ridge import PairedSums, solve_ridge


def rows_of(count: int, inputs: int, outputs: int, mean: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = mean + torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return x, x @ weight.T + 3.0 + noise, weight


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_least_squares_on_rows(intercept: bool, dtype: torch.dtype) -> None:
    x, y, _ = rows_of(400, 6, 3, mean=5.0)
    sums = PairedSums.starting(x[:50].to(dtype), y[:50].to(dtype))
    for part in range(0, 400, 50):
        sums.add(x[part : part + 50].to(dtype), y[part : part + 50].to(dtype))
    weight, constant = sums.solve(torch.zeros(3, 6), 0.0, intercept)
    full = torch.cat([x, torch.ones(400, 1, dtype=torch.float64)], 1) if intercept else x
    best = torch.linalg.lstsq(full, y).solution.T
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    assert torch.allclose(weight, best[:, :6], atol=tolerance)
    assert (constant is None) is not intercept
    if constant is not None:
        assert torch.allclose(constant, best[:, 6], atol=10 * tolerance)


def test_the_penalty_is_in_units_of_each_regressor() -> None:
    x, y, _ = rows_of(300, 4, 2)
    gram, cross = x.T @ x / 300, y.T @ x / 300
    scale = torch.tensor([1e-3, 1.0, 20.0, 1e2], dtype=torch.float64)
    zero = torch.zeros(2, 4, dtype=torch.float64)
    plain = solve_ridge(gram, cross, zero, 0.1)
    scaled = solve_ridge(gram * torch.outer(scale, scale), cross * scale, zero, 0.1)
    assert torch.allclose(scaled * scale, plain, rtol=1e-6)
    direct = cross @ torch.linalg.inv(gram + 0.1 * torch.diag(gram.diagonal()))
    assert torch.allclose(plain, direct, rtol=1e-6)


def test_it_minimises_what_it_says() -> None:
    x, y, prior = rows_of(100, 5, 2)
    gram, cross, ridge = x.T @ x / 100, y.T @ x / 100, 0.3
    best = solve_ridge(gram, cross, prior, ridge).requires_grad_(True)
    penalty = (ridge * gram.diagonal() * (best - prior) ** 2).sum()
    objective = ((y - x @ best.T) ** 2).sum() / 100 + penalty
    (gradient,) = torch.autograd.grad(objective, best)
    assert float(gradient.abs().max()) < 1e-6


def test_the_prior_stands_where_the_data_say_nothing() -> None:
    x, y, _ = rows_of(100, 3, 2)
    x[:, 1] = 0.0
    prior = torch.full((2, 3), 7.0, dtype=torch.float64)
    found = solve_ridge(x.T @ x / 100, y.T @ x / 100, prior, 1e-3)
    assert found[:, 1].tolist() == [7.0, 7.0]
    assert float((found[:, [0, 2]] - 7.0).abs().min()) > 0.1
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(solve_ridge(nothing, nothing[:2], prior, 1e-3), prior)
    strong = solve_ridge(x.T @ x / 100, y.T @ x / 100, prior, 1e9)
    assert torch.allclose(strong, prior, atol=1e-6)


def test_copies_share_the_weight() -> None:
    x, y, _ = rows_of(200, 3, 1)
    x = torch.cat([x, x[:, [0]]], 1)
    found = solve_ridge(x.T @ x / 200, y.T @ x / 200, torch.zeros(1, 4, dtype=torch.float64), 1e-3)
    assert found[0, 0] == pytest.approx(float(found[0, 3]), rel=1e-6)
    assert bool(torch.isfinite(found).all())
