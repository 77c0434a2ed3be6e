"""What stands ready before anything is built: units, findings, paths, allocator and builder, each made once.

One candidate, a search and a whole frontier are built on the same bench.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from compressor.candidates import Builder, Made, Recoverer, timed
from compressor.clock import Clock
from compressor.errors import DataError, ModelError
from compressor.export.block import measured_block
from compressor.findings.ablation import confirm_removable
from compressor.findings.removable import predicted_losses
from compressor.findings.summary import findings
from compressor.findings.thresholds import Thresholds
from compressor.findings.together import measured_limit
from compressor.observe import CLASSES, Classes, Likelihood, from_first, likelihood_of, room_for_weights
from compressor.options import Options
from compressor.outcome import Outcome, untouched
from compressor.planning.allocation import Allocator
from compressor.planning.paths import Path
from compressor.planning.search import Candidate
from compressor.planning.timing import LATENCY
from compressor.rotation import Rotation, rotate
from compressor.sources.models import refuse_infinite_weights
from compressor.sources.refused import refuse_form
from compressor.sources.samples import Samples, joined
from compressor.sources.splits import Data, refuse_labels
from compressor.stages import (
    Report,
    Workshop,
    find_units,
    first_inputs,
    in_bases,
    on_cpu,
    opened_model,
    pick_device,
    silent,
    working_copy,
)
from compressor.units.check import frozen
from compressor.units.graph import UnitGraph
from compressor.units.grouping import UNREACHED
from compressor.units.sizes import size_of
from compressor.units.unjudged import only_unjudged
from compressor.verify.accuracy import Outputs, fitting_labels, outputs_of
from compressor.verify.fidelity import fidelity
from compressor.verify.judge_data import refuse_overlap
from compressor.verify.repeatable import batch_warning, refuse_chance
from compressor.verify.scores import Score

Answers = Callable[[Any], Any]
NETWORKS = 2
"""Networks whose weights are on the device at a time: the original and a candidate, besides what turned ones follow."""
REBUILT = 1e-3
"""Largest difference of a rebuilt network from its file, relative to the outputs' spread."""


@dataclass(frozen=True)
class Start:
    """A model that was checked against its data, and its units: where every kind of run begins."""

    model: nn.Module
    """As it was given; nothing is done to it."""
    work: nn.Module
    """The copy that is worked with, on the device."""
    graph: UnitGraph
    data: Data
    options: Options
    report: Report = silent
    seconds: dict[str, float] = field(default_factory=dict)
    answers: Answers | None = None
    """What the judge compares with, where it is not `model`: the ONNX file that was given."""
    score: Score | None = None
    """What answers are judged by, where it is not accuracy or agreement."""
    likelihood: Likelihood = CLASSES
    """How answers are read: as scores of classes, or as numbers."""
    rotation: Rotation | None = None
    """What was done to `work` before its units were found, where that was asked for."""
    warnings: list[str] = field(default_factory=list)
    """About the network, whatever is made of it."""
    room: float = math.inf
    """Bytes of weights of one network that may be on the device; the others are fetched from the host's memory."""

    @property
    def frozen(self) -> bool:
        """True if no unit may go."""
        return all(group.frozen is not None for group in self.graph.groups)

    @property
    def turned(self) -> bool:
        """True if `work` is not the original any more."""
        return self.rotation is not None and self.rotation.reference is not None

    @property
    def before(self) -> nn.Module:
        """What the network is compared with: `work` as it was before anything was turned."""
        return self.work if self.rotation is None else self.rotation.before

    def untouched(self, why: str | None = None) -> Outcome:
        """The outcome in which no unit goes: the model as it is, or as it was turned."""
        if self.rotation is None:
            made = untouched(self.model, self.work, self.graph, why)
            made.warnings += self.warnings
            return made
        made = untouched(self.work if self.turned else self.model, self.work, self.graph, None if self.turned else why)
        made.original_size, made.rotation = dict(self.rotation.size), self.rotation.told
        made.warnings += self.warnings
        refused = "; ".join(f"`{name}`: {reason}" for name, reason in self.rotation.told["refused"].items())
        if not self.turned:
            made.warnings.append(f"Nothing was turned (--rotate): {refused or 'no stream that norms read'}.")
        return made


def prepare(
    model: nn.Module, data: Data, options: Options, report: Report = silent, answers: Answers | None = None,
    score: Score | None = None, judged: bool = True,
) -> Start:  # fmt: skip
    """Check model and data before any work, and find the units; with `judged` a verdict shall follow.

    Raises CompressorErrors for a model or data that cannot be worked with.
    """
    seconds: dict[str, float] = {}
    refuse_form(model)
    refuse_infinite_weights(model, "model")
    device = pick_device(options.device)
    room = room_for_weights(device, options.memory, NETWORKS if options.rotate is None else NETWORKS + 1)
    work = working_copy(model, device, room)
    with timed(seconds, "check"):
        report("check", 0.0)
        first = some(data.calibrate, 64)
        probe = outputs_of(work, first)
        refuse_chance(work, first, probe)
        doubt = batch_warning(work, first, probe)
        warnings = [] if doubt is None else [doubt]
        if answers is not None:
            _refuse_other_answers(probe, outputs_of(answers, first))
        likelihood = from_first(lambda: likelihood_of(probe.logits, data.calibrate.labels, score is not None))
        for part in (data.calibrate, data.tune, data.judge):
            if score is None:
                _refuse_targets(part, probe, judged)
        extra = {} if data.unlabelled is None else {"unlabelled": data.unlabelled}
        refuse_overlap(data.judge, {"calibrate": data.calibrate, "tune": data.tune, **extra})
    with timed(seconds, "units"):
        report("units", 0.0)
        work = opened_model(work, data.calibrate, room)
        graph = find_units(work, data.calibrate, options.seed)
        if not options.exact:  # what is certified holds for every output
            graph = frozen(graph, only_unjudged(on_cpu(work), graph, first_inputs(work, data.calibrate)))
    warnings += _unreached(graph)
    if graph.layers == 0:
        raise ModelError("model", "no convolution or linear layer", "layers that have units", "check the factory.")
    if options.rotate is None:
        about = (options, report, seconds, answers, score, likelihood, None, warnings, room)
        return Start(model, work, graph, data, *about)
    with timed(seconds, "rotate"):
        block = lambda: measured_block(seed=options.seed).block if options.align == "auto" else options.align  # noqa: E731
        made = rotate(
            work, graph, data.calibrate, options.rotate, block, options.seed, likelihood, report, options.memory, room
        )
    about = (options, report, seconds, answers, score, likelihood, made, warnings, room)
    return Start(model, made.model, made.graph, data, *about)


def _unreached(graph: UnitGraph) -> list[str]:
    """A warning of layers that only training uses: nothing tells which units they read."""
    names = [name for name, why in graph.uncovered.items() if why == UNREACHED]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"`{names[0]}`{more}: not reached in eval mode, so left as they are. Where training mode uses them, they may "
        "no longer fit what they read; leave them out (auxiliary heads: `aux_logits=False`) before training on."
    ]


def _refuse_targets(part: Samples, probe: Outputs, judged: bool) -> None:
    """DataError for labels that accuracy cannot be told by: numbers where a verdict shall follow, and other classes."""
    if part.labels is None:
        return
    if part.labels.is_floating_point():
        if judged:
            raise DataError(
                part.name, f"labels that are numbers ({str(part.labels.dtype).removeprefix('torch.')}), and no score",
                "class numbers (int64), or what answers are judged by",
                "--metric file.py:function, higher is better (`1 - error / limit` for a regression); where they are "
                "class numbers, give them as whole numbers (`labels.long()`).",
            )  # fmt: skip
        return
    if probe.logits.dim() == 2 and probe.logits.shape[1] > 1:
        refuse_labels(part, probe.logits.shape[1])
    if judged:
        fitting_labels(part.labels, (len(part), *probe.logits.shape[1:]), f"{part.name}, labels")


def _refuse_other_answers(rebuilt: Outputs, given: Outputs) -> None:
    """ModelError where the network rebuilt from a file does not answer as the file, on the calibration data."""
    found = fidelity(given, rebuilt)
    if found.not_finite or found.max_relative_change > REBUILT:
        raise ModelError(
            "the network rebuilt from the given file", f"outputs that differ by {found.max_relative_change:.2g} of "
            "their spread on the calibration data", f"at most {REBUILT:g}", "report this file; nothing was compressed.",
        )  # fmt: skip


def some(samples: Samples, count: int) -> Samples:
    """The first `count` samples."""
    return samples.take(range(min(count, len(samples))), name=samples.name)


def explained(start: Start) -> tuple[Workshop, Outcome]:
    """Statistics of all taps; findings per unit, and a sample of them confirmed by real ablation."""
    options, data, thresholds = start.options, start.data, Thresholds()
    reference = None if start.rotation is None else start.rotation.reference
    limits = (options.memory, reference)
    shop = Workshop.open(start.work, start.graph, data.calibrate, options.seed, start.likelihood, *limits)
    outcome = start.untouched()
    outcome.memory = shop.used
    with timed(start.seconds, "observe"):
        shop.measure(start.report)
    doubt = shop.doubt()
    outcome.warnings += [] if doubt is None else [doubt]
    with timed(start.seconds, "findings"):
        start.report("findings", 0.0)
        predicted, samples = predicted_losses(shop.model, shop.graph, shop.statistics), some(data.tune, 512)
        below = measured_limit(
            shop.model, shop.graph, predicted, samples, thresholds.removable, likelihood=start.likelihood
        )
        outcome.found = findings(shop.model, shop.graph, shop.statistics, thresholds, below=below)
        outcome.thresholds = {**asdict(thresholds), "removable_below": below}
        agreement = confirm_removable(
            shop.model,
            shop.graph,
            outcome.found,
            samples,
            predicted / start.likelihood.positions,  # what is measured is per position
            seed=options.seed,
            below=thresholds.removable,
            likelihood=start.likelihood,
        )
        outcome.ablation = agreement.as_dict()
    return shop, outcome


@dataclass
class Bench:
    """Everything from which candidates of any size are built; `outcome` has the findings and the alignment."""

    start: Start
    shop: Workshop
    outcome: Outcome
    measure: str
    paths: list[Path]
    allocator: Allocator
    before: Outputs
    """The original on the tune split."""
    builder: Builder
    clock: Clock | None = None
    """Measures; only where latency is what counts."""

    def made(self, asked: float) -> tuple[Candidate[Made], dict[str, Any] | None]:
        """The candidate that keeps `asked` of the measure; where that is latency, by the clock, with what it said."""
        share, said = asked, None
        if self.clock is not None:
            with timed(self.start.seconds, "timing"):
                self.start.report("timing", 0.0)
                share, said = from_first(partial(self.clock.corrected, self.allocator, asked))
        built, tuned = self.builder(share)
        return Candidate(asked, built, tuned, 0.0), said

    def unaligned(self, asked: float) -> dict[str, int] | None:
        """The size that keeps `asked` of the measure where widths may be any number; None where the clock decides."""
        if self.clock is not None:
            return None
        plan = replace(self.allocator, block=1).plan(self.measure, asked)
        return size_of(self.start.work, self.start.graph, plan.kept)

    @property
    def smallest(self) -> float:
        """The least share of the measure that can be built."""
        return self.allocator.smallest(self.measure) / self.allocator.whole(self.measure)


def open_bench(start: Start, measure: str, candidates: int, least: float | None = None) -> Bench:
    """Statistics, findings, paths and alignment, for so many candidates whose size is told by `measure`; the smallest
    of them shall keep `least` of it, where that is known."""
    if not start.turned:  # else that was done before
        with timed(start.seconds, "bases"):
            options = start.options
            given = (start.graph, start.data.calibrate, options.seed, start.likelihood, options.memory, start.room)
            start = replace(start, work=in_bases(start.work, *given))
    shop, outcome = explained(start)
    clock = None
    if measure == LATENCY:
        with timed(start.seconds, "table"):
            told = lambda done: start.report("table", done)  # noqa: E731
            clock = Clock.wind(
                start.work, start.graph, start.data.calibrate, start.options.seed, told, start.options.timed,
                start.options.latency_table,
            )  # fmt: skip
        shop.sizes = clock.sizes
    with timed(start.seconds, "paths"):
        paths = shop.paths(measure, start.report)
    with timed(start.seconds, "align"):
        block, outcome.align = _block(start.options, clock)
    original = start.rotation.size if start.rotation is not None and start.turned else {}
    allocator = Allocator(start.graph, paths, shop.sizes, block, original)
    if start.options.align == "auto":
        allocator = _reaching(allocator, measure, least)
        if allocator.block < block:
            why = f"nothing as small as asked can be had in blocks of {block}, which save time here"
            outcome.align |= {"block": allocator.block, "why": why}
    tune = start.data.tune
    before = outputs_of(start.before, tune)
    recoverer = _recoverer(start, shop, candidates)
    builder = Builder(shop, allocator, measure, tune, before, start.seconds, start.report, recoverer, start.score)
    return Bench(start, shop, outcome, measure, paths, allocator, before, builder, clock)


def _reaching(allocator: Allocator, measure: str, least: float | None) -> Allocator:
    """With the largest block, of this one and its halves, in which a share of `least` can be had (any cut, if not
    said). Where it cannot, without blocks: what is refused then names the least there is; as it is, if not said."""
    whole, found = allocator.whole(measure), allocator
    while found.smallest(measure) > whole * (1 - 1e-9 if least is None else least):
        if found.block <= 1:
            return allocator if least is None else found
        found = replace(found, block=found.block // 2)
    return found


def _recoverer(start: Start, shop: Workshop, candidates: int) -> Recoverer | None:
    data, options = start.data, start.options
    if options.recover is None:
        return None
    parts = [data.calibrate] if data.unlabelled is None else [data.calibrate, data.unlabelled]
    return Recoverer(
        options.recover,
        start.before,
        joined(parts),
        data.tune,
        seed=options.seed,
        parts=candidates,
        classes=isinstance(shop.likelihood, Classes),
    )


def _block(options: Options, clock: Clock | None) -> tuple[int, dict[str, Any]]:
    if options.align != "auto":
        return options.align, {"block": options.align, "why": "as given (--align)"}
    if clock is not None and clock.given is not None:
        return clock.table.block, {"block": clock.table.block, "why": "that of the given latency table"}
    block = (clock.block if clock else None) or from_first(lambda: measured_block(seed=options.seed))  # timings differ
    why = "measured in onnxruntime on this machine" if block.block > 1 else "measured: no block saves time here"
    return block.block, {"block": block.block, "why": why, "measured": block.as_dict()}
