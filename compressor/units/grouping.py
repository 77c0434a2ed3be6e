"""What the walk found -> groups with names, producers, carriers, consumers and reasons; taps; layers not
covered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.computed import PLAIN
from compressor.units.graph import Axis, Group, Operation, Tap, UnitGraph
from compressor.units.labels import compact
from compressor.units.program import Program
from compressor.units.propagate import Found

Key = tuple[str, int]
LAYERS = tuple(PLAIN.values())
UNREACHED = "not reached in eval mode"


def closed_recurrent(module: nn.RNNBase) -> str:
    """Why the units of a recurrent layer that is still torch's own stay."""
    kind = f"recurrent layer ({type(module).__name__}"
    if module.proj_size:
        return f"{kind} with a projection)"
    return f"{kind}: followed from zero states only, on sequences that are not packed, of at most 1,000 steps)"


def _of_recurrent(group: Group, closed: Mapping[str, str]) -> Group:
    """The group, with the reason of the recurrent layer that it belongs to."""
    home = next((name for name in (*group.producers, *group.carriers) if name in closed), None)
    return group if home is None else replace(group, frozen=closed[home])


def owner(name: str) -> str:
    """The module that holds a parameter, by name; the parameter's own name where the model itself holds
    it."""
    return name.rpartition(".")[0] or name


def assemble(model: nn.Module, found: Found, program: Program) -> UnitGraph:
    """Number the families that some weight writes, group by group in execution order."""
    roots = {key: found.families.roots(labels.numpy()) for key, labels in found.slots.items()}
    order = [k for k in roots if found.roles[k] == "produces" and len(found.shapes[k[0]]) > 1]
    number = np.full(max((int(r.max(initial=-1)) for r in roots.values()), default=-1) + 2, -1, dtype=np.int64)
    members: list[tuple[list[Key], np.ndarray]] = []
    count = 0
    for keys in join(order, roots):
        lines = np.concatenate([roots[key] for key in keys])
        _, first = np.unique(lines, return_index=True)
        units = lines[np.sort(first)]
        units = units[units >= 0]
        number[units] = np.arange(count, count + len(units))
        count += len(units)
        if len(units):
            members.append((keys, units))
    axes = []
    for (name, axis), labels in roots.items():
        line = number[labels]  # label -1 reads the last entry, which is always -1
        if (line >= 0).any():
            axes.append(Axis(name, axis, found.roles[name, axis], line))
    closed = {name: closed_recurrent(part) for name, part in model.named_modules() if isinstance(part, nn.RNNBase)}
    groups = tuple(_of_recurrent(group, closed) for group in _groups(found, members, number, axes, count))
    batch = next((leaf.shape[0] for leaf in program.inputs if isinstance(leaf, torch.Tensor) and leaf.dim()), 1)
    operations = tuple(Operation(owner(p.weight), p.weight, p.macs // batch) for p in found.products)
    layers = [name for name, module in model.named_modules() if isinstance(module, (*LAYERS, nn.RNNBase))]
    uncovered = _uncovered(layers, groups, found, program)
    uncovered |= {name: why for name, why in closed.items() if uncovered.get(name) != UNREACHED}
    covered = tuple(name for name in layers if name not in uncovered)
    taps = _taps(found, axes)
    placed = _placed(found, groups, number)
    return UnitGraph(count, groups, tuple(axes), taps, operations, uncovered, len(layers), covered, placed)


def _placed(found: Found, groups: tuple[Group, ...], number: np.ndarray) -> tuple[str, ...]:
    if not found.placed:
        return ()
    labels = np.concatenate([compact(line).reshape(-1).numpy() for line in found.placed])
    roots = np.unique(found.families.roots(labels))
    touched = number[roots[roots < len(number)]]
    return tuple(group.name for group in groups if np.isin(group.units, touched).any())


def join(order: list[Key], roots: dict[Key, np.ndarray]) -> list[list[Key]]:
    """Producers that share a unit form one group, in execution order."""
    home = np.full(max((int(roots[k].max(initial=-1)) for k in order), default=-1) + 2, -1, dtype=np.int64)
    sets: list[list[Key]] = []
    for key in order:
        labels = roots[key][roots[key] >= 0]
        hit = [h for h in np.unique(home[labels]).tolist() if h >= 0]
        target = hit[0] if hit else len(sets)
        if not hit:
            sets.append([])
        for other in hit[1:]:
            sets[target].extend(sets[other])
            sets[other] = []
            home[home == other] = target
        sets[target].append(key)
        home[labels] = target
    position = {key: place for place, key in enumerate(order)}
    return [sorted(keys, key=position.__getitem__) for keys in sets if keys]


def _groups(
    found: Found,
    members: list[tuple[list[Key], np.ndarray]],
    number: np.ndarray,
    axes: list[Axis],
    count: int,
) -> tuple[Group, ...]:
    home = np.full(count + 1, -1, dtype=np.int64)
    for place, (_, units) in enumerate(members):
        home[number[units]] = place
    roles: list[dict[str, list[str]]] = [{"produces": [], "carries": [], "consumes": []} for _ in members]
    for axis in axes:
        for place in np.unique(home[axis.units]).tolist():
            if place >= 0 and owner(axis.tensor) not in roles[place][axis.role]:
                roles[place][axis.role].append(owner(axis.tensor))
    groups: list[Group] = []
    taken: set[str] = set()
    for (keys, units), by_role in zip(members, roles, strict=True):
        reason = next((r for r in (found.families.reason(u) for u in units.tolist()) if r is not None), None)
        if reason is None and not by_role["consumes"]:
            reason = "no layer reads these units"
        if reason is None and len(units) < 2:
            reason = "a single unit"
        name = next((n for n in (owner(keys[0][0]), keys[0][0]) if n not in taken), f"{keys[0][0]}#{keys[0][1]}")
        taken.add(name)
        writes, passes, reads = (tuple(by_role[role]) for role in ("produces", "carries", "consumes"))
        groups.append(Group(name, np.sort(number[units]), writes, passes, reads, reason))
    return tuple(groups)


def _taps(found: Found, axes: list[Axis]) -> tuple[Tap, ...]:
    consumed = {(a.tensor, a.axis): a for a in axes if a.role == "consumes"}
    taps: dict[str, Tap] = {}
    for item in found.products:
        axis = consumed.get((item.weight, item.in_axis))
        if axis is None or item.kind not in ("linear", "conv", "conv_transpose"):
            continue
        if item.weight.rpartition(".")[2] != "weight":  # used outside a layer (frozen for it): nothing to observe there
            continue
        kind: Any = item.kind
        exact = item.intercept_exact and (item.weight not in taps or taps[item.weight].intercept_exact)
        taps[item.weight] = Tap(owner(item.weight), kind, axis.units, exact)
    return tuple(taps.values())


def _uncovered(layers: list[str], groups: tuple[Group, ...], found: Found, program: Program) -> dict[str, str]:
    """Layers that no live group touches, with the reason of the group that froze them."""
    live: set[str] = set()
    reasons: dict[str, str] = {}
    for group in groups:
        for name in (*group.producers, *group.carriers, *group.consumers):
            if group.frozen is None:
                live.add(name)
            else:
                reasons.setdefault(name, group.frozen)
    for parameter, note in found.notes.items():
        module = owner(parameter)
        while module and module not in layers:
            module = module.rpartition(".")[0]
        reasons.setdefault(module, note)
    missing = {}
    for name in layers:
        if name not in live:
            used = program.calls.get(name, 0) > 0 or name in reasons
            missing[name] = reasons.get(name, "no units reach it") if used else UNREACHED
    return missing
