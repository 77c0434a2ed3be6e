"""Budgets: how they are read and written, and minutes that become steps."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from recoveries import Digits, hurt, vectors
from torch import Tensor, nn

from compressor.training import loop
from compressor.training import teacher as teaching
from compressor.training.budget import Budget
from compressor.training.loop import steps_per_epoch
from compressor.training.recover import OPTIONS, recover, steps_of


@pytest.mark.parametrize(
    ("text", "steps"),
    [("2ep", 30), ("0.5ep", 8), ("0.01ep", 1), ("400st", 400), ("5min", None), ("0.5min", None), ("0.00001ep", 1)],
)
def test_budgets(text: str, steps: int | None) -> None:
    assert str(Budget.parse(text)) == text
    assert Budget.parse(text).steps(15) == steps


@pytest.mark.parametrize("text", ["", "8", "ep", "0ep", "-1ep", "1.5st", "8 ep", "5minutes", "nanmin", "1e3st"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match=text or "^$"):
        Budget.parse(text)


def test_minutes_become_steps(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples, tune, _ = digits

    def known(text: str, parts: int = 1) -> int:
        return steps_of(Budget.parse(text), model, model, samples, tune, parts=parts)

    assert known("3ep") == 3 * steps_per_epoch(samples, OPTIONS)
    assert known("7st", parts=8) == 7
    clock = [0.0]

    def ticking(*given: Any, **more: Any) -> Any:
        """Training whose steps take 2 seconds by the clock, the first one 30."""
        progress = more["progress"]
        for seconds in (30, 2, 2, 2):
            clock[0] += seconds
            progress(None)

    monkeypatch.setattr(teaching, "train", ticking)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert known("5min") == 92, "132 steps of 2 seconds are left: 92, and 4 pilots of 10"
    assert known("16min", parts=8) == 30, "42 steps: 30, and 4 pilots of 3"
    assert known("1min") == 8, "12 steps: 8, and 4 pilots of 1"
    assert known("0.1min") == 1


def test_a_budget_in_minutes_is_about_kept(digits: Digits) -> None:
    model, samples, tune, _ = digits
    steps = steps_of(Budget(0.03, "min"), hurt(model), model, samples, tune)
    _, about = recover(hurt(model), model, samples, tune, steps)
    assert 0.2 < about.seconds < 8


class Masked(nn.Linear):
    """Attends to nothing: with the lowest float32 as a mask that is a mean, with minus infinity not a number."""

    def forward(self, input: Tensor) -> Tensor:
        answers = super().forward(input)
        lowest = torch.full(answers.shape, torch.finfo(torch.float32).min)
        return answers * lowest.to(answers.dtype).softmax(1)


@pytest.mark.parametrize(("classes", "layer"), [(True, Masked), (False, nn.Linear)])
def test_minutes_are_timed_in_the_precision_of_the_recovery(
    classes: bool, layer: type[nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16, where answers are scores of classes and stay finite in it; also on machines that emulate it."""
    monkeypatch.setattr(loop, "_computes_bf16", lambda _: True)
    model, used, real = layer(6, 3), set[bool](), teaching.train

    def noted(*given: Any, **more: Any) -> Any:
        used.add(given[2].bf16)
        return real(*given, **more)

    monkeypatch.setattr(teaching, "train", noted)
    steps_of(Budget(0.001, "min"), model, model, vectors(), vectors(), classes=classes)
    assert used == {False}
    _, about = recover(hurt(model), model, vectors(), vectors(), 10, classes=classes)
    assert used == {False}
    assert about.stopped is None
    assert about.after < about.before
