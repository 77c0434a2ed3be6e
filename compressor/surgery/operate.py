"""Carry a plan out on a copy: cut the units, fold what they carried into the units that stay (in closed form).

Shape letters: O outputs, D regressors, U entries of a tap, K entries that stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.ridge import solve_ridge
from compressor.observe import Statistics, TapStatistics, takes_constant
from compressor.surgery.landing import Landing
from compressor.units.cut import cut, keep_mask, positions
from compressor.units.graph import Tap, UnitGraph, axis_lines, merged_taps


def kept_regressors(tap: Tap, mask: np.ndarray, kernel: int) -> Tensor:
    """Regressors of a tap that stay; `kernel` regressors per entry."""
    entries = positions(tap.units, mask)
    return torch.from_numpy((entries[:, None] * kernel + np.arange(kernel)[None, :]).reshape(-1))


def kept_outputs(graph: UnitGraph, mask: np.ndarray) -> dict[str, Tensor]:
    """Layer -> outputs that stay, for layers that lose some."""
    found: dict[str, Tensor] = {}
    lines = axis_lines(graph.axes)
    for axis in graph.axes:
        owner, _, leaf = axis.tensor.rpartition(".")
        line = lines[axis.tensor][axis.axis]
        stay = positions(line, mask)
        if leaf == "weight" and axis.role == "produces" and len(stay) < line.shape[-1]:
            found[owner] = torch.from_numpy(stay)
    return found


def operate(
    model: nn.Module,
    graph: UnitGraph,
    statistics: Statistics,
    kept: Mapping[str, tuple[int, ...]],
    spots: Mapping[str, Landing],
    ridge: float,
) -> nn.Module:
    """A smaller copy of `model`: units not in `kept` are gone, consumers take over what they carried.

    The fold is least squares on the statistics of the original network, W' = W C[:,K] C[K,K]⁻¹ per tap; the
    sequential refit starts from it. `model` is not changed.
    """
    small = cut(model, graph, kept)
    mask = keep_mask(graph, kept)
    rows = kept_outputs(graph, mask)
    for tap in merged_taps(graph):
        measured = statistics.taps.get(tap.module)
        if measured is None or len(positions(tap.units, mask)) == tap.units.shape[-1]:
            continue
        whole: Any = model.get_submodule(tap.module)
        spot = spots[tap.module]
        weight, bias = fold_consumer(whole.weight.detach(), tap, measured, mask, ridge, spot.intercept)
        stay = rows.get(tap.module)
        if stay is not None:
            stay = stay.to(weight.device)
            weight = weight.index_select(1 if tap.kind == "conv_transpose" else 0, stay)
            bias = bias if bias is None else bias[stay]
        write_consumer(small, spot, weight, bias, relative=True)
    return small


def fold_consumer(
    weight: Tensor, tap: Tap, measured: TapStatistics, mask: np.ndarray, ridge: float, intercept: bool
) -> tuple[Tensor, Tensor | None]:
    """A consumer's weight over the entries that stay (same layout), and what its bias gains (O,) or None."""
    kernel = int(np.prod(weight.shape[2:], initial=1))
    stay = kept_regressors(tap, mask, kernel if measured.per_kernel else 1).to(weight.device)
    centred = takes_constant(tap, measured.per_kernel, intercept)
    second = measured.moments.covariance() if centred else measured.moments.second()
    second, mean = second.to(weight.device), measured.moments.mean().to(weight.device)
    wide_weight = weight.to(second)
    if measured.per_kernel or tap.kind == "linear":
        matrix = wide_weight.flatten(1)
        folded = solve_ridge(second[stay][:, stay], matrix @ second[:, stay], matrix[:, stay], ridge)
        gain = matrix @ mean - folded @ mean[stay]
        return folded.reshape(len(weight), -1, *weight.shape[2:]), gain if centred else None
    start = torch.eye(len(second), dtype=second.dtype, device=second.device)[:, stay]
    expand = solve_ridge(second[stay][:, stay], second[:, stay], start, ridge)  # (U, K)
    if tap.kind == "conv_transpose":
        return torch.einsum("uo...,uk->ko...", wide_weight, expand), None
    folded = torch.einsum("ou...,uk->ok...", wide_weight, expand)
    gain = wide_weight.flatten(2).sum(2) @ (mean - expand @ mean[stay])
    return folded, gain if centred else None


def write_consumer(small: nn.Module, spot: Landing, weight: Tensor, bias: Tensor | None, relative: bool) -> None:
    """Write a consumer's weight, and its constants where it has a place for them.

    That is its own bias, else the running mean of the batch norm behind it. With `relative`, `bias` is added to what
    is there; else it replaces it (a missing bias counts as 0 at the original running mean, see `Landing.mean`).
    """
    module: Any = small.get_submodule(spot.module)
    module.weight.data.copy_(weight.reshape(module.weight.shape))
    if bias is None:
        return
    if module.bias is not None:
        module.bias.data.copy_(module.bias.data + bias.to(module.bias) if relative else bias)
    elif spot.norm is not None:
        norm: Any = small.get_submodule(spot.norm)
        norm.running_mean.sub_(bias.to(norm.running_mean))
