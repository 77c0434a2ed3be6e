"""Effective width: the compressor's own answer on a network whose surplus is planted."""

from __future__ import annotations

import torch
from torch import nn

from compressor.capacity.effective import EffectiveWidths, effective_widths
from compressor.sources.splits import Data, complete


def planted(distinct: int = 8, copies: int = 4) -> nn.Sequential:
    """Every hidden unit stands there `copies` times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = nn.Linear(6, distinct), nn.Linear(distinct, 4)
        wide = nn.Sequential(nn.Linear(6, distinct * copies), nn.ReLU(), nn.Linear(distinct * copies, 4))
        inputs = torch.randn(500, 6)
    with torch.no_grad():
        wide[0].weight.copy_(first.weight.repeat(copies, 1))  # type: ignore[union-attr, operator]
        wide[0].bias.copy_(first.bias.repeat(copies))  # type: ignore[union-attr, operator]
        wide[2].weight.copy_(last.weight.repeat(1, copies) / copies)  # type: ignore[union-attr, operator]
        wide[2].bias.copy_(-wide(inputs).mean(0) + wide[2].bias)  # type: ignore[union-attr, operator]
    return wide.eval()


def labelled(model: nn.Module) -> Data:
    inputs = torch.randn(6_000, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return complete({"calibrate": (inputs, model(inputs).argmax(1))}, "planted")


def found() -> tuple[nn.Module, EffectiveWidths]:
    model = planted()
    return model, effective_widths(model, labelled(model), max_drop=5.0, device="cpu")


def test_copies_are_not_part_of_the_effective_width() -> None:
    model, widths = found()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert widths.verdict == "passed"
    assert [(group.name, group.units, group.frozen) for group in widths.groups] == [("0", 32, None)]
    assert widths.units == 32
    assert 4 <= widths.needed <= 10  # 8 distinct units; 5 points may cost some of them
    assert widths.drop is not None
    assert widths.drop <= 5.0
    assert widths.params < 0.35
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
