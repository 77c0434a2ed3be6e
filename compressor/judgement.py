"""Judging what was built: candidates in a fixed order, each as it will be delivered, on the judge split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from compressor.algebra.answers import hits
from compressor.candidates import Made, search_row, timed
from compressor.observe import Classes, from_first
from compressor.outcome import Outcome
from compressor.planning.search import Candidate
from compressor.records import Verdict
from compressor.stages import floating
from compressor.units.dense import given_form
from compressor.units.grouping import LAYERS
from compressor.units.modes import home_of
from compressor.verify import judge as judging
from compressor.verify.accuracy import Outputs, outputs_of
from compressor.verify.fidelity import fidelity
from compressor.verify.judge_data import before_work, chance_warning, repeats_warning, training_data_warning
from compressor.verify.near_copies import near_copies_warning
from compressor.workbench import Bench, Start


class Courtroom:
    """The judge split, opened once: the original's outputs on it, and those of every network that was asked for."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.original = outputs_of(start.answers or _as_given(start.before, start.model), start.data.judge)
        self._after: dict[int, Outputs] = {}

    def after(self, made: Made) -> Outputs:
        """Outputs of a candidate as it will be delivered."""
        if id(made) not in self._after:
            network = _as_given(made.model, self.start.model)
            self._after[id(made)] = outputs_of(network, self.start.data.judge, check=False)
        return self._after[id(made)]

    def verdict(self, made: Made) -> Verdict:
        """The paired comparison with the original."""
        after = self.after(made)
        return from_first(lambda: verdict_of(self.original, after, self.start))

    def sequence(self, candidates: Sequence[Candidate[Made]]) -> judging.Selection:
        """Judge candidates, which are ordered by falling share, to the first that does not pass."""

        def ask(made: Made) -> Callable[[], Verdict]:
            return lambda: self.verdict(made)

        entries = [judging.Candidate(f"{c.share:.4f}", c.share, ask(c.built)) for c in candidates]
        return judging.fixed_sequence(entries)


def judge_candidates(bench: Bench, candidates: Sequence[Candidate[Made]]) -> Outcome:
    """Certify all, fix their order, open the judge split, and judge from the largest to the smallest.

    The outcome is that of the smallest that passed, or of the largest where none did.
    """
    start, outcome, tried = bench.start, bench.outcome, bench.builder.tried
    certified(bench, candidates)
    outcome.search = [
        search_row(made, tuned, outcome.original_size, bench.before, start.score) for made, tuned in tried
    ]
    order = [made for made, _ in tried]
    ranked = sorted(candidates, key=lambda c: -c.share)
    court = opened(bench)
    with timed(start.seconds, "verdict"):
        selection = court.sequence(ranked)
    for candidate, verdict in zip(ranked, selection.verdicts, strict=False):
        outcome.search[order.index(candidate.built)]["judged"] = verdict.as_dict()
    chosen = ranked[selection.winner or 0].built
    outcome.search[order.index(chosen)]["selected"] = True
    take(outcome, chosen, court, selection.verdict)
    return outcome


def opened(bench: Bench) -> Courtroom:
    """Open the judge split, once the list of candidates stands; the outcome gets every warning about that split."""
    start, outcome = bench.start, bench.outcome
    _warn_before(outcome, start)
    _warn_of_copies(outcome, start)
    with timed(start.seconds, "verdict"):
        start.report("verdict", 0.0)
        court = Courtroom(start)
    if start.score is None:
        _warn_of_training(outcome, court.original, bench.before)
        _warn_of_features(outcome, court.original, start)
    elif court.original.labels is None:
        outcome.warnings.append("No labels: the score's targets are the original's own outputs.")
    return court


def certified(bench: Bench, candidates: Sequence[Candidate[Made]]) -> None:
    """Prove of every candidate that its units are those of its plan. Raises ModelError."""
    with timed(bench.start.seconds, "certify"):
        for candidate in candidates:
            bench.shop.certify(candidate.built.model, candidate.built.plan)


def take(outcome: Outcome, chosen: Made, court: Courtroom, verdict: Verdict) -> None:
    """Make `chosen` what the outcome is about."""
    outcome.model = chosen.model
    if not chosen.plan.kept and not court.start.turned:
        outcome.nothing_to_do = "every unit stays at the size that was asked for"
    outcome.plan, outcome.size, outcome.verdict = chosen.plan, chosen.size, verdict
    outcome.fidelity = nearness(court.original, court.after(chosen), court.start)
    outcome.judged_on, outcome.recovered = court.original, chosen.recovered
    if chosen.recovered is not None and not chosen.recovered["kept"]:
        outcome.warnings.append("Recovery lost on the tune split: the network is the one from before it.")
    if chosen.recovered is not None and chosen.recovered["stopped"] is not None:
        outcome.warnings.append(f"Recovery ended early: {chosen.recovered['stopped']}.")


def nearness(before: Outputs, after: Outputs, start: Start) -> dict[str, Any]:
    """How near outputs are to the original's, as the record has it: class by class only where no score judges them."""
    classes = isinstance(start.likelihood, Classes)
    return fidelity(before, after, before.labels, classes and start.score is None).as_dict(classes)


def judge_plain(outcome: Outcome, start: Start) -> None:
    """The verdict on the network as it is before anything is cut: the original, if it was not turned."""
    after = outputs_of(_as_given(start.work, start.model), start.data.judge, check=not start.turned)
    before = after
    if start.answers is not None or start.turned:
        before = outputs_of(start.answers or _as_given(start.before, start.model), start.data.judge)
    outcome.verdict = verdict_of(before, after, start)
    outcome.fidelity = nearness(before, after, start)
    outcome.judged_on = before


def _as_given(network: nn.Module, original: nn.Module) -> nn.Module:
    """What will be delivered: networks of half precision are worked on in float32 and judged in their own dtype."""
    half = floating(original).itemsize < 4
    return finished(copy.deepcopy(network), original, home_of(network)) if half else network


def finished(small: nn.Module, original: nn.Module, device: torch.device | None = None) -> nn.Module:
    """The result in the original's dtypes and grad flags, on its device, in eval mode; what kept its width in the
    original's class, and what networks count or store while they run as the original has it."""
    first = next(original.parameters())
    small = given_form(small.to(device or first.device), original)
    dtypes = {name: t.dtype for name, t in [*original.named_parameters(), *original.named_buffers()]}
    flags = {name: p.requires_grad for name, p in original.named_parameters()}
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, first.dtype))
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(flags.get(name, True))
        parameter.grad = None
    _reset_buffers(small, original)
    return small.eval()


def _reset_buffers(small: nn.Module, original: nn.Module) -> None:
    """Buffers that no cut touched, as they were: counters, caches, averages of what the network was shown. Those of
    norms and of layers hold what a plan folds into them."""
    given = dict(original.named_buffers())
    for path, module in small.named_modules():
        if not isinstance(module, (nn.modules.batchnorm._NormBase, *LAYERS)):
            for leaf, buffer in module.named_buffers(recurse=False):
                before = given.get(f"{path}.{leaf}".lstrip("."))
                if before is not None and before.shape == buffer.shape:
                    buffer.data.copy_(before)


def verdict_of(before: Outputs, after: Outputs, start: Start) -> Verdict:
    """By the score, else by the labels, else by agreement, as the options ask."""
    options = start.options
    if start.score is not None:
        return judging.judge(
            before, after, allowed=options.max_drop, confidence=options.confidence, metric=start.score,
            keys=start.data.judge.hashes,
        )  # fmt: skip
    metric = "agreement" if before.labels is None else "accuracy"
    return judging.judge(
        before, after, before.labels, allowed=options.max_drop, confidence=options.confidence, metric=metric,
        keys=start.data.judge.hashes,
    )  # fmt: skip


def _warn_before(outcome: Outcome, start: Start) -> None:
    """Warnings where the judge split is too small to pass anything, or smaller than it seems."""
    small = before_work(len(start.data.judge), start.options.confidence, start.options.max_drop)
    outcome.warnings += [warning for warning in (small, repeats_warning(start.data.judge)) if warning is not None]


def _warn_of_copies(outcome: Outcome, start: Start) -> None:
    """A warning where other splits hold what is nearly a judge sample; equal inputs were refused on loading."""
    data = start.data
    others = {"calibrate": data.calibrate, "tune": data.tune}
    with timed(start.seconds, "near_copies"):
        warning = near_copies_warning(data.judge, others if data.train is None else {**others, "train": data.train})
    if warning is not None:
        outcome.warnings.append(warning)


def _warn_of_features(outcome: Outcome, judged: Outputs, start: Start) -> None:
    """A warning where agreement is asked of answers whose units lie along the last of three dimensions: embeddings of
    tokens, or scores in another order than (n, classes, positions)."""
    shape = judged.logits.shape
    if judged.labels is not None or len(shape) != 3 or shape[1] == shape[2]:
        return
    if any(g.frozen == "model output" and len(g.units) == shape[2] for g in start.graph.groups):
        outcome.warnings.append(
            f"Agreement says little here: outputs are {tuple(shape[1:])} for a sample, with their units in the last "
            "dimension, and answers are compared along the first. Give a score (--metric, for embeddings "
            "compressor.verify.scores:cosine), or return class scores as 'logits' of a dict."
        )


def _warn_of_training(outcome: Outcome, judged: Outputs, tuned: Outputs) -> None:
    """A warning where there are no labels, or where the judge data looks like training data, or like none that the
    original can answer."""
    if judged.labels is None or tuned.labels is None:
        outcome.warnings.append("No labels: the verdict is on agreement with the original.")
        return
    shares = [100.0 * float(hits(o.logits, o.labels).double().mean()) for o in (judged, tuned) if o.labels is not None]
    single = judged.labels.ndim == 1  # of answers at many positions most are often of one class
    found = [
        training_data_warning(shares[0], len(judged.logits), shares[1], len(tuned.logits)),
        chance_warning(shares[0], judged.labels.cpu().numpy()) if single else None,
    ]
    outcome.warnings += [warning for warning in found if warning is not None]
