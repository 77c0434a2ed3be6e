"""A model's forward pass as a flat list of tensor operations (ATen), recorded by running it once on real input.

The record is made by `make_fx` on a functionalised forward pass, so views are explicit and nothing is written in place.
Parameters and buffers enter as named inputs; whoever walks the program always knows which tensor is which.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from compressor.errors import ModelError


@dataclass(frozen=True)
class Program:
    """Operations in execution order, with the names of the parameters and buffers they read."""

    graph: GraphModule
    state_nodes: dict[Node, str]
    """Input node -> name of the parameter or buffer."""
    input_nodes: tuple[Node, ...]
    output_nodes: tuple[Node, ...]
    tied: dict[str, str]
    """Name -> the first name of the same tensor, for tensors that have several names."""
    calls: dict[str, int] = field(default_factory=dict)
    """Module name -> how often its forward ran."""

    @property
    def nodes(self) -> list[Node]:
        """All nodes in execution order."""
        return list(self.graph.graph.nodes)


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How `inputs` are handed to a model: a dict as keywords, a tuple or list as positions, else one argument."""
    if isinstance(inputs, dict):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def named_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters and buffers under all their names, and which names are the same tensor as an earlier one."""
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state.update(model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
    return {name: tensor.detach() for name, tensor in state.items()}, tied


@contextmanager
def counted_calls(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count how often each module's forward runs; the hooks are gone afterwards."""
    calls: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():

        def count(_module: nn.Module, _args: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        handles.append(module.register_forward_pre_hook(count))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def record(model: nn.Module, inputs: Any) -> Program:
    """Record `model` (in eval mode, on a copy) on `inputs`; the batch size of `inputs` becomes part of the program.

    Raises ModelError where the forward pass fails or cannot be recorded.
    """
    model = copy.deepcopy(model).eval()
    state, tied = named_state(model)
    names = [name for name in state if name not in tied]
    args, kwargs = call_arguments(inputs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    output_spec: list[Any] = []

    def forward(tensors: list[Tensor], leaves: list[Any]) -> list[Any]:
        values = dict(zip(names, tensors, strict=True))
        values.update({name: values[first] for name, first in tied.items()})
        call_args, call_kwargs = pytree.tree_unflatten(leaves, spec)
        out = functional_call(model, values, call_args, call_kwargs, tie_weights=False)
        flat, out_spec = pytree.tree_flatten(out)
        output_spec.append(out_spec)
        return flat

    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernels hide the layers inside
    try:
        with torch.no_grad(), counted_calls(model) as calls:
            traced = make_fx(functionalize(forward), tracing_mode="real")([state[n] for n in names], leaves)
    except Exception as error:  # whatever the user's forward raises is reported as such
        raise ModelError(
            "model forward pass",
            f"{type(error).__name__}: {error}",
            "a model that runs on the example input in eval mode",
            "check the input shape (--input) and that the model runs on its own",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    output = next(node for node in traced.graph.nodes if node.op == "output")
    return Program(
        graph=traced,
        state_nodes=dict(zip(placeholders[: len(names)], names, strict=True)),
        input_nodes=tuple(placeholders[len(names) :]),
        output_nodes=tuple(node for node in pytree.tree_leaves(output.args) if isinstance(node, Node)),
        tied=tied,
        calls=dict(calls),
    )
