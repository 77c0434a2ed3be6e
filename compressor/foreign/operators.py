"""Operators of ONNX as torch functions and layers: one function for each, by the operator's name.

Each gets the building, the operator and its attributes, and returns the node (or nodes) of its outputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.foreign.building import Building, as_tensor, reshaped

Rule = Callable[[Building, onnx.NodeProto, dict[str, Any]], Any]
RULES: dict[str, Rule] = {}
CASTS: dict[int, torch.dtype] = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16,
                                 11: torch.float64}  # fmt: skip


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """ONNX HardSigmoid: max(0, min(1, alpha * x + beta))."""
    return torch.clamp(x * alpha + beta, 0, 1)


def whole_division(x: Any, y: Any) -> Any:
    """ONNX Div: truncated for whole numbers."""
    whole = isinstance(x, Tensor) and not x.is_floating_point()
    return torch.div(x, y, rounding_mode="trunc") if whole else x / y


_PLAIN: dict[str, Callable[..., Any]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Floor": torch.floor, "Ceil": torch.ceil, "Erf": torch.erf,
    "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos, "Reciprocal": torch.reciprocal,
    "Softplus": functional.softplus, "Softsign": functional.softsign, "HardSwish": functional.hardswish,
    "Mish": functional.mish, "Selu": functional.selu, "Not": torch.logical_not, "And": torch.logical_and,
    "Or": torch.logical_or, "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": whole_division,
    "Pow": torch.pow, "Equal": operator.eq, "Greater": operator.gt, "Less": operator.lt, "GreaterOrEqual": operator.ge,
    "LessOrEqual": operator.le, "MatMul": torch.matmul,
}  # fmt: skip


def plain(at: Building, node: onnx.NodeProto, _: dict[str, Any]) -> Any:
    """Operators that are one function of their inputs."""
    return at.call(_PLAIN[node.op_type], *(at.value(name) for name in node.input))


RULES.update(dict.fromkeys(_PLAIN, plain))


@rule("Identity", "Dropout")
def identity(at: Building, node: onnx.NodeProto, _: dict[str, Any]) -> Any:
    """What goes in comes out."""
    return at.value(node.input[0])


@rule("Cast")
def cast(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """To another type."""
    kind = CASTS.get(given["to"])
    if kind is None:
        raise at.refuse(node, f"a type among {', '.join(str(kind) for kind in CASTS.values())}")
    return at.call(torch.Tensor.to, at.value(node.input[0]), kind)


@rule("LeakyRelu", "Elu", "HardSigmoid", "Gelu", "Clip", "PRelu")
def activation(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Activations with numbers of their own."""
    x = at.value(node.input[0])
    if node.op_type == "LeakyRelu":
        return at.call(functional.leaky_relu, x, given.get("alpha", 0.01))
    if node.op_type == "Elu":
        return at.call(functional.elu, x, given.get("alpha", 1.0))
    if node.op_type == "HardSigmoid":
        return at.call(hard_sigmoid, x, given.get("alpha", 0.2), given.get("beta", 0.5))
    if node.op_type == "Gelu":
        return at.call(functional.gelu, x, approximate=given.get("approximate", "none"))
    if node.op_type == "PRelu":
        if _by_channel(at, node):
            layer = nn.PReLU(at.static(node.input[1], node).size)
            layer.weight = nn.Parameter(torch.from_numpy(at.static(node.input[1], node).reshape(-1).copy()))
            return at.layer(layer, node.input[1], x)
        slope = at.value(node.input[1])
        negative = at.call(operator.mul, at.call(torch.clamp, x, max=0.0), slope)
        return at.call(operator.add, at.call(torch.relu, x), negative)
    limits = [given.get("min"), given.get("max")]
    for place, name in enumerate(node.input[1:]):
        limits[place] = float(at.static(name, node).reshape(-1)[0]) if name else None
    return at.call(torch.clamp, x, *limits) if limits != [None, None] else x


def _by_channel(at: Building, node: onnx.NodeProto) -> bool:
    """True if a PRelu has one constant slope, or one for each channel, as torch's own layer has."""
    slope, shape = at.measured.static.get(node.input[1]), at.shape(node.input[0])
    if slope is None or len(shape) < 2:
        return False
    channels = (shape[1], *[1] * (len(shape) - 2))
    return slope.size == 1 or slope.shape in (channels, (1, *channels))


@rule("Softmax", "LogSoftmax")
def softmax(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Along one axis; before opset 13 along all axes from `axis` on."""
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    rank, old = len(at.shape(node.input[0])), at.measured.opset < 13
    axis = given.get("axis", 1 if old else -1)
    if old and axis % rank != rank - 1:
        raise at.refuse(node, "the last axis (in this old opset several axes are joined otherwise)")
    return at.call(function, at.value(node.input[0]), axis)


@rule("Sum", "Mean", "Max", "Min")
def several(at: Building, node: onnx.NodeProto, _: dict[str, Any]) -> Any:
    """Of any number of tensors."""
    step: Any = {"Max": torch.maximum, "Min": torch.minimum}.get(node.op_type, operator.add)
    found = [at.value(name) for name in node.input]
    if node.op_type in ("Max", "Min"):
        found = [as_tensor(at, x) for x in found]
    total = found[0]
    for other in found[1:]:
        total = at.call(step, total, other)
    return at.call(operator.truediv, total, float(len(found))) if node.op_type == "Mean" else total


@rule("Where")
def where(at: Building, node: onnx.NodeProto, _: dict[str, Any]) -> Any:
    """One of two tensors, entry by entry."""
    return at.call(torch.where, *(at.value(name) for name in node.input))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(at: Building, node: onnx.NodeProto, _: dict[str, Any]) -> Any:
    """To the shape that was seen."""
    after = at.shape(node.output[0])
    if sum(size < 0 for size in after) > 1 or (-1 in at.shape(node.input[0])) != (-1 in after):
        raise at.refuse(node, "a shape in which one axis grows with the batch")
    return reshaped(at, at.value(node.input[0]), at.shape(node.input[0]), after)


@rule("Transpose")
def transpose(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Axes in another order."""
    order = given.get("perm", list(reversed(range(len(at.shape(node.input[0]))))))
    return at.call(torch.permute, at.value(node.input[0]), tuple(order))


@rule("Concat")
def concat(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Side by side; constants grow with the batch where the others do."""
    after = at.shape(node.output[0])
    axis, parts = given["axis"] % len(after), []
    for name in node.input:
        part, size = at.value(name), at.shape(name)
        if -1 in after and -1 not in size:
            raise at.refuse(node, f"inputs that all have the batch ('{name}' is constant)")
        parts.append(part)
    return at.call(torch.cat, parts, axis)


@rule("Split")
def split(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Equal parts as `chunk`, so that widths may change; others by their sizes."""
    axis = given.get("axis", 0) % len(at.shape(node.input[0]))
    sizes = [at.shape(name)[axis] for name in node.output]
    x = at.value(node.input[0])
    parts = at.call(torch.chunk, x, len(sizes), axis) if len(set(sizes)) == 1 else at.call(torch.split, x, sizes, axis)
    return [at.call(operator.getitem, parts, place) for place in range(len(sizes))]


@rule("Slice")
def slices(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """A part of some axes, with positive steps."""
    rank = len(at.shape(node.input[0]))
    lists = [at.static(name, node).tolist() if name else None for name in node.input[1:]]
    starts, ends, axes, steps = [*lists, None, None, None, None][:4]
    starts, ends, axes = starts or given.get("starts"), ends or given.get("ends"), axes or given.get("axes")
    axes = list(range(len(starts or []))) if axes is None else axes
    cut = [slice(None)] * rank
    for start, end, axis, step in zip(starts or [], ends or [], axes, steps or [1] * len(axes), strict=True):
        if step < 1 or at.shape(node.input[0])[axis] == -1:
            raise at.refuse(node, "positive steps, along other axes than the batch")
        size = at.shape(node.input[0])[axis]
        whole = start in (0, -size) and end >= size
        cut[axis] = slice(None) if whole and step == 1 else slice(start, end if end < size else None, step)
    return at.call(operator.getitem, at.value(node.input[0]), tuple(cut))


@rule("Gather")
def gather(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """One entry or several of an axis, by numbers that are constant; or a table read by token numbers."""
    axis = given.get("axis", 0)
    if node.input[0] in at.measured.static and axis == 0 and len(at.shape(node.input[0])) == 2:
        rows, width = at.shape(node.input[0])
        table = torch.nn.Embedding(rows, width)
        table.weight = at.parameter(node.input[0], node)
        return at.layer(table, node.input[0], at.value(node.input[1]))
    places = at.static(node.input[1], node)
    size, x = at.shape(node.input[0])[axis], at.value(node.input[0])
    if size < 0:
        raise at.refuse(node, "entries of another axis than the batch")
    if places.ndim == 0:
        return at.call(torch.select, x, axis, int(places) % size)
    if places.ndim > 1:
        raise at.refuse(node, "a list of entries")
    name = f"{node.input[1]}.places"
    at.measured.static[name] = np.asarray(places % size, np.int64)
    return at.call(torch.index_select, x, axis, at.value(name))


@rule("Expand", "Tile")
def expand(at: Building, node: onnx.NodeProto, _: dict[str, Any]) -> Any:
    """Repeated along axes of size one; a whole repetition of others."""
    before, after = at.shape(node.input[0]), at.shape(node.output[0])
    if sum(size < 0 for size in after) != sum(size < 0 for size in before):
        raise at.refuse(node, "an axis that grows with the batch before and after")
    x = at.value(node.input[0])
    if node.op_type == "Tile":
        return at.call(torch.tile, x, tuple(at.static(node.input[1], node).tolist()))
    return at.call(torch.Tensor.expand, x, *after)


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def reduce(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Over some axes."""
    axes = given.get("axes")
    if len(node.input) > 1 and node.input[1]:
        axes = at.static(node.input[1], node).tolist()
    if axes is None and given.get("noop_with_empty_axes"):
        return at.value(node.input[0])
    rank = len(at.shape(node.input[0]))
    axes = sorted(axis % rank for axis in axes or range(rank))
    if any(at.shape(node.input[0])[axis] < 0 for axis in axes):
        raise at.refuse(node, "other axes than the batch")
    kinds: dict[str, Any] = {"Mean": torch.mean, "Sum": torch.sum, "Max": torch.amax, "Min": torch.amin,
                             "L2": torch.linalg.vector_norm}  # fmt: skip
    function = kinds[node.op_type.removeprefix("Reduce")]
    return at.call(function, at.value(node.input[0]), dim=tuple(axes), keepdim=bool(given.get("keepdims", 1)))


@rule("ArgMax", "ArgMin")
def best(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """The place of the largest or smallest entry."""
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    keep = bool(given.get("keepdims", 1))
    return at.call(function, at.value(node.input[0]), dim=given.get("axis", 0), keepdim=keep)


@rule("Pad")
def pad(at: Building, node: onnx.NodeProto, given: dict[str, Any]) -> Any:
    """Borders of a constant, mirrored, or repeated."""
    sizes = given["pads"] if "pads" in given else at.static(node.input[1], node).tolist()
    value = given.get("value", 0.0)
    if len(node.input) > 2 and node.input[2]:
        value = float(at.static(node.input[2], node).reshape(-1)[0])  # some write it as a list of one
    if len(node.input) > 3 and node.input[3]:
        raise at.refuse(node, "no axes of its own")
    kinds = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = given.get("mode", "constant")
    if mode not in kinds:
        raise at.refuse(node, f"one of {', '.join(kinds)}")
    half = len(sizes) // 2
    ordered = [sizes[place + side] for place in reversed(range(half)) for side in (0, half)]
    while ordered and ordered[-2:] == [0, 0]:
        ordered = ordered[:-2]
    if not ordered:
        return at.value(node.input[0])
    extra = {"value": value} if mode == "constant" else {}
    return at.call(functional.pad, at.value(node.input[0]), ordered, mode=kinds[mode], **extra)
