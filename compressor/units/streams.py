"""Residual streams that only norms over their features read: who writes them, which norms, and who reads the norms.

Such a stream may be turned by any rotation of its features (SliceGPT, Ashkboos et al. 2024, arXiv 2401.15024): what is
found here is where the rotation must be written. Everything about a stream is read from the recorded program; what is
not understood refuses the stream, by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from compressor.units.heads import layouts
from compressor.units.labels import compact
from compressor.units.program import Program, named_state
from compressor.units.propagate import Activation, Parameter, Product, Walk, leaves, operation_name
from compressor.units.rms import rms_norms
from compressor.units.rules import COPIES, MOVES, SPLITS
from compressor.units.trace import spread_elements

LAYER_NORMS = ("native_layer_norm", "layer_norm")
PASSES = frozenset((*MOVES, *SPLITS, *COPIES, "getitem", "index", "index_select"))
"""Operations that move or pick tokens; that features stay as they are is seen from their labels."""
POST = "post-norm"
WRITERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


@dataclass(frozen=True)
class Read:
    """A linear layer, and the norms whose outputs it reads, side by side (nearly always one)."""

    module: str
    norms: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """Where the `width` features of one stream are written and read. Names are those of modules and tensors."""

    name: str
    """The first layer that writes it."""
    width: int
    norms: tuple[str, ...]
    layers: tuple[str, ...]
    """Linear layers, convolutions and embeddings whose outputs are summed into it."""
    constants: tuple[tuple[str, int], ...]
    """Parameters and buffers that are added to it or stand in it (class token, positions), and their feature axis."""
    scales: tuple[tuple[str, tuple[str, ...]], ...]
    """Parameters that scale the output of a layer, feature by feature, before it is added; and that layer."""
    reads: tuple[Read, ...]
    centred: bool = True
    """Whether the norms take the mean away (LayerNorm) or not (RMSNorm)."""


@dataclass(frozen=True)
class _State:
    """What a value is: the stream itself (no norms), or what norms made of it."""

    stream: int
    norms: tuple[str, ...] = ()
    sole: str | None = None
    """The layer that this is the output of, and nothing else was added."""


class _Recording(Walk):
    """A walk that remembers labels, parameters and products node by node."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.labels: dict[Node, list[Tensor]] = {}
        self.parameters: dict[Node, Parameter] = {n: v for n, v in self.values.items() if isinstance(v, Parameter)}
        self.products: dict[Node, Product] = {}

    def _step(self, node: Node) -> None:
        before = len(self.found.products)
        super()._step(node)
        value = self.values[node]
        if isinstance(value, Parameter):
            self.parameters[node] = value
        self.labels[node] = [compact(item.labels) for item in leaves(value) if isinstance(item, Activation)]
        if len(self.found.products) > before:
            self.products[node] = self.found.products[-1]


@dataclass
class _Draft:
    """A stream while it is read together."""

    line: np.ndarray
    """The families of its features, in order."""
    name: str = ""
    norms: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    scales: dict[str, str] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    centred: bool | None = None
    reason: str | None = None


def find_streams(model: nn.Module, program: Program) -> tuple[list[Stream], dict[str, str]]:
    """The streams of a model (recorded as `program`) that can be turned, and name -> why not, for the others."""
    walk = _Recording(program, named_state(model)[0], layouts(model, "dimensions"))
    walk.run()
    spread_elements(walk.found)
    return _Reading(model, program, walk).streams()


class _Reading:
    """One pass over the program in which every value of a stream must be understood."""

    def __init__(self, model: nn.Module, program: Program, walk: _Recording) -> None:
        self.model, self.program, self.walk = model, program, walk
        self.modules = dict(model.named_modules())
        self.drafts: list[_Draft] = []
        self.home: dict[int, int] = {}
        self.states: dict[Node, _State] = {}
        self.rms = rms_norms(program, walk.parameters)
        self.inner = {node for norm in self.rms.values() for node in norm.inner}
        for node in program.nodes:
            if node.op == "call_function" and operation_name(node) in LAYER_NORMS:
                self._open(node, node.args[0])
            elif node in self.rms:
                self._open(node, self.rms[node].x)

    def streams(self) -> tuple[list[Stream], dict[str, str]]:
        """See `find_streams`."""
        for node in self.program.nodes:
            if node.op == "call_function":
                self._step(node)
        for node in self.program.output_nodes:
            if node in self.states:
                state = self.states[node]
                what = f"what `{state.norms[0]}` gives" if state.norms else "the stream itself"
                self._refuse(state.stream, f"{what} is an output of the model")
        found, refused = [], {}
        for index, draft in enumerate(self.drafts):
            axes = self._axes(index, draft)
            if draft.reason is not None:
                refused[draft.name] = draft.reason
                continue
            constants = tuple((name, axes[name]) for name in draft.constants)
            scales = tuple((name, (layer,)) for name, layer in draft.scales.items())
            found.append(
                Stream(
                    draft.name, len(draft.line), tuple(draft.norms), tuple(draft.layers), constants, scales,
                    tuple(draft.reads), draft.centred is not False,
                )
            )  # fmt: skip
        return found, refused

    def _open(self, node: Node, source: Any) -> None:
        """Every set of features that a norm reads is a stream to look at."""
        lines = self.walk.labels.get(source, []) if isinstance(source, Node) else []
        line = self._line(lines[0]) if lines else None
        if line is None or (line < 0).any():
            return  # it reads no units: inputs, or positions
        known = {self.home[root] for root in line.tolist() if root in self.home}
        if len(known) == 1 and np.array_equal(self.drafts[min(known)].line, line):
            return
        index = len(self.drafts)
        self.drafts.append(_Draft(line))
        names = [name for (name, _), roots in self._slots() if np.isin(roots, line).any()]
        self.drafts[index].name = next((n.rpartition(".")[0] or n for n in names), node.name)
        for root in line.tolist():
            self.home.setdefault(root, index)
        if len(np.unique(line)) < len(line):
            self._refuse(index, "a norm over features that come more than once in it")
        for other in known:
            self._refuse(other, "norms over different sets of its features")
            self._refuse(index, "norms over different sets of its features")

    def _slots(self) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
        for key, labels in self.walk.found.slots.items():
            yield key, self.walk.families.roots(labels.numpy())

    def _line(self, labels: Tensor) -> np.ndarray | None:
        """Families along the one axis where labels change; None where there are several such axes."""
        if sum(size > 1 for size in labels.shape) != 1:
            return None
        return self.walk.families.roots(labels.reshape(-1).numpy())

    def _refuse(self, index: int, reason: str) -> None:
        """The first reason stands, unless a later one says more."""
        draft = self.drafts[index]
        if draft.reason is None or (reason.startswith(POST) and not draft.reason.startswith(POST)):
            draft.reason = reason

    def _written(self, node: Node) -> int | None:
        """The stream whose features are those of a node's (first) value."""
        for labels in self.walk.labels.get(node, [])[:1]:
            for root in self.walk.families.roots(labels.reshape(-1)[:1].numpy()).tolist():
                return self.home.get(root)
        return None

    def _step(self, node: Node) -> None:
        given = [self.states[n] for n in node.all_input_nodes if n in self.states]
        if node in self.inner:
            return
        if node in self.rms:
            if self.rms[node].x in self.states:
                self._norm(node, self.states[self.rms[node].x], self.rms[node].weight, centred=False)
        elif node in self.walk.products:
            self._product(node, self.walk.products[node])
        elif operation_name(node) == "embedding" and self._written(node) is not None:
            self._layer(node, self.walk.parameters.get(node.args[0]))  # type: ignore[arg-type]
        elif given:
            self._passed(node, operation_name(node), given)

    def _product(self, node: Node, product: Product) -> None:
        module = product.weight.rpartition(".")[0]
        source = node.args[1] if operation_name(node) == "addmm" else node.args[0]
        state = self.states.get(source)  # type: ignore[arg-type]
        if state is not None:
            if not state.norms:
                self._refuse(state.stream, f"`{module}` reads the stream without a norm")
            elif product.kind != "linear" or not self._plain(product.weight, (nn.Linear,)):
                self._refuse(state.stream, f"what `{state.norms[0]}` gives is read by `{module}`, no linear layer")
            else:
                self.drafts[state.stream].reads.append(Read(module, state.norms))
        if self._written(node) is not None:
            self._layer(node, Parameter(product.weight, torch.Size(), None))

    def _layer(self, node: Node, weight: Parameter | None) -> None:
        """A layer whose output is (added to) the stream."""
        index = self._written(node)
        assert index is not None
        if weight is None or not self._plain(weight.name, WRITERS):
            self._refuse(index, f"`{weight.name if weight else node.name}` writes it, no weight of a known layer")
            return
        layer = weight.name.rpartition(".")[0]
        self.drafts[index].layers.append(layer)
        self._keep(node, _State(index, sole=layer))

    def _plain(self, weight: str, kinds: tuple[type[nn.Module], ...]) -> bool:
        owner, _, leaf = weight.rpartition(".")
        module = self.modules.get(owner)
        return leaf == "weight" and isinstance(module, kinds) and getattr(module, "groups", 1) == 1

    def _keep(self, node: Node, state: _State) -> None:
        """Note what a node's value is, after a look at its features."""
        lines = [self._line(labels) for labels in self.walk.labels.get(node, [])]
        if operation_name(node) in LAYER_NORMS:
            lines = lines[:1]
        wanted = np.tile(self.drafts[state.stream].line, max(len(state.norms), 1))
        if any(line is None or not np.array_equal(line, wanted) for line in lines) or not lines:
            self._refuse(state.stream, f"`{operation_name(node)}` puts its features in another order")
            return
        self.states[node] = state

    def _passed(self, node: Node, name: str, given: list[_State]) -> None:
        state = given[0]
        if any(other.stream != state.stream for other in given):
            for other in given:
                self._refuse(other.stream, f"`{name}` joins it with another stream")
        elif name in LAYER_NORMS:
            weight = self.walk.parameters.get(node.args[2]) if len(node.args) > 2 else None  # type: ignore[arg-type]
            self._norm(node, state, None if weight is None else weight.name, centred=True)
        elif name == "getitem" and operation_name(node.args[0]) in LAYER_NORMS:  # type: ignore[arg-type]
            if node.args[1] == 0:
                self._keep(node, state)
            elif node.users:
                self._refuse(state.stream, f"statistics of `{state.norms[0]}` are read")
        elif name in PASSES or (name == "mean" and self._over_tokens(node)):
            self._keep(node, state)
        elif name in ("add", "cat", "mul", "div") and not state.norms:
            self._combined(node, name, given)
        elif name == "cat" and len(given) == len(node.args[0]):  # type: ignore[arg-type]
            self._beside(node, given)
        elif name in ("pow", "rsqrt") and not state.norms:
            self._refuse(state.stream, "a norm by hand that is no RMSNorm with a plain weight of its own reads it")
        else:
            what = f"what `{state.norms[0]}` gives" if state.norms else "the stream"
            added = next((o for o in given if o.norms), None)
            if name == "add" and added is not None:
                self._refuse(state.stream, f"{POST}: what `{added.norms[0]}` gives is added up")
            self._refuse(state.stream, f"`{name}` reads {what}, without a linear layer")

    def _over_tokens(self, node: Node) -> bool:
        """A mean that leaves the features apart: seen from its labels, and not over what is no token."""
        return self._written(node) is not None

    def _norm(self, node: Node, state: _State, weight: str | None, centred: bool) -> None:
        name, draft = (weight or "").rpartition(".")[0], self.drafts[state.stream]
        own = dict(self.modules[name].named_parameters()) if name in self.modules else {}
        known = self._plain(weight or "", (nn.LayerNorm,)) if centred else list(own) == ["weight"]
        if state.norms:
            self._refuse(state.stream, f"`{name or node.name}` reads what `{state.norms[0]}` gives")
        elif not known:
            self._refuse(state.stream, f"`{name or node.name}` reads it, a norm without a weight of its own")
        elif draft.centred not in (None, centred):
            self._refuse(state.stream, f"`{name}` and `{draft.norms[0]}` are norms of two kinds")
        else:
            draft.norms.append(name)
            draft.centred = centred
            self._keep(node, _State(state.stream, (name,)))

    def _combined(self, node: Node, name: str, given: list[_State]) -> None:
        """A sum, or tokens put side by side, of parts of the stream and of parameters; or a scaled part."""
        state, draft = given[0], self.drafts[given[0].stream]
        parts: Any = node.args[0] if name == "cat" else node.args
        others = [part for part in parts if part not in self.states]
        parameters = [self.walk.parameters.get(part) for part in others if isinstance(part, Node)]
        added = next((o for o in given if o.norms), None)
        if added is not None:
            self._refuse(state.stream, f"{POST}: what `{added.norms[0]}` gives is added up")
        elif any(p is None or not p.pure for p in parameters) or node.kwargs:
            self._refuse(state.stream, f"`{name}` joins it with what is neither linear nor a parameter")
        elif name in ("mul", "div") and (len(given) > 1 or (parameters and (name == "div" or state.sole is None))):
            self._refuse(state.stream, f"`{name}` scales it feature by feature")
        elif name in ("mul", "div"):
            for parameter in parameters:
                draft.scales[parameter.name] = state.sole or ""  # type: ignore[union-attr]
            self._keep(node, state)
        elif name == "add" and any(not isinstance(part, Node) for part in others):
            self._refuse(state.stream, "a number is added to it")
        else:
            own = f"{state.sole}.bias" if len(given) == 1 and state.sole else None
            names = [p.name for p in parameters if p is not None]
            draft.constants += [p for p in names if p != own and p not in draft.constants]
            self._keep(node, state if names == [own] else _State(state.stream))

    def _beside(self, node: Node, given: list[_State]) -> None:
        """What norms give, joined along tokens (all of the same norm) or along features."""
        width = sum(len(state.norms) for state in given) * len(self.drafts[given[0].stream].line)
        lines = [self._line(labels) for labels in self.walk.labels.get(node, [])]
        if lines and lines[0] is not None and len(lines[0]) == width:
            self._keep(node, _State(given[0].stream, tuple(n for state in given for n in state.norms)))
        elif len({state.norms for state in given}) == 1:
            self._keep(node, given[0])
        else:
            self._refuse(given[0].stream, "tokens of different norms are put side by side")

    def _axes(self, index: int, draft: _Draft) -> dict[str, int]:
        """Feature axis of each constant and scale. Refuses a stream whose features lie where nothing was read."""
        reads = {f"{read.module}.weight" for read in draft.reads}
        writes = {f"{layer}.{leaf}" for layer in draft.layers for leaf in ("weight", "bias")}
        weights = {f"{norm}.weight" for norm in draft.norms}
        known = {*reads, *writes, *weights, *draft.constants, *draft.scales}
        modules = (*draft.norms, *draft.layers, *(read.module for read in draft.reads))
        twice = next((m for m in modules if self.program.calls.get(m, 0) != 1), None)
        if twice is not None:
            self._refuse(index, f"`{twice}` runs {self.program.calls.get(twice, 0)} times")
        shared = {*self.program.tied, *self.program.tied.values()}
        tied = next((t for t in sorted(known) if t in shared), None)
        if tied is not None:
            self._refuse(index, f"`{tied}` is tied to another tensor")
        axes: dict[str, int] = {}
        for (name, axis), roots in self._slots():
            if not np.isin(roots, draft.line).any():
                continue
            if name not in known or (len(roots) % len(draft.line)):
                self._refuse(index, f"`{name}` has some of its features in a place that is not followed")
            elif name in draft.constants or name in draft.scales:
                axes[name] = axis
                if not np.array_equal(roots, draft.line):
                    self._refuse(index, f"`{name}` has its features in another order")
        missing = next((n for n in (*draft.constants, *draft.scales) if n not in axes), None)
        if missing is not None:
            self._refuse(index, f"`{missing}` is laid out by its features along no single axis")
        if not (draft.layers and draft.reads):
            self._refuse(index, "no linear layer writes it, or none reads it")
        return axes
