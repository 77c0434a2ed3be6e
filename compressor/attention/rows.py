"""One linear layer that writes queries, keys and values in rows of any order, taken apart and put together again.

Shape letters: K key / value heads, G query heads for each, D dimensions of a head, E input features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.attention.dense import linear


def rows_apart(heads: int, shared: int, size: int, by_head: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (K·G·D,), (K·D,) and (K·D,) of such a layer: its queries, keys and values, head by head. `by_head`: the G
    queries of a key / value head lie beside it, else all queries come first, then all keys.
    """
    several = heads // shared
    places = torch.arange((heads + 2 * several) * size)
    if by_head:
        q, k, v = places.unflatten(0, (several, shared + 2, size)).split([shared, 1, 1], dim=1)
        return q.flatten(), k.flatten(), v.flatten()
    q, k, v = places.split([heads * size, several * size, several * size])
    return q, k, v


def apart_by_rows(layer: nn.Linear, rows: tuple[Tensor, ...]) -> list[nn.Linear]:
    """A layer for each of `rows`, sharing nothing."""
    biases = [None if layer.bias is None else layer.bias[part] for part in rows]
    return [linear(layer.weight[part], bias, layer.weight) for part, bias in zip(rows, biases, strict=True)]


def together_by_rows(parts: list[nn.Linear], rows: tuple[Tensor, ...], layer: nn.Linear) -> None:
    """Write the numbers of `parts` into `layer` (changed in place); it gains a bias where one of them has one."""
    with torch.no_grad():
        if layer.bias is None and any(part.bias is not None for part in parts):
            layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0]), layer.weight.requires_grad)
        for part, places in zip(parts, rows, strict=True):
            layer.weight[places] = part.weight
            if layer.bias is not None:
                layer.bias[places] = torch.zeros_like(part.weight[:, 0]) if part.bias is None else part.bias
