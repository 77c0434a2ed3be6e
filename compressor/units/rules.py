"""One rule per family of ATen operations: what it does to unit labels. Importing this module registers them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from compressor.units.labels import along, compact, unlabelled, varies
from compressor.units.propagate import (
    Activation,
    Parameter,
    Walk,
    _leaves,
    _opaque,
    _shrink_together,
    operation_name,
    rule,
)

MOVES = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "split",
    "split_with_sizes", "chunk", "unbind", "cat", "stack", "squeeze", "unsqueeze", "flip", "roll", "index_select",
    "index", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "repeat", "unfold", "narrow", "movedim",
    "slice_scatter", "select_scatter", "gather", "as_strided", "flatten", "unflatten", "view_as", "numpy_T",
    "_reshape_alias", "repeat_interleave", "tile", "swapaxes", "diagonal", "rot90", "take", "masked_select",
)  # fmt: skip
COPIES = ("clone", "alias", "detach", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy", "copy", "to")
CREATIONS = (
    "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like",
    "empty", "zeros", "ones", "full", "arange", "rand_like", "randn_like", "scalar_tensor", "linspace", "eye",
    "new_empty_strided", "sym_size", "rand", "randn", "tril", "triu",
)  # fmt: skip
SPATIAL = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
    "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "_upsample_nearest_exact2d", "grid_sampler_2d",
)  # fmt: skip
REDUCTIONS = {
    "mean": 1, "sum": 1, "amax": 1, "amin": 1, "var": 1, "std": 1, "prod": 1, "linalg_vector_norm": 2, "norm": 2,
    "logsumexp": 1, "max": 1, "min": 1, "argmax": 1, "argmin": 1, "median": 1, "any": 1, "all": 1, "var_mean": 1,
    "std_mean": 1,
}  # fmt: skip
KEEPING = {"_softmax": 1, "_log_softmax": 1, "softmax": 1, "cumsum": 1, "cumprod": 1, "sort": 1, "topk": 2}
NORMS = {
    "native_layer_norm": "LayerNorm", "native_group_norm": "GroupNorm", "rms_norm": "RMSNorm",
    "_fused_rms_norm": "RMSNorm", "layer_norm": "LayerNorm", "group_norm": "GroupNorm",
}  # fmt: skip


def _labels_of(value: Any, as_unlabelled: bool = True) -> Any:
    """Replace every activation by its label tensor, for running an operation on labels."""
    if isinstance(value, Activation):
        return value.labels
    if isinstance(value, Parameter):
        return unlabelled(value.index.shape) if as_unlabelled else value.index
    if isinstance(value, (list, tuple)):
        return type(value)(_labels_of(item, as_unlabelled) for item in value)
    return value


def _run(node: Node, args: Any, kwargs: Any) -> Any:
    target: Any = node.target
    if operation_name(node) in ("view", "_unsafe_view", "_reshape_alias"):
        return args[0].reshape(args[1])  # labels are stride-0 views, which `view` itself refuses
    try:
        return target(*args, **kwargs)
    except (RuntimeError, NotImplementedError):  # some moves exist for floating types only; labels stay exact
        as_float = torch.utils._pytree.tree_map(lambda a: a.double() if isinstance(a, Tensor) else a, args)
        return torch.utils._pytree.tree_map(
            lambda a: a.long() if isinstance(a, Tensor) else a, target(*as_float, **kwargs)
        )


@rule(*MOVES)
def move(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Data movement: run the same operation on the labels (or on the element numbers of a parameter)."""
    tensors = [v for v in _leaves(args) if isinstance(v, (Activation, Parameter))]
    if operation_name(node) == "index":
        indices = torch.fx.map_arg(node.args[1], lambda n: walk.real[n])
        args = [args[0], indices]
        tensors = [args[0]]
    elif operation_name(node) in ("gather", "index_select", "take", "masked_select"):
        real = torch.fx.map_arg(node.args, lambda n: walk.real[n])
        args = [args[0], *real[1:]]
        tensors = [args[0]]
    if len(tensors) == 1 and isinstance(tensors[0], Parameter):
        moved = _run(node, _labels_of(args, as_unlabelled=False), kwargs)
        wrap: Any = lambda t: Parameter(tensors[0].name, t, tensors[0].pure)  # noqa: E731
    else:
        moved = _run(node, _labels_of(args), kwargs)
        wrap = Activation
    if isinstance(moved, Tensor):
        return wrap(moved)
    return [wrap(item) for item in moved]


@rule(*COPIES)
def same(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Copies and casts keep the labels. (`copy` writes its second argument over the first.)"""
    value = args[1] if operation_name(node) == "copy" else args[0]
    if isinstance(value, Activation) and value.labels.shape != out.shape:
        return Activation(value.labels.expand(out.shape))
    return value


@rule(*CREATIONS)
def created(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """New tensors belong to no unit."""
    return _opaque(out)


@rule("getitem")
def item(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Pick one output of an operation with several."""
    return args[0][args[1]] if isinstance(args[0], (list, tuple)) else _opaque(out)


@rule("*unknown")
def unknown(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Never a guess: units that reach an operation without a rule are frozen by its name."""
    walk.freeze(list(args) + list(kwargs.values()), f"operation `{operation_name(node)}` is not followed")
    return _opaque(out)


@rule(*SPATIAL, "constant_pad_nd")
def spatial(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Pooling, resizing and padding act inside each channel: labels may not change over the positions."""
    value = args[0]
    first = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(value, Activation):
        return _opaque(out)
    small = compact(value.labels)
    touched = _touched_dims(node, value.labels.dim(), args)
    if any(small.size(d) > 1 for d in touched):
        walk.families.freeze(value.labels, f"`{operation_name(node)}` mixes or pads units")
        return _opaque(out)
    labels = Activation(small.expand(first.shape))
    if isinstance(out, (tuple, list)):
        return [labels, *[_opaque(o) for o in out[1:]]]
    return labels


def _touched_dims(node: Node, dims: int, args: list[Any]) -> list[int]:
    if operation_name(node) == "constant_pad_nd":
        pads = args[1]
        return [dims - 1 - i // 2 for i in range(0, len(pads), 2) if pads[i] or pads[i + 1]]
    count = 1 if "1d" in operation_name(node) else 3 if "3d" in operation_name(node) else 2
    return list(range(dims - count, dims))


@rule(
    "*pointwise",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "native_dropout",
    "where",
    "masked_fill",
    "_prelu_kernel",
    "prelu",
    "addcmul",
    "lerp",
)
def pointwise(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Element-wise: labels that meet belong together; parameters that meet labels carry them."""
    operands = [v for v in _leaves(args) if isinstance(v, (Activation, Parameter))]
    activations = [v for v in operands if isinstance(v, Activation)]
    parameters = [v for v in operands if isinstance(v, Parameter)]
    shape = out[0].shape if isinstance(out, (tuple, list)) else out.shape
    if not activations:
        if len(parameters) == 1 and parameters[0].index.shape == shape:
            return Parameter(parameters[0].name, parameters[0].index, pure=False)
        for parameter in parameters:  # two parameters computed into one: whatever uses it is not followed
            walk.freeze(parameter, "parameter is computed from others (functional weights)")
        return _opaque(out)
    labels = activations[0].labels.expand(shape)
    for other in activations[1:]:
        labels = _meet(walk, labels, other.labels.expand(shape), operation_name(node))
    for parameter in parameters:
        walk.found.attach(parameter, labels)
    if isinstance(out, (tuple, list)):
        return [Activation(labels), *[_opaque(o) for o in out[1:]]]
    return Activation(labels)


def _meet(walk: Walk, left: Tensor, right: Tensor, name: str) -> Tensor:
    """Unite the labels of two operands of the same (broadcast) shape; return the labels of the result."""
    left_small, right_small = _shrink_together(left, right)
    pairs = torch.unique(torch.stack([left_small.reshape(-1), right_small.reshape(-1)]), dim=1)
    a, b = pairs[0], pairs[1]
    if bool((a < 0).all()):
        _freeze_if_sized(walk, right, left, name)
        return right
    if bool((b < 0).all()):
        _freeze_if_sized(walk, left, right, name)
        return left
    fan_a = torch.unique(a, return_counts=True)
    fan_b = torch.unique(b, return_counts=True)
    many_a = set(fan_a[0][fan_a[1] > 1].tolist())
    many_b = set(fan_b[0][fan_b[1] > 1].tolist())
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        if x in many_a or y in many_b or x < 0 or y < 0:
            stuck = torch.tensor([x, y])
            walk.families.freeze(
                stuck, f"`{name}` broadcasts one unit over others or mixes units with other values"
            )
        else:
            walk.families.unite(x, y)
    result = left if not many_a else right
    return torch.where(left >= 0, left, right) if bool((result < 0).any()) else result


def _freeze_if_sized(walk: Walk, labels: Tensor, other: Tensor, name: str) -> None:
    """Units that meet a plain value with one entry per unit cannot be cut: the value would keep its size."""
    small = compact(labels)
    for dim in range(labels.dim()):
        if small.size(dim) > 1 and not (other.size(dim) == 1 or _broadcast(other, dim)):
            walk.families.freeze(labels, f"`{name}` meets a constant or model input with one entry per unit")
            return


def _broadcast(labels: Tensor, dim: int) -> bool:
    return labels.stride(dim) == 0 and labels.size(dim) > 1


@rule(*REDUCTIONS, *KEEPING)
def reduce(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Reductions over positions keep the labels; reductions over units freeze them."""
    value, name = args[0], operation_name(node)
    if not isinstance(value, Activation):
        return _opaque(out)
    place = REDUCTIONS.get(name, KEEPING.get(name, 1))
    dims = args[place] if len(args) > place else kwargs.get("dim")
    dims = list(range(value.labels.dim())) if dims is None or dims == [] else dims
    dims = [dims] if isinstance(dims, int) else list(dims)
    if varies(value.labels, dims):
        word = (
            "softmax over units"
            if "softmax" in name
            else f"`{name}` is taken over units (mixing norm or reduction)"
        )
        walk.families.freeze(value.labels, word)
        return _opaque(out)
    small = value.labels
    for dim in dims:
        small = small.narrow(dim, 0, 1)
    results = []
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        kept = small if tensor.dim() == small.dim() else _dropped(small, dims)
        results.append(Activation(kept.expand(tensor.shape)))
    return results if isinstance(out, (tuple, list)) else results[0]


def _dropped(labels: Tensor, dims: list[int]) -> Tensor:
    for dim in sorted({d % labels.dim() for d in dims}, reverse=True):
        labels = labels.squeeze(dim)
    return labels


@rule(*NORMS)
def norm(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Norms over units mix them: frozen by name."""
    value = args[0]
    if isinstance(value, Activation):
        walk.families.freeze(value.labels, f"norm mixes units ({NORMS[operation_name(node)]})")
    first = out[0] if isinstance(out, (tuple, list)) else out
    labels = value.labels if isinstance(value, Activation) else unlabelled(first.shape)
    result = Activation(labels)
    return [result, *[_opaque(o) for o in out[1:]]] if isinstance(out, (tuple, list)) else result


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
      "batch_norm", "_batch_norm_no_update", "_native_batch_norm_legit_functional")  # fmt: skip
def batch_norm(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Batch norm scales each channel on its own: its four vectors carry the channel's units."""
    value = args[0]
    shape = [1, -1] + [1] * (value.labels.dim() - 2)
    for vector in args[1:5]:
        if isinstance(vector, Parameter):
            viewed = Parameter(vector.name, vector.index.reshape(shape), vector.pure)
            walk.found.attach(viewed, value.labels)
    return [Activation(value.labels), *[_opaque(o) for o in out[1:]]]


@rule("_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
      "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def attention(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Queries, keys and values are laid out by heads: frozen."""
    walk.freeze(args, "attention heads")
    return _opaque(out)


@rule("embedding")
def embedding(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """An embedding table writes one unit per column."""
    weight = args[0]
    if not isinstance(weight, Parameter) or weight.index.dim() != 2:
        return _opaque(out)
    key = (weight.name, 1)
    labels = walk.found.slots.get(key)
    if labels is None:
        labels = walk.families.fresh(weight.index.shape[1])
        walk.found.slot(weight.name, 1, labels, "produces")
    return Activation(along(labels, 0).expand(out.shape) if labels is not None else unlabelled(out.shape))
