"""Carry unit labels through a recorded program, operation by operation.

Operations that only move data are run on the label tensors themselves, so index maps of any reshape, concat, split,
flip or shuffle are exact by construction. Element-wise operations unite the labels that meet. Convolutions and matrix
products with a parameter read units (a tap) and write new ones. What no rule knows freezes the units that reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from compressor.units.graph import Role
from compressor.units.labels import Families, along, normalised, unlabelled
from compressor.units.program import Program


@dataclass
class Activation:
    """Labels of an activation (or of any tensor that is neither parameter nor buffer)."""

    labels: Tensor


@dataclass
class Parameter:
    """A parameter or buffer, possibly viewed: `index` holds, element by element, the flat position in the original.

    `pure` is False once an element-wise function was applied: it can still scale units, but not be folded into.
    """

    name: str
    index: Tensor
    pure: bool = True


@dataclass
class Product:
    """One convolution or matrix product with a parameter, as met in the program."""

    weight: str
    kind: str
    in_axis: int
    out_axis: int
    intercept_exact: bool
    macs: int
    depthwise: bool = False


@dataclass
class Found:
    """What the walk has learned so far."""

    shapes: dict[str, torch.Size]
    families: Families = field(default_factory=Families)
    slots: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)

    def slot(self, name: str, axis: int, labels: Tensor, role: Role) -> None:
        """State that `axis` of tensor `name` is laid out by `labels`; a second statement unites them."""
        key = (name, axis)
        if key not in self.slots:
            self.slots[key], self.roles[key] = labels.clone(), role
            return
        self.unite(self.slots[key], labels, f"`{name}` is used with different units")

    def unite(self, left: Tensor, right: Tensor, reason: str) -> None:
        """Unite labels position by position; a label that meets no label is frozen."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            if a >= 0 and b >= 0:
                self.families.unite(a, b)
            elif a != b:
                self.families.freeze(torch.tensor([max(a, b)]), reason)

    def attach(self, parameter: Parameter, labels: Tensor) -> None:
        """Elements of a parameter that act on activations one by one belong to the units they meet."""
        index, labels = torch.broadcast_tensors(parameter.index, labels)
        if index.numel() == 0:
            return
        index, labels = _shrink_together(index, labels)
        pairs = torch.unique(torch.stack([index.reshape(-1), labels.reshape(-1)]), dim=1)
        element, label = pairs[0], pairs[1]
        counts = torch.bincount(element, minlength=1)
        single = counts[element] == 1
        if parameter.name not in self.elements:
            size = self.shapes[parameter.name].numel()
            self.elements[parameter.name] = torch.full((size,), -1, dtype=torch.int64)
        known = self.elements[parameter.name]
        for e, value in zip(element[single].tolist(), label[single].tolist(), strict=True):
            if value < 0:
                continue
            if known[e] >= 0:
                self.families.unite(int(known[e]), value)
            known[e] = value


def _shrink_together(*tensors: Tensor) -> list[Tensor]:
    """Cut dimensions along which all tensors are stride-0 down to length 1."""
    shrunk = list(tensors)
    for dim in range(shrunk[0].dim()):
        if shrunk[0].size(dim) > 1 and all(t.stride(dim) == 0 for t in shrunk):
            shrunk = [t.narrow(dim, 0, 1) for t in shrunk]
    return shrunk


Rule = Callable[["Walk", Node, list[Any], dict[str, Any], Any], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations by their name (overloads share a rule)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def operation_name(node: Node) -> str:
    """`aten.add.Tensor` -> `add`; anything else by its own name."""
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(target, "__name__", str(target))


class Walk:
    """One pass over a program with real values and labels side by side."""

    def __init__(self, program: Program, state: dict[str, Tensor], inputs: list[Any]) -> None:
        self.program = program
        self.found = Found({name: tensor.shape for name, tensor in state.items()})
        self.real: dict[Node, Any] = {}
        self.values: dict[Node, Any] = {}
        for node, name in program.state_nodes.items():
            index = torch.arange(state[name].numel()).reshape(state[name].shape)
            self.real[node], self.values[node] = state[name], Parameter(name, index)
        for node, value in zip(program.input_nodes, inputs, strict=True):
            self.real[node] = value
            if isinstance(value, Tensor):
                self.values[node] = Activation(unlabelled(value.shape))

    @property
    def families(self) -> Families:
        """The union-find over all labels."""
        return self.found.families

    def run(self) -> Found:
        """Walk all nodes and return what was found."""
        last = self._last_uses()
        for node in self.program.nodes:
            if node.op == "get_attr":
                self.real[node] = _attribute(self.program.graph, str(node.target))
                self.values[node] = _opaque(self.real[node])
            elif node.op == "call_function":
                self._step(node)
            for used in last.get(node, ()):
                self.real.pop(used, None)
                self.values.pop(used, None)
        return self.found

    def _last_uses(self) -> dict[Node, list[Node]]:
        keep = set(self.program.output_nodes)
        seen: set[Node] = set()
        last: dict[Node, list[Node]] = {}
        for node in reversed(self.program.nodes):
            for used in node.all_input_nodes:
                if used not in seen:
                    seen.add(used)
                    if used not in keep:
                        last.setdefault(node, []).append(used)
        return last

    def _step(self, node: Node) -> None:
        args = torch.fx.map_arg(node.args, lambda n: self.real[n])
        kwargs = torch.fx.map_arg(node.kwargs, lambda n: self.real[n])
        target: Any = node.target
        with torch.no_grad():
            out = target(*args, **kwargs)
        self.real[node] = out
        values = list(torch.fx.map_arg(node.args, lambda n: self.values.get(n, self.real.get(n))))
        keywords = dict(torch.fx.map_arg(node.kwargs, lambda n: self.values.get(n, self.real.get(n))))
        name = operation_name(node)
        handler = RULES.get(name)
        if handler is None:
            tags = getattr(target, "tags", ())
            handler = RULES["*pointwise"] if torch.Tag.pointwise in tags else RULES["*unknown"]
        self.values[node] = _tidy(handler(self, node, values, keywords, out))
        if node in self.program.output_nodes:
            self.freeze(self.values[node], "model output")

    def freeze(self, value: Any, reason: str) -> None:
        """Freeze every unit that appears anywhere in `value`."""
        for item in _leaves(value):
            if isinstance(item, Activation):
                self.families.freeze(item.labels, reason)
            elif isinstance(item, Parameter):
                for (name, _), labels in self.found.slots.items():
                    if name == item.name:
                        self.families.freeze(labels, reason)

    def features(self, value: Activation, dim: int, reason: str) -> Tensor:
        """Labels along `dim` of a consumer's input; frozen and unlabelled where a feature is not one unit."""
        found = along(value.labels, dim)
        if found is not None:
            return found
        self.families.freeze(value.labels, reason)
        return torch.full((value.labels.size(dim),), -1, dtype=torch.int64)


def _attribute(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def _opaque(out: Any) -> Any:
    if isinstance(out, Tensor):
        return Activation(unlabelled(out.shape))
    if isinstance(out, (tuple, list)):
        return [_opaque(item) for item in out]
    return out


def _tidy(value: Any) -> Any:
    if isinstance(value, Activation):
        return Activation(normalised(value.labels))
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    return value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
