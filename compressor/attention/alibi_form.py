"""Attention of BLOOM and MPT (transformers) in dense form: what the model computes for all heads of all its layers,
distances to the keys times a slope for each head (ALiBi, Press et al. 2022), is added to the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, hooked, scales
from compressor.attention.fused import Rows, fill_fused, rows_apart, taken_apart
from compressor.attention.lines import computes_as
from compressor.attention.streams import known_cache
from compressor.errors import ModelError

LAYERS = {("bloom", "BloomAttention"): ("query_key_value", "dense"), ("mpt", "MptAttention"): ("Wqkv", "out_proj")}
"""Folder and class of transformers -> the layer of queries, keys and values, and that of the output."""


class AlibiAttention(DenseAttention):
    """In the place of an attention of BLOOM's or MPT's, with its way of being called, also with a cache."""

    def __init__(self, *layers: Any, module: Any, names: tuple[str, str], **options: Any) -> None:
        super().__init__(*layers, **options)
        self.names, self.place, self.softmax_in = names, module.layer_idx, torch.float32
        self.out_dropout = float(getattr(module, "hidden_dropout", 0.0))
        self.with_places()

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by the lines of one of the two."""
        kind = type(module)
        names = next((found for (folder, known), found in LAYERS.items() if computes_as(kind, folder, known)), None)
        if names is None:
            return None
        inputs, output = (module.get_submodule(name) for name in names)
        if type(inputs) is not nn.Linear or type(output) is not nn.Linear or hooked(module, inputs, output):
            return f"attention heads ({kind.__name__} with layers of another kind)"
        if getattr(module, "clip_qkv", None) or (getattr(module, "pretraining_tp", 1) > 1 and module.slow_but_exact):
            return f"attention heads ({kind.__name__} with cut off values, or computed in parts)"
        bloom = hasattr(module, "inv_norm_factor")
        value, heads = (module.inv_norm_factor, module.num_heads) if bloom else (module.softmax_scale, module.n_heads)
        dropout = module.attention_dropout.p if bloom else module.attn_dropout_p
        return cls(
            *taken_apart(inputs.weight, inputs.bias, inputs.weight, _rows(module, names)), copied(output),
            scales(float(value), heads, output.weight), module=module, names=names, dropout=float(dropout),
        )  # fmt: skip

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        fill_fused(plain.get_submodule(self.names[0]), self, _rows(plain, self.names))  # type: ignore[arg-type]
        copy_numbers(self.out, plain.get_submodule(self.names[1]))  # type: ignore[arg-type]

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        alibi: Tensor | None = None,
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        past_key_values: Any = None,
        position_bias: Tensor | None = None,
        cache: Any = None,
        **_others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention); with a `residual`, it is added to the features, as in BLOOM. What is added to logits
        is `alibi` (N · heads there were, 1, S), or `position_bias` (heads there were, 1, S or more). Of a bool mask,
        True means that a key is left out.
        """
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        cache = known_cache(cache, past_key_values, layer_past)
        if cache is not None:
            k, v = cache.update(k, v, self.place)
        mask = None if attention_mask is None else additive(attention_mask, q.dtype, keeps=False)
        features, pattern = self.mixed(q, k, v, self.of_heads(_distances(alibi, position_bias, k)), mask)
        if residual is not None:
            features = residual + F.dropout(features, self.out_dropout, self.training)
        return features, pattern


def _distances(alibi: Tensor | None, position_bias: Tensor | None, k: Tensor) -> Tensor | None:
    """(N or 1, heads there were, 1, S) for keys (N, H, S, Q)."""
    if alibi is not None:
        return alibi.unflatten(0, (k.shape[0], -1))
    if position_bias is None:
        return None
    if position_bias.dim() != 3 or position_bias.shape[1] != 1:
        raise ModelError(
            "attention in dense form", f"position biases of shape {tuple(position_bias.shape)}", "(heads, 1, keys)",
            "call the attention as its model does.",
        )  # fmt: skip
    return position_bias[None, :, :, max(0, position_bias.shape[2] - k.shape[2]) :]


def _rows(module: Any, names: tuple[str, str]) -> Rows:
    """Which rows of the one layer are queries, keys and values: head by head in BLOOM."""
    heads = module.num_heads if hasattr(module, "inv_norm_factor") else module.n_heads
    size = len(module.get_submodule(names[0]).weight) // (3 * heads)
    return rows_apart(heads, 1, size, by_head=hasattr(module, "inv_norm_factor"))
