"""One layer that writes queries, keys and values: taken apart, and put together again.

Shape letters: K key / value heads, G query heads for each, D dimensions of a head, F features of all three, E input
features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, linear

Rows = Sequence[Tensor]
"""Which rows of the one layer are queries, keys and values, head by head; thirds in that order where it is not said."""


def rows_apart(heads: int, shared: int, size: int, by_head: bool) -> Rows:
    """(K·G·D,), (K·D,) and (K·D,) rows of such a layer. `by_head`: the G queries of a key / value head lie beside it,
    else all queries come first, then all keys.
    """
    several = heads // shared
    places = torch.arange((heads + 2 * several) * size)
    if by_head:
        parts = places.unflatten(0, (several, shared + 2, size)).split([shared, 1, 1], dim=1)
        return [part.flatten() for part in parts]
    return places.split([heads * size, several * size, several * size])


def taken_apart(
    weight: Tensor, bias: Tensor | Sequence[Tensor | None] | None, like: Tensor, rows: Rows | None = None
) -> list[nn.Linear]:
    """Layers of query, key and value, from a weight (F, E) and a bias (F,), or three of which some may lack."""
    places = torch.arange(len(weight)).chunk(3) if rows is None else rows
    biases = [bias[part] for part in places] if isinstance(bias, Tensor) else bias or (None, None, None)
    return [linear(weight[part], b, like) for part, b in zip(places, biases, strict=True)]


def put_together(attention: DenseAttention, rows: Rows | None = None) -> tuple[Tensor, Tensor | None]:
    """(F, E) weight and (F,) bias of query, key and value; zeros where one of them has no bias."""
    layers = (attention.q, attention.k, attention.v)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    order = torch.arange(len(weight)) if rows is None else torch.cat(list(rows)).argsort()
    if all(layer.bias is None for layer in layers):
        return weight[order], None
    biases = [weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() for layer in layers]
    return weight[order], torch.cat(biases)[order]


def fill_fused(layer: nn.Linear, attention: DenseAttention, rows: Rows | None = None) -> None:
    """Write the numbers of query, key and value into the one layer, biases where it has one."""
    weight, bias = put_together(attention, rows)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
