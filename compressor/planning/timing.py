"""Latency as a size: layer times measured on a grid of widths, read for any plan like parameters or MACs.

A layer's time is nearly bilinear in what it reads and what it writes, but the runtime works in blocks of channels:
totals are read at widths rounded up to the block (the staircase), savings of single units on the slope between the
steps, so that a unit is worth its part of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.units.cut import positions
from compressor.units.graph import UnitGraph, axis_lines
from compressor.units.sizes import Sizes, owned_by

LATENCY = "latency"
"""The measure that `TimedSizes` adds; in microseconds of one call."""


@dataclass(frozen=True)
class LayerTimes:
    """Microseconds of one layer: `micros[i, j]` where `widths[0][i]` and `widths[1][j]` entries of its weight stay.

    Widths are those of the weight's first two axes; they rise to the original's. An axis that cannot shrink has one.
    """

    weight: str
    widths: tuple[tuple[int, ...], tuple[int, ...]]
    micros: np.ndarray
    reads: int
    """The axis along which the layer reads (0 or 1)."""
    entering: float
    """Numbers that enter the layer in one call at full width."""

    def at(self, first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
        """Times at any widths: bilinear between the points, straight on below the smallest, never below 0."""
        (i, s), (j, t) = _place(self.widths[0], first), _place(self.widths[1], second)
        k, m = np.minimum(i + 1, len(self.widths[0]) - 1), np.minimum(j + 1, len(self.widths[1]) - 1)
        low = (1 - t) * self.micros[i, j] + t * self.micros[i, m]
        high = (1 - t) * self.micros[k, j] + t * self.micros[k, m]
        return np.maximum((1 - s) * low + s * high, 0.0)


def falling(micros: np.ndarray) -> np.ndarray:
    """Times without what only noise explains: a narrower layer is never slower, as it could be padded to a wider one.

    Disturbances only ever add time, so that the smaller of two contradicting times is the better one.
    """
    for axis in range(micros.ndim):
        micros = np.flip(np.minimum.accumulate(np.flip(micros, axis), axis), axis)
    return micros


class TimedSizes:
    """`Sizes` with a third measure, `latency`: layers from the table, and the rest of the network.

    The rest (pooling, sums, reordering, ...) shrinks with the numbers that enter the layers.
    """

    def __init__(self, sizes: Sizes, graph: UnitGraph, layers: Sequence[LayerTimes], rest: float, block: int) -> None:
        lines = axis_lines(graph.axes)
        self._plain, self._n, self._block, self._rest = sizes, graph.n_units, block, rest
        self._layers = [(layer, _lines(layer, lines.get(layer.weight, {}))) for layer in layers]
        self._entering = max(sum(layer.entering for layer in layers), 1.0)

    def total(self, measure: str, mask: np.ndarray) -> float:
        """Microseconds of a call (`latency`), or what `Sizes.total` says, if exactly the units in `mask` stay."""
        if measure != LATENCY:
            return self._plain.total(measure, mask)
        time, entering = 0.0, 0.0
        for layer, lines in self._layers:
            counts = [len(positions(line, mask)) for line in lines]
            time += float(
                layer.at(*(self._up(count, line.shape[-1]) for count, line in zip(counts, lines, strict=True)))
            )
            entering += layer.entering * counts[layer.reads] / lines[layer.reads].shape[-1]
        return time + self._rest * entering / self._entering

    def saving(self, measure: str, mask: np.ndarray) -> np.ndarray:
        """What the network would lose in size if one unit alone were dropped from `mask`, for each unit."""
        if measure != LATENCY:
            return self._plain.saving(measure, mask)
        saved = np.zeros(self._n)
        for layer, lines in self._layers:
            owned = [owned_by(line, mask) for line in lines]
            units = np.unique(np.concatenate([mine[mask[mine]] for mine in owned]))
            if not len(units):
                continue
            counts = [len(positions(line, mask)) for line in lines]
            gone = [np.bincount(mine, minlength=self._n)[units] for mine in owned]
            less = layer.at(*(count - lost for count, lost in zip(counts, gone, strict=True)))
            per_entry = self._rest * layer.entering / self._entering / lines[layer.reads].shape[-1]
            saved[units] += layer.at(*counts) - less + per_entry * gone[layer.reads]
        return saved

    def _up(self, count: int, most: int) -> int:
        return min(-(-count // self._block) * self._block, most)


def _lines(layer: LayerTimes, known: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Units along the first two axes of the weight; an axis of no units is a line of -1."""
    first, second = (known.get(axis, np.full(layer.widths[axis][-1], -1)) for axis in (0, 1))
    return first, second


def _place(widths: tuple[int, ...], width: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """The point below each width, and the way to the next one as a share."""
    grid, width = np.asarray(widths, dtype=float), np.asarray(width, dtype=float)
    if len(grid) == 1:
        return np.zeros(width.shape, dtype=int), np.zeros(width.shape)
    below = np.clip(np.searchsorted(grid, width, side="left") - 1, 0, len(grid) - 2)
    return below, (width - grid[below]) / (grid[below + 1] - grid[below])
