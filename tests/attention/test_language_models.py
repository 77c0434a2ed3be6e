"""Language models of transformers: in the form that is worked on, back again, made smaller, bundled, speaking."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_attention import lively, plant_shared
from torch import Tensor, nn

import compressor
from compressor.attention.causal_form import CausalAttention
from compressor.attention.decoder_form import RotaryAttention
from compressor.attention.known import plain_again
from compressor.surgery.exact import exact_compress
from compressor.units.check import checked
from compressor.units.cut import cut
from compressor.units.dense import with_dense_attention
from compressor.units.heads import attentions
from compressor.units.trace import trace

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROTARY: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 32}
NUMBERS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
KINDS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0},
    "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
            "max_position_embeddings": 32, "word_embed_proj_dim": 32},
    "Llama": ROTARY,
    "Qwen3": {**ROTARY, "head_dim": 8},
    "Gemma": {**ROTARY, "head_dim": 8},
    "Granite": ROTARY,
    "Phi3": {**ROTARY, **NUMBERS},
    "GPTNeoX": {**SIZES, **NUMBERS, "max_position_embeddings": 32, "rotary_pct": 0.5},
    "Phi": ROTARY,
    "StableLm": {**ROTARY, "partial_rotary_factor": 0.5},
    "Olmo2": {**ROTARY, **NUMBERS},
    "SmolLM3": {**ROTARY, **NUMBERS, "no_rope_layers": [1, 0]},
    "Falcon": {**ROTARY, **NUMBERS, "new_decoder_architecture": True, "num_kv_heads": 2},
}  # fmt: skip
CAUSAL = ("GPT2", "OPT")
EXACT: dict[str, float] = dict.fromkeys((*CAUSAL, "GPTNeoX", "Phi", "StableLm", "Falcon"), 1e-12)
"""The others' norms compute in float32 whatever the network's precision."""
OF_EACH = {
    **{kind: {"heads": 2, "q": 2, "v": 2} for kind in CAUSAL},
    "Olmo2": {"v": 2},
    "SmolLM3": {"heads": 2, "q": 1, "v": 2},
}
"""Live groups of the two attentions, where they are not heads and values: OLMo-2's norms take all heads at once, and
every other layer of SmolLM3 turns no positions in.
"""
SPEAKING = ["GPT2", "Qwen3", "Phi3", "GPTNeoX", "Phi", "StableLm", "Olmo2", "SmolLM3", "Falcon"]
BUNDLED = [*SPEAKING[:3], *(pytest.param(kind, marks=pytest.mark.slow) for kind in SPEAKING[3:])]


def speaker(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(vocab_size=40, **KINDS[kind])
    config._attn_implementation = "sdpa"
    return lively(getattr(transformers, name)(config)).to(dtype)


def texts(count: int, length: int = 9) -> dict[str, Tensor]:
    """Token numbers, the last ones of every third text padding."""
    ids = torch.randint(2, 40, (count, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::3, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def scores(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_that_is_worked_on_is_the_same_function_and_goes_back(kind: str) -> None:
    model, inputs = speaker(kind), texts(6)
    before = scores(model, inputs)
    opened = with_dense_attention(model, texts(2), normal=False)
    wanted = CausalAttention if kind in CAUSAL else RotaryAttention
    assert [type(found) for found in attentions(opened).values()] == [wanted] * 2
    close: dict[str, Any] = {"rtol": 0.0, "atol": EXACT.get(kind, 1e-5) * float(before.abs().max())}
    torch.testing.assert_close(scores(opened, inputs), before, **close)
    unpadded = {"input_ids": inputs["input_ids"]}
    torch.testing.assert_close(scores(opened, unpadded), scores(model, unpadded), **close)
    for attention in attentions(opened).values():
        attention.v.weight.data.mul_(1.1)
    again = plain_again(copy.deepcopy(opened), model)
    assert {name: type(m) for name, m in again.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    torch.testing.assert_close(scores(again, inputs), scores(opened, inputs), **close)
    assert not torch.equal(scores(again, inputs), before)


@pytest.mark.parametrize("kind", ["OPT", "Llama", *SPEAKING])
def test_texts_padded_on_the_left_are_answered_as_before(kind: str) -> None:
    """The first tokens see no key at all; those of the text say, and go on saying, what they said."""
    model, inputs = speaker(kind), texts(6)
    left = {name: tensor.flip(1) for name, tensor in inputs.items()}
    opened = with_dense_attention(model, left, normal=False)
    assert len(attentions(opened)) == 2
    real = left["attention_mask"].bool()
    before, after = scores(model, left), scores(opened, left)
    close: dict[str, Any] = {"rtol": 0.0, "atol": EXACT.get(kind, 1e-5) * float(before[real].abs().max())}
    torch.testing.assert_close(after[real], before[real], **close)
    assert bool(torch.isfinite(after).all())
    said = [
        network.generate(**left, max_new_tokens=5, do_sample=False, pad_token_id=1)  # type: ignore[operator]
        for network in (model, opened)
    ]
    assert torch.equal(*said)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_values_and_hidden_units_are_groups(kind: str) -> None:
    model = speaker(kind)
    opened = with_dense_attention(model, texts(2))
    graph = checked(opened, trace(opened, texts(2)), texts(2))
    live = [group.name for group in graph.groups if group.frozen is None]
    ends = [name.rpartition(".")[2] for name in live]
    wanted = OF_EACH.get(kind, {"heads": 2, "v": 2})
    assert {end: ends.count(end) for end in ("heads", "q", "v") if end in ends} == wanted
    assert len(live) == sum(wanted.values()) + 2


@pytest.mark.parametrize("kind", ["GPTNeoX", "Phi", "StableLm", "Falcon"])
def test_planted_heads_and_values_of_a_whole_model_go(kind: str) -> None:
    lean, inputs = speaker(kind), texts(24)
    first = with_dense_attention(lean, texts(2), normal=False)
    for attention in attentions(first).values():
        plant_shared(attention)
    wide = plain_again(first, lean)  # as a user would bring it
    assert not attentions(wide)
    opened = with_dense_attention(wide, texts(2))
    small, plan = exact_compress(opened, trace(opened, texts(2)), inputs, effort=0.0)
    assert plan.taken_back == ()
    gone = [(fold.group.rpartition(".")[2], len(fold.dropped)) for fold in plan.folds]
    assert gone == [("heads", 1), ("v", 1)] * 2
    fresh = {"input_ids": inputs["input_ids"].flip(0)}
    torch.testing.assert_close(scores(small, fresh), scores(wide, fresh), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("kind", SPEAKING)
def test_one_with_fewer_heads_and_values_goes_on_as_it_reads(kind: str) -> None:
    """Step by step with a cache, what it says of the whole text at once, also of one padded on the left."""
    opened = with_dense_attention(speaker(kind), texts(2), normal=False)
    graph = trace(opened, texts(2))
    live = {group.name: len(group.units) for group in graph.groups if group.frozen is None}
    small: Any = cut(opened, graph, {name: tuple(range(1, size)) for name, size in live.items()})
    left = {name: tensor.flip(1) for name, tensor in texts(4).items()}
    options = {"do_sample": False, "pad_token_id": 1, "output_logits": True, "return_dict_in_generate": True}
    said = small.generate(**left, min_new_tokens=5, max_new_tokens=5, **options)
    mask = torch.cat([left["attention_mask"], torch.ones(4, 5, dtype=torch.long)], 1)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    whole = scores(small, {"input_ids": said.sequences, "attention_mask": mask, "position_ids": places})
    close = 1e-5 * float(whole.abs().max())  # what is said is kept in float32
    torch.testing.assert_close(torch.stack(said.logits, 1).double(), whole[:, -6:-1], rtol=0.0, atol=close)


def faint(kind: str) -> Any:
    """One whose last key / value head, and two values of the others, hardly say anything."""
    model = speaker(kind, torch.float32)
    opened = with_dense_attention(model, texts(2), normal=False)
    for attention in attentions(opened).values():
        for rows in attention.v.parameters():
            heads = rows.data.unflatten(0, (len(attention.scale) // attention.shared, -1))
            heads[-1] *= 1e-3
            heads[:, -2:] *= 1e-3
    return plain_again(opened, model)


@pytest.mark.parametrize("kind", BUNDLED)
def test_a_smaller_one_is_bundled_and_speaks_with_and_without_a_cache(kind: str, tmp_path: Path, no_page: None) -> None:
    model = faint(kind)
    inputs = texts(120, 8)
    labels = scores(model, inputs).argmax(-1)
    share = 0.55 if kind == "Olmo2" else 0.85  # its heads stay, and hidden units go before its values do
    result = compressor.compress(model, (inputs, labels), keep=f"params={share}", align=1, max_drop=90.0)
    small: Any = result.model
    assert result.verdict is not None
    assert result.verdict.value == "passed"
    assert result.record["compressed"]["params"] <= share * result.record["original"]["params"]
    result.save(tmp_path / "small")
    loaded = compressor.load(tmp_path / "small", factory=lambda: faint(kind))
    assert torch.equal(scores(loaded, inputs), scores(small, inputs))
    if kind == "GPT2":
        layer = loaded.get_submodule("transformer.h.0.mlp.c_fc")
        assert type(layer).__name__ == "Conv1D"
        assert (layer.nx, layer.nf) == tuple(layer.get_parameter("weight").shape)
    assert attentions(loaded)
    left = {name: tensor[:2].flip(1) for name, tensor in inputs.items()}
    said = [
        loaded.generate(**left, max_new_tokens=6, do_sample=False, use_cache=cached, pad_token_id=1)  # type: ignore[operator]
        for cached in (True, False)
    ]
    assert torch.equal(*said)
    assert said[0].shape == (2, 14)
