"""What every picture of a capacity study shares: bands over seeds or trials, nulls in colours of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from compressor.report.pictures import BAD, INK, MUTED, RULE, UNSURE, inline_svg

NULLS = {
    "untrained": (UNSURE, "--"),
    "random labels": (BAD, "-."),
    "white noise": (MUTED, ":"),
    "permuted": (INK, ":"),
}
"""Null -> its colour and line."""
Values = Mapping[float, Sequence[float]]
"""Place on the x axis -> the values of all seeds, or of all trials of all seeds, there."""


def parts(rungs: Sequence[Mapping[str, Any]], null: str | None) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """(width, numbers) of the networks, or of a null where it was measured."""
    for rung in rungs:
        part = rung["measures"] if null is None else rung["nulls"].get(null)
        if part is not None:
            yield rung["width"], part


def band(axes: Axes, values: Values, color: str, line: str, label: str, share: float = 1.0, marker: str = "") -> bool:
    """The mean as a line in the band of the middle `share` of the values (1: least to greatest).

    False where there is nothing to draw.
    """
    places = sorted(place for place in values if values[place])
    if not places:
        return False
    tails = (1 - share) / 2
    low, high = (np.array([np.quantile(values[place], q) for place in places]) for q in (tails, 1 - tails))
    axes.fill_between(places, low, high, color=color, alpha=0.22, linewidth=0)
    centre = [mean(values[place]) for place in places]
    axes.plot(places, centre, color=color, ls=line, lw=1.3, marker=marker, markersize=3, label=label)
    return True


def doublings(axes: Axes, label: str) -> None:
    """The horizontal axis in doublings, with plain numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(label)


def logarithmic(axes: Axes, label: str, values: Values) -> None:
    """The vertical axis logarithmic around these values and what is drawn in their range, with plain numbers."""
    positive = [value for row in values.values() for value in row if value > 0]
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel(label)
    if not positive:
        return
    low, high = min(positive), max(positive)
    wide = high > 100 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def finished(figure: Figure, axes: Axes, name: str, words: str, keys: Sequence[Any] | None = None) -> str:
    """Grid, legend (of `keys`, else of what has a label), and the figure as inline SVG; `words` are read out."""
    axes.grid(color=RULE, linewidth=0.8)
    axes.yaxis.label.set_color(INK)
    handles = {} if keys is None else {"handles": keys}
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, **handles)
    return inline_svg(figure, "".join(c if c.isalnum() else "-" for c in name), words)
