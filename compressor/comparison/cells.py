"""One cell of a comparison: one method, one network (seed), one size; measured, judged, and written to its own file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.comparison.task import Build, Method, Task, size
from compressor.errors import CompressorError
from compressor.export.files import write_json
from compressor.verify.accuracy import Outputs, accuracy, outputs_of
from compressor.verify.judge import judge

Recover = Callable[[nn.Module], tuple[nn.Module, dict[str, Any]]]
"""small -> small after recovery and what recovery did; the same for every method."""


class Bench:
    """Runs the cells of one trained network; cells that are there already are read, not run again.

    A method's own faults are results: its cell holds the error, and the method is not asked for smaller sizes. Cells
    say which `weights` they were measured on, and by what `code`; those of others are run again.
    """

    def __init__(
        self, task: Task, folder: Path, allowed: float, confidence: float, stop_at: float, recover: Recover | None,
        noted: Mapping[str, Mapping[str, str]],
    ) -> None:  # fmt: skip
        """`noted` is what each method's cells are told from others by."""
        self.task, self.folder, self.recover, self.noted = task, folder, recover, noted
        self.allowed, self.confidence = allowed, confidence
        self.stop_at = max(stop_at, allowed)  # before the allowed loss nothing is known of where a method crosses it
        self.whole = size(task.model, task.example)
        self._before: Outputs | None = None
        self._builds: dict[str, tuple[Build, float]] = {}

    @property
    def before(self) -> Outputs:
        """The original's answers on the judge part, computed once."""
        if self._before is None:
            self._before = outputs_of(self.task.model, self.task.data.judge)
        return self._before

    def original(self) -> dict[str, Any]:
        """Size and accuracy of the network itself."""
        return {**self.whole, "accuracy": accuracy(self.before), "judge_samples": len(self.before.logits)}

    def run(self, methods: Mapping[str, tuple[Method, Sequence[float]]], report: Callable[[str, float], None]) -> None:
        """All cells, from the largest share down, methods in turn; a method stops once it lost `stop_at` points."""
        live = {name: method for name, (method, _) in methods.items()}
        shares = sorted({share for _, sizes in methods.values() for share in sizes}, reverse=True)
        for place, share in enumerate(shares):
            for turn, name in enumerate([name for name in live if share in methods[name][1]]):
                report(f"{name} at {share:.0%}", (place + turn / len(methods)) / len(shares))
                cell = self.cell(name, live[name], share)
                if "error" in cell or cell["lost"] > self.stop_at:
                    del live[name]

    def cell(self, name: str, method: Method, share: float) -> dict[str, Any]:
        """The cell of one method at one size, from its file where that is there."""
        path = self.folder / f"seed{self.task.seed}-{name}-{share:.4f}.json"
        known = json.loads(path.read_bytes()) if path.is_file() else None
        noted = self.noted[name]
        if known is not None and all(known.get(key, noted[key]) == noted[key] for key in noted):
            return known  # earlier versions noted less
        about = {"method": name, "seed": self.task.seed, "share": share, "measure": self.task.measure, **noted}
        try:
            cell = {**about, **self._measured(name, method, share)}
        except CompressorError as error:
            cell = {**about, "error": str(error)}
        except Exception as error:  # noqa: BLE001 (a peer's fault is a result of the comparison)
            cell = {**about, "error": f"{type(error).__name__}: {error}"}
        write_json(path, cell)
        return cell

    def _measured(self, name: str, method: Method, share: float) -> dict[str, Any]:
        if name not in self._builds:
            started = time.perf_counter()
            self._builds[name] = method(self.task), time.perf_counter() - started
        build, prepared = self._builds[name]
        started = time.perf_counter()
        small = build(share).eval()
        built, started = time.perf_counter() - started, time.perf_counter()
        found = self._judged(small)
        seconds = {"prepare": round(prepared, 2), "build": round(built, 2)}
        if self.recover is not None:
            found["unrecovered"] = {"lost": found["lost"], "verdict": found["verdict"]}
            started = time.perf_counter()
            small, found["recovery"] = self.recover(small)
            small = small.eval()
            seconds["recover"] = round(time.perf_counter() - started, 2)
            found |= self._judged(small)
        measured = size(small, self.task.example)
        shares = {key: measured[key] / max(self.whole[key], 1) for key in measured}
        return {**found, **shares, "seconds": seconds, "threads": torch.get_num_threads()}

    def _judged(self, small: nn.Module) -> dict[str, Any]:
        after = outputs_of(small, self.task.data.judge, check=False)
        verdict = judge(self.before, after, allowed=self.allowed, confidence=self.confidence)
        half = len(after.logits) // 2
        first, second = (
            accuracy(_part(self.before, part)) - accuracy(_part(after, part))
            for part in (slice(None, half), slice(half, None))
        )
        return {"lost": -verdict.difference, "first": first, "second": second, "verdict": verdict.as_dict()}


def _part(found: Outputs, part: slice) -> Outputs:
    labels = None if found.labels is None else found.labels[part]
    return replace(found, logits=found.logits[part], labels=labels)
