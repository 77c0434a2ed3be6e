"""Model and example input -> UnitGraph: record the program, carry labels through it, and name groups and reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compressor.units import products, rules  # noqa: F401  (importing registers the rules)
from compressor.units.graph import Axis, Group, Operation, Tap, UnitGraph
from compressor.units.program import Program, call_arguments, named_state, record
from compressor.units.propagate import Found, Product, Walk

LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
MIXED = "laid out by units along more than one axis"


def trace(model: nn.Module, inputs: Any, program: Program | None = None) -> UnitGraph:
    """Find the units of `model` from one recorded forward pass on `inputs`; the model is not changed.

    The graph is a proposal: `units.check.checked` proves every group by a dry run before it may be planned.
    Raises ModelError where the forward pass fails.
    """
    program = program or record(model, inputs)
    state, _ = named_state(model)
    leaves, _ = pytree.tree_flatten(call_arguments(inputs))
    found = Walk(program, state, leaves).run()
    batch = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()), 1)
    _spread_elements(found)
    _freeze_unhooked(found, program)
    return _assemble(model, found, program, batch)


def _spread_elements(found: Found) -> None:
    """Element-wise parameters (norms, layer scale, position terms): find the axis their labels lie along."""
    for name, flat in found.elements.items():
        shape = found.shapes[name]
        roots = torch.from_numpy(found.families.roots(flat.numpy())).reshape(shape)
        if not bool((roots >= 0).any()):
            continue
        axes = [a for a in range(roots.dim()) if _varies_only(roots, a)]
        if len(axes) != 1 or any(key[0] == name for key in found.slots):
            reason = (
                MIXED
                if len(axes) != 1
                else f"`{name}` is used both as a layer's weight and element by element"
            )
            found.families.freeze(roots, reason)
            continue
        line = roots.movedim(axes[0], 0).reshape(shape[axes[0]], -1)[:, 0]
        found.slot(name, axes[0], line, "carries")


def _varies_only(roots: torch.Tensor, axis: int) -> bool:
    line = roots.movedim(axis, 0).reshape(roots.size(axis), -1)
    return bool((line == line[:, :1]).all()) and (roots.size(axis) > 1 or roots.numel() == 1)


def _freeze_unhooked(found: Found, program: Program) -> None:
    """Weights read outside their module's forward cannot be observed; tied weights cannot be cut apart."""
    uses: dict[str, int] = {}
    for item in found.products:
        uses[item.weight] = uses.get(item.weight, 0) + 1
    tied = set(program.tied.values()) | set(program.tied)
    for item in found.products:
        owner = item.weight.rpartition(".")[0]
        reason = None
        if item.weight in tied:
            reason = f"tied weights (`{item.weight}`)"
        elif item.weight.rpartition(".")[2] != "weight" or program.calls.get(owner, 0) != uses[item.weight]:
            reason = f"functional weights (`{item.weight}` is used outside its layer's forward)"
        if reason is None:
            continue
        for axis in (item.in_axis, item.out_axis):
            labels = found.slots.get((item.weight, axis))
            if labels is not None:
                found.families.freeze(labels, reason)


def _assemble(model: nn.Module, found: Found, program: Program, batch: int) -> UnitGraph:
    roots = {key: found.families.roots(labels.numpy()) for key, labels in found.slots.items()}
    order = [key for key in roots if found.roles[key] == "produces" and _is_weight(found, key)]
    members = _join(order, roots)
    number: dict[int, int] = {}
    groups = []
    for keys in members:
        units: list[int] = []
        for key in keys:
            for root in roots[key].tolist():
                if root >= 0 and root not in number:
                    number[root] = len(number)
                    units.append(root)
        groups.append((keys, units))
    axes = []
    for (name, axis), labels in roots.items():
        line = np.array([number.get(int(r), -1) for r in labels], dtype=np.int64)
        if (line >= 0).any():
            axes.append(Axis(name, axis, found.roles[(name, axis)], line))
    taps = _taps(found, axes)
    named = tuple(_group(found, keys, units, number, axes) for keys, units in groups if units)
    uncovered, layers = _uncovered(model, named, axes, program)
    operations = tuple(Operation(_owner(p.weight), p.weight, p.macs // batch) for p in found.products)
    return UnitGraph(len(number), named, tuple(axes), taps, operations, uncovered, layers)


def _is_weight(found: Found, key: tuple[str, int]) -> bool:
    return len(found.shapes[key[0]]) > 1


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _join(
    order: list[tuple[str, int]], roots: dict[tuple[str, int], np.ndarray]
) -> list[list[tuple[str, int]]]:
    """Producers that share a unit form one group, in execution order."""
    home: dict[int, int] = {}
    sets: list[list[tuple[str, int]]] = []
    for key in order:
        hit = sorted({home[r] for r in roots[key].tolist() if r in home})
        target = hit[0] if hit else len(sets)
        if not hit:
            sets.append([])
        for other in hit[1:]:
            sets[target].extend(sets[other])
            sets[other] = []
            home.update({r: target for r, h in home.items() if h == other})
        sets[target].append(key)
        home.update({r: target for r in roots[key].tolist() if r >= 0})
    return [keys for keys in sets if keys]


def _group(
    found: Found, keys: list[tuple[str, int]], units: list[int], number: dict[int, int], axes: list[Axis]
) -> Group:
    mine = {number[u] for u in units}
    by_role: dict[str, list[str]] = {"produces": [], "carries": [], "consumes": []}
    for axis in axes:
        if mine & set(axis.units.tolist()):
            owner = _owner(axis.tensor) or axis.tensor
            if owner not in by_role[axis.role]:
                by_role[axis.role].append(owner)
    reason = next((r for r in (found.families.reason(u) for u in units) if r is not None), None)
    if reason is None and not by_role["consumes"]:
        reason = "no layer reads these units"
    if reason is None and len(units) < 2:
        reason = "a single unit"
    numbers = np.array(sorted(mine), dtype=np.int64)
    return Group(
        _owner(keys[0][0]) or keys[0][0],
        numbers,
        tuple(by_role["produces"]),
        tuple(by_role["carries"]),
        tuple(by_role["consumes"]),
        reason,
    )


def _taps(found: Found, axes: list[Axis]) -> tuple[Tap, ...]:
    consumed = {(a.tensor, a.axis): a for a in axes if a.role == "consumes"}
    taps: dict[str, Tap] = {}
    for item in found.products:
        axis = consumed.get((item.weight, item.in_axis))
        if axis is None or item.kind not in ("linear", "conv", "conv_transpose") or item.weight in taps:
            continue
        kind: Any = item.kind
        taps[item.weight] = Tap(_owner(item.weight), kind, axis.units, item.intercept_exact)
    return tuple(taps.values())


def _uncovered(
    model: nn.Module, groups: tuple[Group, ...], axes: list[Axis], program: Program
) -> tuple[dict[str, str], int]:
    """Layers that no live group touches, with the reason of the group that froze them."""
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    live, reasons = set(), {}
    for group in groups:
        for name in (*group.producers, *group.carriers, *group.consumers):
            if group.frozen is None:
                live.add(name)
            else:
                reasons.setdefault(name, group.frozen)
    missing = {}
    for name in layers:
        if name not in live:
            used = program.calls.get(name, 0) > 0 or name in reasons
            missing[name] = reasons.get(name, "no units reach it") if used else "not reached in eval mode"
    return missing, len(layers)
