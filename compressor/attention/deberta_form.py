"""Attention of DeBERTa's second and third version (He et al. 2021; transformers) in dense form: queries are compared
with keys of relative positions as well, and keys with their queries.

Shape letters: N samples, T tokens, H heads, Q query / key dimensions, P relative positions.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, plain_parts, scales, swapped
from compressor.attention.lines import computes_as

POSITIONS = "query and key dimensions with relative positions"
LAYERS = ("query_proj", "key_proj", "value_proj")
OF_POSITIONS = ("pos_key_proj", "pos_query_proj")


class DebertaAttention(DenseAttention):
    """In the place of a `DisentangledSelfAttention`, with its way of being called."""

    read_by = "output.dense"

    def __init__(self, *layers: Any, module: Any, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.home = type(module).__module__
        self.relative = bool(module.relative_attention)
        self.fixed = POSITIONS if self.relative else None
        self.kinds: tuple[str, ...] = tuple(module.pos_att_type) if self.relative else ()
        self.span = int(getattr(module, "pos_ebd_size", 0))
        self.buckets = (
            int(getattr(module, "position_buckets", -1)),
            int(getattr(module, "max_relative_positions", -1)),
        )
        self.pos_dropout = float(module.pos_dropout.p) if self.relative else 0.0
        given = [getattr(module, name, None) for name in OF_POSITIONS]
        self.pos_key_proj, self.pos_query_proj = (None if layer is None else copied(layer) for layer in given)
        self.beside = tuple(name for name, layer in zip(OF_POSITIONS, given, strict=True) if layer is not None)

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by that class's lines."""
        kind = type(module)
        if kind.__name__ != "DisentangledSelfAttention" or not computes_as(
            kind, "deberta_v2", "DisentangledSelfAttention"
        ):
            return None
        own = [name for name in OF_POSITIONS if getattr(module, name, None) is not None]
        parts = plain_parts(module, [*LAYERS, *own])
        if isinstance(parts, str):
            return parts
        terms = 1 + sum(word in module.pos_att_type for word in ("c2p", "p2c"))
        size = torch.tensor(module.attention_head_size, dtype=torch.float) * terms  # rounded as the class rounds it
        scale = scales(1 / float(torch.sqrt(size)), module.num_attention_heads, parts[0].weight)
        layers = [copied(part) for part in parts[:3]]
        return cls(*layers, None, scale, module=module, dropout=float(module.dropout.p))

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, LAYERS)
        for name in self.beside:
            copy_numbers(getattr(self, name), plain.get_submodule(name))  # type: ignore[arg-type]

    def per_head(self) -> Tensor | None:
        """(H, ·) the weights of the layers that read relative positions, where these are layers of their own."""
        layers = [getattr(self, name) for name in self.beside]
        numbers = [
            rows.unflatten(0, (len(self.scale), -1)).flatten(1) for layer in layers for rows in layer.parameters()
        ]
        return torch.cat(numbers, dim=1) if numbers else None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
        **_others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(features (N, T, H·V), attention if asked for). The mask, broadcast to (N, H, T, T), is true of keys seen."""
        q = self.queries(hidden_states if query_states is None else query_states)
        k, v = self.keys_and_values(hidden_states, hidden_states)
        mask = additive(attention_mask.bool(), q.dtype, keeps=True)
        features, pattern = self.mixed(q, k, v, *self._of_positions(q, k, relative_pos, rel_embeddings), mask)
        return features, pattern if output_attentions else None

    def _of_positions(
        self, q: Tensor, k: Tensor, relative: Tensor | None, embeddings: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(N, H, T, T) what queries make of relative positions, and what these make of keys."""
        if not self.relative or embeddings is None:
            return ()
        if relative is None:
            code = importlib.import_module(self.home)
            relative = code.build_relative_position(q, k, bucket_size=self.buckets[0], max_position=self.buckets[1])
        assert relative is not None
        relative = relative.long().reshape(1, 1, *relative.shape[-2:])
        positions = F.dropout(embeddings, self.pos_dropout, self.training)[None, : 2 * self.span]
        terms = []
        for word, x, layer, places in (
            ("c2p", q, self.pos_key_proj or self.k, relative),
            ("p2c", k, self.pos_query_proj or self.q, -relative),
        ):
            if word in self.kinds:
                other = swapped(layer(positions).unflatten(-1, (len(self.scale), -1))) * self.scale[:, None, None]
                scores = x @ other.transpose(-2, -1)
                index = (places + self.span).clamp(0, 2 * self.span - 1).expand(*x.shape[:2], -1, -1)
                found = torch.gather(scores, -1, index)
                terms.append(found if word == "c2p" else found.transpose(-2, -1))
        return tuple(terms)
