"""More networks for images whose layers grow with `width`: Inception, and a small CNN with a chunk ladder.

`taps` names the modules that papers on width measure, as in families.py. Casper et al. (arXiv:1912.04783) measure
Inception-v3 at its first convolutions and after every mixed block, and widen one block alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _units(count: float) -> int:
    return max(2, round(count))


class SmallCNN(nn.Module):
    """Two convolutions, then one of `width` units that is averaged over positions: no ReLU before that average.

    As in Doimo et al.'s networks (arXiv:2106.03485) the last hidden units are means that can be negative, and chunks
    are taken of them.
    """

    taps = ("act1", "act2", "pool")

    def __init__(self, width: int, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.input_shape = (channels, size, size)
        one, two = _units(width / 4), _units(width / 2)
        self.conv1, self.bn1, self.act1 = nn.Conv2d(channels, one, 3, 2, 1, bias=False), nn.BatchNorm2d(one), nn.ReLU()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(one, two, 3, 2, 1, bias=False), nn.BatchNorm2d(two), nn.ReLU()
        self.conv3, self.bn3 = nn.Conv2d(two, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images -> scores."""
        features = self.act1(self.bn1(self.conv1(images)))
        features = self.act2(self.bn2(self.conv2(features)))
        return self.head(self.pool(self.bn3(self.conv3(features))))


def small_cnn(width: int = 64, channels: int = 1, size: int = 28, classes: int = 10) -> SmallCNN:
    """`width` is the last hidden layer's; the layers before it have a quarter and a half of it."""
    return SmallCNN(width, channels, size, classes)


class Mixed(nn.Module):
    """A block of Inception: 1 x 1, 3 x 3 and 5 x 5 (as two 3 x 3) convolutions and pooling, side by side."""

    def __init__(self, before: int, units: int) -> None:
        super().__init__()
        half = _units(units / 2)
        self.one = _convolved(before, units, 1)
        self.three = nn.Sequential(_convolved(before, half, 1), _convolved(half, units, 3))
        self.five = nn.Sequential(_convolved(before, half, 1), _convolved(half, half, 3), _convolved(half, half, 3))
        self.pooled = _convolved(before, half, 1)
        self.units = 2 * units + 2 * half

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps -> the maps of all branches."""
        pooled = F.avg_pool2d(features, 3, 1, 1)
        branches = [self.one(features), self.three(features), self.five(features), self.pooled(pooled)]
        return torch.cat(branches, dim=1)


def _convolved(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class SmallInception(nn.Module):
    """A stem and four blocks for 28 x 28 or 32 x 32 images; measured at the stem and after every block."""

    taps = ("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3")

    def __init__(self, stem: int, units: list[int], channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.input_shape = (channels, size, size)
        self.stem = _convolved(channels, stem, 3)
        blocks, before = [], stem
        for count in units:
            blocks.append(Mixed(before, count))
            before = blocks[-1].units
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images -> scores."""
        features = self.stem(images)
        for place, block in enumerate(self.blocks):
            features = block(F.max_pool2d(features, 2) if place in (1, 3) else features)
        return self.head(features.mean((2, 3)))


def inception(
    width: float = 1.0, block: int | None = None, channels: int = 3, size: int = 32, classes: int = 10
) -> SmallInception:
    """A small Inception: 32 stem units, branches of 16, 16, 32, 32. `block` alone is widened if named."""
    factors = [width if block in (None, place) else 1.0 for place in range(4)]
    units = [_units(count * factor) for count, factor in zip((16, 16, 32, 32), factors, strict=True)]
    return SmallInception(_units(32 * (width if block is None else 1.0)), units, channels, size, classes)


def inception_v3(width: float = 1.0, classes: int = 1000) -> nn.Module:
    """torchvision's Inception v3 without its auxiliary head, every layer `width` times as wide (in sixteenths).

    Raises ValueError where a layer would get no whole number of units.
    """
    from torchvision.models import inception as source

    def scaled(count: int) -> int:
        if count * width != int(count * width):
            raise ValueError(f"width {width} gives {count * width} units; take multiples of 1/16")
        return int(count * width)

    class Convolution(source.BasicConv2d):
        """Convolution, batch norm and ReLU with scaled units; three input channels are the image's."""

        def __init__(self, in_channels: int, out_channels: int, **more: Any) -> None:
            super().__init__(in_channels if in_channels == 3 else scaled(in_channels), scaled(out_channels), **more)

    kinds = ("InceptionA", "InceptionB", "InceptionC", "InceptionD", "InceptionE", "InceptionAux")
    blocks: list[Any] = [Convolution, *(partial(getattr(source, kind), conv_block=Convolution) for kind in kinds)]
    made = source.Inception3(classes, aux_logits=False, inception_blocks=blocks, init_weights=False, dropout=0.0)
    made.fc = nn.Linear(scaled(2048), classes)
    first = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    made.taps = (*first, *(name for name, _ in made.named_children() if name.startswith("Mixed")))  # pyright: ignore
    return made
