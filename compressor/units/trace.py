"""Model and example input -> UnitGraph: record the program, carry labels through it, and freeze what cannot
be cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.errors import ModelError
from compressor.units import mixing, products, rules  # noqa: F401  (importing registers the rules)
from compressor.units.graph import Layout, Role, UnitGraph
from compressor.units.grouping import assemble
from compressor.units.heads import attentions, layouts, with_heads
from compressor.units.program import Program, example_pair, named_state, record, same_shapes
from compressor.units.propagate import Found, Walk
from compressor.units.ways import chooses, freeze_unseen, unreached

MIXED = "laid out by units along more than one axis"


def trace(model: nn.Module, inputs: Any, program: Program | None = None, turned: bool = False) -> UnitGraph:
    """Find the units of `model` from one recorded forward pass on (two samples of) `inputs`; nothing is
    changed.

    The graph is a proposal: `units.check.checked` proves every group by a dry run before it may be planned. A shuffle
    of as many groups as channels does not tell which are which: the groups are first, with `turned` second.
    Raises ModelError where the forward pass fails.
    """
    program = program or recorded(model, inputs)
    graph = _graph(model, program, layouts(model, "dimensions"), turned)
    if not attentions(model):
        return graph
    return with_heads(graph, _graph(model, program, layouts(model, "heads"), turned), model)


def _graph(model: nn.Module, program: Program, layout: Mapping[str, Layout], turned: bool) -> UnitGraph:
    state, _ = named_state(model)
    found = Walk(program, state, layout, turned).run()
    spread_elements(found)
    _freeze_unhooked(model, found, program)
    freeze_unseen(model, found, program)
    return replace(assemble(model, found, program), chooses=chooses(program))


def recorded(model: nn.Module, inputs: Any) -> Program:
    """Record on two samples; on all where values choose the way, and two samples do not reach every layer."""
    program = recorded_pair(model, inputs)
    missed = unreached(model, program) if chooses(program) else []
    if missed and not same_shapes(example_pair(inputs), inputs):
        try:
            wide = record(model, inputs)
        except ModelError:
            return program
        return wide if len(unreached(model, wide)) < len(missed) else program
    return program


def recorded_pair(model: nn.Module, inputs: Any) -> Program:
    """Record on two samples of `inputs`; on `inputs` as given where the model does not take two."""
    pair = example_pair(inputs)
    try:
        return record(model, pair)
    except ModelError:
        if same_shapes(pair, inputs):
            raise
        return record(model, inputs)


def spread_elements(found: Found) -> None:
    """Element-wise parameters (norms, layer scale, position terms): find the axis their labels lie along."""
    for name, flat in found.elements.items():
        shape = found.shapes[name]
        roots = torch.from_numpy(found.families.roots(flat.numpy())).reshape(shape)
        if not bool((roots >= 0).any()):
            continue
        axes = [a for a in range(roots.dim()) if _varies_only(roots, a)]
        if len(axes) != 1 or any(key[0] == name for key in found.slots):
            twice = f"`{name}` is used both as a layer's weight and element by element"
            found.families.freeze(roots, f"`{name}` is {MIXED}" if len(axes) != 1 else twice)
            continue
        line = roots.movedim(axes[0], 0).reshape(shape[axes[0]], -1)[:, 0]
        found.slot(name, axes[0], line, _role(found, name, line))


def _role(found: Found, name: str, line: torch.Tensor) -> Role:
    """A bias that is added on its own belongs to the layer that writes the units."""
    owner, _, leaf = name.rpartition(".")
    for (weight, axis), labels in found.slots.items():
        mine = leaf == "bias" and weight == f"{owner}.weight" and found.roles[weight, axis] == "produces"
        if mine and np.array_equal(found.families.roots(labels.numpy()), line.numpy()):
            return "produces"
    return "carries"


def _varies_only(roots: torch.Tensor, axis: int) -> bool:
    line = roots.movedim(axis, 0).reshape(roots.size(axis), -1)
    return bool((line == line[:, :1]).all()) and (roots.size(axis) > 1 or roots.numel() == 1)


def _freeze_unhooked(model: nn.Module, found: Found, program: Program) -> None:
    """Weights read outside their module's forward cannot be observed; tied weights cannot be cut apart."""
    uses: dict[str, int] = {}
    for item in found.products:
        uses[item.weight] = uses.get(item.weight, 0) + 1
    tied = set(program.tied.values()) | set(program.tied)
    for item in found.products:
        owner, _, leaf = item.weight.rpartition(".")
        if item.weight in tied:
            reason = f"tied weights (`{item.weight}`)"
        elif leaf != "weight" or program.calls.get(owner, 0) != uses[item.weight]:
            reason = _outside(model.get_submodule(owner), item.weight, model)
        else:
            continue
        found.notes.setdefault(item.weight, reason)
        for axis in (item.in_axis, item.out_axis):
            labels = found.slots.get((item.weight, axis))
            if labels is not None:
                found.families.freeze(labels, reason)
    for name in tied:
        for axis in range(len(found.shapes[name])):
            if (name, axis) in found.slots:
                found.families.freeze(found.slots[name, axis], f"tied weights (`{name}`)")


def _outside(owner: nn.Module, weight: str, model: nn.Module) -> str:
    parents = [owner]
    path = weight.rpartition(".")[0]
    while "." in path:
        path = path.rpartition(".")[0]
        parents.append(model.get_submodule(path))
    for module in parents:
        if isinstance(module, nn.RNNBase):
            return f"recurrent layer ({type(module).__name__})"
        if isinstance(module, nn.MultiheadAttention):
            return "attention heads (MultiheadAttention)"
    return f"functional weights (`{weight}` is used outside its layer's forward)"
