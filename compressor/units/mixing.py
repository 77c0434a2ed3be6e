"""Rules for operations that compute: element-wise, pooling, reductions, norms, attention. Importing registers
them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from compressor.units.labels import compact, unlabelled, varies
from compressor.units.propagate import (
    Activation,
    Parameter,
    Walk,
    leaves,
    met_pairs,
    opaque,
    operation_name,
    rule,
)

SPATIAL = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool2d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "grid_sampler_2d", "grid_sampler_3d",
)  # fmt: skip
REDUCTIONS = (
    "mean", "sum", "amax", "amin", "var", "std", "prod", "linalg_vector_norm", "norm", "logsumexp", "max",
    "min", "argmax", "argmin", "median", "any", "all", "var_mean", "std_mean", "nansum",
)  # fmt: skip
NORMLIKE = ("mean", "sum", "var", "std", "linalg_vector_norm", "norm", "var_mean", "std_mean")
ALONG = (
    "_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp",
    "sort", "topk", "argsort",
)  # fmt: skip
OVER_PATHS = ("sum", "_softmax", "softmax")
"""What may be taken over copies of a unit in several paths that are stacked: they stay or go together."""
DIM_THIRD = ("linalg_vector_norm", "norm", "topk")
NORMS = {
    "native_layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "_fused_rms_norm": "RMSNorm", "layer_norm": "LayerNorm",
}  # fmt: skip


@rule(*SPATIAL)
def spatial(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Pooling, resizing and padding act inside each channel: labels may not change over the positions."""
    value, name = args[0], operation_name(node)
    first = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(value, Activation):
        walk.freeze(value, f"`{name}` of a parameter is not followed")
        return opaque(out)
    small = compact(value.labels)
    count = next(n for n in (1, 2, 3) if f"{n}d" in name)
    if any(small.size(d) > 1 for d in range(small.dim() - count, small.dim())):
        walk.families.freeze(value.labels, f"`{name}` is taken over units")
        return opaque(out)
    walk.freeze(args[1:], f"`{name}` reads these units as positions")
    labels = Activation(small.expand(first.shape))
    return [labels, *[opaque(o) for o in out[1:]]] if isinstance(out, (tuple, list)) else labels


@rule("constant_pad_nd", "pad")
def padded(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Padding positions adds nothing to tell apart; padding units adds positions that belong to no unit."""
    value, pads = args[0], list(args[1])
    if not isinstance(value, Activation):
        walk.freeze(value, "padding of a parameter is not followed")
        return opaque(out)
    small = compact(value.labels)
    for place in range(0, len(pads), 2):
        if small.size(small.dim() - 1 - place // 2) == 1:
            pads[place] = pads[place + 1] = 0
    return Activation(F.pad(small, pads, value=-1).expand(out.shape))


@rule("*pointwise", "hardswish", "hardsigmoid", "hardtanh", "native_dropout", "where", "masked_fill", "lerp",
      "_prelu_kernel", "prelu", "log_sigmoid_forward", "rrelu_with_noise",
      "rrelu_with_noise_functional", "addcmul", "addcdiv", "bernoulli", "tril", "triu")  # fmt: skip
def pointwise(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Element-wise: labels that meet belong together; parameters that meet labels carry them."""
    operands = [v for v in leaves(args) if isinstance(v, (Activation, Parameter))]
    activations = [v for v in operands if isinstance(v, Activation)]
    parameters = [v for v in operands if isinstance(v, Parameter)]
    shape = out[0].shape if isinstance(out, (tuple, list)) else out.shape
    if not activations:
        if len(parameters) == 1 and parameters[0].shape == shape:
            only = parameters[0]
            return Parameter(only.name, only.original, only.order, only.moved, pure=False)
        for parameter in parameters:  # two parameters computed into one: whatever uses it is not followed
            walk.freeze(parameter, "parameter is computed from others (functional weights)")
        return opaque(out)
    labels = activations[0].labels.expand(shape)
    plain = [activations[0]] if not bool((activations[0].labels >= 0).any()) else []
    for other in activations[1:]:
        if bool((other.labels >= 0).any()):
            labels = meet(walk, labels, other.labels.expand(shape), operation_name(node))
        else:
            plain.append(other)
    for other in plain:
        _freeze_if_sized(walk, labels, other, operation_name(node))
    for parameter in parameters:
        walk.found.attach(parameter, labels)
    result = Activation(labels, made=all(a.made for a in activations) and not parameters)
    return [result, *[opaque(o) for o in out[1:]]] if isinstance(out, (tuple, list)) else result


@rule("glu")
def gated(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """One half gates the other: a unit goes together with its gate."""
    value = args[0]
    if not isinstance(value, Activation):
        return opaque(out)
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    left, right = value.labels.chunk(2, dim)
    return Activation(meet(walk, left, right, "glu"))


def meet(walk: Walk, left: Tensor, right: Tensor, name: str) -> Tensor:
    """Unite the labels of two operands of the same (broadcast) shape; return the labels of the result.

    A unit that meets several others (a mask over channels) acts on all of them and must stay; those it acts
    on are still told apart by their own labels.
    """
    if not bool((left >= 0).any()):
        return right
    a, b = met_pairs(left, right)
    broad_a = _meets_several(a, b)
    broad_b = _meets_several(b, a)
    stuck = (a < 0) | (b < 0) | (broad_a & broad_b)
    walk.families.unite_pairs(*(x[~stuck & ~broad_a & ~broad_b] for x in (a, b)))
    walk.families.freeze(_column(a[broad_a]), f"`{name}` broadcasts this unit over other units")
    walk.families.freeze(_column(b[broad_b]), f"`{name}` broadcasts this unit over other units")
    mixed = np.concatenate([a[stuck], b[stuck]])
    walk.families.freeze(_column(mixed), f"`{name}` pairs units with values that are no units")
    result, other = (right, left) if bool(broad_a.any()) and not bool(broad_b.any()) else (left, right)
    return torch.where(result >= 0, result, other) if bool((compact(result) < 0).any()) else result


def _meets_several(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each (distinct) pair: does its first label meet several labels? (-1 counts as one, and never
    itself.)"""
    counts = np.bincount(mine + 1)
    return (counts[mine + 1] > 1) & (mine >= 0)


def _column(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.append(labels, -1))


def _freeze_if_sized(walk: Walk, labels: Tensor, other: Activation, name: str) -> None:
    """Units that meet a plain value with one entry per unit cannot be cut: the value would keep its size."""
    if other.made or not bool((labels >= 0).any()):
        return
    small = compact(labels)
    for dim in range(1, other.labels.dim() + 1):
        if small.size(-dim) > 1 and other.labels.size(-dim) > 1:
            walk.families.freeze(labels, f"`{name}` pairs units with values that are no units")
            return


@rule(*REDUCTIONS, *ALONG)
def reduce(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Reductions over positions keep the labels; reductions over units freeze them."""
    value, name = args[0], operation_name(node)
    if name in ("max", "min") and len(args) > 1 and isinstance(args[1], (Activation, Parameter)):
        return pointwise(walk, node, args, kwargs, out)
    if not isinstance(value, Activation):
        walk.freeze(value, "parameter is computed from others (functional weights)")
        return opaque(out)
    dims = _reduced_dims(name, args, kwargs, value.labels.dim())
    if varies(value.labels, dims):
        if name not in OVER_PATHS or not _go_together(walk, value.labels, dims):
            walk.families.freeze(value.labels, _over_units(name))
            return opaque(out)
        if name != "sum":
            return Activation(value.labels)
        value = Activation(_first(value.labels, dims))
    small = compact(value.labels)
    results = []
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        kept = small if tensor.dim() == small.dim() else _dropped(small, dims)
        results.append(Activation(kept.expand(tensor.shape)))
    return results if isinstance(out, (tuple, list)) else results[0]


def _go_together(walk: Walk, labels: Tensor, dims: list[int]) -> bool:
    """Unite units that lie along `dims` where others lie along other dimensions: those tell which belong together."""
    small = compact(labels)
    taken = sorted(d % small.dim() for d in dims)
    if not any(small.size(d) > 1 for d in range(small.dim()) if d not in taken) or bool((small < 0).any()):
        return False
    lines = small.movedim(taken, list(range(len(taken)))).flatten(0, len(taken) - 1)
    walk.families.unite_pairs(lines[:1].expand_as(lines).reshape(-1).numpy(), lines.reshape(-1).numpy())
    return True


def _first(labels: Tensor, dims: list[int]) -> Tensor:
    """The labels at the first place along `dims`, everywhere there."""
    small = compact(labels)
    for d in dims:
        small = small.narrow(d, 0, 1)
    return small.expand(labels.shape)


def _reduced_dims(name: str, args: list[Any], kwargs: dict[str, Any], count: int) -> list[int]:
    place = 2 if name in DIM_THIRD else 1
    dims = args[place] if len(args) > place else kwargs.get("dim")
    if isinstance(dims, bool) or dims is None or dims == []:
        dims = [-1] if name in ALONG else list(range(count))
    return [dims] if isinstance(dims, int) else list(dims)


def _over_units(name: str) -> str:
    if "softmax" in name:
        return "softmax over units"
    return f"norm mixes units (`{name}` is taken over them)" if name in NORMLIKE else f"`{name}` is taken over units"


def _dropped(labels: Tensor, dims: list[int]) -> Tensor:
    for dim in sorted({d % labels.dim() for d in dims}, reverse=True):
        labels = labels.select(dim, 0)
    return labels


@rule(*NORMS)
def norm(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Norms over units mix them: frozen by name."""
    value, name = args[0], operation_name(node)
    first = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(value, Activation):
        return opaque(out)
    width = len(args[1]) if isinstance(args[1], (list, tuple)) else 0
    normalised = range(value.labels.dim() - width, value.labels.dim()) if width else range(1, value.labels.dim())
    if varies(value.labels, list(normalised)):
        walk.freeze([value, *args[1:]], f"norm mixes units ({NORMS[name]})")
    result = Activation(value.labels.expand(first.shape))
    return [result, *[opaque(o) for o in out[1:]]] if isinstance(out, (tuple, list)) else result


def _attach_by_channel(walk: Walk, vector: Parameter, labels: Tensor) -> None:
    """A vector (C,) acts on each channel of an activation (n, C, ...) on its own."""
    index = vector.index.reshape([1, -1] + [1] * (labels.dim() - 2))
    walk.found.attach(Parameter(vector.name, vector.original, None, index, vector.pure), labels)


@rule("native_group_norm", "group_norm")
def group_norm(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Group norm (Wu & He 2018) mixes the channels of each of its groups and no others: a group is one unit."""
    value, groups = args[0], args[6] if operation_name(node) == "native_group_norm" else args[1]
    first = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(value, Activation):
        walk.freeze(value, "group norm of a parameter is not followed")
        return opaque(out)
    result = Activation(value.labels.expand(first.shape))
    given = [result, *[opaque(o) for o in out[1:]]] if isinstance(out, (tuple, list)) else result
    places = list(range(2, value.labels.dim()))
    if not varies(value.labels, [1, *places]):
        return given
    if groups == 1 or varies(value.labels, places):
        walk.freeze([value, *args[1:]], "norm mixes units (GroupNorm)")
        return given
    table = walk.features(value, 1, "norm mixes units (GroupNorm)").reshape(groups, -1)
    stuck = (table < 0).any(1, keepdim=True).expand_as(table)
    walk.families.freeze(table[stuck], "normalised together with channels that are no units (GroupNorm)")
    both = (table >= 0) & (table[:, :1] >= 0)
    walk.families.unite_pairs(table[:, :1].expand_as(table)[both].numpy(), table[both].numpy())
    for vector in args[1:3] if operation_name(node) == "native_group_norm" else args[2:4]:
        if isinstance(vector, Parameter):
            _attach_by_channel(walk, vector, value.labels)
        elif isinstance(vector, Activation):
            walk.freeze([value, vector], "weights of a group norm are computed, not parameters")
    return given


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
      "cudnn_batch_norm",
      "batch_norm", "_batch_norm_no_update", "_native_batch_norm_legit_functional", "_batch_norm_with_update",
      "miopen_batch_norm", "_batch_norm_with_update_functional")  # fmt: skip
def batch_norm(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Batch norm scales each channel on its own: its four vectors carry the channel's units."""
    value = args[0]
    if not isinstance(value, Activation):
        walk.freeze(value, "batch norm of a parameter is not followed")
        return opaque(out)
    shape = [1, -1] + [1] * (value.labels.dim() - 2)
    for vector in args[1:5]:
        if isinstance(vector, Parameter):
            _attach_by_channel(walk, vector, value.labels)
        elif isinstance(vector, Activation):
            column = Activation(vector.labels.reshape(shape), vector.made, vector.sources)
            _freeze_if_sized(walk, value.labels, column, "batch_norm")
    return [Activation(value.labels), *[opaque(o) for o in out[1:]]]


@rule("_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention",
      "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math_for_mps",
      "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_attention_math_for_cpu")  # fmt: skip
def attention(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Queries, keys and values are laid out by heads: frozen."""
    walk.freeze(args, "attention heads")
    return opaque(out)


@rule("im2col")
def patches(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """`F.unfold`: each channel becomes one row per kernel position."""
    value = args[0]
    if not isinstance(value, Activation) or varies(value.labels, [-1, -2]):
        walk.freeze(value, "`im2col` is taken over units")
        return opaque(out)
    rows = compact(value.labels)[..., 0, 0]
    copies = out.size(-2) // value.labels.size(-3)
    lines = rows.expand(*rows.shape[:-1], value.labels.size(-3)).repeat_interleave(copies, dim=-1)
    return Activation(lines.unsqueeze(-1).expand(out.shape) if lines.numel() else unlabelled(out.shape))
