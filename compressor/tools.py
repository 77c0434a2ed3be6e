"""Commands beside the runs, which write no folder: they show, measure and predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from compressor.flags import Checkpoint, Json, Model, Shape, Trust

_BENCHED = "ONNX files or bundles; the first is the base, and that of one bundle alone is its original"


def emit(plain: Any, view: Callable[[], Any], as_json: bool) -> None:
    """A result on standard output: JSON and nothing else, or what `view` shows."""
    if as_json:
        typer.echo(json.dumps(plain, indent=2, sort_keys=True, allow_nan=False))
    else:
        Console().print(view())


def inspect(
    model: Model, shape: Shape = None, checkpoint: Checkpoint = None, as_json: Json = False,
    trust_source: Trust = False,
) -> None:  # fmt: skip
    """Show units, groups, and what is frozen and why; needs a shape, no data."""
    from compressor.analysis import inspect_model
    from compressor.report.views import inspect_view

    found = inspect_model(model, shape, checkpoint)
    emit(found, lambda: inspect_view(found), as_json)


def bench(
    files: Annotated[list[str], typer.Argument(metavar="A [B ...]", help=_BENCHED)],
    batch: Annotated[int, typer.Option("--batch", min=1, help="inputs in one call")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, help="threads of onnxruntime")] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="how long to measure, all files together (10 to 500 rounds)")
    ] = 10.0,
    checkpoint: Checkpoint = None, as_json: Json = False, trust_source: Trust = False,
) -> None:  # fmt: skip
    """Compare latencies in onnxruntime: interleaved rounds, paired ratios with intervals."""
    from compressor.analysis import compared_files
    from compressor.report.views import bench_view

    found = compared_files(files, checkpoint, batch=batch, threads=threads, seconds=seconds)
    emit(found, lambda: bench_view(found), as_json)


def timetable(
    model: Model, out: Annotated[str, typer.Option("--out", metavar="FILE", help="JSON file to write")],
    shape: Shape = None, checkpoint: Checkpoint = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="inputs in one call")] = 32,
    threads: Annotated[int, typer.Option("--threads", min=1, help="threads of onnxruntime")] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="how long to measure, about; slow networks take more")
    ] = 20.0,
    as_json: Json = False, trust_source: Trust = False,
) -> None:  # fmt: skip
    """Measure on this machine how long each layer takes at each width, for --latency-table on another one."""
    from compressor.analysis import timetable_file
    from compressor.report.views import timetable_view

    found = timetable_file(model, out, shape, checkpoint, batch=batch, threads=threads, seconds=seconds)
    emit(found, lambda: timetable_view(found, out), as_json)


def plan_cost(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL ...]", help="default: a ResNet-50, a ViT-L, a 7B LLM's MLPs")
    ] = None,
    shape: Shape = None, checkpoint: Checkpoint = None,
    samples: Annotated[int, typer.Option("--samples", help="calibration samples")] = 5000,
    judged: Annotated[int, typer.Option("--judge", help="judge samples")] = 10000,
    keep: Annotated[float, typer.Option("--keep", help="share of the parameters that stays")] = 0.5,
    as_json: Json = False, trust_source: Trust = False,
) -> None:  # fmt: skip
    """Tell hours and memory of each stage before a run: measured rates, times what each stage has to do."""
    from compressor.analysis import plan_cost as planned
    from compressor.report.views import cost_view

    found = planned(models or [], shape, samples=samples, judged=judged, keep=keep, checkpoint=checkpoint)
    emit(found, lambda: cost_view(found), as_json)


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, data sets and the runtime's block on this machine."""
    from compressor.analysis import doctor_facts
    from compressor.report.views import doctor_view

    facts = doctor_facts()
    emit(facts, lambda: doctor_view(facts), as_json)
