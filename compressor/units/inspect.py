"""The unit graph as plain data for people: coverage first, then every group. Looks are the report's job."""

from __future__ import annotations

from collections import Counter
from typing import Any

from compressor.units.graph import UnitGraph


def describe(graph: UnitGraph) -> dict[str, Any]:
    """Plain data (JSON-ready), coverage first.

    `summary` is one line ("52 of 54 layers covered; 2 frozen: model output"); `layers` the counts;
    `uncovered` maps layer -> reason; `groups` lists name, units, producers, carriers, consumers and `frozen`
    (None, or why).
    """
    covered = graph.layers - len(graph.uncovered)
    live = [group for group in graph.groups if group.frozen is None]
    return {
        "summary": coverage(graph),
        "layers": {"seen": graph.layers, "covered": covered, "frozen": len(graph.uncovered)},
        "units": {
            "all": graph.n_units,
            "live": sum(len(group.units) for group in live),
            "frozen": sum(len(group.units) for group in graph.groups if group.frozen is not None),
        },
        "uncovered": dict(graph.uncovered),
        "groups": [
            {
                "name": group.name,
                "units": len(group.units),
                "producers": list(group.producers),
                "carriers": list(group.carriers),
                "consumers": list(group.consumers),
                "frozen": group.frozen,
            }
            for group in graph.groups
        ],
    }


def coverage(graph: UnitGraph) -> str:
    """One line: how many conv / linear layers a live group writes or reads, and why the others are not."""
    covered = graph.layers - len(graph.uncovered)
    line = f"{covered} of {graph.layers} layers covered"
    if not graph.uncovered:
        return line
    reasons = Counter(graph.uncovered.values())
    words = ", ".join(reason if n == 1 else f"{reason} ({n}x)" for reason, n in reasons.most_common())
    return f"{line}; {len(graph.uncovered)} frozen: {words}"
