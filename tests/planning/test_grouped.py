"""Grouped convolutions, whose groups are units, and channel shuffles: exactly and lossily."""

from __future__ import annotations

import planted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compressor
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.trace import trace


class Grouped(nn.Module):
    """A bottleneck of eight groups of two channels, with a gate for every channel; its groups write three each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.grouped, self.end = nn.Conv2d(16, 24, 3, padding=1, groups=8), nn.BatchNorm2d(24)
        self.down, self.up = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1)
        self.project, self.head = nn.Conv2d(24, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.end(self.grouped(F.relu(self.norm(self.stem(x))))))
        x = x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.project(x)).mean((2, 3)))


def built(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(64, 3, 6, 6, dtype=torch.float64)
        return planted.awake(Grouped().double(), x).to(dtype), x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_copies_and_dead_groups_go(dtype: torch.dtype) -> None:
    lean, x = built(dtype)
    graph = checked(lean, trace(lean, x), x)
    units = {group.name: (len(group.units), group.frozen) for group in graph.groups}
    assert units["stem"] == (8, None)
    wide = planted.split(lean, graph, {"stem": {2: 3, 5: 2}, "down": {1: 2}}).model
    grouped = wide.get_submodule("grouped")
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (22, 33, 11)
    with torch.no_grad():
        for reader in ("project", "down"):
            wide.get_parameter(f"{reader}.weight")[:, :3] = 0.0  # the first group is read by nobody
        assert moved([lean(x)], [wide(x)]) > 0.01
    small, plan = exact_compress(wide, checked(wide, trace(wide, x), x), x)
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == {"stem": 4, "down": 1}
    assert small.get_submodule("grouped").groups == 7
    fresh = 2 * torch.randn(16, 3, 6, 6, dtype=dtype)
    with torch.no_grad():
        assert moved([wide(fresh)], [small(fresh)]) < (1e-10 if dtype == torch.float64 else 1e-4)


def test_lean_groups_stay_and_lossy_runs_take_whole_ones() -> None:
    model, x = built(torch.float32)
    assert exact_compress(model, trace(model, x), x)[1].removed == 0
    labels = model(x).argmax(1)
    result = compressor.compress(model, (x, labels), keep="params=0.6", align=1)
    grouped = result.model.get_submodule("grouped")
    assert isinstance(grouped, nn.Conv2d)
    assert grouped.groups < 8
    assert tuple(grouped.weight.shape) == (3 * grouped.groups, 2, 3, 3)
    assert result.model(x).shape == (64, 5)


def test_a_copy_of_one_channel_of_a_group_is_no_copy_of_the_group() -> None:
    model, x = built()
    with torch.no_grad():
        for name in ("stem.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
            owner, _, leaf = name.rpartition(".")
            tensor = getattr(model.get_submodule(owner), leaf)
            tensor[6] = tensor[2]
    assert exact_compress(model, trace(model, x), x)[1].removed == 0


class Shuffled(nn.Module):
    """Half of the channels go through a layer, then both halves are shuffled and read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.branch, self.end = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.norm(self.stem(x))).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.end(x)).mean((2, 3)))


def test_planted_copies_go_through_a_channel_shuffle() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = torch.randn(64, 3, 6, 6, dtype=torch.float64)
        lean = planted.awake(Shuffled().double(), x)
    graph = checked(lean, trace(lean, x), x)
    assert next((len(g.units), g.frozen) for g in graph.groups) == (8, None)
    wide = planted.split(lean, graph, {"stem": {1: 2, 6: 3}, "end": {0: 2}}).model
    small, plan = exact_compress(wide, checked(wide, trace(wide, x), x), x)
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == {"stem": 3, "end": 1}
    fresh = 2 * torch.randn(16, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        assert moved([wide(fresh)], [small(fresh)]) < 1e-10
        labels = lean(x).argmax(1)
    result = compressor.compress(lean.float(), (x.float(), labels), keep="params=0.7", align=1)
    assert len(result.model.get_parameter("branch.weight")) < 8
