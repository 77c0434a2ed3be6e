"""Terminal views of things that are no record: a unit graph, a comparison of latencies, the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from compressor.report.tables import cells, frozen_table, heading, line, plain_table, worded
from compressor.report.words import duration, file_size, number, percent

MOST_DIFFERENCES = 12
MOST_LAYERS, MOST_ROWS = 2, 60
"""Layers of a group that are named in a row."""


def inspect_view(description: Mapping[str, Any]) -> RenderableType:
    """Coverage first, then every group, what is frozen and why: for `units.inspect.describe(graph)`."""
    units = description["units"]
    parts: list[RenderableType] = [
        worded(description["summary"], "bold"),
        worded(f"{units['all']:,} units: {units['live']:,} may go, {units['frozen']:,} are frozen"),
    ]
    groups = description["groups"]
    live = [group for group in groups if group["frozen"] is None]
    if live:
        table = plain_table("group", "units", "producers", "consumers", right_from=4)
        table.columns[1].justify = "right"
        for group in live:
            names = (_named(group["producers"]), _named(group["consumers"]))
            table.add_row(*cells(group["name"], f"{group['units']:,}", *names))
        parts += [line(), heading("Groups"), table]
    frozen = [(group["name"], group["units"], group["frozen"]) for group in groups if group["frozen"]]
    if frozen:
        parts += [line(), heading("Frozen groups"), frozen_table(frozen)]
    if description["uncovered"]:
        table = plain_table("layer not covered", "why", right_from=2)
        for layer, why in description["uncovered"].items():
            table.add_row(*cells(layer, why))
        parts += [line(), table]
    return Group(*parts)


def bench_view(comparison: Mapping[str, Any]) -> RenderableType:
    """Files timed side by side: for `export.latency.LatencyComparison.as_dict()`."""
    files = list(comparison["files"])
    confidence = 100 * comparison.get("confidence", 0.95)
    table = plain_table("file", "median ms", "p10 ms", "ratio", f"{confidence:g} % interval", "")
    for place, entry in enumerate(files):
        low, high = entry["interval"]
        ratio = (f"{entry['ratio']:.3f}", f"[{low:.3f}, {high:.3f}]") if place else ("1", "")
        times = (f"{entry['median_ms']:.3f}", f"{entry['p10_ms']:.3f}")
        table.add_row(*cells(entry["path"], *times, *ratio, speed_word(low, high) if place else "base"))
    how = f"{comparison['rounds']} interleaved rounds, batch {comparison['batch']}"
    how += f", {comparison['threads']} thread(s)"
    return Group(table, worded(f"{how}; ratios are medians of the rounds' own ratios"))


def timetable_view(found: Mapping[str, Any], out: str) -> RenderableType:
    """Layers, their times at full width and at the narrowest measured: for `analysis.timetable_file`."""
    table = plain_table("layer", "widths", "full, us", "narrowest, us")
    plain = found["table"]
    for layer in plain["layers"][:MOST_ROWS]:
        first, second = layer["widths"]
        name = layer["weight"].removesuffix(".weight")
        times = (layer["micros"][-1][-1], layer["micros"][0][0])
        table.add_row(*cells(name, f"{first[-1]} x {second[-1]}", *(f"{micros:,.1f}" for micros in times)))
    how = f"{plain['points']} times of batch {plain['batch']} on {plain['threads']} thread(s), block {plain['block']}"
    return Group(table, worded(f"{how}; the rest takes {plain['rest']:,.1f} us"), worded(f"Written to {out}"))


def cost_view(found: Mapping[str, Any]) -> RenderableType:
    """A column for each model, a row for each stage: for `analysis.plan_cost`."""
    models = found["models"]
    table = plain_table("", *(one["model"] for one in models))
    for stage in models[0]["seconds"]:
        table.add_row(*cells(stage, *(duration(one["seconds"][stage]) for one in models)))
    table.add_row(*cells("all of them", *(duration(3600 * one["hours"]) for one in models)))
    for name in models[0]["bytes"]:
        table.add_row(*cells(f"memory, {name}", *(file_size(one["bytes"][name]) for one in models)))
    table.add_row(*cells("readings of the data", *(str(one["passes"]) for one in models)))
    rates = found["rates"]
    words = f"{found['samples']:,} calibration and {found['judged']:,} judge samples, {percent(found['keep'])} kept, "
    words += f"{rates['threads']} thread(s) at {rates['flops'] / 1e9:,.0f} GFLOP/s, "
    words += f"{file_size(found['memory'])} of memory"
    return Group(table, worded(words), worded("Without alignment, export, recovery and the dry runs of units."))


def speed_word(low: float, high: float) -> str:
    """'faster' or 'slower' only where the whole interval says so."""
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "no clear difference"


def doctor_view(facts: Mapping[str, Any]) -> RenderableType:
    """What this installation can do.

    `facts` has any of `versions` and `machine` (name -> what), `devices`, `providers` (lists), `threads`,
    `block` (the measured channel block, a number or `Block.as_dict()`), `data` (name -> where it is, or None
    if missing), `problems` (list of sentences). What is not given is not shown.
    """
    parts: list[RenderableType] = []
    for title in ("versions", "machine", "data"):
        if facts.get(title):
            table = plain_table(title, "", right_from=2)
            for name, value in facts[title].items():
                table.add_row(*cells(str(name), _there(value)))
            parts.append(table)
    table = plain_table("runtime", "", right_from=2)
    for name in ("devices", "providers"):
        if facts.get(name):
            table.add_row(*cells(name, ", ".join(str(value) for value in facts[name])))
    if facts.get("threads") is not None:
        table.add_row(*cells("threads", str(facts["threads"])))
    if facts.get("block") is not None:
        table.add_row(*cells("channel block", _block(facts["block"])))
    if table.row_count:
        parts.append(table)
    problems = [worded(f"problem: {text}", "bold red") for text in facts.get("problems", [])]
    return Group(*parts, *(problems or [worded("No problem found.", "green")]))


def replay_view(found: Mapping[str, Any]) -> RenderableType:
    """Same or not, and where they differ."""
    if found["same"]:
        first = worded("The same: the network's file and the record, apart from times.", "green")
    elif found["network_same"]:
        first = worded("The network is the same, bit for bit; the record differs.", "yellow")
    else:
        first = worded("Not the same.", "bold red")
    shown = found["differences"][:MOST_DIFFERENCES]
    more = len(found["differences"]) - len(shown)
    lines = [worded(f"  {line}") for line in shown] + ([worded(f"  and {more} more")] if more else [])
    other = [worded(f"Not as it was then: {line}", "yellow") for line in found["other"]]
    return Group(first, *lines, *other)


def _named(layers: list[str]) -> str:
    more = f" +{len(layers) - MOST_LAYERS}" if len(layers) > MOST_LAYERS else ""
    return ", ".join(layers[:MOST_LAYERS]) + more


def _there(value: object) -> str:
    if value is None or value is False:
        return "not found"
    return "available" if value is True else str(value)


def _block(block: Any) -> str:
    if not isinstance(block, Mapping):
        return f"{block}"
    gains = ", ".join(f"{step}: {number(gain, 2)}" for step, gain in block.get("gains", {}).items())
    shown = f" (gain of finer steps: {gains})" if gains else ""
    return f"{block['block']}, measured in {number(block.get('seconds'), 2)} s{shown}"
