"""Initial weights by name, as studies of initialisation vary them."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import nn

Initialisation: TypeAlias = Literal[
    "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform"
]


def initialise(model: nn.Module, how: Initialisation, seed: int) -> None:
    """Draw the weights of all linear and convolutional layers anew, in place, and set their biases to zero.

    Variance of a weight: 2 / (fan in + fan out) for Glorot, 2 / fan in for He, 1 / fan in for LeCun. Deterministic for
    a seed; the caller's random state is left alone. Batch norms stay as they are.
    """
    kind, shape = how.split("_")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                continue
            deviation = math.sqrt(_variance(module.weight, kind))
            if shape == "normal":
                nn.init.normal_(module.weight, 0.0, deviation)
            else:
                nn.init.uniform_(module.weight, -math.sqrt(3) * deviation, math.sqrt(3) * deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _variance(weight: torch.Tensor, kind: str) -> float:
    positions = weight[0, 0].numel()
    fan_in, fan_out = weight.shape[1] * positions, weight.shape[0] * positions
    return {"glorot": 2 / (fan_in + fan_out), "he": 2 / fan_in, "lecun": 1 / fan_in}[kind]
