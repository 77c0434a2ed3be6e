"""A network's inputs and outputs as trees: a tensor or a tuple / dict of tensors, samples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from compressor.errors import ModelError, UsageError

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


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the call."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def as_float(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating tensors in another precision; whole numbers stay."""
    return mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, inputs)


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """Every tensor of an output with a name: its key where there is one, else `output`, `output_1`, ..."""
    found: dict[str, Tensor] = {}
    for path, leaf in _pytree.tree_flatten_with_path(outputs)[0]:
        if not isinstance(leaf, Tensor):
            continue
        key = getattr(path[-1], "key", None) if len(path) == 1 else None
        plain = key if isinstance(key, str) and key else f"output_{len(found)}" if found else "output"
        found[plain if plain not in found else f"{plain}_{len(found)}"] = leaf
    if not found:
        raise ModelError(
            "output of the network", f"a {type(outputs).__name__} without a tensor", "a tensor", "return one."
        )
    return found


def primary(outputs: dict[str, Tensor]) -> str:
    """The name of the output that is judged: `logits`, else the first."""
    return "logits" if "logits" in outputs else next(iter(outputs))


def main_tensor(outputs: Any) -> Tensor:
    """The tensor that is judged: `logits` of a dict or record, else the first tensor."""
    if isinstance(outputs, Tensor):
        return outputs
    named = named_outputs(outputs)
    return named[primary(named)]
