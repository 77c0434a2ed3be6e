"""What looks like a copy or a combination on every sample, and is none on other inputs, stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compressor.planning.far import far_inputs
from compressor.surgery.exact import exact_compress, moved
from compressor.units.trace import trace


class Hidden(nn.Module):
    """One hidden layer of 16 units; the fourth is twice the first."""

    def __init__(self, activation: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.activation = nn.Linear(10, 16), nn.Linear(16, 5), activation
        with torch.no_grad():
            self.a.weight[3], self.a.bias[3] = 2 * self.a.weight[0], 2 * self.a.bias[0]
        self.double()

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.b(self.activation(self.a(x), *more))


def small_numbers(count: int = 60) -> Tensor:
    return 0.1 * torch.randn(count, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def removed(model: nn.Module, inputs: object) -> int:
    return exact_compress(model, trace(model, inputs), inputs)[1].removed


@pytest.mark.parametrize(
    ("activation", "count"),
    [(torch.relu, 1), (nn.functional.relu6, 0), (lambda x: x.clamp(-50, 50), 0), (nn.functional.leaky_relu, 1)],
)
def test_copies_that_part_on_larger_inputs_stay(activation: Callable[..., Tensor], count: int) -> None:
    assert removed(Hidden(activation), small_numbers()) == count


def test_units_that_every_sample_keeps_on_are_no_combinations() -> None:
    model = Hidden(torch.relu)
    with torch.no_grad():
        model.a.bias.add_(20)
    assert removed(model, small_numbers(300)) == 0


@pytest.mark.parametrize(
    ("activation", "flag"),
    [
        (lambda x, t: x.relu() + t[:, None], torch.zeros(60, dtype=torch.long)),
        (lambda x, t: x.relu() + t[:, None], torch.zeros(60, dtype=torch.float64)),
        (lambda x, t: x.relu().masked_fill(~t[:, None], 1.0), torch.ones(60, dtype=torch.bool)),
    ],
)
def test_copies_that_a_condition_parts_stay_though_no_sample_sets_it(
    activation: Callable[..., Tensor], flag: Tensor
) -> None:
    assert removed(Hidden(activation), (small_numbers(), flag)) == 0


class Words(nn.Module):
    """An embedding of 500 words that a linear layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(500, 32), nn.Linear(32, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.table.weight[:, 5] = self.table.weight[:, 2]
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(self.a(self.table(ids)).relu()).mean(1)


def test_an_embedding_is_not_judged_by_the_few_words_that_were_said() -> None:
    model, ids = Words(), torch.randint(20, (300, 12))
    small, plan = exact_compress(model, trace(model, ids), ids)
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == {"table": 1}
    others = torch.randint(500, (50, 12))
    with torch.no_grad():
        assert moved([model(others)], [small(others)]) < 1e-10


def test_numbers_that_cannot_be_raised_are_left_as_they_are() -> None:
    both = torch.cat([torch.full((40, 3), 499), torch.randint(20, (40, 3))])
    assert removed(Words(), both) == removed(Words(), torch.full((40, 3), 499)) + 1 == 1


def test_far_inputs_are_larger_and_the_same_for_the_same_seed() -> None:
    x = small_numbers()
    made = [far_inputs(x, 8, 1000.0, -1.0, True, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*made)
    assert float(made[0].mean()) < -50
