"""The value and query spaces of attention heads in bases where what matters least stands last, the function unchanged.

A head's value dimensions may be mixed by any invertible matrix that its output weights undo, its query dimensions by
one that its keys undo. With C the second moments of the features and G those of the loss's gradient there, the basis
that makes both diagonal (balanced truncation, Moore 1981) orders directions by what the loss feels of them; then one
dimension of every head at once is a unit worth dropping.

Shape letters: D dimensions of a head, H heads, E input features, O outputs.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention
from compressor.attention.known import reader_name
from compressor.observe import Statistics, TapStatistics
from compressor.units.graph import Tap
from compressor.units.heads import attentions

FLOOR = 1e-6
"""Directions whose variance is below this part of the largest count as having it."""


def basis_taps(model: nn.Module) -> list[Tap]:
    """What must be observed for `in_balanced_bases`: each attention's query layer, and the layer that reads it."""
    found: list[Tap] = []
    for name in attentions(model):
        reader = reader_name(model, name)
        for module in (f"{name}.q", reader):
            if module is not None:
                layer: Any = model.get_submodule(module)
                found.append(Tap(module, "linear", np.full(layer.in_features, -1), True))
    return found


def in_balanced_bases(model: nn.Module, statistics: Statistics) -> nn.Module:
    """A copy of `model` of the same function, every attention in dense form in balanced bases, most important first.

    Attention that was not observed (see `basis_taps`) stays as it is.
    """
    made = copy.deepcopy(model)
    for name, attention in attentions(made).items():
        query, reader = statistics.taps.get(f"{name}.q"), reader_name(made, name)
        with torch.no_grad():
            if query is not None and attention.fixed is None and attention.shared == 1:
                _turn_queries(attention, query)
            if reader is not None and reader in statistics.taps:
                _turn_values(attention, made.get_submodule(reader), statistics.taps[reader])
    return made


def _per_head(matrix: Tensor, heads: int) -> Tensor:
    """(H, D, D) diagonal blocks of a matrix over H·D features."""
    size = len(matrix) // heads
    return torch.stack([matrix[h * size : (h + 1) * size, h * size : (h + 1) * size] for h in range(heads)])


def balancing(moments: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """(D, D) B and its inverse: B C Bᵀ and B⁻ᵀ G B⁻¹ are both the same diagonal, falling (C, G: the arguments)."""
    values, vectors = torch.linalg.eigh(moments)
    values = values.clamp_min(FLOOR * float(values[-1].clamp_min(1e-300)))
    root = vectors * values.sqrt()  # C = root rootᵀ
    importance, axes = torch.linalg.eigh(root.T @ gradients @ root)
    importance, axes = importance.flip(0), axes.flip(1)
    level = importance.clamp_min(FLOOR * float(importance[0].clamp_min(1e-300))).pow(0.25)
    forward = level[:, None] * (axes.T @ (vectors / values.sqrt()).T)
    return forward, (root @ axes) / level


def _turn_queries(attention: DenseAttention, seen: TapStatistics) -> None:
    heads = len(attention.scale)
    weight = attention.q.weight.double()
    second = seen.moments.second().to(weight)
    mean = seen.moments.mean().to(weight)
    moments = weight @ second @ weight.T
    if attention.q.bias is not None:
        bias = attention.q.bias.double()
        crossed = torch.outer(weight @ mean, bias)
        moments = moments + crossed + crossed.T + torch.outer(bias, bias)
    moments, gradients = _per_head(moments, heads), _per_head(seen.curvature.to(weight), heads)
    for head in range(heads):
        forward, backward = balancing(moments[head], gradients[head])
        rows = slice(head * len(forward), (head + 1) * len(forward))
        _mix(attention.q, rows, forward)
        _mix(attention.k, rows, backward.T)


def _turn_values(attention: DenseAttention, reader: nn.Module, seen: TapStatistics) -> None:
    layer: Any = reader
    heads, shared = len(attention.scale), attention.shared
    weight: Tensor = layer.weight.double()
    moments = _per_head(seen.moments.covariance().to(weight), heads).unflatten(0, (-1, shared)).sum(1)
    gradients = _per_head(weight.T @ seen.curvature.to(weight) @ weight, heads).unflatten(0, (-1, shared)).sum(1)
    size = moments.shape[-1]
    for head in range(heads // shared):
        forward, _ = balancing(moments[head], gradients[head])
        turned, _ = torch.linalg.qr(forward.T)  # the same nested spaces; what is dropped is refitted from what stays
        _mix(attention.v, slice(head * size, (head + 1) * size), turned.T)
        for reading in range(head * shared, (head + 1) * shared):
            rows = slice(reading * size, (reading + 1) * size)
            layer.weight[:, rows] = (weight[:, rows] @ turned).to(layer.weight)


def _mix(layer: nn.Linear, rows: slice, matrix: Tensor) -> None:
    layer.weight[rows] = (matrix @ layer.weight[rows].double()).to(layer.weight)
    if layer.bias is not None:
        layer.bias[rows] = (matrix @ layer.bias[rows].double()).to(layer.bias)
