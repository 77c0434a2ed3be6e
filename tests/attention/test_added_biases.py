"""Attention whose logits have something added that is made elsewhere for all heads: position biases and distances."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from attention_nets import ONE_STREAM, answer, inputs_of, network
from planted_attention import plant
from torch import Tensor, nn

import compressor
from compressor.attention.known import attention_names, plain_again, reader_of
from compressor.export.onnx import export_onnx
from compressor.surgery.exact import exact_compress
from compressor.units.check import checked
from compressor.units.cut import cut
from compressor.units.dense import in_dense_form
from compressor.units.heads import attentions
from compressor.units.trace import trace


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ONE_STREAM)
def test_the_form_that_is_worked_on_is_the_same_function_and_goes_back(kind: str) -> None:
    model, inputs = network(kind), inputs_of(kind, 6)
    before = answer(model, inputs)
    opened = in_dense_form(model, inputs_of(kind, 2), normal=False)
    assert list(attentions(opened)) == attention_names(model)
    assert len(attentions(opened)) == 2
    close(answer(opened, inputs), before)
    for attention in attentions(opened).values():
        for parameter in attention.parameters():
            parameter.data.mul_(1.1)
    again = plain_again(copy.deepcopy(opened), model)
    assert {name: type(m) for name, m in again.named_modules()} == {n: type(m) for n, m in model.named_modules()}
    close(answer(again, inputs), answer(opened, inputs))
    assert not torch.equal(answer(again, inputs), before)


@pytest.mark.parametrize("kind", ONE_STREAM)
def test_heads_that_stay_keep_their_own_biases(kind: str) -> None:
    """Another head goes in each layer: what the others add is theirs."""
    opened = in_dense_form(network(kind), inputs_of(kind, 2), normal=False)
    graph = checked(opened, trace(opened, inputs_of(kind, 2)), inputs_of(kind, 2))
    kept = {}
    for layer, (name, attention) in enumerate(attentions(opened).items()):
        kept[f"{name}.heads"] = tuple(head for head in range(4) if head != layer)
        reader = reader_of(opened, name)
        assert reader is not None
        reader.weight.data.unflatten(1, (len(attention.scale), -1))[:, layer] = 0
    assert {group.name for group in graph.groups if group.frozen is None} >= set(kept)
    small = cut(opened, graph, kept)
    close(answer(small, inputs_of(kind, 6)), answer(opened, inputs_of(kind, 6)))


def surplus(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With spare dimensions in each head and a last head that nobody reads."""
    lean = network(kind, dtype)
    opened = in_dense_form(lean, inputs_of(kind, 2, dtype), normal=False)
    for name, attention in attentions(opened).items():
        reader = reader_of(opened, name)
        assert reader is not None
        plant(attention, reader)
        reader.weight.data.unflatten(1, (len(attention.scale), -1))[:, -1] = 0
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
    close(answer(small, fresh), answer(wide, fresh))


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
    close(answer(small, inputs_of(kind, 6)), answer(wide, inputs_of(kind, 6)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_STREAM)
def test_an_exact_result_is_exported_and_loaded(kind: str, tmp_path: Path) -> None:
    model, inputs = surplus(kind, torch.float32), inputs_of(kind, 32, torch.float32)
    result = compressor.compress(model, (inputs, torch.zeros(32, dtype=torch.long)), exact=True)
    assert {len(attention.scale) for attention in attentions(result.model).values()} == {3}
    made = export_onnx(result.model, inputs, tmp_path / "model.onnx")
    assert (made.parity.holds, made.parity.signal) == (True, True)
    result.save(tmp_path / "small", onnx=False)
    loaded = compressor.load(tmp_path / "small", factory=lambda: surplus(kind, torch.float32))
    assert torch.equal(answer(loaded, inputs), answer(result.model, inputs))
