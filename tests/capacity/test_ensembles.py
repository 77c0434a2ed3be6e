"""Networks taken together, from the outputs that every rung leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.capacity.ensembles import ensembles
from compressor.capacity.rung import keep_outputs
from compressor.sources.samples import as_samples


def single(sign: float, sigmoid: bool) -> nn.Sequential:
    """One answer, right for every sample (or wrong): the log odds of the second class, or its probability."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, sign)
    return nn.Sequential(layer, nn.Sigmoid()) if sigmoid else nn.Sequential(layer)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_single_answers_are_two_classes(tmp_path: Path, sigmoid: bool) -> None:
    x = torch.linspace(-2, 2, 40)[:, None]
    samples = as_samples((x, (x[:, 0] > 0).long()))
    rungs: list[dict[str, Any]] = [
        {"setting": "s", "width": 1.0, "seed": seed, "measures": {"chunks": {}}} for seed in (0, 1)
    ]
    names = {("s", 1.0, seed): tmp_path / f"{seed}.safetensors" for seed in (0, 1)}
    for seed, sign in enumerate((3.0, -1.0)):
        keep_outputs(single(sign, sigmoid), samples, names["s", 1.0, seed])
    (found,) = ensembles(rungs, names)
    assert found["errors"] == {"2": [0.0, 0.0]}
    assert found["variance"][0] > 0.1
