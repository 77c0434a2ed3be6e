"""Are there groups? Does any partition into chunks determine the layer better than random chunks do?

The paper (arXiv:2106.03485) speaks of groups of neurons but only ever draws random chunks. If units came in groups
that carry the same information, a partition that follows them would beat random ones; if clones are random mixtures
plus independent noise, none does. N samples, U units, K units of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from compressor.capacity.measures.checks import Array, Features, covariance_of, features_of, live_columns, whole_number
from compressor.capacity.measures.chunks import RIDGE
from compressor.errors import DataError

WHERE = "clustering test"


@dataclass(frozen=True, slots=True)
class Clustering:
    """The best partition found on the samples fitted, against random ones, all scored on held-out samples."""

    size: int
    found: float
    """Mean held-out R² of the units outside, over the chunks of the partition that was best on the samples fitted."""
    random: Array
    """(repeats,) the same of random partitions."""
    effect: float
    """`found` minus the mean of `random`."""
    p_value: float
    """One-sided: how often a random partition is at least as good."""
    kind: str
    """Where `found` came from: `dealt` (alike units in different chunks) or `gathered` (in the same); both improved."""


def clustering_test(
    features: Features, held_out: Features, size: int, repeats: int = 99, seed: int = 0, swaps: int = 200
) -> Clustering:
    """Look for a partition into chunks of `size` units that beats random partitions.

    Units are put in order by average linkage on 1 - |correlation|; that order is dealt over the chunks or cut into
    them, and each is improved by `swaps` trials of exchanging two units. What is best on `features` (samples, units)
    is then scored once on `held_out`, as are `repeats` random partitions, so no choice is made on the samples judged.
    Dead units are left out; units that fill no whole chunk too.

    Raises DataError for features as `similar_units` and fewer than two chunks' worth of units, UsageError for
    counts out of range.
    """
    fitted, scored = features_of(features, WHERE), features_of(held_out, f"{WHERE}: held_out")
    k, times = whole_number(size, f"{WHERE}: size", 1), whole_number(repeats, f"{WHERE}: repeats", 19)
    trials = whole_number(swaps, f"{WHERE}: swaps", 0)
    generator = np.random.default_rng(whole_number(seed, f"{WHERE}: seed", 0))
    if fitted.shape[1] != scored.shape[1]:
        raise DataError(f"{WHERE}: held_out", f"{scored.shape[1]} units", f"{fitted.shape[1]}", "take the same layer")
    live = live_columns(fitted, WHERE) & live_columns(scored, f"{WHERE}: held_out").to(fitted.device)
    units = int(live.sum())
    if 2 * k > units or len(fitted) <= k + 1:
        got = f"{units} units that vary, {len(fitted)} samples"
        raise DataError(WHERE, got, f"at least {2 * k} units and {k + 2} samples", "use a smaller size")
    train = covariance_of(fitted[:, live]).cpu().numpy()
    judge = covariance_of(scored[:, live.to(scored.device)]).cpu().numpy()
    kind, best = _search(train, k, trials, generator)
    found = float(np.mean([_outside(train, judge, chunk) for chunk in best]))
    random = np.array([
        np.mean([_outside(train, judge, chunk) for chunk in _cut(generator.permutation(units), k)])
        for _ in range(times)
    ])  # fmt: skip
    worse = int((random >= found).sum())
    return Clustering(k, found, random, found - float(random.mean()), (1 + worse) / (1 + times), kind)


def _cut(order: Array, size: int) -> list[Array]:
    count = len(order) // size
    return [order[i * size : (i + 1) * size] for i in range(count)]


def _search(covariance: Array, size: int, swaps: int, generator: np.random.Generator) -> tuple[str, list[Array]]:
    """The partition that is best on these samples: two ordered ones, each improved by swaps."""
    order = _alike_together(covariance)
    count = len(order) // size
    starts = {"dealt": [order[i::count][:size] for i in range(count)], "gathered": _cut(order, size)}
    scored = {}
    for kind, chunks in starts.items():
        better, value = _improved(covariance, [chunk.copy() for chunk in chunks], swaps, generator)
        scored[kind] = (value, better)
    kind = max(scored, key=lambda name: scored[name][0])
    return kind, scored[kind][1]


def _alike_together(covariance: Array) -> Array:
    spread = np.sqrt(np.diag(covariance))
    far = 1 - np.abs(covariance / spread[:, None] / spread[None, :])
    np.fill_diagonal(far, 0.0)
    return np.asarray(leaves_list(linkage(squareform(np.maximum(far, 0), checks=False), "average")))


def _improved(
    covariance: Array, chunks: list[Array], swaps: int, generator: np.random.Generator
) -> tuple[list[Array], float]:
    """Exchange random units of two random chunks where that raises their R²; and the mean R² in the end."""
    values = [_outside(covariance, covariance, chunk) for chunk in chunks]
    for _ in range(swaps):
        a, b = generator.choice(len(chunks), 2, replace=False)
        i, j = generator.integers(len(chunks[a])), generator.integers(len(chunks[b]))
        one, other = chunks[a].copy(), chunks[b].copy()
        one[i], other[j] = other[j], one[i]
        new = [_outside(covariance, covariance, part) for part in (one, other)]
        if sum(new) > values[a] + values[b]:
            chunks[a], chunks[b], values[a], values[b] = one, other, new[0], new[1]
    return chunks, float(np.mean(values))


def _outside(fitted: Array, scored: Array, chunk: Array) -> float:
    """R² of the units outside a chunk: fitted on one covariance, scored on the other."""
    outside = np.setdiff1d(np.arange(len(fitted)), chunk)
    system = fitted[np.ix_(chunk, chunk)] + RIDGE * np.trace(fitted) / len(fitted) * np.eye(len(chunk))
    weights = torch.linalg.solve(torch.from_numpy(system), torch.from_numpy(fitted[np.ix_(chunk, outside)])).numpy()
    inner, cross = scored[np.ix_(chunk, chunk)], scored[np.ix_(chunk, outside)]
    variance = np.diag(scored)[outside].sum()
    explained = 2 * (weights * cross).sum() - (weights * (inner @ weights)).sum()
    return float(explained / variance)
