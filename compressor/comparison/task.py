"""What every method of a comparison is given, and what it must give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from compressor.sources.data import Data
from compressor.training.loop import TrainOptions
from compressor.units.modes import evaluating
from compressor.units.program import forward, unfused

Build = Callable[[float], nn.Module]
"""share of the size that may stay -> the smaller network (a new one; the task's network is not changed)."""
Method = Callable[["Task"], Build]
"""Everything that is done once for a network (scores, statistics) happens in this call, the rest in `Build`."""


@dataclass(frozen=True)
class Task:
    """One trained network to make smaller: by `measure` (`params` or `macs`), from `data.calibrate` without labels.

    `make(width)` builds the same architecture untrained at another width, or is None where the factory takes none;
    `train` says how the network was trained. Methods that need neither ignore them.
    """

    model: nn.Module
    data: Data
    measure: str
    seed: int
    make: Callable[[float], nn.Module] | None = None
    train: TrainOptions | None = None

    @property
    def example(self) -> Any:
        """Inputs of two calibration samples."""
        return self.data.calibrate.batch(torch.arange(2))[0]

    def size(self, model: nn.Module) -> int:
        """Size of a network by the task's measure."""
        return size(model, self.example)[self.measure]


def size(model: nn.Module, example: Any) -> dict[str, int]:
    """Parameters, and multiply-accumulates per sample as torch's own counter sees them in one forward pass.

    The same count for every method, whatever made the network.
    """
    count = len(pytree.tree_leaves(example)[0])
    plain = sdpa_kernel(SDPBackend.MATH)  # fused kernels are not all counted
    with unfused(), plain, evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward(model, example)
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"params": params, "macs": counter.get_total_flops() // (2 * count)}
