"""Frontiers as text, picture and page; what is no frontier is refused."""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_samples import VERDICT
from rich.console import Console

from compressor.errors import SourceError
from compressor.report.frontier import FrontierRecord, checked_frontier, frontier_view, headline, read_frontier
from compressor.report.html import write_frontier
from compressor.report.pictures import frontier_picture


def point(asked: float, value: str, difference: float, covered: bool, latency: float | None = None) -> dict[str, Any]:
    judged = {
        **VERDICT, "value": value, "difference": difference, "compressed": 90.0 + difference,
        "interval": [difference - 0.2, difference + 0.2], "details": {},
    }  # fmt: skip
    timed = {"target": asked, "predicted": asked, "measured": latency, "interval": [0.1, 0.9]}
    return {
        "folder": f"params_{asked:g}", "asked": asked, "params": asked - 0.001, "macs": 0.5 * asked + 0.4,
        "latency": None if latency is None else timed, "tune": {"accuracy": 90.0, "difference": -0.1},
        "verdict": judged, "covered": covered, "exported": value != "failed", "predicted_loss": 0.002,
    }  # fmt: skip


def frontier(**changes: Any) -> dict[str, Any]:
    points = [point(0.5, "passed", -0.1, True), point(0.3, "passed", -0.4, True)]
    points += [point(0.2, "failed", -3.0, True), point(0.1, "failed", -20.0, False)]
    found = {
        "schema_version": 1, "name": "net <b>", "command": "compressor frontier net.py:net", "created": "today",
        "measure": "params", "original": {"params": 2_000_000, "macs": 3_000_000}, "accuracy": 90.0, "points": points,
        "seconds": {"total": 3.0}, "seed": 0, "warnings": ["[bold]odd[/bold]"], "options": {"max_drop": 1.0},
    }  # fmt: skip
    return {**found, **changes}


def shown(found: FrontierRecord) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(frontier_view(found, "out"))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_smallest_that_passed_is_the_best() -> None:
    found = checked_frontier(frontier())
    assert found.best is not None
    assert found.best.folder == "params_0.3"
    assert headline(found).startswith("PASSED down to 29.9 % of the parameters: difference -0.40 points")


def test_nothing_passed_is_said_first() -> None:
    found = checked_frontier(frontier(points=[point(0.5, "undecided", -0.9, True), point(0.3, "passed", 0.1, False)]))
    assert found.best is None
    assert headline(found).startswith("UNDECIDED: not even the largest")


def test_the_terminal_shows_every_point_and_what_is_not_covered() -> None:
    text = shown(checked_frontier(frontier()))
    for words in ("params_0.5", "params_0.1", "(failed)", "[-0.60, -0.20]", "[bold]odd[/bold]", "90.00"):
        assert words in text
    assert "promise nothing" in text
    assert "promise nothing" not in shown(checked_frontier(frontier(points=[point(0.5, "passed", 0.0, True)])))


def test_a_latency_is_the_measured_one() -> None:
    found = checked_frontier(frontier(measure="latency", points=[point(0.5, "passed", 0.0, True, latency=0.47)]))
    assert "47.0 % of the latency" in headline(found)
    assert "latency kept" in frontier_picture(found)


def test_the_picture_is_whole_themed_and_the_same_again() -> None:
    drawn = frontier_picture(checked_frontier(frontier()))
    assert drawn == frontier_picture(checked_frontier(frontier()))
    root = ElementTree.fromstring(drawn)
    assert root.get("aria-label", "").startswith("Size and accuracy of 4 networks")
    assert not re.search(r"#0[1-7]0[1-7]0[1-7]", drawn)
    for words in ("original", "allowed", "passed", "failed", "not covered", "parameters kept"):
        assert words in drawn


def test_the_page_escapes_and_stands_alone(tmp_path: Path) -> None:
    write_frontier(frontier(), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "net &lt;b&gt;" in page
    assert "<script" not in page
    assert page.count("<tr") == 5
    assert "Networks are judged from the largest to the smallest" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": []}, "points"),
        ({"schema_version": 2}, "schema_version"),
        ({"measure": "bytes"}, "measure"),
        ({"points": [point(0.3, "passed", 0.0, True), point(0.5, "passed", 0.0, True)]}, "must fall"),
        ({"points": [point(0.5, "failed", 0.0, False), point(0.3, "passed", 0.0, True)]}, "covered"),
        ({"accuracy": float("nan")}, "accuracy"),
    ],
)
def test_what_is_no_frontier_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        checked_frontier(copy.deepcopy(frontier(**change)))


def test_reading_a_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        read_frontier(tmp_path / "nowhere.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SourceError, match="bad"):
        read_frontier(tmp_path / "bad.json")
