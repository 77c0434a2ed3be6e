"""Outputs of every shape: their names, and the one that is judged, in words."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.units.outputs import judged_part, named_outputs


@dataclass
class Record:
    hidden: Tensor
    logits: Tensor


@dataclass
class Plain:
    count: int
    scores: Tensor


class Pair(NamedTuple):
    logits: Tensor
    aux: Tensor


class Named(NamedTuple):
    number: Tensor
    scores: Tensor


@dataclass
class Kept:
    loss: Tensor | None
    hidden: tuple[Tensor, ...]
    logits: Tensor


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda y: y, "the output"),
        (lambda y: {"aux": y + 1, "logits": y}, "'logits' of the output (dict)"),
        (lambda y: Record(y + 1, y), "'logits' of the output (Record)"),
        (lambda y: Pair(y, y + 1), "'logits' of the output (Pair)"),
        (lambda y: SimpleNamespace(aux=y + 1, logits=y), "'logits' of the output (SimpleNamespace)"),
        (lambda y: Named(torch.tensor([1]), y), "'scores' of the output (Named)"),
        (lambda y: (y, y + 1), "tensor 0 of the output (tuple), its first floating tensor"),
        (lambda y: [torch.zeros(3, dtype=torch.int64), y], "tensor 1 of the output (list)"),
        (lambda y: {"loss": None, "scores": y}, "'scores' of the output (dict)"),
        (lambda y: {"first": torch.tensor([1]), "then": (y, y + 1)}, "'then' of the output (dict)"),
        (lambda y: Plain(3, y), "'scores' of the output (Plain)"),
    ],
)
def test_the_judged_part_is_said(wrap: Any, words: str) -> None:
    y = torch.randn(3, 4)
    part, judged, _ = judged_part(wrap(y))
    assert part is y
    assert judged.startswith(words)


@pytest.mark.parametrize("answer", [{"text": "cat"}, None, (torch.tensor([1]), torch.tensor([2]))])
def test_no_scores_are_refused(answer: Any) -> None:
    with pytest.raises(ModelError, match="without a floating tensor"):
        judged_part(answer)


def test_logits_of_every_token_have_their_classes_last() -> None:
    """As those of transformers; a plain tensor (a map of one dimension) has its classes in dimension 1."""
    scores = torch.randn(2, 5, 7)
    part, judged, moved = judged_part({"logits": scores})
    assert moved
    assert torch.equal(part, scores.movedim(2, 1))
    assert judged == "'logits' of the output (dict), classes in its last dimension"
    assert judged_part(scores)[0] is scores
    assert judged_part({"scores": scores})[0] is scores
    maps = torch.randn(2, 3, 4, 4)
    assert judged_part({"logits": maps}) == (maps, "'logits' of the output (dict)", False)


def test_every_tensor_has_a_name() -> None:
    whole, floating = torch.tensor([1]), torch.tensor([0.5])
    assert list(named_outputs(Named(whole, floating))) == ["number", "scores"]
    assert list(named_outputs(Kept(None, (whole, whole), floating))) == ["hidden", "hidden_1", "logits"]
    assert list(named_outputs((floating, [whole, {"a": floating}]))) == ["output", "output_1", "output_2"]
    with pytest.raises(ModelError, match="without a tensor"):
        named_outputs({"a": None})
