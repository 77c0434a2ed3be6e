"""Muon: steps of AdamW's size along directions that are equally long, for the layers where it is cheap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from compressor.sources.samples import Batch
from compressor.training.muon import MOMENTUM, SIZE, MuonAndAdamW, matrices_of, orthogonal
from compressor.training.schedules import optimizer_of


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12), (1, 9)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    first, _, last = torch.linalg.svd(noise(*shape), full_matrices=False)
    given = (first * torch.logspace(0, -1, first.shape[1])) @ last  # far from equal, but none near zero
    made = orthogonal(1e3 * given)
    found = torch.linalg.svdvals(made)
    assert float(found.min()) > 0.6
    assert float(found.max()) < 1.3
    turned = first.T @ made @ last.T
    assert float((turned - turned.diagonal().diag()).abs().max()) < 1e-4, "the directions are those given"


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert orthogonal(torch.zeros(3, 5)).abs().max() == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_by_its_definition(channels_last: bool) -> None:
    conv = nn.Conv2d(3, 8, 3)
    if channels_last:
        conv = conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    before = conv.weight.detach().clone()
    optimizer = MuonAndAdamW(list(conv.parameters()), {conv.weight}, 0.01, 0.1)
    mean, wanted = torch.zeros(8, 27), before.flatten(1)
    for step in range(3):
        conv.weight.grad, conv.bias.grad = noise(8, 3, 3, 3, seed=step), noise(8, seed=step)
        gradient = conv.weight.grad.flatten(1)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        ahead = (1 - MOMENTUM) * gradient + MOMENTUM * mean
        wanted = wanted * (1 - 0.01 * 0.1) - 0.01 * SIZE * math.sqrt(27) * orthogonal(ahead)
        optimizer.step()
    torch.testing.assert_close(conv.weight.detach().flatten(1), wanted, rtol=1e-4, atol=1e-6)


def test_a_step_has_the_size_of_one_of_adamw() -> None:
    weight = nn.Parameter(torch.zeros(20, 80))
    optimizer = MuonAndAdamW([weight], {weight}, 1.0, 0.0)
    weight.grad = noise(20, 80)
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(SIZE, rel=0.2)


def test_other_weights_take_adamw_steps() -> None:
    made: list[Tensor] = []
    for name in ("muon", "adamw"):
        layer = nn.Linear(3, 2)
        nn.init.constant_(layer.weight, 0.3)
        optimizer = optimizer_of(layer, name, 0.01, 0.1)  # type: ignore[arg-type]
        for step in range(3):
            layer.weight.grad, layer.bias.grad = noise(2, 3, seed=step), noise(2, seed=step)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1)
            optimizer.step()
        made.append(layer.weight.detach())
    assert torch.equal(*made)


class Mixed(nn.Module):
    """A table that is tied to the head, a wide layer that sees one row, convolutions in one and in several groups."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 8)
        self.mixer = nn.Conv1d(8, 8, 3, padding=1)
        self.each = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.rows = nn.Linear(8, 8)
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.table.weight
        self.wide = nn.Linear(48, 48)

    def forward(self, ids: Tensor) -> Tensor:
        assert not self.training
        seen = self.each(self.mixer(self.table(ids).transpose(1, 2))).transpose(1, 2)
        return self.wide(self.head(self.rows(self.norm(seen))).flatten(1)[:, :48])


def test_matrices_are_what_sees_many_rows() -> None:
    model = Mixed().train()
    example = Batch(torch.arange(2), torch.randint(0, 6, (2, 8)), None)
    assert matrices_of(model, example, 64) == {model.mixer.weight, model.rows.weight}
    assert matrices_of(model, example, 1) == set()
    assert model.wide.weight in matrices_of(model, example, 640), "more rows make it worth while"
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
