"""The UnitGraph: which entries of which parameter belong to which unit. Plain values, no torch.nn.

Units are numbered globally, 0 .. n-1; a group is a set of units that layers share. Every axis of every
parameter or buffer that is laid out by units has an `Axis`: position -> unit number, -1 where the position
belongs to no unit (image channels, class logits).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Role = Literal["produces", "carries", "consumes"]
TapKind = Literal["linear", "conv", "conv_transpose"]


@dataclass(frozen=True)
class Axis:
    """One axis of one parameter or buffer: `units[position]` is the unit that owns the position, or -1."""

    tensor: str
    axis: int
    role: Role
    units: np.ndarray


@dataclass(frozen=True)
class Layout:
    """How the rows of a weight are units, where that is known beforehand: rows of one unit have the same number,
    those of none -1."""

    pattern: np.ndarray
    role: Role
    frozen: str | None = None
    """Why none of them may go."""


@dataclass(frozen=True)
class Tap:
    """The input of one consumer, where units are measured. `units[entry]` is the unit of each input feature,
    or -1.

    `entries` counts along the consumer's input features (flattened feature maps have several per unit).
    """

    module: str
    kind: TapKind
    units: np.ndarray
    intercept_exact: bool
    """True if a constant folds into the bias exactly: linear, 1x1 or unpadded convolutions."""


@dataclass(frozen=True)
class Pairing:
    """Features that a layer writes and that are multiplied, one by one, with another layer's, and summed: queries with
    keys. `units[feature]` is the unit of each feature. No single layer reads them, so they have no tap.
    """

    module: str
    units: np.ndarray


@dataclass(frozen=True)
class Group:
    """Units that must go together because layers share them. `frozen` names the reason why none may go."""

    name: str
    units: np.ndarray
    producers: tuple[str, ...]
    carriers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str | None = None


@dataclass(frozen=True)
class Operation:
    """One convolution or matrix product with a parameter, for counting: multiply-accumulates per input sample
    are `positions * |units of weight axis out| * |units of weight axis in| * kernel / (groups if grouped)`.
    """

    module: str
    weight: str
    macs: int
    """Multiply-accumulates per input sample at the original widths."""


@dataclass(frozen=True)
class UnitGraph:
    """Everything the rest of the house needs to know about a model's units."""

    n_units: int
    groups: tuple[Group, ...]
    axes: tuple[Axis, ...]
    taps: tuple[Tap, ...]
    operations: tuple[Operation, ...]
    uncovered: dict[str, str]
    """Layers with weights (conv, linear) that belong to no live group as producer or consumer -> reason."""
    layers: int
    """Number of conv / linear layers seen."""
    covered: tuple[str, ...] = ()
    """Layers with weights (conv, linear) that a live group writes or reads."""
    placed: tuple[str, ...] = ()
    """Groups whose units are sliced, shuffled or split by position, so that a cut may shift them: tried
    harder."""
    pairings: tuple[Pairing, ...] = ()
    chooses: bool = False
    """The forward pass chooses its way by values: groups are tried on other inputs, too."""


def axis_lines(axes: Iterable[Axis]) -> dict[str, dict[int, np.ndarray]]:
    """Tensor -> axis -> units of its positions: (positions,), or (views, positions) where there are several views."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for axis in axes:
        known = found.setdefault(axis.tensor, {})
        if axis.axis in known:
            known[axis.axis] = np.vstack([known[axis.axis], axis.units])
        else:
            known[axis.axis] = axis.units
    return found


def views(graph: UnitGraph) -> dict[tuple[str, int, int], np.ndarray]:
    """(tensor, axis, which view of it) -> units of its positions."""
    found: dict[tuple[str, int, int], np.ndarray] = {}
    for axis in graph.axes:
        count = sum((axis.tensor, axis.axis, i) in found for i in range(2))
        found[axis.tensor, axis.axis, count] = axis.units
    return found


def merged_taps(graph: UnitGraph) -> list[Tap]:
    """One tap per consumer; where there are several views, its `units` are (views, entries)."""
    found: dict[str, Tap] = {}
    for tap in graph.taps:
        known = found.get(tap.module)
        found[tap.module] = tap if known is None else replace(tap, units=np.vstack([known.units, tap.units]))
    return list(found.values())


def clusters(graph: UnitGraph) -> list[list[Group]]:
    """Live groups joined where they share a tap (branches of a concatenation), in execution order."""
    live = [group for group in graph.groups if group.frozen is None]
    owner = {int(u): i for i, group in enumerate(live) for u in group.units}
    parent = list(range(len(live)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for tap in graph.taps:
        members = sorted({root(owner[int(u)]) for u in tap.units if int(u) in owner})
        for other in members[1:]:
            parent[root(other)] = root(members[0])
    joined: dict[int, list[Group]] = {}
    for i, group in enumerate(live):
        joined.setdefault(root(i), []).append(group)
    return list(joined.values())
