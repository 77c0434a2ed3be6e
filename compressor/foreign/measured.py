"""What an ONNX graph's tensors are like, found by running it at two batch sizes: shapes, and constant values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from compressor.errors import SourceError
from compressor.foreign.files import session_options, short
from compressor.foreign.given import GivenFile

BATCHES = (2, 3)
_SHAPES_ONLY = ("Shape", "Size")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True)
class Measured:
    """The graph with its batch left open, and what was seen of it."""

    model: onnx.ModelProto
    inputs: dict[str, tuple[int, ...]]
    """Name -> one sample's shape."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Tensor -> its shapes at the two batch sizes."""
    static: dict[str, np.ndarray]
    """Tensors that depend on no input's values, and not on the batch."""
    data: frozenset[str]
    """Tensors that depend on the inputs' values."""
    opset: int
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    """Tensors that depend on no input's values and are the same for each sample: (1, ...), for a batch of any size."""

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every tensor that some node makes, by name."""
        return _run(self.model, feed)


def measure(model: onnx.ModelProto, given: GivenFile, sample: Mapping[str, tuple[int, ...]], where: str) -> Measured:
    """Run the graph on random inputs of these sample shapes at two batch sizes.

    Raises SourceError where it has branches or loops, draws random numbers, or runs at its own batch size only.
    """
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute) or node.op_type in _RANDOM:
            raise refused(where, node, "a graph without branches, loops and random numbers")
    opened = _opened(model, given, sample, where)
    seen = []
    for batch in BATCHES:
        try:
            seen.append(_run(opened, feed_of(given, sample, batch, seed=batch)))
        except Exception as error:
            raise SourceError(
                where, f"a graph that does not run with {batch} samples: {short(error)}", "any number of samples",
                "export it with a dynamic batch axis.",
            ) from error  # fmt: skip
    shapes = {name: (value.shape, seen[1][name].shape) for name, value in seen[0].items()}
    shapes |= {name: ((BATCHES[0], *size), (BATCHES[1], *size)) for name, size in sample.items()}
    static = {entry.name: numpy_helper.to_array(entry) for entry in opened.graph.initializer}
    data = _of_data(opened, sample)
    for name in seen[0].keys() - data:
        if np.array_equal(seen[0][name], seen[1][name]):
            static[name] = seen[0][name]
    rows = {name: seen[0][name][:1] for name in seen[0].keys() - data - static.keys() if _same_rows(name, seen)}
    shapes |= {name: (value.shape, value.shape) for name, value in static.items()}
    return Measured(opened, dict(sample), shapes, static, data, opset_of(model), rows)


def _same_rows(name: str, seen: list[dict[str, np.ndarray]]) -> bool:
    """True for a tensor with one row for each sample, all of them the same."""
    first = seen[0][name][:1] if seen[0][name].ndim else seen[0][name]
    return first.ndim > 0 and all(
        one[name].shape == (batch, *first.shape[1:]) and bool((one[name] == first).all())
        for one, batch in zip(seen, BATCHES, strict=True)
    )


def feed_of(given: GivenFile, sample: Mapping[str, tuple[int, ...]], batch: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs: normal numbers, or whole ones from 0 and 1."""
    random = np.random.RandomState(seed)
    found = {}
    for name, size in sample.items():
        kind: Any = given.inputs[name]
        whole = not np.issubdtype(kind, np.floating)
        found[name] = (random.randint(0, 2, (batch, *size)) if whole else random.randn(batch, *size)).astype(kind)
    return found


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def refused(where: str, node: onnx.NodeProto, expected: str) -> SourceError:
    """SourceError that names an operator."""
    name = f" '{node.name}'" if node.name else f" (of '{node.output[0]}')"
    return SourceError(
        where, f"operator {node.op_type}{name}", expected,
        "compress the network where it was trained (file.py:factory), or export it with other operators.",
    )  # fmt: skip


def _opened(
    model: onnx.ModelProto, given: GivenFile, sample: Mapping[str, tuple[int, ...]], where: str
) -> onnx.ModelProto:
    """A copy with the batch left open, all other sizes as in `sample`, and no sizes noted for inner tensors."""
    opened = copy.deepcopy(model)
    graph = opened.graph
    initial = {entry.name for entry in graph.initializer}
    for entry in [entry for entry in graph.input if entry.name in initial]:
        graph.input.remove(entry)
    for entry in graph.input:
        kind = entry.type.tensor_type.elem_type
        size = ["batch", *sample[entry.name]]
        entry.CopyFrom(onnx.helper.make_tensor_value_info(entry.name, kind, size))
    for entry in graph.output:
        entry.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    _constants_to_initializers(graph)
    if given.batch is not None:
        _open_reshapes(opened, model, given, sample, where)
    return opened


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if node.op_type == "Constant"), None)
        if value is None:
            kept.append(node)
            continue
        plain = onnx.helper.get_attribute_value(value)
        if value.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(plain)
        else:
            kind = np.int64 if "int" in value.name else np.float32
            tensor = numpy_helper.from_array(np.asarray(plain, kind))
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _open_reshapes(
    opened: onnx.ModelProto, model: onnx.ModelProto, given: GivenFile, sample: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """A batch size that is written into the shape of a Reshape becomes that of what is reshaped."""
    batch = given.batch or 1
    try:
        seen = _run(model, feed_of(given, sample, batch, seed=0))
    except Exception as error:
        raise SourceError(where, short(error), "a graph that runs", "export it again.") from error
    seen |= {name: np.empty((batch, *size)) for name, size in sample.items()}
    initial = {entry.name: entry for entry in opened.graph.initializer}
    for place, node in enumerate(opened.graph.node):
        entry = initial.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        size = None if entry is None else numpy_helper.to_array(entry).copy()
        if size is None or not len(size) or size[0] != batch or node.input[0] not in seen:
            continue
        copied = seen[node.input[0]].shape[:1] == (batch,)
        if not copied and -1 in size:
            continue
        size[0] = 0 if copied else -1
        fresh = numpy_helper.from_array(size, f"{node.input[1]}.opened.{place}")
        opened.graph.initializer.append(fresh)
        node.input[1] = fresh.name


def _of_data(model: onnx.ModelProto, inputs: Mapping[str, Any]) -> frozenset[str]:
    """Tensors that depend on more of the inputs than their shapes."""
    depends = set(inputs)
    for node in model.graph.node:
        if node.op_type not in _SHAPES_ONLY and depends & set(node.input):
            depends |= set(node.output)
    return frozenset(depends - {""})


def _run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor that a node makes."""
    whole = copy.deepcopy(model)
    there = {entry.name for entry in whole.graph.output}
    initial = {entry.name for entry in whole.graph.initializer}
    for node in whole.graph.node:
        for name in node.output:
            if name and name not in there and name not in initial:
                there.add(name)
                whole.graph.output.append(onnx.ValueInfoProto(name=name))
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, (np.asarray(found) for found in session.run(names, dict(feed))), strict=True))
