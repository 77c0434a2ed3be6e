"""In which precision a search for exact claims computes, and by which it judges."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.planning.fresh import taken
from compressor.units.modes import unrounded
from compressor.units.program import failed, forward


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """float64 if all floating parameters are; else float32, which sets the tolerances."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return torch.float64 if kinds == {torch.float64} else torch.float32


def cast_inputs(inputs: Any, dtype: torch.dtype) -> Any:
    """Inputs with all leaves on the CPU, floating ones in `dtype`."""

    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().cpu().to(dtype) if leaf.is_floating_point() else leaf.detach().cpu()

    return pytree.tree_map(cast, inputs)


def running_dtype(model: nn.Module, inputs: Any) -> torch.dtype:
    """float64, or float32 where `model` runs in that only (a forward that casts to it). Raises ModelError where it runs
    in neither.
    """
    error: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        net = unrounded(copy.deepcopy(model), dtype)
        two = taken(cast_inputs(inputs, dtype), torch.tensor([0, 0]))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                forward(net, two)
        except Exception as raised:  # noqa: BLE001  (the next precision is tried)
            error = error or raised
            continue
        return dtype
    raise failed(error or RuntimeError("no precision"))
