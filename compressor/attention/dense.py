"""Multi-head attention of four linear layers whose widths alone say how many heads and dimensions there are.

Shape letters: N samples, T queries, S keys, H heads, K key / value heads, Q query / key dimensions of a head, V value
dimensions.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

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
    places: Tensor | None
    """(H,) which of the heads that there were each one is, for terms of the logits that are made for all of them
    elsewhere (see `with_places`).
    """
    shared: int = 1
    """Query heads for each key / value head; they stay or go together."""
    fixed: str | None = None
    """Why the query and key dimensions of a head stay, where they must: `q kᵀ` alone does not say what they do."""
    cap: float | None = None
    """Logits are cap · tanh(logits / cap), before anything is added to them."""
    scores_in: torch.dtype | None = None
    """The precision in which queries are compared with keys, where it is not that of the weights."""
    softmax_in: torch.dtype | None = None
    """The precision of the softmax, where it is not that of the logits."""
    beside: tuple[str, ...] = ()
    """Further layers, by their names in here, that write H·Q features, where these dimensions are `fixed`."""
    chosen: tuple[str, ...] = ()
    """Buffers that choose by place from what is made elsewhere, and belong to no head or dimension."""
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
        self.register_buffer("places", None)

    def with_places(self) -> None:
        """From now on terms of the logits may come with one entry for each head that there is now: position biases that
        several layers read, or distances. A head that goes takes its entry in `places` with it, and nothing else.
        """
        self.places = torch.arange(len(self.scale), device=self.scale.device)

    def of_heads(self, term: Tensor | None) -> Tensor | None:
        """(N, heads there were, T, S) or (N, 1, T, S) -> what it says of the heads there are."""
        if self.places is None or term is None or term.shape[1] == 1:
            return term
        return term.index_select(1, self.places)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, T, E) outputs and (N, H, T, S) attention; `mask` is added to the logits, broadcast to (N, H, T, S)."""
        return self.mixed(*self.projected(query, key, value), mask)

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, H, T, Q) queries, (N, K, S, Q) keys and (N, K, S, V) values."""
        return (self.queries(query), *self.keys_and_values(key, value))

    def queries(self, query: Tensor) -> Tensor:
        """(N, H, T, Q)."""
        return swapped(self.q(query).unflatten(-1, (len(self.scale), -1)))

    def keys_and_values(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K, S, Q) and (N, K, S, V)."""
        heads = len(self.scale) // self.shared
        k, v = (swapped(layer(x).unflatten(-1, (heads, -1))) for layer, x in ((self.k, key), (self.v, value)))
        return k, v

    def mixed(
        self, q: Tensor, k: Tensor, v: Tensor, *terms: Tensor | None, hears: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `attend` returns, from what `projected` does; `terms` are added to the logits one by one. `hears`
        (broadcast to (N, H, T, 1)) is False for queries that see no key: they mix nothing.
        """
        if self.scores_in is not None:
            q, k = q.to(self.scores_in), k.to(self.scores_in)
        if self.shared > 1:
            k, v = (x[:, :, None].expand(-1, -1, self.shared, -1, -1).flatten(1, 2) for x in (k, v))
        logits = (q * self.scale.to(q.dtype)[:, None, None]) @ k.transpose(-2, -1)
        logits = logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
        for term in terms:
            logits = logits if term is None else logits + term
        pattern = torch.softmax(logits, -1, dtype=self.softmax_in).to(v.dtype)
        pattern = pattern if hears is None else pattern * hears.to(pattern.dtype)
        mixed = F.dropout(pattern, self.dropout, self.training) @ v
        features = swapped(mixed).flatten(2)
        return (features if self.out is None else self.out(features)), pattern

    def per_head(self) -> Tensor | None:
        """(H, ·) numbers of each head that are in none of its layers (position biases, a temperature), if there are."""
        return None if self.places is None else self.places[:, None].to(self.scale)

    @classmethod
    def of(cls, module: nn.Module) -> DenseAttention | str | None:
        """The same function in this form, its numbers copied; a reason why not; None for any other kind of module."""
        raise NotImplementedError

    def fill(self, plain: nn.Module) -> None:
        """Write the numbers into a module of the original's class, which has the same widths."""
        raise NotImplementedError

    def fill_layers(self, plain: nn.Module, names: Sequence[str]) -> None:
        """Write the numbers of query, key, value and, with four names, output into layers of these names."""
        for name, layer in zip(names, (self.q, self.k, self.v, self.out), strict=False):
            copy_numbers(layer, plain.get_submodule(name))  # type: ignore[arg-type]

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


def plain_parts(module: nn.Module, names: Sequence[str], *others: nn.Module) -> list[Any] | str:
    """Its layers by these names; why its attention is not taken, where one is no `nn.Linear` or something listens to
    them, to the module or to the `others` in it.
    """
    parts: list[Any] = [module.get_submodule(name) for name in names]
    if not all(type(part) is nn.Linear for part in parts) or hooked(module, *parts, *others):
        return f"attention heads ({type(module).__name__} with layers of another kind)"
    return parts


def hooked(*modules: nn.Module) -> bool:
    """True if something else listens to a module or computes its weights (hooks, parametrisations)."""
    return any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "parametrizations") for m in modules)


def upcast(module: Any) -> torch.dtype | None:
    """The precision of the softmax of an attention of transformers, where its file says float32 of the plain way."""
    way = getattr(importlib.import_module(type(module).__module__), "eager_attention_forward", None)
    plain = getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager"
    try:
        return torch.float32 if plain and way and "dtype=torch.float32" in inspect.getsource(way) else None
    except (OSError, TypeError):  # no source
        return None


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
