"""Pictures of a capacity study against width: prunable and redundant units with their growth, and layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from compressor.report.capacity_bands import NULLS, band, doublings, finished, logarithmic, parts
from compressor.report.pictures import ACCENT, INK, framed_figure

Read = Callable[[Mapping[str, Any]], Any]
_STACKED = ("untrained", "random labels")
"""Nulls whose layers stand beside the networks'."""


@matplotlib.style.context("default")
def against_width(rungs: Sequence[Mapping[str, Any]], what: str, title: str, growth: str) -> str | None:
    """Units in all (share times width) against width, both logarithmic: bands from the least to the greatest seed.

    `what` is `prunable` or `redundant`; `growth` are growth rates g in words. None where nothing was measured.
    """
    read = _prunable if what == "prunable" else _redundant
    figure, axes = framed_figure(3.4)
    drawn = [null for null in NULLS if band(axes, _ladder(rungs, read, null), *NULLS[null], null)]
    mine = _ladder(rungs, read, None)
    if not band(axes, mine, ACCENT, "-", "trained", marker="o"):
        return None
    doublings(axes, "width")
    logarithmic(axes, title, mine)
    axes.set_title(growth, color=INK, fontsize="medium", loc="left")
    words = f"{title} against width; {growth}; beside {', '.join(drawn) or 'no null'}"
    return finished(figure, axes, f"capacity-{what}-{title}", words)


@matplotlib.style.context("default")
def layer_stack(rungs: Sequence[Mapping[str, Any]], what: str, name: str) -> str | None:
    """Redundant or prunable units of every layer, stacked, against width; those of nulls as thinner stacks beside.

    None for fewer than two layers, and where layers were not ablated alone.
    """
    stacks = {label: _stack(rungs, what, null) for label, null in [("trained", None), *((n, n) for n in _STACKED)]}
    stacks = {label: stack for label, stack in stacks.items() if stack}
    widths = sorted(stacks.get("trained", {}))
    names = list(dict.fromkeys(layer for width in widths for layer in stacks["trained"][width]))
    if len(names) < 2:
        return None
    figure, axes = framed_figure(3.4)
    for offset, (label, stack) in enumerate(stacks.items()):
        _bars(axes, stack, widths, names, offset, ACCENT if label == "trained" else NULLS[label][0])
    axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
    axes.set_xlabel("width")
    axes.set_ylabel(f"{what} by layer")
    colors = {label: ACCENT if label == "trained" else NULLS[label][0] for label in stacks}
    keys = [Patch(color=INK, alpha=_shade(place, len(names)), label=layer) for place, layer in enumerate(names)]
    keys += [Patch(color=color, label=label) for label, color in colors.items()]
    words = f"{what} of every layer against width, {name}; beside {', '.join(list(stacks)[1:]) or 'no null'}"
    return finished(figure, axes, f"layers-{what}-{name}", words, keys)


def _bars(
    axes: Axes, stack: Mapping[float, Mapping[str, Sequence[float]]], widths: Sequence[float], names: Sequence[str],
    offset: int, color: str,
) -> None:  # fmt: skip
    places = [place + (0.0 if offset == 0 else 0.2 + 0.15 * offset) for place in range(len(widths))]
    below = [0.0] * len(widths)
    for place, layer in enumerate(names):
        heights = [mean(stack.get(width, {}).get(layer) or [0.0]) for width in widths]
        thick = 0.5 if offset == 0 else 0.12
        axes.bar(places, heights, bottom=below, color=color, alpha=_shade(place, len(names)), width=thick)
        below = [low + height for low, height in zip(below, heights, strict=True)]


def _shade(place: int, count: int) -> float:
    return 1 - 0.75 * place / (count - 1)


def _stack(rungs: Sequence[Mapping[str, Any]], what: str, null: str | None) -> dict[float, dict[str, list[float]]]:
    """Width -> layer -> units of all seeds; empty where a layer has no such number."""
    found: dict[float, dict[str, list[float]]] = {}
    units = {(rung["width"], layer["name"]): layer["units"] for rung in rungs for layer in rung["measures"]["layers"]}
    for width, part in parts(rungs, null):
        rows = part["layers"] if what.startswith("redundant") else part.get("by_layer", [])
        for row in rows:
            share = row.get("r95" if what.startswith("redundant") else "prunable_mean")
            if share is not None:
                found.setdefault(width, {}).setdefault(row["name"], []).append(share * units[width, row["name"]])
    return found


def _prunable(part: Mapping[str, Any]) -> Any:
    return part["ablation"]["prunable_mean"]


def _redundant(part: Mapping[str, Any]) -> Any:
    return part["r95"]


def _ladder(rungs: Sequence[Mapping[str, Any]], read: Read, null: str | None) -> dict[float, list[float]]:
    """Width -> share times width of every seed."""
    found: dict[float, list[float]] = {}
    for width, part in parts(rungs, null):
        try:
            value = read(part)
        except KeyError:
            continue
        if value:
            found.setdefault(width, []).append(width * value)
    return found
