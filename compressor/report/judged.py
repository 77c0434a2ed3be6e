"""What `compressor verify` shows: the verdict on the network and on its ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from compressor.report.words import interval, points

STYLES = {"passed": "bold green", "failed": "bold red", "undecided": "bold yellow"}


def verify_view(found: Mapping[str, Any]) -> RenderableType:
    """One line for the network, one for each ONNX file; numbers in percentage points; what they rest on."""
    parts = [_line("network", found["verdict"])]
    if found.get("onnx_verdict") is not None:
        parts.append(_line("ONNX file", found["onnx_verdict"]))
    parts += [_line(name, verdict) for name, verdict in found.get("variants", {}).items()]
    return Group(*parts, *(Text(line) for line in _about(found)))


def _about(found: Mapping[str, Any]) -> list[str]:
    """What the verdicts rest on: whose samples, and which files."""
    same = "The samples that judged the run, once more: no new evidence on the data."
    samples = same if found.get("same_judge_data") else "Not the samples that judged the run."
    unchanged = ", ".join(found.get("files_unchanged", ())) or "no file was compared"
    return [samples, f"Unchanged since the run: {unchanged}"]


def variants_view(found: Mapping[str, Any]) -> RenderableType:
    """What `compressor export --precision` shows: a line for each variant, and the warnings."""
    lines = [_line(one["path"], one["verdict"]) for one in found["variants"]]
    return Group(*lines, *(Text(f"warning: {text}", style="yellow") for text in found["warnings"]))


def _line(what: str, verdict: Mapping[str, Any]) -> Text:
    words = (
        f"{verdict['value'].upper()}: {what}, {verdict['metric']} {verdict['original']:.2f} -> "
        f"{verdict['compressed']:.2f}, difference {points(verdict['difference'])} points "
        f"{interval(*verdict['interval'])} at "
        f"{100 * verdict['confidence']:g} %, allowed -{verdict['allowed']:.2f}, {verdict['samples']:,} samples"
    )
    return Text(words, style=STYLES[verdict["value"]])
