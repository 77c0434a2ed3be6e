"""Variants of the exported file in lower precision: written, and judged against the original like the file itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.export.files import move
from compressor.export.latency import FileLatency
from compressor.export.precision import CALIBRATION, Precision, file_name, write_variant
from compressor.questions import Question
from compressor.records import Verdict
from compressor.sources.checkpoint import file_sha256
from compressor.sources.samples import Samples


@dataclass(frozen=True)
class Variant:
    """A file in lower precision with its verdict; `path` says `.failed` where that failed."""

    precision: Precision
    path: Path
    bytes: int
    verdict: Verdict
    calibrated_on: int
    latency: FileLatency | None = None
    """Against the original's own float32 file."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        timed = self.latency
        return {
            "precision": self.precision,
            "path": self.path.name,
            "bytes": self.bytes,
            "verdict": self.verdict.as_dict(),
            "calibrated_on": self.calibrated_on,
            "latency_ratio": None if timed is None else timed.ratio,
            "latency_interval": None if timed is None else list(timed.interval),
            "median_ms": None if timed is None else timed.median_ms,
        }


def write_variants(
    precisions: Sequence[Precision], source: Path, calibrate: Samples, question: Question
) -> tuple[list[Variant], list[str]]:
    """Write and judge each variant of the file `source`, beside it; also warnings in words.

    One that cannot be made is a warning, not an error. Each verdict stands for its own file: who takes the best of
    several by what they show here takes a selected one.
    """
    made, warnings = [], []
    for precision in precisions:
        path = source.parent / file_name(precision)
        try:
            size = write_variant(precision, source, path, calibrate)
            verdict = question.put(path, lower=True)
        except CompressorError as error:
            path.unlink(missing_ok=True)
            warnings.append(f"No {precision} variant of the ONNX file: {error}")
            continue
        if verdict.value == "failed":
            move(path, source.parent / file_name(precision, failed=True))
            path = source.parent / file_name(precision, failed=True)
        if verdict.value != "passed":
            end = "it is kept as" if verdict.value == "failed" else "judge it on more samples before you deploy"
            warnings.append(f"The {precision} variant's verdict is '{verdict.value}': {end} {path.name}.")
        rows = min(CALIBRATION, len(calibrate)) if precision == "int8" else 0
        made.append(Variant(precision, path, size, verdict, rows))
    return made, warnings


def known_variants(record: Mapping[str, Any], folder: Path) -> list[Variant]:
    """The variants that a bundle's record tells of and that are in its `folder` as they were judged, without times."""
    found = (record["onnx"] or {}).get("variants", [])
    return [
        Variant(one["precision"], folder / one["path"], one["bytes"], Verdict(**one["verdict"]), one["calibrated_on"])
        for one in found
        if (folder / one["path"]).is_file() and file_sha256(folder / one["path"]) == record["files"].get(one["path"])
    ]
