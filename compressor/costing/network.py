"""What a run costs for a network that is there: its work counted, its passes timed on a few samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from compressor.costing.rates import least
from compressor.costing.work import Work, taps_of
from compressor.sources.samples import as_samples
from compressor.stages import batch_size
from compressor.surgery.landing import landings
from compressor.surgery.refit import bytes_per_chunk
from compressor.units.dense import in_dense_form
from compressor.units.modes import evaluating
from compressor.units.outputs import judged_part
from compressor.units.program import forward, record
from compressor.units.trace import trace

TIMED = 2.0
"""Seconds that a timed forward pass may take, about."""


def work_of(name: str, model: nn.Module, inputs: Tensor, samples: int, judged: int) -> Work:
    """The work of compressing `model` on so many samples like `inputs` (2, ...), which costs some passes of it.

    No dry run is made: groups that one would freeze are counted as live. The model is not changed.
    """
    model = in_dense_form(model, inputs, normal=False)
    graph = trace(model, inputs)
    program = record(model, inputs)
    taps = taps_of(model, graph, landings(program), len(inputs), samples)
    batch = min(batch_size(as_samples(inputs)), samples)
    forward, backward = timed_passes(model, inputs, batch, [tap.name for tap in taps])
    params = sum(parameter.numel() for parameter in model.parameters())
    macs = float(sum(operation.macs for operation in graph.operations))
    activations = bytes_per_chunk(program) / len(inputs)
    return Work(name, tuple(taps), params, macs, batch, samples, judged, activations, forward, backward)


def timed_passes(model: nn.Module, inputs: Any, batch: int, modules: Sequence[str]) -> tuple[float, float]:
    """Seconds for one sample of a forward pass, and of the backward pass to what these modules give."""
    with evaluating(model), torch.no_grad():
        few = least(lambda: forward(model, inputs), 1)
        count = max(1, min(batch, int(len(inputs) * TIMED / few)))
        many = pytree.tree_map(lambda leaf: leaf[torch.arange(count) % len(leaf)], inputs)
        there = least(lambda: forward(model, many)) / count
        return there, min(_backward(model, many, modules) for _ in range(2)) / count


def _backward(model: nn.Module, inputs: Any, modules: Sequence[str]) -> float:
    edges: list[GradientEdge] = []

    def keep(_module: nn.Module, _args: Any, out: Tensor) -> Tensor | None:
        edges.append(get_gradient_edge(out))
        return out.clone() if out._is_view() else None

    handles = [model.get_submodule(name).register_forward_hook(keep) for name in modules]
    try:
        with torch.enable_grad():
            output = judged_part(forward(model, inputs))[0].square().sum()
            start = time.perf_counter()
            torch.autograd.grad(output, edges, allow_unused=True)
            return time.perf_counter() - start
    finally:
        for handle in handles:
            handle.remove()
