"""Pictures of a capacity study as inline SVG: the papers' figures for the user's networks, with their nulls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compressor.report.pictures import ACCENT, GOOD, INK, MUTED, RULE, UNSURE, framed_figure, inline_svg

Read = Callable[[Mapping[str, Any]], Any]
_NULLS = {"untrained": (UNSURE, "--"), "white noise": (MUTED, ":"), "permuted": (MUTED, "-.")}


@matplotlib.style.context("default")
def against_width(rungs: Sequence[Mapping[str, Any]], what: str, title: str, rates: Iterable[float]) -> str | None:
    """Units in all (share times width) against width, both logarithmic, with every seed and the nulls.

    `what` is `prunable` or `redundant`; `rates` are growth rates g to write beside. None where nothing was measured.
    """
    read = _prunable if what == "prunable" else _redundant
    figure, axes = framed_figure(3.4)
    drawn = _ladder(axes, rungs, read, None, ACCENT, "-", "trained")
    for null, (color, line) in _NULLS.items():
        _ladder(axes, rungs, read, null, color, line, null)
    if not drawn:
        return None
    _log(axes, "width", title)
    words = ", ".join(f"g = {g:.2f}" for g in rates)
    axes.text(0.03, 0.94, words, transform=axes.transAxes, color=INK, va="top")
    return _finished(figure, axes, f"capacity-{what}", f"{title} against width; {words}")


@matplotlib.style.context("default")
def chunk_errors_picture(
    rungs: Sequence[Mapping[str, Any]], name: str, slope: Mapping[str, Any] | None = None
) -> str | None:
    """Mean chunk test error against size at the greatest width, with the fit above w* and -1/2 as reference.

    Beside it the untrained features with a head refitted to them. `slope` is an entry of a study's `slopes`; both
    curves end at its floor.
    """
    widest = _widest(rungs)
    figure, axes = framed_figure(3.4)
    points = _by_size(widest, None, "test_error")
    if not points:
        return None
    _points(axes, points, ACCENT, "-", "trained, test")
    _points(axes, _by_size(widest, None, "train_error"), GOOD, "-", "trained, training data")
    _points(axes, _by_size(widest, "untrained", "test_error"), UNSURE, "--", "untrained, head refitted")
    floor = 0.0 if slope is None else slope["floor"]
    if slope is not None:
        sizes = slope["sizes"]
        fitted = [floor + slope["amplitude"] * size ** slope["exponent"] for size in sizes]
        axes.plot(sizes, fitted, color=INK, lw=1.5, label=f"fit: exponent {slope['exponent']:.2f}, floor {floor:.3f}")
    last = max(points) if slope is None else slope["sizes"][-1]
    start = max(points[last] - floor, 1e-6) if points[last] > 0 else max(points.values())
    half = [floor + start * (size / last) ** -0.5 for size in sorted(points)]
    axes.plot(sorted(points), half, color=MUTED, lw=1, ls=":", label="exponent -1/2")
    _log(axes, "units of the chunk", "error")
    return _finished(figure, axes, f"chunks-{name}", f"chunk error against chunk size, {name}")


@matplotlib.style.context("default")
def layer_stack(rungs: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """Redundant directions (R95 times units) of every layer, stacked, against width. None for fewer than two layers."""
    stacks: dict[float, dict[str, list[float]]] = {}
    for rung in rungs:
        for layer in rung["measures"]["layers"]:
            if "r95" in layer:
                found = stacks.setdefault(rung["width"], {})
                found.setdefault(layer["name"], []).append(layer["r95"] * layer["units"])
    widths = sorted(stacks)
    names = list(dict.fromkeys(layer for width in widths for layer in stacks[width]))
    if len(names) < 2:
        return None
    figure, axes = framed_figure(3.4)
    below = [0.0] * len(widths)
    for place, layer in enumerate(names):
        heights = [mean(stacks[width].get(layer, [0.0])) for width in widths]
        shade = 1 - 0.75 * place / (len(names) - 1)
        axes.bar(range(len(widths)), heights, bottom=below, color=ACCENT, alpha=shade, label=layer, width=0.7)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
    axes.set_xlabel("width")
    axes.set_ylabel("redundant directions by layer")
    return _finished(figure, axes, f"layers-{name}", f"redundant directions of every layer against width, {name}")


@matplotlib.style.context("default")
def reconstruction_picture(rungs: Sequence[Mapping[str, Any]], name: str, quantity: str) -> str | None:
    """Held-out R² (`r2_outside`) or mean residual |correlation| of the units outside a chunk, against its size."""
    widest = _widest(rungs)
    points = _by_size(widest, None, quantity)
    if not points:
        return None
    figure, axes = framed_figure(3.0)
    _points(axes, points, ACCENT, "-", "trained")
    for null in ("untrained", "permuted"):
        _points(axes, _by_size(widest, null, quantity), *_NULLS[null], null)
    floor = [r["measures"]["chunks"].get("correlation_null") for r in widest]
    if quantity == "residual_correlation_outside" and all(floor):
        axes.axhline(mean(floor), color=MUTED, lw=1, ls=":", label="independent units")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("units of the chunk")
    title = "R² of the units outside" if quantity == "r2_outside" else "residual |correlation| outside"
    axes.set_ylabel(title)
    if quantity == "r2_outside":
        axes.set_ylim(-0.1, 1.05)
    return _finished(figure, axes, f"{quantity}-{name}", f"{title} against chunk size, {name}")


def _prunable(part: Mapping[str, Any]) -> Any:
    return part["ablation"]["prunable_mean"]


def _redundant(part: Mapping[str, Any]) -> Any:
    return part["r95"]


def _ladder(axes: Axes, rungs: Any, read: Read, null: str | None, color: str, line: str, label: str) -> bool:
    """One line through the means of the seeds, a dot for each seed. False where nothing was measured."""
    points: dict[float, list[float]] = {}
    for rung in rungs:
        part = rung["measures"] if null is None else rung["nulls"].get(null, {})
        try:
            value = read(part)
        except KeyError:
            continue
        if value:
            points.setdefault(rung["width"], []).append(rung["width"] * value)
    if not points:
        return False
    widths = sorted(points)
    axes.plot(widths, [mean(points[w]) for w in widths], color=color, ls=line, lw=1.3, label=label)
    seeds = [(w, v) for w in widths for v in points[w]]
    axes.plot(*zip(*seeds, strict=True), "o", color=color, markersize=3)
    return True


def _widest(rungs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    greatest = max(rung["width"] for rung in rungs)
    return [rung for rung in rungs if rung["width"] == greatest]


def _by_size(rungs: Sequence[Mapping[str, Any]], null: str | None, name: str) -> dict[int, float]:
    """Size -> mean over chunks and seeds."""
    found: dict[int, list[float]] = {}
    for rung in rungs:
        chunks = (rung["measures"] if null is None else rung["nulls"].get(null, {})).get("chunks", {})
        for size, row in zip(chunks.get("sizes", ()), chunks.get(name, ()), strict=False):
            found.setdefault(size, []).extend(value for value in row if value is not None)
    return {size: mean(values) for size, values in found.items() if values}


def _points(axes: Axes, points: Mapping[int, float], color: str, line: str, label: str) -> None:
    sizes = sorted(points)
    if sizes:
        axes.plot(sizes, [points[s] for s in sizes], "o", ls=line, color=color, lw=1.3, markersize=3, label=label)


def _log(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _finished(figure: Figure, axes: Axes, name: str, words: str) -> str:
    axes.grid(color=RULE, linewidth=0.8)
    axes.yaxis.label.set_color(INK)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    return inline_svg(figure, "".join(c if c.isalnum() else "-" for c in name), words)
