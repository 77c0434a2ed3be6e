"""Candidates: networks of a given size, built, counted, and compared with the original on the tune split."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from compressor.observe import from_first
from compressor.planning.allocation import Allocator
from compressor.planning.search import Tuned
from compressor.records import Plan
from compressor.sources.samples import Samples
from compressor.stages import Report, Workshop
from compressor.units.sizes import size_of
from compressor.verify.accuracy import Outputs, class_scores, hits, outputs_of


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent inside to `seconds[stage]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 3)


@dataclass
class Made:
    """A candidate: the network, its plan and its size."""

    model: nn.Module
    plan: Plan
    size: dict[str, int]


class Builder:
    """Builds candidates for the search and compares them with the original on the tune split."""

    def __init__(
        self, shop: Workshop, allocator: Allocator, measure: str, tune: Samples, before: Outputs,
        seconds: dict[str, float], report: Report,
    ) -> None:  # fmt: skip
        self.shop, self.allocator, self.measure = shop, allocator, measure
        self.tune, self.before, self.seconds, self.report = tune, before, seconds, report
        self.tried: list[tuple[Made, Tuned]] = []

    def __call__(self, share: float) -> tuple[Made, Tuned]:
        """Build the candidate that keeps `share` and compare it; the same plan is built once."""
        with timed(self.seconds, "plan"):
            plan = from_first(lambda: self.allocator.plan(self.measure, share))
        for made, tuned in self.tried:
            if made.plan.kept == plan.kept:  # alignment leads neighbouring shares to the same network
                return made, tuned
        with timed(self.seconds, "surgery"):
            small = self.shop.build(plan, lambda _stage, done: self.report(f"refit {share:.1%}", done))
        with timed(self.seconds, "tune"):
            after = outputs_of(small, self.tune, check=False)
        made = Made(small, plan, size_of(self.shop.model, self.shop.graph, plan.kept))
        tuned = from_first(lambda: compared(self.before, after))  # devices may differ in the last bits
        self.tried.append((made, tuned))
        return made, tuned


def compared(before: Outputs, after: Outputs) -> Tuned:
    """Losses and gains of `after` against `before`: by the labels, else by agreement."""
    if before.labels is None:
        same = hits(after.logits, class_scores(before.logits).argmax(1))
        return Tuned(int((same < 1).sum()), 0, same.numel())
    old, new = hits(before.logits, before.labels), hits(after.logits, before.labels)
    return Tuned(int((old > new).sum()), int((new > old).sum()), old.numel())


def search_row(made: Made, tuned: Tuned, original: Mapping[str, int], before: Outputs) -> dict[str, Any]:
    """The record's row of a candidate; sizes are shares of the original's."""
    tune: dict[str, Any] = {"difference": tuned.difference, "samples": tuned.samples}
    if before.labels is None:
        tune["agreement"] = 100.0 * (1 - tuned.losses / max(tuned.samples, 1))
    else:
        right = 100.0 * float(hits(before.logits, before.labels).double().mean())
        tune["accuracy"] = right + tuned.difference
    return {
        "params": made.size["params"] / original["params"],
        "macs": made.size["macs"] / max(original["macs"], 1),
        "tune": tune,
        "judged": None,
        "selected": False,
        "predicted_loss": made.plan.predicted_loss,
    }
