"""timm's attention in windows (Swin, and its second version) in dense form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compressor.attention.dense import DenseAttention
from compressor.attention.fused import taken_apart
from compressor.attention.windows import WindowAttention, refusal

HOMES = ("timm.models.swin_transformer", "timm.models.swin_transformer_v2")
"""Where the first and the second version live; other files of timm call other things `WindowAttention` too."""


class TimmSwinAttention(WindowAttention):
    """In the place of a timm `WindowAttention`, with its way of being called: the block around it shifts and masks."""

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Both versions. The second's keys have no bias, and those of queries and values are beside its layer."""
        kind = type(module)
        if kind.__module__ not in HOMES or kind.__name__ != "WindowAttention":
            return None
        refused = refusal(module)
        if refused is not None:
            return refused
        qkv: nn.Linear = module.qkv
        dropouts = {"dropout": module.attn_drop.p, "out_dropout": module.proj_drop.p}
        if kind.__module__ == HOMES[0]:
            layers = taken_apart(qkv.weight, qkv.bias, qkv.weight)
            return cls.read(module, layers, float(module.scale), **dropouts)
        if qkv.bias is not None:
            return "attention heads (WindowAttention with layers of another kind)"
        layers = taken_apart(qkv.weight, (module.q_bias, None, module.v_bias), qkv.weight)
        return cls.read(module, layers, 1.0, **dropouts)

    def fill(self, plain: Any) -> None:
        """Into a `WindowAttention` of that version."""
        super().fill(plain)
        if getattr(plain, "q_bias", None) is None:
            return
        with torch.no_grad():
            plain.q_bias.copy_(self.q.bias)
            plain.v_bias.copy_(self.v.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(W, A, E) -> the same. `mask` (windows of one sample, A, A) is added to the logits of every sample's."""
        if mask is not None:
            mask = mask.repeat(x.shape[0] // mask.shape[0], 1, 1).unsqueeze(1)
        return self.inside(x, mask)
