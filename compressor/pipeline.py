"""The whole story on one screen: model and data in; units, statistics, plan, small model, verdict and record out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from compressor.candidates import Builder, Made, search_row, size_of, timed
from compressor.errors import ModelError
from compressor.export.block import measured_block
from compressor.findings.ablation import confirm_removable
from compressor.findings.removable import predicted_losses
from compressor.findings.summary import findings, summarise
from compressor.findings.thresholds import Thresholds
from compressor.findings.together import measured_limit
from compressor.options import Options
from compressor.planning.allocation import Allocator
from compressor.planning.search import Candidate, Tuned, search
from compressor.records import Finding, Plan, Verdict
from compressor.sources.models import refuse_infinite_weights
from compressor.sources.samples import Samples
from compressor.sources.splits import Data, refuse_labels
from compressor.stages import Report, Workshop, find_units, floating, pick_device, silent, working_copy
from compressor.surgery.exact import exact_compress
from compressor.units.graph import UnitGraph
from compressor.verify import judge as judging
from compressor.verify.accuracy import Outputs, hits, outputs_of
from compressor.verify.fidelity import fidelity
from compressor.verify.judge_data import before_work, refuse_overlap, training_data_warning


@dataclass
class Outcome:
    """What a run found and made, before it is written: everything the record is assembled from."""

    model: nn.Module
    graph: UnitGraph
    original_size: dict[str, int]
    size: dict[str, int]
    mode: str
    plan: Plan
    found: list[Finding] = field(default_factory=list)
    thresholds: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    fidelity: dict[str, Any] | None = None
    ablation: dict[str, Any] | None = None
    nothing_to_do: str | None = None
    unaligned: dict[str, int] | None = None
    align: dict[str, Any] = field(default_factory=lambda: {"block": 1, "why": "not aligned"})
    search: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    predicted: dict[str, float] = field(default_factory=dict)
    judged_on: Outputs | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """Counts of the findings, whole and per group."""
        return summarise(self.graph, self.found)


def compress(model: nn.Module, data: Data, options: Options, report: Report = silent) -> Outcome:
    """Find what `model` does not need, fold it away, and judge what is left; `model` is not changed.

    Raises CompressorErrors for a model or data that cannot be worked with; a verdict that failed is a result.
    """
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    work, graph = prepare(model, data, options, seconds, report)
    if options.exact:
        outcome = _exact(model, work, graph, data, options, seconds, report)
    elif all(group.frozen is not None for group in graph.groups):
        outcome = _nothing(model, work, graph, "every group is frozen (see the coverage list)")
        _judge_plain(outcome, work, data, options)
    else:
        outcome = _lossy(model, work, graph, data, options, seconds, report)
    outcome.model = _finished(copy.deepcopy(model) if outcome.model is model else outcome.model, model)
    seconds["total"] = round(time.perf_counter() - started, 3)
    outcome.seconds = seconds
    return outcome


def analyze(model: nn.Module, data: Data, options: Options, report: Report = silent) -> Outcome:
    """Units, statistics and findings only; nothing is cut and nothing judged."""
    seconds: dict[str, float] = {}
    work, graph = prepare(model, data, options, seconds, report)
    outcome = replace(_nothing(model, work, graph, None), mode="analyze", seconds=seconds)
    if any(group.frozen is None for group in graph.groups):
        shop = _measured(work, graph, data, options, seconds, report)
        _explain(outcome, shop, data, options, seconds, report)
    return outcome


def prepare(
    model: nn.Module, data: Data, options: Options, seconds: dict[str, float], report: Report
) -> tuple[nn.Module, UnitGraph]:
    """Check model and data before any work, and find the units."""
    refuse_infinite_weights(model, "model")
    work = working_copy(model, pick_device(options.device))
    with timed(seconds, "check"):
        report("check", 0.0)
        probe = outputs_of(work, _some(data.calibrate, 64))
        for part in (data.calibrate, data.tune, data.judge):
            if part.labels is not None and probe.logits.dim() == 2 and probe.logits.shape[1] > 1:
                refuse_labels(part, probe.logits.shape[1])
        refuse_overlap(data.judge, {"calibrate": data.calibrate, "tune": data.tune})
    with timed(seconds, "units"):
        report("units", 0.0)
        graph = find_units(work, data.calibrate, options.seed)
    if graph.layers == 0:
        raise ModelError("model", "no convolution or linear layer", "layers that have units", "check the factory.")
    return work, graph


def _some(samples: Samples, count: int) -> Samples:
    return samples.take(range(min(count, len(samples))), name=samples.name)


def _nothing(model: nn.Module, work: nn.Module, graph: UnitGraph, why: str | None) -> Outcome:
    size = size_of(work, graph, {})
    return Outcome(model, graph, size, dict(size), "lossy", Plan({}), nothing_to_do=why)


def _measured(
    work: nn.Module, graph: UnitGraph, data: Data, options: Options, seconds: dict[str, float], report: Report
) -> Workshop:
    shop = Workshop.open(work, graph, data.calibrate, options.seed)
    with timed(seconds, "observe"):
        shop.measure(report)
    return shop


def _explain(
    outcome: Outcome, shop: Workshop, data: Data, options: Options, seconds: dict[str, float], report: Report
) -> None:
    """Findings per unit, and a sample of them confirmed by real ablation."""
    thresholds = Thresholds()
    with timed(seconds, "findings"):
        report("findings", 0.0)
        predicted, samples = predicted_losses(shop.model, shop.graph, shop.statistics), _some(data.tune, 512)
        below = measured_limit(shop.model, shop.graph, predicted, samples, thresholds.removable)
        outcome.found = findings(shop.model, shop.graph, shop.statistics, thresholds, below=below)
        outcome.thresholds = {**asdict(thresholds), "removable_below": below}
        agreement = confirm_removable(
            shop.model, shop.graph, outcome.found, samples, predicted, seed=options.seed, below=thresholds.removable
        )
        outcome.ablation = agreement.as_dict()


def _exact(
    model: nn.Module, work: nn.Module, graph: UnitGraph, data: Data, options: Options,
    seconds: dict[str, float], report: Report,
) -> Outcome:  # fmt: skip
    """Remove what is certified, and compare the outputs themselves."""
    samples = _some(data.calibrate, 256)
    inputs, _ = samples.batch(torch.arange(len(samples)))
    with timed(seconds, "exact"):
        report("exact", 0.0)
        small, certified = exact_compress(
            model, graph, inputs, seed=options.seed, progress=lambda groups: report("exact", groups / len(graph.groups))
        )
    outcome = replace(_nothing(model, work, graph, None), model=small, mode="exact", plan=Plan(dict(certified.kept)))
    outcome.found = _complete(graph, [*certified.findings, *certified.silent_on_sample])
    outcome.size = size_of(work, graph, certified.kept)
    if not certified.kept:
        outcome.nothing_to_do = "no unit is certified as surplus: the network is lean"
    if certified.silent_on_sample:
        outcome.warnings.append(
            f"{len(certified.silent_on_sample)} units were silent on these samples only; they were not removed"
        )
    with timed(seconds, "verdict"):
        judge = data.judge if len(data.judge) else samples
        before, after = outputs_of(model, judge), outputs_of(small, judge, check=False)
        outcome.verdict = judging.judge_outputs(before, after)
        outcome.fidelity = fidelity(before, after, before.labels).as_dict()
        outcome.judged_on = before
    return outcome


def _complete(graph: UnitGraph, found: list[Finding]) -> list[Finding]:
    """Findings for every unit of a live group: what nothing is certified of is needed."""
    every = [(g.name, unit) for g in graph.groups if g.frozen is None for unit in range(len(g.units))]
    left = set(every) - {(finding.group, finding.unit) for finding in found}
    return found + [Finding(name, unit, "needed", 0.0) for name, unit in every if (name, unit) in left]


def _lossy(
    model: nn.Module, work: nn.Module, graph: UnitGraph, data: Data, options: Options,
    seconds: dict[str, float], report: Report,
) -> Outcome:  # fmt: skip
    shop = _measured(work, graph, data, options, seconds, report)
    outcome = _nothing(model, work, graph, None)
    _explain(outcome, shop, data, options, seconds, report)
    measure = options.keep[0] if options.keep else "params"
    with timed(seconds, "paths"):
        paths = shop.paths(measure, report)
    with timed(seconds, "align"):
        block, outcome.align = _block(options)
    allocator = Allocator(graph, paths, shop.sizes, block)
    before = outputs_of(work, data.tune)
    builder = Builder(shop, allocator, measure, data.tune, before, seconds, report)
    if options.keep is not None:
        share = options.keep[1]
        made, tuned = builder(share)
        candidates = [Candidate(share, made, tuned, 0.0)]
        outcome.unaligned = size_of(work, graph, Allocator(graph, paths, shop.sizes).plan(measure, share).kept)
    else:
        whole = shop.sizes.total(measure, allocator.full())
        candidates = search(
            builder,
            smallest=1.02 * allocator.smallest(measure) / whole,
            judge_samples=len(data.judge),
            max_drop=options.max_drop,
            confidence=options.confidence,
        )
    with timed(seconds, "certify"):
        for candidate in candidates:
            shop.certify(candidate.built.model, candidate.built.plan)
    _judge(outcome, work, candidates, builder.tried, before, data, options, report)
    return outcome


def _block(options: Options) -> tuple[int, dict[str, Any]]:
    if options.align != "auto":
        return options.align, {"block": options.align, "why": "as given (--align)"}
    block = measured_block(seed=options.seed)
    why = "measured in onnxruntime on this machine" if block.block > 1 else "measured: no block saves time here"
    return block.block, {"block": block.block, "why": why, "measured": block.as_dict()}


def _judge(
    outcome: Outcome, work: nn.Module, candidates: list[Candidate[Made]], tried: list[tuple[Made, Tuned]],
    before: Outputs, data: Data, options: Options, report: Report,
) -> None:  # fmt: skip
    """Fix the list of candidates, open the judge split, judge from the largest to the smallest."""
    _warn_before(outcome, data, options)
    outcome.search = [search_row(made, tuned, outcome.original_size, before) for made, tuned in tried]
    order = [made for made, _ in tried]
    with timed(outcome.seconds, "verdict"):
        report("verdict", 0.0)
        judged = outputs_of(_as_given(work, outcome.model), data.judge)
        _warn_of_training(outcome, judged, before)
        after: dict[int, Outputs] = {}

        def ask(made: Made) -> Callable[[], Verdict]:
            def answer() -> Verdict:
                after[id(made)] = outputs_of(_as_given(made.model, outcome.model), data.judge, check=False)
                return _verdict(judged, after[id(made)], options)

            return answer

        entries = [judging.Candidate(f"{c.share:.4f}", c.built.size["params"], ask(c.built)) for c in candidates]
        selection = judging.fixed_sequence(sorted(entries, key=lambda entry: -entry.size))
    ranked = sorted(candidates, key=lambda c: -c.built.size["params"])
    for candidate, verdict in zip(ranked, selection.verdicts, strict=False):
        outcome.search[order.index(candidate.built)]["judged"] = verdict.as_dict()
    chosen = ranked[selection.winner or 0].built
    outcome.search[order.index(chosen)]["selected"] = True
    outcome.model = chosen.model
    if not chosen.plan.kept:
        outcome.nothing_to_do = "every unit stays at the size that was asked for"
    outcome.plan, outcome.size, outcome.verdict = chosen.plan, chosen.size, selection.verdict
    outcome.fidelity = fidelity(judged, after[id(chosen)], judged.labels).as_dict()
    outcome.judged_on = judged


def _as_given(network: nn.Module, original: nn.Module) -> nn.Module:
    """What will be delivered: networks of half precision are worked on in float32 and judged in their own dtype."""
    half = floating(original).itemsize < 4
    return _finished(copy.deepcopy(network), original, next(network.parameters()).device) if half else network


def _finished(small: nn.Module, original: nn.Module, device: torch.device | None = None) -> nn.Module:
    """The result in the original's dtypes and grad flags, on its device, in eval mode."""
    first = next(original.parameters())
    small = small.to(device or first.device)
    dtypes = {name: t.dtype for name, t in [*original.named_parameters(), *original.named_buffers()]}
    flags = {name: p.requires_grad for name, p in original.named_parameters()}
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, first.dtype))
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(flags.get(name, True))
        parameter.grad = None
    return small.eval()


def _verdict(before: Outputs, after: Outputs, options: Options) -> Verdict:
    metric = "agreement" if before.labels is None else "accuracy"
    return judging.judge(
        before, after, before.labels, allowed=options.max_drop, confidence=options.confidence, metric=metric
    )


def _judge_plain(outcome: Outcome, work: nn.Module, data: Data, options: Options) -> None:
    """The verdict on a network that is the original."""
    before = outputs_of(work, data.judge)
    outcome.verdict = _verdict(before, before, options)
    outcome.fidelity = fidelity(before, before, before.labels).as_dict()
    outcome.judged_on = before


def _warn_before(outcome: Outcome, data: Data, options: Options) -> None:
    warning = before_work(len(data.judge), options.confidence, options.max_drop)
    if warning is not None:
        outcome.warnings.append(warning)


def _warn_of_training(outcome: Outcome, judged: Outputs, tuned: Outputs) -> None:
    if judged.labels is None or tuned.labels is None:
        outcome.warnings.append("No labels: the verdict is on agreement with the original.")
        return
    shares = [100.0 * float(hits(o.logits, o.labels).double().mean()) for o in (judged, tuned) if o.labels is not None]
    warning = training_data_warning(shares[0], len(judged.logits), shares[1], len(tuned.logits))
    if warning is not None:
        outcome.warnings.append(warning)
