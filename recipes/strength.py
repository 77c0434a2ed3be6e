"""How small the Fashion-MNIST networks become, with no training after compression and with label-free recovery.

    python recipes/strength.py CHECKPOINTS --out recipes/results/strength.json

CHECKPOINTS is a folder with mlp, vgg, resnet and inception .safetensors (train them with the recipes beside this file).
Runs are on widths that need not be aligned: a given size, the search at --max-drop 1.0, a smaller size, and one smaller
yet with five minutes of recovery, on the calibration images alone and with the training images as more unlabelled ones.
Accuracy is counted by a plain loop over the test set, and apart for its first and
second 5,000 images: decisions may only be taken on the first. Results are written after every run; runs that are there
already are not repeated.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import measuring
import torch

import compressor
from compressor.sources.data import load_data

KEEP = {"mlp": 0.12, "vgg": 0.27, "resnet": 0.45, "inception": 0.48}
SMALLER = {"mlp": 0.10, "vgg": 0.20, "resnet": 0.27, "inception": 0.33}
RECOVERED = {"mlp": 0.06, "vgg": 0.15, "resnet": 0.30}


@torch.no_grad()
def accuracies(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Test accuracy in percent: the whole set, its first and its second half."""
    right = torch.cat([model(x).argmax(1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)])
    half = len(right) // 2
    parts = {"all": right, "first": right[:half], "second": right[half:]}
    return {name: round(100 * part.double().mean().item(), 3) for name, part in parts.items()}


def run(name: str, folder: Path, options: dict[str, Any], data: Any, test: Any) -> dict[str, Any]:
    """One compression, with what it cost and what it kept."""
    model = measuring.trained(name, folder)
    more = {"unlabelled": data.train} if "unlabelled" in options else {}
    started = time.perf_counter()
    result = compressor.compress(model, data.calibrate, data.tune, data.judge, align=1, **{**options, **more})
    seconds = time.perf_counter() - started
    record = result.record
    before, after = accuracies(model, *test), accuracies(result.model, *test)
    return {
        "network": name,
        "options": {"align": 1, **options},
        "params": record["compressed"]["params"] / record["original"]["params"],
        "macs": record["compressed"]["macs"] / record["original"]["macs"],
        "original": before,
        "compressed": after,
        "lost": {part: round(before[part] - after[part], 3) for part in before},
        "verdict": record["verdict"],
        "findings": record["findings"],
        "recover": {key: value for key, value in (record["recover"] or {}).items() if key != "checks"} or None,
        "search": [
            {k: row[k] for k in ("params", "macs", "tune", "selected", "predicted_loss")} for row in record["search"]
        ],
        "seconds": {**record["seconds"], "wall": round(seconds, 1)},
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Run what is not there yet."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--networks", nargs="*", default=list(KEEP))
    given = measuring.parsed(parser)
    done = json.loads(given.out.read_text())["runs"] if given.out.is_file() else []
    data = load_data("fashion-mnist")
    whole = data.judge.batch(torch.arange(len(data.judge)))
    if whole[1] is None or not isinstance(whole[0], torch.Tensor):
        raise SystemExit("the test set has labels and one input")
    asks = [(name, {"keep": f"params={KEEP[name]}"}) for name in given.networks]
    asks += [(name, {"max_drop": 1.0}) for name in given.networks]
    asks += [(name, {"keep": f"params={SMALLER[name]}"}) for name in given.networks]
    recovered = [name for name in given.networks if name in RECOVERED]
    for more in ({}, {"unlabelled": "training images"}):
        asks += [(name, {"keep": f"params={RECOVERED[name]}", "recover": "5min", **more}) for name in recovered]
    for name, options in asks:
        asked = {"align": 1, **options}
        if any(row["network"] == name and row["options"] == asked for row in done):
            continue
        row = run(name, given.checkpoints, options, data, whole)
        done.append(row)
        measuring.write({"runs": done}, given.out)
        verdict = row["verdict"]["value"]
        print(f"{name} {options}: {row['params']:.3f} of the parameters, lost {row['lost']}, {verdict}", flush=True)


if __name__ == "__main__":
    main()
