from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.training.initial import initialise
from compressor.training.schedules import optimizer_of, rate


def test_schedules_by_their_definition() -> None:
    assert rate("constant", 0.7, 3) == 1
    assert rate("decay", 0.0, 0) == 1
    assert rate("decay", 0.9, 10) == pytest.approx(0.95**10)
    assert rate("cosine", 0.5, 0) == pytest.approx(0.5)
    assert rate("one_cycle", 0.3, 0) == pytest.approx(1.0)
    assert rate("one_cycle", 0.0, 0) == pytest.approx(1 / 25)


@pytest.mark.parametrize("name", ["sgd", "momentum", "plain_sgd", "adam", "adamw", "muon", "rmsprop", "adagrad"])
def test_every_optimizer_steps_downhill(name: str) -> None:
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    optimizer = optimizer_of(model, name, 0.01, 0.0)  # type: ignore[arg-type]
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert model.weight.item() < before


def test_momentum_and_nesterov_differ_from_plain_steps() -> None:
    moved = {}
    for name in ("sgd", "momentum", "plain_sgd"):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = optimizer_of(model, name, 1.0, 0.0)  # type: ignore[arg-type]
        for _ in range(2):
            model.weight.grad = torch.ones(1, 1)
            optimizer.step()
        moved[name] = model.weight.item()
    assert moved == {"sgd": pytest.approx(-4.61), "momentum": pytest.approx(-2.9), "plain_sgd": pytest.approx(-2.0)}


@pytest.mark.parametrize(
    ("how", "variance"),
    [("glorot_normal", 2 / 500), ("he_normal", 2 / 400), ("lecun_uniform", 1 / 400), ("he_uniform", 2 / 400)],
)
def test_initial_weights_have_the_variance_of_their_name(how: str, variance: float) -> None:
    model = nn.Sequential(nn.Linear(400, 100), nn.ReLU(), nn.Conv2d(2, 3, 3))
    state = torch.random.get_rng_state()
    initialise(model, how, 1)  # type: ignore[arg-type]
    assert torch.equal(state, torch.random.get_rng_state())
    weight = model[0].weight
    assert float(weight.var()) == pytest.approx(variance, rel=0.03)
    assert (float(weight.abs().max()) <= (3 * variance) ** 0.5 * 1.001) == how.endswith("uniform")
    assert float(model[0].bias.abs().max()) == float(model[2].bias.abs().max()) == 0
    again = nn.Sequential(nn.Linear(400, 100))
    initialise(again, how, 1)  # type: ignore[arg-type]
    assert torch.equal(again[0].weight, weight)
