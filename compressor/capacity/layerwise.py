"""The numbers of every hidden layer of a network, each beside its nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compressor.capacity.collect import Activations, Layer, collect, layers_at, layers_of
from compressor.capacity.measures import redundancy95, redundancy95_live, similar_units
from compressor.capacity.measures.checks import Features
from compressor.capacity.nulls import beside_nulls
from compressor.errors import DataError
from compressor.sources.samples import Samples
from compressor.stages import find_units, working_copy

NULLS = ("untrained", "white noise", "permuted")
"""The null of an untrained network is measured like the network itself; the others have only layers and chunks."""


def layers_to_measure(model: nn.Module, named: Sequence[str], samples: Samples) -> list[Layer]:
    """The modules named, else those that the model names itself (`taps`), else the live groups of its units."""
    taps = list(named) or list(getattr(model, "taps", ()))
    if taps:
        return layers_at(taps)
    return layers_of(find_units(working_copy(model, torch.device("cpu")), samples, 0))


def layer_numbers(x: Features) -> dict[str, float]:
    """Similar units, R95 and the like of one layer's activations (samples, units)."""
    near, whole = similar_units(x), redundancy95(x)
    return {
        "similar": near.mean,
        "similar_share": near.share,
        "dead": float(near.dead),
        "r95": whole.covariance,
        "r95_live": redundancy95_live(x).covariance if near.dead else whole.covariance,
        "r95_correlation": whole.correlation,
        "participation_ratio": whole.participation_ratio,
    }


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
            beside[name].append({"name": layer.name, **others.get(name, {})})
    return {"layers": rows, **net_values(rows)}, {n: {"layers": r, **net_values(r)} for n, r in beside.items()}


def _one_layer(
    name: str, trained: Activations, untrained: Activations, seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    about: dict[str, Any] = {"name": name, "units": trained.rows.shape[1], "images": trained.images}
    try:
        found = beside_nulls(layer_numbers, trained.rows, others={"untrained": untrained.rows}, seed=seed)
    except DataError as error:
        return {**about, "samples": len(trained.rows), "refused": str(error)}, {}
    ratio = found.ratio
    about |= {"samples": ratio.samples, "ratio": ratio.ratio, "thin": ratio.thin}
    return {**about, **found.values}, found.nulls


def net_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The unweighted mean over layers, as in arXiv:1912.04783; None where a layer was refused."""
    keys = ("similar", "similar_share", "r95", "r95_correlation", "r95_live")
    if not rows or any("r95" not in row for row in rows):
        return dict.fromkeys(keys)
    return {key: sum(row[key] for row in rows) / len(rows) for key in keys}
