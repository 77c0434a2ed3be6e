"""Run a record again and say whether the result is the same, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.errors import SourceError, UsageError
from compressor.export.files import VARIANTS, clean_partial, output_path
from compressor.jobs import Job, run
from compressor.options import Options, parse_align, parse_keep, parse_recover
from compressor.report.record import read_record
from compressor.sources.checkpoint import refuse_changed
from compressor.sources.consent import refuse_unknown_spec
from compressor.stages import Report, silent
from compressor.training.budget import Budget
from compressor.training.loop import TrainOptions
from compressor.verification import ONNX, RECORD

OF_THE_MOMENT = frozenset(
    {
        *("align.measured", "align.why", "options.align", "command", "created", "files", "judge_uses", "machine"),
        *("onnx.latency", "onnx.latency_ratio", "onnx.variants.latency_ratio", "onnx.variants.latency_interval"),
        *("onnx.variants.median_ms", "memory", "processes", "request", "seconds", "versions", "warnings"),
        *("options.recover", "recover.budget", "recover.seconds"),
        *("search.recovered.budget", "search.recovered.seconds"),
    }
)
"""Parts of a record that tell of the moment, not of the result: times, the machine, how often data was used."""

REPRODUCED = ("model.safetensors", "original.safetensors", ONNX, *VARIANTS)


@dataclass(frozen=True)
class Replay:
    """Whether a second run gave the same: `same` if the network's file and all of the record but times are equal.

    `differences` are places in the record, or files, with both values; `other` what was not the same before the run
    (versions, machine, processes): a result may then differ in its last bits.
    """

    same: bool
    network_same: bool
    differences: tuple[str, ...]
    other: tuple[str, ...]
    folder: str | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dataclasses.asdict(self) | {"differences": list(self.differences), "other": list(self.other)}


def replay(record: str | Path, out: str | Path | None = None, report: Report = silent) -> Replay:
    """Do again what `record` (a record.json, or the folder it lies in) says, and compare.

    With `out` the second result stays there. The number of threads, and widths aligned to a measured block, are taken
    from the record. Raises SourceError where the record, or a file it was made from, is not there or has changed, or
    where it names code that this user has not named (see `sources.consent`), and UsageError for a record that was made
    from Python objects: those cannot be found again.
    """
    path = Path(record).expanduser()
    path = path / RECORD if path.is_dir() else path
    old = read_record(path).model_dump(mode="json")
    job = job_of(old)
    _refuse_changes(old)
    for spec in (job.model, job.data, job.unlabelled, job.options.metric):
        refuse_unknown_spec(spec or "", f"record '{path}'", job.base)
    with _threads(old["threads"]), _folder(out) as folder:
        new = run(job, folder, report=report).model_dump(mode="json")
        clean_partial(folder)
    files = [
        f"{name}: {_short(old['files'].get(name))} then, {_short(new['files'].get(name))} now"
        for name in REPRODUCED
        if old["files"].get(name) != new["files"].get(name)
    ]
    found = [*files, *differences(old, new)]
    kept = None if out is None else str(out)
    return Replay(not found, not any(f.startswith(REPRODUCED[0]) for f in files), tuple(found), _other(old, new), kept)


def job_of(record: Mapping[str, Any]) -> Job:
    """The request behind a record. UsageError for a record without one."""
    asked = record.get("request")
    if not asked:
        raise UsageError(
            "record", "a run on objects that were handed over in Python", "a run of the command line or of a recipe",
            "repeat the call in Python with the same arguments.",
        )  # fmt: skip
    try:
        return _job(record, asked)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            "record, request", f"{type(error).__name__}: {error}", "a request as `compressor compress` writes it",
            "get the record again from where it was made.",
        ) from error  # fmt: skip


def _job(record: Mapping[str, Any], asked: Mapping[str, Any]) -> Job:
    options = dict(record["options"])
    known = {field.name for field in dataclasses.fields(Options)}
    chosen = {name: value for name, value in options.items() if name in known}
    chosen["keep"] = parse_keep(chosen["keep"])
    if chosen["align"] == "auto" and not chosen["exact"]:
        chosen["align"] = parse_align(record["align"]["block"])  # measured then; a busy machine might measure another
    chosen["recover"] = _budget(record)
    if "metric_range" in chosen:
        chosen["metric_range"] = tuple(chosen["metric_range"])
    chosen["timed"] = record.get("latency")  # times differ from run to run: the plan is the one that was taken then
    return Job(
        asked["model"],
        asked["data"],
        Options(**chosen),
        asked["checkpoint"],
        None if asked["train"] is None else TrainOptions(**asked["train"]),
        Path(asked["base"]),
        command=record["command"],
        recipe=record["recipe"],
        keep_failed=bool(options.get("keep_failed", False)),
        onnx=asked["onnx"],
        analyze=record["mode"] == "analyze",
        unlabelled=asked.get("unlabelled"),
        precision=tuple(asked.get("precision", ())),
    )


def _budget(record: Mapping[str, Any]) -> Budget | None:
    """What recovery was given; minutes as the steps that they became then."""
    budget = parse_recover(record["options"].get("recover"))
    taken = [row["recovered"]["steps"] for row in record["search"] if row.get("recovered")]
    return Budget(taken[0], "st") if budget is not None and budget.unit == "min" and taken else budget


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Places where two records differ, apart from what is of the moment."""
    if re.sub(r"\[\d+\]", "", place) in OF_THE_MOMENT:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{place}[{i}]")]
    return [] if old == new else [f"{place}: {_short(old)} then, {_short(new)} now"]


def _refuse_changes(record: Mapping[str, Any]) -> None:
    """The Python file of the network and the checkpoint must be what they were."""
    source, options = record["source"], record["options"]
    for path, mark in [
        (source.get("place") if source.get("kind") == "file" else None, source.get("sha256")),
        (options.get("checkpoint"), options.get("checkpoint_sha256")),
    ]:
        if path is not None and mark is not None:
            refuse_changed(Path(path), mark, "the file that the record was made from", "restore it.")


def _other(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    places = ("versions", "machine", "processes")
    return tuple(d for place in places for d in differences({"-": old[place]}, {"-": new[place]}, place))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield output_path(out)
        return
    with tempfile.TemporaryDirectory(prefix="compressor-replay-") as folder:
        yield Path(folder) / "result"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is None or not 1 <= count <= 4096:
        raise SourceError("record, threads", str(count), "a number of threads", "get the record again.")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
