"""The report as one page: no script, nothing loaded from anywhere, every text of the record escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from compressor.export.files import write_bytes
from compressor.report import frontier, layers, words
from compressor.report.pictures import ablation_picture, frontier_picture, search_picture, verdict_picture
from compressor.report.record import GroupPart, Record, validate
from compressor.report.views import speed_word

_SHORT = 160
"""Letters of a value that is shown in a line of its own; longer ones (lists of indices) are cut."""


def write_html(record: Mapping[str, Any] | Record, path: str | Path) -> None:
    """Write the page atomically, UTF-8. The same record gives the same bytes.

    Raises SourceError for a record that is none, UsageError where the file cannot be written.
    """
    write_bytes(path, render_html(record).encode("utf-8", errors="replace"))


def render_html(record: Mapping[str, Any] | Record) -> str:
    """The page as text."""
    checked = validate(record)
    return _template().render(
        record=checked,
        outcome=words.outcome(checked),
        facts=words.facts(checked) if words.outcome(checked) in ("passed", "failed", "undecided") else [],
        findings_sentence=words.findings_sentence(checked),
        next_step=words.next_step(checked),
        recovery_sentence=words.recovery_sentence(checked),
        memory_sentence=words.memory_sentence(checked),
        ablation_sentence=words.ablation_sentence(checked),
        kinds=words.KINDS,
        verdict_svg=_picture(_verdict_svg(checked)),
        search_svg=_picture(search_picture(checked)),
        ablation_svg=_picture(ablation_picture(checked.ablation)),
        segments=segments,
        layers=layers,
        candidates=words.candidates(checked),
        nearness=words.nearness(checked),
        variant_sentences=words.variant_sentences(checked),
        clocked_sentence=words.clocked_sentence(checked),
        rotated_sentences=words.rotated_sentences(checked),
        facts_of=facts_of,
        speed_word=speed_word,
    )


def segments(group: GroupPart) -> list[tuple[str, int, float]]:
    """(kind, units, percent of the group) of a stacked bar, without empty ones; they fill the bar."""
    if group.frozen is not None:
        return [("frozen", group.units, 100.0)]
    counts = [(kind, getattr(group, kind)) for kind in words.KINDS]
    return [(kind, count, 100 * count / group.units) for kind, count in counts if count]


def facts_of(value: Mapping[str, Any] | None, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as lines: (dotted key, short text), empty values left out."""
    lines: list[tuple[str, str]] = []
    for key, item in (value or {}).items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            lines += facts_of(item, f"{name}.")
        elif item is not None and item != [] and item != "":
            text = words.number(item, 6) if isinstance(item, float) else words.plain(item)
            lines.append((name, text if len(text) <= _SHORT else text[:_SHORT] + " ..."))
    return lines


def typeset(text: object) -> str:
    """Arrows and minus signs as they are printed; only for words of ours."""
    return re.sub(r"(?<![\w.\-])-(?=\d)", "−", str(text).replace(" -> ", " → ").replace(" %", "\u00a0%"))


def _verdict_svg(record: Record) -> str | None:
    verdict = record.verdict
    return None if verdict is None or verdict.metric == "outputs" else verdict_picture(verdict)


def _picture(svg: str | None) -> Markup | None:
    """Pictures are ours: numbers and fixed words, nothing of the record's texts."""
    return None if svg is None else Markup(svg)


def _clean(value: object) -> object:
    """What every text of the page goes through before it is escaped."""
    return words.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_frontier(record: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of a frontier atomically, UTF-8. Raises SourceError for a record that is none."""
    found = frontier.checked_frontier(record)
    heads, rows = frontier.table(found)
    page = _template("frontier.html.j2").render(
        record=found,
        headline=frontier.headline(found),
        columns=heads,
        rows=list(zip(found.points, rows, strict=True)),
        not_covered=None if all(point.covered for point in found.points) else frontier.NOT_COVERED,
        picture=_picture(frontier_picture(found)),
        facts_of=facts_of,
    )
    write_bytes(path, page.encode("utf-8", errors="replace"))


@cache
def _template(page: str = "report.html.j2") -> Template:
    environment = Environment(
        loader=PackageLoader("compressor.report"),
        autoescape=True,
        finalize=_clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "amount",
        "percent",
        "points",
        "interval",
        "file_size",
        "duration",
        "number",
        "share_of",
    ):
        environment.filters[name] = getattr(words, name)
    environment.filters["typeset"] = typeset
    return environment.get_template(page)
