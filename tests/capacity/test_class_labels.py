"""Labels of studies: taken as classes, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compressor.capacity.classes import class_numbers, with_classes
from compressor.errors import DataError
from compressor.sources.data import data_of
from compressor.training.targets import refuse_targets


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        ([-1, 1, 1], [0, 1, 1]),
        ([-1.0, 1.0], [0, 1]),
        ([-1, -1], [0, 0]),
        ([1.0, 0.0, 3.0], [1, 0, 3]),
        ([[1.0], [0.0]], [1, 0]),
        ([True, False], [1, 0]),
    ],
)
def test_labels_that_are_classes_in_another_form(given: list[Any], classes: list[int]) -> None:
    found = class_numbers(torch.tensor(given), "train data")
    assert found.dtype == torch.int64
    assert found.tolist() == classes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([0.5, 1.0], r"sample 0: got 0.5;.*regression"),
        ([-1, 0, 1], "sample 0: got -1"),
        ([1.0, float("nan")], "sample 1: got nan"),
        ([[0, 1], [1, 0]], r"shape \(2, 2\);.*argmax"),
    ],
)
def test_labels_that_are_no_classes(given: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        class_numbers(torch.tensor(given), "train data")


def test_data_of_a_study() -> None:
    inputs, signs = torch.randn(90, 4), 2.0 * (torch.arange(90) % 2) - 1
    plain = data_of((inputs, signs), None, None, seed=0)
    found = with_classes(plain)
    assert found.judge.labels is not None
    assert sorted(set(found.judge.labels.tolist())) == [0, 1]
    assert with_classes(found) is found
    refuse_targets(nn.Linear(4, 1), found.judge, torch.device("cpu"))
    with pytest.raises(DataError, match="no labels"):
        with_classes(data_of(inputs, None, None, seed=0))
    three = data_of((inputs, torch.arange(90) % 3), None, None, seed=0).judge
    with pytest.raises(DataError, match=r"label 2.*0 to 1"):
        refuse_targets(nn.Linear(4, 1), three, torch.device("cpu"))
