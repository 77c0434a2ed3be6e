"""Size against accuracy lost for the methods of a comparison: an SVG that stands alone, and a table."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from rich.table import Table
from rich.text import Text

from compressor.report.tables import cells, plain_table

OURS = "ours"
_TICKS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.13, 0.09, 0.06, 0.04, 0.03, 0.02, 0.01)
_WORDS = {"params": "parameters kept", "macs": "multiply-accumulates kept"}


@matplotlib.style.context("default")
def comparison_picture(found: Mapping[str, Any]) -> str:
    """Points of all seeds, joined per method by the mean of each size; losses above the frame are cut off."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.subplots()
    top, least = 4 * found["allowed"], 1.0
    colors = matplotlib.colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    names = sorted(found["methods"], key=lambda name: (name != OURS, name))
    for place, name in enumerate(names):
        cells = [cell for cell in found["methods"][name]["cells"] if "error" not in cell]
        rows = [_mean(cells, share, found["measure"]) for share in sorted({cell["share"] for cell in cells})]
        bold = name == OURS
        color = "black" if bold else colors[(2 * place + (place >= 10)) % 20]
        shares, lost = [1.0, *(r[0] for r in rows[::-1])], [0.0, *(r[1] for r in rows[::-1])]
        axes.plot(shares, lost, color=color, linewidth=2.2 if bold else 1.1, label=name, zorder=3 if bold else 2)
        least = min([least, *shares])
        axes.scatter(
            [c[found["measure"]] for c in cells], [c["lost"] for c in cells], s=10, color=color, zorder=3, linewidths=0
        )
    axes.axhline(found["allowed"], color="0.4", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_ylim(top, -0.35 * top)
    axes.xaxis.set_major_locator(FixedLocator([share for share in _TICKS if share > 0.9 * least]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"{_WORDS[found['measure']]} (log scale)")
    axes.set_ylabel("accuracy lost, percentage points")
    figure.legend(fontsize=8, frameon=False, loc="outside right center")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "comparison", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _mean(cells: list[Mapping[str, Any]], share: float, measure: str) -> tuple[float, float]:
    mine = [cell for cell in cells if cell["share"] == share]
    return sum(c[measure] for c in mine) / len(mine), sum(c["lost"] for c in mine) / len(mine)


def comparison_view(found: Mapping[str, Any]) -> Table:
    """One row per method: the smallest share at the allowed loss for each seed, and points lost per size."""
    sizes = sorted({c["share"] for m in found["methods"].values() for c in m["cells"]}, reverse=True)
    seeds = [network["seed"] for network in found["networks"]]
    table = plain_table("method", *(f"seed {seed}" for seed in seeds), *(f"{size:.0%}" for size in sizes))
    table.title = f"{_WORDS[found['measure']]} at no more than {found['allowed']:g} points lost"
    for name, method in sorted(found["methods"].items(), key=lambda pair: _order(pair[1])):
        ends = [method["reached"][str(seed)] for seed in seeds]
        good = [cell for cell in method["cells"] if "error" not in cell]
        lost = [
            f"{_mean(good, size, found['measure'])[1]:.2f}" if any(c["share"] == size for c in good) else ""
            for size in sizes
        ]
        lost = [
            (loss or "no network") if _broke(method, size) else loss for size, loss in zip(sizes, lost, strict=True)
        ]
        table.add_row(*cells(name, *(f"{'<' if e['censored'] else ''}{e['share']:.1%}" for e in ends), *lost))
    table.caption = Text("\n".join(_remarks(found)))  # faults are others' words, never markup
    return table


def _broke(method: Mapping[str, Any], size: float) -> bool:
    return any("error" in cell for cell in method["cells"] if cell["share"] == size)


def _remarks(found: Mapping[str, Any]) -> Iterator[str]:
    """The ratio that all is about, and the first fault of every method that had one."""
    best = (found["against"] or {}).get("best_peer")
    if best is not None:
        low, high = best["interval"] or (None, None)
        bounds = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        words = f"{best['method']} / ours: {_side(found, best['method'])}{best['value']:.2f}{bounds}"
        yield f"{words} (geometric mean, {best['seeds']} seeds, {best['confidence']:.0%})"
    for name, method in found["methods"].items():
        faults = [cell for cell in method["cells"] if "error" in cell]
        if faults:
            yield f"{name} at {faults[0]['share']:.0%}, seed {faults[0]['seed']}: {faults[0]['error']}"


def _side(found: Mapping[str, Any], peer: str) -> str:
    """On which side of the ratio the truth lies, where a curve ended before it crossed the allowed loss."""
    ours, theirs = (any(end["censored"] for end in found["methods"][name]["reached"].values()) for name in (OURS, peer))
    return "about " if ours and theirs else "at least " if ours else "at most " if theirs else ""


def _order(method: Mapping[str, Any]) -> float:
    shares = [end["share"] for end in method["reached"].values()]
    return sum(shares) / len(shares)
