"""`verify` ends as the worst of its verdicts does."""

from __future__ import annotations

import pytest

from compressor.records import Verdict, VerdictValue
from compressor.verification import Verification


def verdict(value: VerdictValue) -> Verdict:
    return Verdict(value, "accuracy", 90.0, 90.0, 0.0, (-1.0, 1.0), 0.5, 0.95, 10)


@pytest.mark.parametrize(
    ("network", "onnx", "int8", "worst"),
    [
        ("undecided", "failed", "passed", "failed"),
        ("undecided", "passed", "failed", "failed"),
        ("passed", "undecided", "failed", "failed"),
        ("passed", "undecided", "passed", "undecided"),
        ("failed", "undecided", "undecided", "failed"),
        ("passed", "passed", "passed", "passed"),
    ],
)
def test_a_failed_file_is_not_hidden_by_an_undecided_one(
    network: VerdictValue, onnx: VerdictValue, int8: VerdictValue, worst: VerdictValue
) -> None:
    found = Verification(verdict(network), verdict(onnx), 10, variants={"model.int8.onnx": verdict(int8)})
    assert found.worst.value == worst


def test_among_equals_the_network_speaks() -> None:
    found = Verification(verdict("undecided"), verdict("undecided"), 10)
    assert found.worst is found.verdict
