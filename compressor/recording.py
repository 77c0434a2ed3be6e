"""Outcome -> record: the plain dict that `record.json` holds and every report is rendered from."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import torch

from compressor.observe import processes
from compressor.options import Options
from compressor.outcome import Outcome
from compressor.records import SCHEMA_VERSION
from compressor.sources.samples import Samples
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
        "verdict": _verdict(outcome),
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
        "files": {},
        "align": outcome.align,
        "recover": outcome.recovered,
        "latency": outcome.latency,
        "memory": dict(outcome.memory) or None,
        "rotation": outcome.rotation,
        "seconds": dict(outcome.seconds),
        "versions": versions(),
        "machine": machine(),
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "processes": processes()[1],
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
    described["input"] = spec = input_spec(data.calibrate)
    described["input_shape"] = spec["shape"] if _is_leaf(spec) else None
    parts = {"calibrate": data.calibrate, "tune": data.tune, "judge": data.judge}
    if data.unlabelled is not None:
        parts["unlabelled"] = data.unlabelled
    return {
        **{name: part.fingerprint for name, part in parts.items()},
        "counts": {name: len(part) for name, part in parts.items()},
        "described": described,
    }


def input_spec(samples: Samples) -> Any:
    """Shape (without the batch) and dtype of each tensor of one input, in the input's own lists and mappings."""
    inputs, _ = samples.batch([0])

    def spec(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {str(key): spec(leaf) for key, leaf in tree.items()}
        if isinstance(tree, (tuple, list)):
            return [spec(leaf) for leaf in tree]
        return {"shape": list(tree.shape[1:]), "dtype": str(tree.dtype).removeprefix("torch.")}

    return spec(inputs)


def random_inputs(spec: Any, count: int, seed: int = 0) -> Any:
    """Inputs of a recorded `input_spec`: `count` samples, normal numbers; zeros where they are whole numbers."""
    generator = torch.Generator().manual_seed(seed)

    def made(tree: Any) -> Any:
        if isinstance(tree, list):
            return tuple(made(leaf) for leaf in tree)
        if not _is_leaf(tree):
            return {key: made(leaf) for key, leaf in tree.items()}
        dtype: torch.dtype = getattr(torch, tree["dtype"])
        size = (count, *tree["shape"])
        if not dtype.is_floating_point:
            return torch.zeros(size, dtype=dtype)
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    return made(spec)


def _is_leaf(spec: Any) -> bool:
    return isinstance(spec, dict) and set(spec) == {"shape", "dtype"} and isinstance(spec["dtype"], str)


def _verdict(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.verdict is None:
        return None
    plain = outcome.verdict.as_dict()
    if outcome.judged_on is not None:
        plain["details"].setdefault("judged", outcome.judged_on.judged)
    return plain
