"""Results to files: bundle, ONNX (judged again and timed), record and report; each file appears whole or not at all."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compressor.errors import ModelError, SourceError, UnwrittenPage, UsageError
from compressor.export.bundle import save_bundle
from compressor.export.files import OUTPUTS, scratch_folder, write_json
from compressor.export.latency import compare_latency
from compressor.export.onnx import export_onnx
from compressor.export.precision import Precision
from compressor.questions import Question
from compressor.report.html import write_html
from compressor.report.record import validate
from compressor.stages import Report
from compressor.variants import Variant, write_variants
from compressor.verification import ONNX, RECORD, REPORT, hashes

if TYPE_CHECKING:
    from compressor.api import Result

LATENCY_BATCH = 32
LATENCY_SECONDS = 6.0
NO_ONNX = "No ONNX file:"
"""How the warning begins where the network could not be exported."""


def write(
    result: Result, folder: Path, *, source: Mapping[str, Any] | None, keep_failed: bool, onnx: bool, report: Report,
    precision: Sequence[Precision] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write everything, in place of an earlier result, and return the record that was written.

    The record comes last: a folder with a record is complete, but for a page that there was no space for.
    """
    started = time.perf_counter()
    _emptied(folder)
    record = copy.deepcopy(result.assembled)
    record["options"]["keep_failed"] = keep_failed
    if result.verdict is not None and result.verdict.value == "failed" and not keep_failed:
        record["warnings"].append(
            "The verdict failed: nothing was exported (add --keep-failed to export all the same)."
        )
    else:
        plain = dict(source or record["source"] or anonymous(result.original))
        record["source"] = plain
        report("export", 0.0)
        save_bundle(folder, result.model, result.original, plain)
        if onnx:
            report("export", 0.3)
            _export(result, folder, record, report, precision)
    record["files"] = hashes(folder)
    taken = round(time.perf_counter() - started, 3)
    record["seconds"] |= {"export": taken, "total": round(record["seconds"].get("total", 0.0) + taken, 3)}
    write_record(record, folder)
    return record


def write_record(record: dict[str, Any], folder: Path) -> None:
    """The report, then the record. See `write_both`."""
    validate(record)
    write_both(lambda path: write_html(record, path), folder / REPORT, record, folder / RECORD)


def write_both(write_page: Callable[[Path], None], page: Path, record: dict[str, Any], place: Path) -> None:
    """The page, then the record at `place`, whose presence says that a folder is complete.

    Where there is no space for both, the page gives way, as it can be made from the record: the record is written, and
    UnwrittenPage raised. UsageError where not even the record can be written.
    """
    missing = None
    try:
        write_page(page)
    except UsageError as error:
        missing = error
    try:
        write_json(place, record)
    except UsageError as error:
        page.unlink(missing_ok=True)
        write_json(place, record)
        missing = error
    if missing is not None:
        raise UnwrittenPage(
            f"writing '{page}'", missing.got, "a place that can be written (all else is finished, and stays)",
            f"make space; `--resume` of the same command then writes {page.name} alone.",
        ) from missing  # fmt: skip


def _emptied(folder: Path) -> None:
    """Make the folder, without files of an earlier result (the record goes first). UsageError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RECORD, *OUTPUTS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"output folder '{folder}'", error.strerror or str(error), "a folder that can be written",
            "check its permissions, or choose another folder.",
        ) from None  # fmt: skip


def anonymous(model: nn.Module) -> dict[str, Any]:
    """A source for a network that was handed over as an object: only `load(DIR, factory=...)` can rebuild it."""
    kind = type(model)
    return {
        "spec": f"{kind.__module__}.{kind.__qualname__}", "kind": "object", "place": kind.__module__,
        "name": kind.__qualname__, "arguments": {}, "sha256": None,
    }  # fmt: skip


def _export(
    result: Result, folder: Path, record: dict[str, Any], report: Report, precision: Sequence[Precision]
) -> None:
    samples = result.data.judge
    inputs, _ = samples.batch(torch.arange(min(64, len(samples))))
    try:
        made = export_onnx(result.model, inputs, folder / ONNX)
    except ModelError as error:
        record["warnings"].append(f"{NO_ONNX} {error}")
        return
    record["onnx"] = {**made.as_dict(), "path": ONNX, "latency_ratio": None, "latency": None}
    if not made.parity.signal:
        record["warnings"].append("The ONNX file's parity has no signal: its outputs do not vary over the inputs.")
    report("export", 0.5)
    variants = _judged(result, folder, record, precision)
    report("export", 0.7)
    time_files(result.original, inputs, folder, record, variants)


def _judged(result: Result, folder: Path, record: dict[str, Any], precision: Sequence[Precision]) -> list[Variant]:
    """The verdict once more, on the exported file itself, and on each of its variants."""
    before, verdict = result.outcome.judged_on, result.verdict
    if before is None or verdict is None:
        return []
    allowed = (record["options"]["max_drop"], record["options"]["confidence"])
    question = Question(before, result.data.judge, verdict, *allowed, result.score)
    again = question.put(folder / ONNX)
    record["onnx_verdict"] = again.as_dict()
    if again.value != verdict.value:
        record["warnings"].append(
            f"The ONNX file's verdict is '{again.value}', the network's is '{verdict.value}': deploy with care."
        )
    made, warnings = write_variants(precision, folder / ONNX, result.data.calibrate, question)
    record["warnings"] += warnings
    return made


def _given_file(record: dict[str, Any]) -> Path | None:
    """The ONNX file that is the original, as long as it is there."""
    source = record.get("source") or {}
    place = Path(source["place"]) if source.get("kind") == "onnx" else None
    return place if place is not None and place.is_file() else None


def original_file(original: nn.Module, inputs: Any, record: dict[str, Any], scratch: Path) -> Path:
    """The ONNX file that latencies are compared with: the one that was given, or the original's export in `scratch`."""
    return _given_file(record) or export_onnx(original, inputs, scratch / "original.onnx").path


def time_files(
    original: nn.Module, inputs: Any, folder: Path, record: dict[str, Any], variants: Sequence[Variant]
) -> None:
    """Note latency and size of the files in the record, against `original`'s own export, or the ONNX file that was
    given, in interleaved rounds.

    All on one thread. Where that cannot be, the record gets a warning, and the variants without latencies.
    """
    record["onnx"]["variants"] = [variant.as_dict() for variant in variants]
    with scratch_folder(folder) as scratch:
        try:
            base = original_file(original, inputs, record, scratch)
            files = [base, folder / ONNX, *(variant.path for variant in variants)]
            seconds = LATENCY_SECONDS * len(files) / 2
            compared = compare_latency(files, batch=LATENCY_BATCH, threads=1, seconds=seconds)
            size = sum(file.stat().st_size for file in (base, base.with_name(f"{base.name}.data")) if file.is_file())
        except (ModelError, SourceError, UsageError) as error:
            record["warnings"].append(f"Latency was not measured: {error}")
            return
    record["onnx"]["original_bytes"] = size
    record["onnx"]["latency"] = replace(compared, files=compared.files[:2]).as_dict()
    timed = zip(variants, compared.files[2:], strict=True)
    record["onnx"]["variants"] = [replace(variant, latency=file).as_dict() for variant, file in timed]
    record["onnx"]["latency_ratio"] = compared.files[1].ratio
