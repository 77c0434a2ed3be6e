"""Pictures of a capacity study: nulls as bands, layers as stacks, nothing where nothing was measured."""

from __future__ import annotations

import re
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from compressor.report.capacity_bands import band
from compressor.report.capacity_chunks import chunk_errors_picture, chunk_picture
from compressor.report.capacity_pictures import against_width, layer_stack

SIZES = [1, 2, 4, 8]


def part(share: float, error: float) -> dict[str, Any]:
    rows = [[error / size, 0.9 * error / size] for size in SIZES]
    layers = [{"name": name, "units": 8, "r95": share} for name in ("first", "second")]
    alone = [{"name": name, "prunable_mean": share} for name in ("first", "second")]
    chunks = {"sizes": SIZES, "test_error": rows, "train_error": rows, "r2_outside": [*rows[:3], [None, None]]}
    ablation = {"prunable_mean": share}
    return {"r95": share, "ablation": ablation, "layers": layers, "by_layer": alone, "chunks": chunks}


def rungs(*nulls: str) -> list[dict[str, Any]]:
    found = []
    for width in (4, 8):
        for seed in (0, 1):
            beside = {name: part(0.2 + 0.05 * seed, 0.9) for name in nulls}
            found.append({"width": width, "seed": seed, "measures": part(0.5 + 0.1 * seed, 0.8), "nulls": beside})
    return found


def spoken(svg: str | None) -> list[str]:
    assert svg is not None
    return re.findall(r">([^<>]+)</text>", svg)


def test_a_band_goes_from_the_least_to_the_greatest_value() -> None:
    with matplotlib.style.context("default"):
        axes = Figure().subplots()
        assert band(axes, {1: [1.0, 3.0], 2: [2.0, 6.0]}, "#010101", "-", "null")
        (area,) = axes.collections
        corners = area.get_paths()[0].vertices
        assert (float(np.min(corners[:, 1])), float(np.max(corners[:, 1]))) == (1.0, 6.0)
        assert axes.lines[0].get_ydata().tolist() == [2.0, 4.0]
        assert band(axes, {1: list(range(101))}, "#010101", "-", "middle", share=0.9)
        corners = axes.collections[1].get_paths()[0].vertices
        assert (float(np.min(corners[:, 1])), float(np.max(corners[:, 1]))) == pytest.approx((5, 95))
        assert not band(axes, {1: []}, "#010101", "-", "nothing")


@pytest.mark.parametrize("what", ["prunable", "redundant"])
def test_every_null_that_was_measured_stands_beside_the_ladder(what: str) -> None:
    svg = against_width(rungs("untrained", "random labels"), what, "units", "g = 2.00")
    assert {"untrained", "random labels", "trained", "g = 2.00"} <= set(spoken(svg))
    assert "white noise" not in spoken(svg)
    assert against_width([], what, "units", "") is None


@pytest.mark.parametrize("what", ["prunable units", "redundant directions"])
def test_layers_are_stacked_beside_those_of_nulls(what: str) -> None:
    assert {"first", "second", "trained", "untrained"} <= set(spoken(layer_stack(rungs("untrained"), what, "base")))
    alone = [{**rung, "measures": {**rung["measures"], "by_layer": [], "layers": []}} for rung in rungs()]
    assert layer_stack(alone, what, "base") is None


def test_chunks_have_their_fit_their_reference_and_their_nulls() -> None:
    slope = {"exponent": -0.9, "floor": 0.01, "amplitude": 0.8, "sizes": [2, 4, 8]}
    svg = chunk_errors_picture(rungs("untrained"), "base", slope)
    words = spoken(svg)
    assert {"fitted: exponent -0.90", "exponent -1/2", "untrained, head refitted", "trained"} <= set(words)
    assert any("its fitted floor" in word for word in words)
    assert {"untrained", "permuted"} <= set(spoken(chunk_picture(rungs("untrained", "permuted"), "b", "r2_outside")))
    assert "random labels (its own labels)" in spoken(chunk_picture(rungs("random labels"), "b", "train_error"))
    nothing = [{**rung, "measures": {**rung["measures"], "chunks": {"refused": "few samples"}}} for rung in rungs()]
    assert chunk_errors_picture(nothing, "base") is None
    assert chunk_picture(nothing, "base", "r2_outside") is None
