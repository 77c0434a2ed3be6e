"""Layers that only training uses are told of: nothing is known of what they read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import compressor


class WithAuxiliary(nn.Module):
    """A classifier with a second head that answers in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head, self.auxiliary = nn.Linear(6, 24), nn.Linear(24, 4), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.hidden(x))
        return self.head(x) + self.auxiliary(x) if self.training else self.head(x)


def test_a_head_of_training_mode_is_warned_of() -> None:
    torch.manual_seed(0)
    model, inputs = WithAuxiliary().eval(), torch.randn(300, 6)
    labels = model(inputs).argmax(1)
    result = compressor.compress(
        model, calibrate=(inputs, labels), keep="params=0.6", max_drop=50, align=1, device="cpu"
    )
    assert [text for text in result.record["warnings"] if text.startswith("`auxiliary`: not reached in eval mode")]
    assert result.model(inputs[:2]).shape == (2, 4)


def test_other_networks_are_not() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4)).eval(), torch.randn(300, 6)
    result = compressor.compress(
        model, calibrate=(inputs, model(inputs).argmax(1)), keep="params=0.6", max_drop=50, align=1, device="cpu"
    )
    assert not [text for text in result.record["warnings"] if "not reached" in text]
