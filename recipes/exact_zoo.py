"""Exact mode on eight torchvision networks with planted clones, in both precisions: figures as JSON.

Run in a checkout: `python recipes/exact_zoo.py --out recipes/results/exact_zoo.json`
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import planted_zoo  # noqa: E402

from compressor.surgery.exact import exact_compress, moved  # noqa: E402
from compressor.units.trace import trace  # noqa: E402


def measured(name: str, dtype: torch.dtype, count: int) -> dict[str, Any]:
    """One network with clones, and the same network without any, through exact mode."""
    lean, images = planted_zoo.lean(name, dtype, count)
    wide = planted_zoo.widened(name, lean, images)
    start = time.perf_counter()
    graph = trace(wide.model, images)
    traced = time.perf_counter()
    small, plan = exact_compress(wide.model, graph, images, effort=0.0)
    done = time.perf_counter()
    fresh = torch.randn(16, *images.shape[1:], generator=torch.Generator().manual_seed(5)).to(dtype)
    with torch.no_grad():
        before, after = wide.model(fresh), small(fresh)
        singly = torch.cat([wide.model(one) for one in fresh.split(1)])
        exact = [copy.deepcopy(network).double()(fresh.double()) for network in (wide.model, small)]
    gone = {fold.group: len(fold.dropped) for fold in plan.folds}
    lean_plan = exact_compress(lean, trace(lean, images[:8]), images[:8], effort=0.0)[1]
    return {
        "network": name,
        "dtype": str(dtype).removeprefix("torch."),
        "image": planted_zoo.ZOO[name].size,
        "scaled_clones": planted_zoo.ZOO[name].scaled,
        "groups_with_clones": len(wide.surplus),
        "surplus_units": sum(wide.surplus.values()),
        "surplus_removed": sum(min(gone.get(g, 0), n) for g, n in wide.surplus.items()),
        "other_units_removed": plan.removed - sum(min(gone.get(g, 0), n) for g, n in wide.surplus.items()),
        "parameters_before": sum(p.numel() for p in wide.model.parameters()),
        "parameters_after": sum(p.numel() for p in small.parameters()),
        "parameters_lean": sum(p.numel() for p in lean.parameters()),
        "outputs_moved": moved([before], [after]),
        "outputs_moved_computed_in_float64": moved(exact[:1], exact[1:]),
        "original_moved_by_another_batch_size": moved([before], [singly]),
        "output_spread": float(before.std(0).mean()),
        "removed_from_lean_with_8_images": lean_plan.removed,
        "samples": list(plan.samples),
        "seconds_trace": round(traced - start, 1),
        "seconds_exact": round(done - traced, 1),
    }


def main() -> None:
    """Write the figures after every network, so that a stopped run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "exact_zoo.json")
    parser.add_argument("--networks", nargs="*", default=list(planted_zoo.ZOO), choices=list(planted_zoo.ZOO))
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "command": "python recipes/exact_zoo.py " + " ".join(sys.argv[1:]),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "rows": [],
    }
    for name in options.networks:
        for dtype in (torch.float64, torch.float32):
            record["rows"].append(measured(name, dtype, options.images))
            print(json.dumps(record["rows"][-1]), flush=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
