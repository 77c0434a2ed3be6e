"""Attention of decoders that read an encoder (T5, BART, Whisper, BERT): equal, planted, smaller, saved, speaking."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_nets import TWO_STREAMS, answer, exported_and_loaded, inputs_of, network
from planted_attention import heads_of, plant
from torch import Tensor, nn

from compressor.attention.known import attention_names, plain_again, reader_of
from compressor.attention.t5_form import T5Attention
from compressor.surgery.exact import exact_compress
from compressor.units.check import checked
from compressor.units.cut import cut
from compressor.units.dense import in_dense_form
from compressor.units.heads import attentions
from compressor.units.trace import trace

SPEAKING = ("T5", "Bart", "Whisper")


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", TWO_STREAMS)
def test_the_form_that_is_worked_on_is_the_same_function_and_goes_back(kind: str) -> None:
    model, inputs = network(kind), inputs_of(kind, 6)
    before = answer(model, inputs)
    opened = in_dense_form(model, inputs_of(kind, 2), normal=False)
    assert list(attentions(opened)) == attention_names(model)
    close(answer(opened, inputs), before)
    unpadded = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    close(answer(opened, unpadded), answer(model, unpadded))
    for attention in attentions(opened).values():
        for parameter in attention.parameters():
            parameter.data.mul_(1.1)
    again = plain_again(copy.deepcopy(opened), model)
    assert {name: type(m) for name, m in again.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    close(answer(again, inputs), answer(opened, inputs))
    assert not torch.equal(answer(again, inputs), before)


@pytest.mark.parametrize("kind", ["T5", "Bart", "Whisper", "Bert"])
def test_heads_and_dimensions_of_both_kinds_are_groups(kind: str) -> None:
    opened = in_dense_form(network(kind), inputs_of(kind, 2), normal=False)
    graph = checked(opened, trace(opened, inputs_of(kind, 2)), inputs_of(kind, 2))
    live = {group.name for group in graph.groups if group.frozen is None}
    assert {f"{name}.{leaf}" for name in attentions(opened) for leaf in ("heads", "q", "v")} <= live


def surplus(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With spare dimensions in each head and a spare last head: a copy of the first; where position biases tell heads
    apart (T5's own stream), one that nobody reads.
    """
    lean = network(kind, dtype)
    opened = in_dense_form(lean, inputs_of(kind, 2, dtype), normal=False)
    for name, attention in attentions(opened).items():
        reader = reader_of(opened, name)
        assert reader is not None
        plant(attention, reader)
        if isinstance(attention, T5Attention) and not attention.crosses:
            reader.weight.data.unflatten(1, (len(attention.scale), -1))[:, -1] = 0
        if attention.v.bias is None:  # no constant to fold
            v, _ = heads_of(attention.v, len(attention.scale))
            assert float(v.abs().max()) > 0
    return plain_again(opened, lean)


@pytest.mark.parametrize("kind", SPEAKING)
def test_planted_heads_and_dimensions_of_a_whole_model_go(kind: str) -> None:
    wide = surplus(kind)
    assert not attentions(wide)
    opened = in_dense_form(wide, inputs_of(kind, 2))
    small, plan = exact_compress(opened, trace(opened, inputs_of(kind, 2)), inputs_of(kind, 24), effort=0.0)
    assert plan.taken_back == ()
    gone = {fold.group: len(fold.dropped) for fold in plan.folds}
    assert gone == {f"{name}.{leaf}": 1 for name in attentions(opened) for leaf in ("heads", "q", "v")}
    fresh = {name: tensor.flip(0) for name, tensor in inputs_of(kind, 8).items()}
    close(answer(small, fresh), answer(wide, fresh))


@pytest.mark.parametrize("kind", SPEAKING)
def test_one_with_fewer_heads_and_dimensions_speaks_with_a_cache_as_without(kind: str) -> None:
    opened = in_dense_form(network(kind), inputs_of(kind, 2), normal=False)
    graph = trace(opened, inputs_of(kind, 2))
    kept = {g.name: tuple(range(1, len(g.units))) for g in graph.groups if g.frozen is None}
    small: Any = cut(opened, graph, kept)
    assert {len(attention.scale) for attention in attentions(small).values()} == {3}
    given = {name: tensor for name, tensor in inputs_of(kind, 4).items() if "decoder" not in name}
    options = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5, "output_logits": True}
    said = [
        small.generate(**given, return_dict_in_generate=True, use_cache=cached, **options) for cached in (True, False)
    ]
    assert torch.equal(said[0].sequences, said[1].sequences)
    for step, whole in zip(said[0].logits, said[1].logits, strict=True):
        torch.testing.assert_close(step, whole, rtol=0.0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPEAKING)
def test_an_exact_result_is_exported_and_loaded(kind: str, tmp_path: Path) -> None:
    exported_and_loaded(surplus, kind, tmp_path)
