"""The schema of `record.json`: everything that text, page and scripts may rely on, checked in one place.

Accuracies, agreements, drops and intervals are percentage points; sizes of search candidates are shares between 0
and 1. Keys that the schema does not know are kept.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue, ValidationError, model_validator

from compressor.errors import SourceError
from compressor.export.files import to_json
from compressor.records import SCHEMA_VERSION
from compressor.report.parts import (
    Clocked,
    Count,
    OnnxPart,
    Part,
    Percent,
    Plain,
    Points,
    Share,
    Size,
    VerdictPart,
)

_MAX_BYTES = 256 * 1024**2


class Tally(Part):
    """Units by finding; `needed` and the four findings are disjoint."""

    units: Count
    silent: Count
    removable: Count
    repeated: Count
    dependent: Count
    needed: Count

    @property
    def explained(self) -> int:
        """How many units have a finding or are needed."""
        return self.silent + self.removable + self.repeated + self.dependent + self.needed


class Findings(Tally):
    """Findings of the whole network; together with the frozen units they sum to `units`."""

    frozen: Count

    @model_validator(mode="after")
    def _complete(self) -> Findings:
        if self.explained + self.frozen != self.units:
            raise ValueError(f"findings and frozen units sum to {self.explained + self.frozen}, not {self.units}")
        return self


class GroupPart(Tally):
    """One group: what was found, which units stay (sorted), and why it is frozen if it is."""

    name: str
    kept: list[Count]
    frozen: str | None = None
    predicted_loss: float | None = None
    producers: list[str] = []
    carriers: list[str] = []
    consumers: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> GroupPart:
        kept = self.kept
        if any(later <= earlier for earlier, later in itertools.pairwise(kept)):
            raise ValueError(f"kept units of {self.name!r} must be sorted, each once")
        if kept and kept[-1] >= self.units:
            raise ValueError(f"group {self.name!r} keeps unit {kept[-1]} of {self.units}")
        if self.frozen is not None and len(kept) != self.units:
            raise ValueError(f"group {self.name!r} is frozen and must keep all {self.units} units")
        if self.frozen is None and self.explained != self.units:
            raise ValueError(f"findings of group {self.name!r} sum to {self.explained}, not {self.units}")
        return self


class Coverage(Part):
    """Conv / linear layers seen, those that a live group writes or reads, and why the others are not."""

    layers: Count
    covered: Count
    frozen: Count
    text: str
    uncovered: dict[str, str] = {}


class Tuned(Part):
    """A candidate on the tune split: accuracy, or agreement where there are no labels, and the change."""

    accuracy: Percent | None = None
    agreement: Percent | None = None
    difference: Points | None = None

    @property
    def change(self) -> float | None:
        """Difference to the original in points, from the agreement where it is not given."""
        if self.difference is None and self.agreement is not None:
            return self.agreement - 100
        return self.difference


class Pilot(Part):
    """A short training before the recovery: the peak of its learning rate, and the distance after it, if finite."""

    rate: float
    distance: float | None


class Recovered(Part):
    """How a candidate learned the original's outputs again: steps taken, and the tune split before and after.

    `before` and `after` are distances of the outputs (`measure`), None where they are not finite.
    """

    budget: str
    steps: Count
    epochs: float
    samples: Count
    batch: Count
    rate: float
    measure: str
    before: float | None
    after: float | None
    best_step: Count
    seconds: float
    tune: dict[Literal["before", "after"], Tuned]
    kept: bool = True
    """False where the tune split's answers became clearly worse: the network is the one from before the recovery."""
    stopped: str | None = None
    pilots: list[Pilot] = []


class Candidate(Part):
    """One network of the search; sizes are shares of the original's."""

    params: Share
    macs: Share
    tune: Tuned | None = None
    judged: VerdictPart | None = None
    selected: bool = False
    predicted_loss: float | None = None
    recovered: Recovered | None = None


class Ablated(Part):
    """Units that were really taken out, their finding, and the loss predicted and measured, in nats."""

    predicted: float
    measured: float
    kind: str = "removable"
    units: JsonValue = None
    """Their numbers, or how many where they are too many to list."""


class Ablation(Part):
    """How well predicted losses agree with measured ones, as `findings.ablation.Agreement.as_dict` gives it.

    `tried` has single units, `together` all removable units at once; `confirmed` is the share of the
    `removable` units tried whose measured loss is at most `below` nats.
    """

    tried: list[Ablated] = []
    together: Ablated | None = None
    samples: Count | None = None
    below: float | None = None
    removable: Count | None = None
    confirmed: Share | None = None
    rank_correlation: float | None = None
    median_ratio: float | None = None


class TurnedStream(Part):
    """A residual stream that became narrower, and the share of what its norms give that it kept."""

    name: str
    before: Count
    after: Count
    kept_variance: dict[str, float] = {}
    predicted_loss: float | None = None


class RotationPart(Part):
    """What `--rotate` did: the streams that it cut, and name -> why not for the others."""

    share: Share
    streams: list[TurnedStream] = []
    refused: dict[str, str] = {}


class DataPart(Part):
    """Fingerprints of the splits, how many samples each has, and what they are."""

    calibrate: str | None = None
    tune: str | None = None
    judge: str | None = None
    counts: Plain = {}
    described: Plain = {}

    @property
    def marks(self) -> dict[str, str | None]:
        """The fingerprints alone."""
        more = self.described.get("unlabelled")
        extra = more.get("fingerprint") if isinstance(more, dict) else None
        known = {"calibrate": self.calibrate, "tune": self.tune, "judge": self.judge}
        return {**known, "unlabelled": None if extra is None else str(extra)}


class Memory(Part):
    """What the memory meant: bytes that were allowed, readings of the data for the statistics, samples in a batch of
    them, bytes of its activations that waited in files, bytes of the network's weights that did not fit on its device
    and were fetched for each operation, samples of the refit, and how many of those waited in files."""

    allowed: float | None = None
    passes: Count
    batch: Count
    activations_in_files: Count = 0
    weights_fetched: Count = 0
    refit_samples: Count = 0
    refit_in_files: Count = 0


class Record(Part):
    """Everything about one run, as in `record.json`."""

    schema_version: Literal[1]
    name: str
    command: str | None
    created: str
    mode: Literal["exact", "lossy", "analyze"]
    original: Size
    compressed: Size | None
    unaligned: Size | None = None
    nothing_to_do: str | None = None
    verdict: VerdictPart | None
    onnx_verdict: VerdictPart | None = None
    fidelity: Plain | None = None
    findings: Findings
    thresholds: Plain = {}
    ablation: Ablation | None = None
    groups: list[GroupPart]
    layers: list[Plain] = []
    last_hidden: Plain | None = None
    coverage: Coverage | None = None
    search: list[Candidate] = []
    onnx: OnnxPart | None
    align: Plain | None = None
    recover: Recovered | None = None
    latency: Clocked | None = None
    memory: Memory | None = None
    rotation: RotationPart | None = None
    seconds: dict[str, float]
    versions: Plain
    machine: Plain = {}
    seed: int
    threads: Count | None = None
    processes: Count = 1
    device: str | None = None
    data: DataPart
    source: Plain = {}
    judge_uses: Count | None = None
    warnings: list[str] = []
    options: Plain = {}
    recipe: Plain | None = None
    request: Plain | None = None
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _complete(self) -> Record:
        judged = self.mode != "analyze" and self.nothing_to_do is None
        if judged and self.verdict is None:
            raise ValueError(f"a run in {self.mode} mode with something to do has a verdict")
        if self.mode != "analyze" and self.compressed is None:
            raise ValueError(f"a run in {self.mode} mode has the size of the compressed network")
        if sum(candidate.selected for candidate in self.search) > 1:
            raise ValueError("more than one candidate of the search is selected")
        return self

    @property
    def exported(self) -> bool:
        """False for a failed verdict without `keep_failed`, and where nothing was to be changed."""
        if self.mode == "analyze":
            return False
        failed = self.verdict is not None and self.verdict.value == "failed"
        return not failed or self.options.get("keep_failed") is True


def validate(record: Mapping[str, Any] | Record, where: str = "record") -> Record:
    """The record as checked values. Takes what `record.json` holds, also with numpy or torch scalars in it.

    Raises SourceError that names the first key that is missing or not as the schema says.
    """
    if isinstance(record, Record):
        return record
    try:
        content = json.loads(to_json(record))
    except (TypeError, ValueError) as error:
        raise SourceError(where, str(error), "plain finite values", "repair that value.") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise SourceError(
            f"{where}: schema_version",
            repr(version),
            str(SCHEMA_VERSION),
            "read it with the version of compressor that wrote it.",
        )
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        raise _refused(error, where) from None


def read_record(path: str | Path) -> Record:
    """The record in a file; SourceError where it cannot be read or is none."""
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SourceError(f"record '{path}'", "a huge file", f"at most {_MAX_BYTES} bytes", "give a record.json.")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(f"record '{path}'", words, "a record.json that compressor wrote", "check the path.") from None
    if not isinstance(content, dict):
        raise SourceError(f"record '{path}'", f"a {type(content).__name__}", "an object", "check the path.")
    return validate(content, f"record '{path}'")


def record_schema() -> dict[str, Any]:
    """JSON schema of `record.json`, for scripts and editors."""
    return Record.model_json_schema()


def _refused(error: ValidationError, where: str) -> SourceError:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(step) for step in problem["loc"])
    more = f" (and {error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    got = "nothing" if problem["type"] == "missing" else f"{problem['input']!r}"[:80]
    words = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = "a value" if problem["type"] == "missing" else words
    return SourceError(
        f"{where}: {place}" if place else where,
        got + more,
        expected,
        "give the record as compressor wrote it.",
    )
