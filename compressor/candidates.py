"""Candidates: networks of a given size, built, counted, and compared with the original on the tune split."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from compressor.algebra.answers import answered, class_scores, hits
from compressor.observe import from_first
from compressor.planning.allocation import Allocator
from compressor.planning.search import Tuned
from compressor.records import Plan
from compressor.sources.samples import Samples
from compressor.stages import Report, Workshop, batch_size
from compressor.training.budget import Budget
from compressor.training.recover import OPTIONS, recover, steps_of
from compressor.units.sizes import size_of
from compressor.verify.accuracy import Outputs, out_of_memory, outputs_of
from compressor.verify.scores import Score


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent inside to `seconds[stage]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 3)


Compare = Callable[[nn.Module], Tuned]
"""How a network compares with the original on the tune split."""


@dataclass
class Made:
    """A candidate: the network, its plan and its size, and what its recovery did."""

    model: nn.Module
    plan: Plan
    size: dict[str, int]
    recovered: dict[str, Any] | None = None


class Recoverer:
    """Recovers candidates by distillation; the first one turns a budget in minutes into steps for all of them."""

    def __init__(
        self, budget: Budget, original: nn.Module, samples: Samples, tune: Samples, *, seed: int, parts: int = 1,
        classes: bool = True,
    ) -> None:  # fmt: skip
        """`parts` candidates at most share a budget in minutes; without `classes` answers are numbers."""
        self.budget, self.original, self.samples, self.tune = budget, original, samples, tune
        self.seed, self.parts, self.classes = seed, parts, classes
        self.options = replace(OPTIONS, batch=min(OPTIONS.batch, batch_size(samples)))
        self.steps: int | None = None

    def __call__(self, small: nn.Module, progress: Callable[[float], None]) -> tuple[nn.Module, dict[str, Any]]:
        """The recovered network, and what is to be recorded of it. Smaller batches where memory runs out."""
        given, seed = (small, self.original, self.samples, self.tune), self.seed
        while True:
            try:
                if self.steps is None:
                    self.steps = steps_of(
                        self.budget, *given, parts=self.parts, seed=seed, options=self.options, classes=self.classes
                    )
                made, about = recover(
                    *given, self.steps, seed=seed, options=self.options, progress=progress, classes=self.classes
                )
                return made, {"budget": str(self.budget), **about.as_dict()}
            except RuntimeError as error:
                if not out_of_memory(error) or self.options.batch == 1:
                    raise
                self.options = replace(self.options, batch=self.options.batch // 2)
                if self.budget.unit == "ep":
                    self.steps = None  # as many passes take more of the smaller batches

    def better(
        self, small: nn.Module, before: Outputs, tuned: Tuned, compare: Compare, progress: Callable[[float], None],
        score: Score | None = None,
    ) -> tuple[nn.Module, Tuned, dict[str, Any]]:  # fmt: skip
        """The recovered network, or `small` itself where recovery made its answers on the tune split clearly worse.

        Clearly is by more than a standard error: answers of a tune split change by chance, outputs hardly do.
        `before` are the original's answers there, `tuned` says how `small` compares with them. With the network come
        its own comparison and what is to be recorded.
        """
        made, about = self(small, progress)
        after = compare(made)
        about["tune"] = {
            name: tune_figures(found, before, score) for name, found in (("before", tuned), ("after", after))
        }
        about["kept"] = after.difference >= tuned.difference - math.hypot(after.error, tuned.error)
        if about["kept"]:
            return made, after, about
        return small, tuned, about  # nearer to the original's outputs, yet not to its answers: overfitted


class Builder:
    """Builds candidates for the search and compares them with the original on the tune split."""

    def __init__(
        self, shop: Workshop, allocator: Allocator, measure: str, tune: Samples, before: Outputs,
        seconds: dict[str, float], report: Report, recoverer: Recoverer | None = None, score: Score | None = None,
    ) -> None:  # fmt: skip
        self.score = score
        self.shop, self.allocator, self.measure, self.recoverer = shop, allocator, measure, recoverer
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
        size = size_of(self.shop.model, self.shop.graph, plan.kept)
        with timed(self.seconds, "tune"):
            made, tuned = Made(small, plan, size), self._compared(small)
        if self.recoverer is not None and (plan.kept or self.shop.reference is not None):
            told = lambda done: self.report(f"recover {share:.1%}", done)  # noqa: E731
            with timed(self.seconds, "recover"):
                made.model, tuned, made.recovered = self.recoverer.better(
                    small, self.before, tuned, self._compared, told, self.score
                )
        self.tried.append((made, tuned))
        return made, tuned

    def _compared(self, small: nn.Module) -> Tuned:
        after = outputs_of(small, self.tune, check=False)
        return from_first(lambda: compared(self.before, after, self.score))  # devices may differ in the last bits


def compared(before: Outputs, after: Outputs, score: Score | None = None) -> Tuned:
    """Losses and gains of `after` against `before`: by the score, else by the labels, else by agreement.

    Of maps and texts, whose samples are right in parts, the sums of what samples lost and won.
    """
    if score is not None:
        first, second = score.pair(before, after)
        change = second - first
    elif before.labels is None:
        change = hits(after.logits, answered(class_scores(before.logits))[0]).numpy() - 1.0
    else:
        change = (hits(after.logits, before.labels) - hits(before.logits, before.labels)).numpy()
    return Tuned(float(abs(change[change < 0].sum())), float(change[change > 0].sum()), len(change))


def search_row(
    made: Made, tuned: Tuned, original: Mapping[str, int], before: Outputs, score: Score | None = None
) -> dict[str, Any]:
    """The record's row of a candidate; sizes are shares of the original's."""
    return {
        "params": made.size["params"] / original["params"],
        "macs": made.size["macs"] / max(original["macs"], 1),
        "tune": tune_figures(tuned, before, score),
        "judged": None,
        "selected": False,
        "predicted_loss": made.plan.predicted_loss,
        "recovered": made.recovered,
    }


def tune_figures(tuned: Tuned, before: Outputs, score: Score | None = None) -> dict[str, Any]:
    """Accuracy on the tune split (agreement with the original without labels) and its difference, in points.

    With a score of one's own, its mean in percent of its range stands for the accuracy.
    """
    figures: dict[str, Any] = {"difference": tuned.difference, "samples": tuned.samples}
    if score is not None:
        figures["accuracy"] = min(100.0, 100.0 * float(score.pair(before, before)[0].mean()) + tuned.difference)
    elif before.labels is None:
        figures["agreement"] = 100.0 * (1 - tuned.losses / max(tuned.samples, 1))
    else:
        right = 100.0 * float(hits(before.logits, before.labels).double().mean())
        figures["accuracy"] = right + tuned.difference
    return figures
