"""A network's inputs as trees: a tensor or a tuple / dict of tensors, samples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compressor.errors import UsageError

Inputs = Any
"""A tensor, a tuple or list of tensors (handed over by position) or a dict of them (by keyword)."""


def leaves(inputs: Inputs) -> list[Tensor]:
    """The tensors in the order they are handed over; UsageError for anything that is no tensor."""
    if isinstance(inputs, Tensor):
        return [inputs]
    values = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    if not isinstance(values, (list, tuple)) or not values or not all(isinstance(v, Tensor) for v in values):
        raise UsageError(
            "inputs of the network",
            f"a {type(inputs).__name__}",
            "a tensor, or a flat tuple or dict of tensors",
            "wrap the network so that it takes those.",
        )
    return list(values)


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The same inputs with `function` applied to every tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    return tuple(function(value) for value in inputs)


def as_float(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating tensors in another precision; whole numbers stay."""
    return mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, inputs)
