"""Pilots: short trainings that look for the learning rate of a recovery."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from compressor.sources.samples import Samples
from compressor.training.loop import DivergedError, Progress, TrainOptions
from compressor.training.teacher import Teacher
from compressor.units.fetched import place, room_of
from compressor.units.modes import evaluating

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
ALREADY_THERE = 1e-9
"""A distance from the original that leaves nothing to try for."""


def part(progress: Callable[[float], None] | None, before: float, size: float) -> Callable[[Progress], None] | None:
    """Progress of a part as that of the pilots and the training together; 1 is the size of the training."""
    if progress is None:
        return None
    return lambda done: progress((before + size * done.done) / (1 + PILOT * PILOTS))


def pilots(
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
        tried = replace(options, lr=options.lr * FACTOR**power, steps=pilot_steps(options.steps or 0))
        show = part(progress, len(found) * PILOT, PILOT)
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


def pilot_steps(steps: int) -> int:
    """The steps of one pilot for a training of so many."""
    return math.ceil(PILOT * steps)
