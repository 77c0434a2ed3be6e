"""A capacity study for people: one table of verdicts on the terminal, one page with the papers' figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from compressor.export.files import write_text
from compressor.report.capacity_pictures import (
    against_width,
    chunk_errors_picture,
    layer_stack,
    reconstruction_picture,
)

_COLUMNS = (
    ("accuracy, test %", lambda m, _: m["accuracy"]["test"], "{:.1f}"),
    ("training %", lambda m, _: m["accuracy"]["train"], "{:.1f}"),
    ("prunable", lambda m, _: m["ablation"]["prunable_mean"], "{:.2f}"),
    ("untrained", lambda _, n: n["untrained"]["ablation"]["prunable_mean"], "{:.2f}"),
    ("redundant", lambda m, _: m["r95"], "{:.2f}"),
    ("untrained ", lambda _, n: n["untrained"]["r95"], "{:.2f}"),
    ("white noise", lambda _, n: n["white noise"]["r95"], "{:.2f}"),
    ("similar", lambda m, _: m["similar"], "{:.1f}"),
    ("w*", lambda m, _: m["chunks"]["critical"]["by_error"], "{:.0f}"),
)


def capacity_view(found: Mapping[str, Any]) -> Table:
    """One row per claim: verdict, effect with interval, the null's effect, and why where it is undecided."""
    table = Table(title=f"{len(found['rungs'])} networks: published claims", box=None)
    for heading in ("claim", "verdict", "effect [95 %]", "null", "proposition / why undecided"):
        table.add_column(heading)
    for row in found["claims"]:
        table.add_row(row["id"], verdict_of(row), effect_of(row), null_of(row), row["reason"] or row["proposition"])
    return table


def verdict_of(row: Mapping[str, Any]) -> str:
    """The verdict, and that the null shows it too."""
    also = row["verdict"] == "supported" and row["reproduced"]
    return f"{row['verdict']}{' (its null too)' if also else ''}"


def effect_of(row: Mapping[str, Any]) -> str:
    """`0.35 [0.10, 0.60]`, or nothing."""
    if row["effect"] is None:
        return ""
    low, high = (f"{end:.3g}" if end is not None else "–" for end in row["interval"])
    return f"{row['effect']:.3g} [{low}, {high}]"


def null_of(row: Mapping[str, Any]) -> str:
    """The null's effect and its name, or nothing."""
    null = row["null"]
    return "" if null is None or null["effect"] is None else f"{null['effect']:.3g} ({null['name']})"


def ladder_rows(rungs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Per width: the mean over seeds of the main numbers and of their nulls; empty where one is missing."""
    rows = []
    for width in sorted({rung["width"] for rung in rungs}):
        mine = [rung for rung in rungs if rung["width"] == width]
        cells = [f"{width:g}", str(len(mine))]
        for _, read, form in _COLUMNS:
            values = [_read(rung, read) for rung in mine]
            cells.append(form.format(mean(v for v in values if v is not None)) if None not in values else "")
        rows.append(cells)
    return rows


def ladder_headings() -> list[str]:
    """Headings of `ladder_rows`."""
    return ["width", "seeds", *(heading.strip() for heading, _, _ in _COLUMNS)]


def _read(rung: Mapping[str, Any], read: Any) -> float | None:
    try:
        return read(rung["measures"], rung["nulls"])
    except (KeyError, TypeError):
        return None


def write_capacity(found: Mapping[str, Any], path: Path) -> None:
    """Write the page atomically: no script, nothing loaded from anywhere, every text escaped."""
    environment = Environment(
        loader=PackageLoader("compressor.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    settings = list(dict.fromkeys(rung["setting"] for rung in found["rungs"]))
    page = environment.get_template("capacity.html.j2").render(
        found=found,
        name=found["recipe"]["description"] or found["recipe"]["model"],
        settings=[
            _setting(name, [r for r in found["rungs"] if r["setting"] == name], found.get("slopes", {}).get(name))
            for name in settings
        ],
        headings=ladder_headings(),
        verdict_of=verdict_of,
        effect_of=effect_of,
        null_of=null_of,
        refused=refusals(found["rungs"]),
    )
    write_text(path, page)


def refusals(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What could not be measured, and why, once for each reason."""
    found: dict[str, None] = {}
    for rung in rungs:
        measures = rung["measures"]
        for part in (*measures["layers"], measures["chunks"]):
            if "refused" in part:
                found[f"{part.get('name', 'chunks')} at width {rung['width']:g}: {part['refused']}"] = None
    return list(found)


def _setting(name: str, rungs: Sequence[Mapping[str, Any]], slope: Mapping[str, Any] | None) -> dict[str, Any]:
    pictures = [
        against_width(rungs, "prunable", f"prunable units, {name}", _rate(rungs, "ablation")),
        against_width(rungs, "redundant", f"redundant directions, {name}", _rate(rungs, "r95")),
        layer_stack(rungs, name),
        chunk_errors_picture(rungs, name, slope),
        reconstruction_picture(rungs, name, "r2_outside"),
        reconstruction_picture(rungs, name, "residual_correlation_outside"),
    ]
    shown = [Markup(svg) for svg in pictures if svg]  # pictures are ours; names of settings are letters and digits
    return {"name": name, "rows": ladder_rows(rungs), "pictures": shown}


def _rate(rungs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """g from the first to the last width of the mean over seeds; none where a number is missing."""
    widths = sorted({rung["width"] for rung in rungs})
    ends = []
    for width in (widths[0], widths[-1]):
        parts = [rung["measures"].get(key) for rung in rungs if rung["width"] == width]
        values = [part["prunable_mean"] if isinstance(part, Mapping) else part for part in parts]
        if not all(values):
            return []
        ends.append(width * mean(values))
    doublings = math.log2(widths[-1] / widths[0])
    return [(ends[1] / ends[0]) ** (1 / doublings)] if doublings else []
