"""Random chunks of the last hidden layer: errors, regressions, critical width; of a network and of its nulls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.ridge import solve_ridge
from compressor.capacity.collect import Head, head_of
from compressor.capacity.measures import (
    ChunkErrors,
    ChunkReconstruction,
    chunk_errors,
    chunk_losses,
    chunk_reconstruction,
    clones,
    clustering_test,
    correlation_null,
    critical_width,
    ladder,
)
from compressor.capacity.nulls import permuted, sample_ratio
from compressor.errors import CompressorError
from compressor.sources.samples import Samples

PERMUTED_REGRESSIONS = 5
PARTITIONS, SWAPS = 19, 100
"""Random partitions, and trials of improving the ones found."""
RIDGE = 1e-3


def chunks_beside_nulls(
    model: nn.Module,
    fresh: nn.Module | None,
    train: Samples,
    test: Samples,
    *,
    repeats: int,
    regressions: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(measures, nulls) of the last hidden layer of `model`; `fresh` is the untrained network, None for no nulls.

    Errors use the network's own head; for the untrained network a head is fitted to its features by ridge regression.
    Regressions are fitted on the first half of the test samples and scored on the second. Where the layer cannot be
    measured (no vector per sample, too few samples) `refused` says why.
    """
    try:
        tested, trained = head_of(model, test), head_of(model, train)
        half = len(test) // 2
        sample_ratio(half, tested.features.shape[1], 2.0)
        mine = _head_numbers(tested, trained, repeats, regressions, seed)
        if fresh is None:
            return mine, {}
        mine["clustering"] = _clustered(tested.features, seed)
        blank = _refitted(head_of(fresh, test), head_of(fresh, train))
        untrained = _head_numbers(*blank, repeats, regressions, seed)
        mixed = torch.from_numpy(permuted(tested.features, seed))
        none = _regressions(mixed, min(regressions, PERMUTED_REGRESSIONS), seed)[1]
    except CompressorError as error:
        return {"refused": str(error)}, {}
    return mine, {"untrained": untrained, "permuted": none}


def _head_numbers(tested: Head, trained: Head, repeats: int, regressions: int, seed: int) -> dict[str, Any]:
    units = tested.features.shape[1]
    sizes = ladder(units)
    errors = [
        chunk_errors(head.features, head.weight, head.bias, _classes(head), sizes, repeats, seed)
        for head in (tested, trained)
    ]
    entries, regressed = _regressions(tested.features, regressions, seed)
    full = float(errors[1][-1].errors.mean())
    scored = regressed["scored"]
    critical = critical_width(errors[1], entries, scored, full)
    return {
        "units": units,
        "test_error": _rows(errors[0]),
        "train_error": _rows(errors[1]),
        "test_loss": _losses(tested, sizes, repeats, seed),
        **regressed,
        "critical": {
            "value": critical.value,
            "by_error": critical.by_error,
            "by_r2": critical.by_r2,
            "by_correlation": critical.by_correlation,
        },
        "clones": clones(units, critical),
    }


def _losses(head: Head, sizes: Sequence[int], repeats: int, seed: int) -> list[list[float | None]]:
    """Cross-entropies of the rescaled logits, in nats."""
    found = chunk_losses(head.features, head.weight, head.bias, _classes(head), sizes, repeats, seed)
    return [plain(entry.losses) for entry in found]


def _clustered(features: Tensor, seed: int) -> dict[str, Any]:
    """Does any partition of the layer into eighths beat random ones? Found on one half, judged on the other."""
    half, size = len(features) // 2, max(1, features.shape[1] // 8)
    try:
        found = clustering_test(features[:half], features[half:], size, PARTITIONS, seed, SWAPS)
    except CompressorError as error:
        return {"refused": str(error)}
    return {
        "size": size,
        "found": found.found,
        "random": plain(found.random),
        "effect": found.effect,
        "p_value": found.p_value,
        "kind": found.kind,
    }


def _regressions(features: Tensor, repeats: int, seed: int) -> tuple[list[ChunkReconstruction], dict[str, Any]]:
    half = len(features) // 2
    sizes = ladder(features.shape[1])
    entries = chunk_reconstruction(features[:half], sizes, repeats, seed, held_out=features[half:])
    names = ("r2", "r2_outside", "residual_correlation", "residual_correlation_outside")
    columns: dict[str, Any] = {name: [plain(getattr(entry, name)) for entry in entries] for name in names}
    scored = len(features) - half
    return entries, {"sizes": sizes, **columns, "scored": scored, "correlation_null": correlation_null(scored)}


def _refitted(tested: Head, trained: Head) -> tuple[Head, Head]:
    """Both heads with the weights of a ridge regression of the training labels on the features."""
    rows = trained.features.double()
    classes = _classes(trained)
    count = max(2, len(trained.weight))
    target = torch.nn.functional.one_hot(classes, count).double()
    mean, centre = rows.mean(0), target.mean(0)
    system = (rows - mean).T @ (rows - mean) / len(rows)
    cross = (target - centre).T @ (rows - mean) / len(rows)
    weight = solve_ridge(system, cross, torch.zeros_like(cross), RIDGE)
    bias = centre - weight @ mean
    return (
        Head(tested.name, tested.features, weight, bias, tested.labels),
        Head(trained.name, trained.features, weight, bias, trained.labels),
    )


def _classes(head: Head) -> Tensor:
    assert head.labels is not None
    return head.labels.long()


def _rows(errors: Sequence[ChunkErrors]) -> list[list[float | None]]:
    return [plain(entry.errors) for entry in errors]


def plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON: what is not finite is None."""
    return [float(value) if math.isfinite(value) else None for value in values]
