"""Self-attention of Hugging Face decoders (Llama, Qwen3 and their kin, ModernBERT) in dense form: rotary positions,
shared keys.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import (
    DenseAttention,
    copied,
    copy_numbers,
    hooked,
    linear,
    scales,
    swapped,
    term_and_hearing,
    upcast,
)
from compressor.attention.fused import Rows, put_together, rows_apart, taken_apart
from compressor.attention.head_norm import HeadNorm, fill_norm, headwise
from compressor.attention.lines import Style, style_of
from compressor.attention.streams import known_cache
from compressor.errors import ModelError

ROTARY = "query and key dimensions with rotary positions"
OTHERS = ("position_bias", "softcap", "is_causal", "alibi")


class RotaryAttention(DenseAttention):
    """In the place of a decoder's self-attention of `transformers`, with its way of being called, also with a cache.

    Several query heads share one key / value head; queries and keys are turned by their positions.
    """

    def __init__(self, *layers: Any, shared: int, style: Style, module: Any, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.shared, self.style, self.home, self.place = shared, style, type(module).__module__, module.layer_idx
        self.causal = bool(getattr(module, "is_causal", True))
        self.rotary = style.placed is None or bool(getattr(module, style.placed))
        self.fixed = ROTARY if self.rotary else None
        self.turning = None if style.turned is None else int(getattr(module, style.turned))
        given = [copy.deepcopy(getattr(module, name, None)) for name in style.norms or ("", "")]
        self.q_norm, self.k_norm = (headwise(norm) for norm in given)
        self.normed_together = style.normed == "all"
        self.cap = None if style.capped is None else getattr(module, style.capped)
        self.softmax_in = upcast(module)
        behind = None if style.behind is None else getattr(module, style.behind)
        self.out_dropout = float(behind.p) if isinstance(behind, nn.Dropout) else 0.0

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by the lines of one of STYLES."""
        kind = type(module)
        style = style_of(kind)
        if style is None:
            return None
        parts: list[Any] = [getattr(module, name, None) for name in (*style.inputs, style.output)]
        if not all(_is_linear(part, style) for part in parts) or hooked(module, *parts):
            return f"attention heads ({kind.__name__} with layers of another kind)"
        if getattr(module.config, "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
            return f"attention heads ({kind.__name__} with an implementation of its own)"
        if getattr(module.config, "alibi", False):
            return f"attention heads ({kind.__name__} with distances added to its logits)"
        *inputs, output = parts
        heads, shared = _heads(module, style)
        rows = _rows(module, style)
        first = inputs[0]
        fused = None if rows is None else taken_apart(first.weight, first.bias, first.weight, rows)
        layers = fused or [copied(part) for part in inputs]
        size = float(getattr(module, style.size))
        scale = scales(
            size**-0.5 if style.scaling is None else float(getattr(module, style.scaling)), heads, output.weight
        )
        dropout = module.attention_dropout  # Falcon has a layer for it, which it does not use
        dropout = 0.0 if isinstance(dropout, nn.Module) else dropout
        return cls(*layers, copied(output), scale, shared=shared, style=style, module=module, dropout=dropout)

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        rows = _rows(plain, self.style)
        if rows is None:
            for name, layer in zip(self.style.inputs, (self.q, self.k, self.v), strict=True):
                copy_numbers(layer, plain.get_submodule(name))  # type: ignore[arg-type]
        else:
            together = linear(*put_together(self, rows), self.q.weight)
            copy_numbers(together, plain.get_submodule(self.style.inputs[0]))  # type: ignore[arg-type]
        copy_numbers(self.out, plain.get_submodule(self.style.output))  # type: ignore[arg-type]
        for name, norm in zip(self.style.norms or (), (self.q_norm, self.k_norm), strict=False):
            if norm is not None:
                fill_norm(norm, plain.get_submodule(name))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        layer_past: Any = None,
        cache: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention). Without a mask a query sees keys up to its own place; all where it is not causal."""
        given = [name for name in OTHERS if others.get(name) is not None]
        if given or position_embeddings is None or (attention_mask is not None and attention_mask.dim() != 4):
            raise ModelError(
                "attention in dense form",
                given[0] if given else "no positions, or a mask that has not 4 dimensions",
                "causal self-attention with positions, and a mask of 4 dimensions",
                "use attn_implementation 'sdpa' or 'eager'.",
            )
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        q, k = self._turn(self._norm(q, self.q_norm), self._norm(k, self.k_norm), *position_embeddings)
        cache = known_cache(cache, past_key_values, layer_past)
        if cache is not None:
            k, v = cache.update(k, v, self.place)
        mask, hears = term_and_hearing(attention_mask, q, k, self.causal)
        features, pattern = self.mixed(q, k, v, mask, hears=hears)
        return F.dropout(features, self.out_dropout, self.training), pattern

    def _norm(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """(N, H, T, Q) behind the norm of queries or keys, if there is one."""
        if norm is None or not self.normed_together:
            return x if norm is None else norm(x)
        return swapped(norm(swapped(x).flatten(2)).unflatten(-1, (x.shape[1], -1)))

    def per_head(self) -> Tensor | None:
        """(H, ·) the weights of norms that differ from head to head."""
        if not isinstance(self.q_norm, HeadNorm) or not isinstance(self.k_norm, HeadNorm):
            return None
        keys = self.k_norm.weight.repeat_interleave(self.shared, 0)
        return torch.cat([self.q_norm.weight, keys], dim=1)

    def _turn(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions, by the function that stands beside the class."""
        if not self.rotary:
            return q, k
        turn = importlib.import_module(self.home).apply_rotary_pos_emb
        if self.turning is None:
            return turn(q, k, cos, sin)
        (q, q_rest), (k, k_rest) = ((x[..., : self.turning], x[..., self.turning :]) for x in (q, k))
        q, k = turn(q, k, cos, sin)
        return torch.cat([q, q_rest], dim=-1), torch.cat([k, k_rest], dim=-1)


def _is_linear(part: Any, style: Style) -> bool:
    return type(part) is nn.Linear or (isinstance(part, nn.Linear) and type(part).__name__ == style.linear)


def _heads(module: Any, style: Style) -> tuple[int, int]:
    """How many query heads there are, and how many of them share a key / value head."""
    shared = int(getattr(module, "num_key_value_groups", 1))
    if style.keys is not None:
        shared = module.num_heads // getattr(module, style.keys)
    heads = len(module.get_submodule(style.inputs[0]).weight) // int(getattr(module, style.size))
    if len(style.inputs) == 1:  # G queries to one key and one value
        heads = heads // (shared + 2) * shared
    return heads, shared


def _rows(module: Any, style: Style) -> Rows | None:
    """Which rows of the one layer are queries, keys and values; None where there are three layers."""
    if len(style.inputs) == 3:
        return None
    return rows_apart(*_heads(module, style), int(getattr(module, style.size)), style.by_head)
