"""Rules for operations that move, copy or create data: what they do to unit labels. Importing registers
them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from compressor.units.labels import along, compact, unlabelled, varies
from compressor.units.program import same_layout
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

MOVES = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unbind",
    "squeeze", "unsqueeze", "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "repeat", "unfold", "narrow", "movedim", "flatten", "unflatten",
    "view_as", "numpy_T", "_reshape_alias", "repeat_interleave", "tile", "swapaxes", "diagonal", "rot90",
    "alias", "detach", "lift_fresh", "split_copy", "squeeze_copy", "unsqueeze_copy", "view_copy",
    "permute_copy", "transpose_copy", "t_copy", "expand_copy", "slice_copy", "select_copy", "alias_copy",
    "unbind_copy", "diagonal_copy", "unfold_copy",
)  # fmt: skip
SPLITS = (
    "split", "split_with_sizes", "chunk", "tensor_split", "split_with_sizes_copy", "unsafe_split",
    "unsafe_chunk", "unsafe_split_with_sizes",
)  # fmt: skip
RESHAPES = ("view", "_unsafe_view", "_reshape_alias", "view_copy", "reshape")
COPIES = ("clone", "contiguous", "_to_copy", "lift_fresh_copy", "copy", "to", "detach_copy")
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
CREATIONS = (
    "new_zeros", "new_ones", "new_full", "new_empty", "empty", "zeros", "ones", "full", "arange",
    "scalar_tensor", "linspace", "eye", "new_empty_strided", "empty_strided", "sym_size", "rand", "randn",
    "randint", "randperm", "hann_window", "fill", "zero",
)  # fmt: skip


KNOWN = {
    "lstm": "recurrent layer (LSTM)", "gru": "recurrent layer (GRU)", "mkldnn_rnn": "recurrent layer (LSTM)",
    "_cudnn_rnn": "recurrent layer", "_trilinear": "bilinear layer", "scaled_dot_product": "attention heads",
    "_local_scalar_dense": "read by the program's control flow",
}  # fmt: skip
"""Plain words for operations that are refused on purpose, by a part of their name."""


def _labels_of(value: Any, numbers: bool) -> Any:
    """Replace every activation by its labels and every parameter by its element numbers (or no labels)."""
    if isinstance(value, Activation):
        return value.labels
    if isinstance(value, Parameter):
        return value.index if numbers else unlabelled(value.shape)
    if isinstance(value, (list, tuple)):
        return type(value)(_labels_of(item, numbers) for item in value)
    return value


def _run(node: Node, args: Any, kwargs: Any) -> Any:
    target: Any = node.target
    if operation_name(node) in RESHAPES:
        return args[0].reshape(args[1])  # labels are stride-0 views, which `view` itself refuses
    try:
        return target(*args, **kwargs)
    except (RuntimeError, NotImplementedError):  # some moves exist for floating types only; labels stay exact
        floats = pytree.tree_map(lambda a: a.double() if isinstance(a, Tensor) else a, args)
        return pytree.tree_map(lambda a: a.long() if isinstance(a, Tensor) else a, target(*floats, **kwargs))


def _permuted(node: Node, args: list[Any], parameter: Parameter) -> tuple[int, ...] | None:
    """The order of the original's axes after this operation, where it only permutes axes (or does
    nothing)."""
    order, name = parameter.order, operation_name(node).removesuffix("_copy")
    if order is None:
        return None
    dims = len(order)
    if name == "t":
        return order[::-1]
    if name == "transpose":
        swapped = list(order)
        swapped[args[1]], swapped[args[2]] = order[args[2]], order[args[1]]
        return tuple(swapped)
    if name == "permute":
        return tuple(order[d % dims] for d in args[1])
    return order if tuple(node.meta["val"].shape) == tuple(parameter.shape) and name in _KEEPS_ORDER else None


_KEEPS_ORDER = (
    "view",
    "reshape",
    "_unsafe_view",
    "expand",
    "alias",
    "detach",
    "lift_fresh",
    "slice",
    "squeeze",
)


def _wrapped(parameter: Parameter | None, result: Any) -> Any:
    def wrap(tensor: Tensor) -> Any:
        if parameter is None:
            return Activation(tensor)
        return Parameter(parameter.name, parameter.original, None, tensor, parameter.pure)

    return wrap(result) if isinstance(result, Tensor) else [wrap(item) for item in result]


@rule(*MOVES, *SPLITS)
def move(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Data movement: run the same operation on the labels (or on the element numbers of a parameter)."""
    tensors = [v for v in leaves(args) if isinstance(v, (Activation, Parameter))]
    if any(isinstance(v, Activation) and v.made for v in tensors) and len(tensors) == 1:
        return opaque(out, made=True)
    parameter = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], Parameter) else None
    if parameter is not None and isinstance(out, Tensor):
        order = _permuted(node, args, parameter)
        if order is not None:
            return Parameter(parameter.name, parameter.original, order, None, parameter.pure)
    result = _wrapped(parameter, _run(node, _labels_of(args, parameter is not None), kwargs))
    if parameter is None and isinstance(tensors[0], Activation):
        _pair_shuffled(walk, node, args, tensors[0].labels)
        _note_placed(walk, operation_name(node).removesuffix("_copy"), tensors[0].labels, result)
    if operation_name(node) in SPLITS and parameter is None:
        _pair_parts(walk, result)
    return result


@rule("cat", "stack", "concat", "concatenate")
def joined(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Concatenation along units lines them up; along positions (tokens) the parts must have the same
    units."""
    parts: list[Any] = list(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    if operation_name(node) == "stack":
        return Activation(torch.stack([_labels_of(part, False) for part in parts], dim))
    labelled = [p.labels for p in parts if isinstance(p, Activation) and bool((p.labels >= 0).any())]
    if labelled and not any(varies(labels, [dim]) for labels in labelled):
        line = labelled[0].narrow(dim, 0, 1)
        for other in labelled[1:]:
            a, b = met_pairs(line, other.narrow(dim, 0, 1))
            walk.families.unite_pairs(a[(a >= 0) & (b >= 0)], b[(a >= 0) & (b >= 0)])
        for place, part in enumerate(parts):
            if isinstance(part, Parameter):
                walk.found.attach(part, line.expand(part.shape))
                parts[place] = Activation(line.expand(part.shape))
            elif part.made or bool((part.labels >= 0).any()):
                parts[place] = Activation(line.expand(part.labels.shape))
        if all(bool((part.labels >= 0).any()) for part in parts):
            return Activation(line.expand(out.shape))
    if all(isinstance(p, Activation) and p.made for p in parts):
        return opaque(out, made=True)
    return Activation(torch.cat([_labels_of(part, False) for part in parts], dim))


SAFE = (
    "permute",
    "transpose",
    "t",
    "expand",
    "unsqueeze",
    "squeeze",
    "alias",
    "detach",
    "lift_fresh",
    "numpy_T",
)


def _note_placed(walk: Walk, name: str, labels: Tensor, result: Any) -> None:
    """Remember units that are moved by position: these are where a cut can shift one unit into another's
    place."""
    if name in SAFE or not bool((labels >= 0).any()):
        return
    before = compact(labels)
    for part in leaves(result):
        after = compact(part.labels)
        if sum(n > 1 for n in after.shape) <= sum(n > 1 for n in before.shape):
            a, b = before.reshape(-1), after.reshape(-1)
            if walk.layouts and b.numel() < a.numel():  # heads are taken apart as they were laid out
                a, b = b, a
            times = b.numel() // max(a.numel(), 1)
            if torch.equal(a.repeat_interleave(times), b) or torch.equal(a.repeat(times), b):
                continue
        walk.found.placed.append(before)
        return


def _pair_shuffled(walk: Walk, node: Node, args: list[Any], labels: Tensor) -> None:
    """A channel shuffle exchanges two axes that units lie along (groups, channels of a group): it stays one only if a
    unit goes together with its partners along the shorter axis, whose size is taken to be fixed (the dry run decides).
    """
    name, small = operation_name(node).removesuffix("_copy"), compact(labels)
    if name in ("channel_shuffle", "native_channel_shuffle") and small.size(1) > 1:
        table = small.movedim(1, 0).reshape(args[1], small.size(1) // args[1], -1)
    elif name in ("transpose", "permute"):
        order = list(range(small.dim()))
        if name == "permute":
            order = [d % small.dim() for d in args[1]]
        else:
            order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
        long = [d for d in order if small.size(d) > 1]
        if len(long) != 2 or long[0] < long[1]:
            return
        table = small.movedim((min(long), max(long)), (0, 1)).reshape(small.size(min(long)), small.size(max(long)), 1)
        if table.size(0) > table.size(1) or (table.size(0) == table.size(1) and walk.turned):
            table = table.transpose(0, 1)
    else:
        return
    first, others = table[:1].expand_as(table).reshape(-1).numpy(), table.reshape(-1).numpy()
    both = (first >= 0) & (others >= 0)
    walk.families.unite_pairs(first[both], others[both])


def _pair_parts(walk: Walk, parts: list[Activation]) -> None:
    """Equal parts of a split stay equal only if a unit goes together with its partners in the other parts."""
    if len({part.labels.shape for part in parts}) != 1:
        return
    lines = [compact(part.labels) for part in parts]
    if len({line.shape for line in lines}) != 1 or sum(size > 1 for size in lines[0].shape) > 1:
        return
    first = lines[0].reshape(-1).numpy()
    for other in lines[1:]:
        second = other.reshape(-1).numpy()
        both = (first >= 0) & (second >= 0)
        walk.families.unite_pairs(first[both], second[both])


def _chosen_by_data(walk: Walk, node: Any) -> bool:
    """True if the value of an index comes from the model's inputs."""
    inputs, seen, todo = set(walk.program.input_nodes), set(), [node]
    while todo:
        item = todo.pop()
        if isinstance(item, (list, tuple)):
            todo.extend(item)
        elif item in inputs:
            return True
        elif isinstance(item, Node) and item not in seen:
            seen.add(item)
            todo.extend(item.all_input_nodes)
    return False


@rule("index", "gather", "index_select", "take", "masked_select", "take_along_dim")
def indexed(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Choosing by index: constant indices are applied to the labels; data may choose positions, not units."""
    value, name = args[0], operation_name(node)
    if name == "index_select" and isinstance(args[2], Parameter) and args[2].name in walk.layouts:
        return _by_place(walk, args, out)
    if isinstance(value, Activation):
        dims = _indexed_dims(name, node, value.labels.dim())
        if not varies(value.labels, dims):
            if name == "index" and [d for d in dims if d == dims[0]] and isinstance(node.args[1], (list, tuple)):
                kept = _beside(value.labels, dims, out)
                if kept is not None:
                    return Activation(kept)
            if name in ("gather", "index_select") and value.labels.dim() == out.dim():
                small = compact(value.labels)
                if all(small.size(d) in (1, out.size(d)) for d in range(out.dim())):
                    return Activation(small.expand(out.shape))
        if _chosen_by_data(walk, list(node.args[1:])):
            walk.freeze(value, "units are chosen by data (index)")
            return opaque(out)
    elif not isinstance(value, Parameter) or _chosen_by_data(walk, list(node.args[1:])):
        walk.freeze(value, "parameter entries are chosen by data (index)")
        return opaque(out)
    if isinstance(value, Activation):
        walk.found.placed.append(compact(value.labels))
    real = pytree.tree_map(lambda a: a.cpu() if isinstance(a, Tensor) else a, walk.real(node.args[1:]))
    parameter = value if isinstance(value, Parameter) else None
    return _wrapped(parameter, _run(node, [_labels_of(value, True), *real], kwargs))


def _by_place(walk: Walk, args: list[Any], out: Tensor) -> Parameter:
    """What was made elsewhere, for all heads that there were, say, chosen by a buffer for those that are left: each
    entry of the buffer belongs to its head, and what was made keeps its entries.
    """
    value, dim, places = args[0], args[1] % out.dim(), args[2]
    walk.freeze(value, "chosen by its place in attention")
    line = places.index.reshape([-1 if d == dim else 1 for d in range(out.dim())])
    return Parameter(places.name, places.original, None, line.expand(out.shape), pure=False)


def _indexed_dims(name: str, node: Node, dims: int) -> list[int]:
    if name == "index":
        places: Any = node.args[1]
        found: list[int] = []
        for place, index in enumerate(places):
            if isinstance(index, Node):
                value = index.meta["val"]
                wide = value.dim() if value.dtype in (torch.bool, torch.uint8) else 1
                found.extend(range(place, place + wide))
        return found
    if name in ("gather", "index_select", "take_along_dim") and len(node.args) > 1 and isinstance(node.args[1], int):
        return [node.args[1] % dims]
    return list(range(dims))


def _beside(labels: Tensor, dims: list[int], out: Tensor) -> Tensor | None:
    """Labels of `x[..., index, ...]` where units lie on other dimensions than the (adjacent) indexed ones."""
    if dims != list(range(dims[0], dims[-1] + 1)):
        return None
    before, after = labels.shape[: dims[0]], labels.shape[dims[-1] + 1 :]
    middle = out.dim() - len(before) - len(after)
    small = compact(labels)
    shape = [*small.shape[: dims[0]], *[1] * middle, *small.shape[dims[-1] + 1 :]]
    return small.reshape(shape).expand(out.shape)


@rule("slice_scatter", "select_scatter", "index_put", "scatter", "diagonal_scatter", "masked_scatter",
      "scatter_add",
      "index_add", "index_copy", "as_strided_scatter", "index_fill")  # fmt: skip
def written(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Writing at positions: harmless inside units, refused where it tells units apart."""
    value, name = args[0], operation_name(node)
    if isinstance(value, Activation) and name in ("slice_scatter", "select_scatter"):
        source, dim = args[1], (args[2] if len(args) > 2 else 0)
        if isinstance(source, Activation):
            if source.made and not varies(value.labels, [dim]):
                return Activation(value.labels, value.made)
            if bool((source.labels >= 0).any()):
                walk.found.placed.extend(t.labels for t in (value, source) if varies(t.labels, [dim]))
                return Activation(_run(node, [value.labels, source.labels, *args[2:]], kwargs))
    labelled = [v for v in leaves(args) if isinstance(v, Activation) and bool((v.labels >= 0).any())]
    untold = isinstance(value, Activation) and all(v is value for v in labelled)
    if untold and not varies(value.labels, list(range(value.labels.dim()))):
        return Activation(value.labels.expand(out.shape))
    walk.freeze(args, "units are written in place by position")
    return opaque(out)


@rule(*COPIES)
def same(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Copies and casts keep the labels. (`copy` writes its second argument over the first.)"""
    value = args[1] if operation_name(node) == "copy" else args[0]
    if isinstance(value, Activation) and value.labels.shape != out.shape:
        return Activation(value.labels.expand(out.shape), value.made)
    return value if isinstance(value, (Activation, Parameter)) else opaque(out, made=True)


@rule(*CREATIONS)
def created(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """New tensors belong to no unit, and are taken to follow the widths of what they meet (the dry run
    decides)."""
    return opaque(out, made=True)


@rule(*LIKE)
def alike(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """New tensors in the shape of another follow its units."""
    return Activation(args[0].labels) if isinstance(args[0], Activation) else opaque(out, made=True)


@rule("as_strided", "as_strided_")
def restrided(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Re-striding that moves nothing keeps the labels; any other depends on storage, and is not followed."""
    return args[0] if same_layout(node) else unknown(walk, node, args, kwargs, out)


@rule("getitem")
def item(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Pick one output of an operation with several."""
    return args[0][args[1]] if isinstance(args[0], (list, tuple)) else opaque(out)


@rule("*unknown")
def unknown(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """Never a guess: units that reach an operation without a rule are frozen by its name."""
    name = operation_name(node)
    words = next((w for part, w in KNOWN.items() if part in name), f"operation `{name}` is not followed")
    walk.freeze(list(args) + list(kwargs.values()), words)
    return opaque(out)


@rule("embedding")
def embedding(walk: Walk, node: Node, args: list[Any], kwargs: dict[str, Any], out: Any) -> Any:
    """An embedding table writes one unit per column."""
    weight = args[0]
    if not isinstance(weight, Parameter) or weight.order != (0, 1):
        walk.freeze(weight, "embedding table is computed, not a parameter")
        return opaque(out)
    labels = walk.found.slots.get((weight.name, 1))
    if labels is None:
        labels = walk.families.fresh(weight.shape[1])
        walk.found.slot(weight.name, 1, labels, "produces")
    line = along(labels, 0)
    return Activation(line.expand(out.shape) if line is not None else unlabelled(out.shape))
