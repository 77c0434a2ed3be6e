"""Attention of Hugging Face encoders and decoders in dense form: BERT, DistilBERT, ALBERT, MPNet, ViT, BEiT, CLIP,
SigLIP, Whisper, wav2vec2, BART and their kin, also across two streams and with a cache.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from compressor.attention.dense import DenseAttention, copied, hooked, scales, term_and_hearing
from compressor.attention.lines import computes_as
from compressor.attention.streams import CACHES, ELSEWHERE, keys_and_values, known_cache, takes
from compressor.errors import ModelError

LAYERS = {
    "SelfAttention": ("query", "key", "value", None, "output.dense"),
    "DistilBertSelfAttention": ("q_lin", "k_lin", "v_lin", "out_lin", None),
    "MPNetSelfAttention": ("q", "k", "v", "o", None),
    "AlbertAttention": ("query", "key", "value", "dense", None),
    "Attention": ("q_proj", "k_proj", "v_proj", "o_proj", None),
    "Attention of CLIP": ("q_proj", "k_proj", "v_proj", "out_proj", None),
}
"""The class's name or its end -> layers for query, key, value, output; the reader beside it, if there is no output."""
FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DistilBert", "ViT", "DeiT", "Dinov2",
            "MPNet", "Albert")  # fmt: skip
"""What stands before that end: classes whose forward is what `HFAttention` does."""
KIN = {
    ("bert", "BertSelfAttention"): "SelfAttention",
    ("bert", "BertCrossAttention"): "SelfAttention",
    ("layoutlm", "LayoutLMSelfAttention"): "SelfAttention",
    ("megatron_bert", "MegatronBertSelfAttention"): "SelfAttention",
    ("yolos", "YolosSelfAttention"): "SelfAttention",
    ("vit", "ViTAttention"): "Attention",
    ("clip", "CLIPAttention"): "Attention of CLIP",
    ("siglip", "SiglipAttention"): "Attention of CLIP",
    ("wav2vec2", "Wav2Vec2Attention"): "Attention of CLIP",
    ("whisper", "WhisperAttention"): "Attention of CLIP",
    ("bart", "BartAttention"): "Attention of CLIP",
}
"""Folder and class of transformers -> key of LAYERS: so is every class that computes by the same lines."""
OTHER_INPUTS = (*ELSEWHERE, *CACHES, "past_key_value", "head_mask")
HEADS = ("num_attention_heads", "n_heads", "num_heads")
"""What classes call the number of their heads."""


def biased(module: Any) -> bool:
    """Whether terms of its logits may come with one entry for each head: MPNet's of the encoder, BEiT's as the mask."""
    config = getattr(module, "config", None)
    named = (getattr(config, f"use_{which}relative_position_bias", False) for which in ("", "shared_"))
    return type(module).__name__ == "MPNetSelfAttention" or any(named)


class HFAttention(DenseAttention):
    """In the place of an attention of `transformers`, with its way of being called. In ALBERT, with its own norm of the
    sum with its input.
    """

    def __init__(
        self,
        *layers: Any,
        names: tuple[str, str, str],
        out_name: str | None,
        norm: nn.Module | None,
        out_dropout: float,
        module: Any,
        **options: Any,
    ) -> None:
        super().__init__(*layers, **options)
        self.names, self.out_name, self.out_dropout = names, out_name, out_dropout
        self.norm = norm
        self.causal, self.place = bool(getattr(module, "is_causal", False)), getattr(module, "layer_idx", None)
        self.known = tuple(name for name in (*ELSEWHERE, *CACHES) if takes(type(module), name))
        if biased(module):
            self.with_places()

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention by known lines; that of a decoder only where its class takes a cache by name."""
        kind = type(module)
        if not kind.__module__.startswith("transformers.models."):
            return None
        end = _known_as(kind)
        if end is None:
            return None
        *names, out_name, reader = LAYERS[end]
        parts = [getattr(module, str(name), None) for name in (*names, *([out_name] if out_name else []))]
        if any(part is None for part in parts):
            return None  # the class around it, which has one of these inside
        if not all(type(part) is nn.Linear for part in parts) or hooked(module, *parts):  # type: ignore[arg-type]
            return f"attention heads ({kind.__name__} with layers of another kind)"
        decodes = getattr(module, "is_decoder", False) or getattr(module, "is_causal", False)
        if decodes and not takes(kind, *CACHES):
            return f"attention heads ({kind.__name__} of a decoder)"
        position = getattr(module, "position_embedding_type", "absolute")
        heads = next((getattr(module, name) for name in HEADS if hasattr(module, name)), None)
        if position != "absolute" or not isinstance(heads, int):
            return f"attention heads ({kind.__name__} with relative positions)"
        like = parts[0].weight  # type: ignore[union-attr]
        value = float(getattr(module, "scaling", getattr(module, "scale", (len(like) / heads) ** -0.5)))
        layers = [copied(part) for part in parts]  # type: ignore[arg-type]
        q, k, v = layers[:3]
        out = layers[3] if out_name else None
        norm, behind = getattr(module, "LayerNorm", None), getattr(module, "output_dropout", None)
        made = cls(
            q, k, v, out, scales(value, heads, like), dropout=_dropout(module), names=tuple(names), out_name=out_name,
            norm=copy.deepcopy(norm), out_dropout=0.0 if behind is None else behind.p, module=module,
        )  # fmt: skip
        made.read_by = reader
        return made

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        self.fill_layers(plain, self.names if self.out_name is None else (*self.names, self.out_name))
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
        `position_bias`. Without a mask a decoder's query sees keys up to its own place.
        """
        given = [name for name in OTHER_INPUTS if others.get(name) is not None and name not in self.known]
        if given or (attention_mask is not None and attention_mask.dim() != 4):
            raise ModelError(
                "attention in dense form",
                given[0] if given else f"a mask of {attention_mask.dim()} dimensions",  # type: ignore[union-attr]
                f"tokens, a mask of 4 dimensions{''.join(f', {name}' for name in self.known)}",
                "use attn_implementation 'sdpa' or 'eager'.",
            )
        other = next((others[name] for name in ELSEWHERE if others.get(name) is not None), None)
        q = self.queries(hidden_states)
        past = known_cache(*(others.get(name) for name in CACHES))
        k, v = keys_and_values(self.keys_and_values, hidden_states, other, past, self.place)
        causal = others.get("is_causal")  # CLIP's text side is told so in each call
        mask, hears = term_and_hearing(attention_mask, q, k, self.causal if causal is None else bool(causal))
        terms, hears = (self.of_heads(position_bias), self.of_heads(mask)), self.of_heads(hears)
        features, pattern = self.mixed(q, k, v, *terms, hears=hears)
        if self.norm is not None:
            features = self.norm(hidden_states + F.dropout(features, self.out_dropout, self.training))
        return features, pattern


def _known_as(kind: type) -> str | None:
    """The key of LAYERS for a class of transformers, by its name or its lines; None for one that is not known."""
    for family in FAMILIES:
        if kind.__name__ in (f"{family}SelfAttention", f"{family}Attention"):
            end = kind.__name__ if kind.__name__ in LAYERS else kind.__name__.removeprefix(family)
            return end if end in LAYERS else None
    return next((end for (folder, known), end in KIN.items() if computes_as(kind, folder, known)), None)


def _dropout(module: Any) -> float:
    """The share of attention that is dropped in training: a layer's, or a number."""
    found = [getattr(module, name, None) for name in ("attention_dropout", "dropout")]
    layer = next((part for part in found if isinstance(part, nn.Dropout)), None)
    return float(layer.p) if layer is not None else float(next((p for p in found if isinstance(p, float)), 0.0))
