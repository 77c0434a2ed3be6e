"""Small parts of terminal views: plain tables whose cells are text, never markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from compressor.report.words import plain


def plain_table(*columns: str, right_from: int = 1) -> Table:
    """A table with one rule under its head; columns from `right_from` on are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), caption_justify="left")
    for place, name in enumerate(columns):
        numbers = place >= right_from
        table.add_column(
            name,
            justify="right" if numbers else "left",
            no_wrap=numbers,
            overflow="fold",
            header_style="bold",
        )
    return table


def cells(*values: str) -> list[Text]:
    """Cells that show brackets and control characters as what they are."""
    return [Text(plain(value)) for value in values]


def worded(text: str, style: str = "") -> Text:
    """One line of text, wrapped where the terminal ends."""
    return Text(plain(text), style=style, overflow="fold")


def heading(text: str) -> Text:
    """The name of a part."""
    return Text(text, style="bold underline")


def line() -> Text:
    """An empty line."""
    return Text("")


def frozen_table(groups: Iterable[tuple[str, int, str]]) -> Table:
    """Frozen groups by reason: how many groups and units, and the first names."""
    by_reason: dict[str, list[tuple[str, int]]] = {}
    for name, units, reason in groups:
        by_reason.setdefault(reason, []).append((name, units))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("reason", "groups", "units", "names"):
        side = "right" if name in ("groups", "units") else "left"
        table.add_column(name, justify=side, overflow="fold", header_style="bold")
    for reason, members in by_reason.items():
        names = ", ".join(name for name, _ in members[:3])
        more = f" and {len(members) - 3} more" if len(members) > 3 else ""
        units = sum(units for _, units in members)
        table.add_row(*cells(reason, f"{len(members)}", f"{units:,}", names + more))
    return table
