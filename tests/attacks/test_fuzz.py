"""Parsers on inputs that are nearly right; many more in `recipes/trust.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "report")]

from parsers import PARSERS, fuzz  # noqa: E402


@pytest.mark.parametrize("name", PARSERS)
def test_a_value_or_an_error_of_ours(name: str) -> None:
    found = fuzz(name, 60)
    assert found["inputs"] >= 60
    assert found["refused"] > 0
