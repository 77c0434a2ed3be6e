"""Group norms as exporters write them: a reshape to groups, an instance norm, the reshape back, a scale and a shift.

As one layer again, a group's channels can be followed; with the number of groups in a shape they could not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import nn

from compressor.foreign.building import attributes
from compressor.foreign.measured import Measured


@dataclass(frozen=True)
class GroupNorm:
    """The layer that some nodes are together, the last of which makes `end`."""

    x: str
    """What it reads, (n, C, ...)."""
    end: str
    inside: tuple[str, ...]
    """What the other nodes make; nothing else reads it."""
    called: str
    layer: nn.GroupNorm


def group_norms(measured: Measured) -> list[GroupNorm]:
    """Every group norm of the graph that is written so."""
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in measured.model.graph.node:
        for name in set(node.input):
            users[name].append(node)
    found = (_Reader(measured, node, users).found() for node in measured.model.graph.node)
    return [made for made in found if made is not None]


class _Reader:
    """Looks around one node of the graph."""

    def __init__(self, measured: Measured, node: onnx.NodeProto, users: Mapping[str, list[onnx.NodeProto]]) -> None:
        self.measured, self.node, self.users = measured, node, users

    def found(self) -> GroupNorm | None:
        """The group norm whose instance norm this node is."""
        if self.node.op_type != "InstanceNormalization":
            return None
        graph = self.measured.model.graph
        before = next((node for node in graph.node if self.node.input[0] in node.output), None)
        after = self._reader(self.node)
        if before is None or after is None or {before.op_type, after.op_type} != {"Reshape"}:
            return None
        x, scale, shift = before.input[0], *(self.measured.static.get(name) for name in self.node.input[1:])
        groups = self.measured.shapes[before.output[0]][0][1]
        if not self._merges(x, before.output[0], after.output[0]) or self._reader(before) is not self.node:
            return None
        if scale is None or shift is None or not (scale == 1).all() or shift.any():
            return None
        layer = nn.GroupNorm(groups, self._channels(x), eps=attributes(self.node).get("epsilon", 1e-5))
        made, last = [before.output[0], self.node.output[0], after.output[0]], after
        called = self.node.name or after.output[0]
        for kind, name in (("Mul", "weight"), ("Add", "bias")):
            step = self._reader(last)
            vector = None if step is None else self._vector(step, kind, last.output[0], x)
            if step is None or vector is None:
                break
            called = vector[0]
            setattr(layer, name, nn.Parameter(torch.from_numpy(np.array(vector[1]))))
            made.append(step.output[0])
            last = step
        return GroupNorm(x, made[-1], tuple(made[:-1]), called, layer.to(torch.from_numpy(np.array(scale)).dtype))

    def _channels(self, x: str) -> int:
        return self.measured.shapes[x][0][1]

    def _merges(self, x: str, grouped: str, back: str) -> bool:
        """Whether channels and positions become groups, the batch stays, and the shape comes back."""
        shapes = self.measured.shapes
        for size, apart in zip(shapes[x], shapes[grouped], strict=True):
            if len(size) < 2 or len(apart) != 3 or size[0] != apart[0] or not apart[1] or size[1] % apart[1]:
                return False
        return shapes[back] == shapes[x]

    def _reader(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node that alone reads what this one makes."""
        ends = {entry.name for entry in self.measured.model.graph.output}
        found = self.users.get(node.output[0], [])
        return found[0] if len(found) == 1 and node.output[0] not in ends else None

    def _vector(self, step: onnx.NodeProto, kind: str, read: str, x: str) -> tuple[str, np.ndarray] | None:
        """Name and numbers of the other operand, where it has one number for each channel."""
        others = [name for name in step.input if name != read]
        if step.op_type != kind or len(others) != 1 or others[0] not in self.measured.static:
            return None
        value, rank = self.measured.static[others[0]], len(self.measured.shapes[x][0])
        spread = (1,) * (rank - value.ndim) + value.shape
        wanted = (1, self._channels(x), *[1] * (rank - 2))
        return (others[0], value.reshape(-1)) if spread == wanted else None
