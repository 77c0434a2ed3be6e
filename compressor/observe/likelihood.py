"""How answers are read: as scores of classes, or as numbers. That says what a change of them costs, in nats, and gives
the scalar whose gradients are the curvature of that cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compressor.algebra.answers import chunk_of
from compressor.algebra.moments import wide
from compressor.algebra.patches import keyed_hash
from compressor.algebra.probabilities import beside_zero, log_odds, single_probabilities

TINY = 1e-12
"""Least deviation of an output, as a share of the largest one: an output that hardly varies gets no more weight."""


LEAST_PROBABILITY = 1e-7
"""Smaller ones are rounding."""

_MOST_SCORES = 1 << 16
"""Scores of a map that are read of a sample, or a sixteenth of all where that is more: every sample's are kept."""


class Likelihood(Protocol):
    """What the answers mean."""

    @property
    def positions(self) -> int:
        """How many losses of a sample `sampled` adds up, of which `apart` has the mean."""
        ...

    def sampled(self, output: Tensor, ids: Tensor, key: int) -> Tensor:
        """A scalar whose squared gradients are, on average over the noise, the curvature of the loss in nats.

        A sum over samples; the noise is keyed by sample id.
        """
        ...

    def read(self, output: Tensor) -> Tensor:
        """Answers (N, ...) as rows (N, K), or maps (N, K, P), for `apart`; in float64 where the device has it."""
        ...

    def apart(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Mean loss in nats per position of `after` where `before` is right, and how far they are the same, 0 to 1."""
        ...


@dataclass(frozen=True)
class Classes:
    """Scores (N, C, ...) of classes: categorical answers, maps included. A single score z is the two classes (0, z)."""

    positions: int = 1

    def sampled(self, output: Tensor, ids: Tensor, key: int) -> Tensor:
        """The log-likelihood of labels drawn from the network's own answers."""
        return sampled_log_likelihood(output, ids, key)

    def read(self, output: Tensor) -> Tensor:
        """Log-probabilities (N, C), or (N, C, P) of maps: of positions evenly spread where there are many."""
        scores = _some_positions(output.flatten(2)) if output.dim() > 2 else output
        scores = scores.to(wide(scores.device))
        if scores.dim() == 1 or scores.shape[1] == 1:
            scores = beside_zero(scores.reshape(len(scores), 1, *scores.shape[2:]))
        return torch.log_softmax(scores, 1)

    def apart(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Mean KL(before || after) in nats, and the share of equal argmaxes."""
        kl = (before.exp() * (before - after)).sum(1).mean().clamp_min(0)
        return float(kl), float((before.argmax(1) == after.argmax(1)).double().mean())


@dataclass(frozen=True)
class Probabilities(Classes):
    """Probabilities (N, C, ...) of classes: a network that ends in a softmax, as many ONNX files do. Their logarithms
    are the scores; of a single one (a network that ends in a sigmoid) its log odds."""

    def sampled(self, output: Tensor, ids: Tensor, key: int) -> Tensor:
        """The log-likelihood of labels drawn from the network's own answers."""
        return super().sampled(self._scores(output), ids, key)

    def read(self, output: Tensor) -> Tensor:
        """As `Classes.read`."""
        return super().read(self._scores(output))

    def _scores(self, output: Tensor) -> Tensor:
        if output.dim() == 1 or output.shape[1] == 1:
            return log_odds(output)
        return output.float().clamp_min(LEAST_PROBABILITY).log()


CLASSES = Classes()


@dataclass(frozen=True)
class Numbers:
    """Numbers (N, ...), normally distributed around the right ones: the loss is half the squared error in units of
    `scale`, averaged over the outputs.

    `scale` is one deviation for all outputs, or (C,) one for each index of dimension 1. Half a nat is as much as the
    outputs vary at all; 0.005 nats are 1 % of their variance.
    """

    scale: Tensor

    @property
    def positions(self) -> int:
        """One: the loss is an average over outputs from the start."""
        return 1

    def sampled(self, output: Tensor, ids: Tensor, key: int) -> Tensor:
        """Outputs with random signs: their gradients' squares are on average those of the Gauss-Newton matrix."""
        places = math.prod(output.shape[1:])
        rows = self._shared(output).reshape(len(output), places) / math.sqrt(places)
        ids = ids.to(output.device)
        cells = ids[:, None] * places + torch.arange(places, device=output.device)[None, :]
        return (rows * (1 - 2 * (keyed_hash(cells, key) >> 9 & 1).to(rows.dtype))).sum()

    def read(self, output: Tensor) -> Tensor:
        """The outputs in units of `scale`."""
        return self._shared(output.to(wide(output.device))).flatten(1).reshape(len(output), -1)

    def apart(self, before: Tensor, after: Tensor) -> tuple[float, float]:
        """Half the mean squared error, and the share of the variance that is left in common (at least 0)."""
        error = (before - after).square().mean()
        spread = before.var(0, correction=0).mean().clamp_min(torch.finfo(before.dtype).tiny)
        return float(error / 2), float((1 - error / spread).clamp_min(0))

    def _shared(self, output: Tensor) -> Tensor:
        output = output if output.dtype == torch.float64 else output.float()
        scale = self.scale.to(output)
        return output / (scale if scale.dim() == 0 else scale.reshape(-1, *[1] * (output.dim() - 2)))


def likelihood_of(outputs: Tensor, labels: Tensor | None, scored: bool) -> Likelihood:
    """How to read answers: as numbers where the targets are numbers, or where a score of one's own judges and the
    targets are no class numbers (or there are none); else as scores of classes.

    `outputs` (n, ...) are some answers of the original, `labels` targets of any samples. Where targets and outputs have
    one shape, each column is taken in units of its targets' deviation; else all in units of the outputs' deviation.
    """
    if labels is None:
        return Numbers(_deviation(outputs)) if scored else _classes(outputs)
    if not labels.is_floating_point() and (not scored or _class_numbers(outputs, labels)):
        return _classes(outputs)
    size = math.prod(outputs.shape[1:])
    if outputs.dim() > 2 or not labels.is_floating_point() or math.prod(labels.shape[1:]) != size:
        return Numbers(_deviation(outputs))
    each = labels.double().reshape(len(labels), size).std(0, correction=0)
    each = each.clamp_min(max(TINY * float(each.max()), torch.finfo(torch.float32).tiny))
    return Numbers(each[0] if outputs.dim() == 1 else each)


def _classes(outputs: Tensor) -> Classes:
    """Whether answers are probabilities already: none negative, and every row adds up to one."""
    positions = math.prod(outputs.shape[2:])
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        return Probabilities(positions) if single_probabilities(outputs) else Classes(positions)
    adds_up = (outputs.float().sum(1) - 1).abs().max() <= 1e-3
    return Probabilities(positions) if bool(adds_up) and bool((outputs >= 0).all()) else Classes(positions)


def _some_positions(scores: Tensor) -> Tensor:
    """Scores (N, C, P) at evenly spread positions, so that those of many samples can be kept."""
    classes, positions = scores.shape[1:]
    count = min(positions, max(1, _MOST_SCORES // classes, positions // 16))
    if count == positions:
        return scores
    places = (2 * torch.arange(count, device=scores.device) + 1) * positions // (2 * count)
    return scores.index_select(2, places)


def _class_numbers(outputs: Tensor, labels: Tensor) -> bool:
    """Whether whole labels can be the classes that `outputs` score, one for each sample (and position)."""
    classes = 2 if outputs.dim() == 1 or outputs.shape[1] == 1 else outputs.shape[1]
    positions = tuple(outputs.shape[2:])
    fitting = labels.shape[1:] == positions or labels.shape[1:] == (1, *positions)
    outside = (labels < 0) | (labels >= classes)
    return fitting and (bool(positions) or not bool(outside.any()))  # maps leave positions out by other numbers


def _deviation(outputs: Tensor) -> Tensor:
    """Deviation over samples, root mean square over outputs; their size where there is one sample."""
    wide_outputs = outputs.detach().cpu().double()
    centred = wide_outputs - wide_outputs.mean(0) if len(outputs) > 1 else wide_outputs
    return centred.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def sampled_log_likelihood(output: Tensor, ids: Tensor, key: int) -> Tensor:
    """Sum over samples (and positions) of log p(label), labels drawn from the model's own softmax over dimension 1.

    The noise is keyed by sample id. A single score z counts as the two classes (0, z).
    """
    scores = output.float().reshape(len(output), -1) if output.dim() < 3 else output.float().flatten(2)
    scores = scores[:, :, None] if scores.dim() == 2 else scores  # (N, C, P)
    if scores.shape[1] == 1:
        scores = beside_zero(scores)
    step = chunk_of(scores)  # the noise of a language model's answers takes several times their memory
    parts = zip(scores.detach().split(step), ids.to(scores.device).split(step), strict=True)
    labels = torch.cat([_drawn(part, some, key) for part, some in parts])
    return torch.log_softmax(scores, 1).gather(1, labels).sum()


def _drawn(scores: Tensor, ids: Tensor, key: int) -> Tensor:
    """Labels (n, 1, P) drawn from scores (n, C, P) of the samples `ids`: the largest score after Gumbel's noise."""
    places = math.prod(scores.shape[1:])
    cells = ids[:, None] * places + torch.arange(places, device=scores.device)[None, :]
    dtype = wide(scores.device)
    uniform = (keyed_hash(cells, key) >> 9).to(dtype) / float(1 << 53)
    edge = 1e-12 if dtype == torch.float64 else 1e-7
    gumbel = -torch.log(-torch.log(uniform.clamp(edge, 1 - edge))).reshape(scores.shape)
    return (scores + gumbel.to(scores.dtype)).argmax(1, keepdim=True)
