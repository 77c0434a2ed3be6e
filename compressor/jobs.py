"""What a command or a recipe asks for: load, train if told to, run, write; resumable at its folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compressor.api import finished
from compressor.deliver import RECORD
from compressor.errors import DataError, UsageError
from compressor.export.bundle import load_bundle
from compressor.export.files import Claim, claim_folder, replacing, to_json
from compressor.options import Options, parse_align, parse_keep
from compressor.recipe import Recipe, resolved
from compressor.report.record import Record, read_record
from compressor.sources.data import Data, load_data
from compressor.sources.models import LoadedModel, load_model
from compressor.sources.network import cache_folder
from compressor.stages import Report, silent
from compressor.training.loop import Progress, TrainOptions, train
from compressor.verification import ORIGINAL
from compressor.verify.uses import count_use

REQUEST = "request.json"


@dataclass(frozen=True)
class Job:
    """One compression as asked for on the command line or in a recipe."""

    model: str
    data: str
    options: Options
    checkpoint: str | None = None
    train: TrainOptions | None = None
    base: Path | None = None
    name: str | None = None
    command: str | None = None
    recipe: dict[str, Any] | None = None
    keep_failed: bool = False
    onnx: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identifies what is asked for; a folder is only resumed for the same request."""
        asked = {
            "model": self.model,
            "data": self.data,
            "options": self.options.as_dict(),
            "checkpoint": self.checkpoint,
            "train": None if self.train is None else str(self.train),
            "keep_failed": self.keep_failed,
        }
        return hashlib.sha256(to_json(asked).encode()).hexdigest()


def from_recipe(recipe: Recipe, base: Path, command: str | None, **changes: Any) -> Job:
    """The job that a recipe describes; `changes` are options given on top of it."""
    asked = recipe.compress
    if asked.recover is not None:
        raise UsageError("recipe: compress.recover", asked.recover, "nothing yet", "recovery comes in a later version")
    options = Options(
        asked.max_drop, asked.confidence, parse_keep(asked.keep), asked.exact, asked.align, asked.device, asked.seed
    )
    return Job(
        recipe.model_spec,
        recipe.data_spec,
        replace(options, **changes),
        recipe.checkpoint if recipe.checkpoint is None else str((base / recipe.checkpoint).resolve()),
        None if recipe.train is None else recipe.train.options(),
        base,
        command=command,
        recipe=resolved(recipe),
    )


def run(job: Job, out: str | Path, *, resume: bool = False, force: bool = False, report: Report = silent) -> Record:
    """Do the job into the folder `out` and return the record that was written.

    A finished folder of the same request is returned as it is with `resume`; a half-done one goes on with what is
    there (the trained network). Raises CompressorErrors before anything in the folder is replaced.
    """
    claim = claim_folder(out, resume=resume, force=force)
    try:
        if resume:
            done = _finished(claim, job)
            if done is not None:
                return done
        return _run(job, claim, report)
    finally:
        claim.release()


def _finished(claim: Claim, job: Job) -> Record | None:
    request, record = claim.path / REQUEST, claim.path / RECORD
    if not request.is_file():
        if not claim.fresh and record.is_file():
            raise _other_request(claim.path)
        return None
    if request.read_text(encoding="utf-8").strip() != job.fingerprint:
        raise _other_request(claim.path)
    return read_record(record) if record.is_file() else None


def _other_request(path: Path) -> UsageError:
    return UsageError(
        f"output folder '{path}'", "the work of another request", "the same command that began it",
        "repeat that command with --resume, or use --force or another folder.",
    )  # fmt: skip


def _run(job: Job, claim: Claim, report: Report) -> Record:
    from compressor.export.files import write_text

    report("load", 0.0)
    data = load_data(job.data, seed=job.options.seed, base=job.base)
    loaded = load_model(
        job.model, job.checkpoint, base=job.base, seed=job.options.seed, load_bundle=lambda path: load_bundle(path)
    )
    if not claim.fresh and not (claim.path / REQUEST).is_file():
        claim.clear()
    elif (claim.path / REQUEST).is_file() and (claim.path / REQUEST).read_text().strip() != job.fingerprint:
        claim.clear((*CLEARED, ORIGINAL, REQUEST))
    write_text(claim.path / REQUEST, job.fingerprint + "\n")
    model = _trained(job, loaded, data, claim.path, report)
    result = finished(
        model, data, job.options, report=report, name=job.name or _short_name(job.model),
        source=loaded.source.as_dict(), command=job.command, recipe=job.recipe,
    )  # fmt: skip
    if job.checkpoint is not None:
        result.record["options"]["checkpoint"] = str(job.checkpoint)
    if not job.options.exact:
        result.record["judge_uses"] = count_use(cache_folder() / "judge_uses.json", data.judge.fingerprint)
    if not loaded.trained and job.train is None:
        result.record["warnings"].append("The network has no trained weights: figures say nothing about a trained one.")
    result.save(claim.path, source=loaded.source.as_dict(), keep_failed=job.keep_failed, onnx=job.onnx, report=report)
    return read_record(claim.path / RECORD)


CLEARED = ("model.safetensors", "manifest.json", "model.onnx", "record.json", "report.html")


def _short_name(spec: str) -> str:
    return spec.rpartition(":")[2].partition("?")[0] or spec


def _trained(job: Job, loaded: LoadedModel, data: Data, folder: Path, report: Report) -> torch.nn.Module:
    """The network with its weights: trained by the recipe unless a checkpoint or an earlier try has them."""
    if job.train is None or job.checkpoint is not None:
        return loaded.model
    kept = folder / ORIGINAL
    if kept.is_file():
        loaded.model.load_state_dict(load_file(kept))
        return loaded.model.eval()
    if data.train is None:
        raise DataError(
            f"data '{job.data}'",
            "no training part",
            "a `train` part, as the recipe trains",
            "add one, or a checkpoint.",
        )

    def step(progress: Progress) -> None:
        report("train", progress.done)

    model, _ = train(loaded.model, data.train, job.train, device="cpu", progress=step)
    with replacing(kept) as partial:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, partial)
    return model.eval()


__all__ = ["Job", "from_recipe", "parse_align", "run"]
