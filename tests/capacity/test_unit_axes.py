"""Units of convolutions in one dimension are channels, also behind activations and poolings; those of tokens stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor.capacity.axes import with_axes
from compressor.capacity.collect import collect, layers_at
from compressor.capacity.layerwise import layers_to_measure
from compressor.errors import ModelError
from compressor.sources.samples import as_samples


class Mean(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axis)


def signals() -> nn.Module:
    """Channels and positions: 3 of 10 become 5 of 8."""
    return nn.Sequential(
        nn.Conv1d(3, 5, 3),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.MaxPool1d(2),
        nn.Identity(),
        Mean(2),
        nn.Linear(5, 2),
    )


def test_an_activation_behind_a_convolution_has_its_channels() -> None:
    model, samples = signals(), as_samples(torch.randn(6, 3, 10))
    layers = layers_to_measure(model, ["0", "1", "2", "3", "4"], samples)
    found = collect(model, layers, samples)
    assert [tuple(found[name].rows.shape) for name in "01234"] == [(48, 5)] * 3 + [(24, 5)] * 2


def test_tokens_keep_their_units_in_the_last_dimension() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.PReLU(), nn.Linear(4, 6), nn.GELU(), Mean(1), nn.Linear(6, 2))
    samples = as_samples(torch.randint(9, (6, 7)))
    found = collect(model, layers_to_measure(model, ["1", "3"], samples), samples)
    assert [found[name].rows.shape[1] for name in "13"] == [4, 6]


class Moved(nn.Module):
    """Between convolution and activation stands an operation that no module does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x).transpose(1, 2)).mean(1))


def test_what_nothing_tells_is_refused() -> None:
    samples = as_samples(torch.randn(6, 3, 10))
    with pytest.raises(ModelError, match=r"'act'.*name the layer before it \('conv'"):
        with_axes(Moved(), layers_at(["act"]), samples)
