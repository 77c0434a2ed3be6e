"""Causal self-attention of Hugging Face decoders (Llama and its kin) in dense form: rotary positions, shared keys."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, hooked, scales
from compressor.errors import ModelError

KINDS = {f"{family}Attention": family.lower() for family in ("Llama", "Mistral", "Qwen2")}
"""Class -> the folder of transformers with its `apply_rotary_pos_emb`: classes whose forward is what is done here."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
OTHERS = ("position_bias", "cache", "softcap", "is_causal")


class RotaryAttention(DenseAttention):
    """In the place of a decoder's self-attention of `transformers`, with its way of being called, also with a cache.

    Several query heads share one key / value head; queries and keys are turned by their positions.
    """

    turned = True

    def __init__(self, *layers: Any, shared: int, family: str, place: int, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.shared, self.family, self.place = shared, family, place

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention of Llama, Mistral and Qwen2; where it looks back a limited way, its mask says so."""
        kind = type(module)
        family = KINDS.get(kind.__name__)
        if family is None or kind.__module__ != f"transformers.models.{family}.modeling_{family}":
            return None
        parts = [getattr(module, name, None) for name in LAYERS]
        if not all(type(part) is nn.Linear for part in parts) or hooked(module, *parts):  # type: ignore[arg-type]
            return f"attention heads ({kind.__name__} with layers of another kind)"
        if getattr(module.config, "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
            return f"attention heads ({kind.__name__} with an implementation of its own)"
        shared, like = int(module.num_key_value_groups), parts[0].weight  # type: ignore[union-attr]
        scale = scales(float(module.scaling), len(like) // module.head_dim, like)
        layers = [copied(part) for part in parts]  # type: ignore[arg-type]
        made = {"shared": shared, "family": family, "place": module.layer_idx, "dropout": module.attention_dropout}
        return cls(*layers, scale, **made)

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        for name, layer in zip(LAYERS, (self.q, self.k, self.v, self.out), strict=True):
            copy_numbers(layer, plain.get_submodule(name))  # type: ignore[arg-type]

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention). Without a mask a query sees the keys up to its own place."""
        given = [name for name in OTHERS if others.get(name) is not None]
        if given or position_embeddings is None or (attention_mask is not None and attention_mask.dim() != 4):
            raise ModelError(
                "attention in dense form",
                given[0] if given else "no positions, or a mask that has not 4 dimensions",
                "causal self-attention with positions, and a mask of 4 dimensions",
                "use attn_implementation 'sdpa' or 'eager'.",
            )
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        turn = importlib.import_module(f"transformers.models.{self.family}.modeling_{self.family}")
        q, k = turn.apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.place)
        if attention_mask is not None:
            mask = additive(attention_mask, q.dtype, keeps=True)
        else:
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            mask = additive(seen.tril() if q.shape[2] > 1 else seen, q.dtype, keeps=True)
        return self.mixed(q, k, v, mask)
