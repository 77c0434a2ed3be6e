"""Units inside attention: which rows of a `DenseAttention`'s layers go together.

Seen one way, a unit is one dimension of every head at once (so that heads stay equally long); seen the other way, it
is one head with all its dimensions. Both lie along the same axes of the same weights: a row stays if its dimension and
its head do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from torch import nn

from compressor.attention.dense import DenseAttention
from compressor.units.graph import Group, Layout, Pairing, Role, UnitGraph

View = Literal["dimensions", "heads"]


def attentions(model: nn.Module) -> dict[str, DenseAttention]:
    """Attention in dense form, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, DenseAttention)}


def layouts(model: nn.Module, view: View) -> dict[str, Layout]:
    """Weight -> how its rows are units. A query dimension is read by the rows of the key's weight; seen as heads, all
    query heads that share a key / value head are one unit with it.
    """
    found: dict[str, Layout] = {}
    for name, attention in attentions(model).items():
        heads = len(attention.scale)
        several = heads // attention.shared
        if attention.places is not None:
            units = np.arange(several).repeat(attention.shared) if view == "heads" else np.full(heads, -1)
            found[f"{name}.places"] = Layout(units, "carries")
        for index in attention.chosen:
            found[f"{name}.{index}"] = Layout(np.full(len(attention.get_buffer(index)), -1), "carries")
        if view == "dimensions":
            for weight in attention.by_head:
                found[f"{name}.{weight}"] = Layout(np.full(heads, -1), "produces")
        counts = {"q": heads, "k": several, "v": several, **dict.fromkeys(attention.beside, heads)}
        for leaf, count in counts.items():
            rows = len(attention.get_parameter(f"{leaf}.weight"))
            weight = f"{name}.{leaf}.weight"
            if view == "heads":
                found[weight] = Layout(np.arange(several).repeat(rows // several), "produces")
            elif attention.fixed and leaf != "v":
                found[weight] = Layout(np.arange(rows), "produces", attention.fixed)
            else:
                role: Role = "consumes" if leaf == "k" else "produces"
                found[weight] = Layout(np.tile(np.arange(rows // count), count), role)
    return found


def with_heads(graph: UnitGraph, whole: UnitGraph, model: nn.Module) -> UnitGraph:
    """`graph` (traced by dimensions) with the groups of heads of `whole` (traced by heads) added to it."""
    names = {f"{name}.q": name for name in attentions(model)}
    number = np.full(whole.n_units + 1, -1, dtype=np.int64)
    count, groups = graph.n_units, []
    for group in whole.groups:
        owner = next((names[layer] for layer in group.producers if layer in names), None)
        if owner is None:
            continue
        number[group.units] = np.arange(count, count + len(group.units))
        groups.append(_renamed(group, f"{owner}.heads", number[group.units]))
        count += len(group.units)
    axes = [replace(axis, units=number[axis.units]) for axis in whole.axes]
    taps = [replace(tap, units=number[tap.units]) for tap in whole.taps]
    placed = [f"{names[n]}.heads" for n in whole.placed if n in names]
    scales = {f"{name}.scale" for name in names.values()}  # a scale belongs to its head, also of a single dimension
    own = (axis for axis in graph.axes if axis.tensor not in scales)
    queries = {f"{layer}.weight": layer for layer, name in names.items() if not attentions(model)[name].fixed}
    pairings = (Pairing(queries[a.tensor], a.units) for a in graph.axes if a.tensor in queries and a.axis == 0)
    return replace(
        graph,
        n_units=count,
        groups=_in_order(graph.groups, groups),
        axes=(*own, *(axis for axis in axes if (axis.units >= 0).any())),
        taps=(*graph.taps, *(tap for tap in taps if (tap.units >= 0).any())),
        placed=(*graph.placed, *placed),
        pairings=tuple(pairings),
    )


def _renamed(group: Group, name: str, units: np.ndarray) -> Group:
    return replace(group, name=name, units=units)


def _in_order(groups: tuple[Group, ...], heads: list[Group]) -> tuple[Group, ...]:
    """Each group of heads right before the first group that its query layer writes."""
    order: list[Group] = []
    left = {group.producers[0]: group for group in heads}
    for group in groups:
        for layer in group.producers:
            if layer in left:
                order.append(left.pop(layer))
        order.append(group)
    return (*order, *left.values())
