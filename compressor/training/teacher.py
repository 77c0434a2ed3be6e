"""The original as a teacher: its answers, how far another network's are from them, and training towards them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.sources.samples import Batch, Samples, batches
from compressor.training.loop import (
    Criterion,
    Progress,
    TrainingReport,
    TrainOptions,
    precision,
    put_channels_last,
    train,
)
from compressor.training.together import Team
from compressor.units.modes import floating, unhalved
from compressor.units.outputs import judged_part
from compressor.units.program import forward

TEMPERATURE = 2.0
CHECK_BATCH = 250


class Teacher:
    """The original in eval mode, its answers on the tune split, and how far another network's answers are from them."""

    def __init__(self, original: nn.Module, tune: Samples, device: torch.device, classes: bool = True) -> None:
        """Without `classes` the answers are numbers, whatever their shape."""
        self.network = unhalved(copy.deepcopy(original)).eval().requires_grad_(False).to(device)
        put_channels_last(self.network)
        self.team = Team(shared=True)
        own, self.share = self.team.part(len(tune))
        self.tune, self.device = tune.take(own), device
        self.dtype = floating(self.network)
        with torch.no_grad():
            self.answers = self._answers(self.network)
        self.classes = classes and self.answers.ndim == 2 and self.answers.shape[1] > 1
        self.scale = max(self._spread(), torch.finfo(torch.float32).tiny)

    def _spread(self) -> float:
        """The variance of the original's answers over the whole tune split."""
        weight = self.share / len(self.answers)
        mean = self.team.total(weight * self.answers.sum(0))
        return float(self.team.total(weight * (self.answers - mean).square().sum(0)).mean())

    def fitting(self, options: TrainOptions) -> TrainOptions:
        """The options, in float32 where bfloat16 is too coarse: for answers that are numbers, and for networks that it
        breaks on a batch (the lowest float32, which masks of attention hold, is minus infinity there).
        """
        options = replace(options, bf16=options.bf16 and self.classes)
        with precision(options, self.device):
            if not torch.is_autocast_enabled(self.device.type):
                return options
            broken = (~self._answers(self.network, options.batch).isfinite()).sum()
        return replace(options, bf16=not int(self.team.total(broken)))

    def train(
        self, student: nn.Module, samples: Samples, options: TrainOptions,
        progress: Callable[[Progress], None] | None, criterion: Criterion | None = None,
    ) -> tuple[nn.Module, TrainingReport]:  # fmt: skip
        """A copy of the student that was trained to answer as the original does, by all processes together.

        Where the student computes in bfloat16, so does the original: on CPUs it may be most of the work.
        """
        loss = partial(self._loss, precision(options, self.device))
        return train(
            student, samples, options, loss=loss, device=self.device, progress=progress, criterion=criterion,
            shared=True,
        )  # fmt: skip

    def _loss(self, computing: torch.autocast, output: Any, batch: Batch) -> Tensor:
        """What the student is trained on: how far its output is from the original's on the same inputs."""
        with torch.no_grad(), computing:
            wanted = _wide(judged_part(forward(self.network, batch.inputs))[0])
        return self._apart(_wide(judged_part(output)[0]), wanted, TEMPERATURE)

    def distance(self, network: nn.Module) -> float:
        """The mean distance over the tune split, at temperature 1; of several processes each sees its part."""
        return float(self.team.total(self.share * self._apart(self._answers(network), self.answers, 1.0)))

    def _apart(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        if not self.classes:
            return F.mse_loss(found, wanted) / self.scale
        logs = [(scores / temperature).log_softmax(1) for scores in (found, wanted)]
        return temperature**2 * F.kl_div(logs[0], logs[1], log_target=True, reduction="batchmean")

    def _answers(self, network: nn.Module, first: int | None = None) -> Tensor:
        """Of the tune split, or the `first` of it."""
        asked = self.tune if first is None else self.tune.take(range(min(first, len(self.tune))))
        with torch.no_grad():
            parts = batches(asked, CHECK_BATCH, self.device, self.dtype)
            return torch.cat([judged_part(forward(network, part.inputs))[0].cpu().double() for part in parts])


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def trainable(network: nn.Module) -> nn.Module:
    """A copy whose floating weights all learn, in float32 where they are halves."""
    copied = unhalved(copy.deepcopy(network))
    for weight in copied.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return copied
