"""Where a consumer's output lands: the batch norm right behind it, and the sum it is added into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from compressor.units.program import Program
from compressor.units.propagate import operation_name

PRODUCTS = ("convolution", "addmm", "mm", "bmm")
NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")


@dataclass(frozen=True)
class Landing:
    """One consumer in the program. `norm` is the module name of a batch norm that alone reads its output; `other` is
    the already known operand if the (normed) output goes straight into a sum."""

    module: str
    node: Node
    source: Node
    norm: str | None
    other: Node | None
    intercept: bool
    """True if a constant has a place: the consumer's own bias, or the running mean of that batch norm."""
    once: bool
    """True if the consumer's forward runs once per forward pass of the model."""
    apart: str | None = None
    """Its bias, where that is added by an operation of its own: `node` is the output without it."""


TURNS, REPEATS = ("t", "transpose", "permute"), ("expand", "view")


def _parameter_of(node: object, program: Program, repeated: bool = False) -> str | None:
    """The parameter that a weight is, turned; with `repeated` also the one that a batch of weights repeats."""
    shape = node.meta["val"].shape if isinstance(node, Node) else torch.Size()
    while isinstance(node, Node):
        if node in program.state_nodes:
            whole = node.meta["val"].numel() == shape[-2:].numel()
            return program.state_nodes[node] if whole or not repeated else None
        if node.op != "call_function" or operation_name(node) not in (*TURNS, *(REPEATS if repeated else ())):
            return None
        node = node.all_input_nodes[0]
    return None


def landings(program: Program) -> list[Landing]:
    """All convolutions and linear layers with a parameter as weight, in execution order."""
    place = {node: i for i, node in enumerate(program.nodes)}
    found = []
    for node in program.nodes:
        if node.op != "call_function" or operation_name(node) not in PRODUCTS:
            continue
        name = operation_name(node)
        weight = node.args[2] if name == "addmm" else node.args[1]
        source = node.args[1] if name == "addmm" else node.args[0]
        parameter = _parameter_of(weight, program, name == "bmm")
        if parameter is None or not isinstance(source, Node):
            continue
        norm, end = _norm_behind(node, program)
        owner = parameter.rpartition(".")[0]
        bias = f"{owner}.bias"
        apart = _bias_behind(node, bias, program) if name in ("mm", "bmm") and norm is None else None
        end = end if apart is None else apart
        biased = bias in program.state_nodes.values() and (name not in ("mm", "bmm") or apart is not None)
        once = program.calls.get(owner, 0) == 1
        other = _other_operand(end, place, node)
        intercept = biased or norm is not None
        found.append(Landing(owner, node, source, norm, other, intercept, once, bias if apart is not None else None))
    return found


def _norm_behind(node: Node, program: Program) -> tuple[str | None, Node]:
    users = [u for u in node.users if u.op == "call_function"]
    if len(users) != 1 or operation_name(users[0]) not in NORMS or users[0].args[0] is not node:
        return None, node
    mean = program.state_nodes.get(users[0].args[3])  # type: ignore[arg-type]
    item = next((u for u in users[0].users if operation_name(u) == "getitem" and u.args[1] == 0), None)
    if mean is None or item is None:
        return None, node
    return mean.rpartition(".")[0], item


def _bias_behind(node: Node, bias: str, program: Program) -> Node | None:
    """The sum with the layer's own bias, where it is added apart (linear layers on feature maps)."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.op != "call_function":
            return None
        if operation_name(user) in ("add", "add_") and len(user.args) == 2 and not user.kwargs:
            added = [program.state_nodes.get(a) for a in user.args if isinstance(a, Node) and a is not node]
            return user if added == [bias] else None
        if operation_name(user) not in ("view", "_unsafe_view"):
            return None
        node = user
    return None


def _other_operand(end: Node, place: dict[Node, int], product: Node) -> Node | None:
    """The other summand if `end` is only added to something that is known when `product` runs."""
    while len(end.users) == 1:
        user = next(iter(end.users))
        if user.op != "call_function":
            return None
        if operation_name(user) in ("view", "_unsafe_view"):
            end = user
            continue
        if operation_name(user) != "add" or len(user.args) != 2 or user.kwargs:
            return None
        left, right = user.args
        other = right if left is end else left
        if not isinstance(other, Node) or place[other] >= place[product]:
            return None
        return other if other.meta["val"].dim() > 1 else None  # a vector is a constant of the sum, in both networks
    return None
