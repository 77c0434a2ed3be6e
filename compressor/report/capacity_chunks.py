"""Pictures of chunks of the last hidden layer at the greatest width: figures of arXiv:2106.03485, with null bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
import matplotlib.style

from compressor.report.capacity_bands import NULLS, band, doublings, finished, logarithmic, parts
from compressor.report.pictures import ACCENT, INK, MUTED, framed_figure

MIDDLE = 0.95
"""Bands hold so many of all chunks of all seeds."""
_NAMES = {
    "test_error": "test error",
    "train_error": "training error",
    "r2_outside": "R² of the units outside",
    "residual_correlation_outside": "residual |correlation| outside",
}
_REFITTED = {"untrained": "untrained, head refitted", "random labels": "random labels (its own labels)"}


@matplotlib.style.context("default")
def chunk_errors_picture(
    rungs: Sequence[Mapping[str, Any]], name: str, slope: Mapping[str, Any] | None = None
) -> str | None:
    """Chunk test error against size, both logarithmic, with a line of exponent -1/2 for reference.

    `slope` is an entry of a study's `slopes`: the errors are then those above the floor that was fitted with it, and
    its line is drawn over the sizes that it was fitted to. None where there are no chunks.
    """
    floor = 0.0 if slope is None else slope["floor"]
    figure, axes = framed_figure(3.4)
    points = _by_size(rungs, None, "test_error", floor)
    if not any(value > 0 for row in points.values() for value in row):
        return None
    band(axes, _by_size(rungs, "untrained", "test_error", floor), *NULLS["untrained"], _REFITTED["untrained"], MIDDLE)
    band(axes, points, ACCENT, "-", "trained", MIDDLE, "o")
    sizes = sorted(points)
    if slope is not None:
        fitted = [slope["amplitude"] * size ** slope["exponent"] for size in slope["sizes"]]
        axes.plot(slope["sizes"], fitted, color=INK, lw=2, label=f"fitted: exponent {slope['exponent']:.2f}")
    last = max(sizes) if slope is None else slope["sizes"][-1]
    half = [mean(points[last]) * (size / last) ** -0.5 for size in sizes]
    axes.plot(sizes, half, color=MUTED, lw=1, ls=":", label="exponent -1/2")
    what = "test error" if slope is None else f"test error - {floor:.3f} (its fitted floor)"
    doublings(axes, "units of the chunk")
    logarithmic(axes, what, points)
    axes.set_ylim(0.8 * min(v for row in points.values() for v in row if v > 0), 1.2)
    return finished(figure, axes, f"chunks-{name}", f"chunk test error against chunk size, {name}")


@matplotlib.style.context("default")
def chunk_picture(rungs: Sequence[Mapping[str, Any]], name: str, quantity: str) -> str | None:
    """One of `train_error`, `r2_outside`, `residual_correlation_outside` (held out) against the size of chunks."""
    figure, axes = framed_figure(3.0)
    for null, style in NULLS.items():
        label = _REFITTED.get(null, null) if quantity == "train_error" else null
        band(axes, _by_size(rungs, null, quantity), *style, label, MIDDLE)
    if not band(axes, _by_size(rungs, None, quantity), ACCENT, "-", "trained", MIDDLE, "o"):
        return None
    chance = [part["chunks"].get("correlation_null") for _, part in parts(_widest(rungs), None)]
    if quantity == "residual_correlation_outside" and all(chance):
        axes.axhline(mean(chance), color=MUTED, lw=1, ls=":", label="independent units")
    doublings(axes, "units of the chunk")
    axes.set_ylabel(_NAMES[quantity])
    if quantity == "r2_outside":
        axes.set_ylim(-0.1, 1.05)
    if quantity == "train_error":
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(0, 1)
    return finished(figure, axes, f"{quantity}-{name}", f"{_NAMES[quantity]} against chunk size, {name}")


def _widest(rungs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    greatest = max(rung["width"] for rung in rungs)
    return [rung for rung in rungs if rung["width"] == greatest]


def _by_size(
    rungs: Sequence[Mapping[str, Any]], null: str | None, name: str, floor: float = 0.0
) -> dict[float, list[float]]:
    """Size -> what all chunks of all seeds have above `floor`, at the greatest width."""
    found: dict[float, list[float]] = {}
    for _, part in parts(_widest(rungs), null):
        chunks = part.get("chunks", {})
        for size, row in zip(chunks.get("sizes", ()), chunks.get(name, ()), strict=False):
            found.setdefault(size, []).extend(value - floor for value in row if value is not None)
    return {size: values for size, values in found.items() if values}
