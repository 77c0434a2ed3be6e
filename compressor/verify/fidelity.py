"""How near the compressed network's outputs are to the original's, sample by sample. Figures, no verdict.

Letters: n samples, C classes, P positions (of a segmentation map; absent for plain classification).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.algebra.answers import answered, chunk_of, class_scores, counted
from compressor.errors import ModelError
from compressor.verify.accuracy import Outputs, checked_labels


@dataclass(frozen=True, slots=True)
class WorstClass:
    """The class that lost most accuracy, in percentage points, and how many samples (or positions) it has."""

    label: int
    drop: float
    samples: int
    original: float
    compressed: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Nearness of two networks' outputs on the same samples.

    `agreement` is the share of equal argmaxes (percent); `kl` the mean of KL(original || compressed) in nats (both over
    the positions that labels do not leave out);
    `max_relative_change` is `max_abs_change` over `spread`, the standard deviation of the original's outputs
    over samples (root mean square over outputs; for a single sample: their size). Outputs of the compressed
    network that are not finite count as disagreement and as infinite change (None in the JSON form).
    """

    agreement: float
    kl: float
    max_abs_change: float
    max_relative_change: float
    spread: float
    not_finite: int
    worst_class: WorstClass | None
    samples: int

    def as_dict(self, classes: bool = True) -> dict[str, Any]:
        """The JSON form; infinity becomes None. Without `classes` the outputs are numbers: they have no largest score,
        and no divergence."""
        plain = asdict(self) | ({} if classes else {"agreement": None, "kl": None})
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in plain.items()
        }


def fidelity(
    original: Outputs | Tensor, compressed: Outputs | Tensor, labels: Tensor | None = None, classes: bool = True
) -> Fidelity:
    """Compare two networks' outputs on the same samples; with labels (given, or the original's) per class.

    Without `classes` labels are no class numbers, and are not read.

    Raises ModelError where the outputs' shapes differ, DataError for labels that do not fit.
    """
    before, after = same_shape(original, compressed)
    if labels is None and isinstance(original, Outputs):
        labels = original.labels
    labels = labels if classes else None
    truth = None if labels is None else checked_labels(labels, before)
    spread = output_spread(before)
    agreed, kl, change, bad = 0.0, 0.0, 0.0, 0
    for ids in _chunks(before):
        one, other = before[ids], after[ids]
        finite = torch.isfinite(other).reshape(len(other), -1).all(1)  # single answers may have no dimension but n
        first, second = class_scores(one.double()), class_scores(other.double())
        same = (first.argmax(1) == second.argmax(1)).double().reshape(len(one), -1)
        shares = _shares(same, None if truth is None else counted(truth[ids], first.shape[1]))
        agreed += float(((same * shares).sum(1) * finite).sum())
        bad += int((~finite).sum())
        kl += _divergence(first[finite], second[finite], shares[finite])
        change = max(change, float((one[finite] - other[finite]).abs().max()) if bool(finite.any()) else 0.0)
    change, kl = (math.inf, math.inf) if bad else (change, kl)
    count = len(before)
    return Fidelity(
        agreement=100 * agreed / count,
        kl=kl / count,
        max_abs_change=change,
        max_relative_change=change / spread if spread else (0.0 if change == 0 else math.inf),
        spread=spread,
        not_finite=bad,
        worst_class=None if labels is None else worst_class(before, after, labels),
        samples=count,
    )


def worst_class(original: Tensor, compressed: Tensor, labels: Tensor) -> WorstClass:
    """The class whose accuracy falls most; among equals the one with more samples, then the lower number."""
    truth = checked_labels(labels, original)
    classes = class_scores(original).shape[1]
    (first, _), (second, finite) = answered(class_scores(original)), answered(class_scores(compressed))
    counting = counted(truth, classes)
    flat = truth[counting]
    counts = torch.bincount(flat, minlength=classes).double()
    before = torch.bincount(flat, (first == truth)[counting].double(), classes)
    after = torch.bincount(flat, ((second == truth) & finite)[counting].double(), classes)
    seen = counts.clamp(min=1)
    drops = torch.where(counts > 0, (before - after) / seen, torch.full_like(counts, -math.inf))
    top = drops.max()
    label = int(torch.where(drops == top, counts, torch.zeros_like(counts)).argmax())
    return WorstClass(
        label=label,
        drop=100 * float(drops[label]),
        samples=int(counts[label]),
        original=100 * float(before[label] / seen[label]),
        compressed=100 * float(after[label] / seen[label]),
    )


def same_shape(original: Outputs | Tensor, compressed: Outputs | Tensor) -> tuple[Tensor, Tensor]:
    """Both logits; ModelError if they are not of one shape."""
    before = original.logits if isinstance(original, Outputs) else original
    after = compressed.logits if isinstance(compressed, Outputs) else compressed
    if before.shape != after.shape or not len(before):
        raise ModelError(
            "outputs to compare",
            f"shape {tuple(after.shape)} (compressed network) and {tuple(before.shape)} (original)",
            "one shape, with at least one sample",
            "judge both on the same samples; a compressed network keeps its number of outputs",
        )
    return before, after


def output_spread(logits: Tensor) -> float:
    """Standard deviation over samples, root mean square over outputs; for one sample the outputs' size."""
    centre = logits.mean(0, dtype=torch.float64) if len(logits) > 1 else torch.zeros((), dtype=torch.float64)
    squares = sum(float((part.double() - centre).square().sum()) for part in logits.split(chunk_of(logits)))
    return math.sqrt(squares / logits.numel())


def _chunks(rows: Tensor) -> Iterator[slice]:
    step = chunk_of(rows)
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def _shares(like: Tensor, counts: Tensor | None) -> Tensor:
    """(n, P) what each position counts for in its sample's mean."""
    weights = torch.ones_like(like) if counts is None else counts.reshape(like.shape).to(like)
    return weights / weights.sum(1, keepdim=True)


def _divergence(first: Tensor, second: Tensor, shares: Tensor) -> float:
    """Sum over samples (mean over positions, by their shares) of KL(first || second), in nats."""
    if not len(first):
        return 0.0
    log_first, log_second = functional.log_softmax(first, 1), functional.log_softmax(second, 1)
    each = functional.kl_div(log_second, log_first, reduction="none", log_target=True).sum(1)
    return float((each.reshape(len(first), -1) * shares).sum(1).clamp(min=0).sum())
