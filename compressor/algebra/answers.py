"""What answers say about classes: scores with classes in dimension 1, and how right they are.

Letters: n samples, C classes, P positions (of a segmentation map or a text; absent for plain classification).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.algebra.probabilities import two_classes

LEFT_OUT = -100
"""Label of a position that does not count: torch's `ignore_index`, and padding in transformers."""
VOID = 255
"""The same in segmentation maps (borders, unlabelled ground) of up to 255 classes."""
_NUMBERS = 2**22
"""Scores that are worked on at a time."""


def class_scores(logits: Tensor) -> Tensor:
    """Scores (n, C) or (n, C, P) from logits (n, C, ...); a single score z becomes the two classes (0, z), a single
    probability those of its log odds.
    """
    scores = logits.flatten(2).squeeze(-1) if logits.ndim > 2 else logits
    return two_classes(scores) if scores.ndim == 1 or scores.shape[1] == 1 else scores


def counted(labels: Tensor, classes: int) -> Tensor:
    """Which labels count: all of plain classification; of maps and texts (n, P) not LEFT_OUT, and VOID where it is no
    class.
    """
    if labels.ndim < 2:
        return torch.ones_like(labels, dtype=torch.bool)
    return (labels != LEFT_OUT) & ((labels != VOID) | (classes > VOID))


def answered(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The class that scores (n, C) or (n, C, P) answer, and whether all of them are finite: both (n,) or (n, P)."""
    parts = [(part.argmax(1), torch.isfinite(part).all(1)) for part in scores.split(chunk_of(scores))]
    return torch.cat([classes for classes, _ in parts]), torch.cat([finite for _, finite in parts])


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) float64 scores in [0, 1]: 1 where the label's score is largest; for maps the share of counted positions.

    A sample (of maps: a position) whose scores are not all finite counts as wrong.
    """
    scores = class_scores(logits)
    answers, finite = answered(scores)
    labels = labels.reshape(answers.shape)
    right = (answers == labels) & finite
    if right.ndim == 1:
        return right.to(torch.float64)
    counts = counted(labels, scores.shape[1])
    return (right & counts).sum(1).double() / counts.sum(1).clamp(min=1)


def chunk_of(rows: Tensor) -> int:
    """How many samples are worked on at a time: answers of language models may be larger than memory, in files."""
    return max(1, _NUMBERS // max(1, rows[:1].numel()))
