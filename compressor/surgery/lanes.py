"""Running a recorded program operation by operation over many chunks of samples, keeping only what is still needed.

What is still needed of chunks that do not fit in memory waits in files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from compressor.observe import in_file
from compressor.units.modes import home_of
from compressor.units.program import Program, call_arguments, named_state


@dataclass
class Lane:
    """One network: its program, its tensors by name, and the values alive in every chunk."""

    program: Program
    state: dict[str, Tensor]
    values: list[dict[Node, Any]]
    resident: int
    """So many chunks stay in memory between their operations."""
    device: torch.device
    of_samples: set[Node]
    """Values that depend on the samples; others may be views of weights, which a refit writes into."""
    _waiting: set[tuple[int, Node]] = field(default_factory=set)

    @classmethod
    def start(cls, model: nn.Module, program: Program, chunks: list[Any], resident: int | None = None) -> Lane:
        """`chunks` are inputs of the batch size the program was recorded with; all are `resident` if not said, the
        others may be anywhere."""
        state, _ = named_state(model)
        values = []
        for chunk in chunks:
            leaves, _ = pytree.tree_flatten(call_arguments(chunk))
            values.append(dict(zip(program.input_nodes, leaves, strict=True)))
        resident, device = len(chunks) if resident is None else resident, home_of(model)
        waiting = {
            (chunk, node)
            for chunk in range(resident, len(chunks))
            for node, value in values[chunk].items()
            if isinstance(value, Tensor)
        }
        return cls(program, state, values, resident, device, depending_on_samples(program), waiting)

    def value(self, node: Any, chunk: int) -> Any:
        """A value alive in one chunk: a parameter by its current content, or an activation."""
        if not isinstance(node, Node):
            return node
        if node in self.program.state_nodes:
            return self.state[self.program.state_nodes[node]]
        found = self.values[chunk][node]
        return found.to(self.device) if (chunk, node) in self._waiting else found

    def step(self, node: Node, chunk: int) -> None:
        """Run one operation on one chunk."""
        if node.op == "get_attr":
            constant: Any = self.program.graph
            for part in str(node.target).split("."):
                constant = getattr(constant, part)
            self.values[chunk][node] = constant
            return
        target: Any = node.target
        args = torch.fx.map_arg(node.args, lambda n: self.value(n, chunk))
        kwargs = torch.fx.map_arg(node.kwargs, lambda n: self.value(n, chunk))
        self.values[chunk][node] = target(*args, **kwargs)

    def forget(self, nodes: list[Node], chunk: int) -> None:
        """Free values of a chunk that nobody reads any more."""
        for node in nodes:
            self.values[chunk].pop(node, None)
            self._waiting.discard((chunk, node))

    def rest(self, chunk: int) -> None:
        """A chunk's turn is over: where it is not resident, its values wait in files until the next one."""
        if chunk < self.resident:
            return
        for node, value in self.values[chunk].items():
            if isinstance(value, Tensor) and node in self.of_samples:
                self.values[chunk][node] = in_file(value)
                self._waiting.add((chunk, node))


def last_uses(program: Program, wanted: Mapping[Node, list[Node]]) -> dict[Node, list[Node]]:
    """Node -> values that nobody needs after it; `wanted[node]` are values needed until that node as well."""
    seen: set[Node] = set()
    last: dict[Node, list[Node]] = {}
    for node in reversed(program.nodes):
        for used in [*node.all_input_nodes, *wanted.get(node, [])]:
            if used not in seen and used not in program.state_nodes:
                seen.add(used)
                last.setdefault(node, []).append(used)
        if node.op == "call_function" and node not in seen:
            seen.add(node)
            last.setdefault(node, []).append(node)  # nobody reads it at all
    return last


def peak_bytes(program: Program, wanted: Mapping[Node, list[Node]]) -> int:
    """Largest total size of the values alive at once in one chunk, from the recorded shapes."""
    last = last_uses(program, wanted)
    alive = sum(_size(node) for node in program.input_nodes)
    peak = alive
    for node in program.nodes:
        if node.op == "call_function":
            alive += _size(node)
            peak = max(peak, alive)
        alive -= sum(_size(used) for used in last.get(node, []))
    return peak


def depending_on_samples(program: Program) -> set[Node]:
    """Inputs, and all values that are computed from them."""
    found = set(program.input_nodes)
    for node in program.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def whole_bytes(program: Program) -> int:
    """Total size of all values of the samples, from the recorded shapes: about what a backward pass keeps."""
    return sum(_size(node) for node in depending_on_samples(program) if not _is_view(node))


def _is_view(node: Node) -> bool:
    returned = getattr(getattr(node.target, "_schema", None), "returns", ())
    return any(one.alias_info is not None for one in returned)


def _size(node: Node) -> int:
    """Bytes of a node's value; a view counts like a copy, which errs on the safe side."""
    if node.op not in ("call_function", "placeholder") or node.target is getattr:
        return 0
    values = pytree.tree_leaves(node.meta.get("val"))
    if getattr(node.target, "__name__", "") == "getitem":
        return 0  # the same tensor as the tuple's element
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
