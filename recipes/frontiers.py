"""Whole curves from finished `compressor frontier` folders, for the README's table.

    compressor run fashion_mnist/lstm --out lstm
    compressor frontier recipes/more_networks.py:lstm --checkpoint lstm/original.safetensors --data fashion-mnist \\
        --sizes 0.6,0.45,0.3,0.2 --align 1 --max-drop 1 --out lstm_sizes
    compressor frontier recipes/networks.py:resnet --checkpoint CHECKPOINTS/resnet.safetensors --data fashion-mnist \\
        --sizes 0.6,0.45,0.35,0.28,0.22 --out resnet_sizes
    python recipes/frontiers.py resnet_sizes lstm_sizes --out recipes/results/frontier.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import measuring

from compressor.report.frontier import read_frontier


def rows(folder: Path) -> list[dict[str, Any]]:
    """The points of one frontier; nothing of where it lay."""
    found = read_frontier(folder / "frontier.json")
    return [
        {
            "network": found.name,
            "seed": found.seed,
            "accuracy": found.accuracy,
            "asked": point.asked,
            "params": point.params,
            "macs": point.macs,
            "covered": point.covered,
            "verdict": point.verdict.model_dump(exclude={"details"}),
        }
        for point in found.points
    ]


def main() -> None:
    """Read and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    measuring.write({"rows": [row for folder in given.folders for row in rows(folder)]}, given.out)


if __name__ == "__main__":
    main()
