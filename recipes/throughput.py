"""How much faster two processes of one thread each take the statistics than one process of one thread.

    python recipes/throughput.py --out recipes/results/throughput.json

The pass is that of `compressor compress`, over random images (what it costs does not depend on weights or pixels).
Repeats of one and of two processes take turns. `ratio` is of wall time and wants a quiet machine with two free cores;
`work_ratio` is of processor time, one process's by the busier of two's: what the division of the work itself allows,
whatever else the machine does. `ceiling` is what the machine allows: the whole pass in two processes at once that share
nothing, twice the time of one alone by theirs. Two cores that share a memory bus or are threads of one core stay
below 2.
"""

from __future__ import annotations

import argparse
import os
import statistics as stats
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import measuring
import networks
import torch
from torch import distributed, multiprocessing

from compressor.sources.samples import as_samples
from compressor.stages import Workshop, find_units, working_copy

IMAGES = {"vgg": 3500, "resnet": 3500, "mlp": 40_000}
"""Calibration images by network: a pass shall take seconds, which for an MLP of 3,500 images it does not."""


def opened(name: str, images: int) -> Workshop:
    """The network with its calibration images, ready to be measured."""
    torch.manual_seed(0)
    work = working_copy(getattr(networks, name)(), torch.device("cpu"))
    samples = as_samples(torch.randn(images, 1, 28, 28), "images")
    return Workshop.open(work, find_units(work, samples, 0), samples, 0)


def timed(shop: Workshop) -> tuple[float, float]:
    """Wall and processor seconds of one pass."""
    wall, processor = time.perf_counter(), time.process_time()
    shop.measure()
    return time.perf_counter() - wall, time.process_time() - processor


def together(shop: Workshop, rank: int, place: str, *, shared: bool) -> list[list[float]]:
    """Wall and processor seconds of both processes: of one pass that they share, or of a whole pass each."""
    distributed.init_process_group("gloo", f"{place}.start", timedelta(hours=1), 2, rank)
    distributed.barrier()
    if not shared:  # a pass without a group knows nothing of the other one
        distributed.destroy_process_group()
    mine = torch.tensor(timed(shop), dtype=torch.float64)
    if not shared:
        distributed.init_process_group("gloo", f"{place}.end", timedelta(hours=1), 2, rank)
    each = [torch.zeros(2, dtype=torch.float64) for _ in range(2)]
    distributed.all_gather(each, mine)
    distributed.destroy_process_group()
    return [pair.tolist() for pair in each]


def worker(rank: int, folder: str, given: argparse.Namespace) -> None:
    """One of two processes; the first also measures alone, while the other one waits for it."""
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    found: dict[str, list[dict[str, Any]]] = {}
    for name in given.networks:
        shop = opened(name, given.images or IMAGES[name])
        for turn in range(given.repeats + 1):
            alone = timed(shop) if rank == 0 else (0.0, 0.0)
            place = f"file://{folder}/{name}.{turn}"
            two = together(shop, rank, f"{place}.shared", shared=True)
            apart = together(shop, rank, f"{place}.apart", shared=False)
            if turn:  # the first is to warm up
                found.setdefault(name, []).append({"one": alone, "two": two, "apart": apart})
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")


def summary(name: str, rows: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """The medians of the repeats' own ratios, and every repeat."""
    wall = [row["one"][0] / max(pair[0] for pair in row["two"]) for row in rows]
    work = [row["one"][1] / max(pair[1] for pair in row["two"]) for row in rows]
    ceiling = [2 * row["one"][0] / max(pair[0] for pair in row["apart"]) for row in rows]
    one = stats.median(row["one"][0] for row in rows)
    two = stats.median(max(pair[0] for pair in row["two"]) for row in rows)
    return {
        "network": name, "images": images, "images_per_second": {"one": images / one, "two": images / two},
        "ratio": stats.median(wall), "ratio_least": min(wall), "ratio_most": max(wall),
        "work_ratio": stats.median(work), "ceiling": stats.median(ceiling), "repeats": rows,
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, help="for every network; default: 3,500, of the MLP 40,000")
    parser.add_argument("--networks", nargs="+", choices=IMAGES, default=list(IMAGES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(worker, (folder, given), nprocs=2)  # type: ignore[no-untyped-call]
        found = torch.load(f"{folder}/found.pt", weights_only=True)
    torch.set_num_threads(1)
    rows = [summary(name, found[name], given.images or IMAGES[name]) for name in given.networks]
    measuring.write({"rows": rows}, given.out)
    for row in rows:
        print(f"{row['network']}: {row['ratio']:.2f} [{row['ratio_least']:.2f}, {row['ratio_most']:.2f}], "
              f"by processor time {row['work_ratio']:.2f}, ceiling {row['ceiling']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
