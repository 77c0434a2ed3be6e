"""Planted networks: networks with units to spare, and the answer key.

`split` takes any model with its graph and replaces chosen units by clones that share the work. The small
networks have dead, constant, copied, scaled and linearly dependent units in dense, conv, flattened,
residual, concat and depthwise positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.units.cut import set_widths
from compressor.units.graph import UnitGraph, axis_lines
from compressor.units.program import forward


@dataclass(frozen=True)
class Planted:
    """A wide network, and how many units of each group are surplus."""

    model: nn.Module
    surplus: dict[str, int] = field(default_factory=dict)


def choose(graph: UnitGraph, seed: int, groups: float = 0.5, units: float = 0.2) -> dict[str, dict[int, int]]:
    """Random live groups -> random units of each -> number of clones (2 to 4) that replace it.

    Heads and their dimensions, which lie along the same axes, are left alone.
    """
    generator = np.random.default_rng(seed)
    lines = (line for by_axis in axis_lines(graph.axes).values() for line in by_axis.values() if line.ndim > 1)
    crossed = {int(unit) for line in lines for unit in line.reshape(-1)}
    live = [group for group in graph.groups if group.frozen is None and not crossed & set(group.units.tolist())]
    picked = generator.permutation(len(live))[: max(1, round(groups * len(live)))]
    chosen = {}
    for place in sorted(picked.tolist()):
        size = len(live[place].units)
        some = generator.permutation(size)[: max(1, round(units * size))]
        chosen[live[place].name] = {int(u): int(generator.integers(2, 5)) for u in sorted(some)}
    return chosen


def split(
    model: nn.Module,
    graph: UnitGraph,
    chosen: Mapping[str, Mapping[int, int]],
    seed: int = 0,
    norms: Mapping[str, str] | None = None,
) -> Planted:
    """Replace each chosen unit by clones: everything that makes it is repeated, what reads it is shared
    out in random positive shares. With `norms` (layer -> the batch norm right behind it) clones are also
    scaled by random positive factors, which is exact in networks of ReLU, pooling, sums and
    concatenations only.
    """
    wide = copy.deepcopy(model)
    generator = np.random.default_rng([seed, 1])
    clones = np.ones(graph.n_units, dtype=int)
    for group in graph.groups:
        for unit, count in chosen.get(group.name, {}).items():
            clones[group.units[unit]] = count
    factor = [np.exp(generator.uniform(-1, 1, c)) if norms is not None and c > 1 else np.ones(c) for c in clones]
    ends = set((norms or {}).values())
    made: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for axis in graph.axes:
        index, clone = _repeated(axis.units, clones)
        if len(index) == len(axis.units):
            continue
        gain = np.ones(len(index))
        owner, _, leaf = axis.tensor.rpartition(".")
        if axis.role == "consumes":
            shares = [np.ones(1)] * graph.n_units
            for unit in np.unique(axis.units[axis.units >= 0]).tolist():
                if clones[unit] > 1:
                    shares[unit] = generator.dirichlet(np.full(clones[unit], 2.0)) / factor[unit]
            gain = _gains(axis.units, index, clone, shares)
        elif owner in ends and leaf in ("weight", "bias"):
            gain = _gains(axis.units, index, clone, factor)
        made.setdefault(axis.tensor, []).append((axis.axis, torch.from_numpy(index), torch.from_numpy(gain)))
    for name, changes in made.items():
        _widen(wide, name, changes)
    for name in {name.rpartition(".")[0] for name in made}:
        set_widths(wide.get_submodule(name))
    surplus = {name: sum(count - 1 for count in units.values()) for name, units in chosen.items()}
    return Planted(wide, surplus)


def _repeated(units: np.ndarray, clones: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Old position of each new one, and which clone it belongs to: runs of one unit are repeated as a
    whole.
    """
    starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]])
    index, clone = [], []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(units)], strict=True):
        for k in range(int(clones[units[start]]) if units[start] >= 0 else 1):
            index.extend(range(start, end))
            clone.extend([k] * (end - start))
    return np.array(index), np.array(clone)


def _gains(units: np.ndarray, index: np.ndarray, clone: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    return np.array([values[units[i]][k] if units[i] >= 0 else 1.0 for i, k in zip(index, clone, strict=True)])


def _widen(model: nn.Module, name: str, changes: list[tuple[int, Tensor, Tensor]]) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old: Tensor = getattr(owner, leaf)
    new = old.detach().double()
    for axis, index, gain in changes:
        spread = [-1 if d == axis else 1 for d in range(new.dim())]
        new = new.index_select(axis, index) * gain.reshape(spread)
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(new.to(old.dtype)))
    else:
        owner.register_buffer(leaf, new.to(old.dtype))


def awake(model: nn.Module, inputs: Any, seed: int = 0) -> nn.Module:
    """The model with signal at its outputs: batch norms standardise `inputs` and have random scales,
    heads and layer scales that are (next to) zero become random. Changes the model.
    """
    generator = torch.Generator().manual_seed(seed)

    def settle(module: nn.Module, args: tuple[Any, ...]) -> None:
        x, dims = args[0].detach(), [d for d in range(args[0].dim()) if d != 1]
        module.running_mean.copy_(x.mean(dims))
        # a floor: where a few images hardly vary, a norm would blow rounding up
        floor = 0.05 * x.square().mean(dims) + 1e-3
        module.running_var.copy_(torch.maximum(x.var(dims, correction=0), floor))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if float(parameter.abs().max()) < 1e-3 or name.endswith("layer_scale"):  # branches that would not be heard
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.6 * torch.rand(norm.bias.shape, generator=generator) - 0.3)
        handles = [norm.register_forward_pre_hook(settle) for norm in norms]
        forward(model.eval(), inputs)
        for handle in handles:
            handle.remove()
    return model


class Dense(nn.Module):
    """Two hidden layers."""

    def __init__(self, width: int = 16, inputs: int = 10, outputs: int = 5) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Convs(nn.Module):
    """Convolution with padding, one without, then flattened into a linear layer."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.c, self.end = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.norm(self.a(x)))))
        x = F.relu(self.end(self.c(x)))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Residual(nn.Module):
    """Two producers and two consumers of one stream."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem, self.a, self.b = (
            nn.Conv2d(3, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches that meet in one consumer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(3, width, 1)
        self.c, self.head = nn.Conv2d(2 * width, width, 3, padding=1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)))
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, width, 1, bias=False), nn.BatchNorm2d(width)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.project, self.head = nn.Conv2d(width, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.deep(F.relu6(self.norm(self.a(x)))))
        x = x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.project(x).mean((2, 3)))


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (Dense, (10,)),
    "convs": (Convs, (3, 8, 8)),
    "residual": (Residual, (3, 8, 8)),
    "concat": (Concat, (3, 8, 8)),
    "depthwise": (Depthwise, (3, 8, 8)),
}


def small(name: str, seed: int = 0, count: int = 64) -> tuple[nn.Module, Tensor]:
    """A lean network of that wiring in float64 with signal, and inputs."""
    build, shape = SMALL[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = torch.randn(count, *shape, dtype=torch.float64)
        return awake(build().double(), inputs, seed), inputs
