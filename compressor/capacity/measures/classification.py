"""How well does a random chunk of the last hidden layer classify by itself? (arXiv:2106.03485: chunk error, and loss.)

N samples, U units, C classes, K units of a chunk, R chunks at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
ROOM = 2**23
"""Logits computed at once."""


@dataclass(frozen=True, slots=True)
class ChunkErrors:
    """Errors of chunks of `size` units."""

    size: int
    errors: Array
    """(repeats,) share of samples whose largest logit is not their label's, one entry per chunk."""


@dataclass(frozen=True, slots=True)
class ChunkLosses:
    """Cross-entropies of chunks of `size` units."""

    size: int
    losses: Array
    """(repeats,) mean cross-entropy in nats, one entry per chunk."""


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
    head = _Head.of(features, weight, bias, labels)
    found = []
    for size, shift, times, start in head.asked(sizes, repeats, seed, scale_bias):
        wrong = [
            (_answers(logits) != head.truth[:, None]).double().mean(0)
            for logits in head.logits(size, times, start, shift)
        ]
        found.append(ChunkErrors(size, torch.cat(wrong).cpu().numpy()))
    return found


def chunk_losses(
    features: Features,
    weight: Any,
    bias: Any,
    labels: Any,
    sizes: Sequence[int],
    repeats: int,
    seed: int,
    *,
    rescale: bool = True,
) -> list[ChunkLosses]:
    """Cross-entropy of the logits that random chunks give; arguments, chunks and errors as `chunk_errors`.

    A chunk of K of U units gives logits that are about K / U as large, whose cross-entropy says little. With `rescale`
    they are bias + (U / K) · weight[:, chunk] · features[:, chunk], comparable over sizes; without, the paper's own.
    """
    head = _Head.of(features, weight, bias, labels)
    found = []
    for size, shift, times, start in head.asked(sizes, repeats, seed, scale_bias=rescale):
        factor = head.units / size if rescale else 1.0
        losses = []
        for logits in head.logits(size, times, start, shift):
            scores = logits.mul_(factor)
            if scores.shape[2] == 1:
                scores = torch.cat([torch.zeros_like(scores), scores], dim=2)
            own = scores.gather(2, head.truth[:, None, None].expand(-1, scores.shape[1], 1))[:, :, 0]
            losses.append((scores.logsumexp(2) - own).mean(0))
        found.append(ChunkLosses(size, torch.cat(losses).cpu().numpy()))
    return found


@dataclass(frozen=True)
class _Head:
    """The last linear layer, (C, U) and (C,), what it reads, (N, U) and its transpose, and the labels (N,)."""

    rows: Tensor
    lines: Tensor
    matrix: Tensor
    constant: Tensor
    truth: Tensor

    @classmethod
    def of(cls, features: Features, weight: Any, bias: Any, labels: Any) -> _Head:
        rows = features_of(features, WHERE, least_samples=1, least_units=1)
        matrix, constant = _head(weight, bias, rows.shape[1], rows.device)
        truth = labels_of(labels, len(rows), max(2, len(matrix)), f"{WHERE}: labels").to(rows.device)
        return cls(rows, rows.T.contiguous(), matrix, constant, truth)

    @property
    def units(self) -> int:
        """U"""
        return self.rows.shape[1]

    def asked(
        self, sizes: Sequence[int], repeats: int, seed: int, scale_bias: bool
    ) -> list[tuple[int, Tensor, int, int]]:
        """(size, bias to add, repeats, seed) of every size, checked."""
        times, start = whole_number(repeats, f"{WHERE}: repeats", 1), whole_number(seed, f"{WHERE}: seed", 0)
        chosen = sizes_of(sizes, self.units, WHERE)
        return [(k, self.constant * (k / self.units if scale_bias else 1.0), times, start) for k in chosen]

    def logits(self, size: int, repeats: int, seed: int, shift: Tensor) -> Iterator[Tensor]:
        """(N, R, C) for some of the chunks at a time.

        Large chunks are columns of zeros in one product for all of them: faster than gathering each one's units.
        """
        samples, classes = len(self.rows), len(self.matrix)
        together = max(1, ROOM // (samples * classes))
        chunks = [torch.from_numpy(chunk).to(self.rows.device) for chunk in draws(self.units, size, repeats, seed)]
        for first in range(0, repeats, together):
            some = chunks[first : first + together]
            if 4 * size < self.units:
                parts = [self.lines[chunk].T @ self.matrix[:, chunk].T for chunk in some]
                yield torch.stack(parts, dim=1).add_(shift)
                continue
            stacked = self.rows.new_zeros(len(some), classes, self.units)
            for place, chunk in enumerate(some):
                stacked[place, :, chunk] = self.matrix[:, chunk]
            yield (self.rows @ stacked.flatten(0, 1).T).reshape(samples, len(some), classes).add_(shift)


def _answers(logits: Tensor) -> Tensor:
    """(N, R, C) -> (N, R) classes; one logit alone counts as classes (0, logit)."""
    return logits.argmax(2) if logits.shape[2] > 1 else (logits[:, :, 0] > 0).long()


def _head(weight: Any, bias: Any, units: int, device: torch.device) -> tuple[Tensor, Tensor]:
    matrix = values_of(weight, f"{WHERE}: weight", dims=(2,))
    if matrix.shape[1] != units:
        expected = f"(classes, {units}), as many columns as there are units"
        raise DataError(f"{WHERE}: weight", f"shape {matrix.shape}", expected, "take the layer that reads the features")
    constant = np.zeros(len(matrix)) if bias is None else values_of(bias, f"{WHERE}: bias")
    if constant.shape != (len(matrix),):
        raise DataError(f"{WHERE}: bias", f"shape {constant.shape}", f"({len(matrix)},)", "take the same layer's bias")
    return torch.from_numpy(matrix).to(device), torch.from_numpy(constant).to(device)
