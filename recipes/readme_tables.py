"""The README's tables, made from recipes/results: `python recipes/readme_tables.py` writes them into README.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "recipes" / "results"
NAMES = ("strength", "exact_zoo")


def strength(content: dict[str, Any]) -> str:
    """Kept share and accuracy lost, per network and way of asking."""
    lines = [
        "| network | asked | parameters | MACs | accuracy lost | first | second | verdict at 95 % | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["runs"]:
        asked = row["options"].get("keep") or f"max-drop {row['options']['max_drop']:g}"
        verdict, lost = row["verdict"], row["lost"]
        low, high = verdict["interval"]
        shares = f"{100 * row['params']:.1f} % | {100 * row['macs']:.1f} %"
        losses = f"{lost['all']:.2f} | {lost['first']:.2f} | {lost['second']:.2f}"
        bounds = f"{verdict['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        judged = f"{verdict['value']} (allowed {verdict['allowed']:g}): {bounds}"
        wall = f"{row['seconds']['wall']:.0f}"
        lines.append(f"| {row['network']} | {asked} | {shares} | {losses} | {judged} | {wall} |")
    return "\n".join(lines)


def exact_zoo(content: dict[str, Any]) -> str:
    """Surplus units planted and removed, and how far outputs moved."""
    lines = [
        "| network | weights | surplus units | removed | others removed | outputs moved / spread | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        lines.append(
            f"| {row['network']} | {row['dtype']} | {row['surplus_units']} | {row['surplus_removed']} | "
            f"{row['other_units_removed']} | {row['outputs_moved']:.1e} | "
            f"{row['seconds_exact']:.0f} |"
        )
    return "\n".join(lines)


def table(name: str) -> str:
    """One table, or a line that says that it has not been measured."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return "*(not measured yet)*"
    return {"strength": strength, "exact_zoo": exact_zoo}[name](json.loads(path.read_text()))


def filled(text: str) -> str:
    """The README with all tables as the results say."""
    for name in NAMES:
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, name=name: m.group(1) + table(name) + "\n" + m.group(2), text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
