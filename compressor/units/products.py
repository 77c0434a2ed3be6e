"""Rules for convolutions and matrix products: where units are read (taps) and written."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from compressor.units.labels import compact, unlabelled
from compressor.units.mixing import meet
from compressor.units.propagate import Activation, Parameter, Product, Walk, opaque, operation_name, rule

COMPUTED = "weight is computed, not a parameter (functional weights)"


def _whole(parameter: Parameter) -> bool:
    """True if the value is the whole parameter in its own layout."""
    return parameter.pure and parameter.order == tuple(range(len(parameter.original)))


def _writes(walk: Walk, name: str, axis: int, size: int, bias: Any) -> Tensor:
    """Labels of the units that a weight writes along `axis`; its bias shares them."""
    labels, layout = walk.found.slots.get((name, axis)), walk.layouts.get(name)
    if labels is None and layout is not None:
        labels = walk.families.fresh(int(layout.pattern.max()) + 1)
        labels = torch.cat([labels, labels.new_tensor([-1])])[torch.from_numpy(layout.pattern)]
        walk.found.slot(name, axis, labels, layout.role)
        if layout.frozen is not None:
            walk.families.freeze(labels, layout.frozen)
    elif labels is None:
        labels = walk.families.fresh(size)
        walk.found.slot(name, axis, labels, "produces")
    if isinstance(bias, Parameter):
        if len(bias.original) == 1 and _whole(bias):
            reads = layout is not None and layout.role == "consumes"
            walk.found.slot(bias.name, 0, labels, "carries" if reads else "produces")
        else:
            walk.families.freeze(labels, "bias is computed, not a parameter")
    elif isinstance(bias, Activation):
        walk.families.freeze(labels, "bias is computed, not a parameter")
    return labels


@rule("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose2d")
def convolution(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """A convolution reads channels and writes channels; a depthwise one carries them one by one."""
    value, weight, bias, stride, padding, _dilation, transposed, _out_padding, groups = args[:9]
    if not isinstance(value, Activation):
        value = Activation(unlabelled(value.shape))
    if not isinstance(weight, Parameter) or not _whole(weight):
        walk.freeze([value, weight, bias], COMPUTED)
        return opaque(out)
    name, shape = weight.name, walk.found.shapes[weight.name]
    channel = value.labels.dim() - len(stride) - 1
    inside = walk.features(value, channel, "a channel at a convolution is not one unit")
    spread = [1] * channel + [-1] + [1] * len(stride)
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    places = value.labels if transposed else out
    macs = shape.numel() * (places.numel() // places.size(channel))
    if groups == 1:
        labels = _writes(walk, name, out_axis, shape[out_axis], bias)
        walk.found.slot(name, in_axis, inside, "consumes")
        kind = "conv_transpose" if transposed else "conv"
        exact = shape[2:].numel() == 1 or all(p == 0 for p in padding)
        walk.found.products.append(Product(name, kind, in_axis, out_axis, exact and not transposed, macs))
        return Activation(labels.reshape(spread).expand(out.shape))
    if not transposed and shape[1] == 1 and groups == inside.numel():
        labels = inside.repeat_interleave(shape[0] // groups)
        walk.found.slot(name, 0, labels, "carries")
        if isinstance(bias, Parameter):
            walk.found.slot(bias.name, 0, labels, "carries")
        walk.found.products.append(Product(name, "depthwise", 1, 0, False, macs))
        return Activation(labels.reshape(spread).expand(out.shape))
    if bool((inside < 0).any()):
        walk.families.freeze(inside, "read by a grouped convolution, with channels that are no units")
        labels = _writes(walk, name, out_axis, out.shape[channel], bias)
        walk.families.freeze(labels, "written by a grouped convolution from channels that are no units")
    else:
        labels = _whole_groups(walk, weight.name, inside, groups, out.shape[channel], transposed, bias)
    walk.found.products.append(Product(name, "grouped", in_axis, out_axis, False, macs))
    return Activation(labels.reshape(spread).expand(out.shape))


def _whole_groups(
    walk: Walk, name: str, inside: Tensor, groups: int, outputs: int, transposed: bool, bias: Any
) -> Tensor:
    """A grouped convolution carries whole groups one by one: what a group reads and writes stays or goes together."""
    labels = walk.found.slots.get((name, 0)) if not transposed else None
    if labels is None:
        labels = walk.families.fresh(outputs)
    for members in (inside.reshape(groups, -1), labels.reshape(groups, -1)):
        first = inside.reshape(groups, -1)[:, :1].expand_as(members)
        walk.families.unite_pairs(first.reshape(-1).numpy(), members.reshape(-1).numpy())
    walk.found.slot(name, 0, inside if transposed else labels, "carries")
    if isinstance(bias, Parameter) and _whole(bias):
        walk.found.slot(bias.name, 0, labels, "carries")
    elif bias is not None:
        walk.families.freeze(labels, "bias is computed, not a parameter")
    return labels


@rule("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "addmv", "mv", "dot")
def product(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """A matrix product with a parameter is a linear layer; between two activations it is attention-like."""
    name = operation_name(node)
    bias = args[0] if name in ("addmm", "baddbmm", "addmv") else None
    left, right = (args[1], args[2]) if bias is not None else (args[0], args[1])
    if isinstance(left, Activation) and isinstance(right, Parameter) and name in ("mm", "addmm"):
        return _linear(walk, left, right, bias, out)
    if isinstance(left, Activation) and isinstance(right, Parameter) and name == "bmm":
        plain = _repeated(right)
        if plain is not None:
            return _linear(walk, left, plain, None, out)
    if isinstance(left, Activation) and isinstance(right, Activation) and name in ("bmm", "mm"):
        return _between_activations(walk, left, right, out)
    walk.freeze([left, right, bias], f"`{name}` with this layout of weights is not followed (functional weights)")
    return opaque(out)


def _linear(walk: Walk, value: Activation, weight: Parameter, bias: Any, out: Any) -> Any:
    shape = walk.found.shapes[weight.name]
    if len(shape) == 2 and weight.pure and weight.order == (1, 0):
        in_axis, out_axis = 1, 0
    elif len(shape) == 2 and _whole(weight):
        in_axis, out_axis = 0, 1
    else:
        walk.freeze([value, weight, bias], COMPUTED)
        return opaque(out)
    inside = walk.features(value, -1, "an input feature of a linear layer is not one unit")
    labels = _writes(walk, weight.name, out_axis, shape[out_axis], bias)
    walk.found.slot(weight.name, in_axis, inside, "consumes")
    walk.found.products.append(
        Product(weight.name, "linear", in_axis, out_axis, True, shape.numel() * value.labels[..., 0].numel())
    )
    return Activation(labels.expand(out.shape))


def _repeated(parameter: Parameter) -> Parameter | None:
    """The matrix of which a three-dimensional view of a parameter is only repetitions, if it is one."""
    index, shape = parameter.index, parameter.original
    if index.dim() != 3 or len(shape) != 2 or index[0].numel() != shape.numel():
        return None
    if index.size(0) > 1 and index.stride(0) != 0 and not bool((index == index[:1]).all()):
        return None
    for order in ((0, 1), (1, 0)):
        whole = Parameter(parameter.name, shape, order, None, parameter.pure)
        if whole.shape == index.shape[1:] and torch.equal(whole.index, index[0]):
            return whole
    return None


def _without_frozen(walk: Walk, labels: Tensor) -> Tensor:
    """No labels where all of these units are frozen already: what never changes is a plain value."""
    roots = np.unique(walk.families.roots(labels.numpy()))
    stuck = all(walk.families.reason(root) is not None for root in roots.tolist() if root >= 0)
    return torch.full([1] * labels.dim(), -1, dtype=torch.int64) if stuck else labels


def _between_activations(walk: Walk, left: Activation, right: Activation, out: Any) -> Any:
    """Contracted units freeze; units of one side's free dimension pass through if nothing else varies
    there. Inside attention whose layout is known, query dimensions meet key dimensions, and heads meet heads."""
    a, b = (_without_frozen(walk, compact(side.labels)) for side in (left, right))
    if walk.layouts and out.dim() == 3:
        both = bool((a >= 0).any()) and bool((b >= 0).any())
        if both and a.shape == (1, 1, b.size(1)) and b.shape == (1, a.size(2), 1):
            meet(walk, a.squeeze(1), b.squeeze(2), "bmm")
            return opaque(out)
        if a.shape == b.shape == (out.size(0), 1, 1):
            return Activation(meet(walk, a, b, "bmm").expand(out.shape))
    if a.size(-1) > 1 or b.size(-2) > 1:
        walk.freeze([left, right], "product of two activations over units (attention)")
        return opaque(out)
    rows, columns = bool((a >= 0).any()), bool((b >= 0).any())
    if rows and columns and 1 in (a.numel(), b.numel()):  # one unit that weighs all others: tokens of a pool
        walk.freeze(left if a.numel() == 1 else right, "this unit weighs other units")
        rows, columns = a.numel() > 1, b.numel() > 1
    if rows and columns:
        walk.freeze([left, right], "product of two activations with units (attention)")
        return opaque(out)
    return Activation((a if rows else b).expand(out.shape))
