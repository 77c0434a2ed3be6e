"""Moments: additive, and right where raw float32 sums are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.algebra.moments import Moments, wide


def rows_of(count: int, size: int, mean: float, spread: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    return mean + spread * torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixing


def test_equal_to_numpy() -> None:
    rows = rows_of(300, 5, 2.0, 1.5)
    seen = Moments.empty(torch.zeros(5, dtype=torch.float64))
    seen.add(rows)
    assert seen.count == 300
    np.testing.assert_allclose(seen.mean(), rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(seen.covariance(), np.cov(rows.numpy().T, bias=True), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(seen.second(), rows.T.numpy() @ rows.numpy() / 300, rtol=1e-12)


@pytest.mark.parametrize("mean", [30.0, -3000.0])
def test_float32_rows_with_a_large_mean_keep_their_covariance(mean: float) -> None:
    rows = rows_of(40_000, 8, mean, 0.1).float()
    exact = torch.cov(rows.double().T, correction=0)
    seen = Moments.empty(rows[:100].mean(0))
    for part in rows.split(700):
        seen.add(part)
    found = seen.covariance()
    assert float((found - exact).abs().max() / exact.diagonal().max()) < 1e-5
    assert float(torch.linalg.eigvalsh(found).min()) > 0
    assert torch.allclose(seen.mean(), rows.double().mean(0), rtol=1e-9)
    raw = (rows.T @ rows) / len(rows) - torch.outer(rows.mean(0), rows.mean(0))  # what must not be done
    assert float((raw.double() - exact).abs().max() / exact.diagonal().max()) > 1e-2


def test_shards_add_up_and_foreign_shifts_do_not() -> None:
    rows = rows_of(500, 4, 1.0, 1.0)
    shift = rows[:10].mean(0)
    whole, left, right = (Moments.empty(shift) for _ in range(3))
    whole.add(rows)
    left.add(rows[:123])
    right.add(rows[123:])
    both = left + right
    assert both.count == 500
    assert torch.allclose(both.covariance(), whole.covariance(), rtol=1e-12)
    assert torch.allclose(both.mean(), whole.mean(), rtol=1e-12)
    assert left.count == 123  # unchanged
    with pytest.raises(ValueError, match="shift"):
        left + Moments.empty(shift + 1)


def test_the_shift_is_a_copy_and_no_rows_give_zeros() -> None:
    shift = torch.ones(3)
    seen = Moments.empty(shift)
    shift += 5
    assert seen.shift.tolist() == [1.0, 1.0, 1.0]
    assert seen.covariance().tolist() == torch.zeros(3, 3).tolist()
    seen.add(torch.empty(0, 3))
    assert seen.count == 0


def test_sums_are_in_float64_where_the_device_has_it() -> None:
    assert Moments.empty(torch.zeros(2, dtype=torch.float32)).gram.dtype == torch.float64
    assert wide(torch.device("mps")) == torch.float32
    assert wide(torch.device("cuda")) == torch.float64


def test_moments_relative_to_another_shift_are_those_of_the_same_rows() -> None:
    rows = torch.randn(200, 7, generator=torch.Generator().manual_seed(3)) * 2 + 5
    parts = [Moments.empty(part.mean(0)) for part in rows.split(80)]
    for moments, part in zip(parts, rows.split(80), strict=True):
        moments.add(part)
        moments.rebase(torch.full((7,), 4.9))
    together = parts[0] + parts[1] + parts[2]
    assert together.count == 200
    assert torch.allclose(together.mean(), rows.double().mean(0), rtol=1e-6)
    assert torch.allclose(together.covariance(), torch.cov(rows.double().T, correction=0), rtol=1e-5, atol=1e-5)
