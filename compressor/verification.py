"""Judging a bundle again: network and ONNX file against the original that the record names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import SourceError
from compressor.export.bundle import load_bundle
from compressor.export.session import OnnxModel
from compressor.records import Verdict
from compressor.report.record import Record, read_record
from compressor.sources.models import load_model
from compressor.sources.samples import Samples, as_samples
from compressor.verify.accuracy import outputs_of
from compressor.verify.judge import judge, judge_outputs

ORIGINAL = "original.safetensors"
"""Where a run that trained its network keeps the original's weights."""


@dataclass(frozen=True)
class Verification:
    """Verdicts on the bundle's network and, if it has one, on its ONNX file."""

    verdict: Verdict
    onnx_verdict: Verdict | None
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        onnx = None if self.onnx_verdict is None else self.onnx_verdict.as_dict()
        return {"verdict": self.verdict.as_dict(), "onnx_verdict": onnx, "samples": self.samples}


def original_of(folder: Path, record: Record, checkpoint: str | Path | None, base: Path | None = None) -> nn.Module:
    """The original network with its weights, from what the record names. Raises SourceError where it cannot be had."""
    spec = str(record.source.get("spec") or "")
    if not spec or record.source.get("kind") == "object":
        raise SourceError(
            f"original of '{folder}'", "a network that was handed over in Python", "a source that can be loaded",
            "use compressor.verify(DIR, data, original=model) from Python.",
        )  # fmt: skip
    own = folder / ORIGINAL
    weights = checkpoint or record.options.get("checkpoint") or (own if own.is_file() else None)
    return load_model(spec, None if weights is None else str(weights), base=base, seed=record.seed).model


def verify_bundle(
    folder: Path,
    data: Any,
    *,
    factory: Callable[..., nn.Module] | None = None,
    original: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    base: Path | None = None,
) -> Verification:
    """Judge the bundle in `folder` on all of `data` (anything `as_samples` takes)."""
    record = read_record(folder / "record.json")
    if record.verdict is None:
        raise SourceError(f"record of '{folder}'", "no verdict", "the record of a compression", "name its folder.")
    samples: Samples = as_samples(data, "judge data")
    small = load_bundle(folder, factory=factory)
    whole = original if original is not None else original_of(folder, record, checkpoint, base)
    before = outputs_of(whole, samples)

    def ask(network: Any) -> Verdict:
        after = outputs_of(network, samples, check=False)
        if record.verdict is not None and record.verdict.metric == "outputs":
            return judge_outputs(before, after, 1e-4 if isinstance(network, OnnxModel) else None)
        asked: Any = record.verdict
        metric = "agreement" if before.labels is None else "accuracy"
        return judge(before, after, before.labels, allowed=asked.allowed, confidence=asked.confidence, metric=metric)

    file = folder / "model.onnx"
    return Verification(ask(small), ask(OnnxModel(file)) if file.is_file() else None, len(samples))
