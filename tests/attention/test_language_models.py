"""Language models of transformers: in the form that is worked on, back again, made smaller, bundled, speaking."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_attention import lively
from torch import Tensor, nn

import compressor
from compressor.attention.causal_form import CausalAttention
from compressor.attention.decoder_form import RotaryAttention
from compressor.attention.known import plain_again
from compressor.units.check import checked
from compressor.units.dense import in_dense_form
from compressor.units.heads import attentions
from compressor.units.trace import trace

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROTARY: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 32}
KINDS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0},
    "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
            "max_position_embeddings": 32, "word_embed_proj_dim": 32},
    "Llama": ROTARY,
    "Qwen3": {**ROTARY, "head_dim": 8},
    "Gemma": {**ROTARY, "head_dim": 8},
    "Granite": ROTARY,
}  # fmt: skip
EXACT = {"GPT2": 1e-12, "OPT": 1e-12}
"""The others' norms compute in float32 whatever the network's precision."""


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
    opened = in_dense_form(model, texts(2), normal=False)
    wanted = CausalAttention if kind in EXACT else RotaryAttention
    assert [type(found) for found in attentions(opened).values()] == [wanted] * 2
    close = {"rtol": 0.0, "atol": EXACT.get(kind, 1e-5) * float(before.abs().max())}
    torch.testing.assert_close(scores(opened, inputs), before, **close)
    unpadded = {"input_ids": inputs["input_ids"]}
    torch.testing.assert_close(scores(opened, unpadded), scores(model, unpadded), **close)
    for attention in attentions(opened).values():
        attention.v.weight.data.mul_(1.1)
    again = plain_again(copy.deepcopy(opened), model)
    assert {name: type(m) for name, m in again.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    torch.testing.assert_close(scores(again, inputs), scores(opened, inputs), **close)
    assert not torch.equal(scores(again, inputs), before)


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "Llama", "Qwen3"])
def test_texts_padded_on_the_left_are_answered_as_before(kind: str) -> None:
    """The first tokens see no key at all; those of the text say, and go on saying, what they said."""
    model, inputs = speaker(kind), texts(6)
    left = {name: tensor.flip(1) for name, tensor in inputs.items()}
    opened = in_dense_form(model, left, normal=False)
    assert len(attentions(opened)) == 2
    real = left["attention_mask"].bool()
    before, after = scores(model, left), scores(opened, left)
    close = {"rtol": 0.0, "atol": EXACT.get(kind, 1e-5) * float(before[real].abs().max())}
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
    opened = in_dense_form(model, texts(2))
    graph = checked(opened, trace(opened, texts(2)), texts(2))
    live = [group.name for group in graph.groups if group.frozen is None]
    ends = ("heads", "q", "v") if kind in EXACT else ("heads", "v")
    assert sum(name.rpartition(".")[2] in ends for name in live) == 2 * len(ends)
    assert len(live) == 2 * len(ends) + 2


@pytest.mark.parametrize("kind", ["GPT2", "Qwen3"])
def test_a_smaller_one_is_bundled_and_speaks_with_and_without_a_cache(kind: str, tmp_path: Path, no_page: None) -> None:
    model = speaker(kind, torch.float32)
    inputs = texts(120, 8)
    labels = scores(model, inputs).argmax(-1)
    result = compressor.compress(model, (inputs, labels), keep="params=0.85", align=1, max_drop=90.0)
    small: Any = result.model
    assert result.verdict.value == "passed"
    assert result.record["compressed"]["params"] <= 0.85 * result.record["original"]["params"]
    result.save(tmp_path / "small")
    loaded = compressor.load(tmp_path / "small", factory=lambda: speaker(kind, torch.float32))
    assert torch.equal(scores(loaded, inputs), scores(small, inputs))
    if kind == "GPT2":
        layer = loaded.get_submodule("transformer.h.0.mlp.c_fc")
        assert type(layer).__name__ == "Conv1D"
        assert (layer.nx, layer.nf) == tuple(layer.weight.shape)
    said = [
        loaded.generate(inputs["input_ids"][1:2], max_new_tokens=6, do_sample=False, use_cache=cached)  # type: ignore[operator]
        for cached in (True, False)
    ]
    assert torch.equal(*said)
    assert said[0].shape == (1, 14)
