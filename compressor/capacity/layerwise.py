"""The numbers of every hidden layer of a network, each beside its nulls."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.capacity.axes import with_axes
from compressor.capacity.collect import Activations, Layer, collect, layers_at, layers_of
from compressor.capacity.measures.checks import Features, covariance_of, features_of, live_columns
from compressor.capacity.measures.similar import similar_of
from compressor.capacity.measures.spectrum import redundancy_of
from compressor.capacity.nulls import permuted, sample_ratio, white_noise
from compressor.errors import DataError
from compressor.sources.samples import Samples
from compressor.stages import find_units, working_copy

NULLS = ("untrained", "white noise", "permuted")
"""The null of an untrained network is measured like the network itself; the others have only layers and chunks."""


def layers_to_measure(model: nn.Module, named: Sequence[str], samples: Samples) -> list[Layer]:
    """The modules named, else those that the model names itself (`taps`), else the live groups of its units."""
    taps = list(named) or list(getattr(model, "taps", ()))
    if taps:
        return with_axes(model, layers_at(taps), samples)
    return layers_of(find_units(working_copy(model, torch.device("cpu")), samples, 0))


def layer_numbers(x: Features) -> dict[str, float]:
    """Similar units, R95 and the like of one layer's activations (samples, units)."""
    rows = features_of(x, "numbers of a layer")
    covariance, live = covariance_of(rows), live_columns(rows, "numbers of a layer")
    near, whole = similar_of(covariance, live), redundancy_of(covariance, live, len(rows))
    alive = covariance[live][:, live]
    return {
        "similar": near.mean,
        "similar_share": near.share,
        "dead": float(near.dead),
        "r95": whole.covariance,
        "r95_live": _share_of_live(alive, len(rows)) if near.dead else whole.covariance,
        "r95_correlation": whole.correlation,
        "participation_ratio": whole.participation_ratio,
    }


def _share_of_live(covariance: Tensor, samples: int) -> float:
    return redundancy_of(covariance, torch.ones(len(covariance), dtype=torch.bool), samples).covariance


@functools.lru_cache(maxsize=64)
def _of_noise(samples: int, units: int, seed: int) -> dict[str, float]:
    """The numbers of white noise: the same for every layer of that size."""
    return layer_numbers(white_noise(samples, units, seed))


def layers_alone(
    model: nn.Module, layers: Sequence[Layer], samples: Samples, max_rows: int, seed: int
) -> dict[str, Any]:
    """The measures of `layers_beside_nulls` without any null."""
    found = collect(model, layers, samples, max_rows, seed)
    rows = [_one_layer(layer.name, found[layer.name], None, seed)[0] for layer in layers]
    return {"layers": rows, **net_values(rows)}


def layers_beside_nulls(
    model: nn.Module, fresh: nn.Module, layers: Sequence[Layer], samples: Samples, max_rows: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(measures, nulls): the layers of `model`, and the same of its nulls, `fresh` being the untrained network.

    A layer with too few samples per unit, or without any unit that varies, is refused by name with the reason.
    """
    trained, untrained = (collect(one, layers, samples, max_rows, seed) for one in (model, fresh))
    rows, beside = [], {name: list[dict[str, Any]]() for name in NULLS}
    for layer in layers:
        about, others = _one_layer(layer.name, trained[layer.name], untrained[layer.name], seed)
        rows.append(about)
        for name in NULLS:
            beside[name].append({"name": layer.name, "units": about["units"], **others.get(name, {})})
    return {"layers": rows, **net_values(rows)}, {n: {"layers": r, **net_values(r)} for n, r in beside.items()}


def _one_layer(
    name: str, trained: Activations, untrained: Activations | None, seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    about: dict[str, Any] = {"name": name, "units": trained.rows.shape[1], "images": trained.images}
    try:
        ratio = sample_ratio(len(trained.rows), trained.rows.shape[1])
        values, nulls = layer_numbers(trained.rows), dict[str, dict[str, float]]()
        if untrained is not None:
            nulls["white noise"] = dict(_of_noise(ratio.samples, ratio.units, seed))
            nulls["permuted"] = layer_numbers(permuted(trained.rows, seed))
            nulls["untrained"] = layer_numbers(untrained.rows)
    except DataError as error:
        return {**about, "samples": len(trained.rows), "refused": str(error)}, {}
    about |= {"samples": ratio.samples, "ratio": ratio.ratio, "thin": ratio.thin}
    return {**about, **values}, nulls


def net_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The unweighted mean over layers, as in arXiv:1912.04783; None where a layer was refused."""
    keys = ("similar", "similar_share", "r95", "r95_correlation", "r95_live")
    if not rows or any("r95" not in row for row in rows):
        return dict.fromkeys(keys)
    return {key: sum(row[key] for row in rows) / len(rows) for key in keys}
