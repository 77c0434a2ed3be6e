"""What a full chunk ladder costs, against a scikit-learn ridge regression refitted for every chunk.

    python recipes/capacity_costs.py --out recipes/results/capacity_costs.json [--threads 1]

10,000 samples of 1,024 units, sizes 1 .. 1,024, 40 chunks each. scikit-learn is timed on one chunk of every size (its
other 39 take the same time: only other columns) with the same penalty, and its numbers are compared with ours.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from compressor.capacity.measures import chunk_reconstruction, draws, ladder
from compressor.capacity.measures.chunks import RIDGE
from compressor.recording import machine, versions


def features(samples: int, units: int) -> np.ndarray:
    """Thirty signals in every unit, and noise of its own."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((samples, 30)) @ rng.standard_normal((30, units)) / np.sqrt(30)
    return mixed + 0.3 * rng.standard_normal((samples, units))


def refitted(x: np.ndarray, chunk: np.ndarray) -> tuple[float, float]:
    """R² and mean |residual correlation| over all units, from a regression on the data."""
    model = Ridge(alpha=RIDGE * len(x) * x.var(0).mean())
    rest = x - model.fit(x[:, chunk], x).predict(x[:, chunk])
    rest[:, chunk] = 0.0  # what the penalty leaves of the chunk's own units is no residual
    covariance = np.cov(rest, rowvar=False, bias=True)
    spread = np.sqrt(np.diag(covariance))
    correlation = np.abs(covariance / (np.outer(spread, spread) + 1e-8))
    pairs = np.tril_indices(len(covariance), -1)
    return 1 - rest.var(0).sum() / x.var(0).sum(), float(correlation[pairs].mean())


def clocks() -> np.ndarray:
    """Wall time, and processor time of this process: the second is fair on a machine that others use too."""
    return np.array([time.perf_counter(), time.process_time()])


def named(pair: np.ndarray) -> dict[str, float]:
    """Both clocks by name."""
    return {"wall": float(pair[0]), "processor": float(pair[1])}


def compared(samples: int, units: int, repeats: int) -> dict[str, Any]:
    """Seconds of both on both clocks, and the largest difference between their numbers."""
    x, sizes = features(samples, units), ladder(units)
    start = clocks()
    found = chunk_reconstruction(x, sizes, repeats, seed=0)
    ours = clocks() - start
    each, apart = {}, 0.0
    for entry in found:
        chunk = next(draws(units, entry.size, 1, 0))
        start = clocks()
        r2, correlation = refitted(x, chunk)
        each[entry.size] = clocks() - start
        apart = max(apart, abs(r2 - entry.r2[0]), abs(correlation - entry.residual_correlation[0]))
    theirs = repeats * np.sum(list(each.values()), axis=0)
    return {
        "samples": samples,
        "units": units,
        "sizes": sizes,
        "repeats": repeats,
        "ladder": named(ours),
        "scikit_learn_per_chunk": {size: named(spent) for size, spent in each.items()},
        "scikit_learn_ladder_extrapolated": named(theirs),
        "times_faster": named(theirs / ours),
        "largest_difference": float(apart),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--units", type=int, default=1_024)
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with threadpool_limits(given.threads):
        content = compared(given.samples, given.units, given.repeats)
    content |= {"threads": given.threads, "versions": versions(), "machine": machine()}
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({k: v for k, v in content.items() if k not in ("versions", "machine")}, indent=1))


if __name__ == "__main__":
    main()
