"""Networks of one width taken together: errors of ensembles, and how far the networks are from one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def ensembles(rungs: Sequence[Mapping[str, Any]], names: Mapping[tuple[str, float, int], Path]) -> list[dict[str, Any]]:
    """For every setting and width: `errors` of ensembles of 2, 4, ... seeds, and the `variance` between networks.

    An ensemble averages probabilities; there is one for each seed, of that seed and the next ones around. The variance
    of a seed is half its mean squared distance to the others, (S,), or None for one seed alone; its mean is the
    unbiased variance of the Brier score's decomposition.
    """
    found = []
    for setting in dict.fromkeys(rung["setting"] for rung in rungs):
        for width in sorted({float(rung["width"]) for rung in rungs if rung["setting"] == setting}):
            mine = [rung for rung in rungs if rung["setting"] == setting and rung["width"] == width]
            files = [load_file(names[setting, width, rung["seed"]]) for rung in mine]
            outputs, labels = torch.stack([file["probabilities"] for file in files]), files[0]["labels"]
            found.append({
                "setting": setting,
                "width": width,
                "units": mine[0]["measures"]["chunks"].get("units"),
                "errors": _errors(outputs, labels),
                "variance": _variance(outputs) if len(files) > 1 else None,
            })  # fmt: skip
    return found


def _errors(outputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Members -> test error of the ensemble that starts at each seed; `outputs` (seeds, samples, classes)."""
    seeds, members, errors = len(outputs), 2, {}
    while members <= seeds:
        together = [outputs.roll(-start, 0)[:members].mean(0).argmax(1) for start in range(seeds)]
        errors[str(members)] = [float((answer != labels).double().mean()) for answer in together]
        members *= 2
    return errors


def _variance(outputs: Tensor) -> list[float]:
    flat = outputs.double().flatten(1)
    distance = torch.cdist(flat, flat).square() / outputs.shape[1]
    return (distance.sum(1) / 2 / (len(outputs) - 1)).tolist()
