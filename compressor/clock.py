"""Latency as the objective: a measured table decides, and the clock checks what it decided.

All times are those of one call of `BATCH` samples on one thread of onnxruntime's CPU provider, in float32, on this
machine. They do not depend on the weights, so a plan's network is timed as it was cut, before any refit.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.export.block import Block, measured_block
from compressor.export.latency import FileLatency, compare_latency
from compressor.export.onnx import export_onnx
from compressor.export.parity import bare_copy
from compressor.export.session import OnnxModel
from compressor.export.tablefile import read_table, refuse_other_network
from compressor.export.timetable import Shape, Timetable, free_axes, measured_table, shape_of
from compressor.observe import from_first
from compressor.planning.allocation import Allocator
from compressor.planning.timing import LATENCY, TimedSizes
from compressor.sources.samples import Samples, batches
from compressor.surgery.landing import Landing, landings
from compressor.units.cut import cut, keep_mask
from compressor.units.graph import UnitGraph
from compressor.units.program import record
from compressor.units.sizes import Sizes

BATCH, THREADS = 32, 1
TABLE_SECONDS = 20.0
CHECK_SECONDS = 8.0
NEAR = 0.04
"""A measured ratio within this part of the one asked for is as asked."""
FAR = 0.2
"""A plan that is faster than asked by more than this part is told of: its network may be smaller than it has to be."""
CORRECTIONS = 2
EXPORTED = 32
"""Samples on which an exported file is compared with its network."""


@dataclass(frozen=True)
class Clock:
    """The original's ONNX file and its width -> time table. The file goes when the clock does."""

    model: nn.Module
    original: Path
    graph: UnitGraph
    samples: Samples
    table: Timetable
    sizes: TimedSizes
    block: Block | None
    seed: int
    known: Mapping[str, Any] | None = None
    """What an earlier run took; it is taken again instead of timing plans."""
    given: str | None = None
    """The file that the table comes from, if it was measured elsewhere: plans are not timed here then."""

    @classmethod
    def wind(
        cls, model: nn.Module, graph: UnitGraph, samples: Samples, seed: int,
        report: Callable[[float], None] = lambda _done: None, known: Mapping[str, Any] | None = None,
        file: str | Path | None = None,
    ) -> Clock:  # fmt: skip
        """Measure the table of `model`, in about TABLE_SECONDS, or read it from `file`.

        `known` is what `corrected` told in an earlier run: nothing is measured then. Raises ModelError where the
        network cannot be exported, SourceError for a file that is no table of this network.
        """
        model = bare_copy(model, torch.float32)
        if known is not None:
            table = Timetable.from_dict(known["table"])
            sizes = TimedSizes(Sizes(model, graph), graph, table.layers, table.rest, table.block)
            return cls(model, Path(), graph, samples, table, sizes, None, seed, known)
        if file is not None:
            table = from_first(lambda: read_table(file))
            refuse_other_network(file, table, layers_of(model, graph, samples, table.batch))
            sizes = TimedSizes(Sizes(model, graph), graph, table.layers, table.rest, table.block)
            return cls(model, Path(), graph, samples, table, sizes, None, seed, given=str(file))
        block = from_first(lambda: measured_block(THREADS, seed))
        folder = Path(tempfile.mkdtemp())
        try:
            original, table = from_first(  # of several processes one measures: timings differ
                lambda: timetable(model, graph, samples, folder, block.block, seed=seed, report=report)
            )
            sizes = TimedSizes(Sizes(model, graph), graph, table.layers, table.rest, block.block)
            clock = cls(model, original, graph, samples, table, sizes, block, seed)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(clock, shutil.rmtree, folder, ignore_errors=True)
        return clock

    def predicted(self, kept: dict[str, tuple[int, ...]]) -> float:
        """The share of the original's time that the table predicts."""
        whole = self.sizes.total(LATENCY, keep_mask(self.graph, {}))
        return self.sizes.total(LATENCY, keep_mask(self.graph, kept)) / whole

    def measured(self, kept: dict[str, tuple[int, ...]]) -> FileLatency:
        """The network with only `kept` against the original, in interleaved rounds."""
        with tempfile.TemporaryDirectory() as folder:
            small = _exported(cut(self.model, self.graph, kept), self.samples, Path(folder))
            found = compare_latency(
                [self.original, small], _filled(self.samples), threads=THREADS, seconds=CHECK_SECONDS, seed=self.seed
            )
        return found.files[1]

    def corrected(self, allocator: Allocator, asked: float) -> tuple[float, dict[str, Any]]:
        """The share to plan for so that the *measured* ratio is `asked`, and what was tried on the way.

        Where a measurement is off by more than NEAR, and its whole interval is off, the target is scaled by as much,
        at most CORRECTIONS times; of the plans tried the nearest counts. A table from elsewhere is taken at its word:
        its machine is not here to time plans. Raises UsageError where even the smallest
        network is predicted to take longer.
        """
        if self.known is not None:
            return self.known["target"], dict(self.known)
        if self.given is not None:
            plan = {"target": asked, "predicted": self.predicted(dict(allocator.plan(LATENCY, asked).kept))}
            told = {**plan, "measured": None, "interval": None}
            return asked, {"asked": asked, **told, "tried": [told], "table": self.table.as_dict(), "given": self.given}
        whole = allocator.sizes.total(LATENCY, allocator.full())
        least = allocator.smallest(LATENCY) / whole
        share, tried, last = asked, [], None
        for _ in range(1 + CORRECTIONS):
            plan = allocator.plan(LATENCY, share)
            if plan.kept == last:  # alignment leads neighbouring shares to the same network
                break
            last = dict(plan.kept)
            file = self.measured(last)
            tried.append(
                {
                    "target": share, "predicted": self.predicted(last), "measured": file.ratio,
                    "interval": list(file.interval),
                }
            )  # fmt: skip
            if abs(file.ratio / asked - 1) <= NEAR or file.interval[0] <= asked <= file.interval[1]:
                break  # correcting what may be noise would only make it worse
            share = min(1.0, max(share * asked / file.ratio, least))
        best = min(tried, key=lambda one: abs(one["measured"] / asked - 1))
        return best["target"], {
            "asked": asked,
            **{name: best[name] for name in ("target", "predicted", "measured", "interval")},
            "tried": tried,
            "table": self.table.as_dict(),
        }


def missed(said: dict[str, Any] | None) -> list[str]:
    """A warning where what `Clock.corrected` took is measurably slower than what was asked for, or so much faster that
    more went than had to.
    """
    if said is None or said["measured"] is None:
        return []
    slower = said["measured"] > (1 + NEAR) * said["asked"] and said["interval"][0] > said["asked"]
    faster = said["measured"] < (1 - FAR) * said["asked"] and said["interval"][1] < said["asked"]
    if not slower and not faster:
        return []
    words = f"{said['asked']:.1%} of the original's latency was asked for, the nearest plan measured"
    found = f"{words} {said['measured']:.1%} [{said['interval'][0]:.1%}, {said['interval'][1]:.1%}]."
    return [found if slower else f"{found} More went than had to: ask for more, or by --keep macs=0.5."]


def timetable(
    model: nn.Module, graph: UnitGraph, samples: Samples, folder: Path, block: int, *, batch: int = BATCH,
    threads: int = THREADS, seconds: float | None = None, seed: int = 0,
    report: Callable[[float], None] = lambda _done: None,
) -> tuple[Path, Timetable]:  # fmt: skip
    """The network's ONNX file, written into `folder`, and its table for calls of `batch` samples."""
    model = bare_copy(model, torch.float32)
    few, spots = _spots(model, samples)
    file = OnnxModel(_exported(model, samples, folder), threads)
    return file.path, measured_table(
        file.path, file.feed(_filled(samples, batch)), spots, few, graph, block=block, threads=threads,
        seconds=TABLE_SECONDS if seconds is None else seconds, seed=seed, report=report,
    )  # fmt: skip


def layers_of(model: nn.Module, graph: UnitGraph, samples: Samples, batch: int) -> list[tuple[str, Shape]]:
    """The names of the weights that a table of this network has, in its order, and how the runtime sees each layer."""
    few, spots = _spots(model, samples)
    free = free_axes(graph)
    return [(f"{spot.module}.weight", shape_of(spot, batch / few, free)) for spot in spots]


def _spots(model: nn.Module, samples: Samples) -> tuple[int, list[Landing]]:
    """The layers of a network, and how many samples they were recorded with."""
    few = next(batches(samples.take(range(min(2, len(samples)))), 2, dtype=torch.float32))
    return len(few.ids), landings(record(model, few.inputs))


def _exported(model: nn.Module, samples: Samples, folder: Path) -> Path:
    inputs, _ = samples.batch(torch.arange(min(EXPORTED, len(samples))))
    return export_onnx(model, inputs, folder / "model.onnx", threads=THREADS).path


def _filled(samples: Samples, batch: int = BATCH) -> Any:
    """The inputs of `batch` samples; where there are fewer, some come more than once."""
    return samples.batch(torch.arange(batch) % len(samples))[0]
