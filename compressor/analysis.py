"""Commands that compress nothing: analyze, inspect, export again, doctor."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from compressor import pipeline
from compressor.deliver import RECORD, REPORT
from compressor.errors import UsageError
from compressor.export.bundle import load_bundle
from compressor.export.files import claim_folder, write_json
from compressor.options import Options
from compressor.recording import assemble, machine, versions
from compressor.report.html import write_html
from compressor.report.record import Record, read_record, validate
from compressor.sources.data import load_data
from compressor.sources.models import LoadedModel, load_model
from compressor.stages import Report, silent
from compressor.units.check import checked
from compressor.units.inspect import describe
from compressor.units.trace import trace


def parse_shape(text: str) -> tuple[int, ...]:
    """`1,28,28` as numbers. Raises UsageError for anything else."""
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or any(size < 1 for size in shape) or math.prod(shape) > 1 << 28:
        raise UsageError("--input", f"{text!r}", "whole numbers from 1, like 3,224,224", "give one sample's shape")
    return shape


def _example(loaded: LoadedModel, shape: str | None, spec: str) -> torch.Tensor:
    known = parse_shape(shape) if shape is not None else loaded.input_shape
    if known is None:
        raise UsageError(f"inspect {spec}", "no input shape", "--input", "for example --input 3,224,224")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *known, generator=generator)


def inspect_model(spec: str, shape: str | None = None, checkpoint: str | None = None) -> dict[str, Any]:
    """Units, groups and reasons of a model, proven by dry runs on random inputs of its shape."""
    if checkpoint is None and spec.startswith("torchvision:") and "weights=" not in spec:
        spec += "&weights=none" if "?" in spec else "?weights=none"  # the layout does not depend on the weights
    loaded = load_model(spec, checkpoint, load_bundle=lambda path: load_bundle(path))
    inputs = _example(loaded, shape, spec)
    graph = checked(loaded.model, trace(loaded.model, inputs), inputs)
    return {"model": spec, "input": list(inputs.shape[1:]), **describe(graph)}


def analyze_into(
    model: str, data: str, out: str, options: Options, checkpoint: str | None = None, command: str | None = None,
    resume: bool = False, force: bool = False, report: Report = silent,
) -> Record:  # fmt: skip
    """Analyze a model on data; writes `record.json` and `report.html` into the folder `out`."""
    with claim_folder(out, resume=resume, force=force) as claim:
        report("load", 0.0)
        parts = load_data(data, seed=options.seed)
        loaded = load_model(model, checkpoint, seed=options.seed, load_bundle=lambda path: load_bundle(path))
        outcome = pipeline.analyze(loaded.model, parts, options, report)
        name = model.rpartition(":")[2]
        record = assemble(outcome, parts, options, name=name, source=loaded.source.as_dict(), command=command)
        validate(record)
        if not claim.fresh and force:
            claim.clear()
        write_html(record, claim.path / REPORT)
        write_json(claim.path / RECORD, record)
    return read_record(Path(out) / RECORD)


def export_bundle(folder: Path, shape: str | None = None) -> dict[str, Any]:
    """Write `model.onnx` of a bundle again."""
    from compressor.export.onnx import export_onnx

    model = load_bundle(folder)
    known = parse_shape(shape) if shape is not None else _shape_in(folder)
    generator = torch.Generator().manual_seed(0)
    return export_onnx(model, torch.randn(8, *known, generator=generator), folder / "model.onnx").as_dict()


def _shape_in(folder: Path) -> tuple[int, ...]:
    """The input shape that the run's record names."""
    record = folder / RECORD
    shape = read_record(record).data.described.get("input_shape") if record.is_file() else None
    if not isinstance(shape, list):
        raise UsageError(
            f"export '{folder}'", "no input shape in its record", "--input", "for example --input 3,224,224"
        )
    return tuple(int(str(size)) for size in shape)


def doctor_facts() -> dict[str, Any]:
    """What this machine has: versions, devices, runtimes, data sets, the measured block."""
    import onnxruntime

    from compressor.export.block import measured_block

    accelerators = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    folder = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    return {
        "versions": versions(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(name for name, there in accelerators.items() if there)],
        "providers": list(onnxruntime.get_available_providers()),
        "block": measured_block().as_dict(),
        "data": {"digits": "embedded", "fashion-mnist": str(folder) if folder.is_dir() else "downloaded when used",
                 "cifar10": "downloaded when used"},
    }  # fmt: skip
