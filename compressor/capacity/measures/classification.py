"""How well does a random chunk of the last hidden layer classify by itself? (arXiv:2110.03485: chunk error.)

N samples, U units, C classes, K units of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.capacity.measures.checks import (
    Array,
    Features,
    features_of,
    labels_of,
    sizes_of,
    values_of,
    whole_number,
)
from compressor.capacity.measures.chunks import draws
from compressor.errors import DataError

WHERE = "chunk errors"


@dataclass(frozen=True, slots=True)
class ChunkErrors:
    """Errors of chunks of `size` units."""

    size: int
    errors: Array
    """(repeats,) share of samples whose largest logit is not their label's, one entry per chunk."""


def chunk_errors(
    features: Features,
    weight: Any,
    bias: Any,
    labels: Any,
    sizes: Sequence[int],
    repeats: int,
    seed: int,
    *,
    scale_bias: bool = False,
) -> list[ChunkErrors]:
    """Error of the network's own last linear layer when it sees only a random chunk of its inputs.

    `features` (samples, units), `weight` (classes, units), `bias` (classes,) or None, `labels` (samples,) whole
    numbers. Logits are weight[:, chunk] · features[:, chunk] + bias: no retraining, no rescaling, the bias in full as
    in the paper (with `scale_bias` times size / units, so that small chunks are not ruled by it). One output counts as
    two classes (0, logit). On training samples this is the chunk training error. The chunks are those of
    `chunk_reconstruction` for the same units, size and seed.

    Raises DataError for features as `similar_units`, and for weight, bias and labels that do not fit; UsageError for
    sizes, repeats or a seed that are not whole numbers in range.
    """
    rows = features_of(features, WHERE, least_samples=1, least_units=1)
    units = rows.shape[1]
    chosen = sizes_of(sizes, units, WHERE)
    times, start = whole_number(repeats, f"{WHERE}: repeats", 1), whole_number(seed, f"{WHERE}: seed", 0)
    matrix, constant = _head(weight, bias, units, rows.device)
    truth = labels_of(labels, len(rows), max(2, len(matrix)), f"{WHERE}: labels").to(rows.device)
    lines = rows.T.contiguous()  # a chunk is a choice of rows: much faster to gather than columns
    found = []
    for size in chosen:
        shift = constant * (size / units if scale_bias else 1.0)
        errors = []
        for chunk in draws(units, size, times, start):
            picked = torch.from_numpy(chunk).to(rows.device)
            logits = torch.addmm(shift[:, None], matrix[:, picked], lines[picked])
            answers = logits.argmax(0) if len(logits) > 1 else (logits[0] > 0).long()
            errors.append(float((answers != truth).double().mean()))
        found.append(ChunkErrors(size, np.array(errors)))
    return found


def _head(weight: Any, bias: Any, units: int, device: torch.device) -> tuple[Tensor, Tensor]:
    matrix = values_of(weight, f"{WHERE}: weight", dims=(2,))
    if matrix.shape[1] != units:
        expected = f"(classes, {units}), as many columns as there are units"
        raise DataError(f"{WHERE}: weight", f"shape {matrix.shape}", expected, "take the layer that reads the features")
    constant = np.zeros(len(matrix)) if bias is None else values_of(bias, f"{WHERE}: bias")
    if constant.shape != (len(matrix),):
        raise DataError(f"{WHERE}: bias", f"shape {constant.shape}", f"({len(matrix)},)", "take the same layer's bias")
    return torch.from_numpy(matrix).to(device), torch.from_numpy(constant).to(device)
