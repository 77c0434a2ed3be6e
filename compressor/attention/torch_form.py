"""torch's own attention module in dense form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, hooked, linear, scales


class TorchAttention(DenseAttention):
    """In the place of an `nn.MultiheadAttention`, with its way of being called."""

    in_proj_bias = None
    """Read by `nn.TransformerEncoderLayer`, which then leaves its fused kernel alone."""

    def __init__(self, *layers: Any, batch_first: bool, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.batch_first = batch_first

    @classmethod
    def of(cls, module: nn.Module) -> DenseAttention | str | None:
        """`nn.MultiheadAttention`, with one or three input weights."""
        if not isinstance(module, nn.MultiheadAttention):
            return None
        if type(module) is not nn.MultiheadAttention:
            return f"attention heads ({type(module).__name__}, a subclass of MultiheadAttention)"
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            return "attention heads (MultiheadAttention with added keys)"
        if hooked(module, module.out_proj):
            return "attention heads (MultiheadAttention with hooks)"
        weights = _input_weights(module)
        biases = [None] * 3 if module.in_proj_bias is None else list(module.in_proj_bias.chunk(3))
        layers = [linear(w, b, w) for w, b in zip(weights, biases, strict=True)]
        scale = scales(module.head_dim**-0.5, module.num_heads, module.out_proj.weight)
        out = copied(module.out_proj)
        return cls(*layers, out, scale, dropout=module.dropout, batch_first=module.batch_first)

    def fill(self, plain: nn.Module) -> None:
        """Into an `nn.MultiheadAttention`."""
        assert isinstance(plain, nn.MultiheadAttention)
        layers = (self.q, self.k, self.v)
        with torch.no_grad():
            for layer, weight in zip(layers, _input_weights(plain), strict=True):
                weight.copy_(layer.weight)
            if plain.in_proj_bias is not None:
                plain.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        copy_numbers(self.out, plain.out_proj)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`: (output, attention or None)."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        mask = None
        if attn_mask is not None:
            mask = additive(attn_mask, query.dtype, keeps=False)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (-1, len(self.scale)))
        if key_padding_mask is not None:
            padding = additive(key_padding_mask, query.dtype, keeps=False)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        output, pattern = self.attend(query, key, value, mask)
        if batched and not self.batch_first:
            output = output.transpose(0, 1)
        weights = None
        if need_weights:
            weights = pattern.mean(1) if average_attn_weights else pattern
        if not batched:
            output, weights = output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output, weights


def _input_weights(module: nn.MultiheadAttention) -> list[Tensor]:
    """Weights of query, key and value (views of the parameters)."""
    if module._qkv_same_embed_dim:
        return list(module.in_proj_weight.chunk(3))
    return [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
