"""Rows that a convolution reads: those of F.unfold, at positions that depend on the sample's id only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from compressor.algebra.patches import conv_patches, keyed_hash, output_rows, sampled_positions

CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def every_position(count: int, spatial: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(spatial)).expand(count, -1)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1), (2, 4)])
def test_equal_to_unfold(kernel: Any, dilation: Any, padding: Any, stride: Any) -> None:
    x = torch.randn(3, 5, 13, 14, generator=torch.Generator().manual_seed(0))
    unfolded = F.unfold(x, kernel, dilation, padding, stride)
    positions = torch.stack([torch.randperm(unfolded.shape[2])[:6] for _ in range(3)])
    rows = conv_patches(x, kernel, stride, padding, dilation, positions)
    expected = torch.stack([unfolded[n][:, positions[n]].T for n in range(3)]).flatten(0, 1)
    assert torch.equal(rows, expected)


@pytest.mark.parametrize(
    ("spatial", "kernel", "stride", "padding", "dilation"),
    [
        ((17,), (3,), (2,), (1,), (2,)),
        ((9,), (1,), (1,), (0,), (1,)),
        ((5, 6, 7), (3, 1, 2), (1, 2, 2), (1, 0, 1), (1, 1, 2)),
        ((4, 4, 4), (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    ],
)
def test_rows_times_weights_is_the_convolution_in_any_dimension(
    spatial: Any, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, *spatial, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, *kernel, generator=generator, dtype=torch.float64)
    y = CONVS[len(spatial)](x, weight, None, stride, padding, dilation)
    positions = every_position(2, tuple(y.shape[2:]))
    rows = conv_patches(x, kernel, stride, padding, dilation, positions)
    assert torch.allclose(rows @ weight.flatten(1).T, output_rows(y, positions), atol=1e-12)


def test_inputs_in_channels_last_layout_give_the_same_rows() -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    positions = every_position(2, (6, 6))
    plain = conv_patches(x, (3, 3), (1, 1), (1, 1), (1, 1), positions)
    other = conv_patches(x.to(memory_format=torch.channels_last), (3, 3), (1, 1), (1, 1), (1, 1), positions)
    assert torch.equal(plain, other)


def test_positions_depend_on_the_id_and_the_key_only() -> None:
    ids = torch.arange(200)
    whole = sampled_positions(ids, 49, 7, 5)
    parts = torch.cat([sampled_positions(part, 49, 7, 5) for part in ids.split(33)])
    assert torch.equal(whole, parts)
    assert torch.equal(sampled_positions(ids.flip(0), 49, 7, 5).flip(0), whole)
    assert not torch.equal(sampled_positions(ids, 49, 7, 6), whole)


@pytest.mark.parametrize(("total", "count"), [(49, 7), (49, 48), (100, 1), (7, 3), (5, 5), (5, 9)])
def test_positions_have_no_repeats_and_cover_the_map_evenly(total: int, count: int) -> None:
    found = sampled_positions(torch.arange(4000), total, count, 0)
    wanted = min(count, total)
    assert found.shape == (4000, wanted)
    assert all(len(set(row)) == wanted for row in found[:200].tolist())
    assert int(found.min()) >= 0
    assert int(found.max()) < total
    hits = torch.bincount(found.flatten(), minlength=total) / 4000
    assert float((hits - wanted / total).abs().max()) < 5 * (0.25 / 4000) ** 0.5


def test_hashes_are_uniform_and_unlike_for_neighbours() -> None:
    values = keyed_hash(torch.arange(100_000), 3)
    assert int(values.min()) >= 0
    assert len(values.unique()) == len(values)
    uniform = values.double() / 2**62
    assert abs(float(uniform.mean()) - 0.5) < 5 * (1 / 12 / 100_000) ** 0.5
    correlation = torch.corrcoef(torch.stack([uniform[:-1], uniform[1:]]))[0, 1]
    assert abs(float(correlation)) < 0.02
    other = keyed_hash(torch.arange(100_000), 4).double() / 2**62
    assert abs(float(torch.corrcoef(torch.stack([uniform, other]))[0, 1])) < 0.02
