"""Batch norms estimated again on the calibration data: a peer's usual repair after a cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.sources.samples import Samples, batches
from compressor.units.program import forward


class FeatureNorm(nn.BatchNorm1d):
    """Batch norm of the last axis, whatever the axes before it: behind a linear layer that sees tokens."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, ..., C) -> (N, ..., C)."""
        return super().forward(input.flatten(0, -2)).view_as(input)


def recalibrated(model: nn.Module, samples: Samples) -> nn.Module:
    """The same network with running statistics that are means over all samples; it is changed in place."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    with torch.no_grad():
        for batch in batches(samples, 250):
            forward(model, batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model
