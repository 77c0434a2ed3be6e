"""The arguments and flags that several commands share: their names, their words, and what giving them does."""

from __future__ import annotations

from typing import Annotated

import typer

from compressor.sources.consent import trusting

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, onnx:FILE, file.py:factory, module:factory or a bundle",
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="digits, fashion-mnist, cifar10, cifar100, imagefolder:DIR, npz:FILE, csv:FILE, text:FILE, "
        "hfdata:NAME_OR_FOLDER, webdataset:FILES or file.py:factory",
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", metavar="FILE", help="weights: safetensors, .pt or .pth state dict")
]
Out = Annotated[str, typer.Option("--out", metavar="DIR", help="output folder")]
MaxDrop = Annotated[float, typer.Option("--max-drop", help="allowed accuracy drop in percentage points")]
Confidence = Annotated[float, typer.Option("--confidence", help="confidence of the verdict")]
Keep = Annotated[
    str | None,
    typer.Option("--keep", metavar="params=0.35|macs=0.5|latency=0.4", help="fix the size instead of searching it"),
]
LatencyTable = Annotated[
    str | None,
    typer.Option(
        "--latency-table", metavar="FILE",
        help="plan sizes told by latency (--keep latency=0.4; of a frontier --measure latency) by layer times that "
        "`compressor timetable` measured elsewhere, not by those of here",
    ),
]  # fmt: skip
Rotate = Annotated[
    float | None,
    typer.Option(
        "--rotate", metavar="0.75",
        help="transformers: first cut the residual stream behind norms to this share of its width (with a loss)",
    ),
]  # fmt: skip
Exact = Annotated[bool, typer.Option("--exact", help="lossless: remove only what is certified")]
Align = Annotated[
    str, typer.Option("--align", metavar="auto|N", help="widths in multiples of the runtime's block; 1 switches it off")
]
Recover = Annotated[
    str | None,
    typer.Option(
        "--recover", metavar="8ep|5min|400st",
        help="learn the original's outputs again, without labels: epochs or steps for each candidate, or minutes for "
        "the run (shared by the candidates that a search may build), turned into a number of steps that is recorded",
    ),
]  # fmt: skip
Unlabelled = Annotated[
    str | None, typer.Option("--unlabelled", metavar="DATA", help="more inputs for --recover; labels are not read")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", metavar="path.py:function",
        help="judge by function(outputs, targets) in place of accuracy: it gets the network's output and the labels of "
        "a batch, and returns a tensor of one score per sample, higher is better (see --metric-range)",
    ),
]  # fmt: skip
MetricRange = Annotated[
    str | None, typer.Option("--metric-range", metavar="0,1", help="lowest and highest score; drops are percent of it")
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision", metavar="fp16|int8",
        help="also write the ONNX file in this precision, judged like it against the original; may be given twice",
    ),
]  # fmt: skip
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="8GB",
        help="what sums and activations may take beside the networks, in each process (default: half of the memory, "
        "as far as it is free); more passes over the data, and files, do the rest",
    ),
]  # fmt: skip
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps")]
Seed = Annotated[int, typer.Option("--seed", help="seed of every random choice")]
Resume = Annotated[bool, typer.Option("--resume", help="go on in this folder, or return its finished result")]
Again = Annotated[
    bool,
    typer.Option("--resume", help="return this folder's finished result; a half-done one is made again, all of it"),
]
"""For what has no finished parts: networks are built from one analysis, and judged together before any is written."""
Force = Annotated[bool, typer.Option("--force", help="replace an earlier result in this folder")]
KeepFailed = Annotated[bool, typer.Option("--keep-failed", help="export even if the verdict failed")]
Json = Annotated[bool, typer.Option("--json", help="print JSON on standard output and nothing else")]


def _consent(context: typer.Context, given: bool) -> bool:
    """Consent lasts as long as the command runs."""
    if given:
        context.with_resource(trusting(True, _tell))
    return given


def _tell(code: str) -> None:
    typer.echo(f"Runs the code that you trusted: {code}", err=True)


Trust = Annotated[
    bool,
    typer.Option(
        "--trust-source",
        callback=_consent,
        help="run Python code that only the bundle, record or recipe names; shows its sha256",
    ),
]
Shape = Annotated[str | None, typer.Option("--input", metavar="1,28,28", help="a sample's shape, without the batch")]
