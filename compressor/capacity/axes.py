"""Which dimension of a layer's three-dimensional output has the units: channels (n, units, positions) after a
convolution in one dimension, the last one (n, tokens, units) after linear layers. An activation or a pooling tells by
what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from compressor.capacity.collect import Layer, Place, predicted, unit_axis
from compressor.errors import ModelError
from compressor.sources.samples import Samples

CHANNELS_FIRST = tuple(
    getattr(nn, name)
    for name in (
        "Conv1d", "ConvTranspose1d", "BatchNorm1d", "InstanceNorm1d", "GroupNorm", "MaxPool1d", "AvgPool1d",
        "AdaptiveAvgPool1d", "AdaptiveMaxPool1d", "LPPool1d", "Dropout1d",
    )
)  # fmt: skip
"""What torch defines on dimension 1."""
UNITS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)


def with_axes(model: nn.Module, layers: Sequence[Layer], samples: Samples) -> list[Layer]:
    """The layers with the dimension of the units noted where their outputs are three-dimensional.

    One sample runs through the network, and each such output is marked by the module that made it, or as what that
    module read. ModelError where neither tells and a convolution in one dimension ran before.
    """
    wanted = {place.module for layer in layers for place in layer.places if place.side == "output"}
    marks: dict[int, tuple[Tensor, int]] = {}  # with the tensors, so that no other one takes their place in memory
    found: dict[str, int] = {}
    ran: list[str] = []

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 3:
                return
            read = next((marks[id(arg)][1] for arg in args if id(arg) in marks), None)
            axis = 1 if isinstance(module, CHANNELS_FIRST) else 2 if isinstance(module, UNITS_LAST) else None
            axis = axis if axis is not None else marks[id(output)][1] if id(output) in marks else read
            if isinstance(module, nn.Conv1d):
                ran.append(name)
            if name in wanted and name not in found:
                found[name] = _told(name, module, output, axis, ran)
            if axis is not None:
                marks[id(output)] = output, axis

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(after(name)).remove)
        predicted(model, samples.take(range(1)))
    return [replace(at, places=tuple(_noted(place, found) for place in at.places)) for at in layers]


def _noted(place: Place, axes: Mapping[str, int]) -> Place:
    return replace(place, axis=axes.get(place.module)) if place.side == "output" else place


def _told(name: str, module: nn.Module, output: Tensor, axis: int | None, ran: Sequence[str]) -> int:
    if axis is None and ran:
        raise ModelError(
            f"layer to measure '{name}'",
            f"an output of shape {tuple(output.shape)} whose units may be in dimension 1 or in the last one",
            "a layer, or an activation or pooling that reads one's output directly",
            f"name the layer before it ('{ran[-1]}', for example).",
        )
    return unit_axis(module, output) if axis is None else axis
