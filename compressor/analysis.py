"""Commands beside the runs: inspect, export again (also in lower precision), bench, timetable, plan-cost, doctor."""

from __future__ import annotations

import math
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compressor.clock import timetable
from compressor.costing.network import work_of
from compressor.costing.predict import predicted
from compressor.costing.rates import measured_rates
from compressor.costing.work import LLM, llm_mlps
from compressor.deliver import NO_ONNX, original_file, time_files, write_record
from compressor.errors import SourceError, UsageError
from compressor.export.block import measured_block
from compressor.export.files import PRECISIONS, VARIANTS, output_path
from compressor.export.latency import compare_latency
from compressor.export.precision import file_name, parse_precisions
from compressor.export.tablefile import refuse_other_file, write_table
from compressor.observe import memory_of
from compressor.questions import Question
from compressor.recording import machine, random_inputs, versions
from compressor.report.record import read_record
from compressor.sources.checkpoint import file_sha256
from compressor.sources.data import load_data
from compressor.sources.models import LoadedModel, load_model
from compressor.sources.samples import as_samples
from compressor.units.check import checked
from compressor.units.dense import in_dense_form
from compressor.units.inspect import describe
from compressor.units.modes import floating
from compressor.units.trace import trace
from compressor.variants import known_variants, write_variants
from compressor.verification import ONNX, RECORD, allowed_by, open_bundle, original_of, recorded, score_of
from compressor.verify.accuracy import outputs_of

EXPORT_BATCH = 8
UNJUDGED = "The ONNX file was written after the verdict and was not judged: `compressor verify` does that."
"""What a record warns of where the file is not the one of the run."""


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
        raise UsageError(f"model {spec}", "no input shape", "--input", "for example --input 3,224,224")
    generator = torch.Generator().manual_seed(0)
    if loaded.vocabulary is not None:
        return torch.randint(loaded.vocabulary, (2, *known), generator=generator)
    return torch.randn(2, *known, generator=generator)


def inspect_model(spec: str, shape: str | None = None, checkpoint: str | None = None) -> dict[str, Any]:
    """Units, groups and reasons of a model, proven by dry runs on random inputs of its shape."""
    loaded, inputs = _without_weights(spec, shape, checkpoint)
    model = in_dense_form(loaded.model, inputs, normal=False)
    graph = checked(model, trace(model, inputs), inputs)
    return {"model": spec, "input": list(inputs.shape[1:]), **describe(graph)}


def export_bundle(folder: Path, shape: str | None = None) -> dict[str, Any]:
    """Write `model.onnx` of a bundle again, and what it is into the record. Raises SourceError for no bundle."""
    from compressor.export.onnx import export_onnx

    model = open_bundle(folder)
    spec = {"shape": list(parse_shape(shape)), "dtype": "float32"} if shape is not None else _input_in(folder)
    made = export_onnx(model, _inputs_for(model, spec), folder / ONNX).as_dict()
    if (folder / RECORD).is_file():
        write_record(_exported_again(read_record(folder / RECORD).model_dump(mode="json"), folder, made), folder)
    return made


def _inputs_for(model: nn.Module, spec: Any) -> Any:
    """Random inputs of the shapes that `spec` describes, in the precision of the model's weights."""
    dtype = floating(model)
    inputs = random_inputs(spec, EXPORT_BATCH)
    return pytree.tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, inputs)


def _exported_again(record: dict[str, Any], folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """The record with the file that was written: what it says of another one (verdict, times) is no longer true."""
    mark = file_sha256(folder / ONNX)
    if record["onnx"] is None or record["files"].get(ONNX) != mark:
        variants = (record["onnx"] or {}).get("variants", [])
        record["onnx"] = {**made, "path": ONNX, "latency_ratio": None, "latency": None, "variants": variants}
        record["onnx_verdict"] = None
    warnings = [text for text in record["warnings"] if text != UNJUDGED and not text.startswith(NO_ONNX)]
    judged = record["verdict"] is None or record["onnx_verdict"] is not None
    return {
        **record,
        "files": {**record["files"], ONNX: mark},
        "warnings": warnings if judged else [*warnings, UNJUDGED],
    }


def export_variants(folder: Path, precision: Sequence[str], data: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Write `model.onnx` of a bundle in other precisions, calibrated and judged on DATA, and say so in its record.

    Every variant is judged against the original, as the run's own files were. Those of other precisions stay, and are
    timed again with the new ones. Raises SourceError where the original cannot be had, UsageError for precisions that
    are none.
    """
    wanted = parse_precisions(tuple(precision))
    record = recorded(folder)
    if record.verdict is None:
        raise SourceError(f"record of '{folder}'", "no verdict", "the record of a compression", "name its folder.")
    original = original_of(folder, record, checkpoint)
    parts = load_data(data, seed=record.seed, transform=original.transform)
    before = outputs_of(original.answers or original.model, parts.judge)
    allowed, score = allowed_by(folder, record), score_of(folder, record)
    plain = record.model_dump(mode="json")
    question = Question(before, parts.judge, record.verdict, *allowed, score)
    made, warnings = write_variants(wanted, folder / ONNX, parts.calibrate, question)
    replaced = {file_name(name, failed=mark) for name in wanted for mark in (False, True)}
    for name in sorted(replaced - {variant.path.name for variant in made}):  # of an earlier export
        (folder / name).unlink(missing_ok=True)
    made += [variant for variant in known_variants(plain, folder) if variant.precision not in wanted]
    made.sort(key=lambda variant: PRECISIONS.index(variant.precision))
    if parts.judge.fingerprint != record.data.judge:
        warnings.append("Variants were judged on other samples than the network.")
    stale = tuple(f"{word} {name} variant" for word in ("The", "No") for name in wanted)  # as `variants` says it
    kept = [text for text in plain["warnings"] if not text.startswith(stale)]
    plain["warnings"] = [*kept, *(text for text in warnings if text not in kept)]
    time_files(original.model, parts.judge.batch(torch.arange(min(64, len(parts.judge))))[0], folder, plain, made)
    others = {name: mark for name, mark in plain["files"].items() if name not in VARIANTS}
    plain["files"] = {**others, **{variant.path.name: file_sha256(variant.path) for variant in made}}
    write_record(plain, folder)
    asked = [one for one in plain["onnx"]["variants"] if one["precision"] in wanted]
    return {"variants": asked, "warnings": warnings}


def timetable_file(
    spec: str, out: str, shape: str | None = None, checkpoint: str | None = None, *, batch: int, threads: int,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Measure a model's width -> time table here and write it to the file `out`; what was written.

    Times do not depend on weights or data, so a shape is enough. Raises UsageError where the file cannot be written, or
    is there and no such table.
    """
    file = output_path(out)
    refuse_other_file(file)
    loaded, inputs = _without_weights(spec, shape, checkpoint)
    model = in_dense_form(loaded.model, inputs)
    graph, samples = checked(model, trace(model, inputs), inputs), as_samples(inputs)
    block = measured_block(threads).block
    with tempfile.TemporaryDirectory() as folder:
        table = timetable(
            model, graph, samples, Path(folder), block, batch=batch, threads=threads, seconds=seconds
        )[1]  # fmt: skip
    return write_table(file, table, {"model": spec, "machine": machine(), "versions": versions()})


PLANNED = ("torchvision:resnet50", "torchvision:vit_l_16", LLM)
"""What `compressor plan-cost` tells of where no model is named."""


def plan_cost(
    specs: Sequence[str],
    shape: str | None = None,
    *,
    samples: int,
    judged: int,
    keep: float,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Hours and memory of each stage of compressing these models here, extrapolated from short measurements.

    `keep` is the share of the parameters that stays. Raises UsageError for numbers that no run can have.
    """
    if samples < 1 or judged < 0 or not 0 < keep <= 1:
        got = f"--samples {samples} --judge {judged} --keep {keep:g}"
        raise UsageError("plan-cost", got, "at least 1 sample, 0 judge samples, 0 < keep <= 1", "see --help.")
    rates, memory = measured_rates(), memory_of(torch.device("cpu"))
    rows = []
    for spec in specs or PLANNED:
        if spec == LLM:
            work = llm_mlps(samples, judged, rates.flops)
        else:
            loaded, inputs = _without_weights(spec, shape, checkpoint)
            work = work_of(spec, loaded.model.requires_grad_(True), inputs, samples, judged)
        about = {
            "model": work.name,
            "unit": work.unit,
            "params": work.params,
            "macs": work.macs,
            "taps": len(work.taps),
        }
        passes = {"forward": work.forward, "backward": work.backward}
        rows.append({**about, **passes, **predicted(work, rates, memory, keep).as_dict()})
    asked = {"samples": samples, "judged": judged, "keep": keep}
    return {**asked, "memory": memory, "rates": rates.as_dict(), "machine": machine(), "models": rows}


def compared_files(
    names: Sequence[str], checkpoint: str | None = None, *, batch: int, threads: int, seconds: float
) -> dict[str, Any]:
    """Latencies of ONNX files, or of bundles' files, against the first; of one bundle alone against its own original.

    Raises SourceError where the original cannot be had, UsageError for a single file, or a checkpoint beside several.
    """
    places = [Path(name).expanduser() for name in names]
    files = [place / ONNX if place.is_dir() else place for place in places]
    alone = len(places) == 1 and places[0].is_dir()
    if checkpoint is not None and not alone:
        got = f"it, and {len(places)} file{'s' * (len(places) != 1)} to compare"
        raise UsageError("--checkpoint", got, "one bundle, whose original it belongs to", "leave it out.")
    with tempfile.TemporaryDirectory() as scratch:
        if alone:
            files.insert(0, _original_file(places[0], checkpoint, Path(scratch)))
        return compare_latency(files, batch=batch, threads=threads, seconds=seconds).as_dict()


def _original_file(folder: Path, checkpoint: str | None, scratch: Path) -> Path:
    """The ONNX file that a bundle's original was, or is exported to in `scratch`."""
    record = recorded(folder)
    if not (folder / ONNX).is_file():
        write = f"write it: compressor export {shlex.quote(str(folder))}"
        raise SourceError(f"bundle '{folder}'", f"no {ONNX}", "its ONNX file", write)
    original = original_of(folder, record, checkpoint).model
    return original_file(original, _inputs_for(original, _input_in(folder)), record.model_dump(mode="json"), scratch)


def _without_weights(spec: str, shape: str | None, checkpoint: str | None) -> tuple[LoadedModel, torch.Tensor]:
    """A model whose weights do not matter (so that none are downloaded), and inputs of its shape."""
    if checkpoint is None and spec.startswith(("torchvision:", "timm:")) and "weights=" not in spec:
        spec += "&weights=none" if "?" in spec else "?weights=none"
    loaded = load_model(spec, checkpoint, load_bundle=open_bundle)
    return loaded, _example(loaded, shape, spec)


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
