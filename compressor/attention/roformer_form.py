"""Attention of RoFormer (Su et al. 2021; transformers) in dense form: queries and keys of its own stream are turned by
their positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressor.attention.decoder_form import ROTARY
from compressor.attention.dense import DenseAttention, additive, copied, plain_parts, scales
from compressor.attention.lines import computes_as
from compressor.attention.streams import keys_and_values, known_cache

LAYERS = ("query", "key", "value")


class RoFormerAttention(DenseAttention):
    """In the place of a `RoFormerSelfAttention`, with its way of being called, also with a cache or another stream."""

    sines: Tensor
    cosines: Tensor
    chosen = ("sines", "cosines")

    def __init__(self, *layers: Any, module: Any, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.place, self.fixed, self.read_by = module.layer_idx, ROTARY, "output.dense"
        size = module.attention_head_size // 2
        self.register_buffer("sines", torch.arange(size).repeat_interleave(2))
        self.register_buffer("cosines", size + torch.arange(size).repeat_interleave(2))

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by that class's lines, where values are not turned as well."""
        kind = type(module)
        if not computes_as(kind, "roformer", "RoFormerSelfAttention"):
            return None
        parts = plain_parts(module, LAYERS)
        if isinstance(parts, str):
            return parts
        if module.rotary_value:
            return f"attention heads ({kind.__name__} with values turned by their positions)"
        scale = scales(module.attention_head_size**-0.5, module.num_attention_heads, parts[0].weight)
        return cls(*(copied(part) for part in parts), None, scale, module=module, dropout=float(module.dropout.p))

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, LAYERS)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        sinusoidal_pos: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        **_others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention); a float mask is added to the logits."""
        positions = None if encoder_hidden_states is not None else sinusoidal_pos
        q = self._turned(self.queries(hidden_states), positions)

        def made(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            k, v = self.keys_and_values(key, value)
            return self._turned(k, positions), v

        past = known_cache(cache, past_key_values)
        k, v = keys_and_values(made, hidden_states, encoder_hidden_states, past, self.place)
        mask = None if attention_mask is None else additive(attention_mask, q.dtype, keeps=True)
        return self.mixed(q, k, v, mask)

    def _turned(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """(N, H, T, Q) turned, pair by pair of neighbours, by `positions` (1, 1, T, sines and cosines of the pairs)."""
        if positions is None:
            return x
        beside = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * positions.index_select(-1, self.cosines) + beside * positions.index_select(-1, self.sines)
