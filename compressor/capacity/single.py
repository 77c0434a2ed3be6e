"""One network by itself: the measures of every layer beside their nulls, and chunks of the last hidden layer.

For `compressor analyze`: no width varies here, so nothing is claimed; the numbers say how much of a width is in use.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.capacity.ablation import ablation_curve
from compressor.capacity.collect import Layer, collect, head_of, layers_of
from compressor.capacity.layerwise import layer_numbers
from compressor.capacity.measures import (
    chunk_errors,
    chunk_reconstruction,
    correlation_null,
    ladder,
    prunable,
    removable_area,
)
from compressor.capacity.measures.critical import R2, TIMES_NULL
from compressor.capacity.nulls import permuted, sample_ratio, untrained, white_noise
from compressor.errors import CompressorError, ModelError
from compressor.observe import room_for_weights
from compressor.options import Options
from compressor.outcome import Outcome
from compressor.sources.samples import Samples
from compressor.sources.splits import Data
from compressor.stages import Report, opened_model, pick_device, silent, working_copy
from compressor.units.graph import UnitGraph

ROWS, ROOM = 20_000, 2**28
"""Rows of activations per layer, and bytes of them that are held at a time."""
LEAST_ABLATED = 64
PASSES = 2.0
"""Ablation may read so many times as many inputs as there are samples; with many layers each gets fewer."""
CHUNKS, REGRESSIONS = 20, 5


def measured_layers(
    model: nn.Module, graph: UnitGraph, samples: Samples, seed: int = 0, report: Report = silent
) -> dict[str, Any]:
    """`layers`: one entry for each live group of units; `last_hidden`: chunks of what the last linear layer reads.

    What cannot be measured has `refused` with the reason in place of its numbers. `model` is not changed; it is in
    eval mode meanwhile.
    """
    report("layers", 0.0)
    layers = layers_of(graph)
    return {"layers": _layers(model, layers, samples, seed, report), "last_hidden": _last_hidden(model, samples, seed)}


def layers_of_one(outcome: Outcome, data: Data, options: Options, report: Report = silent) -> dict[str, Any]:
    """`measured_layers` of an analysed network on its calibration samples, and the seconds that took."""
    started = time.perf_counter()
    device = pick_device(options.device)
    room = room_for_weights(device, options.memory)
    work = opened_model(working_copy(outcome.model, device, room), data.calibrate, room)
    found = measured_layers(work, outcome.graph, data.calibrate, options.seed, report)
    seconds = {**outcome.seconds, "layers": round(time.perf_counter() - started, 3)}
    return {**found, "seconds": seconds}


def _layers(
    model: nn.Module, layers: Sequence[Layer], samples: Samples, seed: int, report: Report
) -> list[dict[str, Any]]:
    if not layers:
        return []
    fresh = _untrained(model, seed)
    steps = 6 * len(layers)
    some = samples.take(range(min(len(samples), max(LEAST_ABLATED, int(PASSES * len(samples) / steps)))))
    found = []
    for group in _groups(layers):
        seen = collect(model, group, samples, ROWS, seed)
        blank = {} if fresh is None else collect(fresh, group, samples, ROWS, seed)
        for layer in group:
            report("layers", len(found) / len(layers))
            rows, twin = seen[layer.name].rows, blank.get(layer.name)
            about = {"name": layer.name, "units": rows.shape[1], "samples": len(rows), "images": len(samples)}
            try:
                about |= _numbers(rows, None if twin is None else twin.rows, seed) | _ablated(model, layer, some, seed)
            except CompressorError as error:
                about["refused"] = str(error)
            found.append(about)
    return found


def _groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers in their order, as many together as there is room for their activations."""
    groups: list[list[Layer]] = [[]]
    left = ROOM
    for layer in layers:
        owners = layer.places[0].units
        size = 4 * ROWS * (int(owners.max()) + 1 if owners is not None else 0)
        if groups[-1] and size > left:
            groups.append([])
            left = ROOM
        groups[-1].append(layer)
        left -= size
    return groups


def _numbers(rows: Tensor, blank: Tensor | None, seed: int) -> dict[str, Any]:
    ratio = sample_ratio(len(rows), rows.shape[1])
    nulls = {
        "white noise": layer_numbers(white_noise(ratio.samples, ratio.units, seed)),
        "permuted": layer_numbers(permuted(rows, seed)),
    }
    if blank is not None:
        nulls["untrained"] = layer_numbers(blank)
    return {**layer_numbers(rows), "thin": ratio.thin, "nulls": nulls}


def _untrained(model: nn.Module, seed: int) -> nn.Module | None:
    """The same network with weights drawn anew, on the CPU so that no device's random state moves."""
    try:
        device = next(model.parameters()).device
        return untrained(copy.deepcopy(model).cpu(), seed).to(device)
    except ModelError:  # a module that cannot be drawn anew: no such null
        return None


def _ablated(model: nn.Module, layer: Layer, samples: Samples, seed: int) -> dict[str, Any]:
    """What ablating this layer alone does to the answers."""
    curve = ablation_curve(model, [layer], samples, orders=1, seed=seed)
    share = prunable(curve.fractions, curve.agreement).mean
    return {
        "prunable": share if math.isfinite(share) else None,
        "removable": removable_area(curve.agreement),
        "chance": curve.chance,
        "ablated_on": len(samples),
    }


def _last_hidden(model: nn.Module, samples: Samples, seed: int) -> dict[str, Any]:
    """The chunk ladder: regressions fitted on the first half of the samples and scored on the second."""
    try:
        head = head_of(model, samples)
        units, half = head.features.shape[1], len(samples) // 2
        sample_ratio(half, units, 2.0)
        sizes = ladder(units)
        entries = chunk_reconstruction(head.features[:half], sizes, REGRESSIONS, seed, held_out=head.features[half:])
        errors = _errors(head.features, head.weight, head.bias, head.labels, sizes, seed)
    except CompressorError as error:
        return {"refused": str(error)}
    null = correlation_null(len(samples) - half)
    r2, correlation = (
        [_finite(getattr(entry, name)) for entry in entries] for name in ("r2_outside", "residual_correlation_outside")
    )
    return {
        "name": head.name,
        "units": units,
        "samples": len(samples),
        "sizes": sizes,
        "error": errors,
        "r2_outside": r2,
        "residual_correlation_outside": correlation,
        "correlation_null": null,
        "by_r2": next((s for s, value in zip(sizes, r2, strict=True) if value is not None and value >= R2), None),
        "by_correlation": next(
            (s for s, v in zip(sizes, correlation, strict=True) if v is not None and v <= TIMES_NULL * null), None
        ),
    }


def _errors(
    features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor | None, sizes: list[int], seed: int
) -> list[float | None]:
    """Mean share of wrong classes over chunks, by size; None without labels of classes."""
    if labels is None or labels.ndim != 1 or labels.is_floating_point() or int(labels.min()) < 0:
        return [None] * len(sizes)
    found = chunk_errors(features, weight, bias, labels, sizes, CHUNKS, seed)
    return [float(entry.errors.mean()) for entry in found]


def _finite(values: Any) -> float | None:
    mean = float(torch.as_tensor(values).mean())
    return mean if math.isfinite(mean) else None
