"""The stages of a lossy run: working copy, units, statistics, paths, and building a candidate of a given size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.computed import copy_of
from compressor.errors import ModelError
from compressor.observe import (
    CLASSES,
    FREE_SHARE,
    MEMORY_SHARE,
    ROWS_PER_REGRESSOR,
    Likelihood,
    Statistics,
    free_of,
    half,
    in_file,
    least,
    memory_of,
    observe,
    processes,
)
from compressor.planning.allocation import Allocator
from compressor.planning.paths import Path, find_path
from compressor.records import Plan
from compressor.sources.samples import Batch, Samples, batches, runs
from compressor.surgery.bases import basis_taps, in_balanced_bases
from compressor.surgery.landing import Landing, landings
from compressor.surgery.lanes import whole_bytes
from compressor.surgery.operate import operate
from compressor.surgery.refit import Reference, Refit, bytes_per_chunk
from compressor.units.check import certify, checked
from compressor.units.dense import Probe, in_dense_form
from compressor.units.fetched import fetched_bytes, place
from compressor.units.graph import UnitGraph, clusters
from compressor.units.heads import attentions
from compressor.units.modes import floating, home_of, unhalved
from compressor.units.program import Program, copied, record
from compressor.units.sizes import Sizes, SizeTable
from compressor.units.trace import trace
from compressor.verify.accuracy import out_of_memory

Report = Callable[[str, float], None]
"""Called with the name of a stage and the share of it that is done."""
NOTE = "note: "
"""A stage's name that begins so is a line to read, not a stage."""
RIDGE = 1e-3


REFIT_SAMPLES = 2000
"""A refit uses at least so many calibration samples, if there are; more changed nothing measurable."""


FEWEST_ROWS = 2
"""Fewer rows than so many for each input of a layer, and a fit says more of the samples than of the layer."""


BASIS_SAMPLES = 1000
"""Calibration samples from which the bases of attention are chosen."""


def silent(_stage: str, _done: float) -> None:
    """No progress report."""


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator that torch finds here (cuda, mps, ...), else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def working_copy(model: nn.Module, device: torch.device, room: float = math.inf) -> nn.Module:
    """A copy in eval mode that computes on the device, with at most `room` bytes of its weights there; half precision
    becomes float32; every parameter takes gradients."""
    work = unhalved(copied(model))
    place(work.requires_grad_(True), device, room)
    return work


def find_units(model: nn.Module, samples: Samples, seed: int) -> UnitGraph:
    """Traced and proven units of a working copy, on the first samples."""
    here, inputs = on_cpu(model), first_inputs(model, samples)
    return checked(here, trace(here, inputs), inputs, seed)


def opened_model(model: nn.Module, samples: Samples, room: float = math.inf) -> nn.Module:
    """The model with its attention and recurrent layers as linear ones (itself where it has none), proven on the first
    samples; at most `room` bytes of its weights are on its device."""
    made = in_dense_form(model, first_inputs(model, samples))
    place(made, home_of(model), room)
    return made


def in_bases(
    model: nn.Module, graph: UnitGraph, samples: Samples, seed: int, likelihood: Likelihood = CLASSES,
    memory: float | None = None, room: float = math.inf,
) -> nn.Module:  # fmt: skip
    """The model with its attention in bases where single dimensions can go (itself where it has none).

    The function is the same: proven on the first samples, in double precision.
    """
    if not attentions(model):
        return model
    part = samples.take(range(min(len(samples), BASIS_SAMPLES)))
    size = batch_size(part)
    taps = basis_taps(model)
    seen = observe(
        model, graph, lambda: shard(model, part, size), len(part), taps=taps, seed=seed, likelihood=likelihood,
        budget_bytes=half(memory),
    )  # fmt: skip
    turned, probe = in_balanced_bases(model, seen), Probe(model, first_inputs(model, samples))
    if probe.changed(turned):
        return model
    place(turned, home_of(model), room)
    return turned


def on_cpu(model: nn.Module) -> nn.Module:
    """The model where proofs are made; itself if it is there."""
    away = any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers()))
    return copy_of(model).cpu() if away else model


def first_inputs(model: nn.Module, samples: Samples, count: int = 2) -> Any:
    """The first samples (two) on the CPU, in the dtype of the model."""
    inputs, _ = samples.batch(torch.arange(min(count, len(samples))))
    dtype = floating(model)
    return pytree.tree_map(lambda t: t.cpu().to(dtype if t.is_floating_point() else None), inputs)


@dataclass
class Workshop:
    """A model on its device with everything measured about it; `build(plan)` makes candidates.

    Sums take half of `memory` (bytes) at most, and activations the other half; without it, a quarter of the device's.
    What is more waits for another pass, or in files. `used` says what that meant.
    """

    model: nn.Module
    graph: UnitGraph
    calibrate: Samples
    seed: int
    spots: dict[str, Landing]
    sizes: SizeTable
    likelihood: Likelihood = CLASSES
    memory: float | None = None
    reference: Reference | None = None
    """What candidates are refitted to, where that is not `model`."""
    statistics: Statistics = field(default_factory=Statistics)
    used: dict[str, Any] = field(default_factory=dict)
    bytes_per_sample: float = 0.0
    """Activations that a backward pass keeps."""
    _cached: tuple[Program, list[Any]] | None = None
    _resident: int = 0

    @classmethod
    def open(
        cls, model: nn.Module, graph: UnitGraph, calibrate: Samples, seed: int, likelihood: Likelihood = CLASSES,
        memory: float | None = None, reference: Reference | None = None,
    ) -> Workshop:  # fmt: skip
        """Prepare the program's landings and the size arithmetic."""
        example = next(_batches(model, calibrate, 2))
        program = record(model, example.inputs)
        spots = {spot.module: spot for spot in landings(program)}
        missing = [tap.module for tap in graph.taps if tap.module not in spots]
        if missing:
            raise ModelError(
                f"layer '{missing[0]}'", "a consumer that the recorded program does not show", "a layer run once",
                "freeze it or report this model.",
            )  # fmt: skip
        shop = cls(model, graph, calibrate, seed, spots, Sizes(model, graph), likelihood, memory, reference)
        shop.bytes_per_sample = whole_bytes(program) / len(example.ids)
        return shop

    @property
    def budget(self) -> float:
        """Bytes that activations may take; the same on this machine whatever else runs on it."""
        device = home_of(self.model)
        return half(self.memory) or MEMORY_SHARE * memory_of(device)

    def measure(self, report: Report = silent) -> None:
        """The statistics of all taps, in one pass where their sums fit. Smaller batches where memory runs out.

        Under `torchrun` each process reads its share of the data, and all end with the same statistics.
        """
        held = least(self.budget, home_of(self.model)) // max(self.bytes_per_sample, 1.0)
        size = max(1, int(min(batch_size(self.calibrate), held)))
        while True:
            done = [0]

            def step(count: int, done: list[int] = done) -> None:
                done[0] += count * processes()[1]
                report("observe", min(1.0, done[0] / len(self.calibrate)))

            try:
                self.statistics = observe(
                    self.model,
                    self.graph,
                    lambda size=size: shard(self.model, self.calibrate, size),
                    len(self.calibrate),
                    seed=self.seed,
                    progress=step,
                    likelihood=self.likelihood,
                    budget_bytes=half(self.memory),
                )
                self.used |= {"allowed": self.memory, "passes": self.statistics.passes, "batch": size}
                self.used |= {"activations_in_files": self.statistics.in_files}
                self.used |= {"weights_fetched": fetched_bytes(self.model)}
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or size == 1:
                    raise
                size = max(1, size // 2)
                report(f"{NOTE}Memory ran out: going on with batches of {size} samples", 0.0)

    def doubt(self) -> str | None:
        """A warning where live layers were measured on fewer than FEWEST_ROWS rows for each of their inputs."""
        live = np.concatenate([g.units for g in self.graph.groups if g.frozen is None] or [np.empty(0, dtype=np.int64)])
        short = []
        for tap in self.graph.taps:
            seen = self.statistics.taps.get(tap.module)
            if seen is not None and np.isin(tap.units, live).any():
                inputs, rows = len(seen.moments.total), seen.moments.count
                short += [(rows / inputs, tap.module, inputs, rows)] if rows < FEWEST_ROWS * inputs else []
        if not short:
            return None
        _, name, inputs, rows = min(short)
        which = "1 layer was" if len(short) == 1 else f"{len(short)} layers were"
        return (
            f"{which} measured on fewer than {FEWEST_ROWS} rows for each input (worst: "
            f"'{name}', {inputs:,} inputs on {rows:,} rows): what was folded there is uncertain. Calibrate on more."
        )

    def paths(self, measure: str, report: Report = silent) -> list[Path]:
        """One path per cluster, cheapest loss per saved `measure` first."""
        intercepts = {name: spot.intercept for name, spot in self.spots.items()}
        worth = self.sizes.saving(measure, Allocator(self.graph, [], self.sizes).full())
        found = []
        read = np.concatenate([place.units for place in (*self.graph.taps, *self.graph.pairings)])
        joined = [c for c in clusters(self.graph) if any(np.isin(group.units, read).any() for group in c)]
        for i, cluster in enumerate(joined):
            found.append(find_path(self.model, self.graph, cluster, self.statistics, intercepts, worth, RIDGE))
            report("paths", (i + 1) / len(joined))
        return found

    def build(self, plan: Plan, report: Report = silent) -> nn.Module:
        """The candidate of a plan: cut, folded in closed form, then refitted in lock-step with the original."""
        small = operate(self.model, self.graph, self.statistics, plan.kept, self.spots, RIDGE)
        if not plan.kept and self.reference is None:
            return small
        program, chunks = self._chunks()
        original, turns = (self.model, {}) if self.reference is None else (self.reference.model, self.reference.turns)
        given = (self.graph, plan.kept, chunks, RIDGE, self.seed, program, self._resident, turns)
        run = Refit(original, small, *given)
        return run.run(lambda done: report("refit", done)).eval()

    def certify(self, small: nn.Module, plan: Plan) -> None:
        """Prove on the network that was built that its units are the ones the plan keeps, position by position.

        Raises ModelError naming the first group that does not match: no such network may be judged or exported.
        """
        example = next(_batches(self.model, self.calibrate, 2))
        inputs = pytree.tree_map(lambda t: t.cpu(), example.inputs)
        wrong = certify(self.model, on_cpu(small), self.graph, plan.kept, inputs)
        if wrong:
            name, why = next(iter(wrong.items()))
            raise ModelError(
                f"group '{name}' after the cut",
                why,
                "the units that the plan keeps",
                "report this model; nothing was written",
            )

    def _chunks(self) -> tuple[Program, list[Any]]:
        """Inputs for the lock-step run, in equal chunks: as many as the fits need; so many as fit in memory stay there.

        Kept for the next candidate, with the model's program on one chunk.
        """
        if self._cached is not None:
            return self._cached
        wanted = min(len(self.calibrate), self._samples_needed())
        size, budget = min(batch_size(self.calibrate), wanted), self.budget
        device = home_of(self.model)
        while True:
            count, size = equal_chunks(wanted, size)
            part = self.calibrate.take(range(count * size))
            example = next(_batches(self.model, part, size))
            program = record(self.model if self.reference is None else self.reference.model, example.inputs)
            need = bytes_per_chunk(program)
            if need <= budget / 4 or size <= 8:
                break
            size = max(8, size // 2)
        room = budget if self.memory is not None else min(budget, FREE_SHARE * free_of(device))
        self._resident = min(count, int(room // max(need, 1)))
        self.used |= {"refit_samples": count * size, "refit_in_files": (count - self._resident) * size}
        inputs = [
            batch.inputs if place < self._resident else pytree.tree_map_only(Tensor, in_file, batch.inputs)
            for place, batch in enumerate(_batches(self.model, part, size))
        ]
        self._cached = program, inputs
        return self._cached

    def _samples_needed(self) -> int:
        """Samples that give every fit enough rows: few where feature maps are large, all for dense layers."""
        needed = REFIT_SAMPLES
        for tap in self.graph.taps:
            shape = self.spots[tap.module].node.meta["val"].shape
            positions = math.prod(shape[2:]) if tap.kind != "linear" else max(1, shape[0] // 2)
            measured = self.statistics.taps.get(tap.module)
            if measured is not None:
                needed = max(needed, math.ceil(ROWS_PER_REGRESSOR * len(measured.moments.total) / positions))
        return needed


def equal_chunks(samples: int, size: int) -> tuple[int, int]:
    """Number and size, at most `size`, of equal chunks that leave as few samples out as one of two ways does.

    >>> equal_chunks(2000, 250), equal_chunks(480, 250), equal_chunks(500, 8)
    ((8, 250), (2, 240), (62, 8))
    """
    smaller = math.ceil(samples / size)
    return max((samples // size, size), (smaller, samples // smaller), key=lambda way: way[0] * way[1])


def batch_size(samples: Samples) -> int:
    """Samples per batch: 250 small ones, fewer large ones."""
    inputs, _ = samples.batch(torch.arange(1))
    numbers = sum(leaf.numel() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return max(8, min(250, math.ceil(1_500_000 / max(numbers, 1))))


def _batches(model: nn.Module, samples: Samples, size: int) -> Iterator[Any]:
    return batches(samples, size, home_of(model), floating(model))


def shard(model: nn.Module, samples: Samples, size: int) -> Iterator[Batch]:
    """This process's batches: every n-th of the whole, with the ids of the whole data set; all without a process group.

    Batches stay as they are for one process, so that n processes sum up the same numbers.
    """
    rank, world = processes()
    device, dtype = home_of(model), floating(model)
    for start, stop in itertools.islice(runs(len(samples), size), rank, None, world):
        ids = torch.arange(start, stop)
        part = next(batches(samples.take(ids), size, device, dtype))
        yield Batch(ids, part.inputs, part.labels)
