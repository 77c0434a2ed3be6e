"""Pilots: which learning rates they try, and which is taken."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from recoveries import FAST, Digits, hurt

from compressor.training import pilots as trials
from compressor.training.loop import TrainOptions
from compressor.training.pilots import FACTOR, PILOTS
from compressor.training.recover import recover
from compressor.training.teacher import Teacher


def test_pilots_choose_the_rate(digits: Digits) -> None:
    model, samples, tune, _ = digits
    found = []
    for damage in (0.05, 1.0):  # what lost little needs a low rate, what lost much a high one
        about = recover(hurt(model, damage), model, samples, tune, 60, options=replace(FAST, lr=0.01))[1]
        assert [rate for rate, _ in about.pilots[:2]] == pytest.approx([0.01, 0.01 / FACTOR])
        assert about.rate == min(about.pilots, key=lambda pilot: pilot[1])[0]
        assert about.best_step > 0
        assert about.after < about.before
        found.append(about.rate)
    assert found[0] < found[1]


@pytest.mark.parametrize(
    ("distances", "powers"),
    [
        ({0: 6.0, -1: 7.0, 1: 8.0}, [0, -1, 1]),  # the first is the best of three
        ({0: 6.0, -1: 7.0, 1: 5.0, 2: 8.0}, [0, -1, 1, 2]),
        ({0: 6.0, -1: 7.0, 1: 5.0, 2: 4.5}, [0, -1, 1, 2]),  # PILOTS at most
        ({0: 4.0, -1: 7.0}, [0, -1]),  # less than half of 8.5 is left
        ({0: 6.0, -1: 7.0, 1: 4.0}, [0, -1, 1]),
        ({0: 3.0, -1: 2.0, -2: 4.0}, [0, -1, -2]),
        ({0: 3.0, -1: 2.0, -2: 1.0}, [0, -1, -2]),  # no lower
        ({0: 2.0, -1: 2.0, -2: 4.0}, [0, -1, -2]),  # of equals the lower rate
        ({0: math.inf, -1: math.inf, -2: 1.0}, [0, -1, -2]),
    ],
)
def test_pilots_go_on_where_the_distance_falls(
    distances: dict[int, float], powers: list[int], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples, tune, _ = digits

    def known(_small: Any, _samples: Any, _teacher: Any, options: TrainOptions, _progress: Any) -> float:
        return distances[round(math.log(options.lr / FAST.lr, FACTOR))]

    monkeypatch.setattr(trials, "_after_pilot", known)
    monkeypatch.setattr(Teacher, "distance", lambda *_: 8.5)
    about = recover(hurt(model), model, samples, tune, 1, options=FAST)[1]
    assert [rate for rate, _ in about.pilots] == pytest.approx([FAST.lr * FACTOR**power for power in powers])
    assert len(powers) <= PILOTS
    best = min(distances, key=lambda power: (distances[power], power))
    assert about.rate == pytest.approx(FAST.lr * FACTOR**best)
