"""Causal self-attention of GPT-2 and OPT (transformers) in dense form: plain positions, with a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, copied, copy_numbers, hooked, scales, term_and_hearing
from compressor.attention.fused import put_together, taken_apart
from compressor.attention.streams import known_cache
from compressor.attention.transposed import is_transposed, upright
from compressor.errors import ModelError

GPT2, OPT = "GPT2Attention", "OPTAttention"
HOMES = {GPT2: "transformers.models.gpt2.modeling_gpt2", OPT: "transformers.models.opt.modeling_opt"}
LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
OTHERS = ("encoder_hidden_states", "encoder_attention_mask", "head_mask", "layer_head_mask", "key_value_states")


class CausalAttention(DenseAttention):
    """In the place of GPT-2's or OPT's self-attention, with its way of being called, also with a cache."""

    def __init__(self, *layers: Any, place: int | None, out_dropout: float, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.place, self.out_dropout = place, out_dropout

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Self-attention of these two classes."""
        name = type(module).__name__
        if HOMES.get(name) != type(module).__module__:
            return None
        if getattr(module, "is_cross_attention", False) or getattr(module, "reorder_and_upcast_attn", False):
            return f"attention heads ({name} across two inputs, or in reordered precision)"
        if getattr(module.config, "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
            return f"attention heads ({name} with an implementation of its own)"
        layers = _fused(module) if name == GPT2 else _apart(module)
        if layers is None:
            return f"attention heads ({name} with layers of another kind)"
        inner, behind = (module.attn_dropout.p, module.resid_dropout.p) if name == GPT2 else (module.dropout, 0.0)
        scale = scales(_scaling(module), module.num_heads, layers[0].weight)
        return cls(*layers, scale, place=module.layer_idx, dropout=inner, out_dropout=behind)

    def fill(self, plain: Any) -> None:
        """Into a module of that class."""
        if type(plain).__name__ == OPT:
            for name, layer in zip(LAYERS, (self.q, self.k, self.v, self.out), strict=True):
                copy_numbers(layer, plain.get_submodule(name))
            return
        assert self.out is not None
        weight, bias = put_together(self)
        with torch.no_grad():
            plain.c_attn.weight.copy_(weight.T)
            plain.c_attn.bias.copy_(bias)
            plain.c_proj.weight.copy_(self.out.weight.T)
            plain.c_proj.bias.copy_(self.out.bias)

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention). Without a mask a query sees the keys up to its own place."""
        given = [name for name in OTHERS if others.get(name) is not None]
        if given or (attention_mask is not None and attention_mask.dim() != 4):
            raise ModelError(
                "attention in dense form", given[0] if given else "a mask that has not 4 dimensions",
                "causal self-attention, with a mask of 4 dimensions", "use attn_implementation 'sdpa' or 'eager'.",
            )  # fmt: skip
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        past = known_cache(cache, past_key_values)
        if past is not None:
            k, v = getattr(past, "self_attention_cache", past).update(k, v, self.place)
        mask, hears = term_and_hearing(attention_mask, q, k)
        features, pattern = self.mixed(q, k, v, mask, hears=hears)
        return F.dropout(features, self.out_dropout, self.training), pattern


def _scaling(module: Any) -> float:
    """What logits are multiplied by; older versions of GPT-2 say it in three parts."""
    known = getattr(module, "scaling", None)
    if known is not None:
        return float(known)
    scale = module.head_dim**-0.5 if module.scale_attn_weights else 1.0
    return scale / (module.layer_idx + 1) if module.scale_attn_by_inverse_layer_idx else scale


def _fused(module: Any) -> list[nn.Linear] | None:
    """GPT-2: one transposed layer for query, key and value."""
    if not all(is_transposed(part) for part in (module.c_attn, module.c_proj)):
        return None
    parts = taken_apart(module.c_attn.weight.T, module.c_attn.bias, module.c_attn.weight)
    return [*parts, upright(module.c_proj)]


def _apart(module: Any) -> list[nn.Linear] | None:
    """OPT: four linear layers."""
    parts = [getattr(module, name, None) for name in LAYERS]
    if not all(type(part) is nn.Linear for part in parts) or hooked(module, *parts):  # type: ignore[arg-type]
        return None
    return [copied(part) for part in parts]  # type: ignore[arg-type]
