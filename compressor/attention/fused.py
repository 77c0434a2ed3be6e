"""One layer that writes queries, keys and values one after the other: taken apart, and put together again.

Shape letters: F features of each of the three, E input features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, linear


def taken_apart(weight: Tensor, bias: Tensor | Sequence[Tensor | None] | None, like: Tensor) -> list[nn.Linear]:
    """Layers of query, key and value, from a weight (3·F, E) and a bias (3·F,), or three of which some may lack."""
    biases = bias.chunk(3) if isinstance(bias, Tensor) else bias or (None, None, None)
    return [linear(w, b, like) for w, b in zip(weight.chunk(3), biases, strict=True)]


def put_together(attention: DenseAttention) -> tuple[Tensor, Tensor | None]:
    """(3·F, E) weight and (3·F,) bias of query, key and value; zeros where one of them has no bias."""
    layers = (attention.q, attention.k, attention.v)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    zeros = weight.new_zeros(attention.q.out_features)
    return weight, torch.cat([zeros if layer.bias is None else layer.bias.detach() for layer in layers])


def fill_fused(layer: nn.Linear, attention: DenseAttention) -> None:
    """Write the numbers of query, key and value into the one layer."""
    weight, bias = put_together(attention)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
