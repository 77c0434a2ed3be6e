"""The schema of `frontier.json`, and what text and page say about a frontier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from rich.console import Group, RenderableType

from compressor.errors import SourceError
from compressor.export.files import to_json
from compressor.report.parts import Part, Percent, Plain, Share, Size, Timed, VerdictPart
from compressor.report.record import Tuned
from compressor.report.tables import cells, line, plain_table, worded
from compressor.report.words import amount, interval, percent, points

MEASURED = {"params": "parameters", "macs": "MACs", "latency": "latency"}
"""What a size is told by, in words."""


class FrontierPoint(Part):
    """One network: its folder beside `frontier.json`, its size as shares of the original's, and its verdict.

    `covered` is True if the fixed sequence of tests reached it; the verdict of any other is only what was measured.
    """

    folder: str
    asked: Share
    params: Share
    macs: Share
    latency: Timed | None = None
    tune: Tuned
    verdict: VerdictPart
    covered: bool
    exported: bool
    predicted_loss: float

    @property
    def passed(self) -> bool:
        """Passed, with the guarantee."""
        return self.covered and self.verdict.value == "passed"

    def share(self, measure: str) -> float:
        """Its size by `measure`; a latency is the measured one, or the predicted one of a table from elsewhere."""
        if measure != "latency" or self.latency is None:
            return getattr(self, measure, self.asked)
        return self.latency.predicted if self.latency.measured is None else self.latency.measured


class FrontierRecord(Part):
    """A whole frontier, as in `frontier.json`; points from the largest to the smallest."""

    schema_version: Literal[1]
    name: str
    command: str | None
    created: str
    measure: Literal["params", "macs", "latency"]
    original: Size
    accuracy: Percent
    """The original on the judge split; 100 where the metric is agreement with it."""
    points: Annotated[list[FrontierPoint], Field(min_length=1)]
    seconds: dict[str, float]
    seed: int
    judge_uses: int | None = None
    warnings: list[str] = []
    options: Plain = {}
    data: Plain = {}
    source: Plain = {}
    versions: Plain = {}
    machine: Plain = {}

    @model_validator(mode="after")
    def _ordered(self) -> FrontierRecord:
        asked = [point.asked for point in self.points]
        if asked != sorted(asked, reverse=True):
            raise ValueError(f"the points' sizes {asked} must fall")
        reached = [point.covered for point in self.points]
        if reached != sorted(reached, reverse=True):
            raise ValueError("points that are covered come before those that are not")
        return self

    @property
    def best(self) -> FrontierPoint | None:
        """The smallest network that passed, None if not even the largest did."""
        return next((point for point in reversed(self.points) if point.passed), None)


def checked_frontier(record: Mapping[str, Any], where: str = "frontier") -> FrontierRecord:
    """The content of a `frontier.json` as checked values. SourceError where it is none."""
    try:
        return FrontierRecord.model_validate(json.loads(to_json(record)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in problem["loc"])
        raise SourceError(
            f"{where}: {place}", problem["msg"], "a frontier as compressor wrote it", "make it again."
        ) from None
    except (TypeError, ValueError) as error:
        raise SourceError(where, str(error), "plain finite values", "repair that value.") from None


def read_frontier(path: Path) -> FrontierRecord:
    """The frontier in a file; SourceError where it cannot be read or is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(
            f"frontier '{path}'", words, "a frontier.json that compressor wrote", "check the path."
        ) from None
    return checked_frontier(content, f"frontier '{path}'")


def headline(found: FrontierRecord) -> str:
    """The frontier in one line."""
    best, allowed = found.best, found.points[0].verdict.allowed
    if best is None:
        first = found.points[0].verdict
        bounds = interval(first.interval[0], first.interval[1])
        return f"{first.value.upper()}: not even the largest network passed: {points(first.difference)} points {bounds}"
    share = f"{percent(best.share(found.measure))} of the {MEASURED[found.measure]}"
    bounds = interval(best.verdict.interval[0], best.verdict.interval[1])
    return (
        f"PASSED down to {share}: difference {points(best.verdict.difference)} points {bounds} at "
        f"{100 * best.verdict.confidence:g} %, allowed {points(-allowed)}, {best.verdict.samples} samples"
    )


def said(point: FrontierPoint) -> str:
    """The verdict of a point, in brackets where it is not covered."""
    return point.verdict.value if point.covered else f"({point.verdict.value})"


def table(found: FrontierRecord, wide: bool = True) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: folder, sizes, accuracy (where there is room), change on the judge split, interval, verdict."""
    timed = any(point.latency for point in found.points)
    heads = ["point", "params", "MACs", *(["latency"] if timed else [])]
    lines = []
    for point in found.points:
        verdict = point.verdict
        latency = [percent(point.share("latency")) if point.latency else "-"] if timed else []
        bounds = interval(verdict.interval[0], verdict.interval[1])
        figures = [*([f"{verdict.compressed:.2f}"] if wide else []), points(verdict.difference), bounds, said(point)]
        lines.append([point.folder, percent(point.params), percent(point.macs), *latency, *figures])
    metric = [found.points[0].verdict.metric] if wide else []
    return [*heads, *metric, "change", "interval", "verdict"], lines


NOT_COVERED = (
    "Networks are judged from the largest to the smallest; the first that does not pass ends the sequence. What is "
    "not covered, in brackets, comes after it: its figures are measured, and promise nothing."
)


def frontier_view(found: FrontierRecord, folder: str) -> RenderableType:
    """What the terminal shows of a frontier."""
    heads, lines = table(found, wide=False)
    view = plain_table(*heads)
    for row in lines:
        view.add_row(*cells(*row))
    sizes = f"{amount(found.original.params)} parameters, {amount(found.original.macs)} MACs"
    size = f"original: {sizes}, {found.points[0].verdict.metric} {found.accuracy:.2f}"
    parts: list[RenderableType] = [worded(headline(found), "bold"), worded(size), line(), view]
    if not all(point.covered for point in found.points):
        parts.append(worded(NOT_COVERED))
    parts += [worded(f"warning: {text}", "yellow") for text in found.warnings]
    parts.append(worded(f"Written to {folder}: frontier.json, frontier.html, and a folder for each point"))
    return Group(*parts)
