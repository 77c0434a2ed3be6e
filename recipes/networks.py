"""The networks that the recipes train: plain PyTorch, each with a `width` that scales all of its layers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, at least 4."""
    return max(4, round(channels * width))


class DigitsCNN(nn.Module):
    """Three convolutions and a hidden layer for 8 x 8 digits: far wider than ten digits need."""

    input_shape = (1, 8, 8)

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()
        narrow, middle, wide = scaled(48, width), scaled(96, width), scaled(128, width)
        self.conv1 = nn.Conv2d(1, narrow, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, middle, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, wide, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(wide)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(wide * 4, scaled(256, width))
        self.head = nn.Linear(scaled(256, width), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) -> scores (N, num_classes)."""
        features = F.relu(self.norm1(self.conv1(images)))
        features = self.pool(F.relu(self.norm2(self.conv2(features))))
        features = self.pool(F.relu(self.norm3(self.conv3(features))))
        return self.head(F.relu(self.hidden(features.flatten(1))))


class MLP(nn.Module):
    """Fully connected layers with ReLU."""

    input_shape = (1, 28, 28)

    def __init__(self, hidden: tuple[int, ...], num_classes: int = 10) -> None:
        super().__init__()
        sizes = [28 * 28, *hidden]
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes))
        self.fc = nn.Linear(sizes[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        features = images.flatten(1)
        for layer in self.layers:
            features = torch.relu(layer(features))
        return self.fc(features)


class VGG(nn.Module):
    """Six 3 x 3 convolutions with batch norm, pooled after the first, second and fourth; one hidden layer."""

    input_shape = (1, 28, 28)
    pool_after = (0, 1, 3)

    def __init__(self, channels: tuple[int, ...], hidden: int, num_classes: int = 10) -> None:
        super().__init__()
        sizes = [1, *channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False) for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(size) for size in channels)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(channels[-1] * 9, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        features = images
        for place, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            features = F.relu(norm(conv(features)))
            if place in self.pool_after:
                features = self.pool(features)
        return self.fc(F.relu(self.hidden(features.flatten(1))))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a skip connection."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.proj = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.proj = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out))

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) -> (N, C', H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(inner)) + self.proj(features))


class ResNet(nn.Module):
    """A strided stem, three stages of two residual blocks, average pooling."""

    input_shape = (1, 28, 28)

    def __init__(self, channels: tuple[int, ...], num_classes: int = 10) -> None:
        super().__init__()
        first = channels[0]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        blocks: list[nn.Module] = []
        fan_in = first
        for stage, size in enumerate(channels):
            blocks += [ResidualBlock(fan_in, size, 1 if stage == 0 else 2), ResidualBlock(size, size, 1)]
            fan_in = size
        self.blocks = nn.ModuleList(blocks)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(fan_in, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        features = self.stem(images)
        for block in self.blocks:
            features = block(features)
        return self.fc(self.gap(features).flatten(1))


def conv_norm_relu(fan_in: int, fan_out: int, size: int) -> nn.Sequential:
    """A convolution that keeps height and width, batch norm, ReLU."""
    conv = nn.Conv2d(fan_in, fan_out, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out), nn.ReLU())


class InceptionBlock(nn.Module):
    """Four branches side by side: 1 x 1, 3 x 3, 5 x 5 and pooling, concatenated."""

    def __init__(self, fan_in: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.b1 = conv_norm_relu(fan_in, one, 1)
        self.b2 = nn.Sequential(conv_norm_relu(fan_in, three[0], 1), conv_norm_relu(*three, 3))
        self.b3 = nn.Sequential(conv_norm_relu(fan_in, five[0], 1), conv_norm_relu(*five, 5))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm_relu(fan_in, pooled, 1))
        self.out = one + three[1] + five[1] + pooled

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) -> (N, self.out, H, W)."""
        branches = (self.b1, self.b2, self.b3, self.b4)
        return torch.cat([branch(features) for branch in branches], dim=1)


class Inception(nn.Module):
    """A stem and three inception blocks, average pooling."""

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0, num_classes: int = 10) -> None:
        super().__init__()

        def sized(channels: int) -> int:
            return scaled(channels, width)

        def block(fan_in: int, *sizes: int) -> InceptionBlock:
            one, three_in, three, five_in, five, pooled = map(sized, sizes)
            return InceptionBlock(fan_in, one, (three_in, three), (five_in, five), pooled)

        self.stem = conv_norm_relu(1, sized(48), 3)
        self.pool1 = nn.MaxPool2d(2)
        self.i1 = block(sized(48), 32, 32, 48, 12, 24, 24)
        self.pool2 = nn.MaxPool2d(2)
        self.i2 = block(self.i1.out, 64, 64, 96, 24, 48, 48)
        self.i3 = block(self.i2.out, 96, 96, 160, 24, 64, 64)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.i3.out, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) -> scores (N, num_classes)."""
        features = self.i1(self.pool1(self.stem(images)))
        features = self.i3(self.i2(self.pool2(features)))
        return self.fc(self.gap(features).flatten(1))


def digits_cnn(width: float = 1.0, num_classes: int = 10) -> DigitsCNN:
    """The quickstart's network for 8 x 8 digits: 290 thousand parameters at width 1."""
    return DigitsCNN(width, num_classes)


def mlp(width: float = 1.0, num_classes: int = 10) -> MLP:
    """Three hidden layers of 1024: 2.91 million parameters at width 1."""
    return MLP((scaled(1024, width),) * 3, num_classes)


def vgg(width: float = 1.0, num_classes: int = 10) -> VGG:
    """64, 64, 128, 128, 256, 256 channels and 256 hidden: 1.74 million parameters at width 1."""
    channels = tuple(scaled(size, width) for size in (64, 64, 128, 128, 256, 256))
    return VGG(channels, scaled(256, width), num_classes)


def resnet(width: float = 1.0, num_classes: int = 10) -> ResNet:
    """Stages of 32, 64 and 128 channels: 0.70 million parameters at width 1."""
    return ResNet(tuple(scaled(size, width) for size in (32, 64, 128)), num_classes)


def inception(width: float = 1.0, num_classes: int = 10) -> Inception:
    """Three inception blocks: 0.39 million parameters at width 1."""
    return Inception(width, num_classes)
