"""The whole story on one screen: model and data in; units, statistics, plan, small model, verdict and record out."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import nn

from compressor.candidates import timed
from compressor.clock import missed
from compressor.computed import copy_of, left_in_graphs
from compressor.judgement import finished, judge_candidates, judge_plain, nearness
from compressor.options import Options
from compressor.outcome import Outcome
from compressor.planning.search import LIMIT, search
from compressor.records import Finding, Plan
from compressor.sources.splits import Data
from compressor.stages import Report, first_inputs, on_cpu, opened_model, silent
from compressor.surgery.exact import exact_compress
from compressor.units.graph import UnitGraph
from compressor.units.modes import has_halves, unhalved, with_gradients
from compressor.units.program import copied
from compressor.units.sizes import size_of
from compressor.units.unjudged import moved_outputs
from compressor.verify import judge as judging
from compressor.verify.accuracy import outputs_of
from compressor.verify.scores import Score
from compressor.workbench import Answers, Start, explained, open_bench, prepare, some

OTHERS = 32
"""Judge samples by which outputs that are not judged are compared."""


@with_gradients()
def compress(
    model: nn.Module, data: Data, options: Options, report: Report = silent, answers: Answers | None = None,
    score: Score | None = None,
) -> Outcome:  # fmt: skip
    """Find what `model` does not need, fold it away, and judge what is left; `model` is not changed.

    With `answers` (of the file that `model` was rebuilt from) the verdict compares with those; with `score` by that.
    Raises CompressorErrors for a model or data that cannot be worked with; a verdict that failed is a result.
    """
    started = time.perf_counter()
    start = prepare(model, data, options, report, answers, score, judged=not options.exact)
    if options.exact:
        outcome = _exact(start)
    elif start.frozen:
        outcome = start.untouched("every group is frozen (see the coverage list)")
        judge_plain(outcome, start)
    else:
        outcome = _lossy(start)
    outcome.model = finished(copy_of(model) if outcome.model is model else outcome.model, model)
    if not options.exact and outcome.model is not model:
        outcome.warnings += _other_outputs(model, outcome.model, data)
    start.seconds["total"] = round(time.perf_counter() - started, 3)
    outcome.seconds = start.seconds
    return outcome


def _other_outputs(model: nn.Module, small: nn.Module, data: Data) -> list[str]:
    """A warning of outputs beside the judged one, and how far they moved: no verdict is about them."""
    before, after = on_cpu(model), on_cpu(small)
    if has_halves(model):
        before, after = unhalved(copied(before)), unhalved(copied(after))
    moved = moved_outputs(before, after, first_inputs(before, data.judge, OTHERS))
    told = ", ".join(f"'{name}' moved by {100 * value:.2g} %" for name, value in moved.items())
    what = "of its spread over inputs (root mean square); only the judged output has a verdict"
    return [f"Other outputs: {told} {what}."] if moved else []


@with_gradients()
def analyze(model: nn.Module, data: Data, options: Options, report: Report = silent) -> Outcome:
    """Units, statistics and findings only; nothing is cut and nothing judged."""
    start = prepare(model, data, options, report, judged=False)
    outcome = start.untouched() if start.frozen else explained(start)[1]
    return replace(outcome, mode="analyze", seconds=start.seconds)


def _lossy(start: Start) -> Outcome:
    """Build the size that was asked for, or those that the search tries, and judge them."""
    options = start.options
    measure = options.keep[0] if options.keep else "params"
    bench = open_bench(start, measure, LIMIT if options.keep is None else 1, options.keep and options.keep[1])
    if options.keep is not None:
        candidate, bench.outcome.latency = bench.made(options.keep[1])
        candidates = [candidate]
        bench.outcome.warnings += missed(bench.outcome.latency)
        bench.outcome.unaligned = bench.unaligned(options.keep[1])
    else:
        candidates = search(
            bench.builder,
            smallest=1.02 * bench.smallest,
            judge_samples=len(start.data.judge),
            max_drop=options.max_drop,
            confidence=options.confidence,
        )
    return judge_candidates(bench, candidates)


def _exact(start: Start) -> Outcome:
    """Remove what is certified, and compare the outputs themselves."""
    graph, data, report = start.graph, start.data, start.report
    given = copied(start.model) if left_in_graphs(start.model) else start.model
    model = opened_model(given, data.calibrate)
    samples = some(data.calibrate, 256)
    inputs, _ = samples.batch(torch.arange(len(samples)))
    with timed(start.seconds, "exact"):
        report("exact", 0.0)
        small, certified = exact_compress(
            model,
            graph,
            inputs,
            seed=start.options.seed,
            progress=lambda groups: report("exact", groups / len(graph.groups)),
        )
    outcome = replace(start.untouched(), model=small, mode="exact", plan=Plan(dict(certified.kept)))
    outcome.found = _complete(graph, [*certified.findings, *certified.silent_on_sample])
    outcome.size = size_of(start.work, graph, certified.kept)
    if not certified.kept:
        outcome.nothing_to_do = "no unit is certified as surplus: the network is lean"
        if certified.taken_back:
            outcome.nothing_to_do = "no unit that is certified as surplus can be folded without moving the outputs"
    if certified.taken_back:
        names = ", ".join(certified.taken_back)
        kind = str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch.")
        outcome.warnings.append(
            f"folding what is certified as surplus in {names} moved the outputs by more than the rounding of {kind} "
            "weights: these groups stay whole"
        )
    if certified.silent_on_sample:
        outcome.warnings.append(
            f"{len(certified.silent_on_sample)} units were silent on these samples only; they were not removed"
        )
    with timed(start.seconds, "verdict"):
        judge = data.judge if len(data.judge) else samples
        # copies: a network may count, or store, what it is shown
        before = outputs_of(start.answers or copied(model), judge)
        after = outputs_of(copied(small), judge, check=False)
        file = start.answers is not None and before.dtype.itemsize > 2
        outcome.verdict = judging.judge_outputs(before, after, judging.FILE_TOLERANCE if file else None)
        outcome.fidelity = nearness(before, after, start)
        outcome.judged_on = before
    return outcome


def _complete(graph: UnitGraph, found: list[Finding]) -> list[Finding]:
    """Findings for every unit of a live group: what nothing is certified of is needed."""
    every = [(g.name, unit) for g in graph.groups if g.frozen is None for unit in range(len(g.units))]
    left = set(every) - {(finding.group, finding.unit) for finding in found}
    return found + [Finding(name, unit, "needed", 0.0) for name, unit in every if (name, unit) in left]
