"""timm's attention of vision transformers (one layer for query, key and value) in dense form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, hooked, scales
from compressor.attention.fused import fill_fused, taken_apart


class TimmAttention(DenseAttention):
    """In the place of a `timm.layers.Attention`, with its way of being called."""

    def __init__(self, *layers: Any, out_dropout: float, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.out_dropout = out_dropout

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """timm's `Attention` without norms of queries, keys or outputs and without a gate."""
        kind = type(module)
        if kind.__name__ != "Attention" or not kind.__module__.startswith("timm.") or not _as_in_layers(module):
            return None
        norms = [getattr(module, name, None) for name in ("q_norm", "k_norm", "norm")]
        if any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms):
            return "attention heads (timm Attention with norms inside)"
        if getattr(module, "gate", None) is not None:
            return "attention heads (timm Attention with a gate)"
        parts = (getattr(module, "qkv", None), getattr(module, "proj", None))
        if not all(type(part) is nn.Linear for part in parts) or hooked(module, *parts):  # type: ignore[arg-type]
            return "attention heads (timm Attention with layers of another kind)"
        qkv: nn.Linear = module.qkv
        layers = taken_apart(qkv.weight, qkv.bias, qkv.weight)
        scale = scales(float(module.scale), module.num_heads, qkv.weight)
        dropouts = {"dropout": module.attn_drop.p, "out_dropout": module.proj_drop.p}
        return cls(*layers, copied(module.proj), scale, **dropouts)

    def fill(self, plain: Any) -> None:
        """Into timm's `Attention`."""
        fill_fused(plain.qkv, self)
        copy_numbers(self.out, plain.proj)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (N, T, E) -> (N, T, E). Of a bool mask, True means that a key is seen."""
        mask = None if attn_mask is None else additive(attn_mask, x.dtype, keeps=True)
        if is_causal:
            seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            later = additive(seen, x.dtype, keeps=True)
            mask = later if mask is None else mask + later
        return F.dropout(self.attend(x, x, x, mask)[0], self.out_dropout, self.training)


def _as_in_layers(module: Any) -> bool:
    """Whether it has the parts of `timm.layers.Attention`: networks of timm call other things so too (EfficientFormer's
    has biases for positions, and values wider than keys).
    """
    if not all(hasattr(module, part) for part in ("qkv", "proj", "scale", "num_heads", "attn_drop", "proj_drop")):
        return False
    written, read = getattr(module.qkv, "out_features", None), getattr(module.proj, "in_features", None)
    return written is None or read is None or written == 3 * read
