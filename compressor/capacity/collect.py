"""Layers of a network, and their activations as (samples, units): what the measures are computed on.

A `Layer` is one or several places where the same units can be read and ablated: outputs of modules (as the papers tap
networks), or inputs of consumers (as `layers_of` takes them from a UnitGraph, for any network it can follow).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from compressor.algebra.answers import answered, class_scores
from compressor.errors import ModelError, UsageError
from compressor.sources.samples import Samples, batches
from compressor.units.graph import UnitGraph
from compressor.units.modes import evaluating, floating
from compressor.units.outputs import judged_part
from compressor.units.program import forward

BATCH = 128
MAX_ROWS = 50_000
"""Rows of activations per layer, as in arXiv:1912.04783."""


@dataclass(frozen=True)
class Place:
    """The output or input of a module; `units[entry]` is the layer's unit of each entry (None: one to one).

    `axis` is the dimension of the units (None: as `unit_axis` takes it from the module).
    """

    module: str
    side: Literal["output", "input"] = "output"
    units: np.ndarray | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Layer:
    """Units that are ablated together, and the places where they show; the first place is the one measured."""

    name: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Activations:
    """Rows of one layer: `rows` (n, units) float32 on the CPU from `images` samples.

    Positions of one image are not independent: the effective number of samples is nearer to `images`.
    """

    rows: Tensor
    images: int


@dataclass(frozen=True, slots=True)
class Head:
    """The last linear layer: what it reads over all samples, its weights, and the labels; on the CPU."""

    name: str
    features: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor | None


def layers_at(modules: Sequence[str]) -> list[Layer]:
    """One layer for each named module's output (its dimension 1; of three-dimensional ones see `axes.with_axes`)."""
    return [Layer(name, (Place(name),)) for name in modules]


def layers_of(graph: UnitGraph) -> list[Layer]:
    """The live groups of a UnitGraph as layers, at the inputs of all consumers that read them."""
    found = []
    for group in graph.groups:
        if group.frozen is not None:
            continue
        local = np.full(graph.n_units + 1, -1)  # the last entry answers for -1: no unit
        local[group.units] = np.arange(len(group.units))
        places = [Place(tap.module, "input", local[tap.units]) for tap in graph.taps]
        reading = tuple(place for place in places if place.units is not None and (place.units >= 0).any())
        if reading:
            found.append(Layer(group.name, reading))
    return found


def last_linear(model: nn.Module, samples: Samples) -> str:
    """Name of the linear layer that runs last on these samples. Raises ModelError where there is none."""
    ran: list[str] = []

    def noting(name: str) -> Any:
        return lambda _module, _args: ran.append(name)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(noting(name)).remove)
        predicted(model, samples.take(range(1)))
    if not ran:
        raise ModelError("last hidden layer", "no linear layer", "a network that ends in one", "name the head")
    return ran[-1]


def head_of(model: nn.Module, samples: Samples, name: str | None = None) -> Head:
    """What the last linear layer (or the one named) reads on `samples`, (n, units), and its weights.

    Raises ModelError where it does not read one vector per sample.
    """
    name = last_linear(model, samples) if name is None else name
    module = _module(model, name)
    if not isinstance(module, nn.Linear):
        raise ModelError(f"head '{name}'", f"a {type(module).__name__}", "a linear layer", "name the last one")
    seen: list[Tensor] = []
    with ExitStack() as stack:
        handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().cpu()))
        stack.callback(handle.remove)
        predicted(model, samples)
    features = torch.cat(seen)
    if features.ndim != 2 or len(features) != len(samples):
        got = f"inputs of shape {tuple(features.shape)} over {len(samples)} samples"
        raise ModelError(f"head '{name}'", got, "one vector per sample", "name a layer that reads pooled features")
    bias = None if module.bias is None else module.bias.detach().cpu()
    return Head(name, features, module.weight.detach().cpu(), bias, samples.labels)


def collect(
    model: nn.Module,
    layers: Sequence[Layer],
    samples: Samples,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    batch: int = BATCH,
) -> dict[str, Activations]:
    """Layer name -> its activations on `samples` in eval mode, one pass for all layers.

    Positions of a feature map are rows; from each batch at most max_rows / batches of them are kept, drawn without
    replacement (arXiv:1912.04783). `seed` changes only which. Entries of one unit (flattened maps) are rows too. The
    model is as before afterwards. Raises UsageError for a layer the model has not, ModelError for one that is not run.
    """
    count = -(-len(samples) // batch)
    room = max(1, max_rows // count)
    kept: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    generators = {layer.name: np.random.default_rng([seed, i]) for i, layer in enumerate(layers)}

    def reader(layer: Layer) -> Callable[[Tensor, int], Tensor | None]:
        def read(value: Tensor, axis: int) -> None:
            rows = unit_rows(value.detach(), axis, layer.places[0].units)
            if len(rows) > room:
                chosen = np.sort(generators[layer.name].choice(len(rows), room, replace=False))
                rows = rows[torch.from_numpy(chosen).to(rows.device)]
            kept[layer.name].append(rows.float().cpu())

        return read

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(touching(model, layer.places[:1], [reader(layer)]))
        predicted(model, samples, batch)
    missing = [name for name, parts in kept.items() if not parts]
    if missing:
        raise ModelError(f"layer '{missing[0]}'", "a module that is not run", "a layer of the forward pass", "drop it")
    return {name: Activations(torch.cat(parts), len(samples)) for name, parts in kept.items()}


def touching(
    model: nn.Module, places: Sequence[Place], calls: Sequence[Callable[[Tensor, int], Tensor | None]]
) -> ExitStack:
    """A context in which each place's value goes through its call `(value, axis of units) -> new value or None`."""
    modules = [_module(model, place.module) for place in places]  # all of them first: no hook stays behind an error
    stack = ExitStack()
    for place, module, inner in zip(places, modules, calls, strict=True):
        call = inner if place.axis is None else _along(inner, place.axis)
        if place.side == "output":
            stack.callback(module.register_forward_hook(_after(call, module)).remove)
        else:
            stack.callback(module.register_forward_pre_hook(_before(call, module)).remove)
    return stack


def unit_axis(module: nn.Module, value: Tensor) -> int:
    """The dimension of units: the last one of vectors and tokens, else dimension 1."""
    if value.ndim == 2 or isinstance(module, nn.Linear):
        return value.ndim - 1
    return 2 if value.ndim == 3 and not isinstance(module, (nn.Conv1d, nn.BatchNorm1d)) else 1


def unit_rows(value: Tensor, axis: int, units: np.ndarray | None) -> Tensor:
    """(rows, units): positions, and entries of one unit, are rows."""
    rows = value.movedim(axis, -1).flatten(0, -2)
    if units is None:
        return rows
    owned = np.flatnonzero(units >= 0)
    order = owned[np.argsort(units[owned], kind="stable")]
    count = int(units.max()) + 1
    grouped = rows[:, torch.from_numpy(order).to(rows.device)].reshape(len(rows), count, -1)
    return grouped.movedim(2, 1).flatten(0, 1)


def predicted(model: nn.Module, samples: Samples, batch: int = BATCH) -> Tensor:
    """(n,) predicted classes on the CPU, in eval mode without gradients; of a single score as `class_scores`."""
    anything = next(iter(model.parameters()))
    parts = []
    with torch.no_grad(), evaluating(model):
        for one in batches(samples, batch, anything.device, floating(model)):
            scores = judged_part(forward(model, one.inputs))[0]
            scores = scores.reshape(len(scores), -1) if scores.ndim < 3 else scores.flatten(2).mean(2)
            parts.append(scores.cpu())
    return answered(class_scores(torch.cat(parts)))[0]


def _module(model: nn.Module, name: str) -> nn.Module:
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    if name not in modules or not name:
        some = ", ".join(list(modules)[1:9])
        raise UsageError("layer to measure", f"{name!r}", f"a module of the network ({some}, ...)", "check the name")
    return modules[name]


def _along(call: Callable[[Tensor, int], Tensor | None], axis: int) -> Callable[[Tensor, int], Tensor | None]:
    return lambda value, _: call(value, axis)


def _after(call: Callable[[Tensor, int], Tensor | None], module: nn.Module) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            got = f"a {type(output).__name__}"
            raise ModelError("layer to measure", got, "a module whose output is one tensor", "name another module")
        return call(output, unit_axis(module, output))

    return hook


def _before(call: Callable[[Tensor, int], Tensor | None], module: nn.Module) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        new = call(args[0], unit_axis(module, args[0]))
        return None if new is None else (new, *args[1:])

    return hook
