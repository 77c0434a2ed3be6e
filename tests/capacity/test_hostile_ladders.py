"""Ladders whose rungs would be counted twice, or share a file, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from compressor.capacity.engines import _loaded
from compressor.errors import DataError
from compressor.recipe import CapacitySection


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": (0, 1, 0)}, "seeds that differ"),
        ({"widths": (1.0, 2.0000001, 2.0000002)}, "first 6 digits"),
        ({"widths": (1_000_000, 1_000_001)}, "first 6 digits"),
    ],
)
def test_rungs_that_are_not_different_are_refused(wrong: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CapacitySection.model_validate({"widths": (8, 16), **wrong})


def test_rungs_that_differ_are_taken() -> None:
    assert CapacitySection(widths=(0.25, 0.5), seeds=(2, 0)).seeds == (2, 0)


@pytest.mark.parametrize("labels", [torch.tensor([-1, 1, 1]), torch.eye(3), torch.tensor([0.0, 1.0, 1.0])])
def test_labels_that_are_no_class_numbers_are_refused(labels: torch.Tensor, tmp_path: Path) -> None:
    torch.save(labels, tmp_path / "labels.pt")
    code = "import torch\ndef make():\n    return torch.randn(30, 4), torch.load('{}').repeat(10, *[1] * {})\n"
    (tmp_path / "data.py").write_text(code.format(tmp_path / "labels.pt", labels.dim() - 1))
    with pytest.raises(DataError, match=r"expected one class number for each sample, from 0 on.*labels\.argmax"):
        _loaded("data.py:make", tmp_path)
