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
from typing import Any

from torch import nn

from compressor.observe.processes import in_step
from compressor.sources.samples import Samples
from compressor.training.budget import Budget
from compressor.training.loop import CHECKS, TrainingReport, TrainOptions, steps_per_epoch
from compressor.training.pilots import PILOT, PILOTS, part, pilot_steps, pilots
from compressor.training.teacher import Teacher, trainable
from compressor.training.together import numbers_of, set_numbers
from compressor.units.fetched import place, room_of
from compressor.units.modes import has_halves, home_of, unhalved

OPTIONS = TrainOptions(batch=64, lr=6e-4, optimizer="muon", weight_decay=0.01, bf16=True, mix=True, frozen_modes=True)
"""Chosen by the tune split of Fashion-MNIST networks (mlp at 6 %, vgg at 14 %, resnet at 20 % of the parameters)."""
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
    home, started = home_of(small), time.perf_counter()
    with in_step():
        teacher = Teacher(original, tune, home, classes)
        options = teacher.fitting(replace(options, steps=steps, seed=seed))
        student = trainable(small)
        tried = pilots(student, samples, teacher, options, progress)
        rate = min(tried, key=lambda pilot: (pilot[1], pilot[0]))[0] if tried else options.lr
        learner, report = teacher.train(
            student, samples, replace(options, lr=rate), part(progress, PILOTS * PILOT, 1.0), teacher.distance
        )
    best_step, after = _best(report)
    before = report.checks[0][1]
    if has_halves(small):
        learner, after = _rounded(learner, small, teacher)
        if after > before:
            learner, after, best_step = copy.deepcopy(small).eval(), before, 0
    made = Recovery(
        steps=steps, epochs=round(steps / steps_per_epoch(samples, options), 2), samples=len(samples),
        batch=options.batch, rate=rate, measure="KL divergence" if teacher.classes else "squared error",
        before=before, after=after, best_step=best_step, checks=report.checks,
        seconds=round(time.perf_counter() - started, 2), stopped=report.stopped, pilots=tried,
    )  # fmt: skip
    place(learner, home, room_of(small))
    return learner, made


def _rounded(learner: nn.Module, small: nn.Module, teacher: Teacher) -> tuple[nn.Module, float]:
    """The learner's weights in the precision of the network given, and how far they are from the original then."""
    made = copy.deepcopy(small).eval()
    set_numbers(made, numbers_of(learner))
    return made, teacher.distance(unhalved(copy.deepcopy(made)))


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
        teacher.distance(trainable(small).eval())
        check = time.perf_counter() - begun
        step = _step_seconds(small, samples, options, teacher, min(TIMED_SHARE * seconds, TIMED_SECONDS))
        left = seconds - (time.perf_counter() - started) - (CHECKS + 3 + PILOTS) * check  # one is the original's
        return int(teacher.team.of_first(_steps_within(left / step)))


def _steps_within(affordable: float) -> int:
    """The most steps that are affordable together with their pilots, whose steps are rounded up; one at least."""
    steps = max(1, int(affordable / (1 + PILOT * PILOTS)))
    while steps > 1 and steps + PILOTS * pilot_steps(steps) > affordable:
        steps -= 1
    return steps


def _step_seconds(small: nn.Module, samples: Samples, options: TrainOptions, teacher: Teacher, limit: float) -> float:
    """Mean seconds of real steps, taken by a copy for about `limit` seconds; without the first, which also prepares."""
    stamps: list[float] = [time.perf_counter()]
    teacher.train(
        trainable(small), samples, replace(options, seconds=limit, steps=1_000_000),
        lambda _: stamps.append(time.perf_counter()), lambda _: 0.0,
    )  # fmt: skip
    stamps += [time.perf_counter()] if len(stamps) == 1 else []
    first = 1 if len(stamps) > 2 else 0
    return (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first)
