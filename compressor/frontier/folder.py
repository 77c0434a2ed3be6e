"""A frontier as asked for on the command line: run, and written as one folder with a bundle for each point."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compressor.api import Result
from compressor.deliver import write_both
from compressor.errors import UnwrittenPage, UsageError
from compressor.export.files import OUTPUTS, Claim, clean_partial
from compressor.frontier.points import Frontier, Point, trace
from compressor.observe import from_first, only_first
from compressor.options import Sizes
from compressor.recording import assemble, machine, versions
from compressor.records import SCHEMA_VERSION
from compressor.report.frontier import FrontierRecord, checked_frontier, read_frontier
from compressor.report.html import write_frontier, write_html
from compressor.report.record import read_record
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
from compressor.stages import NOTE, Report, silent
from compressor.verification import RECORD, REPORT, hashes
from compressor.verify.uses import count_use

RECORD_FILE, PAGE = "frontier.json", "frontier.html"
_POINT = re.compile(r"(params|macs|latency)_[0-9.]+")


def run(
    job: Job, out: str | Path, *, resume: bool = False, force: bool = False, report: Report = silent
) -> FrontierRecord:
    """Build and judge the networks of `job.sizes`, and write them below `out`.

    With `resume` a finished folder of the same request is returned as it is, a half-done one is done again, all of it;
    with `force` an earlier frontier goes once model and data have been read. Raises CompressorErrors; after any error
    but UnwrittenPage the folder holds no network and no record of this job.
    """
    if job.sizes is None:
        raise UsageError("frontier", "no sizes", "sizes", "give Job(sizes=Sizes()).")
    sizes = job.sizes
    return in_folder(
        out,
        lambda claim: _finished(claim, job),
        lambda folder, claim: _run(job, sizes, folder, claim, report),
        resume=resume,
        force=force,
    )


def _finished(claim: Claim, job: Job) -> FrontierRecord | None:
    """The record of a frontier whose files are all as they were."""
    if not same_request(claim, job, (*OUTPUTS, RECORD_FILE)) or not (claim.path / RECORD_FILE).is_file():
        return None
    found = read_frontier(claim.path / RECORD_FILE)
    for point in found.points:
        folder = claim.path / point.folder
        if not (folder / RECORD).is_file():
            return None
        if hashes(folder) != read_record(folder / RECORD).files:
            return None
    refuse_other_data(job, read_record(claim.path / found.points[0].folder / RECORD).data.marks)
    _missing_pages(claim.path, found)
    return found


def _missing_pages(folder: Path, found: FrontierRecord) -> None:
    """Write those that there was no space for."""
    for place in (folder / point.folder for point in found.points):
        if not (place / REPORT).is_file():
            write_html(read_record(place / RECORD), place / REPORT)
    if not (folder / PAGE).is_file():
        write_frontier(found.model_dump(mode="json"), folder / PAGE)


def _begun_again(claim: Claim, same: bool, report: Report) -> None:
    """Clear the folder for a new start; whoever waits for finished points to be kept is told that they are not.

    They were built from one analysis (its timings need not come out the same) and judged in one sequence.
    """
    done = [one for one in claim.path.iterdir() if _POINT.fullmatch(one.name) and (one / RECORD).is_file()]
    if same and done:
        count = "1 network of an earlier try is" if len(done) == 1 else f"{len(done)} networks of an earlier try are"
        report(f"{NOTE}{count} made again: a frontier is built and judged as a whole", 0.0)
    _cleared(claim)


def _cleared(claim: Claim) -> None:
    """Take away an earlier frontier: its files (also those that a killed run was writing), and folders of points that
    nothing else is in."""
    claim.clear((RECORD_FILE, PAGE, RECORD, *OUTPUTS))
    for folder in sorted(claim.path.iterdir()):
        if _POINT.fullmatch(folder.name) and folder.is_dir():
            clean_partial(folder)
            claim.clear(f"{folder.name}/{name}" for name in (RECORD, *OUTPUTS))
            with contextlib.suppress(OSError):  # not empty: it stays
                folder.rmdir()


def _run(job: Job, sizes: Sizes, folder: Path, claim: Claim | None, report: Report) -> FrontierRecord:
    data, source = loaded(job, folder, report)
    if claim is not None:
        begin(job, claim, lambda same: _begun_again(claim, same, report))
    try:
        found = trace(source.model, data, job.options, sizes, report, source.answers, job.score)
        uses = cache_folder() / "judge_uses.json"
        used = from_first(lambda: count_use(uses, data.judge.fingerprint))
        begun = time.perf_counter()
        places = [folder / name for name in names(found.measure, [point.asked for point in found.points])]
        pairs = zip(found.points, places, strict=True)
        records = [_saved(job, point, found, data, source, place, used, report) for point, place in pairs]
        taken = round(time.perf_counter() - begun, 3)
        seconds = {**found.seconds, "export": taken, "total": round(found.seconds["total"] + taken, 3)}
        record = _assembled(job, found, records, seconds)
        only_first(lambda: _written(record, folder))
    except UnwrittenPage:
        raise
    except Exception:  # as in `compressor.jobs`
        if claim is not None:
            _cleared(claim)
            claim.clear((REQUEST,))
        raise
    written = from_first(lambda: read_frontier(folder / RECORD_FILE))
    only_first(lambda: _missing_pages(folder, written))
    return written


def _written(record: dict[str, Any], folder: Path) -> None:
    checked_frontier(record)
    write_both(lambda path: write_frontier(record, path), folder / PAGE, record, folder / RECORD_FILE)


def names(measure: str, shares: Sequence[float]) -> list[str]:
    """Folders of points, by as many digits of their shares (no two alike) as tell them apart, four at least.

    >>> names("params", [0.5, 0.25]), names("macs", [0.99804, 0.99796]), names("macs", [0.00001])
    (['params_0.5', 'params_0.25'], ['macs_0.99804', 'macs_0.99796'], ['macs_0.00001'])
    """
    found: list[str] = []
    for digits in range(4, 18):
        found = [np.format_float_positional(float(f"{share:.{digits}g}"), trim="-") for share in shares]
        if len(set(found)) == len(shares):
            break
    return [f"{measure}_{share}" for share in found]


def _saved(
    job: Job, point: Point, found: Frontier, data: Data, source: LoadedModel, place: Path, used: int | None,
    report: Report,
) -> dict[str, Any]:  # fmt: skip
    """The point's folder (`place`), with what `compress` would write for it; its record."""
    plain = source.source.as_dict()
    options = replace(job.options, keep=(found.measure, point.asked))
    about = assemble(
        point.outcome, data, options, name=short_name(job.model), source=plain, command=job.command, recipe=job.recipe
    )
    note_request(about, job, source)
    about["judge_uses"] = used
    result = Result(point.outcome.model, point.outcome.verdict, about, source.model, data, point.outcome, job.score)
    how: dict[str, Any] = {"keep_failed": job.keep_failed, "onnx": job.onnx, "precision": job.precision}
    try:
        result.save(place, source=plain, report=report, **how)
    except UnwrittenPage as error:  # ends no work: it is tried again at the end
        report(f"{NOTE}{error}", 0.0)
        result.record = from_first(lambda: read_record(place / RECORD).model_dump(mode="json"))
    return {**result.record, "folder": place.name, "asked": point.asked, "covered": point.covered}


def _assembled(job: Job, found: Frontier, records: list[dict[str, Any]], seconds: dict[str, float]) -> dict[str, Any]:
    first = records[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": first["name"],
        "command": job.command,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "measure": found.measure,
        "original": first["original"],
        "accuracy": first["verdict"]["original"],
        "points": [_row(record) for record in records],
        "seconds": seconds,
        "seed": job.options.seed,
        "judge_uses": first["judge_uses"],
        "warnings": list(found.warnings),
        "options": {**job.options.as_dict(), "keep_failed": job.keep_failed},
        "data": first["data"],
        "source": first["source"],
        "versions": versions(),
        "machine": machine(),
    }


def _row(record: dict[str, Any]) -> dict[str, Any]:
    mine = record["search"][0]
    timed = record["latency"]
    failed = record["verdict"]["value"] == "failed" and not record["options"]["keep_failed"]
    return {
        "folder": record["folder"],
        "asked": record["asked"],
        **{name: mine[name] for name in ("params", "macs", "tune", "predicted_loss")},
        "latency": None if timed is None else {k: timed[k] for k in ("target", "predicted", "measured", "interval")},
        "verdict": record["verdict"],
        "covered": record["covered"],
        "exported": not failed,
    }
