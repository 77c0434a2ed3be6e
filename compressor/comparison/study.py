"""A comparison as a recipe describes it: train or take the networks, run every cell, sum up. Resumable cell by cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.candidates import Recoverer, compared
from compressor.comparison.cells import Bench, Recover
from compressor.comparison.methods import find_method
from compressor.comparison.summary import PICTURE, SUMMARY, summary
from compressor.comparison.task import Method, Task
from compressor.errors import CompressorError, UsageError
from compressor.export.files import claim_folder, write_json, write_text
from compressor.observe import processes
from compressor.options import parse_recover
from compressor.planning.search import Tuned
from compressor.recipe import Recipe
from compressor.report.curves import comparison_picture
from compressor.sections import CompareSection, CompressSection
from compressor.sources.contents import code, content
from compressor.sources.data import Data, load_data
from compressor.sources.factories import find_factory, split_query
from compressor.sources.models import load_model
from compressor.stages import Report, silent
from compressor.studies import Wanted, network, part_of, request_marks, same_request, training_of, weights_file
from compressor.verify.accuracy import outputs_of

CELLS = "cells"


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
    _refuse_unread(recipe)
    if processes()[1] > 1:
        raise UsageError("torchrun", f"{processes()[1]} processes", "one for a comparison", "leave torchrun out.")
    methods = {name: find_method(spec, base) for name, spec in recipe.compare.methods.items()}
    claim = claim_folder(out, resume=resume, force=force)
    try:
        data = load_data(recipe.data_spec, base=base)
        read, called = _inputs(recipe, data, base), [recipe.model, *recipe.compare.methods.values()]
        same_request(
            claim, request_marks(_without_growth(recipe), [recipe.model], base, read), force=force,
            results=(SUMMARY, PICTURE), parts=CELLS, former=request_marks(recipe, called, base, read),
        )  # fmt: skip
        about: list[dict[str, Any]] = []
        found: dict[str, Any] = {}
        for place, seed in enumerate(recipe.compare.seeds):
            part = part_of(report, "network", place, len(recipe.compare.seeds))
            about.append(_one_network(recipe, base, seed, data, methods, claim.path, part))
            found = summary(recipe, about, claim.path / CELLS, command)  # so far: whoever stops it has something
            write_json(claim.path / SUMMARY, found, sort_keys=False)
            write_text(claim.path / PICTURE, comparison_picture(found))
        return found
    finally:
        claim.release()


def _without_growth(recipe: Recipe) -> Recipe:
    """The recipe without what may be added or taken away between two runs into one folder: cells of methods, sizes and
    seeds that stay are not measured again (each says which code it is of)."""
    assert recipe.compare is not None
    plain = CompareSection(methods={"ours": "ours"}, sizes=(0.5,), measure=recipe.compare.measure)
    return recipe.model_copy(update={"compare": plain, "description": ""})


def _refuse_unread(recipe: Recipe) -> None:
    """UsageError for options of `compress` that a comparison would pass over: its figures would not be theirs."""
    known, plain = ("max_drop", "confidence", "recover"), CompressSection()
    for name in sorted(recipe.compress.model_fields_set - set(known)):
        if (value := getattr(recipe.compress, name)) != getattr(plain, name):
            raise UsageError(
                f"recipe: compress.{name}", f"{value!r} beside a `compare` section",
                f"of `compress` only {', '.join(known)}: a comparison reads nothing else", "leave it out.",
            )  # fmt: skip


def _inputs(recipe: Recipe, data: Data, base: Path) -> list[str | None]:
    """What tells the data, and the checkpoints, from others of the same names."""
    assert recipe.compare is not None
    files = [weights_file(recipe, seed=seed) for seed in recipe.compare.seeds]
    marks = [data.calibrate.fingerprint, data.tune.fingerprint, data.judge.fingerprint]
    return [*marks, *(content(file, base) for file in files if file is not None)]


def _one_network(
    recipe: Recipe, base: Path, seed: int, data: Data, methods: Mapping[str, Method], folder: Path, report: Report
) -> dict[str, Any]:
    """Train or take the network of one seed, run its cells, and tell its own accuracy and size."""
    assert recipe.compare is not None
    options = None if recipe.train is None else replace(recipe.train.options(), seed=seed)
    kept = folder / f"seed{seed}.safetensors"
    checkpoint, training = weights_file(recipe, seed=seed), training_of(recipe, base)
    wanted = Wanted(recipe.model_spec, seed, kept, checkpoint, options, training=training)
    model, weights = network(wanted, base, data.train, report)
    task = Task(model, data, recipe.compare.measure, seed, _widths(recipe, base, seed), options)
    allowed, confidence = recipe.compress.max_drop, recipe.compress.confidence
    noted = {name: {"weights": weights, "code": _code(spec, base)} for name, spec in recipe.compare.methods.items()}
    bench = Bench(task, folder / CELLS, allowed, confidence, recipe.compare.stop_at, _recovery(recipe, task), noted)
    bench.run({name: (method, recipe.compare.sizes_of(name)) for name, method in methods.items()}, report)
    return {"seed": seed, "weights": weights, **bench.original()}


def _code(spec: str, base: Path) -> str:
    """Tells a method from others of its name: what it is called with, its file and those beside it that it imports."""
    found = find_factory(split_query(spec)[0], base)
    of_file = code(Path(found.place)) if found is not None and found.is_file else None
    return hashlib.sha256(f"{spec} {of_file}".encode()).hexdigest()


def _recovery(recipe: Recipe, task: Task) -> Recover | None:
    """The recovery that every method's networks get, ours and the peers' alike: the product's own."""
    budget = parse_recover(recipe.compress.recover)
    if budget is None:
        return None
    original, data = task.model, task.data
    before = cache(lambda: outputs_of(original, data.tune))  # once for all cells, and not where all of them are there

    def compare(network: nn.Module) -> Tuned:
        return compared(before(), outputs_of(network, data.tune, check=False))

    def recovered(small: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        recoverer = Recoverer(budget, original, data.calibrate, data.tune, seed=task.seed)
        made, _, about = recoverer.better(small, before(), compare(small), compare, lambda _done: None)
        return made, {key: value for key, value in about.items() if key != "checks"}

    return recovered


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
