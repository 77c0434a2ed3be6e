"""RMSNorms in a recorded program, which most networks compute by hand: x · rsqrt(mean(x²) + ε), times a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Node

from compressor.units.program import Program
from compressor.units.propagate import Parameter, operation_name
from compressor.units.rules import COPIES


@dataclass(frozen=True)
class RmsNorm:
    """`x` is what is brought to unit root mean square over its last dimension and scaled by the tensor `weight`."""

    x: Node
    weight: str
    inner: frozenset[Node]
    """Values that it computes on the way."""


def rms_norms(program: Program, parameters: Mapping[Node, Parameter]) -> dict[Node, RmsNorm]:
    """Every RMSNorm by the node of its result. Those whose weight is computed (1 + w) are none of them."""
    found = {}
    for node in program.nodes:
        norm = _read(node, parameters) if node.op == "call_function" else None
        if norm is not None and all(user is node or user in norm.inner for one in norm.inner for user in one.users):
            found[node] = norm
    return found


def _read(node: Node, parameters: Mapping[Node, Parameter]) -> RmsNorm | None:
    for scale, scaled in _factors(node):
        weight = parameters.get(scale)
        inner: set[Node] = set()
        product = _behind(scaled, inner)
        if weight is None or not weight.pure:
            continue
        for root, value in _factors(product):
            steps = {product, *inner}
            x = _behind(value, steps)
            if _is_root(root, x, steps):
                return RmsNorm(x, weight.name, frozenset(steps - {x}))
    return None


def _is_root(node: Node, x: Node, steps: set[Node]) -> bool:
    """Whether a value is rsqrt(mean(x²) + ε) over the last dimension; the nodes on the way join `steps`."""
    chain = []
    for names in (("rsqrt",), ("add",), ("mean",), ("pow", "mul", "square")):
        node = _behind(node, steps)
        if node.op != "call_function" or operation_name(node) not in names:
            return False
        chain.append(node)
        node = node.args[0]  # type: ignore[assignment]
        if not isinstance(node, Node):
            return False
    _, added, mean, square = chain
    steps.update(chain)
    last = len(mean.args) > 2 and mean.args[2] is True and mean.args[1] in ([-1], [_rank(mean.args[0]) - 1])
    squared = operation_name(square) == "square" or square.args[1] == 2 or square.args[1] is square.args[0]
    return last and squared and isinstance(added.args[1], float) and _behind(node, steps) is x


def _factors(node: Node) -> list[tuple[Node, Node]]:
    """Both ways to read a product of two values."""
    if node.op != "call_function" or operation_name(node) != "mul":
        return []
    one, other = node.args[:2]
    return [(one, other), (other, one)] if isinstance(one, Node) and isinstance(other, Node) else []


def _behind(node: Node, steps: set[Node]) -> Node:
    """The value that copies and casts show; they join `steps`."""
    while node.op == "call_function" and operation_name(node) in COPIES and isinstance(node.args[0], Node):
        steps.add(node)
        node = node.args[0]
    return node


def _rank(node: object) -> int:
    return node.meta["val"].dim() if isinstance(node, Node) else 0
