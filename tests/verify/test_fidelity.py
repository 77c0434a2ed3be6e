from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from compressor.errors import DataError, ModelError
from compressor.verify.accuracy import Outputs
from compressor.verify.fidelity import fidelity, output_spread, worst_class


def pair(n: int = 50, classes: int = 6, noise: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(n, classes, generator=generator)
    return first, first + noise * torch.randn(n, classes, generator=generator)


def test_figures_agree_with_numpy_and_scipy() -> None:
    first, second = pair()
    found = fidelity(first, second)
    a, b = first.double().numpy(), second.double().numpy()
    divergences = [stats.entropy(p, q) for p, q in zip(special.softmax(a, 1), special.softmax(b, 1), strict=True)]
    assert found.kl == pytest.approx(np.mean(divergences), rel=1e-9)
    assert 0 < found.agreement < 100
    assert found.agreement == pytest.approx(100 * np.mean(a.argmax(1) == b.argmax(1)))
    assert found.spread == pytest.approx(np.sqrt(a.var(0).mean()))
    assert found.max_abs_change == pytest.approx(np.abs(a - b).max(), rel=1e-6)
    assert found.max_relative_change == pytest.approx(np.abs(a - b).max() / found.spread, rel=1e-6)
    assert (found.samples, found.not_finite, found.worst_class) == (50, 0, None)


def test_chunks_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair()
    whole = fidelity(first, second)
    monkeypatch.setattr("compressor.algebra.answers._NUMBERS", 40)
    parts = fidelity(first, second)
    assert parts.kl == pytest.approx(whole.kl)
    assert (parts.agreement, parts.max_abs_change) == (pytest.approx(whole.agreement), whole.max_abs_change)
    assert parts.spread == pytest.approx(whole.spread, rel=1e-5)


def test_equal_outputs_are_equal() -> None:
    first, _ = pair()
    found = fidelity(first, first.clone())
    assert (found.agreement, found.kl, found.max_abs_change, found.max_relative_change) == (100, 0, 0, 0)


def test_a_common_shift_is_no_divergence() -> None:
    first, _ = pair()
    found = fidelity(first, first + 5)
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.max_abs_change == pytest.approx(5, rel=1e-5)


def test_the_worst_class_is_found_with_its_count() -> None:
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 6)
    right = torch.nn.functional.one_hot(labels, 4).float()
    after = right.clone()
    after[0] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # class 0 loses 1 of 10
    after[10:12] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # class 1 loses 2 of 4
    after[14] = torch.tensor([float("nan"), 0.0, 1.0, 0.0])  # class 2 loses 1 of 6: not finite is wrong
    worst = worst_class(right, after, labels)
    assert (worst.label, worst.samples, worst.drop) == (1, 4, 50.0)
    assert (worst.original, worst.compressed) == (100.0, 50.0)
    same = worst_class(right, right, labels)
    assert (same.label, same.drop, same.samples) == (0, 0.0, 10)


def test_a_class_that_gained_least_is_the_worst() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    before, after = torch.eye(3)[[1, 1, 0, 1]], torch.eye(3)[[0, 0, 1, 1]]  # class 2 has no sample
    assert (worst_class(before, after, labels).label, worst_class(before, after, labels).drop) == (1, -50.0)


def test_outputs_bring_their_labels() -> None:
    first, second = pair()
    labels = torch.arange(50) % 6
    found = fidelity(Outputs(first, labels, "the output", torch.float32), second)
    assert found.worst_class == worst_class(first, second, labels)
    with pytest.raises(DataError, match="label 6"):
        fidelity(first, second, labels + 1)


def test_outputs_that_are_not_finite_show() -> None:
    first, second = pair()
    second[7, 1] = torch.nan
    found = fidelity(first, second)
    assert found.not_finite == 1
    assert math.isinf(found.kl)
    assert math.isinf(found.max_relative_change)
    assert found.agreement <= 98
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["kl"] is None
    assert plain["max_relative_change"] is None


def test_maps_count_positions() -> None:
    first = torch.zeros(2, 3, 2, 2)
    first[:, 1] = 1
    second = first.clone()
    second[0, 2, 0, 0] = 5
    labels = torch.ones(2, 2, 2, dtype=torch.int64)
    found = fidelity(first, second, labels)
    assert found.agreement == 100 * 7 / 8
    assert found.worst_class is not None
    assert (found.worst_class.samples, found.worst_class.drop) == (8, 12.5)


def test_shapes_must_match() -> None:
    with pytest.raises(ModelError, match=r"shape \(3, 4\) \(compressed network\) and \(3, 5\)"):
        fidelity(torch.zeros(3, 5), torch.zeros(3, 4))
    with pytest.raises(ModelError):
        fidelity(torch.zeros(0, 5), torch.zeros(0, 5))


def test_spread_of_one_sample_is_its_size() -> None:
    assert output_spread(torch.tensor([[3.0, 4.0]])) == pytest.approx(math.sqrt(12.5))
    assert output_spread(torch.tensor([[3.0, 4.0], [3.0, 4.0]])) == 0
    assert fidelity(torch.ones(2, 2), torch.ones(2, 2)).max_relative_change == 0
    assert math.isinf(fidelity(torch.ones(2, 2), torch.zeros(2, 2)).max_relative_change)


def test_single_answers_without_a_second_dimension_are_those_with_one() -> None:
    first, second = pair(classes=1)
    assert fidelity(first.flatten(), second.flatten()) == fidelity(first, second)
    second[3] = math.nan
    assert fidelity(first.flatten(), second.flatten()).not_finite == 1
