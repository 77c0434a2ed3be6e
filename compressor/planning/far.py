"""Inputs unlike any calibration sample, on which claims must hold, too: larger ones of both signs, shifted ones, masks
and flags that the samples never set, and rows of embedding tables that no sample looks up.

A unit may look like a copy of another only because no sample reaches where they part: where a ReLU6 is full, a bias
that was never overcome, a token that was never said.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compressor.planning.fresh import fresh_inputs, sample_count
from compressor.units.program import Program
from compressor.units.propagate import operation_name

PLACES = ((1.0, 0.0), (10.0, 1.0), (10.0, -1.0), (1000.0, 0.0), (1000.0, -1.0))
"""Factor on the inputs, and shift as a share of their new size, of each batch."""
SAMPLES = 16
"""Samples of each batch."""


def visit_far(
    net: nn.Module, inputs: Any, program: Program, seed: int, visit: Callable[[nn.Module, Any], None]
) -> None:
    """Call `visit(network, batches)` for every kind of far inputs: each with the network to run, a copy of `net`
    whose embedding tables are shuffled. What the network cannot run on (it raises) is left out, boldest first.
    """
    tables = embedding_tables(program)
    for place, (factor, shift) in enumerate(PLACES):
        generator = torch.Generator().manual_seed(seed * 1_009 + place)
        shuffled = _shuffled(net, tables, generator)
        for bold in (True, False):
            batch = far_inputs(inputs, SAMPLES, factor, shift, bold, generator)
            try:
                visit(shuffled, [(SAMPLES, batch)])
            except (RuntimeError, IndexError, ValueError, AssertionError, TypeError):
                continue
            break


def embedding_tables(program: Program) -> list[str]:
    """Names of the parameters in which rows are looked up."""
    looked_up = (
        program.state_nodes.get(node.args[0])  # type: ignore[arg-type]
        for node in program.nodes
        if node.op == "call_function" and operation_name(node) in ("embedding", "_embedding_bag")
    )
    return sorted({name for name in looked_up if name is not None})


def _shuffled(net: nn.Module, tables: list[str], generator: torch.Generator) -> nn.Module:
    """A copy that finds other rows under the same numbers; the network itself where it has no tables."""
    if not tables:
        return net
    made = copy.deepcopy(net)
    with torch.no_grad():
        for name in tables:
            table = made.get_parameter(name)
            table.copy_(table[torch.randperm(len(table), generator=generator).to(table.device)])
    return made


def far_inputs(inputs: Any, count: int, factor: float, shift: float, bold: bool, generator: torch.Generator) -> Any:
    """`count` samples in the form of `inputs`: fresh ones times `factor`, moved by `shift` times their size; flags are
    thrown by chance, and (with `bold`) whole numbers that are the same in all samples are raised.
    """
    total = sample_count(inputs)
    fresh = fresh_inputs(inputs, count, generator)

    def move(given: Any, made: Any) -> Any:
        if not (isinstance(given, Tensor) and given.dim() and given.shape[0] == total):
            return made
        if given.is_floating_point():
            return _moved(given, made, factor, shift, generator)
        if given.dtype == torch.bool:
            thrown = torch.rand(made.shape, generator=generator) < 0.5
            return torch.where(thrown.to(made.device), made, ~made) if bold else made
        if bold and bool((given == given.reshape(-1)[0]).all()):
            return made + torch.randint(3, made.shape, generator=generator).to(made)
        return made

    return pytree.tree_map(move, inputs, fresh)


def _moved(given: Tensor, made: Tensor, factor: float, shift: float, generator: torch.Generator) -> Tensor:
    size = float(given.detach().double().square().mean().sqrt()) or 1.0
    if bool((given == given.reshape(-1)[0]).all()):  # a condition that no sample sets
        made = made + size * torch.randn(made.shape, generator=generator, dtype=torch.float64).to(made)
    return factor * (made + shift * size)
