"""What the same measure gives where there is nothing to find. No number of a study stands without these beside it.

Untrained: random features of the same width already are redundant. White noise and permuted samples: what the number
of samples alone does. Random labels: what a network does that can only memorise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compressor.capacity.measures.checks import Array, Features, features_of, whole_number
from compressor.errors import DataError, ModelError

LEAST_RATIO = 5.0
"""Fewer samples per unit than this are refused: at 3 per unit white noise has R95 = .17, at .75 it has .48."""
GOOD_RATIO = 20.0
"""Samples per unit that arXiv:1912.04783's redundancy needs to be free of the sample size; fewer are marked thin."""

RANDOM_LABELS = "random labels"
"""The name of the null that a network of the same width gives which was trained on permuted labels."""

Numbers = Mapping[str, float]
"""Name of a measure -> its value."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Samples per unit; `thin` below `GOOD_RATIO`."""

    samples: int
    units: int
    ratio: float
    thin: bool


@dataclass(frozen=True, slots=True)
class Beside:
    """A measure's numbers and, under the name of each null, the same numbers there."""

    values: dict[str, float]
    nulls: dict[str, dict[str, float]]
    ratio: SampleRatio


def sample_ratio(samples: int, units: int, least: float = LEAST_RATIO) -> SampleRatio:
    """n / N. Raises DataError below `least`: the number would say more of the samples than of the units.

    >>> sample_ratio(10_000, 500).thin
    False
    """
    n, width = whole_number(samples, "samples per unit: samples", 1), whole_number(units, "samples per unit: units", 1)
    if n < least * width:
        expected = f"at least {least:g} per unit, {int(np.ceil(least * width))} in all"
        raise DataError("samples per unit", f"{n} samples for {width} units", expected, "measure on more data")
    return SampleRatio(n, width, n / width, n < GOOD_RATIO * width)


def white_noise(samples: int, units: int, seed: int) -> Array:
    """(samples, units) independent standard normal numbers."""
    sizes = whole_number(samples, "white noise: samples", 1), whole_number(units, "white noise: units", 1)
    return np.random.default_rng(whole_number(seed, "white noise: seed", 0)).standard_normal(sizes)


def permuted(x: Features, seed: int) -> Array:
    """`x` (samples, units) with each unit's samples in an order of its own: the same values, no dependence left."""
    rows = features_of(x, "permuted samples", least_units=1).cpu().numpy()
    return np.random.default_rng(whole_number(seed, "permuted samples: seed", 0)).permuted(rows, axis=0)


def random_labels(labels: Tensor, seed: int, classes: int | None = None) -> Tensor:
    """As many labels drawn uniformly, once, from `classes` classes (by default 0 .. the largest label).

    Raises DataError for labels that are not whole numbers from 0.
    """
    if labels.is_floating_point() or labels.ndim != 1 or not len(labels) or int(labels.min()) < 0:
        got = f"shape {tuple(labels.shape)}, {labels.dtype}"
        raise DataError("random labels", got, "whole numbers from 0, one per sample", "check the labels")
    count = int(labels.max()) + 1 if classes is None else whole_number(classes, "random labels: classes", 2)
    drawn = np.random.default_rng(whole_number(seed, "random labels: seed", 0)).integers(0, count, len(labels))
    return torch.from_numpy(drawn).to(labels)


def permuted_labels(labels: Tensor, seed: int) -> Tensor:
    """The same labels (n,) in a random order: every class as often as before, and nothing to learn."""
    drawn = np.random.default_rng(whole_number(seed, "permuted labels: seed", 0)).permutation(len(labels))
    return labels[torch.from_numpy(drawn).to(labels.device)]


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """A copy of `model` as it is before training: every module drawn anew by its own `reset_parameters`.

    Deterministic for a seed; the caller's random state is left alone. A network with an initialisation of its own is
    better built anew by its factory. Raises ModelError for a module with parameters that cannot be reset.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole_number(seed, "untrained network: seed", 0))
        for name, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                got = f"a {type(module).__name__} with parameters of its own and no reset_parameters"
                raise ModelError(f"module '{name}'", got, "modules that can be drawn anew", "build the network anew")
    return fresh


def beside_nulls(
    measure: Callable[[Features], Numbers],
    features: Features,
    *,
    others: Mapping[str, Features] | None = None,
    seed: int = 0,
    least: float = LEAST_RATIO,
) -> Beside:
    """`measure` of `features` (samples, units), of white noise of that size and of its permuted samples.

    `others` are features of the same size from networks trained otherwise: "untrained", "random labels". Raises
    DataError for too few samples per unit (see `sample_ratio`) and where `others` have another number of units.

    >>> from compressor.capacity.measures import redundancy95
    >>> sorted(beside_nulls(lambda x: {"r95": redundancy95(x).covariance}, white_noise(100, 4, seed=1)).nulls)
    ['permuted', 'white noise']
    """
    rows = features_of(features, "measure beside its nulls")
    samples, units = rows.shape
    ratio = sample_ratio(samples, units, least)
    nulls = {
        "white noise": dict(measure(white_noise(samples, units, seed))),
        "permuted": dict(measure(permuted(rows, seed))),
    }
    for name, other in (others or {}).items():
        twin = features_of(other, f"null '{name}'")
        if twin.shape[1] != units:
            raise DataError(f"null '{name}'", f"{twin.shape[1]} units", f"{units}, as measured", "use the same width")
        nulls[name] = dict(measure(other))
    return Beside(dict(measure(features)), nulls, ratio)
