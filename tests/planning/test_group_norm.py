"""Networks with group norms, whose groups are units: exactly and lossily."""

from __future__ import annotations

import planted
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compressor
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.trace import trace


class Block(nn.Module):
    """Twice as wide inside, in eight groups; its stream has groups of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.GroupNorm(4, 16), nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.second, self.outer = nn.GroupNorm(8, 32), nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.silu(self.second(self.inner(F.relu(self.first(x))))))


class Net(nn.Module):
    """A stem, two blocks on one stream, and a head on what the last norm leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 16, 3, padding=1), nn.Sequential(Block(), Block())
        self.norm, self.head = nn.GroupNorm(4, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


def built(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().double()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.0)
        return model.to(dtype).eval(), torch.randn(64, 3, 6, 6, dtype=torch.float64).to(dtype)


def test_planted_copies_of_whole_groups_go_and_lean_ones_stay() -> None:
    lean, x = built()
    graph = checked(lean, trace(lean, x), x)
    units = {group.name: (len(group.units), group.frozen) for group in graph.groups}
    assert units["stem"] == (4, None)
    assert units["blocks.0.inner"] == (8, None)
    assert exact_compress(lean, graph, x)[1].removed == 0
    wide = planted.split(lean, graph, {"stem": {1: 3}, "blocks.0.inner": {2: 2, 5: 3}}).model
    assert (wide.get_submodule("norm").num_groups, wide.get_submodule("norm").num_channels) == (6, 24)
    with torch.no_grad():
        assert moved([lean(x)], [wide(x)]) < 1e-10
    small, plan = exact_compress(wide, checked(wide, trace(wide, x), x), x)
    assert {fold.group: len(fold.dropped) for fold in plan.folds} == {"stem": 2, "blocks.0.inner": 3}
    assert small.get_submodule("blocks.0.second").num_groups == 8
    fresh = 2 * torch.randn(16, 3, 6, 6, dtype=x.dtype)
    with torch.no_grad():
        assert moved([wide(fresh)], [small(fresh)]) < 1e-10


def test_a_copy_of_one_channel_is_no_copy_of_its_group() -> None:
    model, x = built()
    with torch.no_grad():
        inner = model.get_submodule("blocks.0.inner")
        inner.weight[4] = inner.weight[0]  # pyright: ignore[reportIndexIssue]
    assert exact_compress(model, trace(model, x), x)[1].removed == 0


def test_lossy_runs_take_whole_groups() -> None:
    model, x = built(torch.float32)
    result = compressor.compress(model, (x, model(x).argmax(1)), keep="params=0.6", align=1, device="cpu")
    norms = [part for part in result.model.modules() if isinstance(part, nn.GroupNorm)]
    assert {norm.num_channels // norm.num_groups for norm in norms} == {4}
    assert sum(norm.num_groups for norm in norms) < 4 + 4 + 8 + 4 + 8
    assert result.model(x).shape == (64, 5)
