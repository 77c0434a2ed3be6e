"""The public calls: compress, analyze, verify, and the result they give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from compressor import pipeline
from compressor.capacity.single import layers_of_one
from compressor.deliver import write
from compressor.export.precision import parse_precisions
from compressor.observe import from_first
from compressor.options import (
    Options,
    parse_align,
    parse_keep,
    parse_memory,
    parse_recover,
    refuse_unread,
    refuse_unread_table,
)
from compressor.outcome import Outcome
from compressor.recording import assemble
from compressor.records import Verdict
from compressor.report.words import verdict_line
from compressor.sources.consent import trusting
from compressor.sources.data import data_of
from compressor.sources.splits import Data
from compressor.stages import Report, silent
from compressor.verification import open_bundle, verify_bundle
from compressor.verify.scores import Score


@dataclass(repr=False)
class Result:
    """What `compress` returns: the smaller network, the verdict, and the record of the run."""

    model: nn.Module
    """A plain nn.Module of the class that was given, in eval mode."""
    verdict: Verdict | None
    record: dict[str, Any]
    original: nn.Module
    data: Data
    outcome: Outcome
    score: Score | None = None
    """What the verdict is on, where it is not accuracy or agreement."""
    assembled: dict[str, Any] = field(init=False, repr=False)
    """The record before anything is written; `save` adds what it exports and measures."""

    def __post_init__(self) -> None:
        self.assembled = copy.deepcopy(self.record)

    def __repr__(self) -> str:
        """The outcome in a line, for notebooks and logs; the parts have the rest."""
        return f"<Result: {verdict_line(self.record)}>"

    def save(
        self,
        folder: str | Path,
        *,
        source: Mapping[str, Any] | None = None,
        keep_failed: bool = False,
        onnx: bool = True,
        precision: Sequence[str] = (),
        report: Report = silent,
    ) -> Path:
        """Write the bundle, the ONNX file (judged again), `record.json` and `report.html` into `folder`.

        `precision` (`"fp16"`, `"int8"`) adds variants of the ONNX file, each judged against the original like it; one
        that fails is kept as `model.int8.failed.onnx`.
        A failed verdict writes the record and the report only, unless `keep_failed`. An earlier result in the
        folder is replaced, file by file; `record` becomes the record that was written. Without `source` (as
        `compressor.sources.models.Source.as_dict` gives it) only `load(DIR, factory=...)` can read the bundle.
        Of several processes the first writes. Raises UsageError where nothing can be written, UnwrittenPage (of
        that kind) where all but the page is.
        """
        path, variants = Path(folder).expanduser(), parse_precisions(tuple(precision))
        how: dict[str, Any] = {"keep_failed": keep_failed, "onnx": onnx, "precision": variants}
        self.record = from_first(lambda: write(self, path, source=source, report=report, **how))
        return path


def compress(
    model: nn.Module,
    calibrate: Any,
    tune: Any = None,
    judge: Any = None,
    *,
    max_drop: float = 0.5,
    confidence: float = 0.95,
    keep: str | tuple[str, float] | None = None,
    exact: bool = False,
    align: str | int = "auto",
    recover: str | None = None,
    unlabelled: Any = None,
    metric: Callable[..., Any] | None = None,
    metric_range: tuple[float, float] = (0.0, 1.0),
    latency_table: str | Path | None = None,
    memory: str | float | None = None,
    rotate: float | None = None,
    device: str = "auto",
    seed: int = 0,
    report: Report = silent,
) -> Result:
    """Compress a trained network on data (loaders, Datasets, or pairs of tensors); `model` is not changed.

    What is None of `tune` and `judge` is split off by content. `keep` fixes the size (`"params=0.35"`,
    `"macs=0.5"`); without it the search finds the smallest size whose accuracy drop is shown, at `confidence`, to be
    at most `max_drop` percentage points. `recover` (`"8ep"`, `"5min"`, `"400st"`) lets every candidate learn the
    original's outputs again, on the inputs of `calibrate` and of `unlabelled`; no labels are read for that. Instead of
    accuracy `metric(outputs, targets)` may score each sample within `metric_range`, higher is better.
    `latency_table` is a file that `compressor timetable` wrote on the machine whose latency `keep="latency=0.4"` is
    about. `memory` (`"8GB"`, or bytes) is what sums and activations may take beside the networks. `rotate` (0.75) first
    cuts residual streams that only norms read to that share of their width, by a rotation (SliceGPT); `keep` then
    counts from the original all the same. A verdict that failed or stayed undecided is a result, not an error. Raises
    CompressorErrors for a model, data or options that cannot be worked with.
    """
    asked = (parse_keep(keep), exact, parse_align(align), device, seed, parse_recover(recover))
    score = scored_by(metric, metric_range)
    table = None if latency_table is None else str(latency_table)
    limits = (table, parse_memory(memory), rotate)
    options = Options(max_drop, confidence, *asked, score and score.name, metric_range, *limits)
    refuse_unread(unlabelled, options)
    refuse_unread_table(options)
    data = data_of(calibrate, tune, judge, seed=seed, unlabelled=unlabelled)
    return finished(model, data, options, report=report, score=score)


def scored_by(metric: Callable[..., Any] | None, limits: tuple[float, float]) -> Score | None:
    """The score that a function (or metric of torchmetrics) handed over in Python is."""
    if metric is None:
        return None
    name = getattr(metric, "__qualname__", type(metric).__qualname__)
    return Score(f"{metric.__module__}:{name}", metric, *limits)


def finished(
    model: nn.Module, data: Data, options: Options, *, report: Report = silent,
    answers: Callable[[Any], Any] | None = None, score: Score | None = None, **about: Any,
) -> Result:  # fmt: skip
    """Run the pipeline and assemble the record; `about` goes into the record (name, source, command, recipe).

    `answers` are those of the ONNX file that `model` was rebuilt from, `score` is what answers are judged by.
    """
    outcome = pipeline.compress(model, data, options, report, answers, score)
    about.setdefault("name", type(model).__name__)
    record = assemble(outcome, data, options, **about)
    return Result(outcome.model, outcome.verdict, record, model, data, outcome, score)


def analyze(
    model: nn.Module, calibrate: Any, *, device: str = "auto", seed: int = 0, report: Report = silent
) -> dict[str, Any]:
    """The record of an analysis: units, what is silent, removable, repeated or dependent, and why; nothing is cut.

    `layers` and `last_hidden` have the measures of `compressor.capacity` of this one network.
    """
    options = Options(device=device, seed=seed)
    data = data_of(calibrate, seed=seed)
    outcome = pipeline.analyze(model, data, options, report)
    found = assemble(outcome, data, options, name=type(model).__name__)
    return {**found, **layers_of_one(outcome, data, options, report)}


def verify(
    folder: str | Path,
    data: Any,
    *,
    factory: Callable[..., nn.Module] | None = None,
    original: nn.Module | None = None,
    metric: Callable[..., Any] | None = None,
    trust_source: bool = False,
) -> Verdict:
    """Judge a bundle again, on `data`, against its original; asks what its record asked (drop, confidence, metric).

    `original` is the network with its trained weights; without it it is loaded from what the record names. So is
    `metric`, which is only read where the record names one. Raises
    SourceError where that, or a file of the bundle, is not what it was. `trust_source` as in `load`.
    """
    with trusting(trust_source):
        return verify_bundle(Path(folder).expanduser(), data, factory=factory, original=original, metric=metric).verdict


def load(
    folder: str | Path, factory: Callable[..., nn.Module] | None = None, *, trust_source: bool = False
) -> nn.Module:
    """The compressed network of a bundle, in eval mode on the CPU; nothing in it is unpickled.

    `factory` builds the original's architecture where its source cannot be found, or where the network was handed
    over in Python. Python code that only the bundle names does not run: SourceError, unless this user compressed it
    here, or `trust_source`. Raises SourceError for a damaged bundle, or one that does not fit what the factory builds.
    """
    with trusting(trust_source):
        return open_bundle(folder, factory)
