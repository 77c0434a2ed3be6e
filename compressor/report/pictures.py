"""Pictures of a record as inline SVG: same record, same bytes; colours follow the page's theme."""

from __future__ import annotations

import io
import math
import re

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, SymmetricalLogLocator

from compressor.report.frontier import MEASURED, FrontierRecord
from compressor.report.record import Ablation, Candidate, Record, VerdictPart
from compressor.report.words import number, outcome, points

THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--accent)",
    "#050505": "var(--good)",
    "#060606": "var(--bad)",
    "#070707": "var(--unsure)",
}
"""Colours that stand for one of the page's, so that a picture is readable in light and dark."""

INK, MUTED, RULE, ACCENT, GOOD, BAD, UNSURE = THEME
VALUES = {"passed": GOOD, "failed": BAD, "undecided": UNSURE}
MARKS = {"passed": "o", "failed": "X", "undecided": "D"}

_WIDE = 4.6


@matplotlib.style.context("default")
def verdict_picture(verdict: VerdictPart) -> str:
    """The interval of the difference against the allowed drop."""
    (low, high), allowed = verdict.interval, -verdict.allowed
    left, right = min(low, allowed, 0.0), max(high, allowed, 0.0)
    margin = 0.12 * (right - left) or 1.0
    figure, axes = framed_figure(1.15)
    axes.set_xlim(left - 2 * margin, right + margin)
    axes.set_ylim(-1, 1)
    axes.axvspan(left - 2 * margin, allowed, color=BAD, alpha=0.13, linewidth=0)
    axes.axvline(allowed, color=BAD, linewidth=1.2, linestyle="--")
    axes.axvline(0, color=MUTED, linewidth=1)
    color = VALUES[verdict.value]
    axes.plot([low, high], [0, 0], color=color, linewidth=5, solid_capstyle="butt", alpha=0.55)
    axes.plot([verdict.difference], [0], marker=MARKS[verdict.value], color=color, markersize=9)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference to the original, percentage points")
    words = f"Difference {points(verdict.difference)} points, interval {points(low)} to {points(high)}"
    return inline_svg(figure, "verdict", f"{words}, allowed {points(allowed)}: {verdict.value}")


@matplotlib.style.context("default")
def search_picture(record: Record) -> str | None:
    """Size against difference on tune and judge data; None where nothing was searched.

    Points far below the allowed drop are shown as triangles at the lower edge.
    """
    measure = "macs" if str(record.options.get("keep") or "").startswith("macs") else "params"
    tuned = [(100 * getattr(c, measure), c.tune.change, c) for c in record.search if c.tune]
    points_ = [(size, change, c) for size, change, c in tuned if change is not None]
    shown = sorted(points_, key=lambda point: point[:2])
    judged = [(100 * getattr(c, measure), c.judged, c) for c in record.search if c.judged]
    if not shown and not judged:
        return None
    allowed = record.verdict.allowed if record.verdict else None
    floor = -max(4 * (allowed or 0.0), 2.0)
    figure, axes = framed_figure(3.5)
    _tune_points(axes, shown, floor)
    _judge_points(axes, judged, floor, outcome(record) == "passed")
    if allowed is not None:
        axes.axhline(-allowed, color=BAD, linewidth=1.2, linestyle="--", label="allowed drop")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    _frame_search(axes, shown, judged, floor)
    axes.set_xlabel("parameters kept, %" if measure == "params" else "MACs kept, %")
    axes.set_ylabel("difference, points")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    what = f"{len(shown)} candidates on tune data, {len(judged)} judged"
    return inline_svg(
        figure, "search", f"Size and difference of the candidates: {what}; the table below has the numbers"
    )


@matplotlib.style.context("default")
def ablation_picture(ablation: Ablation | None) -> str | None:
    """Predicted against measured loss of single units; None where none was tried."""
    if ablation is None or not ablation.tried:
        return None
    figure, axes = framed_figure(3.1)
    values = [value for one in ablation.tried for value in (one.predicted, one.measured)]
    for kind, color, mark in (("removable", ACCENT, "o"), ("other", UNSURE, "D")):
        shown = [one for one in ablation.tried if (one.kind == "removable") == (kind == "removable")]
        if shown:
            places = [one.predicted for one in shown], [one.measured for one in shown]
            axes.plot(*places, mark, color=color, markersize=4, alpha=0.75, label=kind)
    ends = [min(values), max(values)]
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--", label="equal")
    _scale_losses(axes, values, ablation.below)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
    axes.set_xlabel("predicted loss, nats")
    axes.set_ylabel("measured loss, nats")
    axes.grid(color=RULE, linewidth=0.8)
    said = f"{len(ablation.tried)} removed units, rank correlation {number(ablation.rank_correlation)}"
    return inline_svg(figure, "ablation", f"Predicted and measured loss of {said}")


@matplotlib.style.context("default")
def frontier_picture(found: FrontierRecord) -> str:
    """Size against accuracy with intervals; the original as reference, hollow marks for what is not covered.

    Points far below the allowed drop are shown as triangles at the lower edge.
    """
    allowed = found.points[0].verdict.allowed
    floor = found.accuracy - max(8 * allowed, 4.0)
    figure, axes = framed_figure(3.7)
    axes.axhline(found.accuracy, color=MUTED, linewidth=0.8)
    axes.axhline(found.accuracy - allowed, color=BAD, linewidth=1.2, linestyle="--", label="allowed")
    axes.plot([100], [found.accuracy], "s", color=INK, markersize=6, label="original", clip_on=False, zorder=4)
    places = [(100 * point.share(found.measure), point.verdict, point.covered) for point in found.points]
    sizes = [100, *(size for size, _, _ in places)]
    axes.plot(sizes, [found.accuracy, *(v.compressed for _, v, _ in places)], color=MUTED, linewidth=0.8, zorder=1)
    named: set[str] = set()
    for size, verdict, covered in places:
        _frontier_point(axes, size, verdict, covered, found.accuracy, floor, named)
    if any(found.accuracy + verdict.interval[0] < floor for _, verdict, _ in places):
        axes.set_ylim(bottom=floor)
    axes.set_xlim(0, 104)
    axes.set_xlabel(f"{MEASURED[found.measure]} kept, %")
    axes.set_ylabel(f"{found.points[0].verdict.metric}, %")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
    words = f"Size and accuracy of {len(places)} networks; the table below has the numbers"
    return inline_svg(figure, "frontier", words)


def _frontier_point(
    axes: Axes, size: float, verdict: VerdictPart, covered: bool, whole: float, floor: float, named: set[str]
) -> None:
    """One network with its interval; `named` are the labels that the legend has."""
    color, name = (VALUES[verdict.value], verdict.value) if covered else (MUTED, "not covered")
    low, high = (max(whole + end, floor) for end in verdict.interval)
    axes.plot([size, size], [low, high], color=color, linewidth=2, alpha=0.8)
    mark = "v" if verdict.compressed < floor else MARKS[verdict.value]
    axes.plot(
        [size], [max(verdict.compressed, floor)], mark, markersize=7, linestyle="none", clip_on=False,
        markerfacecolor=color if covered else "none", markeredgecolor=color, label=None if name in named else name,
    )  # fmt: skip
    named.add(name)


def _scale_losses(axes: Axes, values: list[float], below: float | None) -> None:
    """Losses span decades; measured ones can be zero or less, which a logarithm cannot show."""
    if min(values) > 0:
        decades = 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(1.01 * max(values)))
        axes.set(xscale="log", yscale="log", xlim=decades, ylim=decades)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
        return
    threshold = below or max(map(abs, values)) / 100 or 1.0
    for scaled, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scaled("symlog", linthresh=threshold)
        locator = SymmetricalLogLocator(base=10, linthresh=threshold)
        locator.numticks = 6
        axis.set_major_locator(locator)


def _tune_points(axes: Axes, shown: list[tuple[float, float, Candidate]], floor: float) -> None:
    inside = [(size, change) for size, change, _ in shown if change >= floor]
    below = [size for size, change, _ in shown if change < floor]
    if inside:
        axes.plot(*zip(*inside, strict=True), "o-", color=ACCENT, markersize=5, linewidth=1.2, label="tune")
    if below:
        style = {"color": ACCENT, "markersize": 7, "linestyle": "none", "clip_on": False}
        axes.plot(below, [floor] * len(below), "v", **style, label="tune, further down")


def _judge_points(axes: Axes, judged: list[tuple[float, VerdictPart, Candidate]], floor: float, selected: bool) -> None:
    named: set[str] = set()
    for size, verdict, candidate in judged:
        color, at = VALUES[verdict.value], max(verdict.difference, floor)
        low, high = (max(end, floor) for end in verdict.interval)
        label = None if verdict.value in named else f"judged: {verdict.value}"
        named.add(verdict.value)
        axes.plot([size, size], [low, high], color=color, linewidth=2)
        axes.plot([size], [at], MARKS[verdict.value], color=color, markersize=7, linestyle="none", label=label)
        if candidate.selected:
            ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markersize": 15, "linestyle": "none"}
            axes.plot([size], [at], "o", **ring, label="selected" if selected else "this one")


def _frame_search(
    axes: Axes,
    shown: list[tuple[float, float, Candidate]],
    judged: list[tuple[float, VerdictPart, Candidate]],
    floor: float,
) -> None:
    heights = [change for _, change, _ in shown] + [end for _, v, _ in judged for end in v.interval]
    sizes = [size for size, _, _ in shown] + [size for size, _, _ in judged]
    low, high = max(min(heights), floor), max(*heights, 0.0)
    room = 0.08 * (high - low) or 0.1
    bottom = floor if min(heights) < floor else low - room
    axes.set_ylim(bottom, high + room)
    axes.set_xlim(0, 1.06 * max(sizes))


def framed_figure(height: float) -> tuple[Figure, Axes]:
    """A figure of one frame in the page's colours; height in inches."""
    figure = Figure(figsize=(_WIDE, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.set_axisbelow(True)
    return figure, axes


def inline_svg(figure: Figure, name: str, words: str) -> str:
    """The figure for a place inside a page: scales with it, ids of its own, themed colours, a spoken text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("*{", ".picture *{")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for stand_in, color in THEME.items():
        text = text.replace(stand_in, color)
    head, body = text.split(">", 1)
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    return f'{head} class="picture" role="img" aria-label="{words}">{body}'
