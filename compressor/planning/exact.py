"""Exact mode: the units that a network can lose with no change at all, certified.

By weights, for every input: units that nobody reads, and units that no input moves. By measurement:
scaled copies and linear combinations that hold at rounding level on fit rows *and* on rows the fit has
not seen, real and synthetic. What is only silent on the samples is reported and stays.

Shape letters: U units, D dropped units, K kept units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.span import columns
from compressor.planning.certain import twins, unmoved, unread
from compressor.planning.claims import (
    FIT_ROWS_PER_UNIT,
    HELD_ROWS_PER_UNIT,
    Claims,
    Judge,
    find_claims,
)
from compressor.planning.far import visit_far
from compressor.planning.folds import Fold, never_empty
from compressor.planning.fresh import batched, fresh_inputs, sample_count, taken
from compressor.planning.gates import shut
from compressor.planning.precision import cast_inputs, parameter_dtype, running_dtype
from compressor.planning.reading import RowStore, spots, visit_taps
from compressor.planning.transplant import wired_alike
from compressor.records import Finding
from compressor.sources.samples import runs
from compressor.units.graph import Group, UnitGraph
from compressor.units.modes import unrounded
from compressor.units.trace import recorded_pair

BATCH = 16
FIT_SAMPLES, HELD_SAMPLES, MOST_SAMPLES = 24, 72, 20_000
"""Least number of samples (real and synthetic) that claims are fitted and judged on, and the most."""
MORE_ROUNDS = 4
"""Further rounds of synthetic held-out samples, each twice the last, for claims whose units few samples moved."""
EFFORT = 1e10
"""Multiply-accumulates that may be spent on further samples, for combinations in layers that give few
rows.
"""


@dataclass(frozen=True)
class ExactPlan:
    """What may go with no change, how it is folded, and what was only seen."""

    kept: Mapping[str, tuple[int, ...]]
    """Groups that lose units -> sorted indices that stay."""
    folds: tuple[Fold, ...]
    findings: tuple[Finding, ...]
    silent_on_sample: tuple[Finding, ...]
    """Units that never varied on the samples: not removed, since other inputs may need them."""
    too_few_rows: tuple[str, ...]
    """Groups with too few rows to claim combinations (copies were still looked for)."""
    samples: tuple[int, int]
    """Fit and held-out samples used, real and synthetic together."""
    taken_back: tuple[str, ...] = ()
    """Groups whose fold moved the outputs, and that stay whole."""

    @property
    def removed(self) -> int:
        """Number of units that go."""
        return sum(len(fold.dropped) for fold in self.folds)


@dataclass(frozen=True)
class Part:
    """Real and synthetic samples for one purpose; made batch by batch, the same each time."""

    real: Any
    synthetic: int
    seed: int
    with_real: bool = True

    def __len__(self) -> int:
        return sample_count(self.real) * self.with_real + self.synthetic

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        if self.with_real:
            yield from batched(self.real, BATCH)
        for start, stop in runs(self.synthetic, BATCH):
            generator = torch.Generator().manual_seed(self.seed + start)
            yield stop - start, fresh_inputs(self.real, stop - start, generator)


def find_exact(
    model: nn.Module,
    graph: UnitGraph,
    inputs: Any,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    effort: float = EFFORT,
) -> ExactPlan:
    """Which units of `model` can go with no change, and their folds; nothing given is changed.

    `inputs` are calibration samples (a tensor or pytree). `progress` is called with the number of samples
    after each batch. Raises DataError without samples.
    """
    dtype = running_dtype(model, inputs)
    net = unrounded(copy.deepcopy(model), dtype)
    search = _Search(net, graph, cast_inputs(inputs, dtype), seed, effort, parameter_dtype(model), progress)
    return search.run()


class _Search:
    """The state of one search: which groups are looked at, how many samples, and the claims."""

    def __init__(
        self,
        net: nn.Module,
        graph: UnitGraph,
        inputs: Any,
        seed: int,
        effort: float,
        dtype: torch.dtype,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.net, self.graph, self.dtype, self.seed, self.progress = net, graph, dtype, seed, progress
        layouts = {group.name: spots(graph, group) for group in graph.groups if group.frozen is None}
        self.layouts = {name: found for name, found in layouts.items() if found}
        self.groups = [group for group in graph.groups if group.name in self.layouts]
        self.untapped = [group for group in graph.groups if layouts.get(group.name) == []]
        self.generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(sample_count(inputs), generator=self.generator)
        half = max(1, len(order) // 2)
        self.first, self.second = taken(inputs, order[:half]), taken(inputs, order[-half:])
        self.unread = unread(net, graph)
        self.twins = twins(net, graph)
        self.unmoved = self.unread
        self.program = recorded_pair(net, inputs) if self.groups else None
        if self.program is not None:
            self.unmoved = unmoved(net, graph, self.program)
            self.unmoved |= shut(net, graph, self.layouts, batched(self.first, BATCH))
        self.effort = effort
        self.judged = 0

    def run(self) -> ExactPlan:
        if not self.groups:
            return self._plan([self._unread(group) for group in self.untapped])
        per_sample = self._rows_per_sample()
        fit_size, held_size = self._sizes(per_sample)
        fit = self._part(self.first, fit_size, 1)
        held = self._part(self.second, held_size, 2)
        store = self._collect(fit, per_sample)
        claims: dict[str, Claims] = {}
        silent, few = [], []
        for group in self.groups:
            claims[group.name], quiet, dense = self._claims(group, store, held_size, per_sample)
            silent += [(group.name, unit) for unit in quiet]
            few += [] if dense else [group.name]
        self._certify(claims, fit, store)
        del store
        good = self._judge({name: c for name, c in claims.items() if len(c)}, held)
        made = [self._fold(group, claims[group.name], good.get(group.name)) for group in self.groups]
        made += [self._unread(group) for group in self.untapped]
        return self._plan(made, silent, few, (len(fit), self.judged))

    def _plan(
        self,
        made: list[tuple[Fold | None, list[Finding]]],
        silent: Sequence[tuple[str, int]] = (),
        few: Sequence[str] = (),
        sizes: tuple[int, int] = (0, 0),
    ) -> ExactPlan:
        folds = tuple(never_empty(self.graph, [fold for fold, _ in made if fold is not None]))
        kept = {fold.group: fold.kept for fold in folds}
        gone = {(fold.group, unit) for fold in folds for unit in fold.dropped}
        findings = tuple(found for _, some in made for found in some if (found.group, found.unit) in gone)
        quiet = tuple(Finding(name, unit, "silent", 0.0) for name, unit in silent if (name, unit) not in gone)
        return ExactPlan(kept, folds, findings, quiet, tuple(few), sizes)

    def _unread(self, group: Group) -> tuple[Fold | None, list[Finding]]:
        """Units that no single layer reads (query dimensions): certified by weights or not at all."""
        gone = self.unread[group.units].copy()
        gone[0] &= not gone.all()
        kept, dropped = (tuple(np.flatnonzero(part).tolist()) for part in (~gone, gone))
        findings = [Finding(group.name, unit, "removable", 0.0) for unit in dropped]
        return (Fold(group.name, kept, dropped, {}, {}) if dropped else None), findings

    def _watched(self, batches: Any) -> Iterator[tuple[int, Any]]:
        for count, inputs in batches:
            yield count, inputs
            if self.progress is not None:
                self.progress(count)

    def _rows_per_sample(self) -> dict[int, int]:
        """Tap -> rows that one sample gives."""
        rows: dict[int, int] = {}

        def count(place: int, read: Tensor) -> None:
            rows[place] = rows.get(place, 0) + read.shape[0] * read.shape[1]

        wanted = {spot.tap for found in self.layouts.values() for spot in found}
        one = taken(self.first, torch.tensor([0, 0]))
        visit_taps(self.net, self.graph.taps, [(2, one)], dict.fromkeys(sorted(wanted), count))
        return {place: max(1, total // 2) for place, total in rows.items()}

    def _sizes(self, per_sample: dict[int, int]) -> tuple[int, int]:
        """Fit and held-out samples: as many as combinations need in all groups that the effort allows."""
        macs = max(1, sum(operation.macs for operation in self.graph.operations))
        most = min(MOST_SAMPLES, self.effort / macs)
        fit, held = FIT_SAMPLES, HELD_SAMPLES
        for group in self.groups:
            rows = self._group_rows(group, per_sample)
            more_fit = -(-_fit_rows(group) // rows)
            more_held = -(-HELD_ROWS_PER_UNIT * len(group.units) // rows)
            if more_fit + more_held <= most:
                fit, held = max(fit, more_fit), max(held, more_held)
        return fit, held

    def _group_rows(self, group: Group, per_sample: dict[int, int]) -> int:
        """Rows that one sample gives at the tap that has the fewest."""
        return min(per_sample.get(spot.tap, 1) * spot.entries.shape[1] for spot in self.layouts[group.name])

    def _part(self, real: Any, size: int, key: int) -> Part:
        use = min(sample_count(real), max(FIT_SAMPLES, size // 2))
        part = taken(real, torch.arange(use))
        return Part(part, max(size - use, size // 2), (self.seed * 4 + key) * 1_000_003)

    def _collect(self, fit: Part, per_sample: dict[int, int]) -> RowStore:
        wanted: dict[int, int] = {}
        for group in self.groups:
            for spot in self.layouts[group.name]:
                need = -(-_fit_rows(group) // spot.entries.shape[1])
                wanted[spot.tap] = max(wanted.get(spot.tap, 0), need)
        store = RowStore(wanted, len(fit), self.generator)
        visit_taps(self.net, self.graph.taps, self._watched(fit), dict.fromkeys(wanted, store.visit))
        return store

    def _claims(
        self, group: Group, store: RowStore, held: int, per_sample: dict[int, int]
    ) -> tuple[Claims, list[int], bool]:
        """Claims from the fit rows, units that never varied there, and whether combinations could be
        looked for.
        """
        found = self.layouts[group.name]
        exact = [self.graph.taps[spot.tap].intercept_exact for spot in found]
        taps = [
            columns(spot.rows(store.rows(spot.tap)), spot.present, takes)
            for spot, takes in zip(found, exact, strict=True)
        ]
        useless = torch.from_numpy(self.unread[group.units])
        constant = torch.from_numpy(self.unmoved[group.units]) & ~useless
        enough = held * self._group_rows(group, per_sample) >= HELD_ROWS_PER_UNIT * len(group.units)
        dense = enough and all(len(tap.x) >= FIT_ROWS_PER_UNIT * len(group.units) for tap in taps)
        alike = torch.from_numpy(self.twins[group.units])
        claims = find_claims(found, taps, exact, constant, ~useless, alike, dense, self.dtype)
        varied = torch.stack([tap.active for tap in taps]).any(0)
        constant[claims.constant] = True
        quiet = torch.nonzero(~varied & ~useless & ~constant)[:, 0].tolist()
        return claims, quiet, dense

    def _certify(self, claims: dict[str, Claims], fit: Part, store: RowStore) -> None:
        """Prove for units with equal weights that they are wired alike: then no sample needs to move them."""
        units: dict[str, tuple[Tensor, int]] = {}
        for name, found in claims.items():
            if not bool(found.twin.any()):
                continue
            spread = torch.stack([spot.rows(store.rows(spot.tap)).std(0) for spot in found.spots])
            donor = int((spread / spread.amax(1, keepdim=True).clamp_min(1e-300)).amin(0).argmax())
            twin = torch.cat([found.copy[found.twin], found.of[found.twin]]).unique()
            units[name] = twin, donor
        if not units:
            return
        alike = wired_alike(self.net, self.graph, self.layouts, units, self._watched(fit))
        for name, (twin, _) in units.items():
            found = claims[name]
            proven = torch.zeros(len(found.spots[0].present), dtype=torch.bool)
            proven[twin] = alike[name]
            found.certain |= found.twin & proven[found.copy] & proven[found.of]

    def _judge(self, claims: dict[str, Claims], held: Part) -> dict[str, Tensor]:
        judges = {name: Judge(c, self.seed) for name, c in claims.items()}
        part = held
        for more in range(1, MORE_ROUNDS + 2):
            unsure = [name for name, judge in judges.items() if more == 1 or judge.verdict(self.dtype)[1]]
            if not unsure:
                break
            self._ask(judges, unsure, self.net, part)
            self.judged += len(part)
            size = len(held) << (more - 1)
            part = replace(held, synthetic=size, seed=held.seed + more * 100_003, with_real=False)
        good = {name: judge.verdict(self.dtype)[0] for name, judge in judges.items()}
        self._refute({name: claims[name] for name, some in good.items() if bool(some.any())}, good)
        return good

    def _refute(self, claims: dict[str, Claims], good: dict[str, Tensor]) -> None:
        """Take out of `good` what does not hold far from the samples."""
        if not claims or self.program is None:
            return

        def visit(net: nn.Module, batches: Any) -> None:
            judges = {name: Judge(c, self.seed) for name, c in claims.items()}
            self._ask(judges, list(judges), net, batches)
            for name, judge in judges.items():
                good[name] &= ~judge.refuted(self.dtype)

        visit_far(self.net, self.first, self.program, self.seed, visit)

    def _ask(self, judges: dict[str, Judge], names: list[str], net: nn.Module, batches: Any) -> None:
        """Show the judges what the taps of the groups `names` (and others there) read."""
        by_tap: dict[int, list[tuple[Judge, int]]] = {}
        for judge in judges.values():
            for t, spot in enumerate(judge.claims.spots):
                by_tap.setdefault(spot.tap, []).append((judge, t))

        def visit(place: int, read: Tensor) -> None:
            for judge, t in by_tap[place]:
                judge.visit(t, read)

        places = {spot.tap for name in names for spot in judges[name].claims.spots}
        visit_taps(net, self.graph.taps, self._watched(batches), dict.fromkeys(sorted(places), visit))

    def _fold(self, group: Group, claims: Claims, good: Tensor | None) -> tuple[Fold | None, list[Finding]]:
        useless = torch.from_numpy(self.unread[group.units])
        gone = useless.clone() if good is None else useless | good
        if bool(gone.all()):
            gone[0] = False
        if not bool(gone.any()):
            return None, []
        kept, dropped = torch.nonzero(~gone)[:, 0], torch.nonzero(gone)[:, 0]
        expand, offset = {}, {}
        for t, spot in enumerate(claims.spots):
            module = self.graph.taps[spot.tap].module
            full, shift = _expansion(claims, t, gone & ~useless)
            expand[module], offset[module] = full[dropped][:, kept], shift[dropped]
        fold = Fold(group.name, tuple(kept.tolist()), tuple(dropped.tolist()), expand, offset)
        return fold, _findings(group.name, claims, gone, useless)


def _fit_rows(group: Group) -> int:
    return int(FIT_ROWS_PER_UNIT * len(group.units)) + 64


def _expansion(claims: Claims, t: int, gone: Tensor) -> tuple[Tensor, Tensor]:
    """(U, U) and (U,): every unit from units that stay; a copy of a dependent unit and a twin of a copy go through
    these."""
    units = len(gone)
    full, shift = torch.eye(units, dtype=torch.float64), torch.zeros(units, dtype=torch.float64)
    there = claims.spots[t].present
    copied = gone[claims.copy]
    for units_, chosen, kind in (
        (claims.constant, gone[claims.constant], "constant"),
        (claims.dependent, gone[claims.dependent], "dependent"),
        (claims.copy, copied & ~claims.twin, "copy"),
        (claims.copy, copied & claims.twin, "copy"),
    ):
        target = units_[chosen]
        full[target] = 0.0
        if kind == "constant":
            shift[target] = claims.values[t][chosen]
        elif kind == "dependent":
            full[target[:, None], claims.basis[t][None, :]] = claims.share[t][chosen]
            shift[target] = claims.offset[t][chosen]
        else:
            factor, of = claims.factor[t][chosen], claims.of[chosen]
            full[target] = factor[:, None] * full[of]
            shift[target] = claims.shift[t][chosen] + factor * shift[of]
    full[gone & ~there], shift[gone & ~there] = 0.0, 0.0
    return full, shift


def _findings(name: str, claims: Claims, gone: Tensor, useless: Tensor) -> list[Finding]:
    found = [Finding(name, u, "removable", 0.0) for u in torch.nonzero(gone & useless)[:, 0].tolist()]
    for place, unit in enumerate(claims.constant.tolist()):
        if gone[unit]:
            zero = all(float(values[place]) == 0 for values in claims.values)
            found.append(Finding(name, unit, "silent", 0.0, constant=not zero))
    source = dict(zip(claims.copy.tolist(), claims.of.tolist(), strict=True))
    for unit, of in source.items():
        if gone[unit]:
            stays = source[of] if of in source and gone[of] else of
            found.append(Finding(name, unit, "repeated", 1.0, of=stays))
    found += [Finding(name, u, "dependent", 1.0) for u in claims.dependent.tolist() if gone[u]]
    return found
