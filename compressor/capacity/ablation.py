"""What happens when ever more units are ablated? (arXiv:1912.04783: nested random orders, the same share everywhere.)

An ablated unit's activation becomes zero, its mean, or what the remaining units predict of it (fold): nothing is
retrained. R orders, F fractions, U units, E entries of a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.moments import Moments, wide
from compressor.algebra.ridge import solve_ridge
from compressor.capacity.collect import Layer, predicted, touching
from compressor.capacity.measures.checks import Array, values_of, whole_number
from compressor.errors import DataError, ModelError, UsageError
from compressor.sources.samples import Samples

How = Literal["zero", "mean", "fold"]
FRACTIONS = tuple(k / 6 for k in range(7))
RIDGE = 1e-3
"""Of the fold, in units of each entry's variance."""


@dataclass(frozen=True, slots=True)
class AblationCurve:
    """Agreement with the intact network, and accuracy, against the share of units ablated; every raw order."""

    how: How
    layers: tuple[str, ...]
    fractions: tuple[float, ...]
    agreement: Array
    """(R, F) share of samples whose predicted class is the intact network's."""
    accuracy: Array | None
    """(R, F) share of samples whose predicted class is the label; None without labels."""
    chance: float
    """Agreement of a constant answer: the largest share of one class among the intact predictions."""
    samples: int


@dataclass(frozen=True)
class LayerMoments:
    """What is known of the entries of one place: (E,) means and (E, E) covariance in float64."""

    mean: Tensor
    covariance: Tensor


def ablation_curve(
    model: nn.Module,
    layers: Sequence[Layer],
    samples: Samples,
    *,
    how: How = "zero",
    fractions: Sequence[float] = FRACTIONS,
    orders: int = 3,
    seed: int = 0,
    targeted: bool = False,
    reference: Samples | None = None,
) -> AblationCurve:
    """Ablate floor(fraction · units) units of every one of `layers` at once (hand over one layer for that layer alone).

    In each of `orders` random orders the sets are nested. With `targeted` an order starts with a random unit, then
    takes the units most similar to it first (|correlation|; dead units last). Means, correlations and folds come from
    `reference` (by default `samples`). The model is in eval mode meanwhile, and as before afterwards.

    Raises UsageError for fractions that do not rise within [0, 1], orders or seeds out of range, unknown layers or an
    unknown `how`; ModelError for a layer that is not run.
    """
    if how not in ("zero", "mean", "fold"):
        raise UsageError("ablation: how", f"{how!r}", "zero, mean or fold", "for example zero")
    steps = _checked_fractions(fractions)
    times, start = whole_number(orders, "ablation: orders", 1), whole_number(seed, "ablation: seed", 0)
    if not layers:
        raise UsageError("ablation: layers", "none", "at least one layer", "name one")
    if not len(samples):
        raise DataError("ablation: samples", "none", "at least one", "check the data")
    known = place_moments(model, layers, samples if reference is None else reference)
    intact = predicted(model, samples)
    truth = _labels(samples)
    agreement, accuracy = np.empty((times, len(steps))), np.empty((times, len(steps)))
    for r in range(times):
        ranks = [_order(layer, known[layer.name][0], np.random.default_rng([start, r, i]), targeted)
                 for i, layer in enumerate(layers)]  # fmt: skip
        for f, fraction in enumerate(steps):
            gone = [order[: math.floor(fraction * len(order) + 1e-9)] for order in ranks]
            answers = intact if not any(map(len, gone)) else _without(model, layers, gone, known, how, samples)
            agreement[r, f] = float((answers == intact).double().mean())
            accuracy[r, f] = math.nan if truth is None else float((answers == truth).double().mean())
    chance = float(intact.bincount().max()) / len(intact)
    names = tuple(layer.name for layer in layers)
    return AblationCurve(how, names, steps, agreement, None if truth is None else accuracy, chance, len(samples))


def place_moments(model: nn.Module, layers: Sequence[Layer], samples: Samples) -> dict[str, list[LayerMoments]]:
    """Layer name -> mean and covariance of the entries at each of its places, all positions counted."""
    sums: dict[tuple[str, int], Moments] = {}

    def reader(key: tuple[str, int]) -> Callable[[Tensor, int], Tensor | None]:
        def read(value: Tensor, axis: int) -> None:
            rows = value.detach().movedim(axis, -1).flatten(0, -2).to(wide(value.device))
            if key not in sums:
                sums[key] = Moments.empty(rows.mean(0))
            sums[key].add(rows)

        return read

    places = [(layer.name, i, place) for layer in layers for i, place in enumerate(layer.places)]
    with touching(model, [p for _, _, p in places], [reader((name, i)) for name, i, _ in places]):
        predicted(model, samples)
    for name, i, place in places:
        if (name, i) not in sums:
            where = f"layer '{name}', module '{place.module}'"
            raise ModelError(where, "a module that is not run", "a layer of the forward pass", "leave it out")
    found: dict[str, list[LayerMoments]] = {layer.name: [] for layer in layers}
    for name, i, _ in places:
        found[name].append(LayerMoments(sums[name, i].mean().cpu(), sums[name, i].covariance().cpu()))
    return found


def _order(layer: Layer, first: LayerMoments, generator: np.random.Generator, targeted: bool) -> Array:
    """All units in the order in which they go."""
    owners = _owners(layer.places[0].units, len(first.mean))
    units = int(owners.max()) + 1
    order = generator.permutation(units)
    if not targeted:
        return order
    spread = first.covariance.diagonal().clamp_min(0).sqrt()
    alive = spread > 1e-7 * (spread + first.mean.abs())
    scale = torch.where(alive, spread, torch.inf)
    likeness = (first.covariance / scale[:, None] / scale[None, :]).abs().numpy()
    near = np.zeros(units)
    mine, others = np.flatnonzero(owners == order[0]), np.flatnonzero(owners >= 0)
    for entry in others:  # of a flattened map: the entry of the chosen unit it is most like
        near[owners[entry]] = max(near[owners[entry]], likeness[entry, mine].max())
    rest = order[1:]
    return np.concatenate([order[:1], rest[np.argsort(-near[rest], kind="stable")]])


def _without(
    model: nn.Module,
    layers: Sequence[Layer],
    gone: Sequence[Array],
    known: dict[str, list[LayerMoments]],
    how: How,
    samples: Samples,
) -> Tensor:
    """(n,) predictions with these units of each layer ablated."""
    places, calls = [], []
    for layer, units in zip(layers, gone, strict=True):
        for place, moments in zip(layer.places, known[layer.name], strict=True):
            owners = _owners(place.units, len(moments.mean))
            entries = np.isin(owners, units) & (owners >= 0)
            if entries.any():
                places.append(place)
                calls.append(_replacing(torch.from_numpy(entries), moments, how))
    with touching(model, places, calls):
        return predicted(model, samples)


def _replacing(gone: Tensor, moments: LayerMoments, how: How) -> Callable[[Tensor, int], Tensor | None]:
    """A call that puts zero, the mean or the prediction from the others into the entries `gone` (E,) bool."""
    constant = torch.zeros(int(gone.sum()), dtype=moments.mean.dtype)
    expand: Tensor | None = None
    if how != "zero":
        constant = moments.mean[gone]
    if how == "fold" and not bool(gone.all()):
        system, cross = moments.covariance[~gone][:, ~gone], moments.covariance[gone][:, ~gone]
        expand = solve_ridge(system, cross, torch.zeros_like(cross), RIDGE)
        constant = constant - expand @ moments.mean[~gone]

    def call(value: Tensor, axis: int) -> Tensor:
        where = gone.nonzero()[:, 0].to(value.device)
        moved = value.movedim(axis, -1).clone()
        fill = constant.to(moved)
        if expand is not None:
            stay = (~gone).nonzero()[:, 0].to(value.device)
            fill = fill + moved[..., stay] @ expand.T.to(moved)
        moved[..., where] = fill.expand(*moved.shape[:-1], len(where))
        return moved.movedim(-1, axis)

    return call


def _owners(units: np.ndarray | None, entries: int) -> np.ndarray:
    return np.arange(entries) if units is None else units


def _labels(samples: Samples) -> Tensor | None:
    labels = samples.labels
    if labels is None or labels.ndim != 1:
        return None
    if labels.is_floating_point() or int(labels.min()) < 0:  # +1 / -1 targets of a single output
        return (labels > 0).long().cpu()
    return labels.long().cpu()


def _checked_fractions(fractions: Any) -> tuple[float, ...]:
    found = values_of(fractions, "ablation: fractions")
    if (np.diff(found) <= 0).any() or found[0] < 0 or found[-1] > 1:
        raise UsageError("ablation: fractions", f"{found.tolist()}", "rising numbers in [0, 1]", "for example k / 6")
    return tuple(found.tolist())
