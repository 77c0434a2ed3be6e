"""Outcome -> record: the plain dict that `record.json` holds and every report is rendered from."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

from compressor.options import Options
from compressor.pipeline import Outcome
from compressor.records import SCHEMA_VERSION
from compressor.sources.splits import Data
from compressor.stages import pick_device
from compressor.units.inspect import describe

KINDS = ("silent", "removable", "repeated", "dependent", "needed")
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "onnx", "onnxruntime", "safetensors")


def versions() -> dict[str, str]:
    """Versions of this package, Python and what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("compressor", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """What the timings depend on."""
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    capability = torch.backends.cpu.get_cpu_capability()
    return {"system": platform.system(), "processor": platform.machine(), "cpu_capability": capability, "cuda": cuda}


def assemble(
    outcome: Outcome,
    data: Data,
    options: Options,
    *,
    name: str,
    source: Mapping[str, Any] | None = None,
    command: str | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of a run, before anything is exported (`onnx` and `onnx_verdict` are None)."""
    summary, about = outcome.summary, describe(outcome.graph)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "command": command,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "mode": outcome.mode,
        "original": dict(outcome.original_size),
        "compressed": dict(outcome.size),
        "unaligned": outcome.unaligned,
        "nothing_to_do": outcome.nothing_to_do,
        "verdict": None if outcome.verdict is None else outcome.verdict.as_dict(),
        "onnx_verdict": None,
        "fidelity": outcome.fidelity,
        "findings": {key: summary[key] for key in ("units", *KINDS, "frozen")},
        "thresholds": outcome.thresholds,
        "ablation": outcome.ablation,
        "groups": _groups(outcome, summary),
        "coverage": {
            "layers": about["layers"]["seen"],
            "covered": about["layers"]["covered"],
            "frozen": about["layers"]["frozen"],
            "text": about["summary"],
            "uncovered": about["uncovered"],
        },
        "search": outcome.search,
        "onnx": None,
        "align": outcome.align,
        "recover": None,
        "seconds": dict(outcome.seconds),
        "versions": versions(),
        "machine": machine(),
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "device": str(pick_device(options.device)),
        "data": _data(data),
        "source": dict(source or {}),
        "judge_uses": None,
        "warnings": list(outcome.warnings),
        "options": options.as_dict(),
        "recipe": None if recipe is None else dict(recipe),
    }


def _groups(outcome: Outcome, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts = {entry["name"]: entry for entry in summary["groups"]}
    rows = []
    for group in outcome.graph.groups:
        kept = outcome.plan.kept.get(group.name, tuple(range(len(group.units))))
        found = counts.get(group.name, {})
        rows.append(
            {
                "name": group.name,
                "units": len(group.units),
                "kept": list(kept),
                "frozen": group.frozen,
                **{kind: int(found.get(kind, 0)) for kind in KINDS},
                "producers": list(group.producers),
                "carriers": list(group.carriers),
                "consumers": list(group.consumers),
            }
        )
    return rows


def _data(data: Data) -> dict[str, Any]:
    described = dict(data.described)
    parts = {"calibrate": data.calibrate, "tune": data.tune, "judge": data.judge}
    return {
        **{name: part.fingerprint for name, part in parts.items()},
        "counts": {name: len(part) for name, part in parts.items()},
        "described": described,
    }


def command_line() -> str:
    """The command as typed, without the path of the program."""
    import shlex

    return shlex.join(["compressor", *sys.argv[1:]])
