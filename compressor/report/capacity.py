"""A capacity study for people: one table of verdicts on the terminal, one page with the papers' figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from compressor.export.files import write_text
from compressor.report.capacity_chunks import chunk_errors_picture, chunk_picture
from compressor.report.capacity_pictures import against_width, layer_stack

_COLUMNS = (
    ("accuracy, test %", lambda m, _: m["accuracy"]["test"], "{:.1f}"),
    ("training %", lambda m, _: m["accuracy"]["train"], "{:.1f}"),
    ("prunable", lambda m, _: m["ablation"]["prunable_mean"], "{:.2f}"),
    ("(untrained)", lambda _, n: n["untrained"]["ablation"]["prunable_mean"], "{:.2f}"),
    ("(random labels)", lambda _, n: n["random labels"]["ablation"]["prunable_mean"], "{:.2f}"),
    ("redundant", lambda m, _: m["r95"], "{:.2f}"),
    ("(untrained)", lambda _, n: n["untrained"]["r95"], "{:.2f}"),
    ("(random labels)", lambda _, n: n["random labels"]["r95"], "{:.2f}"),
    ("(white noise)", lambda _, n: n["white noise"]["r95"], "{:.2f}"),
    ("similar", lambda m, _: m["similar"], "{:.1f}"),
    ("(untrained)", lambda _, n: n["untrained"]["similar"], "{:.1f}"),
    ("(random labels)", lambda _, n: n["random labels"]["similar"], "{:.1f}"),
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
    """The effect of every null beside the claim's own, and its name, or nothing."""
    return ", ".join(f"{one['effect']:.3g} ({name})" for name, one in row["nulls"].items() if one["effect"] is not None)


def ladder_rows(rungs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows): per width the mean over seeds of the main numbers and of their nulls, in parentheses.

    Empty where one is missing; what is missing at every width has no column.
    """
    headings = ["width", "seeds", *(heading for heading, _, _ in _COLUMNS)]
    rows = []
    for width in sorted({rung["width"] for rung in rungs}):
        mine = [rung for rung in rungs if rung["width"] == width]
        cells = [f"{width:g}", str(len(mine))]
        for _, read, form in _COLUMNS:
            values = [_read(rung, read) for rung in mine]
            cells.append(form.format(mean(v for v in values if v is not None)) if None not in values else "")
        rows.append(cells)
    shown = [place for place in range(len(headings)) if any(row[place] for row in rows)]
    return [headings[place] for place in shown], [[row[place] for place in shown] for row in rows]


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
        settings=[_setting(name, [r for r in found["rungs"] if r["setting"] == name], found) for name in settings],
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


def _setting(name: str, rungs: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> dict[str, Any]:
    slope = found.get("slopes", {}).get(name)
    pictures = [
        against_width(rungs, "prunable", f"prunable units, {name}", _growth(found, "A-5", name)),
        against_width(rungs, "redundant", f"redundant directions, {name}", _growth(found, "A-6", name)),
        layer_stack(rungs, "prunable units", name),
        layer_stack(rungs, "redundant directions", name),
        chunk_errors_picture(rungs, name, slope),
        *(chunk_picture(rungs, name, what) for what in ("train_error", "r2_outside", "residual_correlation_outside")),
    ]
    shown = [Markup(svg) for svg in pictures if svg]  # pictures are ours; names of settings are letters and digits
    headings, rows = ladder_rows(rungs)
    return {"name": name, "headings": headings, "rows": rows, "pictures": shown}


def _growth(found: Mapping[str, Any], claim: str, name: str) -> str:
    """`g = 2.61 [2.50, 2.71], untrained 2.00`, as the claim about growth has it; nothing where it was not asked."""
    for row in found["claims"]:
        for test in row["tests"] if row["id"] == claim else ():
            if test["setting"] == name:
                low, high = (f"{end:.2f}" if end is not None else "–" for end in test["interval"])
                nulls = [f"{n} {one['effect']:.2f}" for n, one in test["null"].items() if one["effect"] is not None]
                return ", ".join([f"g = {test['effect']:.2f} [{low}, {high}]", *nulls])
    return ""
