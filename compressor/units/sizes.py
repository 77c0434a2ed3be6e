"""Parameters and multiply-accumulates as functions of which units stay, without building the network.

Both are products of axis widths, so the size of any plan, and the saving of any single unit, is exact
arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import nn

from compressor.units.cut import keep_mask, positions
from compressor.units.graph import UnitGraph, axis_lines


class SizeTable(Protocol):
    """What an allocation needs to know of sizes: how large a network is, and what each unit saves."""

    def total(self, measure: str, mask: np.ndarray) -> float:
        """The size by `measure` if exactly the units in `mask` (bool, one entry per unit) stay."""
        ...

    def saving(self, measure: str, mask: np.ndarray) -> np.ndarray:
        """For each unit of `mask`, what the network would lose in size if that unit alone were dropped."""
        ...


@dataclass(frozen=True)
class _Box:
    """A quantity `scale * product over axes of the number of entries that stay`; axes are unit lines."""

    scale: float
    lines: tuple[np.ndarray, ...]


class Sizes:
    """`Sizes(model, graph).total("params", mask)` and `.saving("macs", mask)` per unit; masks are bool per
    unit."""

    def __init__(self, model: nn.Module, graph: UnitGraph) -> None:
        self._n = graph.n_units
        lines = axis_lines(graph.axes)
        parameters = dict(model.named_parameters())
        boxes = [_box(tuple(p.shape), p.numel(), lines.get(name, {})) for name, p in parameters.items()]
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        macs = [_box(shapes[o.weight], o.macs, lines.get(o.weight, {})) for o in graph.operations]
        self._boxes = {"params": boxes, "macs": macs}

    def total(self, measure: str, mask: np.ndarray) -> int:
        """Parameters (`params`) or multiply-accumulates per sample (`macs`) if exactly the units in `mask`
        stay."""
        value = 0.0
        for box in self._boxes[measure]:
            value += box.scale * np.prod([len(positions(line, mask)) for line in box.lines], initial=1.0)
        return round(value)

    def saving(self, measure: str, mask: np.ndarray) -> np.ndarray:
        """For each unit, what the network would lose in size if that unit alone were dropped from `mask`.

        Exact, also where one unit lies along both axes of a weight.
        """
        saved = np.zeros(self._n)
        for box in self._boxes[measure]:
            if not box.lines:
                continue
            counts = [len(positions(line, mask)) for line in box.lines]
            owned = [owned_by(line, mask) for line in box.lines]
            units = np.unique(np.concatenate([mine[mask[mine]] for mine in owned]))
            rest = np.ones(len(units))
            for count, mine in zip(counts, owned, strict=True):
                rest *= count - np.bincount(mine, minlength=self._n)[units]
            saved[units] += box.scale * (float(np.prod(counts, initial=1.0)) - rest)
        return saved


def owned_by(line: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The unit of every position that has one; with several views, of every position that stays, in each view."""
    if line.ndim > 1:
        line = line[:, positions(line, mask)].reshape(-1)
    return line[line >= 0]


def size_of(work: nn.Module, graph: UnitGraph, kept: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Parameters and multiply-accumulates per sample if only `kept` stays."""
    sizes, mask = Sizes(work, graph), keep_mask(graph, kept)
    return {measure: sizes.total(measure, mask) for measure in ("params", "macs")}


def _box(shape: tuple[int, ...], amount: float, lines: dict[int, np.ndarray]) -> _Box:
    scale = float(amount)
    for axis in lines:
        scale /= shape[axis]
    return _Box(scale, tuple(lines.values()))
