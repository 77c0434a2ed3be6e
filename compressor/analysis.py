"""Commands that need no data: inspect, export again, doctor."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from compressor.errors import UsageError
from compressor.export.files import write_json
from compressor.recording import machine, random_inputs, versions
from compressor.report.record import read_record
from compressor.sources.checkpoint import file_sha256
from compressor.sources.models import LoadedModel, load_model
from compressor.stages import floating
from compressor.units.check import checked
from compressor.units.dense import with_dense_attention
from compressor.units.inspect import describe
from compressor.units.trace import trace
from compressor.verification import ONNX, RECORD, open_bundle

EXPORT_BATCH = 8


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
    if loaded.vocabulary is not None:
        return torch.randint(loaded.vocabulary, (2, *known), generator=generator)
    return torch.randn(2, *known, generator=generator)


def inspect_model(spec: str, shape: str | None = None, checkpoint: str | None = None) -> dict[str, Any]:
    """Units, groups and reasons of a model, proven by dry runs on random inputs of its shape."""
    if checkpoint is None and spec.startswith(("torchvision:", "timm:")) and "weights=" not in spec:
        spec += "&weights=none" if "?" in spec else "?weights=none"  # the layout does not depend on the weights
    loaded = load_model(spec, checkpoint, load_bundle=open_bundle)
    inputs = _example(loaded, shape, spec)
    model = with_dense_attention(loaded.model, inputs, normal=False)
    graph = checked(model, trace(model, inputs), inputs)
    return {"model": spec, "input": list(inputs.shape[1:]), **describe(graph)}


def export_bundle(folder: Path, shape: str | None = None) -> dict[str, Any]:
    """Write `model.onnx` of a bundle again, and its sha256 into the record. Raises SourceError for no bundle."""
    from compressor.export.onnx import export_onnx

    model = open_bundle(folder)
    spec = {"shape": list(parse_shape(shape)), "dtype": "float32"} if shape is not None else _input_in(folder)
    dtype = floating(model)
    inputs = pytree.tree_map(
        lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, random_inputs(spec, EXPORT_BATCH)
    )
    made = export_onnx(model, inputs, folder / ONNX).as_dict()
    if (folder / RECORD).is_file():
        record = read_record(folder / RECORD).model_dump(mode="json")
        record["files"] = {**record.get("files", {}), ONNX: file_sha256(folder / ONNX)}
        write_json(folder / RECORD, record)
    return made


def _input_in(folder: Path) -> Any:
    """The inputs that the run's record describes."""
    record = folder / RECORD
    spec = read_record(record).data.described.get("input") if record.is_file() else None
    if spec is None:
        raise UsageError(
            f"export '{folder}'", "no input shape in its record", "--input", "for example --input 3,224,224"
        )
    return spec


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
                 "cifar10": "downloaded when used", "cifar100": "downloaded when used"},
    }  # fmt: skip
