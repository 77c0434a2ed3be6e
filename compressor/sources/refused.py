"""Networks that cannot be worked with in the form they are given in: each is named, with the form that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compressor.errors import ModelError


def refuse_form(model: nn.Module, where: str = "model") -> None:
    """ModelError for a network that is scripted, compiled, wrapped for several devices, or has no weights yet.

    Said before anything reads or runs the network: what these raise by themselves names another cause.
    """
    for found in (_parallel, _scripted, _compiled, _lazy):
        reason = found(model)
        if reason is not None:
            raise ModelError(where, *reason)


Reason = tuple[str, str, str] | None
"""What was got, what was expected, and the next step."""


def _parallel(model: nn.Module) -> Reason:
    if not isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return None  # further inside the first works on a CPU, and a trial tells of the second
    return f"a {type(model).__name__}", "the network inside it", "give `model.module`."


def _scripted(model: nn.Module) -> Reason:
    names = _named(model, lambda module: isinstance(module, torch.jit.ScriptModule))
    if not names:
        return None
    return (
        f"a scripted or traced network (ScriptModule){_at(names)}",
        "Python modules",
        "give the Python module that it was made from, or an ONNX file of it (`onnx:FILE`).",
    )


def _compiled(model: nn.Module) -> Reason:
    names = _named(model, lambda module: isinstance(vars(module).get("_modules", {}).get("_orig_mod"), nn.Module))
    if not names:
        return None
    inside = f"model.{names[0]}" if names[0] else "model"
    return f"a compiled network{_at(names)}", "one that is not", f"give `{inside}._orig_mod`, or compile the result."


def _lazy(model: nn.Module) -> Reason:
    def empty(module: nn.Module) -> bool:
        tensors = (*module._parameters.values(), *module._buffers.values())
        return any(tensor is not None and is_lazy(tensor) for tensor in tensors)

    names = _named(model, empty)
    if not names:
        return None
    some = ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"lazy layers without weights: {some}",
        "layers whose sizes are known",
        "run it once on an input before it is given (a factory can: `model(torch.zeros(2, ...))`).",
    )


def _named(model: nn.Module, wanted: Callable[[Any], bool]) -> list[str]:
    """Names of the outermost modules that are so."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not any(name.startswith(f"{outer}." if outer else "") for outer in found) and wanted(module):
            found.append(name)
    return found


def _at(names: list[str]) -> str:
    return f" in '{names[0]}'" if names[0] else ""
