"""Which classes of transformers compute attention by lines that are known, and what decoders call their parts.

transformers repeats the lines of one family's forward in many others (those of Llama in Mistral, Qwen2, Gemma, Granite,
GLM, ...): a class with the same lines does the same, whatever it is called.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any, Literal

APART = ("q_proj", "k_proj", "v_proj")
WINDOW = "sliding_window"
"""An argument that says how far back a query looks, which the mask says as well."""


@dataclass(frozen=True)
class Style:
    """How the attention of one family, in its folder of transformers, makes up what `RotaryAttention` does."""

    folder: str
    kind: str
    """Its class, whose forward is compared with others."""
    inputs: tuple[str, ...] = APART
    """Layers of queries, keys and values, or the one that has all three."""
    by_head: bool = False
    """Of one layer: the queries that share a key lie beside it and its value, not beside all other queries."""
    output: str = "o_proj"
    norms: tuple[str, str] | None = None
    """Norms of queries and keys; those that a module lacks are left out."""
    normed: Literal["head", "all"] = "head"
    """Whether they take each head by itself, or all at once."""
    size: str = "head_dim"
    """Attribute with the dimensions of a head."""
    scaling: str | None = "scaling"
    """Attribute with what logits are multiplied by; None: one over the root of a head's dimensions."""
    capped: str | None = None
    """Attribute with what logits stay below in size, softly, if it is a number."""
    behind: str | None = None
    """A dropout behind the output."""
    keys: str | None = None
    """Attribute with the number of key / value heads, where none says how many queries share one."""
    linear: str | None = None
    """A class of linear layers of its own that does what `nn.Linear` does."""
    turned: str | None = None
    """Attribute with the number of dimensions, the first ones, that positions are turned into, where the function that
    turns takes them alone.
    """
    placed: str | None = None
    """Attribute that says whether positions are turned in at all."""


STYLES = (
    Style("llama", "LlamaAttention"),
    Style("qwen3", "Qwen3Attention", norms=("q_norm", "k_norm")),
    Style("phi3", "Phi3Attention", inputs=("qkv_proj",)),
    Style("gpt_neox", "GPTNeoXAttention", inputs=("query_key_value",), by_head=True, output="dense", size="head_size"),
    Style("phi", "PhiAttention", output="dense", norms=("q_layernorm", "k_layernorm"), turned="rotary_ndims"),
    Style("stablelm", "StableLmAttention", norms=("q_layernorm", "k_layernorm"), turned="rotary_ndims"),
    Style("olmo2", "Olmo2Attention", norms=("q_norm", "k_norm"), normed="all"),
    Style("smollm3", "SmolLM3Attention", placed="use_rope"),
    Style(
        "falcon", "FalconAttention", inputs=("query_key_value",), by_head=True, output="dense", keys="num_kv_heads",
        scaling="inv_norm_factor", linear="FalconLinear",
    ),
    Style("modernbert", "ModernBertAttention", inputs=("Wqkv",), output="Wo", scaling=None, behind="out_drop"),
    Style("gemma2", "Gemma2Attention", capped="attn_logit_softcapping"),
)  # fmt: skip


@functools.cache
def style_of(kind: type) -> Style | None:
    """The one of STYLES by whose lines this class computes; None if there is none."""
    return next((style for style in STYLES if computes_as(kind, style.folder, style.kind)), None)


@functools.cache
def computes_as(kind: type, folder: str, known: str) -> bool:
    """Whether an attention class of transformers has the same lines as `known`, in its folder of transformers."""
    place = kind.__module__.split(".")
    if place[:2] != ["transformers", "models"] or not kind.__name__.endswith("Attention"):
        return False
    own = _lines(kind)
    try:
        code = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        return own is not None and own == _lines(getattr(code, known))
    except (ImportError, AttributeError):  # a version without that family
        return False


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
