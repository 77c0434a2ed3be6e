"""Cut a model down to the units that stay: parameters and buffers are sliced, layer widths are set, on a
copy."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from compressor.units.graph import UnitGraph, axis_lines

WIDTHS = {
    nn.Linear: {"out_features": 0, "in_features": 1},
    nn.modules.batchnorm._NormBase: {"num_features": 0},
    nn.PReLU: {"num_parameters": 0},
}


def keep_mask(graph: UnitGraph, kept: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Which of the graph's units stay (bool, one entry per unit) for `kept` = group name -> indices that
    stay."""
    mask = np.ones(graph.n_units, dtype=bool)
    for group in graph.groups:
        if group.name in kept:
            mask[group.units] = False
            mask[group.units[list(kept[group.name])]] = True
    return mask


def positions(units: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Positions of an axis that stay: those of units that stay, and those of no unit.

    `units` (positions,), or (views, positions): a position stays if it stays in every view.
    """
    stays = (units < 0) | mask[np.maximum(units, 0)]
    return np.flatnonzero(stays if stays.ndim == 1 else stays.all(axis=0))


def emptiable(graph: UnitGraph) -> list[np.ndarray]:
    """Units of the axes (each once) that could lose every position although each group keeps a unit: branches of a
    concatenation whose units go together with another layer's.
    """
    found: dict[bytes, np.ndarray] = {}
    for by_axis in axis_lines(graph.axes).values():
        for line in by_axis.values():
            if line.ndim == 1 and len(line) and not (line < 0).any():
                there = np.unique(line)
                if not any(np.isin(group.units, there).all() for group in graph.groups):
                    found[there.tobytes()] = there
    return list(found.values())


def cut(model: nn.Module, graph: UnitGraph, kept: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A copy of `model` with only the `kept` units of each named group; nothing is folded or refitted."""
    mask = keep_mask(graph, kept)
    lines: dict[str, dict[int, np.ndarray]] = {}
    for name, by_axis in axis_lines(graph.axes).items():
        for axis, units in by_axis.items():
            stay = positions(units, mask)
            if len(stay) < units.shape[-1]:
                lines.setdefault(name, {})[axis] = stay
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in _under_names(model, lines)})
    for name, by_axis in lines.items():
        _replace(small, name, by_axis)
    for name in {name.rpartition(".")[0] for name in lines}:
        set_widths(small.get_submodule(name))
    return small


def _under_names(model: nn.Module, names: Collection[str]) -> list[Tensor]:
    """Parameters and buffers that have no name besides `names`: a copy in which these are replaced needs none of
    them, which for a large network is most of its memory.
    """
    state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    others = {id(tensor) for name, tensor in state if name not in names}
    return [tensor for name, tensor in state if name in names and id(tensor) not in others]


def _replace(model: nn.Module, name: str, by_axis: Mapping[int, np.ndarray]) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    tensor: Tensor = getattr(owner, leaf)
    sliced = tensor.detach()
    for axis, stay in by_axis.items():
        sliced = sliced.index_select(axis, torch.from_numpy(stay).to(sliced.device))
    if isinstance(tensor, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(sliced.clone(), requires_grad=tensor.requires_grad))
    else:
        owner.register_buffer(leaf, sliced.clone(), persistent=leaf not in owner._non_persistent_buffers_set)


def set_widths(module: nn.Module) -> None:
    """Set a layer's width attributes to what its tensors say."""
    if isinstance(module, nn.modules.conv._ConvNd):
        transposed = bool(module.transposed)
        first, second = module.weight.shape[:2]
        if module.groups > 1:
            module.groups = first // max(
                1, (module.in_channels if transposed else module.out_channels) // module.groups
            )
            inner, outer = (first, second * module.groups) if transposed else (second * module.groups, first)
            module.in_channels, module.out_channels = inner, outer
            return
        module.out_channels, module.in_channels = (second, first) if transposed else (first, second)
        return
    if isinstance(module, nn.GroupNorm):
        size = module.num_channels // module.num_groups  # whole groups go: those that stay are as large as before
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // size
        return
    for kind, attributes in WIDTHS.items():
        if isinstance(module, kind):
            tensor = next(
                (t for t in (getattr(module, n, None) for n in ("weight", "running_mean")) if t is not None),
                None,
            )
            for attribute, axis in attributes.items():
                if tensor is not None and hasattr(module, attribute):
                    setattr(module, attribute, tensor.shape[axis])
