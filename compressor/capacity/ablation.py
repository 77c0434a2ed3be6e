"""What happens when ever more units are ablated? (arXiv:1912.04783: nested random orders, the same share everywhere.)

An ablated unit's activation becomes zero, its mean, or what the remaining units predict of it (fold): nothing is
retrained. R orders, F fractions, U units, E entries of a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.moments import Moments, wide
from compressor.algebra.ridge import solve_ridge
from compressor.capacity.collect import Layer, Place, predicted, touching
from compressor.capacity.measures.checks import Array, values_of, whole_number
from compressor.capacity.prefix import Prefix
from compressor.errors import DataError, ModelError, UsageError
from compressor.sources.samples import Samples

How = Literal["zero", "mean", "fold"]
FRACTIONS = tuple(k / 6 for k in range(7))
RIDGE = 1e-3
"""Of the fold, in units of each entry's variance."""


@dataclass(frozen=True, slots=True)
class AblationCurve:
    """Agreement with the intact network, and accuracy, against the share of units ablated; every raw order."""

    how: How | Literal["noise"]
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
    return _Bench.of(model, layers, samples, reference).curve(how, steps, times, start, targeted)


def random_and_targeted(
    model: nn.Module, layers: Sequence[Layer], samples: Samples, *, orders: int = 3, seed: int = 0
) -> tuple[AblationCurve, AblationCurve]:
    """The two curves of `ablation_curve` without and with `targeted`, at less than twice the cost of one."""
    times, start = whole_number(orders, "ablation: orders", 1), whole_number(seed, "ablation: seed", 0)
    bench = _Bench.of(model, layers, samples, None)
    by_chance, by_likeness = (bench.curve("zero", FRACTIONS, times, start, targeted) for targeted in (False, True))
    return by_chance, by_likeness


def noise_curve(
    model: nn.Module, layers: Sequence[Layer], samples: Samples, *, scales: Sequence[float] = FRACTIONS,
    orders: int = 1, seed: int = 0,
) -> AblationCurve:  # fmt: skip
    """Add normal noise to every unit of `layers` instead of ablating some (arXiv:1912.04783's other perturbation).

    Its deviation is `scale` times the deviation of that sample's own activations of the layer, over units and
    positions; the curve's `fractions` are the scales. `orders` are independent draws. Places of a layer that have the
    same shape get the same noise. Errors as `ablation_curve`.
    """
    steps = _checked_fractions(scales)
    times, start = whole_number(orders, "noise: orders", 1), whole_number(seed, "noise: seed", 0)
    bench = _Bench.of(model, layers, samples, None)
    return bench.filled("noise", steps, times, lambda r, f: bench.noisy(steps[f], [start, r, f]))


@dataclass
class _Bench:
    """What all curves of one network on the same samples share."""

    model: nn.Module
    layers: Sequence[Layer]
    samples: Samples
    reference: Samples
    entries: dict[tuple[str, int], int]
    """(layer, place) -> E"""
    intact: Tensor
    truth: Tensor | None
    prefix: Prefix
    known: dict[str, list[LayerMoments]] = field(default_factory=dict)
    answers: dict[tuple[str, bytes], Tensor] = field(default_factory=dict)
    """Of the sets that come again: nothing, and everything."""

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[Layer], samples: Samples, reference: Samples | None) -> _Bench:
        if not layers:
            raise UsageError("ablation: layers", "none", "at least one layer", "name one")
        if not len(samples):
            raise DataError("ablation: samples", "none", "at least one", "check the data")
        entries: dict[tuple[str, int], int] = {}

        def noting(key: tuple[str, int]) -> Callable[[Tensor, int], Tensor | None]:
            return lambda value, axis: entries.__setitem__(key, value.shape[axis])

        places = _places(layers)
        with touching(model, [p for *_, p in places], [noting((name, i)) for name, i, _ in places]):
            prefix = Prefix(model, [place for *_, place in places])
            with prefix.recorded():
                intact = predicted(model, samples)
        _all_ran(places, entries)
        return cls(
            model,
            layers,
            samples,
            samples if reference is None else reference,
            entries,
            intact,
            _labels(samples),
            prefix,
        )

    def curve(self, how: How, steps: tuple[float, ...], times: int, seed: int, targeted: bool) -> AblationCurve:
        """One curve of every order."""
        if (targeted or how != "zero") and not self.known:
            self.known = place_moments(self.model, self.layers, self.reference)
        ranks = [
            [self._order(layer, np.random.default_rng([seed, r, i]), targeted) for i, layer in enumerate(self.layers)]
            for r in range(times)
        ]

        def answer(r: int, f: int) -> Tensor:
            gone = [order[: math.floor(steps[f] * len(order) + 1e-9)] for order in ranks[r]]
            return self.without(gone, how)

        return self.filled(how, steps, times, answer)

    def filled(
        self, how: How | Literal["noise"], steps: tuple[float, ...], times: int, answer: Callable[[int, int], Tensor]
    ) -> AblationCurve:
        """The curve of the predictions that `answer` gives for every order and step."""
        agreement, accuracy = np.empty((times, len(steps))), np.empty((times, len(steps)))
        for r in range(times):
            for f in range(len(steps)):
                found = answer(r, f)
                agreement[r, f] = float((found == self.intact).double().mean())
                accuracy[r, f] = math.nan if self.truth is None else float((found == self.truth).double().mean())
        chance = float(self.intact.bincount().max()) / len(self.intact)
        names = tuple(layer.name for layer in self.layers)
        right = None if self.truth is None else accuracy
        return AblationCurve(how, names, steps, agreement, right, chance, len(self.samples))

    def without(self, gone: Sequence[Array], how: How) -> Tensor:
        """(n,) predictions with these units of each layer ablated."""
        if not any(map(len, gone)):
            return self.intact
        key = how, b"|".join(np.sort(units).tobytes() for units in gone)
        if key in self.answers:
            return self.answers[key]
        places, calls, whole = [], [], True
        for layer, units in zip(self.layers, gone, strict=True):
            for i, place in enumerate(layer.places):
                owners = _owners(place.units, self.entries[layer.name, i])
                entries = np.isin(owners, units) & (owners >= 0)
                whole &= bool(entries[owners >= 0].all())
                if entries.any():
                    places.append(place)
                    moments = self.known[layer.name][i] if how != "zero" else None
                    calls.append(_replacing(torch.from_numpy(entries), moments, how))
        with touching(self.model, places, calls), self.prefix.recalled():
            found = predicted(self.model, self.samples)
        if whole:
            self.answers[key] = found
        return found

    def noisy(self, scale: float, seed: list[int]) -> Tensor:
        """(n,) predictions with noise at every place."""
        if scale == 0:
            return self.intact
        calls = [_jittering(scale, [*seed, i]) for i, layer in enumerate(self.layers) for _ in layer.places]
        with touching(self.model, [place for *_, place in _places(self.layers)], calls), self.prefix.recalled():
            return predicted(self.model, self.samples)

    def _order(self, layer: Layer, generator: np.random.Generator, targeted: bool) -> Array:
        """All units in the order in which they go."""
        owners = _owners(layer.places[0].units, self.entries[layer.name, 0])
        order = generator.permutation(int(owners.max()) + 1)
        if not targeted:
            return order
        near, rest = _likeness(self.known[layer.name][0], owners, int(order[0])), order[1:]
        return np.concatenate([order[:1], rest[np.argsort(-near[rest], kind="stable")]])


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

    places = _places(layers)
    with touching(model, [p for *_, p in places], [reader((name, i)) for name, i, _ in places]):
        predicted(model, samples)
    _all_ran(places, sums)
    found: dict[str, list[LayerMoments]] = {layer.name: [] for layer in layers}
    for name, i, _ in places:
        found[name].append(LayerMoments(sums[name, i].mean().cpu(), sums[name, i].covariance().cpu()))
    return found


def _places(layers: Sequence[Layer]) -> list[tuple[str, int, Place]]:
    return [(layer.name, i, place) for layer in layers for i, place in enumerate(layer.places)]


def _all_ran(places: Sequence[tuple[str, int, Place]], seen: Mapping[tuple[str, int], Any]) -> None:
    for name, i, place in places:
        if (name, i) not in seen:
            where = f"layer '{name}', module '{place.module}'"
            raise ModelError(where, "a module that is not run", "a layer of the forward pass", "leave it out")


def _likeness(first: LayerMoments, owners: np.ndarray, unit: int) -> Array:
    """(U,) largest |correlation| of every unit's entries with those of one unit; 0 for dead units."""
    spread = first.covariance.diagonal().clamp_min(0).sqrt()
    alive = spread > 1e-7 * (spread + first.mean.abs())
    scale = torch.where(alive, spread, torch.inf)
    mine = torch.from_numpy(np.flatnonzero(owners == unit))
    alike = (first.covariance[:, mine] / scale[:, None] / scale[mine][None, :]).abs().amax(1).numpy()
    near = np.zeros(int(owners.max()) + 1)
    np.maximum.at(near, owners[owners >= 0], alike[owners >= 0])
    return near


def _replacing(gone: Tensor, moments: LayerMoments | None, how: How) -> Callable[[Tensor, int], Tensor | None]:
    """A call that puts zero, the mean or the prediction from the others into the entries `gone` (E,) bool."""
    if moments is None or how == "zero":
        return _constant(gone, torch.zeros(len(gone)))
    if how == "mean" or bool(gone.all()):
        return _constant(gone, moments.mean)
    system, cross = moments.covariance[~gone][:, ~gone], moments.covariance[gone][:, ~gone]
    expand = solve_ridge(system, cross, torch.zeros_like(cross), RIDGE)
    constant = moments.mean[gone] - expand @ moments.mean[~gone]

    def call(value: Tensor, axis: int) -> Tensor:
        where, stay = (mask.nonzero()[:, 0].to(value.device) for mask in (gone, ~gone))
        moved = value.movedim(axis, -1).clone()
        moved[..., where] = constant.to(moved) + moved[..., stay] @ expand.T.to(moved)
        return moved.movedim(-1, axis)

    return call


def _constant(gone: Tensor, fill: Tensor) -> Callable[[Tensor, int], Tensor | None]:
    """A call that puts the entries of `fill` (E,) where `gone` (E,) says."""

    def call(value: Tensor, axis: int) -> Tensor:
        shape = [len(gone) if dim == axis else 1 for dim in range(value.ndim)]
        return torch.where(gone.to(value.device).reshape(shape), fill.to(value).reshape(shape), value)

    return call


def _jittering(scale: float, seed: list[int]) -> Callable[[Tensor, int], Tensor | None]:
    """A call that adds noise; it draws on the CPU, batch after batch, so that a device changes nothing."""
    draws = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))

    def call(value: Tensor, _axis: int) -> Tensor:
        spread = value.flatten(1).std(1, correction=0).reshape(-1, *[1] * (value.ndim - 1))
        return value + scale * spread * torch.randn(value.shape, generator=draws).to(value)

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
