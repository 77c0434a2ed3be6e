"""What the stages cost, as ratios of interleaved repeats.

    python recipes/costs.py CHECKPOINTS --out recipes/results/costs.json

CHECKPOINTS holds mlp, vgg and resnet .safetensors. Statistics of all taps against a plain forward and backward pass
over the same images (also of an untrained MLP with 512 units a layer); all paths against the statistics; a 4,096-unit
layer's path; `compress --keep` on the resnet and the search of `compress --max-drop` on the vgg.
"""

from __future__ import annotations

import json
import statistics as stats
import time
from typing import Any

import measuring
import networks
import numpy as np
import torch
from torch import nn

import compressor
from compressor.algebra.elimination import TapState, eliminate, precision
from compressor.sources.data import Data, load_data
from compressor.sources.samples import Samples, batches
from compressor.stages import Workshop, find_units, working_copy

REPEATS = 2


def seconds(call: Any) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def plain_pass(model: nn.Module, samples: Samples) -> None:
    """Forward and backward over all samples, as one epoch of training without the optimiser's step."""
    for batch in batches(samples, 250):
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(batch.inputs), batch.labels).backward()  # type: ignore[arg-type]


def stage_costs(name: str, model: nn.Module, samples: Samples) -> dict[str, Any]:
    """Interleaved repeats of a plain pass, the statistics and the paths."""
    work = working_copy(model, torch.device("cpu"))
    shop = Workshop.open(work, find_units(work, samples, 0), samples, 0)
    plain_pass(work, samples.take(range(500)))
    rows = []
    for _ in range(REPEATS):
        plain = seconds(lambda: plain_pass(work, samples))
        measured = seconds(shop.measure)
        rows.append((plain, measured, seconds(lambda: shop.paths("params"))))
    return {
        "network": name,
        "images": len(samples),
        "seconds": rows,
        "statistics_over_plain": stats.median(m / p for p, m, _ in rows),
        "paths_over_statistics": stats.median(a / m for _, m, a in rows),
    }


def wide_layer(units: int = 4096) -> float:
    """Seconds to order all units of one linear layer that 512 outputs read."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * units, units, generator=generator)
    weight = torch.randn(512, units, generator=generator).double()
    inverse, _ = precision((rows.T @ rows).double() / len(rows), 1e-3)
    state = TapState(inverse, weight.T @ weight, np.arange(units)[:, None], np.arange(units))
    return seconds(lambda: eliminate([state], torch.zeros(units, dtype=torch.int64)))


def whole_run(name: str, model: nn.Module, data: Data, options: dict[str, Any]) -> dict[str, Any]:
    """One `compress` from start to end: its seconds, by stage, and what came of it."""
    result = compressor.compress(model, data.calibrate, data.tune, data.judge, align=1, **options)
    params = result.record["compressed"]["params"] / result.record["original"]["params"]
    return {"network": name, "options": options, "params": params, "seconds": result.record["seconds"]}


def main() -> None:
    """Measure and write."""
    given = measuring.parsed(measuring.arguments(__doc__))
    data = load_data("fashion-mnist")
    models = {name: measuring.trained(name, given.checkpoints) for name in ("mlp", "vgg", "resnet")}
    models["mlp, 512 units"] = networks.mlp(width=0.5).eval()  # what it costs does not depend on the weights
    rows = [stage_costs(name, made, data.calibrate) for name, made in models.items()]
    content = {
        "stages": rows,
        "path_of_4096_units_seconds": wide_layer(),
        "compress": [
            whole_run("resnet", models["resnet"], data, {"keep": "params=0.45"}),
            whole_run("vgg", models["vgg"], data, {"max_drop": 1.0}),
        ],
    }
    measuring.write(content, given.out)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
