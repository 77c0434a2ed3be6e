"""Attention of T5 and its kin (transformers) in dense form: of encoders and decoders, also across the two, with the
position biases that the first layer of a stack makes for the heads of all its layers.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, copied, plain_parts, scales, term_and_hearing
from compressor.attention.lines import computes_as
from compressor.attention.streams import keys_and_values, known_cache
from compressor.errors import ModelError

LAYERS = ("q", "k", "v", "o")
BUCKETS = ("relative_attention_num_buckets", "relative_attention_max_distance", "is_decoder")
"""What the function of the class that makes the biases reads, beside their table."""


class T5Attention(DenseAttention):
    """In the place of an attention of T5's, with its way of being called. The table of biases keeps an entry for each
    head there was: layers behind read it, too.
    """

    relative_attention_bias: nn.Embedding | None

    def __init__(self, *layers: Any, module: Any, **options: Any) -> None:
        super().__init__(*layers, **options)
        self.kind, self.place, self.causal = type(module), module.layer_idx, bool(getattr(module, "is_causal", False))
        self.crosses = bool(module.is_decoder) and hasattr(module, "is_causal") and not self.causal
        """Reads an encoder: the biases it is given are zeros."""
        self.relative_attention_bias = copy.deepcopy(getattr(module, "relative_attention_bias", None))
        for name in BUCKETS:
            setattr(self, name, getattr(module, name))
        self.with_places()

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by T5's lines."""
        kind = type(module)
        if not computes_as(kind, "t5", "T5Attention"):
            return None
        parts = plain_parts(module, LAYERS)
        if isinstance(parts, str):
            return parts
        if getattr(getattr(module, "config", None), "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
            return f"attention heads ({kind.__name__} with an implementation of its own)"
        scale = scales(float(getattr(module, "scaling", 1.0)), module.n_heads, parts[0].weight)
        return cls(*(copied(part) for part in parts), scale, module=module, dropout=module.dropout)

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, LAYERS)
        if self.relative_attention_bias is not None:
            plain.get_submodule("relative_attention_bias").load_state_dict(self.relative_attention_bias.state_dict())

    def per_head(self) -> Tensor | None:
        """(H, 1) which biases a head has; the table of most layers is elsewhere."""
        return None if self.crosses else super().per_head()

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        **_others: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(features, position biases of all heads that there were, attention). Of a bool mask, True means that a key is
        seen; a float mask is added. Without one a decoder's query sees keys up to its own place.
        """
        if mask is not None and mask.dim() != 4:
            raise ModelError(
                "attention in dense form", f"a mask of {mask.dim()} dimensions", "a mask of 4 dimensions",
                "use attn_implementation 'sdpa' or 'eager'.",
            )  # fmt: skip
        past = known_cache(cache, past_key_values)
        before = past.get_seq_length(self.place) if past is not None else 0
        before = before.clone() if isinstance(before, Tensor) else before  # a cache may go on counting in it
        q = self.queries(hidden_states)
        k, v = keys_and_values(self.keys_and_values, hidden_states, key_value_states, past, self.place)
        if position_bias is None and self.relative_attention_bias is not None:
            position_bias = self.kind.compute_bias(self, q.shape[2], k.shape[2], q.device, before)  # type: ignore[attr-defined]
        term, _ = term_and_hearing(mask, q, k, self.causal)
        features, pattern = self.mixed(q, k, v, self.of_heads(position_bias), term)
        return features, position_bias, pattern

    def _relative_position_bucket(self, *given: Any, **named: Any) -> Tensor:
        """The class's own function, which its `compute_bias` asks for."""
        return self.kind._relative_position_bucket(*given, **named)  # type: ignore[attr-defined]
