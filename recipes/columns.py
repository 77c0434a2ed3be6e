"""The head of a table in Markdown."""

from __future__ import annotations


def columns(names: str) -> list[str]:
    """The first two lines of a table, from its columns with ` | ` between them."""
    return [f"| {names} |", "|---" * len(names.split(" | ")) + "|"]
