"""A network, one with noise on its weights, and data without labels, for what is tested of recoveries."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from compressor.sources.samples import Samples, as_samples
from compressor.training.recover import OPTIONS

FAST = replace(OPTIONS, batch=64)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip


def hurt(model: nn.Module, share: float = 0.5) -> nn.Module:
    """A copy with noise on its weights."""
    copied, draws = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in copied.parameters():
            if weight.ndim > 1:
                weight.add_(share * weight.std() * torch.randn(weight.shape, generator=draws))
    return copied


def bare(samples: Samples) -> Samples:
    """The inputs without labels."""
    return as_samples(samples.batch(range(len(samples)))[0])


Digits = tuple[nn.Module, Samples, Samples, Samples]


def vectors() -> Samples:
    return as_samples(torch.randn(60, 6, generator=torch.Generator().manual_seed(0)))
