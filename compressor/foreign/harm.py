"""What an ONNX file could do to the one who runs it: read other files, never end, unfold without end.

onnxruntime does not come back for Ctrl-C, so that all three are looked for before it opens the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import onnx
from onnx import numpy_helper

from compressor.errors import SourceError

LONGEST_LOOP = 100_000
"""Passes of a loop, those of the loops inside it counted; recurrent layers have operators of their own."""
MOST_NODES = 1_000_000
"""Nodes of a graph whose functions are written out."""
MOST_DEPTH = 200
"""Functions that call functions, and graphs inside graphs."""

Constants = Mapping[str, "onnx.TensorProto | None"]
_STANDARD = ("", "ai.onnx")


def refuse_harm(path: Path) -> None:
    """As `refuse_harm_of`, of a file. What is no ONNX model passes: onnxruntime refuses it."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # noqa: BLE001 (protobuf's errors have no common class but this)
        return
    refuse_harm_of(path, model)


def refuse_harm_of(path: Path, model: onnx.ModelProto) -> None:
    """SourceError for a model with weights in files that are not beside it, with loops that need not end, or with
    functions that unfold to more than MOST_NODES nodes.
    """
    for tensor in _tensors(model):
        _refuse_elsewhere(path, tensor)
    _refuse_endless(path, model.graph.node, _constants(model.graph, {}), LONGEST_LOOP)
    for function in model.functions:
        _refuse_endless(path, function.node, {}, 0)  # it may itself be called in a loop
    _refuse_unfolding(path, model)


def _refuse_elsewhere(path: Path, tensor: onnx.TensorProto) -> None:
    for entry in tensor.external_data if tensor.data_location == onnx.TensorProto.EXTERNAL else ():
        place = Path(entry.value)
        if entry.key == "location" and (len(place.parts) != 1 or (path.parent / place).is_symlink()):
            raise SourceError(
                f"'{path}', tensor '{tensor.name}'", f"data in another place: '{entry.value}'",
                "data in the file itself, or in a file beside it", "do not use this file; get it again.",
            )  # fmt: skip


def _refuse_endless(path: Path, nodes: Iterable[onnx.NodeProto], known: Constants, passes: int) -> None:
    """A loop's passes must be a constant of the file; `passes` is how many are still allowed at this place."""
    constants = dict(known)
    for node in nodes:
        for name in node.output:  # an inner graph's own name hides an outer one
            constants.pop(name, None)
        if node.op_type == "Constant" and node.domain in _STANDARD and len(node.output) == 1:
            constants[node.output[0]] = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        left = passes
        if node.op_type == "Loop":
            count = _whole(constants.get(node.input[0]) if node.input else None)
            if count is None or count > passes:
                raise SourceError(
                    f"'{path}', operator Loop '{node.name or node.output[0]}'",
                    "as many passes as its numbers say" if count is None else f"{count} passes",
                    f"a constant number of passes, at most {LONGEST_LOOP} with those of inner loops",
                    "do not use this file, or export the network without loops.",
                )
            left = passes // max(1, count)
        for inner in _inner(node):
            _refuse_endless(path, inner.node, _constants(inner, constants), left)


def _constants(graph: onnx.GraphProto, outer: Constants) -> Constants:
    """Values that nobody can give another: weights that are no inputs, and those of the graph outside."""
    found = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    return {name: tensor for name, tensor in found.items() if name not in {entry.name for entry in graph.input}}


def _whole(tensor: onnx.TensorProto | None) -> int | None:
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    try:
        values = numpy_helper.to_array(tensor)
        return int(values.reshape(-1)[0]) if values.size == 1 and values.dtype.kind in "iu" else None
    except Exception:  # noqa: BLE001 (a tensor that lies about its size)
        return None


def _refuse_unfolding(path: Path, model: onnx.ModelProto) -> None:
    """Functions that call functions: a kilobyte can stand for billions of nodes."""
    bodies = {(function.domain, function.name): function for function in model.functions}
    open_calls: list[tuple[str, str]] = []

    @cache
    def size(key: tuple[str, str]) -> int:
        if key in open_calls or len(open_calls) > MOST_DEPTH:
            raise _unfolds(path, "::".join(key), "calls itself, or through more functions than can be followed")
        open_calls.append(key)
        found = total(bodies[key].node)
        open_calls.pop()
        return found

    def total(nodes: Iterable[onnx.NodeProto]) -> int:
        count = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            count += size(key) if key in bodies else 1
            count += sum(total(inner.node) for inner in _inner(node))
            if count > MOST_NODES:
                raise _unfolds(path, node.op_type, f"more than {MOST_NODES} nodes when written out")
        return count

    total(model.graph.node)


def _unfolds(path: Path, name: str, got: str) -> SourceError:
    return SourceError(
        f"'{path}', function '{name}'", got, f"functions of at most {MOST_NODES} nodes altogether",
        "do not use this file; get it again.",
    )  # fmt: skip


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors: weights, and values in attributes of nodes, also in inner graphs and functions."""
    yield from _tensors_of(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _values(node)


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for tensor in graph.sparse_initializer:
        yield from (tensor.values, tensor.indices)
    for node in graph.node:
        yield from _values(node)


def _values(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
    for inner in _inner(node):
        yield from _tensors_of(inner)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
