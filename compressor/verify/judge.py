"""The verdict: passed, failed or undecided, on paired per-sample scores of the same judge samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from compressor.algebra.answers import answered, chunk_of, class_scores, hits
from compressor.algebra.intervals import (
    bounded_bounds,
    check_confidence,
    paired_bounds,
    smallest_decidable_drop,
)
from compressor.errors import DataError, UsageError
from compressor.records import Verdict, VerdictValue
from compressor.verify.accuracy import Outputs, checked_labels
from compressor.verify.doubts import doubt
from compressor.verify.fidelity import fidelity, same_shape
from compressor.verify.scores import Score

Metric = Literal["accuracy", "agreement"]

ROUNDING_LEVEL = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Output change, relative to the spread over samples, that a reordering of the arithmetic explains."""

FILE_TOLERANCE = 1e-4
"""The same for an ONNX file, whose float32 arithmetic is another runtime's."""


def judge(
    original: Outputs | Tensor,
    compressed: Outputs | Tensor,
    labels: Tensor | None = None,
    *,
    allowed: float = 0.5,
    confidence: float = 0.95,
    metric: Metric | Score = "accuracy",
    keys: np.ndarray | None = None,
) -> Verdict:
    """Whether the compressed network loses no more than `allowed` percentage points of `metric`.

    Both outputs are of the same samples, in the same order; labels default to those of the original.
    The interval is made of two one-sided bounds, each at `confidence` and valid at every number of samples:
    *passed* where the lower one is at least -allowed, *failed* where the upper one is below -allowed, else
    *undecided*. "agreement" needs no labels: the original scores 100 by definition. A `Score` of one's own counts in
    percent of its range. Scores between 0 and 1
    (segmentation maps) are bounded by betting in the order of `keys`, the samples' hashes. What `doubts.doubt` says
    against a comparison of accuracies takes the place of "passed" (`details["doubt"]`).

    Raises DataError for labels that are missing or do not fit, ModelError where shapes differ, UsageError for
    `allowed` outside [0, 100) or a confidence outside [0.5, 1).
    """
    check_confidence(confidence)
    _check_allowed(allowed)
    truth = _truth(original, labels) if metric == "accuracy" else None
    if isinstance(metric, Score):
        before, after = _scored(metric, original, compressed, labels)
    else:
        before, after = _scores(original, compressed, truth, metric)
    losses, gains, n = int((after < before).sum()), int((after > before).sum()), len(before)
    details: dict[str, object] = {"losses": losses, "gains": gains}
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        lower, upper = paired_bounds(losses, gains, n, confidence)
        difference = (gains - losses) / n
        details["bound"] = "exact unconditional (Buehler)"
    else:
        lower, upper = bounded_bounds(after - before, keys, confidence)
        difference = float((after - before).mean())
        details["bound"] = "betting (Waudby-Smith & Ramdas)"
    details["smallest_decidable_drop"] = 100 * smallest_decidable_drop(n, confidence)
    if isinstance(original, Outputs):
        details["judged"] = original.judged
    value = _value(100 * lower, 100 * upper, allowed)
    against = doubt(*same_shape(original, compressed), truth) if value == "passed" and truth is not None else None
    if against is not None:
        value, details["doubt"] = against
    return Verdict(
        value=value,
        metric=metric.name if isinstance(metric, Score) else metric,
        original=100 * float(before.mean()),
        compressed=100 * float(after.mean()),
        difference=100 * difference,
        interval=(100 * lower, 100 * upper),
        allowed=allowed,
        confidence=confidence,
        samples=n,
        details=details,
    )


def judge_outputs(original: Outputs | Tensor, compressed: Outputs | Tensor, tolerance: float | None = None) -> Verdict:
    """The verdict of exact mode, on the outputs themselves: passed or failed, nothing is estimated.

    Passed if the largest change relative to the spread over samples is at rounding level for the coarser
    dtype of the two (or `tolerance`), and the argmax is the same wherever the original's margin exceeds that
    level.
    `original` and `compressed` are agreement in percent; the interval is the difference itself.
    """
    before, after = same_shape(original, compressed)
    found = fidelity(before, after)
    if tolerance is None:
        tolerance = max(_rounding_level(original), _rounding_level(compressed))
    change = found.max_relative_change
    flips = _flips(class_scores(before), class_scores(after), tolerance * found.spread)
    difference = found.agreement - 100
    return Verdict(
        value="passed" if change <= tolerance and not flips and not found.not_finite else "failed",
        metric="outputs",
        original=100.0,
        compressed=found.agreement,
        difference=difference,
        interval=(difference, difference),
        allowed=0.0,
        confidence=1.0,
        samples=len(before),
        details={
            "max_relative_change": change if math.isfinite(change) else None,
            "max_abs_change": found.max_abs_change if math.isfinite(found.max_abs_change) else None,
            "tolerance": tolerance,
            "spread": found.spread,
            "flips_beyond_margin": flips,
            "not_finite": found.not_finite,
        },
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network to judge: its size (parameters, MACs, ...) and how to get its verdict (called once)."""

    name: str
    size: float
    judge: Callable[[], Verdict]


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome of a fixed sequence: verdicts of those judged, in order, and which of them is taken."""

    winner: int | None
    """Place of the smallest network that passed, None if not even the first did."""
    verdicts: tuple[Verdict, ...]
    judged: tuple[str, ...]
    unjudged: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The winner's verdict, or that of the first candidate where none passed."""
        return self.verdicts[self.winner or 0]


def fixed_sequence(candidates: Sequence[Candidate]) -> Selection:
    """Judge from the largest network to the smallest, stop at the first not passed, take the last passed.

    As the order is fixed before the judge data is opened, the chance of any wrong "passed" stays at
    1 - confidence without correction (fixed-sequence testing; Angelopoulos et al., "Learn then Test", 2021).
    The winner's own accuracy is selected and marked so: `details["selected"]`.

    Raises UsageError for no candidates, or candidates that are not ordered by falling size.
    """
    sizes = [candidate.size for candidate in candidates]
    if not sizes or any(later > earlier for earlier, later in itertools.pairwise(sizes)):
        raise UsageError(
            "candidates to judge",
            f"sizes {sizes}",
            "at least one, ordered from the largest to the smallest",
            "write the list down in that order before the judge data is opened",
        )
    verdicts: list[Verdict] = []
    for candidate in candidates:
        verdicts.append(candidate.judge())
        if verdicts[-1].value != "passed":
            break
    passed = sum(verdict.value == "passed" for verdict in verdicts)
    winner = passed - 1 if passed else None
    if winner is not None:
        chosen = verdicts[winner]
        verdicts[winner] = replace(chosen, details={**chosen.details, "selected": True})
    names = tuple(candidate.name for candidate in candidates)
    return Selection(winner, tuple(verdicts), names[: len(verdicts)], names[len(verdicts) :])


def _value(lower: float, upper: float, allowed: float) -> VerdictValue:
    if lower >= -allowed:
        return "passed"
    return "failed" if upper < -allowed else "undecided"


def _check_allowed(allowed: float) -> None:
    if not 0 <= allowed < 100:
        raise UsageError("allowed drop", f"{allowed}", "percentage points in [0, 100)", "use e.g. --max-drop 0.5")


def _scores(
    original: Outputs | Tensor, compressed: Outputs | Tensor, truth: Tensor | None, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """Per-sample scores in [0, 1] of both networks, (n,) float64."""
    before, after = same_shape(original, compressed)
    if metric == "agreement":
        answers, _ = answered(class_scores(before))
        return np.ones(len(before)), hits(after, answers).numpy()
    if metric != "accuracy" or truth is None:
        raise UsageError("metric", repr(metric), "'accuracy' or 'agreement'", "choose one of them")
    return hits(before, truth).numpy(), hits(after, truth).numpy()


def _scored(
    metric: Score, original: Outputs | Tensor, compressed: Outputs | Tensor, labels: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Per-sample scores of one's own, as shares of their range."""
    same_shape(original, compressed)
    before, after = (one.answers if isinstance(one, Outputs) else one for one in (original, compressed))
    truth = original.labels if labels is None and isinstance(original, Outputs) else labels
    targets = before if truth is None else truth
    return metric(before, targets), metric(after, targets)


def _truth(original: Outputs | Tensor, labels: Tensor | None) -> Tensor:
    """The class numbers that accuracy is measured by. DataError where there are none, or others."""
    if labels is None and isinstance(original, Outputs):
        labels = original.labels
    if labels is None:
        raise DataError(
            "judged data",
            "no labels",
            "a label for every sample, to judge accuracy",
            "give labelled judge data, or judge agreement with the original instead",
        )
    return checked_labels(labels, original.logits if isinstance(original, Outputs) else original)


def _rounding_level(outputs: Outputs | Tensor) -> float:
    return ROUNDING_LEVEL.get(outputs.dtype, 1e-4)


def _flips(before: Tensor, after: Tensor, level: float) -> int:
    """How many argmaxes of scores differ where the original's two largest ones are further apart than `level`."""
    found, step = 0, chunk_of(before)
    for one, other in zip(before.split(step), after.split(step), strict=True):
        top = one.double().topk(2, dim=1).values
        changed = one.argmax(1) != other.argmax(1)
        found += int((changed & (top[:, 0] - top[:, 1] > level)).sum())
    return found
