"""What weights alone prove, for every input: units that nobody reads, and units that no input can move."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from compressor.units.graph import UnitGraph
from compressor.units.program import Program
from compressor.units.propagate import operation_name

NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")


def unread(model: nn.Module, graph: UnitGraph) -> np.ndarray:
    """(n_units,) bool: every weight that reads the unit is zero, or is itself read by nobody."""
    nobody = np.zeros(graph.n_units + 1, dtype=bool)
    live = _live(graph)
    while True:
        heard = np.zeros(graph.n_units + 1, dtype=bool)
        for axis in graph.axes:
            if axis.role != "consumes":
                continue
            weight = _tensor(model, axis.tensor).detach() != 0
            for other in graph.axes:
                if other.tensor == axis.tensor and other.axis != axis.axis:
                    gone = torch.from_numpy(nobody[other.units]).to(weight.device)
                    weight = weight.transpose(0, other.axis) & ~gone.reshape(-1, *[1] * (weight.dim() - 1))
                    weight = weight.transpose(0, other.axis)
            moved = weight.movedim(axis.axis, 0).flatten(1).any(1).cpu().numpy()
            heard[axis.units[moved]] = True
        found = live & ~heard
        if (found == nobody).all():
            return found[:-1]
        nobody = found


def unmoved(model: nn.Module, graph: UnitGraph, program: Program) -> np.ndarray:
    """(n_units,) bool: every layer that writes the unit has zero weights for it, or ends in a batch norm
    that has a zero scale for it. Such a unit is the same for every input.
    """
    norms = norm_behind(program)
    dead = np.ones(graph.n_units + 1, dtype=bool)
    written = np.zeros(graph.n_units + 1, dtype=bool)
    for axis in graph.axes:
        weight = _tensor(model, axis.tensor).detach()
        if axis.role != "produces" or weight.dim() < 2:
            continue
        moves = weight.movedim(axis.axis, 0).flatten(1).any(1).cpu()
        scale = norms.get(axis.tensor)
        if scale is not None and _tensor(model, scale).shape == moves.shape:
            moves &= (_tensor(model, scale).detach() != 0).cpu()
        written[axis.units] = True
        dead[axis.units[moves.numpy()]] = False
    return (dead & written & _live(graph))[:-1]


def twins(model: nn.Module, graph: UnitGraph) -> np.ndarray:
    """(n_units,) a number per unit, the same for units of one group whose producers and carriers are equal to the
    last bit: what feeds them is the same, too, so they are copies wherever their wiring is alike."""
    parts: list[list[bytes]] = [[] for _ in range(graph.n_units)]
    for axis in graph.axes:
        if axis.role == "consumes":
            continue
        lines = _tensor(model, axis.tensor).detach().cpu().movedim(axis.axis, 0).contiguous().numpy()
        for position, unit in enumerate(axis.units.tolist()):
            if unit >= 0:
                parts[unit].append(axis.tensor.encode() + lines[position].tobytes())
    for place, group in enumerate(graph.groups):
        for unit in group.units.tolist():
            parts[unit].append(str(place).encode())
    numbers: dict[bytes, int] = {}
    digests = [hashlib.sha256(b"|".join(part)).digest() for part in parts]
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], dtype=np.int64)


def norm_behind(program: Program) -> dict[str, str]:
    """Weight of a convolution or linear layer -> scale of the batch norm that alone reads its output."""
    found: dict[str, str] = {}
    several: set[str] = set()
    for node in program.nodes:
        if node.op != "call_function" or operation_name(node) not in ("convolution", "addmm", "mm"):
            continue
        weight = node.args[{"addmm": 2}.get(operation_name(node), 1)]
        while isinstance(weight, Node) and weight.op == "call_function":
            weight = weight.args[0]
        name = program.state_nodes.get(weight) if isinstance(weight, Node) else None
        users = list(node.users)
        if name is None:
            continue
        if len(users) == 1 and operation_name(users[0]) in NORMS and users[0].args[0] is node:
            scale = program.state_nodes.get(users[0].args[1])  # type: ignore[arg-type]
            if scale is not None and found.get(name, scale) == scale:
                found[name] = scale
                continue
        several.add(name)
    return {name: scale for name, scale in found.items() if name not in several}


def _live(graph: UnitGraph) -> np.ndarray:
    live = np.zeros(graph.n_units + 1, dtype=bool)
    for group in graph.groups:
        live[group.units] = group.frozen is None
    live[-1] = False
    return live


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)
