from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.algebra import answers
from compressor.algebra.answers import LEFT_OUT, VOID, answered, counted, hits


def maps(classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, classes, 7, generator=generator), torch.randint(classes, (12, 7), generator=generator)


def test_positions_that_are_left_out_count_for_nothing() -> None:
    scores, labels = maps()
    labels[0, :3], labels[1, 6], labels[2, 2] = LEFT_OUT, VOID, LEFT_OUT
    found = hits(scores, labels)
    for place, (score, truth) in enumerate(zip(scores.numpy(), labels.numpy(), strict=True)):
        real = (truth != LEFT_OUT) & (truth != VOID)
        assert found[place] == pytest.approx(np.mean(score.argmax(0)[real] == truth[real]))


def test_255_is_a_class_where_there_are_so_many() -> None:
    labels = torch.tensor([[255, 3]])
    assert counted(labels, 255).tolist() == [[False, True]]
    assert counted(labels, 256).tolist() == [[True, True]]


def test_labels_of_whole_samples_always_count() -> None:
    assert counted(torch.tensor([LEFT_OUT, VOID]), 10).tolist() == [True, True]


def test_chunks_do_not_change_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = maps()
    scores[3, 1, 2], scores[4, 0, 0] = float("nan"), float("inf")
    whole, right = answered(scores), hits(scores, labels)
    monkeypatch.setattr(answers, "_NUMBERS", 40)
    parts = answered(scores)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    assert (~whole[1]).nonzero().tolist() == [[3, 2], [4, 0]]
    assert torch.equal(right, hits(scores, labels))
