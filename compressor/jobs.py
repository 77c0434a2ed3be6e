"""What a command or a recipe asks for: load, train if told to, run, write; resumable at its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from compressor import pipeline
from compressor.api import finished
from compressor.capacity.single import layers_of_one
from compressor.deliver import write_record
from compressor.errors import DataError, UnwrittenPage, UsageError
from compressor.export.files import OUTPUTS, Claim
from compressor.observe import from_first, only_first
from compressor.options import Options, parse_keep, parse_memory, parse_recover
from compressor.recipe import Recipe, resolved
from compressor.recording import assemble
from compressor.report.html import write_html
from compressor.report.record import Record, read_record
from compressor.request import (
    REQUEST,
    Job,
    begin,
    in_folder,
    loaded,
    note_request,
    refuse_other_data,
    same_request,
    short_name,
)
from compressor.sources.data import Data
from compressor.sources.models import LoadedModel
from compressor.sources.network import cache_folder
from compressor.stages import Report, silent
from compressor.studies import save_weights
from compressor.training.loop import Progress, TrainOptions, train
from compressor.verification import ORIGINAL, RECORD, REPORT, hashes
from compressor.verify.uses import count_use

__all__ = ["Job", "from_recipe", "run"]


def from_recipe(recipe: Recipe, base: Path, command: str | None, **changes: Any) -> Job:
    """The job that a recipe describes; `changes` are options given on top of it."""
    asked = recipe.compress
    options = Options(
        asked.max_drop, asked.confidence, parse_keep(asked.keep), asked.exact, asked.align, asked.device, asked.seed,
        parse_recover(asked.recover), asked.metric, asked.metric_range,
        latency_table=None if asked.latency_table is None else str(base / Path(asked.latency_table).expanduser()),
        memory=parse_memory(asked.memory),
        rotate=asked.rotate,
    )  # fmt: skip
    return Job(
        recipe.model_spec,
        recipe.data_spec,
        replace(options, **changes),
        recipe.checkpoint,
        None if recipe.train is None else recipe.train.options(),
        base,
        command=command,
        recipe=resolved(recipe),
        unlabelled=asked.unlabelled,
        precision=asked.precision,
    )


def run(job: Job, out: str | Path, *, resume: bool = False, force: bool = False, report: Report = silent) -> Record:
    """Do the job into the folder `out` and return the record that was written.

    With `resume` a finished folder of the same request is returned as it is, a half-done one goes on with what is
    there (the trained network). With `force` an earlier result goes once model and data have been read. In a process
    group every process calls this: the first one claims the folder and writes. Raises CompressorErrors; after any error
    but UnwrittenPage the folder holds no network and no record of this job.
    """
    return in_folder(
        out,
        lambda claim: _finished(claim, job),
        lambda folder, claim: _run(job, folder, claim, report),
        resume=resume,
        force=force,
    )


def _finished(claim: Claim, job: Job) -> Record | None:
    """The record of a finished run whose files are all as they were."""
    if not same_request(claim, job) or not (claim.path / RECORD).is_file():
        return None
    found = read_record(claim.path / RECORD)
    if hashes(claim.path) != found.files:
        return None
    refuse_other_data(job, found.data.marks)
    if not (claim.path / REPORT).is_file():  # there was no space for it
        write_html(found, claim.path / REPORT)
    return found


def _run(job: Job, folder: Path, claim: Claim | None, report: Report) -> Record:
    """`claim` is the first process's."""
    data, source = loaded(job, folder, report)
    if claim is not None:
        begin(job, claim, lambda same: claim.clear((RECORD, *OUTPUTS) if same else (RECORD, *OUTPUTS, ORIGINAL)))
    try:
        model = _trained(job, source, data, folder, report)
        if job.analyze:
            return _analyzed(job, source, data, folder, report)
        return _compressed(job, source, model, data, folder, report)
    except UnwrittenPage:
        raise
    except Exception:  # a fault of ours too: what is left of it would only stand in the way
        if claim is not None:
            claim.clear((RECORD, *OUTPUTS))
            if not (folder / ORIGINAL).is_file():
                claim.clear((REQUEST,))
        raise


def _compressed(
    job: Job, source: LoadedModel, model: torch.nn.Module, data: Data, folder: Path, report: Report
) -> Record:
    plain = source.source.as_dict()
    result = finished(
        model, data, job.options, report=report, name=short_name(job.model), source=plain, command=job.command,
        recipe=job.recipe, answers=source.answers, score=job.score,
    )  # fmt: skip
    about = result.assembled
    note_request(about, job, source)
    if not job.options.exact:
        uses = cache_folder() / "judge_uses.json"
        about["judge_uses"] = from_first(lambda: count_use(uses, data.judge.fingerprint))
    how: dict[str, Any] = {"keep_failed": job.keep_failed, "onnx": job.onnx, "precision": job.precision}
    result.save(folder, source=plain, report=report, **how)
    return from_first(lambda: read_record(folder / RECORD))


def _analyzed(job: Job, source: LoadedModel, data: Data, folder: Path, report: Report) -> Record:
    outcome = pipeline.analyze(source.model, data, job.options, report)
    record = assemble(
        outcome, data, job.options, name=short_name(job.model), source=source.source.as_dict(), command=job.command
    )
    record |= from_first(lambda: layers_of_one(outcome, data, job.options, report))
    note_request(record, job, source)
    only_first(lambda: write_record(record, folder))
    return from_first(lambda: read_record(folder / RECORD))


def _trained(job: Job, source: LoadedModel, data: Data, folder: Path, report: Report) -> torch.nn.Module:
    """The network with its weights: trained by the recipe unless a checkpoint or an earlier try has them."""
    if job.train is None or job.checkpoint is not None:
        return source.model
    kept, options = folder / ORIGINAL, job.train
    only_first(lambda: None if kept.is_file() else _train(job, options, source, data, kept, report))
    if not kept.is_file():
        raise UsageError(
            f"output folder '{folder}'", f"no {ORIGINAL} for this process", "a folder that all processes see",
            "choose a folder that the machines share.",
        )  # fmt: skip
    source.model.load_state_dict(load_file(kept))  # always from the file, so that resuming changes nothing
    return source.model.eval()


def _train(job: Job, options: TrainOptions, source: LoadedModel, data: Data, kept: Path, report: Report) -> None:
    if data.train is None:
        raise DataError(
            f"data '{job.data}'",
            "no training part",
            "a `train` part, as the recipe trains",
            "add one, or a checkpoint.",
        )

    def step(progress: Progress) -> None:
        report("train", progress.done)

    made, _ = train(source.model, data.train, options, device="cpu", progress=step)
    save_weights(made, kept)
