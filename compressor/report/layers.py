"""The measures of every layer of one network as rows: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from compressor.report.record import Record
from compressor.report.tables import cells, heading, line, plain_table, worded

MOST_ROWS = 40
HEADINGS = (
    "layer", "units", "samples per unit", "dead", "similar units", "R95", "R95 of noise", "R95 untrained",
    "directions in use", "prunable",
)  # fmt: skip
NOTE = (
    "Similar units: how many others a unit is like (|r| >= 0.5). R95: share of principal directions that hold 5 % of "
    "the variance; noise and an untrained network of this shape have one too, so only what is above them was learned. "
    "Directions in use: participation ratio. Prunable: share of the layer's units that can be zeroed, in a random "
    "order, before one answer in five changes."
)


def layer_rows(record: Record) -> list[list[str]]:
    """One row for each layer measured; a layer that was refused has the reason in the last cell."""
    return [_row(layer) for layer in record.layers]


def _row(layer: Mapping[str, Any]) -> list[str]:
    head = [str(layer["name"]), f"{layer['units']:,}"]
    if "refused" in layer:
        return [*head, f"{layer['samples'] / layer['units']:.3g}", *[""] * (len(HEADINGS) - 4), "not measured"]
    nulls = layer.get("nulls", {})
    prunable = layer.get("prunable")
    return [
        *head,
        f"{layer['samples'] / layer['units']:.3g}{' (few)' if layer.get('thin') else ''}",
        f"{layer['dead']:.0f}",
        f"{layer['similar']:.1f}",
        f"{layer['r95']:.2f}",
        f"{nulls['white noise']['r95']:.2f}",
        f"{nulls['untrained']['r95']:.2f}" if "untrained" in nulls else "",
        f"{layer['participation_ratio']:.1f}",
        "" if prunable is None else f"{100 * prunable:.0f} %",
    ]


def refusals(record: Record) -> list[str]:
    """What could not be measured, and why."""
    found = [f"{layer['name']}: {layer['refused']}" for layer in record.layers if "refused" in layer]
    last = record.last_hidden or {}
    return [*found, *([f"last hidden layer: {last['refused']}"] if "refused" in last else [])]


def chunk_rows(record: Record) -> list[list[str]]:
    """Chunks of the last hidden layer: size, error, R² and residual correlation of the units outside."""
    last: Any = record.last_hidden or {}
    columns = [last.get(name, ()) for name in ("sizes", "error", "r2_outside", "residual_correlation_outside")]
    rows = zip(*columns, strict=True)
    return [[f"{size:,}", _share(error), _two(r2), _two(correlation)] for size, error, r2, correlation in rows]


CHUNK_HEADINGS = ("units of a chunk", "wrong answers", "R² of the others", "residual |r|")


def chunk_sentence(record: Record) -> str | None:
    """From which size on a random part of the last hidden layer stands for the whole; None where not measured."""
    last: Any = record.last_hidden
    if last is None or "refused" in last:
        return None
    size = last["by_r2"]
    start = f"Last hidden layer ({last['name']}, {last['units']:,} units): "
    if size is None:
        return start + "no random part of it determines the rest (R² of 0.98)"
    return f"{start}random parts of {size:,} units determine the rest (R² of 0.98)"


def layer_views(record: Record) -> list[RenderableType]:
    """For the terminal; nothing where nothing was measured."""
    if not record.layers:
        return []
    table: Table = plain_table(*HEADINGS)
    for row in layer_rows(record)[:MOST_ROWS]:
        table.add_row(*cells(*row))
    parts: list[RenderableType] = [line(), heading("Layers"), table, worded(NOTE, "dim")]
    sentence = chunk_sentence(record)
    if sentence:
        chunks = plain_table(*CHUNK_HEADINGS)
        for row in chunk_rows(record):
            chunks.add_row(*cells(*row))
        parts += [line(), worded(sentence), chunks]
    return parts + [worded(text) for text in refusals(record)]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
