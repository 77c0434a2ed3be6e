"""One path per cluster of groups: the order in which units go, and the predicted loss that each adds.

Groups whose units meet at a tap (branches of a concat) form a cluster: units of one can stand in for units of another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.elimination import QuadraticState, TapState, eliminate, precision
from compressor.observe import PairStatistics, Statistics, TapStatistics, blocks_of, takes_constant
from compressor.units.graph import Group, Pairing, Tap, UnitGraph


@dataclass(frozen=True)
class Path:
    """`order[i]` is the i-th unit (number in the graph) to go; `increments[i]` the loss in nats it adds."""

    order: np.ndarray
    increments: np.ndarray


def consumer_matrix(module: nn.Module, tap: Tap, per_kernel: bool) -> Tensor:
    """(O', D) weights of a consumer over its regressors; without kernel regressors the kernel taps are more outputs."""
    layer: Any = module
    weight: Tensor = layer.weight.detach()
    if tap.kind == "linear" or per_kernel:
        return weight.flatten(1)
    if tap.kind == "conv":
        return weight.flatten(2).permute(2, 0, 1).flatten(0, 1)
    return weight.flatten(2).permute(2, 1, 0).flatten(0, 1)


def curved_product(matrix: Tensor, statistics: TapStatistics) -> Tensor:
    """(D, D) M = ½ Wᵀ F W with F the curvature at the outputs per sample (summed over positions)."""
    curvature = statistics.curvature.to(matrix) / max(statistics.samples, 1)
    outputs = len(curvature)
    total = matrix.new_zeros(matrix.shape[1], matrix.shape[1])
    for part in matrix.split(outputs):
        total += part.T @ curvature @ part
    return total.div_(2)


def tap_state(
    module: nn.Module, tap: Tap, statistics: TapStatistics, local: Mapping[int, int], ridge: float, intercept: bool
) -> TapState:
    """The starting point of elimination at one tap for the units numbered by `local`.

    Where a constant has no exact place (no bias, zero padding seen per channel), E[x xᵀ] replaces the covariance, so
    that path and surgery agree.
    """
    weight: Any = module.weight
    centred = takes_constant(tap, statistics.per_kernel, intercept)
    second = statistics.moments.covariance() if centred else statistics.moments.second()
    second = second.to(weight.device)
    matrix = consumer_matrix(module, tap, statistics.per_kernel).to(second)
    inverse, alive = precision(second, ridge, consume=True)
    del second  # its memory is the inverse's, or free
    matrix = torch.where(alive, matrix, torch.zeros_like(matrix))  # what does not vary is carried by the constant
    kernel = math.prod(weight.shape[2:])
    blocks = {u: b for u, b in blocks_of(tap, statistics.per_kernel, kernel).items() if u in local}
    longest = max(len(b) for b in blocks.values())
    padded = np.array([b + [-1] * (longest - len(b)) for b in blocks.values()])
    units = np.array([local[u] for u in blocks])
    return TapState(inverse, curved_product(matrix, statistics), padded, units)


def pair_state(pairing: Pairing, statistics: PairStatistics, local: Mapping[int, int]) -> QuadraticState:
    """Query dimensions: the Fisher's second-order loss of leaving some out, ½ E[(Σ t)²] over samples; a unit is its
    features in all heads together.
    """
    units = [u for u in dict.fromkeys(pairing.units.tolist()) if u in local]
    member = torch.from_numpy(pairing.units[None, :] == np.array(units)[:, None]).to(statistics.gram)
    gram = member @ statistics.gram @ member.T / max(statistics.samples, 1)
    return QuadraticState(gram, np.array([local[u] for u in units]))


def find_path(
    model: nn.Module,
    graph: UnitGraph,
    cluster: list[Group],
    statistics: Statistics,
    intercepts: Mapping[str, bool],
    worth: np.ndarray | None = None,
    ridge: float = 1e-3,
) -> Path:
    """The path of one cluster.

    `worth` (all units) is what dropping each unit saves, for clusters of several groups; `intercepts` says for each
    consumer whether a constant has a place there.
    """
    numbers = np.concatenate([group.units for group in cluster])
    local = {int(u): i for i, u in enumerate(numbers)}
    group_of = np.array([i for i, group in enumerate(cluster) for _ in group.units])
    states: list[TapState | QuadraticState] = []
    for tap in graph.taps:
        if tap.module in statistics.taps and any(int(u) in local for u in tap.units):
            module, measured = model.get_submodule(tap.module), statistics.taps[tap.module]
            states.append(tap_state(module, tap, measured, local, ridge, intercepts[tap.module]))
    for pairing in graph.pairings:
        if pairing.module in statistics.pairs and any(int(u) in local for u in pairing.units):
            states.append(pair_state(pairing, statistics.pairs[pairing.module], local))
    weights = None if worth is None else torch.from_numpy(worth[numbers])
    order, increments = eliminate(states, group_of, weights)
    return Path(numbers[order], np.array(increments))
