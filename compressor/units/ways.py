"""Networks that choose their way by values: what one recorded pass shows is not all that they may do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.units.grouping import LAYERS
from compressor.units.program import Program
from compressor.units.propagate import Found, operation_name

CHOOSING = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")
"""Operations whose result Python (or a shape) may depend on."""


def chooses(program: Program) -> bool:
    """True if the program reads values to decide what to do, or how much of something there is."""
    return any(n.op == "call_function" and operation_name(n) in CHOOSING for n in program.nodes)


def unreached(model: nn.Module, program: Program) -> list[str]:
    """Layers with weights that this pass made no use of."""
    used = {name for node, name in program.state_nodes.items() if node.users}
    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    return [name for name in layers if not program.calls.get(name) and f"{name}.weight" not in used]


def freeze_unseen(model: nn.Module, found: Found, program: Program) -> None:
    """Where values choose the way, layers that were not reached may read any unit: all stay."""
    missed = unreached(model, program) if chooses(program) else []
    if missed:
        reason = f"values choose the way, and `{missed[0]}` on another way may read these units"
        for labels in found.slots.values():
            found.families.freeze(labels, reason)


def elsewhere(inputs: Any) -> Iterator[Any]:
    """`inputs` as they may be elsewhere: large, of the other sign, shifted, and zero."""
    for factor, shift in ((100.0, 0.0), (-100.0, 0.0), (1.0, 100.0), (1.0, -100.0), (0.0, 0.0)):

        def move(leaf: Any, factor: float = factor, shift: float = shift) -> Any:
            floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return factor * leaf + shift * (leaf.abs().mean() + torch.finfo(leaf.dtype).eps) if floats else leaf

        yield pytree.tree_map(move, inputs)
