"""Carry unit labels through a recorded program, operation by operation.

Operations that only move data are run on the label tensors themselves, so index maps of any reshape, concat,
split, flip or shuffle are exact by construction. Element-wise operations unite the labels that meet.
Convolutions and matrix products with a parameter read units (a tap) and write new ones. What no rule knows
freezes the units that reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from compressor.units.graph import Layout, Role
from compressor.units.labels import Families, along, compact, normalised, unlabelled
from compressor.units.program import Program, writes_in_place


@dataclass
class Activation:
    """Labels of an activation (or of any tensor that is neither parameter nor buffer)."""

    labels: Tensor
    made: bool = False
    """Created by the program itself (zeros, a mask): may follow the width of what it meets."""
    sources: frozenset[str] = frozenset()
    """Parameters this value was computed from, if from nothing else."""


@dataclass
class Parameter:
    """A parameter or buffer, possibly viewed. While only its axes were permuted, `order` says how (axis of
    the original for each axis); otherwise `index` holds, element by element, the flat position in the
    original.

    `pure` is False once an element-wise function was applied: it can still scale units, but not be folded
    into.
    """

    name: str
    original: torch.Size
    order: tuple[int, ...] | None
    moved: Tensor | None = None
    pure: bool = True

    @property
    def shape(self) -> torch.Size:
        """Shape of the view."""
        if self.order is not None:
            return torch.Size(self.original[axis] for axis in self.order)
        assert self.moved is not None
        return self.moved.shape

    @property
    def index(self) -> Tensor:
        """Flat position in the original, for each element of the view."""
        if self.order is not None:
            return torch.arange(self.original.numel()).reshape(self.original).permute(self.order)
        assert self.moved is not None
        return self.moved


@dataclass
class Product:
    """One convolution or matrix product with a parameter, as met in the program."""

    weight: str
    kind: str
    in_axis: int
    out_axis: int
    intercept_exact: bool
    macs: int


@dataclass
class Found:
    """What the walk has learned so far."""

    shapes: dict[str, torch.Size]
    families: Families = field(default_factory=Families)
    slots: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    placed: list[Tensor] = field(default_factory=list)
    """Labels that went through an operation which depends on the position of units."""
    notes: dict[str, str] = field(default_factory=dict)
    """Parameter name -> why what it writes or reads has no units."""

    def slot(self, name: str, axis: int, labels: Tensor, role: Role) -> None:
        """State that `axis` of tensor `name` is laid out by `labels`; a second statement unites them."""
        key = (name, axis)
        if key not in self.slots:
            self.slots[key], self.roles[key] = labels.clone(), role
            return
        reason = f"`{name}` is read with different units at different places"
        left, right = self.slots[key].numpy(), labels.numpy()
        both, one = (left >= 0) & (right >= 0), (left >= 0) != (right >= 0)
        self.families.unite_pairs(left[both], right[both])
        if one.any():
            self.families.freeze(torch.from_numpy(np.maximum(left, right)[one]), reason)

    def attach(self, parameter: Parameter, labels: Tensor) -> None:
        """Elements of a parameter that act on activations one by one belong to the units they meet."""
        index, labels = torch.broadcast_tensors(parameter.index, labels)
        if index.numel() == 0:
            return
        element, label = met_pairs(index, labels)
        single = np.bincount(element)[element] == 1
        element, label = element[single], label[single]
        known = self.elements.setdefault(
            parameter.name, torch.full((self.shapes[parameter.name].numel(),), -1, dtype=torch.int64)
        ).numpy()
        element, label = element[label >= 0], label[label >= 0]
        before = known[element]
        self.families.unite_pairs(before[before >= 0], label[before >= 0])
        known[element] = label


def shrink_together(*tensors: Tensor) -> list[Tensor]:
    """Cut dimensions along which all tensors are stride-0 down to length 1."""
    shrunk = list(tensors)
    for dim in range(shrunk[0].dim()):
        if shrunk[0].size(dim) > 1 and all(t.stride(dim) == 0 for t in shrunk):
            shrunk = [t.narrow(dim, 0, 1) for t in shrunk]
    return shrunk


def met_pairs(left: Tensor, right: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs of values at the same position of two tensors of one shape (values >= -1)."""
    a, b = (t.reshape(-1).numpy() for t in shrink_together(left, right))
    base = int(b.max()) + 2
    codes = np.unique((a + 1) * base + (b + 1))
    return codes // base - 1, codes % base - 1


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
    """One pass over a program: labels are carried along, real values are computed only where an index needs
    them."""

    def __init__(
        self,
        program: Program,
        state: dict[str, Tensor],
        layouts: Mapping[str, Layout] | None = None,
        turned: bool = False,
    ) -> None:
        self.program = program
        self.turned = turned
        """Which of two axes of one size, that a shuffle exchanges, is taken to be fixed: the second one."""
        self.layouts = layouts or {}
        self.found = Found({name: tensor.shape for name, tensor in state.items()})
        self.values: dict[Node, Any] = {}
        self._real: dict[Node, Any] = dict(zip(program.input_nodes, program.inputs, strict=True))
        for node, name in program.state_nodes.items():
            shape = state[name].shape
            self.values[node] = Parameter(name, shape, tuple(range(len(shape))))
            self._real[node] = state[name]
        for node, value in zip(program.input_nodes, program.inputs, strict=True):
            self.values[node] = Activation(unlabelled(value.shape)) if isinstance(value, Tensor) else value

    @property
    def families(self) -> Families:
        """The union-find over all labels."""
        return self.found.families

    def run(self) -> Found:
        """Walk all nodes and return what was found."""
        last = self._last_uses()
        for node in self.program.nodes:
            if node.op == "get_attr":
                self.values[node] = opaque(self.real(node))
            elif node.op == "call_function":
                self._step(node)
            for used in last.get(node, ()):
                self.values.pop(used, None)
        return self.found

    def real(self, argument: Any) -> Any:
        """The value that a node (or a structure of nodes) has on the recorded inputs, computed on demand."""

        def value(node: Node) -> Any:
            if node not in self._real:
                if node.op == "get_attr":
                    self._real[node] = _attribute(self.program.graph, str(node.target))
                else:
                    target: Any = node.target
                    with torch.no_grad():
                        self._real[node] = target(*self.real(node.args), **self.real(node.kwargs))
            return self._real[node]

        return value(argument) if isinstance(argument, Node) else torch.fx.map_arg(argument, value)

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
        out = node.meta.get("val")
        arguments = list(torch.fx.map_arg(node.args, lambda n: self.values[n]))
        keywords = dict(torch.fx.map_arg(node.kwargs, lambda n: self.values[n]))
        handler = RULES.get(operation_name(node))
        if writes_in_place(node):
            handler = RULES["*unknown"]
        elif handler is None:
            tags = getattr(node.target, "tags", ())
            handler = RULES["*pointwise"] if torch.Tag.pointwise in tags else RULES["*unknown"]
        value = _tidy(handler(self, node, arguments, keywords, out))
        self.values[node] = _with_sources(value, [*leaves(arguments), *leaves(list(keywords.values()))])
        if node in self.program.output_nodes:
            self.freeze(self.values[node], "model output")

    def freeze(self, value: Any, reason: str) -> None:
        """Freeze every unit that appears anywhere in `value`."""
        for item in leaves(value):
            if isinstance(item, Activation):
                self.families.freeze(item.labels, reason)
                for name in item.sources:
                    self._freeze_parameter(name, reason)
            elif isinstance(item, Parameter):
                self._freeze_parameter(item.name, reason)

    def _freeze_parameter(self, parameter: str, reason: str) -> None:
        self.found.notes.setdefault(parameter, reason)
        for (name, _), labels in self.found.slots.items():
            if name == parameter:
                self.families.freeze(labels, reason)

    def features(self, value: Activation, dim: int, reason: str) -> Tensor:
        """Labels along `dim` of a consumer's input, one per feature.

        Where several units take turns in one feature (pixel shuffle), they must go together and are united;
        where units lie along other dimensions only, the consumer mixes positions inside units: they are
        frozen.
        """
        found = along(value.labels, dim)
        if found is not None:
            return found
        small = compact(value.labels)
        lines = small.movedim(dim, 0).reshape(small.size(dim), -1).numpy()
        if lines.shape[0] == 1 or (lines.min(axis=1) < 0).any():
            self.families.freeze(value.labels, reason)
            return torch.full((value.labels.size(dim),), -1, dtype=torch.int64)
        first = np.repeat(lines[:, :1], lines.shape[1], axis=1)
        self.families.unite_pairs(first.reshape(-1), lines.reshape(-1))
        return torch.from_numpy(lines[:, 0].copy())


def _attribute(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def opaque(out: Any, made: bool = False) -> Any:
    """Values without units, in the shape of `out`."""
    if isinstance(out, Tensor):
        return Activation(unlabelled(out.shape), made)
    if isinstance(out, (tuple, list)):
        return [opaque(item, made) for item in out]
    return out


def leaves(value: Any) -> list[Any]:
    """All items of nested lists and tuples."""
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def _tidy(value: Any) -> Any:
    if isinstance(value, Activation):
        value.labels = normalised(value.labels)
        return value
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    return value


def _with_sources(value: Any, arguments: list[Any]) -> Any:
    """Remember which parameters a value was computed from, where nothing else went in."""
    tensors = [a for a in arguments if isinstance(a, (Activation, Parameter))]
    names = {a.name for a in tensors if isinstance(a, Parameter)}
    for item in tensors:
        if isinstance(item, Activation):
            if not item.sources and not item.made:
                return value
            names |= item.sources
    for item in leaves(value):
        if isinstance(item, Activation):
            item.sources = frozenset(names)
    return value
