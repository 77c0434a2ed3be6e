"""Folding: what dropped units carried goes into the weights that read the units that stay, exactly and
with no fit.

Shape letters: O outputs, C input features, D dropped units, K kept units, E entries of a unit, T kernel
taps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.planning.folds import Fold
from compressor.planning.reading import Spot, spots
from compressor.units.cut import cut, keep_mask, positions
from compressor.units.graph import Axis, Tap, UnitGraph, axis_lines

__all__ = ["Fold", "folded"]


def folded(
    model: nn.Module, graph: UnitGraph, folds: Sequence[Fold], norms: Mapping[str, str] | None = None
) -> nn.Module:
    """A copy of `model` without the dropped units, whose consumers read the kept ones in their place.

    Weights keep their dtype and are computed in float64. `norms` names, for a consumer, the batch norm
    that alone reads its output: a constant into a consumer without bias goes into that norm's running
    mean, else a bias is added. Raises ModelError where a constant is to be folded into a consumer that
    cannot take it (zero padding).
    """
    whole = copy.deepcopy(model)
    spans = {group.name: group for group in graph.groups}
    constants: dict[int, Tensor] = {}
    with torch.no_grad():
        for fold in folds:
            for spot in spots(graph, spans[fold.group]) or []:
                tap = graph.taps[spot.tap]
                if tap.module in fold.expand:
                    shift = _fold_tap(whole, graph, tap, spot, fold)
                    if shift is not None:
                        constants[spot.tap] = constants.get(spot.tap, 0) + shift
        kept = {fold.group: fold.kept for fold in folds}
        small = cut(whole, graph, kept)
        mask = keep_mask(graph, kept)
        for place, shift in constants.items():
            tap = graph.taps[place]
            out = _axis(graph, tap, "produces")
            if out is not None:
                line = axis_lines(graph.axes)[out.tensor][out.axis]
                shift = shift[torch.from_numpy(positions(line, mask)).to(shift.device)]
            _add_constant(small, tap, shift, (norms or {}).get(tap.module))
    return small


def _axis(graph: UnitGraph, tap: Tap, role: str) -> Axis | None:
    """The axis of the consumer's weight that reads units, or that writes them."""
    consumed = next(
        a
        for a in graph.axes
        if a.role == "consumes" and a.tensor.rpartition(".")[0] == tap.module and np.array_equal(a.units, tap.units)
    )
    if role == "consumes":
        return consumed
    return next(
        (a for a in graph.axes if a.tensor == consumed.tensor and a.axis != consumed.axis and a.role == role),
        None,
    )


def _fold_tap(whole: nn.Module, graph: UnitGraph, tap: Tap, spot: Spot, fold: Fold) -> Tensor | None:
    """Change one consumer's weight in place; returns the constant (O,) that its output lacks, if any."""
    axis = _axis(graph, tap, "consumes")
    assert axis is not None
    weight = whole.get_parameter(axis.tensor)
    lines = weight.detach().double().cpu().movedim(axis.axis, -1).contiguous()  # (..., C)
    there = spot.present
    dropped = torch.tensor(fold.dropped, dtype=torch.long)
    kept = torch.tensor(fold.kept, dtype=torch.long)
    expand, offset = fold.expand[tap.module].clone().cpu(), fold.offset[tap.module].clone().cpu()
    read = there[dropped]
    old = lines[..., spot.entries[dropped[read]]]  # (..., D, E)
    shift = torch.einsum("...de,d->...", old, offset[read])
    new = torch.einsum("...de,dk->...ke", old, expand[read])
    used = (expand[read] != 0).any(0) & there[kept]
    lines[..., spot.entries[kept[used]]] += new[..., used, :]
    weight.copy_(lines.movedim(-1, axis.axis).to(weight))
    if not bool((offset[read] != 0).any()):
        return None
    if not tap.intercept_exact:
        raise ModelError(
            f"consumer '{tap.module}'",
            "a constant to fold",
            "an input without zero padding, where a constant has an exact place",
            f"keep the constant units of group '{fold.group}'.",
        )
    return shift.reshape(shift.shape[0], -1).sum(1)


def _add_constant(small: nn.Module, tap: Tap, shift: Tensor, norm_name: str | None) -> None:
    layer: Any = small.get_submodule(tap.module)
    if layer.bias is not None:
        layer.bias.copy_((layer.bias.double().cpu() + shift).to(layer.bias))
        return
    norm: Any = small.get_submodule(norm_name) if norm_name else None
    if norm is not None and isinstance(norm.running_mean, Tensor):
        norm.running_mean.copy_((norm.running_mean.double().cpu() - shift).to(norm.running_mean))
        return
    layer.bias = nn.Parameter(shift.to(layer.weight), requires_grad=layer.weight.requires_grad)
