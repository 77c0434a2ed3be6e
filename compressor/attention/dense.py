"""Multi-head attention of four linear layers whose widths alone say how many heads and dimensions there are.

Shape letters: N samples, T queries, S keys, H heads, Q query / key dimensions of a head, V value dimensions.
"""

from __future__ import annotations

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
    read_by: str | None = None
    """Without `out`: the layer that reads the heads, by its name beside this module."""

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

    @classmethod
    def of(cls, module: nn.Module) -> DenseAttention | str | None:
        """The same function in this form, its numbers copied; a reason why not; None for any other kind of module."""
        raise NotImplementedError

    def fill(self, plain: nn.Module) -> None:
        """Write the numbers into a module of the original's class, which has the same widths."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Heads and dimensions, for people."""
        heads = len(self.scale)
        return f"heads={heads}, query_dims={self.q.out_features // heads}, value_dims={self.v.out_features // heads}"


def swapped(x: Tensor) -> Tensor:
    """The two middle axes exchanged, always as a copy: the same operations run whatever the sizes are."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """A linear layer of its own with these numbers (copied), taking gradients as `like` does."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), like.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), like.requires_grad)
    return layer


def copied(layer: nn.Linear) -> nn.Linear:
    """The same layer, sharing nothing."""
    return linear(layer.weight, layer.bias, layer.weight)


def scales(value: float, heads: int, like: Tensor) -> Tensor:
    """(heads,) the same scale for every head."""
    return torch.full((heads,), value, dtype=like.dtype, device=like.device)


def copy_numbers(source: nn.Linear | None, target: nn.Linear) -> None:
    """Write one linear layer's numbers into another of its shape; a bias is added where it has none."""
    if source is None:
        return
    with torch.no_grad():
        target.weight.copy_(source.weight)
        if source.bias is not None and target.bias is None:
            target.bias = nn.Parameter(source.bias.detach().clone())
        elif source.bias is not None:
            target.bias.copy_(source.bias)


def hooked(*modules: nn.Module) -> bool:
    """True if something else listens to a module or computes its weights (hooks, parametrisations)."""
    return any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "parametrizations") for m in modules)


def additive(mask: Tensor, dtype: torch.dtype, keeps: bool) -> Tensor:
    """A mask as a term of the logits; of a bool mask, True means that a key is kept (`keeps`) or left out."""
    if mask.dtype == torch.bool:
        out = ~mask if keeps else mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(out, float("-inf"))
    return mask.to(dtype)
