"""Answers that are numbers are not taken for scores of classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor import workbench
from compressor.errors import DataError
from compressor.observe import CLASSES, Classes, Numbers, Probabilities, likelihood_of


def test_signs_give_the_curvature_of_the_squared_error_on_average():
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    x = torch.ones(4000, 5, dtype=torch.float64).requires_grad_()
    Numbers(scale).sampled(x @ weight.T, torch.arange(4000), key=3).backward()
    assert x.grad is not None
    wanted = (weight / scale[:, None]).square().sum(0) / 3
    assert torch.allclose(x.grad.square().mean(0), wanted, rtol=0.1)


def test_noise_belongs_to_the_sample_not_to_the_batch():
    rows, ids = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1)), torch.arange(6)
    likelihood = Numbers(torch.tensor([1.0, 2.0]))
    whole = likelihood.sampled(rows, ids, 5)
    parts = sum(likelihood.sampled(rows[i : i + 2], ids[i : i + 2], 5) for i in range(0, 6, 2))
    assert torch.allclose(whole, torch.as_tensor(parts), atol=1e-5)


def test_losses_of_numbers_are_shares_of_their_variance():
    rows = torch.randn(5000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * torch.tensor(
        [1, 100.0]
    )
    likelihood = Numbers(torch.tensor([1.0, 100.0], dtype=torch.float64))
    before = likelihood.read(rows)
    assert likelihood.apart(before, before) == (0.0, 1.0)
    loss, same = likelihood.apart(before, likelihood.read(rows * 0.9))
    assert loss == pytest.approx(0.005, rel=0.05)
    assert same == pytest.approx(0.99, abs=0.001)


def test_a_single_score_of_two_classes_can_be_told_apart():
    before, after = (CLASSES.read(torch.tensor([[2.0], [-2.0]]) * sign) for sign in (1, -1))
    assert CLASSES.apart(before, before) == (0.0, 1.0)
    loss, same = CLASSES.apart(before, after)
    assert loss > 1
    assert same == 0


def test_probabilities_are_read_as_what_they_are():
    """A softmax at the end changes nothing about the curvature, nor about what an ablation costs."""
    scores = 3 * torch.randn(40, 4, generator=torch.Generator().manual_seed(8))
    plain, ended = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    found = likelihood_of(ended.softmax(1), torch.tensor([0, 3]), False)
    assert type(found) is Probabilities
    CLASSES.sampled(plain, torch.arange(40), 1).backward()
    found.sampled(ended.softmax(1), torch.arange(40), 1).backward()
    assert plain.grad is not None
    assert torch.allclose(plain.grad, ended.grad, atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(found.read(scores.softmax(1)), CLASSES.read(scores), atol=1e-5)
    assert type(likelihood_of(scores, None, False)) is Classes


OUTPUTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
MAPS = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("outputs", "labels", "scored", "kind"),
    [
        (OUTPUTS, None, False, Classes),
        (OUTPUTS, None, True, Numbers),  # an embedding
        (OUTPUTS, torch.tensor([0, 1, 2]), True, Classes),
        (OUTPUTS, torch.tensor([0, 1, 7]), True, Numbers),
        (OUTPUTS, torch.tensor([0, 1, 7]), False, Classes),  # refused elsewhere
        (OUTPUTS, torch.randn(5, 3), True, Numbers),
        (OUTPUTS[:, :1], torch.tensor([0, 1, 1]), True, Classes),
        (OUTPUTS[:, :1], torch.tensor([30, 41, 52]), True, Numbers),  # ages
        (MAPS, torch.randint(0, 3, (5, 4, 4)), True, Classes),
        (MAPS, torch.full((5, 4, 4), 255), True, Classes),  # positions that do not count
        (MAPS, torch.randn(5, 1, 4, 4), True, Numbers),  # depth
        (OUTPUTS, torch.randint(0, 2, (5, 3)), True, Numbers),
    ],
)
def test_what_answers_mean(outputs: Tensor, labels: Tensor | None, scored: bool, kind: type):
    assert type(likelihood_of(outputs, labels, scored)) is kind


def test_columns_are_measured_by_their_targets():
    targets = torch.randn(100, 3, generator=torch.Generator().manual_seed(4)) * torch.tensor([1e-3, 1.0, 1e5])
    found = likelihood_of(OUTPUTS, targets, True)
    assert isinstance(found, Numbers)
    assert torch.allclose(found.scale, targets.double().std(0, correction=0))
    constant = likelihood_of(OUTPUTS, torch.ones(9, 3), True)
    assert isinstance(constant, Numbers)
    assert bool((constant.scale > 0).all())


class Regressor(nn.Module):
    """Two numbers far from zero, each from other hidden units; many units hardly matter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 48), nn.Linear(48, 2)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            self.first.weight.copy_(torch.randn(48, 12, generator=generator))
            self.second.weight.copy_(torch.randn(2, 48, generator=generator) * 0.05)
            self.second.weight[:, ::3] *= 40
            self.second.bias.copy_(torch.tensor([900.0, -400.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def near(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1 - ((outputs - targets).square().mean(1) / 40).clamp(max=1)


def regression(count: int = 1200) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = Regressor().eval()
    x = torch.randn(count, 12, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        return model, (x, model(x) + 0.1 * torch.randn(count, 2, generator=torch.Generator().manual_seed(7)))


def test_a_regression_of_two_outputs_loses_less_than_if_read_as_classes(monkeypatch: pytest.MonkeyPatch):
    model, data = regression()
    asked: dict[str, Any] = {"keep": "params=0.4", "align": 1, "metric": near}
    right = compressor.compress(model, data, **asked)
    monkeypatch.setattr(workbench, "likelihood_of", lambda *_: CLASSES)
    wrong = compressor.compress(model, data, **asked)
    assert right.verdict is not None
    assert wrong.verdict is not None
    assert right.verdict.difference > -1
    nearness = right.record["fidelity"]
    assert [nearness[name] for name in ("agreement", "kl")] == [None, None]  # numbers have no largest score
    assert nearness["max_abs_change"] > 0
    assert wrong.verdict.difference < 3 * right.verdict.difference - 1
    assert right.record["ablation"]["rank_correlation"] > 0.9


def test_targets_that_are_numbers_need_a_score_unless_nothing_is_judged():
    model, data = regression(300)
    with pytest.raises(DataError, match="--metric"):
        compressor.compress(model, data)
    record = compressor.analyze(model, data)
    assert record["findings"]["needed"] >= 8
    assert compressor.compress(model, data, exact=True).verdict is not None


def test_recovery_of_a_regression_follows_the_numbers():
    model, data = regression(600)
    found = compressor.compress(model, data, keep="params=0.3", align=1, metric=near, recover="30st")
    assert found.record["recover"]["measure"] == "squared error"


def test_a_single_probability_costs_what_its_log_odds_cost() -> None:
    odds = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.arange(64)
    likelihood = likelihood_of(odds.sigmoid().detach(), torch.zeros(64, dtype=torch.long), scored=False)
    by_odds = likelihood_of(odds.detach(), torch.zeros(64, dtype=torch.long), scored=False)
    assert likelihood != by_odds
    slopes = [
        torch.autograd.grad(kind.sampled(answers, ids, 7), odds)[0]
        for kind, answers in ((likelihood, odds.sigmoid()), (by_odds, odds))
    ]
    assert torch.allclose(*slopes, atol=1e-5)
    assert torch.allclose(likelihood.read(odds.sigmoid()), by_odds.read(odds), atol=1e-5)
