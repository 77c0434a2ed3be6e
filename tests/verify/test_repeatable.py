"""Networks that answer by chance are refused, those whose answers hang on the batch are warned of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compressor
from compressor.errors import ModelError


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 4)
        self.norm = nn.BatchNorm1d(16, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.kind == "chance":
            h = F.dropout(h, 0.5)
        elif self.kind == "norm":
            h = self.norm(h)
        elif self.kind == "mean":
            h = h - h.mean(0)
        elif self.kind == "several" and len(x) == 1:
            raise ValueError("at least two")
        return self.b(h)


def compressed(kind: str) -> compressor.Result:
    torch.manual_seed(0)
    parts = [torch.randn(count, 12) for count in (200, 100, 100)]
    return compressor.compress(Net(kind), *parts, keep="params=0.9", max_drop=90, align=1)


def test_chance_is_refused() -> None:
    with pytest.raises(ModelError, match="asked again, in eval mode"):
        compressed("chance")


@pytest.mark.parametrize(
    ("kind", "words"), [("norm", "single sample"), ("mean", "its batch"), ("several", "single sample")]
)
def test_answers_that_hang_on_the_batch_are_warned_of(kind: str, words: str) -> None:
    assert [words in warning for warning in compressed(kind).record["warnings"]].count(True) == 1


def test_others_are_not() -> None:
    assert not any("batch" in warning or "single" in warning for warning in compressed("plain").record["warnings"])
