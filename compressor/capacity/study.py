"""A capacity study as a recipe describes it: every rung of every setting, then the claims. Resumable rung by rung."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.capacity.claims.evidence import Evidence
from compressor.capacity.claims.registry import judge_claims
from compressor.capacity.engines import RUNGS, Cell, forget, in_processes, measure, on_ray
from compressor.capacity.ensembles import ensembles
from compressor.capacity.networks import NETWORKS
from compressor.capacity.rung import OUTPUTS
from compressor.capacity.settings import Setting, settings_of
from compressor.capacity.slopes import fitted_slopes
from compressor.errors import UsageError
from compressor.export.files import Claim, claim_folder, write_json, write_text
from compressor.recipe import Recipe, resolved
from compressor.recording import machine, versions
from compressor.report.capacity import write_capacity
from compressor.sources.contents import content
from compressor.stages import Report, silent
from compressor.studies import part_of, request_marks, same_request

SCHEMA = 1
STUDY, TRIALS, PAGE = "study.json", "trials.csv", "report.html"
_RAW = ("setting", "width", "seed", "network", "quantity", "layer", "size", "fraction", "trial", "value")


def run_capacity(
    recipe: Recipe, base: Path, out: str | Path, *, resume: bool = False, force: bool = False,
    command: str | None = None, report: Report = silent,
) -> dict[str, Any]:  # fmt: skip
    """Do the study into the folder `out` and return what was written to `study.json` there.

    Each rung (setting, width, seed) has a file in `rungs/`; those that are there are not run again. The raw trials
    are in `trials.csv`, the pictures in `report.html`. Raises UsageError for a recipe without a `capacity` section or
    a folder in use, and what loading, training and measuring raise.
    """
    if recipe.capacity is None:
        raise UsageError("recipe", "no `capacity` section", "one", "add widths to climb.")
    settings = settings_of(recipe)
    claim = claim_folder(out, resume=resume, force=force)
    try:
        same_everywhere, read = _same_everywhere(recipe), _inputs(recipe, settings, base)
        marks = request_marks(same_everywhere, [recipe.model, recipe.data], base, read)
        same_request(claim, marks, force=force, results=(STUDY, TRIALS, PAGE), parts=RUNGS)
        _prepare(claim, force)
        rungs = _climb(recipe, settings, base, claim.path, report)
        found = _summed_up(recipe, rungs, settings, claim.path, command)
        write_json(claim.path / STUDY, found, sort_keys=False)
        write_text(claim.path / TRIALS, trials(rungs))
        write_capacity(found, claim.path / PAGE)
        return found
    finally:
        claim.release()


def _inputs(recipe: Recipe, settings: Sequence[Setting], base: Path) -> list[str | None]:
    """What tells the file of the data, and the checkpoints, from others of the same names."""
    rungs = [s.wanted(w, seed, base) for s in settings for w in s.ladder.widths for seed in s.ladder.seeds]
    files = [rung.checkpoint for rung in rungs if rung.checkpoint is not None]
    return [content(file, base) for file in (recipe.data, *files)]


def _prepare(claim: Claim, force: bool) -> None:
    for name in (NETWORKS, OUTPUTS):
        folder = claim.path / name
        folder.mkdir(exist_ok=True)
        for file in folder.glob("*.safetensors") if force else ():
            file.unlink()


def _same_everywhere(recipe: Recipe) -> Recipe:
    """The recipe without where its rungs run: that changes no number."""
    assert recipe.capacity is not None
    ladder = recipe.capacity.model_copy(update={"workers": 1, "ray": None})
    return recipe.model_copy(update={"capacity": ladder})


def _climb(
    recipe: Recipe, settings: Sequence[Setting], base: Path, folder: Path, report: Report
) -> list[dict[str, Any]]:
    """All rungs, the narrow ones first: whoever stops the study early has whole ladders of cheap rungs."""
    forget()
    ladder = settings[0].ladder
    plain = _same_everywhere(recipe)
    cells = [
        Cell(plain, base.resolve(), folder.resolve(), s.name, w, seed)
        for w in ladder.widths
        for s in settings
        for seed in ladder.seeds
    ]
    missing = [cell for cell in cells if not cell.path.is_file()]
    finished = [len(cells) - len(missing)]

    def done() -> None:
        finished[0] += 1
        report("rungs", finished[0] / len(cells))

    if ladder.ray is not None and missing:
        on_ray(missing, ladder.ray, done)
    elif ladder.workers > 1 and missing:
        in_processes(missing, min(ladder.workers, len(missing)), done)
    else:
        for cell in missing:
            measure(cell, part_of(report, "rung", cells.index(cell), len(cells)))
    return [json.loads(cell.path.read_bytes()) for cell in cells]


def _summed_up(
    recipe: Recipe, rungs: Sequence[dict[str, Any]], settings: Sequence[Setting], folder: Path, command: str | None
) -> dict[str, Any]:
    names = {
        (s.name, float(w), seed): folder / OUTPUTS / f"{s.rung(w, seed)}.safetensors"
        for s in settings
        for w in s.ladder.widths
        for seed in s.ladder.seeds
    }
    together = ensembles(rungs, names)
    evidence = Evidence(rungs, together)
    return {
        "schema_version": SCHEMA,
        "recipe": resolved(recipe),
        "rungs": rungs,
        "ensembles": together,
        "claims": judge_claims(evidence),
        "slopes": fitted_slopes(evidence),
        "versions": versions(),
        "machine": machine(),
        "command": command,
    }


def trials(rungs: Sequence[Mapping[str, Any]]) -> str:
    """Every raw trial of all rungs as CSV: one line per order, chunk, or layer value; nulls beside the networks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_RAW)
    for rung in rungs:
        head = [rung["setting"], f"{rung['width']:g}", rung["seed"]]
        for network, part in [("trained", rung["measures"]), *rung["nulls"].items()]:
            writer.writerows([*head, network, *row] for row in _rows(part))
    return text.getvalue()


def _rows(part: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """(quantity, layer, size, fraction, trial, value)"""
    for layer in part.get("layers", ()):
        for name, value in layer.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield name, layer["name"], "", "", "", value
    for name, value in part.get("accuracy", {}).items():
        yield f"{name}_accuracy", "", "", "", "", value
    ablation = part.get("ablation", {})
    for name in ("agreement", "accuracy", "targeted"):
        for trial, curve in enumerate(ablation.get(name) or ()):
            for fraction, value in zip(ablation["fractions"], curve, strict=True):
                yield f"ablation_{name}", "", "", f"{fraction:.4f}", trial, value
    noise = part.get("noise", {})
    for name in ("agreement", "accuracy"):
        for trial, curve in enumerate(noise.get(name) or ()):
            for scale, value in zip(noise["scales"], curve, strict=True):
                yield f"noise_{name}", "", "", f"{scale:.4f}", trial, value
    chunks = part.get("chunks", {})
    for name in (
        "test_error",
        "train_error",
        "test_loss",
        "r2",
        "r2_outside",
        "residual_correlation",
        "residual_correlation_outside",
    ):
        for size, row in zip(chunks.get("sizes", ()), chunks.get(name, ()), strict=name in chunks):
            for trial, value in enumerate(row):
                yield f"chunk_{name}", "", size, "", trial, "" if value is None else value
