"""Single answers: the log odds of the second of two classes, or its probability (a network that ends in a sigmoid)."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 8
"""Answers that are needed to tell probabilities from log odds that happen to lie between 0 and 1."""
NEAREST = 1e-7
"""Probabilities are taken to be no nearer to 0 and 1: that is rounding."""


def single_probabilities(answers: Tensor) -> bool:
    """Whether answers (n,) or (n, 1, ...) are probabilities: eight and more samples, none outside of 0 to 1.

    Log odds of a network that answers both classes have both signs.
    """
    single = answers.ndim == 1 or (answers.ndim > 1 and answers.shape[1] == 1)
    return single and len(answers) >= FEWEST and bool(((answers >= 0) & (answers <= 1)).all())


def log_odds(probabilities: Tensor) -> Tensor:
    """log(p / (1 - p))."""
    return torch.logit(probabilities if probabilities.itemsize > 2 else probabilities.float(), NEAREST)


def beside_zero(odds: Tensor) -> Tensor:
    """Scores (n, 2, ...) of two classes, 0 and the log odds, from log odds (n, 1, ...)."""
    return torch.cat([torch.zeros_like(odds), odds], dim=1)


def two_classes(answers: Tensor) -> Tensor:
    """Scores (n, 2, ...) of two classes from single answers (n,) or (n, 1, ...), log odds or probabilities."""
    odds = log_odds(answers) if single_probabilities(answers) else answers
    return beside_zero(odds.reshape(len(answers), 1, *answers.shape[2:]))
