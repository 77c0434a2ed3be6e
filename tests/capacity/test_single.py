"""The measures of one network by itself, as `compressor analyze` shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import Terminal
from torch import nn

import compressor
from compressor.capacity.single import measured_layers
from compressor.report.html import render_html
from compressor.sources.samples import as_samples
from compressor.stages import find_units


def network(width: int = 24) -> nn.Sequential:
    """Half of the second layer's units are copies of the other half; one unit of the first layer is dead."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    half = width // 2
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, -1.0
        model[2].weight[half:], model[2].bias[half:] = model[2].weight[:half], model[2].bias[:half]
        model[4].bias -= model(inputs()).mean(0)  # no class is preferred
    return model


def inputs(count: int = 600) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def test_every_layer_has_its_measures_beside_nulls() -> None:
    model = network()
    samples = as_samples((inputs(), model(inputs()).argmax(1).detach()))
    found = measured_layers(model, find_units(model, samples, 0), samples)
    first, second = found["layers"]
    assert (first["units"], first["dead"], second["dead"]) == (24, 1, second["dead"])
    assert second["similar"] > first["similar"] + 0.9
    assert second["r95"] >= 0.5 > second["nulls"]["white noise"]["r95"]
    assert set(second["nulls"]) == {"white noise", "permuted", "untrained"}
    assert second["nulls"]["untrained"]["similar"] < second["similar"]  # copies are drawn apart
    assert 0 <= second["prunable"] <= 1
    last = found["last_hidden"]
    assert last["sizes"] == [1, 3, 6, 12, 24]
    assert last["error"][-1] == 0  # the labels are the network's own answers
    assert last["error"][0] > 0.2
    assert last["r2_outside"][3] > last["r2_outside"][0]


def test_what_cannot_be_measured_says_why() -> None:
    model = network(64)
    samples = as_samples(inputs(100))  # fewer than two for each unit, and no labels
    found = measured_layers(model, find_units(model, samples, 0), samples)
    assert all("samples for 64 units" in layer["refused"] for layer in found["layers"])
    assert "refused" in found["last_hidden"]
    images = as_samples(torch.randn(40, 1, 6, 6))
    frozen = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(2))  # nothing but the output
    assert measured_layers(frozen, find_units(frozen, images, 0), images)["layers"] == []


def test_the_python_call_and_the_page_have_them() -> None:
    model = network()
    record = compressor.analyze(model, (inputs(1500), model(inputs(1500)).argmax(1).detach()))
    assert len(record["layers"]) == 2
    assert record["seconds"]["layers"] > 0
    page = render_html(record)
    assert "R95 untrained" in page
    assert "units determine the rest" in page or "no random part" in page


def test_the_terminal_shows_them(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    )
    asked = ("analyze", f"{tmp_path / 'net.py'}:net", "--data", "digits", "--out", tmp_path / "out")
    assert terminal(*asked) == 0
    assert "Layers" in terminal.out
    assert "Last hidden layer" in terminal.out
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    (layer,) = record["layers"]
    assert layer["units"] == 16
    assert layer["nulls"]["white noise"]["r95"] == pytest.approx(0.125, abs=0.07)
