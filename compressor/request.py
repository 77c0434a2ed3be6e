"""What is asked for: its fingerprint, the folder that it is worked on in, and what it names, loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch

from compressor.errors import DataError, UsageError
from compressor.export.files import OUTPUTS, Claim, claim_folder, to_json, write_text
from compressor.export.precision import parse_precisions
from compressor.observe import from_first, in_turn, only_first, processes
from compressor.options import Options, Sizes, refuse_unread, refuse_unread_table
from compressor.report.words import plain
from compressor.sources.checkpoint import weights_sha256
from compressor.sources.consent import remember
from compressor.sources.contents import content
from compressor.sources.data import NAMED, Data, load_data, load_unlabelled, with_unlabelled
from compressor.sources.factories import find_factory, split_query
from compressor.sources.models import LoadedModel, load_model
from compressor.stages import NOTE, Report
from compressor.training.loop import TrainOptions
from compressor.verification import ORIGINAL, open_bundle
from compressor.verify.judge_data import decidable
from compressor.verify.scores import Score, load_score

REQUEST = "request.txt"
"""Holds the fingerprint of what was asked for, and the command as it was typed, from the start of the work."""
Done = TypeVar("Done")


@dataclass(frozen=True)
class Job:
    """One compression, analysis or frontier, as asked for on the command line or in a recipe."""

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
    precision: tuple[str, ...] = ()
    """Variants of the ONNX file."""
    analyze: bool = False
    unlabelled: str | None = None
    sizes: Sizes | None = None
    """Of a frontier."""

    def __post_init__(self) -> None:
        refuse_unread(self.unlabelled, self.options, "--unlabelled")
        parse_precisions(self.precision)
        refuse_unread_table(self.options, self.sizes)

    @property
    def fingerprint(self) -> str:
        """Identifies what is asked for, with the contents of files; a folder is only resumed for the same request."""
        base = self.base or Path.cwd()
        asked = {
            "model": self.model,
            "data": self.data,
            "files": [content(spec, base) for spec in self.specs if spec is not None],
            "unlabelled": self.unlabelled,
            "options": self.options.as_dict(),
            "train": None if self.train is None else str(self.train),
            "keep_failed": self.keep_failed,
            "onnx": self.onnx,
            "analyze": self.analyze,
            **({"precision": list(self.precision)} if self.precision else {}),
            **({} if self.sizes is None else {"sizes": asdict(self.sizes)}),
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
            "precision": list(self.precision),
        }

    @property
    def specs(self) -> tuple[str | None, ...]:
        """What is read, as it was named."""
        options = self.options
        return self.model, self.data, self.checkpoint, self.unlabelled, options.metric, options.latency_table

    @property
    def score(self) -> Score | None:
        """What answers are judged by, where that was asked for. SourceError where it cannot be found."""
        return load_score(self.options.metric, *self.options.metric_range, self.base)

    @property
    def weights(self) -> Path | None:
        """The checkpoint's absolute path."""
        return None if self.checkpoint is None else ((self.base or Path.cwd()) / Path(self.checkpoint).expanduser())


def in_folder(
    out: str | Path, finished: Callable[[Claim], Done | None], work: Callable[[Path, Claim | None], Done],
    *, resume: bool, force: bool,
) -> Done:  # fmt: skip
    """Claim the folder `out` for `work`; with `resume` what `finished` finds there is returned instead.

    In a process group every process calls this, and the first one has the claim. UsageError for a folder in use.
    """
    claim = only_first(lambda: claim_folder(out, resume=resume, force=force))
    try:
        done = from_first(lambda: finished(claim) if claim is not None and resume else None)
        return done if done is not None else work(Path(out).expanduser(), claim)
    finally:
        if claim is not None:
            claim.release()


def same_request(claim: Claim, job: Job, results: tuple[str, ...] = OUTPUTS) -> bool:
    """False where nothing was begun in the folder yet. UsageError for results, or the work, of another request."""
    mark, command = _asked_in(claim.path)
    if mark is None and not any((claim.path / name).exists() for name in results):
        return False
    if mark != job.fingerprint:
        raise _other_request(claim.path, command)
    return True


def _asked_in(folder: Path) -> tuple[str | None, str | None]:
    """The fingerprint of the work in a folder, None where none was begun, and its command where one was typed."""
    request = folder / REQUEST
    text = request.read_text(encoding="utf-8", errors="replace") if request.is_file() else ""
    mark, _, command = text.partition("\n")
    return mark.strip() or None, plain(command.strip()) or None


def refuse_other_data(job: Job, known: Mapping[str, str | None]) -> None:
    """UsageError where the data that a finished run read, by the fingerprints in its record, has changed since.

    The request holds the file that is named; what a factory or a list of files reads beside it is looked at here.
    """
    if _fixed(job.data) and (job.unlabelled is None or _fixed(job.unlabelled)):
        return
    model = load_model(job.model, job.checkpoint, base=job.base, seed=job.options.seed, load_bundle=open_bundle)
    data = _data(job, model)
    found = {part: getattr(data, part) for part in known}
    changed = [
        part for part, mark in known.items() if None not in (mark, found[part]) and found[part].fingerprint != mark
    ]
    if changed:
        spec = job.unlabelled if changed == ["unlabelled"] else job.data
        raise UsageError(
            f"data '{spec}'", f"other samples than those of the finished run ({', '.join(changed)})",
            "the same command, with the same data, that began it", "use --force or another folder to work on the new.",
        )  # fmt: skip


def _fixed(spec: str) -> bool:
    """Whether the request already holds all that the data is made of."""
    head, _ = split_query(spec)
    return head in NAMED or head.startswith("npz:")


def _data(job: Job, model: LoadedModel) -> Data:
    """The data that the job names, with the more inputs for recovery."""
    prepared: dict[str, Any] = {"seed": job.options.seed, "base": job.base, "transform": model.transform}
    data = load_data(job.data, **prepared)
    if job.unlabelled is None:
        return data
    return with_unlabelled(data, load_unlabelled(job.unlabelled, **prepared), job.unlabelled)


def _other_request(path: Path, command: str | None) -> UsageError:
    return UsageError(
        f"output folder '{path}'",
        "the work of another request" if command is None else f"the work of another request, `{command}`",
        "the same command, with the same files, that began it",
        "repeat that command with --resume, or use --force or another folder.",
    )


def loaded(job: Job, folder: Path, report: Report) -> tuple[Data, LoadedModel]:
    """Data and model as the job names them. SourceErrors and DataErrors as the sources raise them."""
    report("load", 0.0)
    _refuse_own_inputs(job, folder)
    with in_turn():
        model = load_model(job.model, job.checkpoint, base=job.base, seed=job.options.seed, load_bundle=open_bundle)
        if model.checkpoint_note is not None:
            report(f"{NOTE}{model.checkpoint_note}", 0.0)
        data = _data(job, model)
        if not job.options.exact and not job.analyze:
            report(f"{NOTE}Before work: {decidable(len(data.judge), job.options.confidence)}", 1.0)
    _refuse_differences(model.model, data)
    only_first(lambda: _remember_code(job))
    return data, model


def _remember_code(job: Job) -> None:
    """The user named this code: `verify` and `replay` of the result need no consent for it."""
    for spec in (job.model, job.data, job.unlabelled, job.options.metric):
        head, arguments = split_query(spec or "")
        remember(find_factory(head, job.base), arguments)


def begin(job: Job, claim: Claim, clear: Callable[[bool], None]) -> None:
    """Model and data have been read: `clear` takes an earlier result away, and the folder says what is being made.

    It is told whether the earlier work there is of the same request.
    """
    clear(_asked_in(claim.path)[0] == job.fingerprint)
    write_text(claim.path / REQUEST, f"{job.fingerprint}\n{plain(job.command or '')}\n")


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


def note_request(record: dict[str, Any], job: Job, loaded: LoadedModel) -> None:
    """Add to a record what was asked for, and what it was read from."""
    record["request"] = job.request()
    if job.weights is not None:
        record["options"]["checkpoint"] = str(job.weights.resolve())
        record["options"]["checkpoint_sha256"] = loaded.checkpoint_sha256
    if loaded.checkpoint_note is not None:
        record["warnings"].append(loaded.checkpoint_note)
    if not loaded.trained and job.train is None:
        record["warnings"].append(
            "No trained weights were given (--checkpoint): unless the model's own code loads them, figures say nothing "
            "about a trained network."
        )


def short_name(spec: str) -> str:
    """The last part of what names a model."""
    head = split_query(spec)[0].rstrip("/")
    return head.rpartition(":")[2].rpartition("/")[2] or spec
