"""What the terminal shows of a record. Rich renderables without state: the caller's console prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.report.layers import layer_views
from compressor.report.record import Candidate, GroupPart, Record, validate
from compressor.report.tables import cells, frozen_table, heading, line, plain_table, worded
from compressor.report.views import bench_view, doctor_view, inspect_view
from compressor.report.words import (
    KINDS,
    ablation_sentence,
    amount,
    candidates,
    clocked_sentence,
    duration,
    file_size,
    interval,
    memory_sentence,
    nearness,
    next_step,
    number,
    outcome,
    percent,
    points,
    recovery_sentence,
    rotated_sentences,
    share_of,
    variant_sentences,
    verdict_line,
)

__all__ = ["analyze_view", "bench_view", "doctor_view", "inspect_view", "summary", "verdict_line"]

MOST_ROWS = 40
"""Groups shown in the terminal; the page and the record have them all."""

STYLES = {"passed": "bold green", "failed": "bold red", "undecided": "bold yellow"}


def summary(record: Mapping[str, Any] | Record, folder: str | None = None, files: Sequence[str] = ()) -> RenderableType:
    """Everything a user wants to see at the end of a run, verdict first.

    `folder` is the output folder and `files` what was written to it; both only for the last lines.
    Raises SourceError for a record that is none.
    """
    checked = validate(record)
    parts: list[RenderableType] = [
        worded(verdict_line(checked), STYLES.get(outcome(checked), "bold")),
        line(),
    ]
    if checked.coverage:
        parts.append(worded(checked.coverage.text))
    if checked.mode != "analyze":
        parts += [line(), sizes_table(checked)]
        parts += [worded(text) for text in _measured(checked)]
    parts += _found(checked)
    if checked.search:
        parts += [line(), heading("Search"), search_table(checked)]
    parts += _closing(checked, folder, files)
    return Group(*parts)


def analyze_view(record: Mapping[str, Any] | Record) -> RenderableType:
    """Findings only: for `compressor analyze`."""
    checked = validate(record)
    parts: list[RenderableType] = [worded(verdict_line(checked), "bold")]
    if checked.coverage:
        parts.append(worded(checked.coverage.text))
    return Group(*parts, *_found(checked), *layer_views(checked), *_warnings(checked))


def sizes_table(record: Record) -> Table:
    """Before and after: parameters, MACs, bytes and latency of the ONNX file."""
    table = plain_table("", "original", "compressed", "share")
    old, new = record.original, record.compressed or record.original
    for name, before, after in (("parameters", old.params, new.params), ("MACs", old.macs, new.macs)):
        table.add_row(*cells(name, amount(before), amount(after, like=before), share_of(after, before)))
    onnx = record.onnx
    if onnx and onnx.bytes is not None:
        before = onnx.original_bytes
        share = share_of(onnx.bytes, before) if before else "-"
        table.add_row(*cells("ONNX file", file_size(before) if before else "-", file_size(onnx.bytes), share))
    if onnx and onnx.latency and len(onnx.latency.files) > 1:
        first, last = onnx.latency.files[0], onnx.latency.files[-1]
        times = (f"{first.median_ms:.2f} ms", f"{last.median_ms:.2f} ms", percent(last.ratio))
        table.add_row(*cells(f"latency (batch {onnx.latency.batch})", *times))
    elif onnx and onnx.latency_ratio is not None:
        table.add_row(*cells("latency", "-", "-", percent(onnx.latency_ratio)))
    return table


def findings_table(record: Record) -> Table:
    """How many units of each kind."""
    found = record.findings
    table = plain_table("finding", "units", "share")
    for kind in (*KINDS, "frozen"):
        count = getattr(found, kind)
        table.add_row(*cells(kind, f"{count:,}", share_of(count, found.units)))
    return table


def groups_table(groups: Sequence[GroupPart], kept: bool = True) -> Table:
    """One row for each group that is not frozen, in execution order, at most MOST_ROWS."""
    columns = ["group", "units", *(["kept"] if kept else []), *KINDS]
    table = plain_table(*columns)
    for group in groups[:MOST_ROWS]:
        stays = [f"{len(group.kept):,}"] if kept else []
        counts = [f"{getattr(group, kind):,}" for kind in KINDS]
        table.add_row(*cells(group.name, f"{group.units:,}", *stays, *counts))
    if len(groups) > MOST_ROWS:
        table.caption = Text(f"and {len(groups) - MOST_ROWS} more groups in record.json and report.html")
    return table


def search_table(record: Record) -> Table:
    """The candidates, from the largest to the smallest; the record's own one is marked."""
    table = plain_table("", "params", "MACs", "loss (nats)", "tune", "judged", "interval", right_from=1)
    for mark, candidate in candidates(record):
        table.add_row(*cells(*_candidate(candidate, mark)))
    return table


def _candidate(candidate: Candidate, mark: str) -> list[str]:
    change = candidate.tune.change if candidate.tune else None
    judged = candidate.judged
    return [
        "->" if mark else "",
        percent(candidate.params),
        percent(candidate.macs),
        number(candidate.predicted_loss),
        "-" if change is None else points(change),
        f"{judged.value} {points(judged.difference)}" if judged else "-",
        interval(judged.interval[0], judged.interval[1]) if judged else "",
    ]


def _found(record: Record) -> list[RenderableType]:
    parts: list[RenderableType] = [line(), heading("Findings"), findings_table(record)]
    sentence = ablation_sentence(record)
    if sentence:
        parts.append(worded(sentence))
    live = [group for group in record.groups if group.frozen is None]
    if live:
        parts += [line(), heading("Groups"), groups_table(live, kept=record.mode != "analyze")]
    frozen = [(group.name, group.units, group.frozen) for group in record.groups if group.frozen]
    if frozen:
        parts += [line(), heading("Frozen"), frozen_table(frozen)]
    return parts


def _measured(record: Record) -> list[str]:
    """Sentences under the sizes: what alignment cost, and how near the outputs and the file are."""
    said: list[str] = []
    if record.unaligned and record.compressed:
        block = (record.align or {}).get("block", "?")
        size = amount(record.unaligned.params)
        said.append(f"Widths are multiples of {block} where that pays; without alignment: {size} parameters")
    said += rotated_sentences(record)
    clocked = clocked_sentence(record)
    said += [clocked] if clocked else []
    recovered = recovery_sentence(record)
    said += [recovered] if recovered else []
    memory = memory_sentence(record)
    said += [memory] if memory else []
    said += [f"{name[0].upper()}{name[1:]}: {figure}" for name, figure in nearness(record)]
    if record.onnx and record.onnx.max_abs_error is not None:
        error = record.onnx.max_abs_error
        said.append(f"ONNX file against the network: largest error {number(error)}")
    if record.onnx_verdict:
        verdict = record.onnx_verdict
        bounds = interval(verdict.interval[0], verdict.interval[1])
        said.append(f"ONNX file judged: {verdict.value}, {points(verdict.difference)} points {bounds}")
    return said + variant_sentences(record)


def _warnings(record: Record) -> list[RenderableType]:
    rows = [worded(f"warning: {text}", "yellow") for text in record.warnings]
    return [line(), *rows] if rows else []


def _closing(record: Record, folder: str | None, files: Sequence[str]) -> list[RenderableType]:
    parts = [*_warnings(record), line()]
    if record.seconds:
        stages = [(name, took) for name, took in record.seconds.items() if name != "total"]
        spent = sorted(stages, key=lambda stage: -stage[1])[:3]
        took_long = ", ".join(f"{name} {duration(took)}" for name, took in spent)
        parts.append(worded(f"Longest stages: {took_long}"))
    if files:
        parts.append(worded(f"Written to {folder or '.'}: {', '.join(files)}"))
    parts.append(worded(f"Next: {next_step(record, folder or 'DIR')}"))
    return parts
