"""The public call: a frontier from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from compressor.api import Result, scored_by
from compressor.frontier.points import trace
from compressor.options import Options, Sizes, parse_align, parse_memory, parse_recover, refuse_unread
from compressor.recording import assemble
from compressor.sources.data import data_of
from compressor.stages import Report, silent


def frontier(
    model: nn.Module,
    calibrate: Any,
    tune: Any = None,
    judge: Any = None,
    *,
    sizes: Sequence[float] | None = None,
    points: int = 5,
    measure: str = "params",
    max_drop: float = 0.5,
    confidence: float = 0.95,
    align: str | int = "auto",
    recover: str | None = None,
    unlabelled: Any = None,
    metric: Callable[..., Any] | None = None,
    metric_range: tuple[float, float] = (0.0, 1.0),
    memory: str | float | None = None,
    rotate: float | None = None,
    device: str = "auto",
    seed: int = 0,
    report: Report = silent,
) -> list[Result]:
    """Networks of several sizes from one set of statistics, judged together; `model` is not changed.

    `sizes` are shares of `measure` (`params`, `macs`, `latency`), or `points` of them are spread from 0.7 down to the
    smallest that can be built. Results come from the largest to the smallest network; all verdicts up to the first
    that did not pass hold together at `confidence` (fixed-sequence testing). Those behind it say in
    `record["warnings"]` that they are measured only. The other arguments are those of `compressor.compress`; so are
    the errors, and UsageError is raised for sizes that cannot be built.
    """
    asked = Sizes(measure, None if sizes is None else tuple(sizes), points)
    score = scored_by(metric, metric_range)
    chosen = (None, False, parse_align(align), device, seed, parse_recover(recover))
    limits = (metric_range, None, parse_memory(memory), rotate)
    options = Options(max_drop, confidence, *chosen, score and score.name, *limits)
    refuse_unread(unlabelled, options)
    data = data_of(calibrate, tune, judge, seed=seed, unlabelled=unlabelled)
    found = trace(model, data, options, asked, report, score=score)
    results = []
    for point in found.points:
        record = assemble(point.outcome, data, replace(options, keep=(measure, point.asked)), name=type(model).__name__)
        results.append(Result(point.outcome.model, point.outcome.verdict, record, model, data, point.outcome, score))
    return results
