"""Where a consumer's output lands: norms, sums, and places for constants, in execution order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.surgery.landing import Landing, landings
from compressor.units.program import record


def spots(model: nn.Module, *shape: int) -> dict[str, Landing]:
    found = landings(record(model.eval(), torch.randn(2, *shape)))
    assert [s.module for s in found] == list(dict.fromkeys(s.module for s in found)) or not all(s.once for s in found)
    return {spot.module: spot for spot in found}


class Block(nn.Module):
    """A basic block with a projected skip."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4)
        self.skip, self.ns = nn.Conv2d(3, 4, 1, bias=bias), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.nb(self.b(F.relu(self.na(self.a(x)))))
        y = y + self.ns(self.skip(x))
        return self.head(F.relu(y).mean((2, 3)))


def test_only_the_last_layer_before_a_sum_knows_the_other_operand() -> None:
    found = spots(Block(), 3, 6, 6)
    assert list(found) == ["a", "b", "skip", "head"]
    assert {n: s.norm for n, s in found.items()} == {"a": "na", "b": "nb", "skip": "ns", "head": None}
    assert [n for n, s in found.items() if s.other is not None] == ["skip"]
    assert {n: s.intercept for n, s in found.items()} == {"a": True, "b": True, "skip": True, "head": False}
    assert all(s.once for s in found.values())


def test_a_norm_that_is_not_alone_does_not_count() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.head = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.head((self.norm(y) * y).mean((2, 3)))

    found = spots(Both(), 3, 5, 5)
    assert found["a"].norm is None
    assert not found["a"].intercept


def test_sums_of_tokens_are_found_through_views() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(x)))

    found = spots(Tokens(), 5, 6)
    assert found["up"].other is None
    assert found["down"].other is not None


def test_a_scaled_sum_is_left_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return torch.add(x, self.b(x), alpha=0.5)

    assert spots(Scaled(), 6)["b"].other is None


def test_a_layer_that_runs_twice_says_so() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.again(F.relu(self.again(x)))))

    found = spots(Twice(), 6)
    assert not found["again"].once
    assert found["head"].once
