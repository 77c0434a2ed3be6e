"""What a command or a recipe asks for: load, train if told to, run, write; resumable at its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compressor import pipeline
from compressor.api import finished
from compressor.deliver import write_record
from compressor.errors import CompressorError, DataError, UsageError
from compressor.export.files import OUTPUTS, Claim, claim_folder, replacing, to_json, write_text
from compressor.observe import from_first, in_turn, only_first, processes
from compressor.options import Options, parse_keep, parse_recover
from compressor.recipe import Recipe, resolved
from compressor.recording import assemble
from compressor.report.record import Record, read_record
from compressor.sources.checkpoint import file_sha256, weights_sha256
from compressor.sources.data import Data, load_data, load_unlabelled, with_unlabelled
from compressor.sources.factories import split_query
from compressor.sources.models import LoadedModel, load_model
from compressor.sources.network import cache_folder
from compressor.stages import NOTE, Report, silent
from compressor.training.loop import Progress, TrainOptions, train
from compressor.verification import ORIGINAL, RECORD, hashes, open_bundle
from compressor.verify.judge_data import decidable
from compressor.verify.uses import count_use

REQUEST = "request.txt"
"""Holds the fingerprint of what was asked for, from the start of the work."""


@dataclass(frozen=True)
class Job:
    """One compression, or analysis, as asked for on the command line or in a recipe."""

    model: str
    data: str
    options: Options
    checkpoint: str | None = None
    train: TrainOptions | None = None
    base: Path | None = None
    command: str | None = None
    recipe: dict[str, Any] | None = None
    keep_failed: bool = False
    onnx: bool = True
    analyze: bool = False
    unlabelled: str | None = None

    def __post_init__(self) -> None:
        if self.unlabelled is not None and self.options.recover is None:
            raise UsageError("--unlabelled", "no --recover", "both", "only recovery reads unlabelled data.")

    @property
    def fingerprint(self) -> str:
        """Identifies what is asked for, with the contents of files; a folder is only resumed for the same request."""
        base = self.base or Path.cwd()
        asked = {
            "model": self.model,
            "data": self.data,
            "files": [_content(spec, base) for spec in self.specs if spec is not None],
            "unlabelled": self.unlabelled,
            "options": self.options.as_dict(),
            "train": None if self.train is None else str(self.train),
            "keep_failed": self.keep_failed,
            "onnx": self.onnx,
            "analyze": self.analyze,
        }
        return sha256(to_json(asked).encode()).hexdigest()

    def request(self) -> dict[str, Any]:
        """What `replay` needs to ask for the same again, beside the options."""
        return {
            "model": self.model,
            "data": self.data,
            "checkpoint": self.checkpoint,
            "unlabelled": self.unlabelled,
            "base": str((self.base or Path.cwd()).resolve()),
            "train": None if self.train is None else asdict(self.train),
            "onnx": self.onnx,
        }

    @property
    def specs(self) -> tuple[str | None, ...]:
        """What is read, as it was named."""
        return self.model, self.data, self.checkpoint, self.unlabelled

    @property
    def weights(self) -> Path | None:
        """The checkpoint's absolute path."""
        return None if self.checkpoint is None else ((self.base or Path.cwd()) / Path(self.checkpoint).expanduser())


def from_recipe(recipe: Recipe, base: Path, command: str | None, **changes: Any) -> Job:
    """The job that a recipe describes; `changes` are options given on top of it."""
    asked = recipe.compress
    options = Options(
        asked.max_drop, asked.confidence, parse_keep(asked.keep), asked.exact, asked.align, asked.device, asked.seed,
        parse_recover(asked.recover),
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
    )


def run(job: Job, out: str | Path, *, resume: bool = False, force: bool = False, report: Report = silent) -> Record:
    """Do the job into the folder `out` and return the record that was written.

    With `resume` a finished folder of the same request is returned as it is, a half-done one goes on with what is
    there (the trained network). With `force` an earlier result goes once model and data have been read. In a process
    group every process calls this: the first one claims the folder and writes. Raises CompressorErrors; a folder then
    holds no network and no record of this job.
    """
    claim = only_first(lambda: claim_folder(out, resume=resume, force=force))
    try:
        done = from_first(lambda: _finished(claim, job) if claim is not None and resume else None)
        return done if done is not None else _run(job, Path(out).expanduser(), claim, report)
    finally:
        if claim is not None:
            claim.release()


def _finished(claim: Claim, job: Job) -> Record | None:
    """The record of a finished run whose files are all as they were. UsageError for the work of another request."""
    request, record = claim.path / REQUEST, claim.path / RECORD
    if not request.is_file():
        if any((claim.path / name).exists() for name in OUTPUTS):
            raise _other_request(claim.path)
        return None
    if request.read_text(encoding="utf-8").strip() != job.fingerprint:
        raise _other_request(claim.path)
    if not record.is_file():
        return None
    found = read_record(record)
    known = (found.model_extra or {}).get("files") or {}
    return found if hashes(claim.path) == known else None


def _other_request(path: Path) -> UsageError:
    return UsageError(
        f"output folder '{path}'",
        "the work of another request",
        "the same command, with the same files, that began it",
        "repeat that command with --resume, or use --force or another folder.",
    )


def _run(job: Job, folder: Path, claim: Claim | None, report: Report) -> Record:
    """`claim` is the first process's."""
    report("load", 0.0)
    _refuse_own_inputs(job, folder)
    with in_turn():
        data = load_data(job.data, seed=job.options.seed, base=job.base)
        if job.unlabelled is not None:
            more = load_unlabelled(job.unlabelled, seed=job.options.seed, base=job.base)
            data = with_unlabelled(data, more, job.unlabelled)
        if not job.options.exact and not job.analyze:
            report(f"{NOTE}Before work: {decidable(len(data.judge), job.options.confidence)}", 1.0)
        loaded = load_model(job.model, job.checkpoint, base=job.base, seed=job.options.seed, load_bundle=open_bundle)
    _refuse_differences(loaded.model, data)
    only_first(lambda: _begin(job, claim))
    try:
        model = _trained(job, loaded, data, folder, report)
        if job.analyze:
            return _analyzed(job, loaded, data, folder, report)
        return _compressed(job, loaded, model, data, folder, report)
    except CompressorError:
        if claim is not None:
            claim.clear((RECORD, *OUTPUTS))
            if not (folder / ORIGINAL).is_file():
                claim.clear((REQUEST,))
        raise


def _begin(job: Job, claim: Claim | None) -> None:
    """Model and data have been read: an earlier result goes, and the folder says what is being made."""
    if claim is None:
        return
    request = claim.path / REQUEST
    same = request.is_file() and request.read_text().strip() == job.fingerprint
    claim.clear((RECORD, *OUTPUTS) if same else (RECORD, *OUTPUTS, ORIGINAL))
    write_text(request, job.fingerprint + "\n")


def _refuse_differences(model: torch.nn.Module, data: Data) -> None:
    """Several processes add up what they measure: all must have the same network and the same samples in one order."""
    if processes()[1] == 1:
        return
    own = {part: sha256(getattr(data, part).hashes.tobytes()).hexdigest() for part in ("calibrate", "tune", "judge")}
    own["weights"] = weights_sha256(model)
    for name, mark in from_first(lambda: own).items():
        if own[name] != mark:
            raise DataError(
                f"the {'network' if name == 'weights' else 'data'} ({name})",
                "others than in the first process",
                "the same in every process",
                "give the factory a seed of its own, and every machine the same files.",
            )


def _refuse_own_inputs(job: Job, folder: Path) -> None:
    """A bundle, or a checkpoint, that the result would replace: `verify` could not judge it again."""
    place = folder.resolve()
    source = ((job.base or Path.cwd()) / Path(split_query(job.model)[0]).expanduser()).resolve()
    weights = job.weights
    inside = weights is not None and weights.resolve().parent == place and weights.name in (*OUTPUTS, ORIGINAL)
    if source == place or inside:
        raise UsageError(
            f"output folder '{folder}'", "the folder that the network is read from", "another folder", "change --out."
        )


def _compressed(
    job: Job, loaded: LoadedModel, model: torch.nn.Module, data: Data, folder: Path, report: Report
) -> Record:
    source = loaded.source.as_dict()
    result = finished(
        model, data, job.options, report=report, name=_short_name(job.model), source=source, command=job.command,
        recipe=job.recipe,
    )  # fmt: skip
    about = result.assembled
    _note_request(about, job, loaded)
    if not job.options.exact:
        uses = cache_folder() / "judge_uses.json"
        about["judge_uses"] = from_first(lambda: count_use(uses, data.judge.fingerprint))
    result.save(folder, source=source, keep_failed=job.keep_failed, onnx=job.onnx, report=report)
    return from_first(lambda: read_record(folder / RECORD))


def _analyzed(job: Job, loaded: LoadedModel, data: Data, folder: Path, report: Report) -> Record:
    outcome = pipeline.analyze(loaded.model, data, job.options, report)
    record = assemble(
        outcome, data, job.options, name=_short_name(job.model), source=loaded.source.as_dict(), command=job.command
    )
    _note_request(record, job, loaded)
    only_first(lambda: write_record(record, folder))
    return from_first(lambda: read_record(folder / RECORD))


def _note_request(record: dict[str, Any], job: Job, loaded: LoadedModel) -> None:
    record["request"] = job.request()
    if job.weights is not None:
        record["options"]["checkpoint"] = str(job.weights.resolve())
        record["options"]["checkpoint_sha256"] = loaded.checkpoint_sha256
    if not loaded.trained and job.train is None:
        record["warnings"].append("The network has no trained weights: figures say nothing about a trained one.")


def _short_name(spec: str) -> str:
    head = split_query(spec)[0].rstrip("/")
    return head.rpartition(":")[2].rpartition("/")[2] or spec


def _content(spec: str, base: Path) -> str | None:
    """sha256 of the file behind a spec: Python file, checkpoint, or manifest (which has that of a bundle's weights)."""
    head = spec.partition("?")[0]
    for place in (head, head.rpartition(":")[0]):
        path = base / Path(place).expanduser()
        for file in (path, path / "manifest.json"):
            if place and file.is_file():
                return file_sha256(file)
    return None


def _trained(job: Job, loaded: LoadedModel, data: Data, folder: Path, report: Report) -> torch.nn.Module:
    """The network with its weights: trained by the recipe unless a checkpoint or an earlier try has them."""
    if job.train is None or job.checkpoint is not None:
        return loaded.model
    kept, options = folder / ORIGINAL, job.train
    only_first(lambda: None if kept.is_file() else _train(job, options, loaded, data, kept, report))
    if not kept.is_file():
        raise UsageError(
            f"output folder '{folder}'", f"no {ORIGINAL} for this process", "a folder that all processes see",
            "choose a folder that the machines share.",
        )  # fmt: skip
    loaded.model.load_state_dict(load_file(kept))  # always from the file, so that resuming changes nothing
    return loaded.model.eval()


def _train(job: Job, options: TrainOptions, loaded: LoadedModel, data: Data, kept: Path, report: Report) -> None:
    if data.train is None:
        raise DataError(
            f"data '{job.data}'",
            "no training part",
            "a `train` part, as the recipe trains",
            "add one, or a checkpoint.",
        )

    def step(progress: Progress) -> None:
        report("train", progress.done)

    made, _ = train(loaded.model, data.train, options, device="cpu", progress=step)
    with replacing(kept) as partial:
        save_file({name: t.detach().clone().contiguous() for name, t in made.state_dict().items()}, partial)
