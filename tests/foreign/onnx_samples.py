"""Small ONNX files made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    """Random weights by name; names that end with `var` are positive."""
    random = np.random.RandomState(seed)
    found = {name: random.randn(*shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    return [numpy_helper.from_array(np.abs(w) + 0.5 if n.endswith("var") else w, n) for n, w in found.items()]


def constant(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def save(
    path: Path, nodes: list[onnx.NodeProto], initial: list[onnx.TensorProto], shape: list[Any], out: list[str],
    opset: int = 17, more: dict[str, list[Any]] | None = None,
) -> Path:  # fmt: skip
    inputs = {"x": shape, **(more or {})}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, FLOAT, size) for name, size in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in out], initial,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def convnet(path: Path, batch: int | str = "n", size: int | str = 12) -> Path:
    """Stem with a lopsided border, norm, a gated branch, a concatenation, and a head behind a fixed reshape."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "stem.weight", "stem.bias"], ["a"], "stem", strides=[2, 2], auto_pad="SAME_UPPER"),
        make("BatchNormalization", ["a", "bn.weight", "bn.bias", "bn.mean", "bn.var"], ["b"], "bn"),
        make("Relu", ["b"], ["c"], "relu"),
        make("GlobalAveragePool", ["c"], ["d"], "pool"),
        make("Conv", ["d", "gate.weight"], ["e"], "gate"),
        make("HardSigmoid", ["e"], ["f"], "sigmoid"),
        make("Mul", ["c", "f"], ["h"], "scale"),
        make("Conv", ["h", "side.weight"], ["i"], "side"),
        make("Concat", ["h", "i"], ["j"], "join", axis=1),
        make("MaxPool", ["j"], ["k"], "max", kernel_shape=[2, 2], strides=[2, 2]),
        make("Reshape", ["k", "flat"], ["l"], "flatten"),
        make("MatMul", ["l", "head.weight"], ["m"], "head"),
        make("Add", ["m", "head.bias"], ["y"], "head_bias"),
    ]
    shapes: dict[str, tuple[int, ...]] = {
        "stem.weight": (8, 3, 3, 3), "stem.bias": (8,), "bn.weight": (8,), "bn.bias": (8,), "bn.mean": (8,),
        "bn.var": (8,), "gate.weight": (8, 8, 1, 1), "side.weight": (4, 8, 1, 1), "head.weight": (108, 5),
        "head.bias": (5,),
    }  # fmt: skip
    first = 1 if batch == 1 else -1
    return save(path, nodes, [*weights(**shapes), constant("flat", first, 108)], [batch, 3, size, size], ["y"])


def copies(path: Path) -> Path:
    """Two hidden layers of twelve units; in the second, six are copies of the other six."""
    random = np.random.RandomState(0)
    first, second, last = (random.randn(*size).astype(np.float32) for size in ((12, 6), (12, 12), (4, 12)))
    second[6:] = second[:6]
    bias = random.randn(12).astype(np.float32)
    bias[6:] = bias[:6]
    arrays = {"w0": first, "w1": second, "b1": bias, "w2": last}
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w1", "b1"], ["c"], transB=1),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "w2"], ["y"], transB=1),
    ]
    return save(path, nodes, [numpy_helper.from_array(w, n) for n, w in arrays.items()], ["n", 6], ["y"])
