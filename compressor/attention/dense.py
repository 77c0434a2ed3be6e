"""Multi-head attention of four linear layers whose widths alone say how many heads and dimensions there are.

Shape letters: N samples, T queries, S keys, H heads, Q query / key dimensions of a head, V value dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseAttention(nn.Module):
    """softmax(scale · q kᵀ + mask) v per head, then a linear layer over all heads (Vaswani et al. 2017).

    `q`, `k` write H·Q features, `v` writes H·V and `out` reads them, head by head. `scale` (H,) keeps its value
    whatever Q becomes, and its length is the number of heads: cutting a head cuts an entry. Without `out` the result
    (N, T, H·V) is what a layer elsewhere reads. Runs on any device, exports to ONNX as matrix products and a softmax.
    """

    scale: Tensor

    def __init__(
        self, q: nn.Linear, k: nn.Linear, v: nn.Linear, out: nn.Linear | None, scale: Tensor, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.out = out
        self.dropout = dropout
        self.register_buffer("scale", scale)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, T, E) outputs and (N, H, T, S) attention; `mask` is added to the logits, broadcast to (N, H, T, S)."""
        heads = len(self.scale)
        q, k, v = (
            swapped(layer(x).unflatten(-1, (heads, -1)))
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        logits = (q * self.scale[:, None, None]) @ k.transpose(-2, -1)
        pattern = torch.softmax(logits if mask is None else logits + mask, -1)
        mixed = F.dropout(pattern, self.dropout, self.training) @ v
        features = swapped(mixed).flatten(2)
        return (features if self.out is None else self.out(features)), pattern

    def extra_repr(self) -> str:
        """Heads and dimensions, for people."""
        heads = len(self.scale)
        return f"heads={heads}, query_dims={self.q.out_features // heads}, value_dims={self.v.out_features // heads}"


def swapped(x: Tensor) -> Tensor:
    """The two middle axes exchanged, always as a copy: the same operations run whatever the sizes are."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format)


class TorchAttention(DenseAttention):
    """In the place of an `nn.MultiheadAttention`, with its way of being called."""

    in_proj_bias = None
    """Read by `nn.TransformerEncoderLayer`, which then leaves its fused kernel alone."""

    def __init__(self, *layers: Any, batch_first: bool, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.batch_first = batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: (output, attention or None)."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        mask = None
        if attn_mask is not None:
            mask = additive(attn_mask, query.dtype)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (-1, len(self.scale)))
        if key_padding_mask is not None:
            padding = additive(key_padding_mask, query.dtype)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        output, pattern = self.attend(query, key, value, mask)
        if batched and not self.batch_first:
            output = output.transpose(0, 1)
        weights = None
        if need_weights:
            weights = pattern.mean(1) if average_attn_weights else pattern
        if not batched:
            output, weights = output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output, weights


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a term of the logits: True becomes -inf."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
    return mask.to(dtype)
