"""Attention whose logits have something added that is made elsewhere for all heads: position biases and distances."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_nets import ONE_STREAM, ROUNDED, SPEAKING, answer, exported_and_loaded, inputs_of, network
from planted_attention import plant, plant_shared
from torch import Tensor, nn

from compressor.attention.known import attention_names, plain_again, reader_of
from compressor.surgery.exact import exact_compress
from compressor.units.check import checked
from compressor.units.cut import cut
from compressor.units.dense import in_dense_form
from compressor.units.heads import attentions
from compressor.units.trace import trace


def close(kind: str, got: Tensor, expected: Tensor) -> None:
    limit = ROUNDED.get(kind, 1e-10)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=limit * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ONE_STREAM)
def test_the_form_that_is_worked_on_is_the_same_function_and_goes_back(kind: str) -> None:
    model, inputs = network(kind), inputs_of(kind, 6)
    before = answer(model, inputs)
    opened = in_dense_form(model, inputs_of(kind, 2), normal=False)
    assert list(attentions(opened)) == attention_names(model)
    assert len(attentions(opened)) == 2
    close(kind, answer(opened, inputs), before)
    for attention in attentions(opened).values():
        for parameter in attention.parameters():
            parameter.data.mul_(1.1)
    again = plain_again(copy.deepcopy(opened), model)
    assert {name: type(m) for name, m in again.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    close(kind, answer(again, inputs), answer(opened, inputs))
    assert not torch.equal(answer(again, inputs), before)


@pytest.mark.parametrize("kind", ONE_STREAM)
def test_heads_that_stay_keep_their_own_biases(kind: str) -> None:
    """Another head goes in each layer: what the others add is theirs."""
    opened = in_dense_form(network(kind), inputs_of(kind, 2), normal=False)
    graph = checked(opened, trace(opened, inputs_of(kind, 2)), inputs_of(kind, 2))
    kept = {}
    for layer, (name, attention) in enumerate(attentions(opened).items()):
        several = len(attention.scale) // attention.shared
        kept[f"{name}.heads"] = tuple(head for head in range(several) if head != layer)
        mute(opened, name, range(layer, layer + 1))
    assert {group.name for group in graph.groups if group.frozen is None} >= set(kept)
    small = cut(opened, graph, kept)
    close(kind, answer(small, inputs_of(kind, 6)), answer(opened, inputs_of(kind, 6)))


def mute(model: nn.Module, name: str, heads: range) -> None:
    """Nobody reads these key / value heads of the attention `name`."""
    attention, reader = attentions(model)[name], reader_of(model, name)
    assert reader is not None
    by_head = reader.weight.data.unflatten(1, (len(attention.scale) // attention.shared, -1))
    by_head[:, list(heads)] = 0


def surplus(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With spare dimensions in each head and a last head that nobody reads."""
    lean = network(kind, dtype)
    opened = in_dense_form(lean, inputs_of(kind, 2, dtype), normal=False)
    for name, attention in attentions(opened).items():
        reader = reader_of(opened, name)
        assert reader is not None
        if attention.shared > 1:
            plant_shared(attention)
        else:
            plant(attention, reader)
        mute(opened, name, range(-1, 0))
    return plain_again(opened, lean)


@pytest.mark.parametrize("kind", ONE_STREAM)
def test_planted_heads_and_dimensions_of_a_whole_model_go(kind: str) -> None:
    wide = surplus(kind)
    opened = in_dense_form(wide, inputs_of(kind, 2))
    small, plan = exact_compress(opened, trace(opened, inputs_of(kind, 2)), inputs_of(kind, 24), effort=0.0)
    assert plan.taken_back == ()
    gone = {fold.group: len(fold.dropped) for fold in plan.folds}
    leaves = {name: ("heads", "v") if a.fixed else ("heads", "q", "v") for name, a in attentions(opened).items()}
    assert gone == {f"{name}.{leaf}": 1 for name, these in leaves.items() for leaf in these}
    fresh = {name: tensor.flip(0) for name, tensor in inputs_of(kind, 8).items()}
    close(kind, answer(small, fresh), answer(wide, fresh))


@pytest.mark.parametrize("kind", SPEAKING)
def test_one_with_fewer_heads_and_dimensions_speaks_with_a_cache_as_without(kind: str) -> None:
    opened = in_dense_form(network(kind, torch.float32), inputs_of(kind, 2), normal=False)
    graph = trace(opened, inputs_of(kind, 2))
    kept = {g.name: tuple(range(1, len(g.units))) for g in graph.groups if g.frozen is None}
    small: Any = cut(opened, graph, kept)
    left = {name: tensor.flip(1) for name, tensor in inputs_of(kind, 4).items()}  # padded before the text
    options = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5, "output_logits": True, "pad_token_id": 1}
    said = [
        small.generate(**left, return_dict_in_generate=True, use_cache=cached, **options) for cached in (True, False)
    ]
    assert torch.equal(said[0].sequences, said[1].sequences)
    for step, whole in zip(said[0].logits, said[1].logits, strict=True):
        torch.testing.assert_close(step, whole, rtol=0.0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", ["T5 encoder"])
def test_heads_that_only_their_biases_tell_apart_stay(kind: str) -> None:
    lean = network(kind)
    opened = in_dense_form(lean, inputs_of(kind, 2), normal=False)
    for attention in attentions(opened).values():
        assert attention.out is not None
        plant(attention, attention.out)  # the last head is a copy of the first, but for its biases
    wide = plain_again(opened, lean)
    opened = in_dense_form(wide, inputs_of(kind, 2))
    small, plan = exact_compress(opened, trace(opened, inputs_of(kind, 2)), inputs_of(kind, 24), effort=0.0)
    assert not [fold for fold in plan.folds if fold.group.endswith(".heads")]
    close(kind, answer(small, inputs_of(kind, 6)), answer(wide, inputs_of(kind, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_STREAM)
def test_an_exact_result_is_exported_and_loaded(kind: str, tmp_path: Path) -> None:
    exported_and_loaded(surplus, kind, tmp_path)
