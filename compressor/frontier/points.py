"""The points of a frontier: built from one bench, judged from the largest to the smallest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from compressor.candidates import Made, search_row, timed
from compressor.clock import missed
from compressor.errors import ModelError, UsageError
from compressor.judgement import certified, finished, opened, take
from compressor.options import Options, Sizes
from compressor.outcome import Outcome
from compressor.planning.search import Candidate
from compressor.sources.splits import Data
from compressor.stages import Report, silent
from compressor.units.modes import with_gradients
from compressor.verify.scores import Score
from compressor.workbench import Bench, open_bench, prepare


@dataclass(frozen=True)
class Point:
    """One network of the frontier; its outcome has the network, its plan and its verdict."""

    asked: float
    outcome: Outcome
    covered: bool
    """True if the fixed sequence reached it. The verdicts of the others are measured, but promise nothing."""


@dataclass(frozen=True)
class Frontier:
    """All points, from the largest to the smallest, and what the run took."""

    measure: str
    points: tuple[Point, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)


@with_gradients()
def trace(
    model: nn.Module, data: Data, options: Options, sizes: Sizes, report: Report = silent,
    answers: Callable[[Any], Any] | None = None, score: Score | None = None,
) -> Frontier:  # fmt: skip
    """Build and judge a network of every size; model and data are checked, observed and planned for once.

    Raises UsageError for a size that cannot be built and for options that fix one (`keep`, `exact`) or do not go
    together, ModelError where every unit is frozen.
    """
    if options.exact or options.keep is not None:
        given = "--exact" if options.exact else "--keep"
        raise UsageError("frontier", given, "sizes of its own", "use --sizes, --points and --measure.")
    if options.rotate is not None and sizes.measure == "latency":
        raise UsageError("frontier", "--rotate with --measure latency", "params or macs", "use --measure macs.")
    started = time.perf_counter()
    start = prepare(model, data, options, report, answers, score)
    if start.frozen:
        raise ModelError("model", "every group is frozen", "units that may go", "see `compressor inspect`.")
    least = min(sizes.shares) if sizes.shares else None
    bench = open_bench(start, sizes.measure, len(sizes.shares or range(sizes.points)), least)
    candidates, said = _built(bench, sizes)
    certified(bench, candidates)
    outcomes = _judged(bench, candidates, said)
    for point in outcomes:
        point.outcome.model = finished(point.outcome.model, model)
        point.outcome.seconds = start.seconds
    start.seconds["total"] = round(time.perf_counter() - started, 3)
    return Frontier(sizes.measure, outcomes, (*bench.outcome.warnings, *_undone(sizes, outcomes)), start.seconds)


def _undone(sizes: Sizes, points: Sequence[Point]) -> list[str]:
    """Which points are the networks from before their recovery."""
    lost = [f"{p.asked:g}" for p in points if p.outcome.recovered is not None and not p.outcome.recovered["kept"]]
    said = "recovery lost on the tune split, so that the networks are those from before it."
    return [f"{', '.join(lost)} of the {sizes.measure}: {said}"] if lost else []


def _built(bench: Bench, sizes: Sizes) -> tuple[list[Candidate[Made]], list[dict[str, Any] | None]]:
    """Candidates from the largest to the smallest, each network once, and what the clock said of each.

    A size that was asked for and has no network of its own is a warning.
    """
    shares = sizes.spread(bench.smallest)
    if shares[-1] < bench.smallest:  # before anything is built: tell what can be had
        try:
            bench.allocator.plan(bench.measure, shares[-1])
        except UsageError as error:  # no frontier has a --keep
            asked = f"--sizes {shares[-1]:g} --measure {bench.measure}"
            raise UsageError(asked, error.got, error.expected, error.next_step) from None
    found, said = [], []
    for share in shares:
        candidate, timing = bench.made(share)
        same = [other.share for other in found if candidate.built is other.built]
        if not same:
            found.append(candidate)
            said.append(timing)
        elif sizes.shares is not None:
            said_so = f"has no network of its own: the one made for {same[0]:g} is that small."
            bench.outcome.warnings.append(f"{share:g} of the {sizes.measure} {said_so}")
    return found, said


def _judged(
    bench: Bench, candidates: Sequence[Candidate[Made]], said: Sequence[dict[str, Any] | None]
) -> tuple[Point, ...]:
    """One outcome for each candidate; the judge split is opened once the list of them stands."""
    start, base = bench.start, bench.outcome
    tuned = {id(made): row for made, row in bench.builder.tried}
    size, score = base.original_size, start.score
    rows = [search_row(c.built, tuned[id(c.built)], size, bench.before, score) for c in candidates]
    court = opened(bench)
    with timed(start.seconds, "verdict"):
        reached = court.sequence(candidates).verdicts
        passed = [replace(v, details={**v.details, "selected": True}) if v.value == "passed" else v for v in reached]
        verdicts = [*passed, *(court.verdict(c.built) for c in candidates[len(reached) :])]
    points = []
    for place, (candidate, verdict, timing) in enumerate(zip(candidates, verdicts, said, strict=True)):
        covered = place < len(reached)
        mine = {**rows[place], "judged": verdict.as_dict() if covered else None, "selected": True}
        warnings = [*base.warnings, *missed(timing)]
        free = bench.unaligned(candidate.share)
        outcome = replace(base, search=[mine], latency=timing, unaligned=free, warnings=warnings)
        take(outcome, candidate.built, court, verdict)
        if not covered:
            outcome.warnings.append(UNCOVERED)
        points.append(Point(candidate.share, outcome, covered))
    return tuple(points)


UNCOVERED = (
    "A larger network of this frontier did not pass, which ended the sequence of tests: this network's verdict is what "
    "was measured, and not covered by the guarantee."
)
