"""The dry run itself: rounding is no reason to freeze."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.units.check import checked
from compressor.units.trace import trace


class Deep(nn.Module):
    """Twelve inverted bottlenecks on maps of one pixel: centred anew in every layer, they amplify rounding by ten
    orders.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        wide, layers = 2 * width, []
        for _ in range(12):
            layers += [nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            layers += [nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            layers += [nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.stem, self.blocks, self.head = nn.Conv2d(3, width, 1), nn.Sequential(*layers), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_deep_networks_on_small_maps_are_live() -> None:
    torch.manual_seed(0)
    model, x = Deep().eval(), torch.randn(2, 3, 1, 1)
    graph = checked(model, trace(model, x), x)
    assert {group.frozen for group in graph.groups} == {None, "model output"}
