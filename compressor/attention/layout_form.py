"""Attention of LayoutLM's third version (Huang et al. 2022; transformers) in dense form: biases of positions in the
text and on the page, made by the encoder for all heads of all its layers, are added to the logits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, additive, copied, plain_parts, scales
from compressor.attention.lines import computes_as

LAYERS = ("query", "key", "value")


class LayoutAttention(DenseAttention):
    """In the place of a `LayoutLMv3SelfAttention`, with its way of being called. Its softmax takes the largest logit
    away twice, which only rounding tells.
    """

    read_by = "output.dense"

    def __init__(self, *layers: Any, module: Any, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.share = module.attention_head_size**-0.5
        said = module if hasattr(module, "has_relative_attention_bias") else module.config  # since transformers 5.24
        self.biased = bool(said.has_relative_attention_bias)
        self.on_page = self.biased and bool(said.has_spatial_attention_bias)
        self.with_places()

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by that class's lines."""
        kind = type(module)
        if not computes_as(kind, "layoutlmv3", "LayoutLMv3SelfAttention"):
            return None
        parts = plain_parts(module, LAYERS)
        if isinstance(parts, str):
            return parts
        scale = scales(module.attention_head_size**-0.5, module.num_attention_heads, parts[0].weight)
        return cls(*(copied(part) for part in parts), None, scale, module=module, dropout=float(module.dropout.p))

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, LAYERS)

    def per_head(self) -> Tensor | None:
        """(H, 1) which biases a head has, if it has any."""
        return super().per_head() if self.biased else None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rel_pos: Tensor | None = None,
        rel_2d_pos: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention); a float mask is added to the logits, and so is a share of
        biases (N, heads there were, T, T), or their sum `position_bias`, of which the encoder has taken the share.
        """
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        terms = [None if position_bias is None else self.of_heads(position_bias)]
        for given, asked in ((rel_pos, self.biased), (rel_2d_pos, self.on_page)):
            terms.append(self.of_heads(given * self.share) if asked and given is not None else None)
        mask = None if attention_mask is None else additive(attention_mask, q.dtype, keeps=True)
        return self.mixed(q, k, v, *terms, mask)
