"""Removable: what does the loss become if a unit is replaced by its mean, and nothing else is done?

To second order in the loss, Σ_taps tr(½ F W_i Cov_ii W_iᵀ) nats per sample: F the Fisher information at the
consumer's outputs (summed over positions), W_i its weights for the unit's regressors, Cov_ii their covariance
(LeCun et al. 1990, "Optimal Brain Damage", with the whole block and the Fisher in the Hessian's place). Shape
letters: O outputs, U units of a tap, B regressors per unit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.findings.readings import kernel_of
from compressor.observe import Statistics, TapStatistics, blocks_of
from compressor.units.graph import Tap, UnitGraph


def predicted_losses(model: nn.Module, graph: UnitGraph, statistics: Statistics) -> Tensor:
    """(n_units,) float64 on the CPU: predicted loss of replacing each unit by its mean at all taps observed,
    in nats.
    """
    losses = torch.zeros(graph.n_units, dtype=torch.float64)
    for tap in graph.taps:
        seen = statistics.taps.get(tap.module)
        if seen is not None and bool((tap.units >= 0).any()):
            units, cost = replacement_loss(model.get_submodule(tap.module), tap, seen)
            losses[units] += cost.double().cpu()
    for pairing in graph.pairings:
        pair = statistics.pairs.get(pairing.module)
        if pair is not None:
            alone = pair.gram.diagonal().double().cpu() / (2 * max(pair.samples, 1))
            there = torch.from_numpy(np.flatnonzero(pairing.units >= 0))
            losses.index_add_(0, torch.from_numpy(pairing.units)[there], alone[there])
    return losses


def replacement_loss(module: nn.Module, tap: Tap, statistics: TapStatistics) -> tuple[Tensor, Tensor]:
    """Units (U,) of a tap (numbers in the graph, on the CPU) and the loss (U,) of replacing each by its mean.

    Where a mean does not fold into the consumer's bias (channels behind zero padding, transposed
    convolutions), the uncentred moments are used: the loss of leaving the unit out without any replacement.
    """
    exact = statistics.per_kernel or tap.intercept_exact
    second = statistics.moments.covariance() if exact else statistics.moments.second()
    blocks = blocks_of(tap, statistics.per_kernel, kernel_of(tap, module).size)
    longest = max(len(b) for b in blocks.values())
    index = torch.tensor([b + [-1] * (longest - len(b)) for b in blocks.values()], device=second.device)
    there = index >= 0
    index = index.clamp_min(0)
    own = second[index[:, :, None], index[:, None, :]] * (there[:, :, None] & there[:, None, :])
    curvature = statistics.curvature / (2 * max(statistics.samples, 1))
    total = second.new_zeros(len(blocks))
    for weight in _weights(module, tap, statistics.per_kernel, second):
        bent = (curvature @ weight)[:, index]
        total += torch.einsum("oub,ouc,ubc->u", weight[:, index], bent, own)
    return torch.tensor(list(blocks)), total.clamp_min(0)


def _weights(module: nn.Module, tap: Tap, per_kernel: bool, like: Tensor) -> list[Tensor]:
    """(O, D) weights over the regressors: one matrix, or one per kernel tap where kernel taps were not
    observed.
    """
    parameter: Any = module.weight
    weight = parameter.detach().to(like)
    if tap.kind == "linear" or per_kernel:
        return [weight.flatten(1)]
    if tap.kind == "conv":
        return list(weight.flatten(2).unbind(2))
    layer: Any = module
    share = 1 / math.sqrt(math.prod(layer.stride))  # only this share (squared) of the outputs reads a given kernel tap
    return [part.T * share for part in weight.flatten(2).unbind(2)]
