"""The command line: every command is a few lines around a library call.

Standard output is for results only; progress and messages go to standard error.
"""

from __future__ import annotations

import errno
import json
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from compressor.errors import CompressorError, SourceError, UsageError
from compressor.flags import (
    Again,
    Align,
    Checkpoint,
    Confidence,
    DataOption,
    Device,
    Exact,
    Force,
    Json,
    Keep,
    KeepFailed,
    LatencyTable,
    MaxDrop,
    Memory,
    MetricOption,
    MetricRange,
    Model,
    Out,
    Precisions,
    Recover,
    Resume,
    Rotate,
    Seed,
    Shape,
    Trust,
    Unlabelled,
)
from compressor.launch import launched
from compressor.stopping import Stopped, stoppable
from compressor.tools import bench, doctor, emit, inspect, plan_cost, timetable

app = typer.Typer(
    name="compressor", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Makes a trained network smaller by folding away units it does not need, and judges the result.",
)  # fmt: skip
EXIT = {"passed": 0, "failed": 1, "undecided": 4}
_given: list[str] = []
"""The command line that `main` was called with, for the record."""
FAULT = 70
"""Exit code of an error that is ours: 1 would say that a verdict failed."""


def _run_job(job: Any, out: str, resume: bool, force: bool, as_json: bool) -> None:
    from compressor.jobs import run
    from compressor.observe import processes
    from compressor.progress import shown
    from compressor.report.text import analyze_view, summary

    with shown(Console(stderr=True), as_json) as report:
        record = run(job, out, resume=resume, force=force, report=report)
    if processes()[0] > 0:
        return  # the first process speaks
    place = Path(out).expanduser()
    files = sorted(path.name for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    view = analyze_view if job.analyze else lambda record: summary(record, folder=out, files=files)
    emit(json.loads((place / "record.json").read_bytes()), lambda: view(record), as_json)
    value = "passed" if record.verdict is None or record.nothing_to_do else record.verdict.value
    raise typer.Exit(EXIT[value])


@app.command()
def compress(
    model: Model, data: DataOption, out: Out, checkpoint: Checkpoint = None, max_drop: MaxDrop = 0.5,
    confidence: Confidence = 0.95, keep: Keep = None, exact: Exact = False, align: Align = "auto",
    recover: Recover = None, unlabelled: Unlabelled = None, metric: MetricOption = None,
    metric_range: MetricRange = None, device: Device = "auto", seed: Seed = 0, resume: Again = False,
    force: Force = False, keep_failed: KeepFailed = False, precision: Precisions = None,
    latency_table: LatencyTable = None, memory: Memory = None, rotate: Rotate = None, as_json: Json = False,
    trust_source: Trust = False,
) -> None:  # fmt: skip
    """Make a network smaller, judge it, and write the bundle, the ONNX file and the report."""
    from compressor.jobs import Job
    from compressor.options import Options, parse_align, parse_keep, parse_memory, parse_range, parse_recover

    asked = (parse_keep(keep), exact, parse_align(align), device, seed, parse_recover(recover))
    limits = (parse_range(metric_range), latency_table, parse_memory(memory), rotate)
    options = Options(max_drop, confidence, *asked, metric, *limits)
    job = Job(model, data, options, checkpoint, command=_typed(), keep_failed=keep_failed, unlabelled=unlabelled,
              precision=tuple(precision or ()))  # fmt: skip
    _run_job(job, out, resume, force, as_json)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")],
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="output folder (or the recipe's)")] = None,
    resume: Resume = False, force: Force = False, as_json: Json = False, trust_source: Trust = False,
) -> None:  # fmt: skip
    """Run a recipe: train the network if it says so, compress, judge and export it; or compare methods (`compare:`);
    or measure a ladder of networks (`capacity:`)."""
    from compressor.jobs import from_recipe
    from compressor.recipe import load_recipe

    content, base = load_recipe(recipe)
    if content.compare is not None or content.capacity is not None:
        study = _comparison if content.compare is not None else _capacity
        _run_study(study(), content, base, out or content.out or Path(recipe).stem, resume, force, as_json)
        return
    job = from_recipe(content, base, _typed())
    _run_job(job, out or content.out or Path(recipe).stem, resume, force, as_json)


Study = tuple[Callable[..., Any], Callable[[Any], Any]]
"""Runs a recipe's study, and shows what it found."""


def _comparison() -> Study:
    from compressor.comparison.study import run_comparison
    from compressor.report.curves import comparison_view

    return run_comparison, comparison_view


def _capacity() -> Study:
    from compressor.capacity.study import run_capacity
    from compressor.report.capacity import capacity_view

    return run_capacity, capacity_view


def _run_study(study: Study, content: Any, base: Path, out: str, resume: bool, force: bool, as_json: bool) -> None:
    from compressor.progress import shown

    run, view = study
    with shown(Console(stderr=True), as_json) as report:
        found = run(content, base, out, resume=resume, force=force, command=_typed(), report=report)
    emit(found, lambda: view(found), as_json)


@app.command()
def capacity(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")],
    out: Out, resume: Resume = False, force: Force = False, as_json: Json = False, trust_source: Trust = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="the same at the smallest size, to see it run through")] = False,
) -> None:  # fmt: skip
    """Measure a ladder of networks of growing width beside its nulls, and judge the published claims."""
    from compressor.capacity.tiny import tiny as smallest
    from compressor.recipe import load_recipe

    content, base = load_recipe(recipe)
    _run_study(_capacity(), smallest(content) if tiny else content, base, out, resume, force, as_json)


@app.command()
def analyze(
    model: Model, data: DataOption, out: Out, checkpoint: Checkpoint = None, device: Device = "auto", seed: Seed = 0,
    memory: Memory = None, resume: Again = False, force: Force = False, as_json: Json = False,
    trust_source: Trust = False,
) -> None:  # fmt: skip
    """Find removable and repeated units; nothing is changed."""
    from compressor.jobs import Job
    from compressor.options import Options, parse_memory

    options = Options(device=device, seed=seed, memory=parse_memory(memory))
    _run_job(Job(model, data, options, checkpoint, command=_typed(), analyze=True), out, resume, force, as_json)


@app.command()
def frontier(
    model: Model, data: DataOption, out: Out, checkpoint: Checkpoint = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", metavar="0.5,0.35,0.25", help="shares to keep (default: spread --points)")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--points", help="how many sizes, from 70 % down to the smallest (default: 5)")
    ] = None,
    measure: Annotated[str, typer.Option("--measure", help="what shares are of: params, macs or latency")] = "params",
    max_drop: MaxDrop = 0.5, confidence: Confidence = 0.95, align: Align = "auto", recover: Recover = None,
    unlabelled: Unlabelled = None, metric: MetricOption = None, metric_range: MetricRange = None,
    device: Device = "auto", seed: Seed = 0, resume: Again = False,
    force: Force = False, keep_failed: KeepFailed = False, precision: Precisions = None,
    latency_table: LatencyTable = None, memory: Memory = None, rotate: Rotate = None, as_json: Json = False,
    trust_source: Trust = False,
) -> None:  # fmt: skip
    """Make networks of several sizes from one analysis, judge them together, and draw size against accuracy."""
    from compressor.frontier.folder import run
    from compressor.jobs import Job
    from compressor.observe import processes
    from compressor.options import Options, Sizes, parse_align, parse_memory, parse_range, parse_recover, parse_sizes
    from compressor.progress import shown
    from compressor.report.frontier import frontier_view

    if sizes is not None and count is not None:
        raise UsageError("--sizes with --points", "both", "one of them", "--sizes names them, --points spreads them.")
    wanted = Sizes(measure, parse_sizes(sizes), Sizes.points if count is None else count)
    asked = (None, False, parse_align(align), device, seed, parse_recover(recover))
    options = Options(
        max_drop, confidence, *asked, metric, parse_range(metric_range), latency_table, parse_memory(memory), rotate
    )
    job = Job(
        model,
        data,
        options,
        checkpoint,
        command=_typed(),
        keep_failed=keep_failed,
        unlabelled=unlabelled,
        sizes=wanted,
        precision=tuple(precision or ()),
    )
    with shown(Console(stderr=True), as_json) as report:
        found = run(job, out, resume=resume, force=force, report=report)
    if processes()[0] > 0:
        return  # the first process speaks
    emit(
        json.loads((Path(out).expanduser() / "frontier.json").read_bytes()), lambda: frontier_view(found, out), as_json
    )
    raise typer.Exit(0 if found.best else EXIT[found.points[0].verdict.value])


@app.command()
def verify(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="a bundle folder")], data: DataOption,
    checkpoint: Checkpoint = None,
    seed: Annotated[int | None, typer.Option("--seed", help="how DATA is cut (default: as in the run)")] = None,
    as_json: Json = False, trust_source: Trust = False,
) -> None:  # fmt: skip
    """Judge a bundle and its ONNX file against the original again, on the judge part of DATA."""
    from compressor.report.judged import verify_view
    from compressor.verification import verify_named

    found = verify_named(Path(folder).expanduser(), data, seed, checkpoint)
    emit(found.as_dict(), lambda: verify_view(found.as_dict()), as_json)
    raise typer.Exit(EXIT[found.worst.value])


@app.command()
def replay(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="a record.json, or the folder that it lies in")],
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="keep the second result there")] = None,
    as_json: Json = False, trust_source: Trust = False,
) -> None:  # fmt: skip
    """Do again what a record says, and tell whether the result is the same (exit code 1 if it is not)."""
    from compressor.progress import shown
    from compressor.replay import replay as again
    from compressor.report.views import replay_view

    with shown(Console(stderr=True), as_json) as report:
        found = again(record, out, report).as_dict()
    emit(found, lambda: replay_view(found), as_json)
    raise typer.Exit(0 if found["same"] else 1)


@app.command()
def export(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="a bundle folder")],
    kind: Annotated[str, typer.Option("--format", help="onnx")] = "onnx",
    shape: Shape = None, precision: Precisions = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="what variants are calibrated and judged on")
    ] = None,
    checkpoint: Checkpoint = None, as_json: Json = False, trust_source: Trust = False,
) -> None:  # fmt: skip
    """Write the bundle's network again as one ONNX file, compared with it at several batch sizes; also variants."""
    from compressor.analysis import export_bundle, export_variants
    from compressor.report.judged import variants_view

    if kind != "onnx":
        raise UsageError("--format", kind, "onnx", "other formats come later")
    if (precision is None) != (data is None):
        raise UsageError("--precision and --data", "one of them", "both or none", "variants are judged on data.")
    place = Path(folder).expanduser()
    made = export_bundle(place, shape)
    if precision is None or data is None:
        emit(made, lambda: f"{made['path']}: opset {made['opset']}, {made['bytes']:,} bytes", as_json)
        return
    found = export_variants(place, precision, data, checkpoint)
    emit({**made, **found}, lambda: variants_view(found), as_json)
    raise typer.Exit(max((EXIT[one["verdict"]["value"]] for one in found["variants"]), key=(0, 4, 1).index, default=3))


for tool in (inspect, bench, timetable, plan_cost, doctor):
    app.command()(tool)

_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for a wrong command line."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors become one message on standard error and an exit code (0 to 4, see the README)."""
    _given[:] = sys.argv[1:] if arguments is None else arguments
    try:
        with stoppable(), launched(next(iter(_given), None)):
            code = app(list(_given), prog_name="compressor", standalone_mode=False)
    except Stopped as stopped:
        words = {word.partition("=")[0] for word in _given}
        again = "repeat the same command with --resume." if {"--out", "run"} & words else "repeat the command."
        error = CompressorError("compressor", str(stopped), "time to finish", again)
        _fail(error, "Stopped", f"stopped by {stopped}: {again}", stopped.exit_code)
    except CompressorError as error:
        _fail(error, type(error).__name__, f"error: {error}", error.exit_code)
    except _USAGE as wrong:
        error = UsageError("command line", wrong.format_message() or "no command", "a command and its options", _help())
        _fail(error, "UsageError", f"error: {error}", error.exit_code)
    except OSError as refused:
        if refused.errno not in _SURROUNDINGS:
            _fault(refused)
        where = repr(str(refused.filename)) if refused.filename else "temporary files"
        step = "check the path, its permissions and the space there (TMPDIR: temporary files)."
        error = SourceError(where, refused.strerror or repr(refused), "a place that can be read and written", step)
        _fail(error, "SourceError", f"error: {error}", error.exit_code)
    except Exception as fault:  # noqa: BLE001 (ours: shown whole, and never with the exit code of a failed verdict)
        _fault(fault)
    sys.exit(code if isinstance(code, int) else 0)


_SURROUNDINGS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the machine refuses: paths, permissions and space are the user's to look after."""


def _fault(fault: Exception) -> NoReturn:
    error = CompressorError("compressor", repr(fault), "no fault of its own", "please report it with the command.")
    _fail(error, "Fault", f"{traceback.format_exc()}\nThis is a fault of compressor: please report it.", FAULT)


def _fail(error: CompressorError, kind: str, words: str, code: int) -> NoReturn:
    if "--json" in _given:
        plain = {"kind": kind, "where": error.where, "got": error.got, "expected": error.expected,
                 "next": error.next_step, "exit_code": code}  # fmt: skip
        typer.echo(json.dumps({"error": plain}, indent=2))
    typer.echo(words, err=True)
    sys.exit(code)


def _help() -> str:
    callbacks = [command.callback for command in app.registered_commands if command.callback]
    commands = {callback.__name__.replace("_", "-") for callback in callbacks}
    return " ".join(["see `compressor", *[word for word in _given[:1] if word in commands], "--help`."])


def _typed() -> str:
    """The command as typed, without the path of the program."""
    return shlex.join(["compressor", *_given])
