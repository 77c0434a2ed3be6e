"""A model's forward pass as a flat list of tensor operations (ATen), recorded by running it once on real
input.

The record is made by `make_fx` on a functionalised forward pass, so views are explicit and nothing is written
in place. Parameters and buffers enter as named inputs; whoever walks the program always knows which tensor is
which.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from compressor.computed import computed_layers, copy_of, kept_by_hook, made_plain
from compressor.errors import CompressorError, ModelError
from compressor.units.fetched import Fetched, there


@dataclass(frozen=True)
class Program:
    """Operations in execution order, with the names of the parameters and buffers they read."""

    graph: GraphModule
    state_nodes: dict[Node, str]
    """Input node -> name of the parameter or buffer."""
    input_nodes: tuple[Node, ...]
    output_nodes: tuple[Node, ...]
    tied: dict[str, str]
    """Name -> the first name of the same tensor, for tensors that several modules hold."""
    calls: dict[str, int] = field(default_factory=dict)
    """Module name -> how often its forward ran."""
    inputs: tuple[Any, ...] = ()
    """The recorded inputs, flattened, in the order of `input_nodes`."""

    @property
    def nodes(self) -> list[Node]:
        """All nodes in execution order."""
        return list(self.graph.graph.nodes)


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How `inputs` are handed to a model: a mapping as keywords, a tuple or list as positions, else one
    argument."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def forward(model: nn.Module, inputs: Any) -> Any:
    """What the model answers to `inputs`, handed over as `call_arguments` says."""
    args, kwargs = call_arguments(inputs)
    return model(*args, **kwargs)


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


def shared_by_modules(model: nn.Module, tied: Mapping[str, str]) -> dict[str, str]:
    """Those of `tied` that different modules hold. One module under several names (`self.stem`, and first in
    `self.layers`) ties nothing.
    """

    def holder(name: str) -> tuple[int, str]:
        owner, _, leaf = name.rpartition(".")
        return id(model.get_submodule(owner)), leaf

    return {name: first for name, first in tied.items() if holder(name) != holder(first)}


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


def example_pair(inputs: Any) -> Any:
    """`inputs` with exactly two samples: the first two, or the only one twice. Other tensors stay as they
    are."""
    flat, spec = pytree.tree_flatten(inputs)
    batch = next((leaf.shape[0] for leaf in flat if isinstance(leaf, Tensor) and leaf.dim()), 0)

    def pair(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != batch:
            return leaf
        return leaf[:2] if batch > 1 else torch.cat([leaf, leaf])

    return pytree.tree_unflatten([pair(leaf) for leaf in flat], spec) if batch > 0 else inputs


def same_shapes(left: Any, right: Any) -> bool:
    """True if two structures of tensors have the same shapes, leaf by leaf."""
    shapes = ([getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(side)] for side in (left, right))
    return next(shapes) == next(shapes)


def first_line(error: Exception) -> str:
    """Type and first line of an error's message, short enough for a table."""
    if isinstance(error, CompressorError):
        return error.got
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"[:160]


def failed(error: Exception) -> ModelError:
    """The error for a forward pass that raised."""
    return ModelError(
        "model forward pass",
        first_line(error),
        "a model that runs on the example input in eval mode",
        "check the input shape (--input) and that the model runs on its own",
    )


def record(model: nn.Module, inputs: Any) -> Program:
    """Record `model` (in eval mode, on a copy) on `inputs`; the batch size of `inputs` becomes part of the
    program.

    The pass runs on shapes alone (fake tensors) where the model allows it, on real values where its control
    flow needs them. Raises ModelError where the forward pass fails or cannot be recorded.
    """
    flat, spec = pytree.tree_flatten(call_arguments(inputs))
    model = copied(model)
    best: Program | None = None
    error: Exception | None = None
    for mode, twice in WAYS:
        try:
            program = _recorded(model, flat, spec, mode, twice)
        except Exception as raised:  # noqa: BLE001  (the next way is tried)
            if error is None:
                _run_plainly(model, inputs)
            error = raised
            continue
        if any(isinstance(constant, FakeTensor) for constant in _constants(program)):
            continue
        best = program
        if not any(writes_in_place(node) for node in program.nodes):
            break
    if best is None:
        raise failed(error or RuntimeError("the forward pass cannot be recorded"))
    if not best.output_nodes:
        raise ModelError(
            "model output",
            "no tensor that depends on the input",
            "a tensor, or tuples, dicts or dataclasses of tensors",
            "wrap the model so that it returns its predictions",
        )
    return best


WAYS = (("fake", False), ("fake", True), ("real", False), ("real", True))
"""On shapes alone or on real values; in one go, or in-place writes removed afterwards (see `_recorded`)."""


def same_layout(node: Node) -> bool:
    """True for a re-striding that moves nothing (pooling in channels-last order notes its layout so)."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or packet.__name__ not in ("as_strided_", "as_strided") or len(node.args) != 3:
        return False
    before = node.args[0].meta["val"]  # type: ignore[union-attr]
    size, stride = (list(argument) for argument in node.args[1:3])  # type: ignore[arg-type]
    wide = [d for d in range(before.dim()) if before.size(d) > 1]
    return list(before.shape) == size and all(before.stride(d) == stride[d] for d in wide)


def writes_in_place(node: Node) -> bool:
    """True for an operation that changes the values or the shape of one of its inputs."""
    if same_layout(node):
        return False
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def copied(model: nn.Module) -> nn.Module:
    """A copy in eval mode; layers for which hooks of torch compute a weight (old weight norm, pruning) are plain there.
    ModelError where a module keeps a computed tensor otherwise."""
    try:
        made = copy_of(model).eval()
    except RuntimeError as error:
        raise _not_copied(model, first_line(error)) from error
    layers = computed_layers(made).items()
    made_plain(made, {name: kind for name, kind in layers if kept_by_hook(made.get_submodule(name))})
    left = next((name for name, module in made.named_modules() if kept_by_hook(module)), None)
    if left is not None:
        raise _not_copied(model, f"a weight of '{left}' that a hook computes")
    return made


def _not_copied(model: nn.Module, got: str) -> ModelError:
    return ModelError("model", got, "a model that can be copied (every tensor a parameter or a buffer)", _plain(model))


def _plain(model: nn.Module) -> str:
    """How the first module that computes a weight before its forward gets that weight for good."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            weight = getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight")
            place = f"model.get_submodule({name!r})" if name else "model"
            if isinstance(hook, prune.BasePruningMethod):
                return f"make pruning permanent: torch.nn.utils.prune.remove({place}, {weight!r})."
            if isinstance(hook, WeightNorm):
                return (
                    f"call torch.nn.utils.remove_weight_norm({place}, {weight!r}), or use parametrizations.weight_norm."
                )
    return "remove hooks that compute weights, e.g. torch.nn.utils.remove_weight_norm"


def _run_plainly(model: nn.Module, inputs: Any) -> None:
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            forward(model, inputs)
    except Exception as error:  # whatever the user's forward raises is reported as such
        raise failed(error) from error


def _constants(program: Program) -> list[Any]:
    paths = [str(node.target) for node in program.nodes if node.op == "get_attr"]
    return [getattr(program.graph, path, None) for path in paths]


def _recorded(model: nn.Module, flat: list[Any], spec: Any, mode: Any, twice: bool) -> Program:
    """One way to record: on fake or real tensors; `twice` records first and removes in-place writes later
    (custom autograd functions cannot be recorded in one go).
    """
    state, tied = named_state(model)
    names = [name for name in state if name not in tied]

    def forward(tensors: list[Tensor], leaves: list[Any]) -> list[Any]:
        values = dict(zip(names, tensors, strict=True))
        values.update({name: values[first] for name, first in tied.items()})
        call_args, call_kwargs = pytree.tree_unflatten(leaves, spec)
        out = functional_call(model, values, call_args, call_kwargs, tie_weights=False)
        return tensors_in(out)

    def recorder(function: Any) -> Any:
        return make_fx(
            function,
            tracing_mode=mode,
            _allow_non_fake_inputs=True,
            _error_on_data_dependent_ops=mode == "fake",
        )

    arguments = _traceable([state[n] for n in names], mode), flat
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet(), unfused(), counted_calls(model) as calls:
        traced = recorder(forward)(*arguments) if twice else recorder(functionalize(forward))(*arguments)
        calls = dict(calls)
        if twice:
            traced = recorder(functionalize(traced))(*arguments)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    output = next(node for node in traced.graph.nodes if node.op == "output")
    return Program(
        graph=traced,
        state_nodes=dict(zip(placeholders[: len(names)], names, strict=True)),
        input_nodes=tuple(placeholders[len(names) :]),
        output_nodes=tuple(node for node in pytree.tree_leaves(output.args) if isinstance(node, Node)),
        tied=shared_by_modules(model, tied),
        calls=calls,
        inputs=tuple(flat),
    )


def _traceable(state: list[Tensor], mode: str) -> list[Tensor]:
    """Fetched weights as tensors of the device they compute on: of their shapes alone, or with their numbers."""
    if mode == "real":
        return [there(tensor) for tensor in state]
    if not any(isinstance(tensor, Fetched) for tensor in state):
        return state
    with FakeTensorMode(allow_non_fake_inputs=True):
        like = lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)  # noqa: E731
        return [like(tensor) if isinstance(tensor, Fetched) else tensor for tensor in state]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep failed attempts on shapes alone out of the log: another way is tried, or the error is raised."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def unfused() -> Iterator[None]:
    """Switch off the fused attention kernels, which hide the layers inside; the setting is restored."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a model's output: tensors, tuples, dicts, dataclasses and named outputs, nested."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return [tensor for f in fields(value) for tensor in tensors_in(getattr(value, f.name))]
    return []
