"""The network under construction: an fx graph whose layers are torch's own, one node for each operator."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from compressor.errors import SourceError
from compressor.foreign.measured import Measured, refused


class OnnxNetwork(nn.Module):
    """A network rebuilt from an ONNX file: its layers, and the graph that says how they are called.

    Inputs are given by position, or by the file's names for them.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]

    def forward(self, *tensors: Tensor, **named: Tensor) -> Any:
        """The file's output, or all of them by name."""
        given = tensors or tuple(named[name] for name in self.inputs)
        return fx.Interpreter(self, graph=self.graph).run(*given, enable_io_processing=False)


class Building:
    """What operators are turned into nodes with: values by their ONNX name, and new modules and constants."""

    def __init__(self, measured: Measured, where: str) -> None:
        self.measured, self.where = measured, where
        self.root, self.graph = OnnxNetwork(), fx.Graph()
        self.nodes: dict[str, Any] = {}
        self.at: onnx.NodeProto | None = None
        """The operator that is being turned into nodes."""
        self._parameters: dict[str, nn.Parameter] = {}
        self._used: set[str] = set()

    def refuse(self, node: onnx.NodeProto, expected: str) -> SourceError:
        """SourceError that names this operator."""
        return refused(self.where, node, expected)

    def static(self, name: str, node: onnx.NodeProto) -> np.ndarray:
        """The value of an input that may depend on no data."""
        if name not in self.measured.static:
            raise self.refuse(node, f"an operator whose input '{name}' is constant")
        return self.measured.static[name]

    def value(self, name: str) -> Any:
        """The node of a tensor; a constant becomes a plain number where it is one, else a buffer."""
        if name not in self.nodes and name in self.measured.rows:
            array = self.measured.rows[name]
            row = self._constant(name, array)
            count = self.call(torch.Tensor.size, self.nodes[next(iter(self.measured.inputs))], 0)
            self.nodes[name] = self.call(torch.Tensor.expand, row, count, *array.shape[1:])
        if name not in self.nodes:
            if name not in self.measured.static:
                assert self.at is not None
                raise self.refuse(self.at, f"inputs that follow from data or are constant ('{name}' does neither)")
            array = self.measured.static[name]
            if array.size == 1 and array.ndim <= 1 and np.issubdtype(array.dtype, np.floating):
                return float(array.reshape(-1)[0])
            self.nodes[name] = self._constant(name, array)
        return self.nodes[name]

    def _constant(self, name: str, array: np.ndarray) -> fx.Node:
        place = self._name(name)
        self.root.register_buffer(place, torch.from_numpy(np.array(array)))
        return self.graph.get_attr(place)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; sizes that grow with the batch are -1."""
        small, large = self.measured.shapes[name]
        return tuple(a if a == b else -1 for a, b in zip(small, large, strict=True))

    def parameter(self, name: str, node: onnx.NodeProto, turn: bool = False) -> nn.Parameter:
        """A weight by its ONNX name (transposed with `turn`): the same one wherever it is used."""
        key = f"{name}.T" if turn else name
        if key not in self._parameters:
            weight = torch.from_numpy(np.array(self.static(name, node)))
            self._parameters[key] = nn.Parameter(weight.T.contiguous() if turn else weight)
        return self._parameters[key]

    def call(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> fx.Node:
        """A call of a function on nodes and plain values."""
        return self.graph.call_function(function, args, keywords)

    def layer(self, module: nn.Module, called: str, *args: Any) -> fx.Node:
        """A layer with weights, named after one of them."""
        place = self._name(re.sub(r"[._](weight|bias|weights|w|scale)(_\d+)?$", "", called))
        self.root.add_module(place, module)
        return self.graph.call_module(place, args)

    def finished(self, outputs: dict[str, Any]) -> OnnxNetwork:
        """The network that answers these, in eval mode: a dict of them by name; one alone is a plain tensor, unless its
        name says where its classes are (`logits` of three dimensions).
        """
        dimensions = len(self.measured.model.graph.output[0].type.tensor_type.shape.dim)
        plain = len(outputs) == 1 and not ("logits" in outputs and dimensions == 3)
        self.graph.output(next(iter(outputs.values())) if plain else outputs)
        self.graph.lint()
        self.root.graph, self.root.inputs = self.graph, tuple(self.measured.inputs)
        return self.root.eval()

    def _name(self, said: str) -> str:
        plain = re.sub(r"\W+", "_", said).strip("_") or "layer"
        plain = f"n{plain}" if plain[0].isdigit() else plain
        name, count = plain, 1
        while name in self._used or hasattr(self.root, name):
            count += 1
            name = f"{plain}_{count}"
        self._used.add(name)
        return name


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """An operator's attributes as plain values."""
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def reshaped(at: Building, x: Any, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    """From one shape to another by merging and splitting neighbours, so that widths may change later.

    -1 stands for the batch. Sizes that stay are not written down; of a split all but the last size are.
    """
    steps, out, rest = _blocks(before, after), 0, x
    if steps is None:
        return at.call(torch.reshape, rest, after)
    for old, new in steps:
        if len(old) > 1:
            rest = at.call(torch.flatten, rest, out, out + len(old) - 1)
        if not old:
            for place in range(len(new)):
                rest = at.call(torch.unsqueeze, rest, out + place)
        elif not new:
            rest = at.call(torch.squeeze, rest, out)
        elif len(new) > 1:
            known = [*new[:-1], -1] if -1 not in new else list(new)
            rest = at.call(torch.unflatten, rest, out, known)
        out += len(new)
    return rest


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Runs of sizes whose products are equal, in order; None where the batch lies inside a run in another way."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and j < len(after) and before[i] == after[j]:
            found.append(((before[i],), (after[j],)))
            i, j = i + 1, j + 1
            continue
        if i < len(before) and before[i] == 1 and (j == len(after) or _size(after[j:]) == _size(before[i + 1 :])):
            found.append(((1,), ()))
            i += 1
            continue
        if j < len(after) and after[j] == 1 and (i == len(before) or _size(after[j + 1 :]) == _size(before[i:])):
            found.append(((), (1,)))
            j += 1
            continue
        end_i, end_j = i + 1, j + 1
        while end_i <= len(before) and end_j <= len(after):
            left, right = _size(before[i:end_i]), _size(after[j:end_j])
            if left == right:
                break
            if left[0] * (3 ** left[1]) < right[0] * (3 ** right[1]):
                end_i += 1
            else:
                end_j += 1
        if end_i > len(before) or end_j > len(after):
            return None
        found.append((before[i:end_i], after[j:end_j]))
        i, j = end_i, end_j
    return found


def _size(part: tuple[int, ...]) -> tuple[int, int]:
    """The product of what is known, and how many batches are in it."""
    return math.prod(size for size in part if size >= 0), sum(size < 0 for size in part)


def as_tensor(at: Building, x: Any) -> Tensor | Any:
    """A plain number as a tensor, for functions that take no numbers."""
    return at.call(torch.tensor, x) if isinstance(x, float) else x
