"""What `compressor plan-cost` predicts against what runs take, stage by stage.

    python recipes/plan_cost.py --out recipes/results/plan_cost.json

The networks are untrained and the images random: what it costs does not depend on them. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import measuring
import networks
import torch

import compressor
from compressor.analysis import plan_cost
from compressor.costing.network import work_of
from compressor.costing.predict import STAGES, predicted
from compressor.costing.rates import measured_rates
from compressor.observe import memory_of

NAMES = ("vgg", "resnet", "mlp")
KEEP, JUDGED = 0.5, 1000


def compared(name: str, samples: int) -> dict[str, Any]:
    """Seconds of each stage, predicted and then taken."""
    torch.manual_seed(0)
    model = getattr(networks, name)().eval()
    images = torch.randn(samples + JUDGED + 500, 1, 28, 28)
    parts = images[:samples], images[samples : samples + 500], images[samples + 500 :]
    rates, memory = measured_rates(), memory_of(torch.device("cpu"))
    cost = predicted(work_of(name, model.requires_grad_(True), images[:2], samples, JUDGED), rates, memory, KEEP)
    taken = compressor.compress(model, *parts, keep=("params", KEEP), align=1, max_drop=99.0).record["seconds"]
    stages = {
        stage: {"predicted": cost.seconds[stage], "taken": taken[stage], "ratio": cost.seconds[stage] / taken[stage]}
        for stage in STAGES
    }
    whole = sum(cost.seconds.values()) / sum(taken[stage] for stage in STAGES)
    return {"network": name, "samples": samples, "stages": stages, "ratio": whole, "total": taken["total"]}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--planned", action="store_true", help="also what the large networks would cost")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [compared(name, given.samples) for name in given.networks]
    plan = plan_cost([], samples=5000, judged=10_000, keep=0.5) if given.planned else None
    measuring.write({"rows": rows, "planned": plan}, given.out)
    for row in rows:
        said = ", ".join(f"{stage} {one['predicted']:.1f} / {one['taken']:.1f}" for stage, one in row["stages"].items())
        print(f"{row['network']}: {row['ratio']:.2f} ({said})")


if __name__ == "__main__":
    main()
