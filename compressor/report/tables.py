"""Small parts of terminal views: plain tables whose cells are text, never markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from compressor.report.words import plain

LEAST_NAME = 10
"""Columns of names are folded, but not to less than this."""


class WholeTable(Table):
    """A table of which nothing is cut: where the terminal is too narrow for it, every row is a sentence.

    Rich by itself cuts digits off there, without a mark, and drops the names before them.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or its rows as sentences."""
        heads, rows = self._texts()
        if self._least(heads, rows) <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        yield from (text for text in (self.title,) if text)
        for row in rows:
            yield Text(_sentence(heads, row), overflow="fold")
        yield from (text for text in (self.caption,) if text)

    def _texts(self) -> tuple[list[str], list[list[str]]]:
        columns = [[str(cell) for cell in column.cells] for column in self.columns]
        return [str(column.header) for column in self.columns], [list(row) for row in zip(*columns, strict=True)]

    def _least(self, heads: list[str], rows: list[list[str]]) -> int:
        """How wide it is at least: numbers and their heads whole, three columns from one to the next."""
        widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
        least = [
            width if column.no_wrap else min(width, LEAST_NAME)
            for column, width in zip(self.columns, widths, strict=True)
        ]
        return sum(least) + 3 * len(least) - 1


def _sentence(heads: list[str], row: list[str]) -> str:
    """A row in words: its name, then every figure behind its head.

    >>> _sentence(["group", "units", "kept", ""], ["conv1", "24", "", "base"])
    'conv1: units 24, base'
    """
    told = [f"{head} {cell}".strip() for head, cell in zip(heads[1:], row[1:], strict=True) if cell]
    return ": ".join(part for part in (row[0], ", ".join(told)) if part)


def plain_table(*columns: str, right_from: int = 1) -> Table:
    """A table with one rule under its head; columns from `right_from` on are numbers and stay whole."""
    table = WholeTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), caption_justify="left")
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
