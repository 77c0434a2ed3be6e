"""Single answers: log odds or probabilities."""

from __future__ import annotations

import pytest
import torch

from compressor.algebra.probabilities import FEWEST, log_odds, single_probabilities, two_classes


def odds(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 2, 2)])
def test_probabilities_are_told_from_log_odds(shape: tuple[int, ...]) -> None:
    answers = odds(64).reshape(shape)
    assert not single_probabilities(answers)
    assert single_probabilities(answers.sigmoid())
    assert not single_probabilities(answers.sigmoid()[: FEWEST - 1])
    assert not single_probabilities(torch.cat([answers, answers], 1).sigmoid() if answers.dim() > 1 else answers)


def test_both_ways_of_answering_are_the_same_two_classes() -> None:
    scores, same = two_classes(odds()), two_classes(odds().sigmoid())
    assert torch.allclose(scores, same, atol=1e-5)
    assert 0 < int(scores.argmax(1).sum()) < 40
    assert torch.isfinite(log_odds(torch.tensor([0.0, 0.5, 1.0]))).all()
