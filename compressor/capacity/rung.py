"""One rung of a ladder: train or take the network of one width and seed, and measure it beside its nulls."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor.algebra.answers import class_scores
from compressor.capacity.ablation import AblationCurve, ablation_curve, noise_curve, random_and_targeted
from compressor.capacity.chunked import chunks_beside_nulls, plain
from compressor.capacity.collect import Layer
from compressor.capacity.effective import effective_widths
from compressor.capacity.layerwise import layers_alone, layers_beside_nulls, layers_to_measure
from compressor.capacity.measures import prunable, removable_area, targeted_gap
from compressor.capacity.networks import Memorised, networks_of, snapshot_file
from compressor.capacity.nulls import RANDOM_LABELS
from compressor.capacity.settings import Setting
from compressor.errors import CompressorError
from compressor.export.files import replacing
from compressor.sources.data import Data
from compressor.sources.samples import Samples, batches
from compressor.stages import Report
from compressor.training.loop import accuracy
from compressor.units.modes import evaluating
from compressor.units.outputs import judged_part
from compressor.units.program import forward

OUTPUTS = "outputs"


def measure_rung(
    setting: Setting, width: float, seed: int, data: Data, base: Path, folder: Path, report: Report
) -> dict[str, Any]:
    """Everything about one rung: `measures`, and under `nulls` the same of networks and numbers without learning.

    The test samples are those of the judge part. Weights go to `networks/`, the test probabilities to `outputs/`.
    Raises what loading, training and measuring raise.
    """
    started = time.perf_counter()
    made = networks_of(setting, width, seed, data, base, folder, report)
    model, fresh, memorised = made.trained, made.untrained, made.memorised
    ladder, trained = setting.ladder, time.perf_counter() - started
    layers = layers_to_measure(model, ladder.layers, data.judge)
    report("layers", 0.0)
    measures, nulls = layers_beside_nulls(model, fresh, layers, data.judge, ladder.max_rows, seed)
    report("ablation", 0.0)
    _ablations(setting, [(model, measures), (fresh, nulls["untrained"])], layers, data, seed)
    report("chunks", 0.0)
    measures["chunks"], others = _chunks(setting, model, fresh, data, seed)
    for name, numbers in others.items():
        nulls[name]["chunks"] = numbers
    if memorised is not None:
        report(RANDOM_LABELS, 0.0)
        nulls[RANDOM_LABELS] = memorised_numbers(setting, memorised, layers, seed)
    measures["accuracy"] = _accuracies(model, data)
    if ladder.snapshots:
        measures["snapshots"] = _snapshots(setting, width, seed, folder, model, layers, data)
    if ladder.effective:
        measures["effective"] = _effective(model, data, seed)
    keep_outputs(model, data.judge, folder / OUTPUTS / f"{setting.rung(width, seed)}.safetensors")
    seconds = {"train": round(trained, 1), "all": round(time.perf_counter() - started, 1)}
    rung = {"setting": setting.name, "width": width, "seed": seed, **made.about, "traits": setting.traits(data)}
    return {**rung, "measures": measures, "nulls": nulls, "seconds": seconds}


def memorised_numbers(setting: Setting, memorised: Memorised, layers: Sequence[Layer], seed: int) -> dict[str, Any]:
    """The null of random labels: what a rung measures, of a network that can only memorise."""
    model, data = memorised.model, memorised.data
    numbers = layers_alone(model, layers, data.judge, setting.ladder.max_rows, seed)
    _ablations(setting, [(model, numbers)], layers, data, seed)
    return {**numbers, "chunks": _chunks(setting, model, None, data, seed)[0], "accuracy": _accuracies(model, data)}


def _chunks(
    setting: Setting, model: nn.Module, fresh: nn.Module | None, data: Data, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    ladder, own = setting.ladder, data.train if data.train is not None else data.tune
    some = own.take(range(min(len(own), ladder.chunk_samples)))
    asked = {"repeats": ladder.chunks, "regressions": ladder.regressions, "seed": seed}
    return chunks_beside_nulls(model, fresh, some, data.judge, **asked)


def _ablations(
    setting: Setting, networks: Sequence[tuple[nn.Module, dict[str, Any]]], layers: Sequence[Layer], data: Data,
    seed: int,
) -> None:  # fmt: skip
    """Adds `ablation`, `noise` and, where the recipe says so, `by_layer` to the numbers of every network."""
    ladder, judge = setting.ladder, _asked(setting, data)
    for model, part in networks:
        part["ablation"] = _ablation(model, layers, judge, ladder.orders, seed)
        part["noise"] = _noise(noise_curve(model, layers, judge, seed=seed))
        if ladder.by_layer:
            part["by_layer"] = [
                {"name": at.name, **_curve(ablation_curve(model, [at], judge, orders=ladder.orders, seed=seed))}
                for at in layers
            ]


def _asked(setting: Setting, data: Data) -> Samples:
    """The test samples that ablated networks are asked."""
    count = setting.ladder.ablation_samples
    return data.judge if count is None else data.judge.take(range(min(len(data.judge), count)))


def _snapshots(
    setting: Setting, width: float, seed: int, folder: Path, model: nn.Module, layers: Sequence[Layer], data: Data
) -> list[dict[str, Any]]:
    """What the network was earlier in its training; nothing of networks that were taken."""
    found = []
    for share in setting.ladder.snapshots:
        path = snapshot_file(setting, width, seed, folder, share)
        if data.train is None or not path.is_file():
            continue
        earlier = copy.deepcopy(model)
        earlier.load_state_dict(load_file(path))
        numbers = layers_alone(earlier, layers, data.judge, setting.ladder.max_rows, seed)
        chunks, _ = _chunks(setting, earlier, None, data, seed)
        ablation = _curve(
            ablation_curve(earlier, layers, _asked(setting, data), orders=setting.ladder.orders, seed=seed)
        )
        found.append({"share": share, **numbers, "ablation": ablation, "chunks": chunks})
        found[-1]["accuracy"] = _accuracies(earlier, data)
    return found


def _ablation(model: nn.Module, layers: Sequence[Layer], samples: Samples, orders: int, seed: int) -> dict[str, Any]:
    """All layers at once: random orders, and most similar units first."""
    random, targeted = random_and_targeted(model, layers, samples, orders=orders, seed=seed)
    gap = targeted_gap(random.agreement, targeted.agreement)
    return {**_curve(random), "targeted": targeted.agreement.tolist(), "targeted_gap": gap}


def _curve(curve: AblationCurve) -> dict[str, Any]:
    found = prunable(curve.fractions, curve.agreement)
    return {
        "fractions": list(curve.fractions),
        "agreement": curve.agreement.tolist(),
        "accuracy": None if curve.accuracy is None else curve.accuracy.tolist(),
        "chance": curve.chance,
        "prunable": plain(found.per_order),
        "prunable_mean": plain(found.per_order.mean(keepdims=True))[0],
        "removable": removable_area(curve.agreement),
    }


def _noise(curve: AblationCurve) -> dict[str, Any]:
    accuracy = None if curve.accuracy is None else curve.accuracy.tolist()
    return {"scales": list(curve.fractions), "agreement": curve.agreement.tolist(), "accuracy": accuracy}


def _accuracies(model: nn.Module, data: Data) -> dict[str, float | None]:
    """Percent, in eval mode on clean images; the largest class of the test labels as chance."""
    labels = data.judge.labels
    chance = None if labels is None else 100 * float(labels.long().bincount().max()) / len(labels)
    own = None if data.train is None else accuracy(model, data.train)
    return {"train": own, "test": accuracy(model, data.judge), "chance": chance}


def _effective(model: nn.Module, data: Data, seed: int) -> dict[str, Any]:
    """Units that the compressor needs for half a point of accuracy."""
    try:
        found = effective_widths(model, data, seed=seed)
    except CompressorError as error:
        return {"refused": str(error)}
    groups = [{"name": g.name, "units": g.units, "needed": g.needed, "frozen": g.frozen} for g in found.groups]
    return {"groups": groups, "units": found.units, "needed": found.needed, "verdict": found.verdict}


def keep_outputs(model: nn.Module, samples: Samples, path: Path) -> None:
    """The test probabilities (n, classes) and labels, for ensembles; a single answer stands for two classes."""
    parts: list[Tensor] = []
    with torch.no_grad(), evaluating(model):
        for batch in batches(samples, 256):
            parts.append(judged_part(forward(model, batch.inputs))[0].float())
    assert samples.labels is not None
    answers = torch.cat(parts)  # all of them tell what single answers are
    scores = class_scores(answers) if answers.numel() == len(answers) else answers
    with replacing(path) as partial:
        save_file(
            {"probabilities": scores.softmax(1).contiguous(), "labels": samples.labels.long().contiguous()}, partial
        )
