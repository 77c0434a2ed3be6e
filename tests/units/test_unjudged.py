"""Networks with an auxiliary head: its own units stay, its trunk is cut, and how far it moved is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressor import compress
from compressor.units.check import checked
from compressor.units.trace import trace
from compressor.units.unjudged import REASON, moved_outputs, only_unjudged


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.more, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.aux, self.aux_head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.trunk(x))
        return {"out": self.head(torch.relu(self.more(x))), "aux": self.aux_head(torch.relu(self.aux(x)))}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


def test_units_that_only_another_output_reads_stay(net: nn.Module) -> None:
    x = torch.randn(4, 6)
    graph = checked(net, trace(net, x), x)
    assert {group.name for group in graph.groups if group.frozen is None} == {"trunk", "more", "aux"}
    assert only_unjudged(net, graph, x) == {"aux": REASON}
    assert all(p.grad is None for p in net.parameters())


def test_a_run_keeps_them_and_tells_how_far_the_output_moved(net: nn.Module) -> None:
    x = torch.randn(600, 6)
    made = compress(net, (x, net(x)["out"].argmax(1)), keep="params=0.7", max_drop=20, align=1)
    small = made.model
    assert small.aux.out_features == 8  # type: ignore[union-attr]
    assert small.more.out_features < 12  # type: ignore[union-attr, operator]
    (told,) = [text for text in made.record["warnings"] if text.startswith("Other outputs")]
    moved = moved_outputs(net, small, made.data.judge.batch(range(32))[0])
    assert f"'aux' moved by {100 * moved['aux']:.2g} %" in told


def test_a_single_output_has_no_others(net: nn.Module) -> None:
    plain, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(4, 6)
    graph = checked(plain, trace(plain, x), x)
    assert only_unjudged(plain, graph, x) == {}
    assert moved_outputs(plain, plain, x) == {}


@pytest.mark.parametrize(("name", "told"), [("cache", False), ("past_key_values", False), ("cached_scores", True)])
def test_what_a_decoder_goes_on_from_is_no_further_output_but_one_of_a_like_name_is(name: str, told: bool) -> None:
    class Speaker(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"logits": x + 1, name: [x * self.factor, x * self.factor]}

    assert bool(moved_outputs(Speaker(1.0), Speaker(2.0), torch.randn(4, 6))) is told
