"""Whether labels are what a network of these outputs can be trained on, said before the first step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from compressor.algebra.answers import counted
from compressor.errors import DataError
from compressor.sources.samples import Samples, batches
from compressor.units.modes import evaluating
from compressor.units.outputs import judged_part
from compressor.units.program import forward


def refuse_targets(model: nn.Module, samples: Samples, device: torch.device) -> None:
    """DataError where class numbers are none of the network's classes, or labels have not the shape of its answers.

    Asked on two samples in eval mode; nothing about the model changes. Whole numbers are class numbers, 0 to C - 1 of
    outputs (n, C, ...) and 0 or 1 of single ones; others are targets, one for each output.
    """
    labels = samples.labels
    if labels is None or not len(samples):
        return
    few = samples.take(range(min(2, len(samples))))
    with torch.no_grad(), evaluating(model):
        shape = judged_part(forward(model, next(iter(batches(few, 2, device))).inputs))[0].shape
    told = f"outputs of shape (n, {', '.join(str(size) for size in shape[1:])})"
    if labels.is_floating_point():
        if math.prod(labels.shape[1:]) != math.prod(shape[1:]):
            raise DataError(
                f"{samples.name}, labels", f"numbers of shape {tuple(labels.shape)} for {told}",
                "one number for each output, or class numbers (int64)",
                "where they are class numbers, give them as whole numbers (`labels.long()`).",
            )  # fmt: skip
        return
    several = len(shape) > 1 and shape[1] > 1
    classes, positions = shape[1] if several else 2, math.prod(shape[2:] if several else shape[1:])
    if math.prod(labels.shape[1:]) != positions:
        raise DataError(
            f"{samples.name}, labels", f"shape {tuple(labels.shape)} for {told}",
            "one class number for each sample (or position)",
            "of one-hot vectors give the place of the one: `labels.argmax(1)`.",
        )  # fmt: skip
    _refuse_classes(samples, labels, classes)


def _refuse_classes(samples: Samples, labels: Tensor, classes: int) -> None:
    wrong = (((labels < 0) | (labels >= classes)) & counted(labels, classes)).nonzero()
    if len(wrong):
        place = int(wrong[0, 0])
        raise DataError(
            f"{samples.name}, sample {place}", f"label {int(labels[tuple(wrong[0].tolist())])}",
            f"0 to {classes - 1}, as the network tells {classes} classes apart",
            "check that data and network belong together; labels count from 0 (-1, 1: `(labels + 1) // 2`).",
        )  # fmt: skip
