"""A comparison as a recipe describes it: train or take the networks, run every cell, sum up. Resumable cell by cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compressor.comparison.cells import Bench, Recover
from compressor.comparison.methods import find_method
from compressor.comparison.summary import PICTURE, SUMMARY, summary
from compressor.comparison.task import Method, Task
from compressor.errors import CompressorError, DataError, UsageError
from compressor.export.files import Claim, claim_folder, replacing, to_json, write_json, write_text
from compressor.options import parse_recover
from compressor.recipe import Recipe, resolved
from compressor.report.curves import comparison_picture
from compressor.sources.checkpoint import file_sha256
from compressor.sources.data import Data, load_data
from compressor.sources.factories import find_factory, split_query
from compressor.sources.models import load_model
from compressor.stages import Report, silent
from compressor.training.loop import Progress, train
from compressor.training.recover import recover, steps_of

REQUEST, CELLS = "request.txt", "cells"


def run_comparison(
    recipe: Recipe, base: Path, out: str | Path, *, resume: bool = False, force: bool = False,
    command: str | None = None, report: Report = silent,
) -> dict[str, Any]:  # fmt: skip
    """Do the comparison into the folder `out` and return what was written to `compare.json` there.

    A network that lies in the folder as `seedN.safetensors` is taken, not trained; cells that are there are not run
    again. Raises UsageError for a recipe without a `compare` section or a folder in use, and what loading raises.
    """
    if recipe.compare is None:
        raise UsageError("recipe", "no `compare` section", "one", "add methods and sizes to compare.")
    methods = {name: find_method(spec, base) for name, spec in recipe.compare.methods.items()}
    claim = claim_folder(out, resume=resume, force=force)
    try:
        _same_request(claim, recipe, base, force)
        (claim.path / CELLS).mkdir(exist_ok=True)
        data = load_data(recipe.data_spec, base=base)
        about: list[dict[str, Any]] = []
        found: dict[str, Any] = {}
        for place, seed in enumerate(recipe.compare.seeds):
            part = _share(report, place, len(recipe.compare.seeds))
            about.append(_one_network(recipe, base, seed, data, methods, claim.path, part))
            found = summary(recipe, about, claim.path / CELLS, command)  # so far: whoever stops it has something
            write_json(claim.path / SUMMARY, found, sort_keys=False)
            write_text(claim.path / PICTURE, comparison_picture(found))
        return found
    finally:
        claim.release()


def _same_request(claim: Claim, recipe: Recipe, base: Path, force: bool) -> None:
    """Cells of another recipe, or of other code of its methods, are not mixed with these."""
    files = [recipe.model, *(recipe.compare.methods.values() if recipe.compare else ())]
    found = [find_factory(split_query(spec)[0], base) for spec in files]
    asked = {"recipe": resolved(recipe), "files": [None if one is None else one.sha256 for one in found]}
    mark = hashlib.sha256(to_json(asked).encode()).hexdigest()
    path = claim.path / REQUEST
    if force:
        claim.clear((REQUEST, SUMMARY, PICTURE))
        for cell in (claim.path / CELLS).glob("*.json"):
            cell.unlink()
    if path.is_file() and path.read_text(encoding="utf-8").strip() != mark:
        raise UsageError(
            f"output folder '{claim.path}'", "cells of another recipe, or of methods that have changed since",
            "the recipe that began it", "use --force to measure again, or another folder.",
        )  # fmt: skip
    write_text(path, mark + "\n")


def _share(report: Report, place: int, whole: int) -> Report:
    return lambda stage, done: report(f"network {place + 1}/{whole}: {stage}", done)


def _one_network(
    recipe: Recipe, base: Path, seed: int, data: Data, methods: Mapping[str, Method], folder: Path, report: Report
) -> dict[str, Any]:
    """Train or take the network of one seed, run its cells, and tell its own accuracy and size."""
    assert recipe.compare is not None
    model, weights = _network(recipe, base, seed, data, folder, report)
    options = None if recipe.train is None else replace(recipe.train.options(), seed=seed)
    task = Task(model, data, recipe.compare.measure, seed, _widths(recipe, base, seed), options)
    allowed, confidence = recipe.compress.max_drop, recipe.compress.confidence
    bench = Bench(task, folder / CELLS, allowed, confidence, recipe.compare.stop_at, _recovery(recipe, data, seed))
    only = recipe.compare.only
    bench.run({name: (method, only.get(name, recipe.compare.sizes)) for name, method in methods.items()}, report)
    return {"seed": seed, "weights": weights, **bench.original()}


def _recovery(recipe: Recipe, data: Data, seed: int) -> Recover | None:
    """The recovery that every method's networks get, ours and the peers' alike."""
    budget = parse_recover(recipe.compress.recover)
    if budget is None:
        return None

    def recovered(small: nn.Module, original: nn.Module) -> nn.Module:
        given = (small, original, data.calibrate, data.tune)
        return recover(*given, steps_of(budget, *given, seed=seed), seed=seed)[0]

    return recovered


def _network(recipe: Recipe, base: Path, seed: int, data: Data, folder: Path, report: Report) -> tuple[nn.Module, str]:
    """The trained network of a seed, and how it came: from the recipe's checkpoint, the folder, or training."""
    given = None if recipe.checkpoint is None else recipe.checkpoint.format(seed=seed)
    loaded = load_model(recipe.model_spec, given, base=base, seed=seed)
    if given is not None:
        return loaded.model, f"checkpoint {loaded.checkpoint_sha256}"
    kept = folder / f"seed{seed}.safetensors"
    if not kept.is_file():
        if recipe.train is None or data.train is None:
            raise DataError(
                f"recipe for {recipe.model}", f"no weights for seed {seed}, nothing to train with",
                "a checkpoint, or a `train` section and data with a training part", f"put {kept.name} into the folder.",
            )  # fmt: skip

        def step(progress: Progress) -> None:
            report("train", progress.done)

        made, _ = train(loaded.model, data.train, replace(recipe.train.options(), seed=seed), progress=step)
        with replacing(kept) as partial:
            save_file({name: t.detach().clone().contiguous() for name, t in made.state_dict().items()}, partial)
    loaded.model.load_state_dict(load_file(kept))
    return loaded.model.eval(), f"file {file_sha256(kept)}"


def _widths(recipe: Recipe, base: Path, seed: int) -> Callable[[float], nn.Module] | None:
    """The factory at other widths (times the recipe's own), or None where it takes no `width`."""
    width = recipe.model_args.get("width", 1.0)
    if not isinstance(width, (int, float)):
        return None

    def make(factor: float) -> nn.Module:
        changed = recipe.model_copy(update={"model_args": {**recipe.model_args, "width": width * factor}})
        torch.manual_seed(seed)
        return load_model(changed.model_spec, base=base, seed=seed).model

    with suppress(CompressorError):
        make(1.0)
        return make
    return None
