"""Self-attention of Hugging Face decoders (Llama, Qwen3 and their kin) in dense form: rotary positions, shared keys."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import textwrap
from typing import Any

from torch import Tensor, nn

from compressor.attention.dense import DenseAttention, copied, copy_numbers, hooked, scales, term_and_hearing
from compressor.errors import ModelError

PATTERNS = {"llama": ("LlamaAttention", False), "qwen3": ("Qwen3Attention", True)}
"""The classes whose forward is what is done here, in their folders of transformers, and whether queries and keys go
through norms. transformers repeats these lines in many families (Mistral, Qwen2, Gemma, Granite, GLM, ...): a class
with the same lines does the same.
"""
WINDOW = "sliding_window"
"""An argument that says how far back a query looks, which the mask says as well."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
ROTARY = "query and key dimensions with rotary positions"
OTHERS = ("position_bias", "cache", "softcap", "is_causal")

Norms = tuple[nn.Module, nn.Module] | None


@functools.cache
def _same_lines(kind: type) -> bool | None:
    """Whether queries and keys of this class go through norms; None if it is no attention by the lines of PATTERNS."""
    place = kind.__module__.split(".")
    if place[:2] != ["transformers", "models"] or not kind.__name__.endswith("Attention"):
        return None
    own = _lines(kind)
    for folder, (name, normed) in PATTERNS.items():
        try:
            known = getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name)
        except (ImportError, AttributeError):  # a version without that family
            continue
        if own is not None and own == _lines(known):
            return normed
    return None


@functools.cache
def _lines(kind: Any) -> str | None:
    """What a class computes, as its source says it, without remarks and WINDOW; None where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [given for given in node.keywords if given.arg != WINDOW]
    body = tree.body[0].body  # type: ignore[attr-defined]
    return "\n".join(ast.unparse(line) for line in body if not isinstance(line, ast.Expr))


class RotaryAttention(DenseAttention):
    """In the place of a decoder's self-attention of `transformers`, with its way of being called, also with a cache.

    Several query heads share one key / value head; queries and keys are turned by their positions.
    """

    fixed = ROTARY

    def __init__(
        self, *layers: Any, shared: int, home: str, place: int, causal: bool, norms: Norms = None, **options: Any
    ) -> None:
        super().__init__(*layers, **options)
        self.shared, self.home, self.place, self.causal = shared, home, place, causal
        self.q_norm, self.k_norm = norms or (None, None)

    @classmethod
    def of(cls, module: Any) -> DenseAttention | str | None:
        """Attention that is computed by the lines of one of PATTERNS."""
        kind = type(module)
        normed = _same_lines(kind)
        if normed is None:
            return None
        parts = [getattr(module, name, None) for name in LAYERS]
        if not all(type(part) is nn.Linear for part in parts) or hooked(module, *parts):  # type: ignore[arg-type]
            return f"attention heads ({kind.__name__} with layers of another kind)"
        if getattr(module.config, "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
            return f"attention heads ({kind.__name__} with an implementation of its own)"
        heads, several = (len(part.weight) // module.head_dim for part in parts[:2])  # type: ignore[union-attr]
        like = parts[0].weight  # type: ignore[union-attr]
        layers = [copied(part) for part in parts]  # type: ignore[arg-type]
        norms = (copy.deepcopy(module.q_norm), copy.deepcopy(module.k_norm)) if normed else None
        return cls(
            *layers, scales(float(module.scaling), heads, like), shared=heads // several, home=kind.__module__,
            place=module.layer_idx, causal=bool(getattr(module, "is_causal", True)), norms=norms,
            dropout=module.attention_dropout,
        )  # fmt: skip

    def fill(self, plain: nn.Module) -> None:
        """Into a module of that class."""
        for name, layer in zip(LAYERS, (self.q, self.k, self.v, self.out), strict=True):
            copy_numbers(layer, plain.get_submodule(name))  # type: ignore[arg-type]
        for name, norm in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if norm is not None:
                plain.get_submodule(name).load_state_dict(norm.state_dict())

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """(features, attention). Without a mask a query sees keys up to its own place; all where it is not causal."""
        given = [name for name in OTHERS if others.get(name) is not None]
        if given or position_embeddings is None or (attention_mask is not None and attention_mask.dim() != 4):
            raise ModelError(
                "attention in dense form",
                given[0] if given else "no positions, or a mask that has not 4 dimensions",
                "causal self-attention with positions, and a mask of 4 dimensions",
                "use attn_implementation 'sdpa' or 'eager'.",
            )
        q, k, v = self.projected(hidden_states, hidden_states, hidden_states)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        turn = importlib.import_module(self.home)
        q, k = turn.apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.place)
        mask, hears = term_and_hearing(attention_mask, q, k, self.causal)
        return self.mixed(q, k, v, mask, hears=hears)
