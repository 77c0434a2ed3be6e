"""The papers' networks: published sizes, every layer named for measuring, all code paths at tiny size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.capacity.collect import collect, layers_at
from compressor.sources.samples import as_samples

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "recipes" / "capacity"))

import families

IMAGE = (3, 32, 32)
TINY: dict[str, tuple[dict[str, Any], tuple[int, ...], list[int]]] = {
    "mlp": ({"width": 8, "inputs": 12}, (12,), [8, 8]),
    "shallow": ({"width": 8, "dimension": 10}, (10,), [8]),
    "parity_mlp": ({"width": 8}, (10,), [8] * 5),
    "alexnet": ({"width": 1 / 16}, IMAGE, [6, 16, 24, 12]),
    "resnet56": ({"width": 0.25, "blocks": 1}, IMAGE, [4, 4, 8, 16]),
    "wrn28": ({"width": 16, "blocks": 1}, IMAGE, [16]),
    "densenet40": ({"width": 8, "layers": 1}, IMAGE, [9]),
    "resnet18": ({"width": 1 / 16, "classes": 10}, IMAGE, [4, 4, 8, 16, 32]),
    "resnet50": ({"width": 1 / 16, "classes": 10}, IMAGE, [4, 16, 32, 64, 128]),
}


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_parameters_are_the_published_ones() -> None:
    assert [count(families.alexnet(w)) for w in (0.25, 0.5, 1)] == [438_746, 1_749_930, 6_989_642]
    assert [count(families.resnet56(w)) for w in (0.25, 0.5, 1)] == [54_518, 215_362, 856_058]
    assert [count(families.shallow(w)) for w in (32, 512)] == [418, 6_658]
    assert count(families.shallow(32, 10_000)) == 320_098
    assert [families.densenet40(c).head.in_features for c in (8, 16)] == [44, 88]


@pytest.mark.parametrize("name", TINY)
def test_every_tap_grows_with_the_width(name: str) -> None:
    arguments, shape, units = TINY[name]
    model = getattr(families, name)(**arguments).eval()
    samples = as_samples((torch.randn(4, *shape), torch.zeros(4, dtype=torch.int64)))
    found = collect(model, layers_at(model.taps), samples, max_rows=64)
    assert [layer.rows.shape[1] for layer in found.values()] == units
    wider = getattr(families, name)(**{**arguments, "width": 2 * arguments["width"]})
    assert count(wider) > 1.5 * count(model)
    model.train()(torch.randn(4, *shape)).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_teacher_is_one_and_the_same() -> None:
    one, other = families.teacher(10, 50, 200), families.teacher(10, 50, 200)
    assert torch.equal(one["judge"][0], other["judge"][0])  # type: ignore[index]
    inputs, labels = families.teacher(10, 50, 2000)["judge"]  # type: ignore[misc]
    assert inputs.shape == (2000, 10)
    assert 0.1 < labels.double().mean() < 0.9  # not balanced by construction, but both classes are there


def test_weights_of_the_students_have_the_published_spread() -> None:
    model = families.shallow(512, 10, spread=10.0)
    assert float(model.layers[0].weight.std()) == pytest.approx(1e-2 * 0.88, rel=0.1)  # cut at two deviations
    assert float(model.head.weight.std()) == pytest.approx(1e-1 * 0.88, rel=0.1)
    assert float(model.head.bias.abs().max()) == 0
