"""Parts of the record that others are made of: sizes, verdicts, latencies, exported files.

Accuracies, agreements, drops and intervals are percentage points; unknown keys are kept.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from compressor.records import VerdictValue

Count = Annotated[int, Field(ge=0)]
Points = Annotated[float, Field(ge=-100 - 1e-6, le=100 + 1e-6)]
Percent = Annotated[float, Field(ge=-1e-6, le=100 + 1e-6)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Plain = dict[str, JsonValue]


class Part(BaseModel):
    """A part of the record: no text for numbers, no NaN; unknown keys are kept (later versions add some)."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


class Size(Part):
    """How large a network is: parameters, and multiply-accumulates for one input."""

    params: Count
    macs: Count


class VerdictPart(Part):
    """A verdict as `records.Verdict.as_dict` gives it; numbers in percentage points."""

    value: VerdictValue
    metric: str
    original: Percent
    compressed: Percent
    difference: Points
    interval: Interval
    allowed: Annotated[float, Field(ge=0)]
    confidence: Annotated[float, Field(gt=0, le=1)]
    samples: Annotated[int, Field(ge=1)]
    details: Plain = {}

    @model_validator(mode="after")
    def _ordered(self) -> VerdictPart:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval {self.interval} must not fall")
        return self


class LatencyFile(Part):
    """One file's times of a call in milliseconds, and its ratio to the first file's."""

    path: str
    median_ms: float
    p10_ms: float
    min_ms: float
    ratio: float
    interval: Interval
    p10_ratio: float


class Latency(Part):
    """Files timed in interleaved rounds; the first is the base."""

    files: Annotated[list[LatencyFile], Field(min_length=1)]
    threads: Count
    batch: Count
    rounds: Count
    confidence: float = 0.95


class Timed(Part):
    """A plan that was timed: the share of the original's time that it was made for, predicted and measured.

    The latter is None where the table was measured on another machine.
    """

    target: float
    predicted: float
    measured: float | None
    interval: Interval | None


class Clocked(Timed):
    """Latency as the objective: what was asked for, the plan that was taken, and all that were tried to hit it.

    `table` holds what was measured before: microseconds of each layer by the widths of its weight.
    """

    asked: Share
    tried: list[Timed]
    table: Plain
    given: str | None = None
    """The file that the table comes from, where it was not measured here."""


class VariantPart(Part):
    """The file in lower precision, with its own verdict against the original; `latency_ratio` is to the original's
    float32 file. `path` says `.failed` where the verdict failed."""

    precision: Literal["fp16", "int8"]
    path: str
    bytes: Count
    verdict: VerdictPart
    calibrated_on: Count
    latency_ratio: float | None = None
    latency_interval: Interval | None = None
    median_ms: float | None = None


class OnnxPart(Part):
    """The exported file. `agreement` is with the network; errors are None where the outputs carry no signal."""

    path: str
    opset: Count
    max_abs_error: float | None
    agreement: Percent | None
    latency_ratio: float | None
    relative_error: float | None = None
    bytes: Count | None = None
    original_bytes: Count | None = None
    latency: Latency | None = None
    notes: list[str] = []
    variants: list[VariantPart] = []
