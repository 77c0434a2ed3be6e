"""Ladders whose rungs would be counted twice, or share a file, are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compressor.sections import CapacitySection


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
