"""Networks with several outputs: groups that only other outputs than the judged one read stay whole (nothing measures
what they are worth), and how far those outputs moved is told."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from compressor.attention.streams import CACHES
from compressor.units.graph import UnitGraph
from compressor.units.modes import evaluating
from compressor.units.outputs import judged_part, named_outputs
from compressor.units.program import copied, forward

_NUMBERED = re.compile(r"_\d+$")
"""What tensors of one output are told apart by."""
REASON = "only outputs that are not judged read it"


def only_unjudged(model: nn.Module, graph: UnitGraph, inputs: Any) -> dict[str, str]:
    """Live groups none of whose consumers the judged output depends on, with the reason; {} for a single output.

    A gradient of None, not one of zero, says so: it is the graph of operations that is asked.
    """
    twin = copied(model)
    for weight in twin.parameters():
        weight.requires_grad_(weight.is_floating_point())
    with torch.enable_grad(), evaluating(twin):
        answer = forward(twin, inputs)
        if len(named_outputs(answer)) == 1:
            return {}
        weights = {name: weight for name, weight in twin.named_parameters() if weight.requires_grad}
        found = torch.autograd.grad(judged_part(answer)[0].sum(), list(weights.values()), allow_unused=True)
    heard = {name.rpartition(".")[0] for name, slope in zip(weights, found, strict=True) if slope is not None}
    known = {name.rpartition(".")[0] for name in weights}
    live = [group for group in graph.groups if group.frozen is None and group.consumers]
    return {g.name: REASON for g in live if known.issuperset(g.consumers) and heard.isdisjoint(g.consumers)}


def moved_outputs(before: nn.Module, after: nn.Module, inputs: Any) -> dict[str, float]:
    """Output that is not judged -> root mean square of its change over its spread over the inputs; inf without spread.

    Only floating outputs of the same shape in both networks; {} where there are none beside the judged one.
    """
    answer = _answer(before, inputs)
    one, judged = named_outputs(answer), judged_part(answer)[0]
    if len(one) == 1:
        return {}
    other = named_outputs(_answer(after, inputs))
    moved: dict[str, float] = {}
    for name, tensor in one.items():
        if _NUMBERED.sub("", name) in CACHES or tensor.data_ptr() == judged.data_ptr():
            continue
        if name in other and tensor.is_floating_point() and other[name].shape == tensor.shape:
            moved[name] = _moved(tensor.double(), other[name].double())
    return moved


def _answer(network: nn.Module, inputs: Any) -> Any:
    """What a copy answers: a network may count, or store, what it is shown."""
    twin = copied(network)
    with torch.no_grad(), evaluating(twin):
        return forward(twin, inputs)


def _moved(before: Tensor, after: Tensor) -> float:
    change, spread = (before - after).square().mean().sqrt(), (before - before.mean(0)).square().mean().sqrt()
    return 0.0 if not bool(change) else float(change / spread) if bool(spread) else float("inf")
