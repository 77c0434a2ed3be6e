from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_samples as samples
import pytest
import torch
from onnx import helper, numpy_helper

from compressor.errors import SourceError
from compressor.foreign.convert import convert, refuse_difference
from compressor.foreign.files import read
from compressor.foreign.given import GivenFile
from compressor.foreign.measured import measure
from compressor.foreign.operators import RULES

make = helper.make_node


def rebuilt(path: Path, *shapes: tuple[int, ...]) -> Any:
    """The network of a file, compared with it."""
    file = GivenFile(path)
    found = measure(read(path), file, dict(zip(file.inputs, shapes, strict=True)), "here")
    network, named = convert(found, "here")
    refuse_difference(network, named, found, file, "here")
    return network


@pytest.mark.parametrize(("batch", "size"), [("n", 12), (1, 12), ("n", "s")])
def test_a_convolutional_network(tmp_path: Path, batch: int | str, size: int | str):
    path = samples.convnet(tmp_path / "a.onnx", batch, size)
    network = rebuilt(path, (3, 12, 12))
    assert {type(module).__name__ for module in network.children()} == {"Conv2d", "BatchNorm2d", "Linear"}
    images = torch.randn(7, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(network(images), GivenFile(path)(images), atol=1e-5)


UNARY = (
    *("Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Floor", "Ceil", "Erf", "Round", "Sign", "Sin", "Cos"),
    *("Softplus", "Softsign", "HardSwish", "Selu", "LeakyRelu", "Elu", "HardSigmoid", "Softmax", "LogSoftmax"),
    *("Identity", "Flatten", "Transpose", "ReduceL2"),
)


@pytest.mark.parametrize("kind", UNARY)
def test_operators_of_one_tensor(tmp_path: Path, kind: str):
    extra: dict[str, Any] = (
        {"perm": [0, 2, 3, 1]} if kind == "Transpose" else {"axes": [2, 3]} if kind == "ReduceL2" else {}
    )
    path = samples.save(tmp_path / "a.onnx", [make(kind, ["x"], ["y"], **extra)], [], ["n", 3, 4, 5], ["y"])
    rebuilt(path, (3, 4, 5))


i64, f32 = np.int64, np.float32
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "clip": ([make("Clip", ["x", "lo", "hi"], ["y"])], {"lo": f32(-0.5), "hi": f32(0.5)}),
    "clip below": ([make("Clip", ["x", "lo"], ["y"])], {"lo": f32(0.1)}),
    "prelu": ([make("PRelu", ["x", "s"], ["y"])], {"s": np.full((4, 1, 1), 0.3, f32)}),
    "prelu by channel": (
        [make("PRelu", ["x", "s"], ["y"])], {"s": np.linspace(-1, 2, 4, dtype=f32).reshape(1, 4, 1, 1)},
    ),
    "prelu with one slope": ([make("PRelu", ["x", "s"], ["y"])], {"s": np.full(1, 0.3, f32)}),
    "prelu along the last axis": ([make("PRelu", ["x", "s"], ["y"])], {"s": np.linspace(-1, 2, 6, dtype=f32)}),
    "arithmetic": (
        [make("Sub", ["x", "c"], ["a"]), make("Div", ["a", "two"], ["b"]), make("Pow", ["b", "two"], ["c2"]),
         make("Sqrt", ["c2"], ["d"]), make("Max", ["d", "c"], ["e"]), make("Min", ["e", "two"], ["y"])],
        {"c": np.linspace(-1, 1, 6, dtype=f32), "two": f32(2)},
    ),
    "mean and sum": ([make("Sum", ["x", "x", "c"], ["a"]), make("Mean", ["a", "x"], ["y"])], {"c": np.ones(6, f32)}),
    "where": (
        [make("Greater", ["x", "c"], ["a"]), make("Not", ["a"], ["b"]), make("Where", ["b", "x", "c"], ["y"])],
        {"c": np.zeros(6, f32)},
    ),
    "cast": ([make("Cast", ["x"], ["a"], to=7), make("Cast", ["a"], ["y"], to=1)], {}),
    "reshape": (
        [make("Reshape", ["x", "s"], ["a"]), make("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3, 4]),
         make("Reshape", ["b", "t"], ["y"])],
        {"s": np.array([0, 2, 2, 6, 6], i64), "t": np.array([-1, 4, 6, 6], i64)},
    ),
    "squeeze": (
        [make("ReduceMean", ["x"], ["a"], axes=[2, 3]), make("Squeeze", ["a", "s"], ["b"]),
         make("Unsqueeze", ["b", "one"], ["y"])],
        {"s": np.array([2, 3], i64), "one": np.array([1], i64)},
    ),
    "split": ([make("Split", ["x"], ["a", "b"], axis=1), make("Mul", ["a", "b"], ["y"])], {}),
    "lopsided split": (
        [make("Split", ["x", "s"], ["a", "b"], axis=1), make("ReduceSum", ["b", "one"], ["c"]),
         make("Mul", ["a", "c"], ["y"])],
        {"s": np.array([1, 3], i64), "one": np.array([1], i64)},
    ),
    "slice": (
        [make("Slice", ["x", "b", "e", "a", "s"], ["y"])],
        {"b": np.array([1, 0], i64), "e": np.array([-1, 2**40], i64), "a": np.array([1, 3], i64),
         "s": np.array([1, 2], i64)},
    ),
    "gather": ([make("Gather", ["x", "i"], ["y"], axis=1)], {"i": np.array([2, 0, -1], i64)}),
    "gather one": ([make("Gather", ["x", "i"], ["y"], axis=2)], {"i": np.array(-2, i64)}),
    "pad": (
        [make("Pad", ["x", "p", "v"], ["a"]), make("Pad", ["a", "q"], ["y"], mode="reflect")],
        {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1], i64), "v": f32(0.5), "q": np.array([0, 0, 1, 1, 0, 0, 1, 1], i64)},
    ),
    "pad by a list of one": (
        [make("Pad", ["x", "p", "v"], ["y"])], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], i64), "v": np.array([2], f32)}
    ),
    "pools": (
        [make("MaxPool", ["x"], ["a"], kernel_shape=[3, 3], pads=[1, 0, 0, 1]),
         make("AveragePool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
         make("GlobalMaxPool", ["b"], ["y"])],
        {},
    ),
    "pools with wide borders": (
        [make("MaxPool", ["x"], ["a"], kernel_shape=[3, 3], pads=[2, 1, 2, 1]),
         make("AveragePool", ["a"], ["y"], kernel_shape=[2, 3], pads=[1, 2, 1, 2], count_include_pad=1)],
        {},
    ),
    "resize nearest": (
        [make("Resize", ["x", "", "s"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")],
        {"s": np.array([1, 1, 2, 3], f32)},
    ),
    "resize linear": ([make("Resize", ["x", "", "s"], ["y"], mode="linear")], {"s": np.array([1, 1, 2, 2], f32)}),
    "tile and expand": (
        [make("ReduceMax", ["x"], ["a"], axes=[1]), make("Tile", ["a", "t"], ["b"]), make("Expand", ["b", "e"], ["y"])],
        {"t": np.array([1, 3, 1, 1], i64), "e": np.array([1, 3, 6, 6], i64)},
    ),
    "transposed convolution": (
        [make("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": np.random.RandomState(0).randn(4, 3, 3, 3).astype(f32), "b": np.ones(3, f32)},
    ),
    "groups and dilation": (
        [make("Conv", ["x", "w"], ["y"], group=2, dilations=[2, 1], pads=[1, 0, 2, 0])],
        {"w": np.random.RandomState(0).randn(6, 2, 3, 1).astype(f32)},
    ),
    "norms": (
        [make("InstanceNormalization", ["x", "w", "b"], ["a"]), make("LayerNormalization", ["a", "v"], ["y"], axis=-1)],
        {"w": np.array([1, 2, 3, 4], f32), "b": np.ones(4, f32), "v": np.arange(1, 7, dtype=f32)},
    ),
    "products": (
        [make("MatMul", ["x", "w"], ["a"]), make("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
         make("MatMul", ["b", "a"], ["y"])],
        {"w": np.random.RandomState(0).randn(6, 5).astype(f32)},
    ),
    "a shape that is computed": (
        [make("Shape", ["x"], ["s"]), make("Slice", ["s", "z", "one"], ["n"]),
         make("Concat", ["n", "m"], ["t"], axis=0), make("Reshape", ["x", "t"], ["y"])],
        {"z": np.array([0], i64), "one": np.array([1], i64), "m": np.array([-1], i64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators(tmp_path: Path, name: str):
    nodes, arrays = CASES[name]
    initial = [numpy_helper.from_array(np.asarray(array), key) for key, array in arrays.items()]
    rebuilt(samples.save(tmp_path / "a.onnx", nodes, initial, ["n", 4, 6, 6], ["y"]), (4, 6, 6))


def test_several_inputs_and_outputs(tmp_path: Path):
    nodes = [make("Add", ["x", "z"], ["a"]), make("Relu", ["a"], ["y"]), make("Split", ["a"], ["u", "v"], axis=1)]
    path = samples.save(tmp_path / "a.onnx", nodes, [], ["n", 4], ["y", "v"], more={"z": ["n", 4]})
    network = rebuilt(path, (4,), (4,))
    answers = network(torch.ones(2, 4), torch.ones(2, 4))
    assert list(answers) == ["y", "v"]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([make("Hardmax", ["x"], ["y"], "top")], r"Hardmax 'top'"),
        ([make("Softmax", ["x"], ["y"], "soft", axis=1)], r"Softmax 'soft'"),
        ([make("Resize", ["x", "roi", "s"], ["y"], "small", mode="nearest")], r"Resize 'small'"),
        ([make("ReduceMean", ["x"], ["y"], "all", axes=[0])], r"ReduceMean 'all'"),
        ([make("RandomNormalLike", ["x"], ["y"], "noise")], r"RandomNormalLike 'noise'"),
        (
            [make("ConvTranspose", ["x", "w"], ["y"], "up", strides=[2, 2], output_shape=[16, 16])],
            r"ConvTranspose 'up'.*no smaller",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_named(tmp_path: Path, nodes: list[Any], words: str):
    part = numpy_helper.from_array(np.array([1, 1, 0.75, 0.75], np.float32), "s")
    none = numpy_helper.from_array(np.zeros(0, np.float32), "roi")
    weight = numpy_helper.from_array(np.ones((4, 2, 3, 3), np.float32), "w")
    path = samples.save(tmp_path / "a.onnx", nodes, [part, none, weight], ["n", 4, 8, 8], ["y"], opset=12)
    with pytest.raises(SourceError, match=words):
        rebuilt(path, (4, 8, 8))


def test_branches_are_refused(tmp_path: Path):
    inner = helper.make_graph([make("Relu", ["x"], ["z"])], "inner", [], [helper.make_tensor_value_info("z", 1, None)])
    yes = numpy_helper.from_array(np.array(True), "yes")
    nodes = [make("If", ["yes"], ["y"], "choice", then_branch=inner, else_branch=inner)]
    with pytest.raises(SourceError, match="If 'choice'"):
        rebuilt(samples.save(tmp_path / "a.onnx", nodes, [yes], ["n", 4], ["y"]), (4,))


@pytest.mark.parametrize("kind", ["HardSigmoid", "MaxPool", "BatchNormalization"])
def test_an_operator_that_is_taken_over_wrongly_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    right = RULES[kind]

    def wrong(at: Any, node: Any, given: dict[str, Any]) -> Any:
        return at.call(torch.mul, right(at, node, given), 1.01)

    monkeypatch.setitem(RULES, kind, wrong)
    with pytest.raises(SourceError, match=f"operator {kind}.*the same outputs in torch"):
        rebuilt(samples.convnet(tmp_path / "a.onnx"), (3, 12, 12))


def test_outputs_that_say_nothing(tmp_path: Path):
    nodes = [make("Mul", ["x", "zero"], ["a"]), make("Mul", ["a", "zero"], ["y"])]
    zero = numpy_helper.from_array(np.zeros(4, np.float32), "zero")
    with pytest.raises(SourceError, match="do not vary"):
        rebuilt(samples.save(tmp_path / "a.onnx", nodes, [zero], ["n", 4], ["y"]), (4,))


def test_a_batch_that_cannot_be_opened(tmp_path: Path):
    nodes = [make("Add", ["x", "w"], ["a"]), make("Reshape", ["a", "s"], ["y"])]
    initial = [*samples.weights(w=(2, 4)), samples.constant("s", 8)]
    with pytest.raises(SourceError, match=r"does not run with|one axis grows|differs|output"):
        rebuilt(samples.save(tmp_path / "a.onnx", nodes, initial, [2, 4], ["y"]), (4,))
