"""Exact mode, carried out: fold, cut, compare with the original on held-out inputs, and take back what
moved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from compressor.planning.exact import ExactPlan, find_exact
from compressor.planning.folds import Fold
from compressor.planning.fresh import batched, fresh_inputs, joined, sample_count, taken
from compressor.planning.precision import cast_inputs, parameter_dtype, running_dtype
from compressor.surgery.fold import folded
from compressor.surgery.landing import landings
from compressor.units.graph import UnitGraph
from compressor.units.modes import unrounded
from compressor.units.program import forward, tensors_in
from compressor.units.trace import recorded_pair

MOVED = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference of an output, relative to its spread, that counts as none."""
COMPARED = 16
"""Real samples, and as many synthetic ones, on which the networks are compared."""


def exact_compress(
    model: nn.Module,
    graph: UnitGraph,
    inputs: Any,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> tuple[nn.Module, ExactPlan]:
    """A copy of `model` without the units that it can lose with no change, and the plan that was carried
    out.

    Outputs (computed in float64 with the stored weights) may move by 1e-10 of their spread for float64
    weights and 1e-4 for float32, or as much as rounding the original's own weights anew moves them; folds
    that move them more are taken back, worst first. Nothing given is changed. Raises DataError without
    samples.
    """
    plan = find_exact(model, graph, inputs, seed=seed, progress=progress, **options)
    if not plan.folds:
        return copy.deepcopy(model), plan
    norms = {spot.module: spot.norm for spot in landings(recorded_pair(model, inputs)) if spot.norm is not None}
    compare = _Comparison(model, inputs, seed)
    folds, gone = list(plan.folds), []

    def build(some: Sequence[Fold]) -> nn.Module:
        return folded(model, graph, some, norms)

    small = build(folds)
    least = MOVED[parameter_dtype(model)]
    while folds and (gap := compare.moved(small)) > least and gap > compare.limit:
        alone = [compare.moved(build([fold])) for fold in folds]
        worst = max(range(len(folds)), key=alone.__getitem__)
        limit = max(compare.limit, 0.5 * alone[worst])
        out = {i for i, moved in enumerate(alone) if moved >= limit} or {worst}
        gone += [folds[i].group for i in sorted(out)]
        folds = [fold for i, fold in enumerate(folds) if i not in out]
        small = build(folds)
    if gone:
        plan = replace(
            plan,
            folds=tuple(folds),
            kept={fold.group: fold.kept for fold in folds},
            findings=tuple(f for f in plan.findings if f.group not in gone),
            taken_back=tuple(gone),
        )
    return small, plan


class _Comparison:
    """Outputs of the original on real and synthetic samples, to compare others with."""

    def __init__(self, model: nn.Module, inputs: Any, seed: int) -> None:
        self._dtype = running_dtype(model, inputs)
        given = cast_inputs(inputs, self._dtype)
        generator = torch.Generator().manual_seed(seed + 77)
        real = taken(given, torch.randperm(sample_count(given), generator=generator)[:COMPARED])
        self._inputs = joined([real, fresh_inputs(given, COMPARED, generator)])
        self._outputs = self._run(model)
        self._model, self._generator = model, generator

    @cached_property
    def limit(self) -> float:
        """What counts as no move: the constant, or more where the original moves as much when its own weights
        are rounded anew (up to a hundred times the constant): deep networks amplify rounding.
        """
        dtype = parameter_dtype(self._model)
        rounded = unrounded(copy.deepcopy(self._model), torch.float64)
        with torch.no_grad():
            for parameter in rounded.parameters():
                sign = torch.randint(2, parameter.shape, generator=self._generator).double() * 2 - 1
                parameter.mul_(1 + 0.5 * torch.finfo(dtype).eps * sign)
        own = self.moved(rounded)
        return min(max(MOVED[dtype], 3 * own), 100 * MOVED[dtype])

    def _run(self, model: nn.Module) -> list[Tensor]:
        net = unrounded(copy.deepcopy(model), self._dtype)
        parts = []
        with torch.no_grad():
            for _, batch in batched(self._inputs, COMPARED):
                parts.append([out for out in tensors_in(forward(net, batch)) if out.is_floating_point()])
        return [torch.cat([part[i] for part in parts]) for i in range(len(parts[0]))]

    def moved(self, small: nn.Module) -> float:
        """Largest difference of any output, relative to that output's spread; infinite where `small` does not run, or
        has outputs of another shape: `squeeze()` drops the axis of a single unit.
        """
        try:
            after = self._run(small)
        except Exception:  # noqa: BLE001  (any failure of the smaller network takes its folds back)
            return float("inf")
        if [a.shape for a in after] != [b.shape for b in self._outputs]:
            return float("inf")
        return moved(self._outputs, after)


def moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest difference between outputs (N, ...) relative to their spread over the samples (their size
    where they do not vary); not finite counts as infinite.
    """
    worst = 0.0
    for old, new in zip((b.detach() for b in before), (a.detach() for a in after), strict=True):
        spread = float((old - old.mean(0, keepdim=True)).square().mean().sqrt())
        gap = float((old - new).abs().max())
        scale = spread or float(old.abs().max())
        part = gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf"))
        worst = max(worst, part if part == part else float("inf"))
    return worst
