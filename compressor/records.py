"""Plain values that travel through the house: plan, fold, finding, verdict. Floor 0: knows nobody.

Shape letters: U units, K kept units, E entries of a tap (a flattened unit has several).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1

FindingKind = Literal["silent", "removable", "repeated", "dependent", "needed"]
VerdictValue = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about one unit of one group, with its score and, if repeated, of which unit."""

    group: str
    unit: int
    kind: FindingKind
    score: float
    of: int | None = None
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Which units stay: sorted indices per group. Groups not named stay whole."""

    kept: Mapping[str, tuple[int, ...]]
    predicted_loss: float = 0.0
    """Predicted increase of the loss in nats per sample."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of the paired comparison on the judge samples; numbers in percentage points."""

    value: VerdictValue
    metric: str
    original: float
    compressed: float
    difference: float
    interval: tuple[float, float]
    allowed: float
    confidence: float
    samples: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form written to `record.json`."""
        plain = asdict(self)
        plain["interval"] = list(self.interval)
        plain["details"] = dict(self.details)
        return plain
