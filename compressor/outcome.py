"""What a run found and made, before any of it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from compressor.findings.summary import summarise
from compressor.records import Finding, Plan, Verdict
from compressor.units.graph import UnitGraph
from compressor.units.sizes import size_of
from compressor.verify.accuracy import Outputs


@dataclass(repr=False)
class Outcome:
    """What a run found and made, before it is written: everything the record is assembled from."""

    model: nn.Module
    graph: UnitGraph
    original_size: dict[str, int]
    size: dict[str, int]
    mode: str
    plan: Plan
    found: list[Finding] = field(default_factory=list)
    thresholds: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    fidelity: dict[str, Any] | None = None
    ablation: dict[str, Any] | None = None
    nothing_to_do: str | None = None
    unaligned: dict[str, int] | None = None
    align: dict[str, Any] = field(default_factory=lambda: {"block": 1, "why": "not aligned"})
    latency: dict[str, Any] | None = None
    search: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    predicted: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    """What the memory meant: passes over the data, batches, samples of the refit and how many of them wait in files."""
    judged_on: Outputs | None = None
    recovered: dict[str, Any] | None = None
    rotation: dict[str, Any] | None = None
    """What was turned and what was not, where that was asked for."""

    def __repr__(self) -> str:
        """Sizes and verdict, for notebooks and logs; printed whole, the findings alone are thousands of lines."""
        verdict = None if self.verdict is None else self.verdict.value
        return f"<Outcome: {self.mode}, {self.original_size} -> {self.size}, verdict {verdict}>"

    @property
    def summary(self) -> dict[str, Any]:
        """Counts of the findings, whole and per group."""
        return summarise(self.graph, self.found)


def untouched(model: nn.Module, work: nn.Module, graph: UnitGraph, why: str | None) -> Outcome:
    """The outcome in which nothing was taken out: where every run starts; `why` if it is to end so."""
    size = size_of(work, graph, {})
    return Outcome(model, graph, size, dict(size), "lossy", Plan({}), nothing_to_do=why)
