"""Multi-head attention of four linear layers whose widths alone say how many heads and dimensions there are.

Shape letters: N samples, T queries, S keys, H heads, K key / value heads, Q query / key dimensions of a head, V value
dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseAttention(nn.Module):
    """softmax(scale · q kᵀ + mask) v per head, then a linear layer over all heads (Vaswani et al. 2017).

    `q` writes H·Q features, `k` K·Q, `v` K·V, and `out` reads H·V, head by head; H / K = `shared` query heads in a row
    read one key / value head (K = H in most). `scale` (H,) keeps its value whatever Q becomes, and its length is the
    number of heads: cutting a head cuts an entry. Without `out` the result (N, T, H·V) is what a layer elsewhere
    reads. Runs on any device, exports to ONNX as matrix products and a softmax.
    """

    scale: Tensor
    shared: int = 1
    """Query heads for each key / value head; they stay or go together."""
    fixed: str | None = None
    """Why the query and key dimensions of a head stay, where they must: `q kᵀ` alone does not say what they do."""
    by_head: tuple[str, ...] = ()
    """Further weights, by their names in here, that have one row for each head, of no dimension of it."""
    normed_together: bool = False
    """Queries and keys of all heads go through one norm: none of them may change, and no head may go."""
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
        return self.mixed(*self.projected(query, key, value), mask)

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, H, T, Q) queries, (N, K, S, Q) keys and (N, K, S, V) values."""
        heads = len(self.scale)
        parts = ((self.q, query, heads), (self.k, key, heads // self.shared), (self.v, value, heads // self.shared))
        q, k, v = (swapped(layer(x).unflatten(-1, (count, -1))) for layer, x, count in parts)
        return q, k, v

    def mixed(
        self, q: Tensor, k: Tensor, v: Tensor, *terms: Tensor | None, hears: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `attend` returns, from what `projected` does; `terms` are added to the logits one by one. `hears`
        (broadcast to (N, H, T, 1)) is False for queries that see no key: they mix nothing.
        """
        if self.shared > 1:
            k, v = (x[:, :, None].expand(-1, -1, self.shared, -1, -1).flatten(1, 2) for x in (k, v))
        logits = (q * self.scale[:, None, None]) @ k.transpose(-2, -1)
        for term in terms:
            logits = logits if term is None else logits + term
        pattern = torch.softmax(logits, -1)
        pattern = pattern if hears is None else pattern * hears.to(pattern.dtype)
        mixed = F.dropout(pattern, self.dropout, self.training) @ v
        features = swapped(mixed).flatten(2)
        return (features if self.out is None else self.out(features)), pattern

    def per_head(self) -> Tensor | None:
        """(H, ·) numbers of each head that are in none of its layers (position biases, a temperature), if there are."""
        return None

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
        sizes = self.q.out_features // heads, self.v.out_features * self.shared // heads
        return f"heads={heads}, shared={self.shared}, query_dims={sizes[0]}, value_dims={sizes[1]}"


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


def term_and_hearing(
    mask: Tensor | None, q: Tensor, k: Tensor, causal: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """What a decoder's mask adds to the logits of queries (N, H, T, Q) and keys (N, K, S, Q), and which queries see a
    key at all: before left padding some do not, and torch's own attention gives zeros for them (None for masks that are
    added as they are). Without a mask a query sees the keys up to its own place, or all where it is not `causal`.
    """
    if mask is not None:
        hears = mask.any(-1, keepdim=True) if mask.dtype == torch.bool else None
        return additive(mask, q.dtype, keeps=True), hears
    if not causal:
        return None, None
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    return additive(seen.tril() if q.shape[2] > 1 else seen, q.dtype, keeps=True), None


def additive(mask: Tensor, dtype: torch.dtype, keeps: bool) -> Tensor:
    """A mask as a term of the logits; of a bool mask, True means that a key is kept (`keeps`) or left out. The softmax
    stays finite where all are left out.
    """
    if mask.dtype == torch.bool:
        out = ~mask if keeps else mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(out, torch.finfo(dtype).min)
    return mask.to(dtype)
