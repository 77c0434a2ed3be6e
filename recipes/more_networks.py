"""More networks to compare methods on: depthwise, densely connected, a small ViT, an MLP on a table of features.

No choice of the method was ever taken on these: they show what it does on networks that nobody tuned it for.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from networks import scaled
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.sources.named import fashion_mnist
from compressor.sources.samples import as_samples


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter each channel by itself, narrow by 1 x 1; with a skip where shapes allow (MobileNetV2)."""

    def __init__(self, fan_in: int, inner: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(fan_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.narrow = nn.Conv2d(inner, fan_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(fan_out)
        self.skip = stride == 1 and fan_in == fan_out

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) -> (N, C', H / stride, W / stride)."""
        inner = F.relu6(self.bn1(self.widen(features)))
        inner = F.relu6(self.bn2(self.depthwise(inner)))
        narrow = self.bn3(self.narrow(inner))
        return features + narrow if self.skip else narrow


class MobileNet(nn.Module):
    """A strided stem, six inverted residuals, average pooling."""

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        plan = [(24, 1), (24, 1), (48, 2), (48, 1), (96, 2), (96, 1)]
        fan_in = scaled(24, width)
        self.stem = nn.Sequential(nn.Conv2d(1, fan_in, 3, 2, 1, bias=False), nn.BatchNorm2d(fan_in), nn.ReLU6())
        blocks: list[nn.Module] = []
        for size, stride in plan:
            blocks.append(InvertedResidual(fan_in, 4 * fan_in, scaled(size, width), stride))
            fan_in = scaled(size, width)
        last = scaled(256, width)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(fan_in, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6())
        self.fc = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        return self.fc(self.head(self.blocks(self.stem(images))).mean((2, 3)))


class DenseLayer(nn.Module):
    """Norm, ReLU, 3 x 3 convolution; its output is put beside its input."""

    def __init__(self, fan_in: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(fan_in)
        self.conv = nn.Conv2d(fan_in, growth, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) -> (N, C + growth, H, W)."""
        return torch.cat([features, self.conv(F.relu(self.norm(features)))], dim=1)


class DenseNet(nn.Module):
    """Three dense blocks of four layers with halving transitions (Huang et al. 2017)."""

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        channels, growth = scaled(24, width), scaled(16, width)
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, 2, 1, bias=False)]
        for block in range(3):
            for _ in range(4):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            if block < 2:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                channels //= 2
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        return self.fc(self.features(images).mean((2, 3)))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each behind a layer norm and around a skip."""

    def __init__(self, size: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size)
        self.up = nn.Linear(size, hidden)
        self.down = nn.Linear(hidden, size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, C) -> (N, T, C)."""
        count, length, size = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).reshape(count, length, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(count, length, size))
        return tokens + self.down(F.gelu(self.up(self.norm2(tokens))))


class AttentionBlock(nn.Module):
    """The same as `EncoderBlock`, with torch's attention module, whose heads can go as well."""

    def __init__(self, size: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size)
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(size)
        self.up = nn.Linear(size, hidden)
        self.down = nn.Linear(hidden, size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, C) -> (N, T, C)."""
        inside = self.norm1(tokens)
        tokens = tokens + self.attention(inside, inside, inside, need_weights=False)[0]
        return tokens + self.down(F.gelu(self.up(self.norm2(tokens))))


class ViT(nn.Module):
    """Patches of 7 x 7, four encoder blocks of 64 features and 4 heads; only the hidden layers grow with `width`."""

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0, num_classes: int = 10, block: type[nn.Module] = EncoderBlock) -> None:
        super().__init__()
        size = 64
        self.patches = nn.Conv2d(1, size, 7, 7)
        self.places = nn.Parameter(torch.randn(1, 16, size) * 0.02)
        self.blocks = nn.Sequential(*(block(size, 4, scaled(512, width)) for _ in range(4)))
        self.norm = nn.LayerNorm(size)
        self.fc = nn.Linear(size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.fc(self.norm(self.blocks(tokens)).mean(1))


class TableMLP(nn.Module):
    """Three hidden layers with batch norm for rows of a table."""

    input_shape = (147,)

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        sizes = [147, *(scaled(512, width),) * 3]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(sizes[-1], num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (N, 147) -> scores (N, num_classes)."""
        return self.fc(self.layers(rows))


def mobilenet(width: float = 1.0, num_classes: int = 10) -> MobileNet:
    """Six inverted residuals: depthwise convolutions, skips, ReLU6."""
    return MobileNet(width, num_classes)


def densenet(width: float = 1.0, num_classes: int = 10) -> DenseNet:
    """Twelve densely connected layers."""
    return DenseNet(width, num_classes)


def vit(width: float = 1.0, num_classes: int = 10) -> ViT:
    """Four encoder blocks with 512 hidden units each."""
    return ViT(width, num_classes)


def vit_heads(width: float = 1.0, num_classes: int = 10) -> ViT:
    """The same four encoder blocks with torch's attention module: heads and their dimensions are units, too."""
    return ViT(width, num_classes, AttentionBlock)


class RowReader(nn.Module):
    """An LSTM that reads an image row by row, and a linear layer on its last state."""

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        hidden = scaled(128, width)
        self.rnn = nn.LSTM(28, hidden, num_layers=2, batch_first=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        _, (state, _) = self.rnn(images.squeeze(1))
        return self.fc(state[-1])


def lstm(width: float = 1.0, num_classes: int = 10) -> RowReader:
    """Two layers of 128."""
    return RowReader(width, num_classes)


def table_mlp(width: float = 1.0, num_classes: int = 10) -> TableMLP:
    """Three hidden layers of 512 with batch norm."""
    return TableMLP(width, num_classes)


def fashion_table() -> dict[str, Any]:
    """Fashion-MNIST as a table: mean, maximum and deviation of each of 49 patches, scaled to mean 0 and deviation 1.

    The parts are those of `fashion-mnist`; the scale is that of the training part.
    """
    tables: dict[str, tuple[Tensor, Any]] = {}
    for name, part in fashion_mnist().items():
        samples = as_samples(part)
        images, labels = samples.batch(range(len(samples)))
        assert isinstance(images, Tensor)
        tables[name] = _features(images), labels
    mean, deviation = tables["train"][0].mean(0), tables["train"][0].std(0)
    return {name: ((rows - mean) / deviation, labels) for name, (rows, labels) in tables.items()}


def _features(images: Tensor) -> Tensor:
    patches = F.unfold(images, 4, stride=4)  # (N, 16, 49)
    return torch.cat([patches.mean(1), patches.amax(1), patches.std(1)], dim=1)
