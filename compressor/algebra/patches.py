"""What one output position of a consumer reads: rows of regressors, sampled over positions by a keyed hash.

Shape letters: N inputs, C channels, P sampled positions, D regressors (C x kernel size), R rows (N x P).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MIX1, _MIX2 = -49064778989728563, -4265267296055464877  # splitmix64's multipliers as signed 64-bit integers


def keyed_hash(ids: Tensor, key: int) -> Tensor:
    """Pseudo-random non-negative int64 per id (splitmix64): the same whatever the batch or the process."""
    value = ids.to(torch.int64) * -7046029254386353131 + key * 0x9E3779B97F4A7C1 % (1 << 62)
    value = (value ^ ((value >> 30) & ((1 << 34) - 1))) * _MIX1
    value = (value ^ ((value >> 27) & ((1 << 37) - 1))) * _MIX2
    return (value ^ ((value >> 31) & ((1 << 33) - 1))) & ((1 << 62) - 1)


def sampled_positions(ids: Tensor, total: int, count: int, key: int) -> Tensor:
    """(N, P) output positions for the samples `ids`: all if `count` >= `total`, else an even grid with a random start.

    An evenly spaced grid has no repeats and covers the map; the start and stride are keyed by the sample's id.
    """
    if count >= total:
        return torch.arange(total, device=ids.device).expand(len(ids), total)
    start = keyed_hash(ids, key) % total
    steps = (torch.arange(count, device=ids.device) * total) // count
    return (start[:, None] + steps[None, :]) % total


def conv_patches(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    positions: Tensor,
) -> Tensor:
    """Rows (R, D) that a convolution reads at flat output `positions` (N, P) of its input x (N, C, *spatial).

    The columns are ordered like `weight.reshape(outputs, -1)`: channel first, then the kernel taps.
    """
    dims = len(kernel)
    pads = [p for size in reversed(padding) for p in (size, size)]
    padded = F.pad(x, pads).movedim(1, -1).contiguous()
    spatial = padded.shape[1:-1]
    out = [(spatial[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(dims)]
    corner = torch.zeros_like(positions)
    rest = positions
    scale = 1
    for d in reversed(range(dims)):
        corner = corner + (rest % out[d]) * stride[d] * scale
        rest = rest // out[d]
        scale *= spatial[d]
    flat = padded.reshape(-1, padded.shape[-1])
    base = corner + torch.arange(len(x), device=x.device)[:, None] * scale
    offsets = _offsets(kernel, dilation, spatial, x.device)
    rows = flat[(base.reshape(-1, 1) + offsets[None, :]).reshape(-1)]
    rows = rows.reshape(-1, len(offsets), flat.shape[1])
    return rows.transpose(1, 2).reshape(len(rows), -1)


def _offsets(kernel: tuple[int, ...], dilation: tuple[int, ...], spatial: torch.Size, device: torch.device) -> Tensor:
    grids = torch.meshgrid(
        *[torch.arange(k, device=device) * s for k, s in zip(kernel, dilation, strict=True)], indexing="ij"
    )
    offset = torch.zeros_like(grids[0])
    for grid, size in zip(grids, spatial, strict=True):
        offset = offset * size + grid
    return offset.reshape(-1)


def output_rows(y: Tensor, positions: Tensor) -> Tensor:
    """Rows (R, O) of a convolution's output y (N, O, *spatial) at flat `positions` (N, P)."""
    flat = y.flatten(2)
    picked = torch.gather(flat, 2, positions[:, None, :].expand(-1, flat.shape[1], -1))
    return picked.transpose(1, 2).reshape(-1, flat.shape[1])
