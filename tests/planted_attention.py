"""Attention with surplus heads and dimensions, planted into a lean network's dense form."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention
from compressor.attention.known import reader_of


def _heads(layer: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """(H, D, E) weights and (H, D) biases of a layer that writes heads, in float64."""
    weight = layer.weight.detach().double().unflatten(0, (heads, -1))
    bias = torch.zeros(weight.shape[:2]).double() if layer.bias is None else layer.bias.detach().double()
    return weight.clone(), bias.reshape(weight.shape[:2]).clone()
