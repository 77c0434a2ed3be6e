"""A network's inputs and outputs as trees: a tensor or a tuple / dict of tensors, samples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

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
    """Every tensor of an output by name: its key or field, where there is none `output`, `output_1`, ..."""
    found: dict[str, Tensor] = {}
    for key, value in _items(outputs):
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                name = key or (f"output_{len(found)}" if found else "output")
                found[name if name not in found else f"{name}_{len(found)}"] = leaf
    if not found:
        raise ModelError(
            "output of the network", f"a {type(outputs).__name__} without a tensor", "a tensor", "return one."
        )
    return found


def primary(outputs: Mapping[str, bool]) -> str:
    """The name of the output that is judged: `logits`, else the first that floats (a True value)."""
    if "logits" in outputs:
        return "logits"
    return next((name for name, floats in outputs.items() if floats), next(iter(outputs)))


def main_tensor(outputs: Any) -> Tensor:
    """The tensor that is judged: `logits` of a dict or record, else the first floating tensor."""
    if isinstance(outputs, Tensor):
        return outputs
    named = named_outputs(outputs)
    return named[primary({name: tensor.is_floating_point() for name, tensor in named.items()})]


def _items(outputs: Any) -> list[tuple[str, Any]]:
    """What an output consists of, by name (`""` where there is none)."""
    if isinstance(outputs, Mapping):
        return [(str(key), value) for key, value in outputs.items()]
    if is_dataclass(outputs) and not isinstance(outputs, type):
        return [(field.name, getattr(outputs, field.name)) for field in fields(outputs)]
    names = getattr(outputs, "_fields", None)  # of a named tuple
    if isinstance(outputs, tuple) and names is not None:
        return list(zip(names, outputs, strict=True))
    return [("", outputs)]
