"""Labels of a study as class numbers: every rung counts right answers, so labels must be classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.sources.data import Data
from compressor.sources.samples import Samples, as_samples


def class_numbers(labels: Tensor, where: str) -> Tensor:
    """Labels (n,) or (n, 1) as int64 classes from 0: -1 / +1 become 0 / 1, whole numbers in floats what they are.

    Raises DataError for all others: one-hot rows, labels of positions, numbers that are no classes.
    """
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    expected = "one class to a sample: whole numbers from 0, or -1 and +1"
    if flat.ndim != 1:
        step = "give `labels.argmax(1)` where rows are one-hot; answers at positions are not measured."
        raise DataError(f"{where}, labels", f"shape {tuple(labels.shape)}", expected, step)
    if bool(((flat == 1) | (flat == -1)).all()) and bool((flat == -1).any()):
        return (flat > 0).long()
    wrong = ~torch.isfinite(flat.double()) | (flat < 0) | (flat.double() != flat.double().round())
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        step = "number the classes; targets of regression are not measured."
        raise DataError(f"{where}, label of sample {at}", f"{flat[at].item():g}", expected, step)
    return flat.long()


def with_classes(data: Data) -> Data:
    """The data with labels as `class_numbers` gives them, where they are others. DataError where there are none."""
    parts: dict[str, Samples] = {}
    for name in ("train", "tune", "judge"):
        samples: Samples | None = getattr(data, name)
        if samples is None or (samples.labels is None and name == "tune"):
            continue
        if samples.labels is None:
            raise DataError(f"{name} data", "no labels", "labels to count right answers by", "give (input, label).")
        numbers = class_numbers(samples.labels, f"{name} data")
        same = samples.labels.shape == numbers.shape and not samples.labels.is_floating_point()
        if not (same and torch.equal(samples.labels.long(), numbers)):
            parts[name] = relabelled(samples, lambda _, numbers=numbers: numbers)
    return replace(data, **parts) if parts else data


def relabelled(samples: Samples, draw: Callable[[Tensor], Tensor]) -> Samples:
    """The same inputs with other labels, drawn once. DataError where there are none to draw others for."""
    inputs, labels = samples.batch(np.arange(len(samples)))
    if labels is None:
        raise DataError(samples.name, "no labels", "labels to draw others for", "give a dataset of (input, label).")
    return as_samples((inputs, draw(labels).to(torch.int64)), samples.name)
