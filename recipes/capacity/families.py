"""Networks whose every hidden layer grows with `width`, as two papers on width use them; plain PyTorch.

`taps` names the modules that the papers measure: values after the activation, before pooling. Casper et al.
(arXiv:1912.04783) measure AlexNet, ResNet-56, ResNet-18 and shallow MLPs; Doimo et al. (arXiv:2106.03485) the last
hidden layer of WRN-28, DenseNet-40, an MLP on the parity of digits, and ResNet-50.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def at_least(count: float, least: int = 2) -> int:
    """Units of a layer."""
    return max(least, round(count))


class MLP(nn.Module):
    """`depth` hidden layers of `width` units with ReLU, dropout after each."""

    def __init__(self, inputs: int, width: int, depth: int, classes: int, dropout: float) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(depth))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self.taps = tuple(f"acts.{place}" for place in range(depth))
        self.input_shape = (inputs,)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) -> scores (N, classes)."""
        features = inputs.flatten(1)
        for layer, act in zip(self.layers, self.acts, strict=True):
            features = self.drop(act(layer(features)))
        return self.head(features)


def mlp(width: int = 128, depth: int = 2, inputs: int = 784, classes: int = 10, dropout: float = 0.0) -> MLP:
    """The ladder of MLPs: `width` is the number of units."""
    return MLP(inputs, width, depth, classes, dropout)


def shallow(width: int = 128, dimension: int = 10, spread: float = 1.0) -> MLP:
    """The shallow student of Casper et al.: one hidden layer, truncated normal weights, biases 0.

    Standard deviations 1e-3 · `spread` of the first layer and 1e-2 · `spread` of the second, as published.
    """
    made = MLP(dimension, width, 1, 2, 0.0)
    for layer, deviation in ((made.layers[0], 1e-3), (made.head, 1e-2)):
        assert isinstance(layer, nn.Linear)
        _truncated(layer, deviation * spread)
    return made


def parity_mlp(width: int = 512, inputs: int = 10) -> MLP:
    """Five hidden layers on the first principal components of images, orthogonal weights, biases 0.

    Two scores and cross-entropy stand for the published scalar output with a square hinge loss.
    """
    made = MLP(inputs, width, 5, 2, 0.0)
    for layer in (*made.layers, made.head):
        assert isinstance(layer, nn.Linear)
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return made


def teacher(dimension: int = 10, samples: int = 1000, test: int = 10_000, seed: int = 0) -> dict[str, object]:
    """Normal inputs labelled by a fixed random teacher: dimension -> 32 ReLU -> 2, weights of deviation 1e-2, biases 0.

    Training and validation sets are of the same size, the test set larger than the published 1,000, because 768
    samples are too few for R95 of 512 units.
    """
    draws = torch.Generator().manual_seed(seed)
    first, second = (_draw(shape, 1e-2, draws) for shape in ((32, dimension), (2, 32)))

    def part(count: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(count, dimension, generator=draws, dtype=torch.float64)
        labels = ((inputs @ first.T).relu() @ second.T).argmax(1)
        return inputs.float(), labels

    return {"train": part(samples), "tune": part(samples), "judge": part(test), "calibrate": part(samples)[0]}


def _draw(shape: tuple[int, ...], deviation: float, draws: torch.Generator) -> Tensor:
    values = torch.empty(shape, dtype=torch.float64)
    return nn.init.trunc_normal_(values, 0.0, deviation, -2 * deviation, 2 * deviation, generator=draws)


def _truncated(layer: nn.Linear, deviation: float) -> None:
    nn.init.trunc_normal_(layer.weight, 0.0, deviation, -2 * deviation, 2 * deviation)
    nn.init.zeros_(layer.bias)


class AlexNet(nn.Module):
    """Casper et al.'s AlexNet for 32 x 32 (or 28 x 28) images: no batch norm, local response normalisation."""

    taps = ("act1", "act2", "act3", "act4")

    def __init__(self, units: tuple[int, int, int, int], channels: int, size: int, classes: int, drop: float) -> None:
        super().__init__()
        one, two, three, four = units
        self.input_shape = (channels, size, size)
        self.conv1, self.act1 = nn.Conv2d(channels, one, 5, padding=2), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(one, two, 5, padding=2), nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)  # torch divides alpha by its size
        side = (((size + 1) // 2) + 1) // 2
        self.fc3, self.act3 = nn.Linear(two * side * side, three), nn.ReLU()
        self.fc4, self.act4 = nn.Linear(three, four), nn.ReLU()
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(four, classes)
        for layer, bias in ((self.conv1, 0.0), (self.conv2, 0.1), (self.fc3, 0.1), (self.fc4, 0.1), (self.head, 0.0)):
            nn.init.xavier_normal_(layer.weight)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, size, size) -> scores (N, classes)."""
        features = self.lrn(self.pool(self.act1(self.conv1(images))))
        features = self.lrn(self.pool(self.act2(self.conv2(features)))).flatten(1)
        features = self.drop(self.act3(self.fc3(features)))
        return self.head(self.drop(self.act4(self.fc4(features))))


def alexnet(
    width: float = 1.0, channels: int = 3, size: int = 32, classes: int = 10, dropout: float = 0.0, base: int = 96
) -> AlexNet:
    """96, 256, 384 and 192 units at width 1 and base 96 (7.0 million parameters on CIFAR-10); Glorot normal weights."""
    one, two, three, four = (at_least(count * base / 96 * width) for count in (96, 256, 384, 192))
    return AlexNet((one, two, three, four), channels, size, classes, dropout)


class Basic(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a skip; projection in a group's first block."""

    def __init__(self, before: int, after: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.skip = skip if project else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps -> feature maps."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        return self.act(inner + self.skip(features))


class ResNetCifar(nn.Module):
    """ResNet v1 for CIFAR: a stem and three groups of basic blocks; measured at the stem and after every group."""

    taps = ("stem", "groups.0", "groups.1", "groups.2")

    def __init__(self, units: tuple[int, ...], blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        stem = units[0]
        self.input_shape = (channels, 32, 32)
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        groups, before = [], stem
        for place, after in enumerate(units):
            stride = 1 if place == 0 else 2
            rest = [Basic(after, after, 1, False) for _ in range(blocks - 1)]
            groups.append(nn.Sequential(Basic(before, after, stride, True), *rest))
            before = after
        self.groups = nn.ModuleList(groups)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images -> scores."""
        features = self.stem(images)
        for group in self.groups:
            features = group(features)
        return self.head(features.mean((2, 3)))


def resnet56(width: float = 1.0, blocks: int = 9, channels: int = 3, classes: int = 10) -> ResNetCifar:
    """16, 32 and 64 units at width 1, nine blocks a group: 856,058 parameters on CIFAR-10, as published."""
    one, two, three = (at_least(count * width) for count in (16, 32, 64))
    return ResNetCifar((one, two, three), blocks, channels, classes)


class PreActivation(nn.Module):
    """Batch norm and ReLU before each convolution; a 1 x 1 convolution on the skip where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), nn.Conv2d(after, after, 3, 1, 1, bias=False)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps -> feature maps."""
        first = F.relu(self.bn1(features))
        skip = features if isinstance(self.skip, nn.Identity) else self.skip(first)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(first))))


class WideResNet(nn.Module):
    """Doimo et al.'s Wide-ResNet-28: [4, 4, 4] blocks, a last batch norm without ReLU, average pooling."""

    taps = ("pool",)

    def __init__(self, stem: int, units: tuple[int, ...], blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.input_shape = (channels, 32, 32)
        layers: list[nn.Module] = [nn.Conv2d(channels, stem, 3, 1, 1, bias=False)]
        before = stem
        for place, after in enumerate(units):
            for block in range(blocks):
                layers.append(PreActivation(before, after, 2 if place and not block else 1))
                before = after
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(before))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images -> scores."""
        return self.head(self.pool(self.body(images)))


def wrn28(width: int = 512, blocks: int = 4, channels: int = 3, classes: int = 10) -> WideResNet:
    """`width` is the last hidden layer's, the groups before it have a quarter and a half of it; stem at most 16."""
    units = tuple(at_least(width / part) for part in (4, 2, 1))
    return WideResNet(min(16, units[0]), units, blocks, channels, classes)


class DenseLayer(nn.Module):
    """A bottleneck layer whose output is added to the features as further units."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps -> the same with `growth` more units."""
        inner = self.conv1(F.relu(self.bn1(features)))
        return torch.cat([features, self.conv2(F.relu(self.bn2(inner)))], dim=1)


class DenseNet(nn.Module):
    """Doimo et al.'s DenseNet-40-BC: three blocks of bottleneck layers, compression 1/2, no ReLU before pooling."""

    taps = ("pool",)

    def __init__(self, stem: int, layers: int, channels: int, classes: int) -> None:
        super().__init__()
        self.input_shape = (channels, 32, 32)
        parts: list[nn.Module] = [nn.Conv2d(channels, stem, 3, 1, 1, bias=False)]
        units, growth = stem, at_least(stem / 2)
        for block in range(3):
            for _ in range(layers):
                parts.append(DenseLayer(units, growth))
                units += growth
            if block < 2:
                half = units // 2
                parts += [nn.BatchNorm2d(units), nn.ReLU(), nn.Conv2d(units, half, 1, bias=False), nn.AvgPool2d(2)]
                units = half
        self.body = nn.Sequential(*parts, nn.BatchNorm2d(units))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(units, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images -> scores."""
        return self.head(self.pool(self.body(images)))


def densenet40(width: int = 64, layers: int = 6, channels: int = 3, classes: int = 10) -> DenseNet:
    """`width` is the number of first channels c; the last hidden layer has 5.5 c units."""
    return DenseNet(width, layers, channels, classes)


def resnet18(width: float = 1.0, classes: int = 1000) -> nn.Module:
    """torchvision's ResNet-18 with 64 · `width` first channels."""
    return _torchvision((2, 2, 2, 2), "BasicBlock", width, classes)


def resnet50(width: float = 1.0, classes: int = 1000) -> nn.Module:
    """torchvision's ResNet-50 with 64 · `width` first channels."""
    return _torchvision((3, 4, 6, 3), "Bottleneck", width, classes)


def _torchvision(blocks: tuple[int, ...], block: str, width: float, classes: int) -> nn.Module:
    from torchvision.models import resnet

    class Scaled(resnet.ResNet):
        """A ResNet whose first channels, and with them all, are scaled."""

        taps = ("relu", "layer1", "layer2", "layer3", "layer4")

        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            if planes == 64:  # the stem was built at the full number: again, scaled
                self.inplanes = at_least(64 * width)
                self.conv1 = nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
                self.bn1 = nn.BatchNorm2d(self.inplanes)
            return super()._make_layer(block, at_least(planes * width), blocks, stride, dilate)

    kind = getattr(resnet, block)
    made = Scaled(kind, list(blocks), num_classes=classes)
    made.fc = nn.Linear(at_least(512 * width) * kind.expansion, classes)
    return made


def parity(images: int = 10_000, components: int = 10, source: str = "fashion-mnist") -> dict[str, object]:
    """The first principal components of images (not rescaled), labelled by whether the class is odd."""
    from compressor.sources.data import load_data

    data = load_data(source)
    assert data.train is not None
    parts = {"train": data.train, "calibrate": data.calibrate, "tune": data.tune, "judge": data.judge}
    raw = {name: part.batch(range(min(images, len(part)))) for name, part in parts.items()}
    flat = {name: inputs.flatten(1).double() for name, (inputs, _) in raw.items()}
    mean = flat["train"].mean(0)
    covariance = (flat["train"] - mean).T @ (flat["train"] - mean)
    axes = torch.linalg.eigh(covariance).eigenvectors[:, -components:]
    found: dict[str, object] = {}
    for name, (_, labels) in raw.items():
        values = ((flat[name] - mean) @ axes).float()
        assert labels is not None
        found[name] = values if name == "calibrate" else (values, labels % 2)
    return found
