"""Comparisons of accuracy that prove nothing, whatever their statistics say: a verdict on them is never "passed"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compressor.algebra.answers import answered, class_scores, counted
from compressor.records import VerdictValue

BETTER_THAN_CHANCE = 4.0
"""Standard errors by which the original must beat answers that have nothing to do with the labels."""


def doubt(before: Tensor, after: Tensor, truth: Tensor) -> tuple[VerdictValue, str] | None:
    """What a "passed" becomes instead, and why; None where nothing is to be said against it.

    `before` and `after` are scores (n, C, ...), `truth` class numbers. *failed*: the compressed network answers the
    same for every sample, the original does not (where one class is frequent, accuracy hardly falls). *undecided*:
    the original is not shown to do better than answers drawn regardless of the label, as on labels of other samples;
    what it cannot do, no compression can lose. Networks that answer the same are equal on any labels.
    """
    scores = class_scores(before)
    counts = counted(truth, scores.shape[1])
    first, second = answered(scores)[0][counts], answered(class_scores(after))[0][counts]
    truth = truth[counts]
    if torch.equal(first, second):
        return None
    if _constant(second) and not _constant(first):
        return "failed", "the compressed network answers the same for every sample, the original does not"
    if not _constant(truth) and above_chance(first, truth) < BETTER_THAN_CHANCE:
        return "undecided", "the original is not shown to be better than chance on these labels: do they belong to it?"
    return None


def above_chance(answers: Tensor, truth: Tensor) -> float:
    """Standard errors of the hits (n,) above what the same answers would score on labels in a random order.

    Mean and variance of the hits under a random order of the labels: those of a permutation (Hoeffding 1951), as for
    Cohen's kappa. 0 where nothing can vary.
    """
    n, classes = len(truth), int(max(answers.max(), truth.max())) + 1
    said = torch.bincount(answers, minlength=classes).double() / n
    true = torch.bincount(truth, minlength=classes).double() / n
    chance = float((said * true).sum())
    spread = chance + chance**2 - float((said * true * (said + true)).sum())
    variance = spread / max(n - 1, 1)
    found = float((answers == truth).double().mean())
    return (found - chance) / math.sqrt(variance) if variance > 1e-15 else 0.0


def _constant(values: Tensor) -> bool:
    return bool((values == values[:1]).all())
