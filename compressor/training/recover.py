"""Recovery: the small network learns the original's outputs again, on inputs without labels.

Distillation (Hinton, Vinyals & Dean 2015); half of the inputs are mixed with others, images also cut and moved (see
`augment`): the original answers for any input, so that few images give many. Short pilots choose the learning rate. The
weights that are nearest to the original on the tune split come back, the ones given included: recovery never makes that
worse.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.observe.processes import in_step
from compressor.sources.samples import Batch, Samples, batches
from compressor.training.budget import Budget
from compressor.training.loop import (
    CHECKS,
    Criterion,
    DivergedError,
    Progress,
    TrainingReport,
    TrainOptions,
    precision,
    put_channels_last,
    steps_per_epoch,
    train,
)
from compressor.training.together import Team, numbers_of
from compressor.units.fetched import place, room_of
from compressor.units.modes import evaluating, floating, home_of, in_precision
from compressor.units.outputs import judged_part
from compressor.units.program import forward

TEMPERATURE = 2.0
OPTIONS = TrainOptions(batch=64, lr=6e-4, optimizer="muon", weight_decay=0.01, bf16=True, mix=True, frozen_modes=True)
"""Chosen by the tune split of Fashion-MNIST networks (mlp at 6 %, vgg at 14 %, resnet at 20 % of the parameters)."""
PILOTS = 4
"""The most pilots that look for the rate: a network that lost much needs a high one, one that lost little a low."""
FACTOR, LOWEST = 3.0, -2
"""How far the rates of two pilots are apart, and how many times that below the first the lowest may be: pilots flatter
low rates where little was lost, as all they see of a higher one is its noise."""
ENOUGH = 0.5
"""A rate that leaves this share of the distance after a pilot is high enough: there are ten times as many steps later,
to which a higher one, though it is faster in a pilot, only adds noise."""
PILOT = 0.1
"""Share of the steps that each pilot takes."""
HALF = (torch.float16, torch.bfloat16)
ALREADY_THERE = 1e-9
"""A distance from the original that leaves nothing to try for."""
CHECK_BATCH = 250
TIMED_SHARE, TIMED_SECONDS = 0.05, 8.0
"""A budget in minutes spends this share of itself, and at most these seconds, on timing steps."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a recovery did. `before` and `after`: how far the outputs are from the original's on the tune split."""

    steps: int
    epochs: float
    """Passes over the `samples` inputs."""
    samples: int
    batch: int
    rate: float
    """Peak of the learning rate that was used."""
    measure: str
    """`KL divergence` in nats, or `squared error` as a share of the outputs' variance."""
    before: float
    after: float
    best_step: int
    """The step whose weights were kept; 0 for those given."""
    checks: tuple[tuple[int, float], ...]
    seconds: float
    stopped: str | None = None
    """Why it ended early: a loss that was not finite."""
    pilots: tuple[tuple[float, float], ...] = ()
    """(peak of the learning rate, distance after a pilot at it), of all that were tried."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the record."""
        plain = {
            **asdict(self),
            "checks": [[step, _finite(value)] for step, value in self.checks],
            "rate": _short(self.rate),
            "pilots": [{"rate": _short(rate), "distance": _finite(value)} for rate, value in self.pilots],
        }
        return {**plain, "before": _finite(self.before), "after": _finite(self.after)}


def _short(rate: float) -> float:
    """Without the last digits, which only come from rounding."""
    return float(f"{rate:.6g}")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def recover(
    small: nn.Module,
    original: nn.Module,
    samples: Samples,
    tune: Samples,
    steps: int,
    *,
    seed: int = 0,
    options: TrainOptions = OPTIONS,
    progress: Callable[[float], None] | None = None,
    classes: bool = True,
) -> tuple[nn.Module, Recovery]:
    """A copy of `small` that was trained for `steps` steps to answer as `original` does, in eval mode, where it was.

    Only inputs are read of `samples` and `tune`; `tune` is not trained on, it chooses the learning rate (from that of
    `options` on, by pilots of a tenth of the steps each) and the weights that come back. Neither network is changed.
    Without `classes` answers are numbers, whatever their shape. The same seed, steps, data and machine give the same
    weights. In a process group all call it, share the work, and end with the same network: that of one process, up to
    the rounding of sums.
    """
    home = home_of(small)

    started = time.perf_counter()
    with in_step():
        teacher = Teacher(original, tune, home, classes)
        options = teacher.fitting(replace(options, steps=steps, seed=seed))
        student = _trainable(small)
        pilots = _pilots(student, samples, teacher, options, progress)
        rate = min(pilots, key=lambda pilot: (pilot[1], pilot[0]))[0] if pilots else options.lr
        learner, report = teacher.train(
            student, samples, replace(options, lr=rate), _part(progress, PILOTS * PILOT, 1.0), teacher.distance
        )
    best_step, after = _best(report)
    before = report.checks[0][1]
    if floating(small) in HALF:
        learner, after = _rounded(learner, small, teacher)
        if after > before:
            learner, after, best_step = copy.deepcopy(small).eval(), before, 0
    made = Recovery(
        steps=steps, epochs=round(steps / steps_per_epoch(samples, options), 2), samples=len(samples),
        batch=options.batch, rate=rate, measure="KL divergence" if teacher.classes else "squared error",
        before=before, after=after, best_step=best_step, checks=report.checks,
        seconds=round(time.perf_counter() - started, 2), stopped=report.stopped, pilots=pilots,
    )  # fmt: skip
    place(learner, home, room_of(small))
    return learner, made


def _rounded(learner: nn.Module, small: nn.Module, teacher: Teacher) -> tuple[nn.Module, float]:
    """The learner's weights in the precision of the network given, and how far they are from the original then."""
    made = copy.deepcopy(small).eval()
    learnt = numbers_of(learner)
    for name, tensor in numbers_of(made).items():
        tensor.copy_(learnt[name])
    return made, teacher.distance(_unhalved(copy.deepcopy(made)))


def _part(progress: Callable[[float], None] | None, before: float, size: float) -> Callable[[Progress], None] | None:
    """Progress of a part as that of the pilots and the training together; 1 is the size of the training."""
    if progress is None:
        return None
    return lambda done: progress((before + size * done.done) / (1 + PILOT * PILOTS))


def _pilots(
    small: nn.Module,
    samples: Samples,
    teacher: Teacher,
    options: TrainOptions,
    progress: Callable[[float], None] | None,
) -> tuple[tuple[float, float], ...]:
    """(rate, distance afterwards) of short trainings, none where there is nothing to gain: at the rate of the options
    and one FACTOR below, then on in the direction in which the distance falls, while it does; up until it is ENOUGH.
    """
    with evaluating(small):
        before = teacher.distance(small)
    if before <= ALREADY_THERE:
        return ()
    found: dict[int, tuple[float, float]] = {}
    while len(found) < PILOTS and (power := _next_power(found, ENOUGH * before)) not in found:
        tried = replace(options, lr=options.lr * FACTOR**power, steps=_pilot_steps(options.steps or 0))
        show = _part(progress, len(found) * PILOT, PILOT)
        found[power] = (tried.lr, _after_pilot(small, samples, teacher, tried, show))
    return tuple(found.values())


def _next_power(found: dict[int, tuple[float, float]], enough: float) -> int:
    """Of FACTOR, by which the next pilot's rate differs from the first one's; one of those found: there is no next."""
    if len(found) < 2:
        return -len(found)
    best = min(found, key=lambda power: (found[power][1], power))
    if best < 0:
        return max(best - 1, LOWEST)
    return best if found[best][1] <= enough else best + 1


def _after_pilot(
    small: nn.Module, samples: Samples, teacher: Teacher, options: TrainOptions,
    progress: Callable[[Progress], None] | None,
) -> float:  # fmt: skip
    try:
        learner, _ = teacher.train(small, samples, options, progress)
    except DivergedError:
        return math.inf
    place(learner, teacher.device, room_of(small))
    distance = teacher.distance(learner)
    return distance if math.isfinite(distance) else math.inf


def _best(report: TrainingReport) -> tuple[int, float]:
    """The step whose weights came back, and how far they are."""
    return min(report.checks, key=lambda check: (check[1], check[0]))


def steps_of(
    budget: Budget, small: nn.Module, original: nn.Module, samples: Samples, tune: Samples,
    *, parts: int = 1, seed: int = 0, options: TrainOptions = OPTIONS, classes: bool = True,
) -> int:  # fmt: skip
    """The steps of one of `parts` recoveries that share a budget in minutes; of each, in epochs or steps.

    Minutes are turned into steps by timing some real steps of a copy; of several processes, which take these steps
    together, the first one's clock counts.
    """
    known = budget.steps(steps_per_epoch(samples, options))
    if known is not None:
        return known
    home, started = home_of(small), time.perf_counter()
    seconds = 60 * budget.amount / parts
    with in_step():
        teacher = Teacher(original, tune, home, classes)
        options = teacher.fitting(replace(options, seed=seed))  # those that the recovery will have
        begun = time.perf_counter()
        teacher.distance(_trainable(small).eval())
        check = time.perf_counter() - begun
        step = _step_seconds(small, samples, options, teacher, min(TIMED_SHARE * seconds, TIMED_SECONDS))
        left = seconds - (time.perf_counter() - started) - (CHECKS + 3 + PILOTS) * check  # one is the original's
        return int(teacher.team.of_first(_steps_within(left / step)))


def _steps_within(affordable: float) -> int:
    """The most steps that are affordable together with their pilots, whose steps are rounded up; one at least."""
    steps = max(1, int(affordable / (1 + PILOT * PILOTS)))
    while steps > 1 and steps + PILOTS * _pilot_steps(steps) > affordable:
        steps -= 1
    return steps


def _pilot_steps(steps: int) -> int:
    return math.ceil(PILOT * steps)


def _step_seconds(small: nn.Module, samples: Samples, options: TrainOptions, teacher: Teacher, limit: float) -> float:
    """Mean seconds of real steps, taken by a copy for about `limit` seconds; without the first, which also prepares."""
    stamps: list[float] = [time.perf_counter()]
    teacher.train(
        _trainable(small), samples, replace(options, seconds=limit, steps=1_000_000),
        lambda _: stamps.append(time.perf_counter()), lambda _: 0.0,
    )  # fmt: skip
    stamps += [time.perf_counter()] if len(stamps) == 1 else []
    first = 1 if len(stamps) > 2 else 0
    return (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first)


class Teacher:
    """The original in eval mode, its answers on the tune split, and how far another network's answers are from them."""

    def __init__(self, original: nn.Module, tune: Samples, device: torch.device, classes: bool = True) -> None:
        """Without `classes` the answers are numbers, whatever their shape."""
        self.network = _unhalved(copy.deepcopy(original)).eval().requires_grad_(False).to(device)
        put_channels_last(self.network)
        self.team = Team(shared=True)
        own, self.share = self.team.part(len(tune))
        self.tune, self.device = tune.take(own), device
        self.dtype = floating(self.network)
        with torch.no_grad():
            self.answers = self._answers(self.network)
        self.classes = classes and self.answers.ndim == 2 and self.answers.shape[1] > 1
        self.scale = max(self._spread(), torch.finfo(torch.float32).tiny)

    def _spread(self) -> float:
        """The variance of the original's answers over the whole tune split."""
        weight = self.share / len(self.answers)
        mean = self.team.total(weight * self.answers.sum(0))
        return float(self.team.total(weight * (self.answers - mean).square().sum(0)).mean())

    def fitting(self, options: TrainOptions) -> TrainOptions:
        """The options, in float32 where bfloat16 is too coarse: for answers that are numbers, and for networks that it
        breaks on a batch (the lowest float32, which masks of attention hold, is minus infinity there).
        """
        options = replace(options, bf16=options.bf16 and self.classes)
        with precision(options, self.device):
            if not torch.is_autocast_enabled(self.device.type):
                return options
            broken = (~self._answers(self.network, options.batch).isfinite()).sum()
        return replace(options, bf16=not int(self.team.total(broken)))

    def train(
        self, student: nn.Module, samples: Samples, options: TrainOptions,
        progress: Callable[[Progress], None] | None, criterion: Criterion | None = None,
    ) -> tuple[nn.Module, TrainingReport]:  # fmt: skip
        """A copy of the student that was trained to answer as the original does, by all processes together.

        Where the student computes in bfloat16, so does the original: on CPUs it may be most of the work.
        """
        loss = partial(self._loss, precision(options, self.device))
        return train(
            student, samples, options, loss=loss, device=self.device, progress=progress, criterion=criterion,
            shared=True,
        )  # fmt: skip

    def _loss(self, computing: torch.autocast, output: Any, batch: Batch) -> Tensor:
        """What the student is trained on: how far its output is from the original's on the same inputs."""
        with torch.no_grad(), computing:
            wanted = _wide(judged_part(forward(self.network, batch.inputs))[0])
        return self._apart(_wide(judged_part(output)[0]), wanted, TEMPERATURE)

    def distance(self, network: nn.Module) -> float:
        """The mean distance over the tune split, at temperature 1; of several processes each sees its part."""
        return float(self.team.total(self.share * self._apart(self._answers(network), self.answers, 1.0)))

    def _apart(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        if not self.classes:
            return F.mse_loss(found, wanted) / self.scale
        logs = [(scores / temperature).log_softmax(1) for scores in (found, wanted)]
        return temperature**2 * F.kl_div(logs[0], logs[1], log_target=True, reduction="batchmean")

    def _answers(self, network: nn.Module, first: int | None = None) -> Tensor:
        """Of the tune split, or the `first` of it."""
        asked = self.tune if first is None else self.tune.take(range(min(first, len(self.tune))))
        with torch.no_grad():
            parts = batches(asked, CHECK_BATCH, self.device, self.dtype)
            return torch.cat([judged_part(forward(network, part.inputs))[0].cpu().double() for part in parts])


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _trainable(network: nn.Module) -> nn.Module:
    """A copy whose floating weights all learn, in float32 where they are halves."""
    copied = _unhalved(copy.deepcopy(network))
    for weight in copied.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return copied


def _unhalved(network: nn.Module) -> nn.Module:
    """The network (changed in place) in float32 if it was in half precision, in which steps of training get lost."""
    return in_precision(network, torch.float32) if floating(network) in HALF else network
