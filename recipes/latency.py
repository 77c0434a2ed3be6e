"""Does the measured latency of aligned networks follow their multiply-accumulates?

    python recipes/latency.py CHECKPOINTS --out recipes/results/latency.json

torchvision's resnet18 at 128 x 128 (random weights: speed does not depend on them) and the vgg test network
(CHECKPOINTS/vgg.safetensors), each kept at half of the MACs with --align auto and with --align 1, and at half of the
latency (planned by measured layer times), in onnxruntime at batch 32 on one thread, interleaved with the original.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import measuring
import torch
import torchvision
from torch import nn

import compressor
from compressor.export.latency import compare_latency
from compressor.export.onnx import export_onnx
from compressor.sources.data import load_data


def row(name: str, model: nn.Module, parts: tuple[Any, Any, Any], example: Any) -> dict[str, Any]:
    """Aligned and unaligned at half of the MACs, and half of the latency, against the original in one comparison."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [export_onnx(model, example, Path(folder) / "original.onnx").path]
        made = []
        for keep, align in (("macs=0.5", "auto"), ("macs=0.5", 1), ("latency=0.5", "auto")):
            result = compressor.compress(model, *parts, keep=keep, align=align, max_drop=50.0)
            record = result.record
            paths.append(export_onnx(result.model, example, Path(folder) / f"{keep}_align_{align}.onnx").path)
            shares = {key: record["compressed"][key] / record["original"][key] for key in ("params", "macs")}
            kept = {group["name"]: len(group["kept"]) for group in record["groups"] if group["frozen"] is None}
            timed = record["latency"] or {}
            planned = {name: timed.get(name) for name in ("predicted", "measured", "tried")}
            block = record["align"]["block"]
            made.append({"keep": keep, "align": align, "block": block, **shares, **planned, "kept": kept})
        found = compare_latency(paths, batch=32, threads=1, seconds=90.0)
    for entry, file in zip(made, found.files[1:], strict=True):
        entry |= {
            "latency": file.ratio,
            "interval": list(file.interval),
            "latency_over_macs": file.ratio / entry["macs"],
        }
    return {"network": name, "results": made, "comparison": found.as_dict()}


def main() -> None:
    """Measure and write."""
    given = measuring.parsed(measuring.arguments(__doc__))
    data = load_data("fashion-mnist")
    some = (data.calibrate.take(range(2000)), data.tune.take(range(500)), data.judge.take(range(1000)))
    example, _ = data.judge.batch(torch.arange(32))
    rows = [row("vgg", measuring.trained("vgg", given.checkpoints), some, example)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 3, 128, 128, generator=generator)
    labels = torch.randint(0, 1000, (200,), generator=generator)
    parts = (images[:120], labels[:120]), (images[120:150], labels[120:150]), (images[150:], labels[150:])
    torch.manual_seed(0)
    rows.append(row("resnet18", torchvision.models.resnet18(weights=None).eval(), parts, images[:32]))
    measuring.write({"rows": rows}, given.out)
    for entry in rows:
        for made in entry["results"]:
            print(entry["network"], {k: v for k, v in made.items() if k != "kept"})


if __name__ == "__main__":
    main()
