"""What `inspect` says about a model: coverage first, then groups, as plain data."""

from __future__ import annotations

import json

import torch
from torch import nn

from compressor.units.inspect import coverage, describe
from compressor.units.trace import trace


def described() -> dict[str, object]:
    norm, mixing = nn.BatchNorm2d(8), nn.GroupNorm(1, 8)
    layers = nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 1), mixing, nn.Conv2d(8, 2, 1)
    return describe(trace(nn.Sequential(*layers), torch.randn(2, 3, 8, 8)))


def test_coverage_comes_first_and_names_reasons() -> None:
    assert described()["summary"] == "2 of 3 layers covered; 1 frozen: norm mixes units (GroupNorm)"


def test_groups_are_plain_data() -> None:
    told = described()
    assert json.loads(json.dumps(told)) == told
    assert next(iter(told)) == "summary"
    first, second, last = told["groups"]  # type: ignore[misc]
    assert first == {
        "name": "0",
        "units": 8,
        "producers": ["0"],
        "carriers": ["1"],
        "consumers": ["3"],
        "frozen": None,
    }
    assert second["frozen"] == "norm mixes units (GroupNorm)"
    assert last["frozen"] == "model output"
    assert told["units"] == {"all": 18, "live": 8, "frozen": 10}


def test_full_coverage_has_no_reasons() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    assert coverage(graph) == "2 of 2 layers covered"
