"""A capacity study without its raw trials: `python recipes/capacity_results.py DIR --out recipes/results/NAME.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

KEPT = ("accuracy", "r95", "r95_correlation", "similar", "similar_share")
ABLATION = ("prunable", "prunable_mean", "removable", "targeted_gap", "chance")


def trimmed(study: dict[str, Any]) -> dict[str, Any]:
    """The claims whole, the command without a machine's paths; of rungs and nulls the numbers, of chunks the means."""
    rungs = [
        {
            **rung,
            "measures": part(rung["measures"]),
            "nulls": {name: part(null) for name, null in rung["nulls"].items()},
        }
        for rung in study["rungs"]
    ]
    words = (study["command"] or "").split()
    command = " ".join(Path(word).name if word.startswith("/") else word for word in words if word != "--resume")
    return {**study, "rungs": rungs, "command": command or None}


def part(measures: dict[str, Any]) -> dict[str, Any]:
    """Numbers of one network."""
    kept = {name: measures[name] for name in KEPT if name in measures}
    if "ablation" in measures:
        kept["ablation"] = {name: measures["ablation"][name] for name in ABLATION}
    if "noise" in measures:
        kept["noise"] = {"scales": measures["noise"]["scales"], "agreement": measures["noise"]["agreement"][0]}
    if "chunks" in measures:
        kept["chunks"] = {name: mean(value) for name, value in measures["chunks"].items()}
    return kept


def mean(value: Any) -> Any:
    """Rows of trials become their means (None where none was finite); everything else stays."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        return value
    rows = [[trial for trial in row if trial is not None] for row in value]
    return [round(sum(row) / len(row), 6) if row else None for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of `compressor capacity`")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    content = trimmed(json.loads((asked.folder / "study.json").read_text()))
    asked.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
