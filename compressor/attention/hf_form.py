"""Self-attention of Hugging Face encoders (BERT and its kin, DistilBERT, ALBERT, MPNet, ViT, DeiT) in dense form."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, additive, copied, copy_numbers, hooked, scales
from compressor.errors import ModelError

LAYERS = {
    "SelfAttention": ("query", "key", "value", None, "output.dense"),
    "DistilBertSelfAttention": ("q_lin", "k_lin", "v_lin", "out_lin", None),
    "MPNetSelfAttention": ("q", "k", "v", "o", None),
    "AlbertAttention": ("query", "key", "value", "dense", None),
    "Attention": ("q_proj", "k_proj", "v_proj", "o_proj", None),
}
"""The class's name or its end -> layers for query, key, value, output; the reader beside it, if there is no output."""
FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DistilBert", "ViT", "DeiT", "Dinov2",
            "MPNet", "Albert")  # fmt: skip
"""What stands before that end: classes whose forward is what `HFAttention` does."""
OTHER_INPUTS = ("past_key_values", "past_key_value", "encoder_hidden_states", "head_mask")


class HFAttention(DenseAttention):
    """In the place of a self-attention of `transformers`, with its way of being called. In ALBERT, with its own norm of
    the sum with its input.
    """

    def __init__(
        self,
        *layers: Any,
        names: tuple[str, str, str],
        out_name: str | None,
        norm: nn.Module | None,
        out_dropout: float,
        **options: Any,
    ) -> None:
        super().__init__(*layers, **options)
        self.names, self.out_name, self.out_dropout = names, out_name, out_dropout
        self.norm = norm

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Self-attention of an encoder; that of a decoder (causal, cached) is not followed."""
        kind = type(module)
        if not kind.__module__.startswith("transformers.models."):
            return None
        family = next((f for f in FAMILIES if kind.__name__ in (f"{f}SelfAttention", f"{f}Attention")), None)
        end = kind.__name__ if kind.__name__ in LAYERS else kind.__name__.removeprefix(family or "")
        if family is None or end not in LAYERS:
            return None
        *names, out_name, reader = LAYERS[end]
        parts = [getattr(module, str(name), None) for name in (*names, *([out_name] if out_name else []))]
        if any(part is None for part in parts):
            return None  # the class around it, which has one of these inside
        if not all(type(part) is nn.Linear for part in parts) or hooked(module, *parts):  # type: ignore[arg-type]
            return f"attention heads ({kind.__name__} with layers of another kind)"
        if getattr(module, "is_decoder", False) or getattr(module, "is_causal", False):
            return f"attention heads ({kind.__name__} of a decoder)"
        position = getattr(module, "position_embedding_type", "absolute")
        heads = getattr(module, "num_attention_heads", getattr(module, "n_heads", None))
        if position != "absolute" or not isinstance(heads, int):
            return f"attention heads ({kind.__name__} with relative positions)"
        like = parts[0].weight  # type: ignore[union-attr]
        value = float(getattr(module, "scaling", (len(like) / heads) ** -0.5))
        layers = [copied(part) for part in parts]  # type: ignore[arg-type]
        q, k, v = layers[:3]
        out = layers[3] if out_name else None
        norm, behind = getattr(module, "LayerNorm", None), getattr(module, "output_dropout", None)
        made = cls(
            q, k, v, out, scales(value, heads, like), dropout=_dropout(module), names=tuple(names), out_name=out_name,
            norm=copy.deepcopy(norm), out_dropout=0.0 if behind is None else behind.p,
        )  # fmt: skip
        made.read_by = reader
        return made

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        for name, layer in zip(self.names, (self.q, self.k, self.v), strict=True):
            copy_numbers(layer, plain.get_submodule(name))  # type: ignore[arg-type]
        if self.out_name is not None:
            copy_numbers(self.out, plain.get_submodule(self.out_name))  # type: ignore[arg-type]
        if self.norm is not None:
            plain.get_submodule("LayerNorm").load_state_dict(self.norm.state_dict())

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention). Of a bool mask, True means that a key is seen; a float mask is added, and so is
        `position_bias`.
        """
        given = [name for name in OTHER_INPUTS if others.get(name) is not None]
        if given or (attention_mask is not None and attention_mask.dim() != 4):
            raise ModelError(
                "attention in dense form",
                given[0] if given else f"a mask of {attention_mask.dim()} dimensions",  # type: ignore[union-attr]
                "self-attention of an encoder, with a mask of 4 dimensions",
                "use attn_implementation 'sdpa' or 'eager', without cache.",
            )
        mask = None if attention_mask is None else additive(attention_mask, hidden_states.dtype, keeps=True)
        parts = self.projected(hidden_states, hidden_states, hidden_states)
        features, pattern = self.mixed(*parts, position_bias, mask)
        if self.norm is not None:
            features = self.norm(hidden_states + F.dropout(features, self.out_dropout, self.training))
        return features, pattern


def _dropout(module: Any) -> float:
    part = getattr(module, "attention_dropout", None)
    part = part if isinstance(part, nn.Dropout) else getattr(module, "dropout", None)
    return float(part.p) if isinstance(part, nn.Dropout) else float(getattr(module, "attention_dropout", 0.0))
