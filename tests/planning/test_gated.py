"""Gated MLPs (SwiGLU, GEGLU; two layers or one packed layer): units go with their gate, exactly or lossily."""

from __future__ import annotations

import copy

import planted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compressor
from compressor.planning.exact import find_exact
from compressor.surgery.exact import exact_compress, moved
from compressor.units.check import checked
from compressor.units.trace import trace

WIDTH = 24
GATES = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "sigmoid": torch.sigmoid}


class Gated(nn.Module):
    """A residual block `down(act(gate x) * up x)` on normed tokens, and a head."""

    def __init__(self, act: str, bias: bool, tokens: bool = True) -> None:
        super().__init__()
        self.act, self.tokens = act, tokens
        self.stem, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        self.gate, self.up = nn.Linear(8, WIDTH, bias), nn.Linear(8, WIDTH, bias)
        self.down = nn.Linear(WIDTH, 8, bias)

    def hidden(self, x: Tensor) -> Tensor:
        return GATES[self.act](self.gate(x)) * self.up(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.hidden(self.norm(x)))
        return self.head(x.mean(1))


class Packed(Gated):
    """Gate and values from one layer, gate last (as in GEGLU) or first (as in SwiGLU)."""

    def __init__(self, act: str, bias: bool) -> None:
        super().__init__(act, bias)
        self.both = nn.Linear(8, 2 * WIDTH, bias)
        self.gate, self.up = nn.Identity(), nn.Identity()

    def hidden(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, -1)
        return value * GATES[self.act](gate)


def rows(model: Gated, part: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias rows of the gate or the values; writing into them changes the model."""
    if isinstance(model, Packed):
        place = slice(WIDTH, None) if part == "gate" else slice(0, WIDTH)
        return model.both.weight.data[place], None if model.both.bias is None else model.both.bias.data[place]
    layer: nn.Linear = getattr(model, part)
    return layer.weight.data, None if layer.bias is None else layer.bias.data


def built(kind: type[Gated], act: str, bias: bool, dtype: torch.dtype = torch.float64) -> tuple[Gated, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return kind(act, bias).to(dtype).eval(), torch.randn(48, 5, 6, dtype=dtype)


KINDS = [(Gated, "silu", False), (Gated, "gelu", True), (Packed, "silu", True), (Packed, "gelu", False)]


@pytest.mark.parametrize(("kind", "act", "bias"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_copies_and_dead_units_go(kind: type[Gated], act: str, bias: bool, dtype: torch.dtype) -> None:
    model, x = built(kind, act, bias, dtype)
    (gate, gate_bias), (up, up_bias) = rows(model, "gate"), rows(model, "up")
    for copies in (gate, gate_bias, up, up_bias):
        if copies is not None:
            copies[5] = copies[2]
            copies[7] = copies[2]
    for scaled in (up, up_bias):
        if scaled is not None:
            scaled[7] *= -3.0  # a scaled copy: the same gate
            scaled[11] = 0.0  # its values are zero, whatever its gate is
    gate[13] = 0.0  # its gate is zero, since silu(0) and gelu(0) are
    if gate_bias is not None:
        gate_bias[13] = 0.0
    model.down.weight.data[:, 17] = 0.0
    graph = checked(model, trace(model, x), x)
    group = next(group for group in graph.groups if group.frozen is None)
    assert len(group.units) == WIDTH
    assert set(group.producers) == ({"both"} if kind is Packed else {"gate", "up"})
    small, plan = exact_compress(model, graph, x)
    gone = set(plan.folds[0].dropped)
    assert gone - {2, 5, 7} == {11, 13, 17}
    assert len(gone & {2, 5, 7}) == 2
    fresh = 2 * torch.randn(16, 5, 6, dtype=dtype)
    with torch.no_grad():
        assert moved([model(fresh)], [small(fresh)]) < (1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("act", ["relu", "silu", "sigmoid"])
def test_units_that_are_only_quiet_on_the_samples_stay(act: str) -> None:
    """A gate that is shut on all samples, values that are constant but pass an open gate: other inputs need them."""
    model, x = built(Gated, act, True)
    with torch.no_grad():
        model.gate.bias[3] = -1e3  # shut for every input of this size, not for every input
        model.up.weight[5], model.up.bias[5] = 0.0, 1.0  # act(gate) alone
        model.gate.weight[9], model.gate.bias[9] = 0.0, 1.0  # the values alone
        model.up.weight[14], model.up.bias[14] = 0.0, 1.0
        model.gate.weight[14], model.gate.bias[14] = 0.01 * model.gate.weight[14], -1e3
    before = copy.deepcopy(model.state_dict())
    plan = find_exact(model, trace(model, x), x)
    assert plan.removed == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_constant_unit_goes_into_the_bias() -> None:
    model, x = built(Gated, "silu", True)
    with torch.no_grad():
        for layer in (model.gate, model.up):
            layer.weight[6], layer.bias[6] = 0.0, 0.7
    small, plan = exact_compress(model, trace(model, x), x)
    assert [fold.dropped for fold in plan.folds] == [(6,)]
    with torch.no_grad():
        assert moved([model(x)], [small(x)]) < 1e-10


@pytest.mark.parametrize("kind", [Gated, Packed])
def test_lean_gated_networks_stay_whole_and_lossy_ones_become_smaller(kind: type[Gated]) -> None:
    model, x = built(kind, "silu", True)
    assert find_exact(model, trace(model, x), x).removed == 0
    result = compressor.compress(model, calibrate=(x, torch.zeros(len(x), dtype=torch.long)), keep="params=0.6")
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert 0 < len(result.model.get_parameter("down.weight")[0]) < WIDTH
    assert result.model(x).shape == (48, 4)


def test_planted_copies_of_a_gated_network_made_by_splitting_go() -> None:
    model, x = built(Packed, "gelu", True)
    graph = trace(model, x)
    wide = planted.split(model, graph, {"both": {1: 3, 8: 2}})
    small, plan = exact_compress(wide.model, trace(wide.model, x), x)
    assert plan.removed == 3
    assert len(small.get_parameter("both.weight")) == 2 * WIDTH
