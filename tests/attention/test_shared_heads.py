"""Attention in windows (Swin) and with shared keys and rotary positions (Llama and its kin): equal, planted, lossy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from planted_attention import heads_of, lively, plant, plant_shared
from torch import Tensor, nn
from torchvision.models import SwinTransformer

import compressor
from compressor.attention.decoder_form import ROTARY, RotaryAttention
from compressor.attention.known import plain_again
from compressor.attention.swin_form import SwinAttention
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.cut import cut
from compressor.units.dense import with_dense_attention
from compressor.units.heads import attentions
from compressor.units.trace import trace

FIRST = "features.1.0.attn"
IMAGES = torch.randn(24, 3, 22, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def swin(seed: int = 0) -> nn.Module:
    """Two blocks of four heads, the second with shifted windows; images that the windows do not fill."""
    torch.manual_seed(seed)
    return lively(SwinTransformer([2, 2], 16, [2], [4], [4, 4], num_classes=3))


FOLDERS = {"GPTNeoX": "gpt_neox"}
UNSHARED = ("GPTNeoX", "Falcon")
NUMBERS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
EXTRA: dict[str, dict[str, Any]] = {
    "Phi3": NUMBERS,
    "GPTNeoX": {**NUMBERS, "rotary_pct": 0.5},
    "Phi": {"qk_layernorm": True, "partial_rotary_factor": 0.5},
    "StableLm": {"qk_layernorm": True, "partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "Olmo2": NUMBERS,
    "SmolLM3": {**NUMBERS, "num_hidden_layers": 1, "no_rope_layers": [0]},
    "Falcon": {**NUMBERS, "new_decoder_architecture": True, "num_kv_heads": 3},
}
"""Families that lay out their layers, norms and positions in ways of their own."""


class Decoder(nn.Module):
    """One attention of transformers between linear layers, with its rotary positions: 4 query heads on 2 keys."""

    def __init__(self, bias: bool = True, family: str = "Llama") -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        from importlib import import_module

        options = {"hidden_size": 24, "num_attention_heads": 6, "vocab_size": 9}
        extra = {"attention_bias": bias} if family == "Llama" else EXTRA.get(family, {})
        shared = {} if family in UNSHARED else {"num_key_value_heads": 3}
        config = getattr(transformers, f"{family}Config")(**options, **shared, **extra)
        config._attn_implementation = "sdpa"
        folder = FOLDERS.get(family, family.lower())
        self.code = import_module(f"transformers.models.{folder}.modeling_{folder}")
        self.stem, self.norm, self.head = nn.Linear(5, 24), nn.LayerNorm(24), nn.Linear(24, 3)
        self.attention = getattr(self.code, f"{family}Attention")(config, 0)
        self.further = {"alibi": None} if family == "Falcon" else {}
        self.rotary = getattr(self.code, f"{family}RotaryEmbedding")(config)

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        made = Decoder.__new__(Decoder)
        nn.Module.__init__(made)
        code, state = self.code, {key: value for key, value in self.__dict__.items() if key != "code"}
        made.__dict__ = copy.deepcopy(state, memo)
        made.code = code
        return made

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        places = self.rotary(x, torch.arange(x.shape[1], device=x.device)[None])
        options = {"position_embeddings": places, "attention_mask": None, **self.further}
        return self.head((x + self.attention(self.norm(x), **options)[0]).mean(1))


TOKENS = torch.randn(24, 7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def decoder(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return lively(Decoder(**options))


def ran(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("size", [(16, 16), (22, 20), (5, 8), (8, 3)])
def test_windows_give_what_torchvision_gives(size: tuple[int, int]) -> None:
    model, images = swin(), torch.randn(2, 3, *size, dtype=torch.float64)
    opened = with_dense_attention(model, IMAGES, normal=False)
    assert [type(found) for found in attentions(opened).values()] == [SwinAttention] * 2
    torch.testing.assert_close(ran(opened, images), ran(model, images), rtol=1e-12, atol=1e-12)
    opened.get_parameter(f"{FIRST}.relative_position_bias_table").data.add_(0.1)
    again = plain_again(copy.deepcopy(opened), model)
    assert not attentions(again)
    torch.testing.assert_close(ran(again, images), ran(opened, images), rtol=1e-12, atol=1e-12)


def test_planted_heads_values_and_queries_of_windows_go() -> None:
    lean = swin(2)
    first = with_dense_attention(lean, IMAGES, normal=False)
    for attention in attentions(first).values():
        assert isinstance(attention, SwinAttention)
        assert attention.out is not None
        plant(attention, attention.out)
        table = attention.get_parameter("relative_position_bias_table").data
        table[:, -1] = table[:, 0]
    wide = plain_again(copy.deepcopy(first), lean)
    small, plan = removed(wide, IMAGES)
    expected = {f"features.1.{block}.attn.{leaf}": 1 for block in (0, 1) for leaf in ("heads", "q", "v")}
    assert plan == expected
    fresh = torch.randn(4, 3, 22, 20, dtype=torch.float64)
    assert moved([ran(wide, fresh)], [ran(small, fresh)]) < 1e-10
    assert small.get_parameter(f"{FIRST}.relative_position_bias_table").shape == (49, 3)


def removed(wide: nn.Module, inputs: Tensor) -> tuple[nn.Module, dict[str, int]]:
    opened = with_dense_attention(wide, inputs)
    graph = checked(opened, trace(opened, inputs), inputs[:2])
    small, plan = exact_compress(opened, graph, inputs, effort=0.0)
    assert plan.taken_back == ()
    return small, {fold.group: len(fold.dropped) for fold in plan.folds}


def test_heads_that_only_their_position_biases_tell_apart_stay() -> None:
    lean = swin(2)
    first = with_dense_attention(lean, IMAGES, normal=False)
    for attention in attentions(first).values():
        for layer in (attention.q, attention.k, attention.v):
            weight, bias = heads_of(layer, 4)
            weight[-1], bias[-1] = weight[0], bias[0]
    small, plan = removed(plain_again(copy.deepcopy(first), lean), IMAGES)
    assert not [name for name in plan if name.endswith("heads")]
    assert len(attentions(small)[FIRST].scale) == 4 if FIRST in attentions(small) else True


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", *EXTRA])
def test_decoders_give_what_transformers_gives(family: str) -> None:
    model = decoder(family=family)
    opened = with_dense_attention(model, TOKENS, normal=False)
    (attention,) = attentions(opened).values()
    assert isinstance(attention, RotaryAttention)
    assert (attention.shared, len(attention.scale)) == (1 if family == "GPTNeoX" else 2, 6)
    for length in (1, 4, 7):
        torch.testing.assert_close(ran(opened, TOKENS[:, :length]), ran(model, TOKENS[:, :length]))
    opened.get_parameter("attention.v.weight").data.add_(0.1)
    again = plain_again(copy.deepcopy(opened), model)
    torch.testing.assert_close(ran(again, TOKENS), ran(opened, TOKENS))


def test_groups_of_a_decoder_and_why_queries_stay() -> None:
    opened = with_dense_attention(decoder(), TOKENS, normal=False)
    graph = checked(opened, trace(opened, TOKENS), TOKENS[:2])
    sizes = {group.name: len(group.units) for group in graph.groups if group.frozen is None}
    assert sizes == {"attention.heads": 3, "attention.v": 4}
    why = {group.name: group.frozen for group in graph.groups}
    assert why["attention.q"] == why["attention.k"] == ROTARY
    small = cut(opened, graph, {"attention.heads": (0, 2), "attention.v": (0, 1, 3)})
    (attention,) = attentions(small).values()
    shapes = [tuple(attention.get_parameter(f"{leaf}.weight").shape) for leaf in ("q", "k", "v", "out")]
    assert shapes == [(16, 24), (8, 24), (6, 24), (24, 12)]
    assert len(attention.scale) == 4


@pytest.mark.parametrize("family", ["Llama", *EXTRA])
def test_planted_values_and_shared_heads_of_a_decoder_go(family: str) -> None:
    lean = decoder(1, family=family)
    first = with_dense_attention(lean, TOKENS, normal=False)
    plant_shared(attentions(first)["attention"])
    wide = plain_again(copy.deepcopy(first), lean)
    assert not attentions(wide)
    small, plan = removed(wide, TOKENS)
    assert plan == {"attention.v": 1} | ({} if family == "Olmo2" else {"attention.heads": 1})
    fresh = torch.randn(4, 9, 5, dtype=torch.float64)
    assert moved([ran(wide, fresh)], [ran(small, fresh)]) < 1e-10


def test_heads_that_only_their_norms_tell_apart_stay() -> None:
    lean = decoder(1, family="StableLm")
    first = with_dense_attention(lean, TOKENS, normal=False)
    attention = attentions(first)["attention"]
    for layer in (attention.q, attention.k, attention.v):
        weight, bias = heads_of(layer, 3)
        weight[-1], bias[-1] = weight[0], bias[0]
    assert removed(plain_again(copy.deepcopy(first), lean), TOKENS)[1] == {}


def test_a_lean_decoder_stays_whole() -> None:
    assert removed(decoder(3), TOKENS)[1] == {}


def test_a_cache_continues_where_a_whole_text_does() -> None:
    transformers = pytest.importorskip("transformers")
    opened: Any = with_dense_attention(decoder(), TOKENS, normal=False)
    states = opened.norm(opened.stem(TOKENS))
    cos, sin = opened.rotary(states, torch.arange(7)[None])
    whole = opened.attention(states, position_embeddings=(cos, sin))[0]
    cache = transformers.DynamicCache()
    opened.attention(states[:, :6], position_embeddings=(cos[:, :6], sin[:, :6]), past_key_values=cache)
    last = opened.attention(states[:, 6:], position_embeddings=(cos[:, 6:], sin[:, 6:]), past_key_values=cache)[0]
    torch.testing.assert_close(last, whole[:, 6:])


@pytest.mark.parametrize("kind", ["swin", "decoder"])
def test_lossy_runs_make_heads_and_values_fewer(kind: str) -> None:
    model, inputs = (swin(), IMAGES.repeat(4, 1, 1, 1)) if kind == "swin" else (decoder(), TOKENS.repeat(4, 1, 1))
    inputs = (inputs + 0.3 * torch.randn(inputs.shape, dtype=inputs.dtype)).float()
    model = model.float()
    labels = ran(model, inputs).argmax(1)
    result = compressor.compress(model, (inputs, labels), keep="params=0.8", align=1)
    small = list(attentions(result.model).values())
    assert small
    assert sum(p.numel() for p in result.model.parameters()) < 0.81 * sum(p.numel() for p in model.parameters())
