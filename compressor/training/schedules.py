"""Optimizers and learning-rate schedules that recipes can name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from compressor.training.muon import MuonAndAdamW

Optimizer: TypeAlias = Literal["sgd", "adamw", "muon", "momentum", "plain_sgd", "adam", "rmsprop", "adagrad"]
"""SGD with Nesterov momentum 0.9, AdamW, Muon for matrices and AdamW for the rest; with heavy-ball momentum 0.9,
without momentum, Adam, RMSprop, Adagrad."""
Schedule: TypeAlias = Literal["one_cycle", "decay", "cosine", "constant"]
"""Up and down in one cycle; times 0.95 after every epoch (arXiv:1912.04783); half a cosine; always the peak."""

DECAY = 0.95
_WARM_SHARE, _START, _END = 0.3, 1 / 25, 1e-4
"""One-cycle: from lr / 25 up to lr over 30 % of the steps, then down to lr / 250,000 (Smith & Topin 2017)."""


def optimizer_of(
    model: nn.Module, name: Optimizer, lr: float, weight_decay: float,
    matrices: Callable[[], set[nn.Parameter]] = set,
) -> torch.optim.Optimizer:  # fmt: skip
    """The optimizer of that name over all weights that take gradients; `matrices` names those that Muon is for."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(weights, **common)
    if name == "muon":
        return MuonAndAdamW(weights, matrices(), lr, weight_decay)
    if name == "adam":
        return torch.optim.Adam(weights, **common)
    if name == "adagrad":
        return torch.optim.Adagrad(weights, **common)
    if name == "rmsprop":
        return torch.optim.RMSprop(weights, **common)
    if name == "sgd":
        return torch.optim.SGD(weights, momentum=0.9, nesterov=True, **common)
    return torch.optim.SGD(weights, momentum=0.9 if name == "momentum" else 0.0, **common)


def rate(schedule: Schedule, done: float, epoch: int) -> float:
    """Share of the peak learning rate after the share `done` of the training, in epoch 0, 1, ...

    >>> rate("decay", 0.5, 2)
    0.9025
    """
    if schedule == "constant":
        return 1.0
    if schedule == "decay":
        return DECAY**epoch
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return _one_cycle(done)


def _one_cycle(done: float) -> float:
    if done < _WARM_SHARE:
        return _START + (1 - _START) * (1 - math.cos(math.pi * done / _WARM_SHARE)) / 2
    falling = (done - _WARM_SHARE) / (1 - _WARM_SHARE)
    low = _START * _END
    return low + (1 - low) * (1 + math.cos(math.pi * falling)) / 2
