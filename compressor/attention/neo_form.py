"""Attention of GPT-Neo (transformers) in dense form: logits in float32, and some layers look back only so far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, additive, copied, plain_parts, scales
from compressor.attention.lines import computes_as
from compressor.attention.streams import known_cache

LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")


class NeoAttention(DenseAttention):
    """In the place of a `GPTNeoSelfAttention`, with its way of being called, also with a cache."""

    bias: Tensor

    def __init__(self, *layers: Any, module: Any, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.place, self.out_dropout = module.layer_id, float(module.resid_dropout.p)
        self.scores_in = torch.float32
        self.register_buffer("bias", module.bias.clone(), persistent=False)

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by that class's lines."""
        kind = type(module)
        if not computes_as(kind, "gpt_neo", "GPTNeoSelfAttention"):
            return None
        parts = plain_parts(module, LAYERS)
        if isinstance(parts, str):
            return parts
        scale = scales(1.0, module.num_heads, parts[0].weight)
        return cls(*(copied(part) for part in parts), scale, module=module, dropout=float(module.attn_dropout.p))

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, LAYERS)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        cache: Any = None,
        **_others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention); a float mask is added to the logits."""
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        past = known_cache(cache, layer_past)
        if past is not None:
            k, v = past.update(k, v, self.place)
        last = k.shape[2]
        seen = additive(self.bias[:, :, last - q.shape[2] : last, :last], self.scores_in or q.dtype, keeps=True)
        mask = None if attention_mask is None else additive(attention_mask, attention_mask.dtype, keeps=True)
        features, pattern = self.mixed(q, k, v, seen, mask)
        return F.dropout(features, self.out_dropout, self.training), pattern
