"""Attention in windows of Hugging Face's Swin (Liu et al. 2021) in dense form."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, copied, plain_parts, scales
from compressor.attention.lines import computes_as

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


class HFSwinAttention(DenseAttention):
    """In the place of a `SwinAttention` of transformers, with its way of being called. A head's column of the table of
    biases belongs to it.
    """

    def __init__(self, *layers: Any, biases: nn.Module, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.relative_position_bias = biases

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by that class's lines."""
        kind = type(module)
        if not computes_as(kind, "swin", "SwinAttention") or not hasattr(module, "relative_position_bias"):
            return None
        parts = plain_parts(module, LAYERS, module.relative_position_bias)
        if isinstance(parts, str):
            return parts
        scale = scales(float(module.scaling), module.num_attention_heads, parts[0].weight)
        biases = copy.deepcopy(module.relative_position_bias)
        return cls(*(copied(part) for part in parts), scale, biases=biases, dropout=float(module.attention_dropout))

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, LAYERS)
        plain.get_submodule("relative_position_bias").load_state_dict(self.relative_position_bias.state_dict())

    def per_head(self) -> Tensor:
        """(H, ·) the biases."""
        return self.relative_position_bias.get_parameter("relative_position_bias_table").T

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_others: Any
    ) -> tuple[Tensor, Tensor]:
        """(features, attention) of the windows of all samples (N · windows, A, E); `attention_mask` (windows, A, A)."""
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        mask = attention_mask
        if mask is not None:
            samples = hidden_states.shape[0] // mask.shape[0]
            mask = mask[None, :, None].expand(samples, -1, -1, -1, -1).flatten(0, 1)
        return self.mixed(q, k, v, self.relative_position_bias(), mask)
