"""ONNX files and pictures that lie: data in other places, shapes of petabytes, files of another kind."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from corpus import added, attack
from onnx import TensorProto, helper
from runs import project

FLOAT = TensorProto.FLOAT


def _model(
    shape: list[Any], nodes: list[Any], initializers: list[Any], out: list[Any] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, out or ["n", None])], initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _external(location: str) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[6, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "96"}.items():
        weight.external_data.add(key=key, value=value)
    return _model(["n", 6], [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def _inner_external() -> onnx.ModelProto:
    """The tensor that reads elsewhere is the value of a node inside a branch."""
    weight = _external("../outside.bin").graph.initializer[0]
    inner = helper.make_graph([helper.make_node("Constant", [], ["z"], value=weight)], "inner", [],
                              [helper.make_tensor_value_info("z", FLOAT, [6, 4])])  # fmt: skip
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    branch = helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner)
    return _model(["n", 6], [branch, helper.make_node("MatMul", ["x", "w"], ["y"])], [yes])


def _lying_weight(dims: list[int], data: bytes) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=data)
    return _model(["n", 6], [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])


def _grown(sizes: list[int]) -> onnx.ModelProto:
    """Makes a tensor of these sizes while it runs."""
    shape = helper.make_tensor("s", TensorProto.INT64, [len(sizes)], sizes)
    fill = helper.make_node("ConstantOfShape", ["s"], ["c"])
    total = helper.make_node("ReduceSum", ["c"], ["t"], keepdims=0)
    return _model(["n", 6], [fill, total, helper.make_node("Add", ["x", "t"], ["y"])], [shape])


def _loop(passes: list[int], depth: int = 1, computed: bool = False) -> onnx.ModelProto:
    """Adds nothing, very often: `passes` is a constant or computed, and the loop holds itself `depth` times."""
    trips = helper.make_tensor("trips", TensorProto.INT64, [], passes)
    go_on = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("v", TensorProto.BOOL, [], [True]))

    def nested(left: int) -> onnx.NodeProto:
        inner = nested(left - 1) if left > 1 else helper.make_node("Identity", [f"a{left}"], [f"b{left}"])
        if left > 1:
            inner.input[2], inner.output[0] = f"a{left}", f"b{left}"
        body = helper.make_graph(
            [inner, helper.make_node("Identity", [f"c{left}"], [f"d{left}"])], f"body{left}",
            [helper.make_tensor_value_info(f"i{left}", TensorProto.INT64, []),
             helper.make_tensor_value_info(f"c{left}", TensorProto.BOOL, []),
             helper.make_tensor_value_info(f"a{left}", FLOAT, None)],
            [helper.make_tensor_value_info(f"d{left}", TensorProto.BOOL, []),
             helper.make_tensor_value_info(f"b{left}", FLOAT, None)],
        )  # fmt: skip
        return helper.make_node("Loop", ["often" if computed else "trips", "yes", "x"], ["y"], body=body)

    more = [helper.make_node("Mul", ["trips", "trips"], ["often"])] if computed else []
    return _model(["n", 6], [go_on, *more, nested(depth)], [trips], ["n", 6])


def _unfolding(depth: int, recursive: bool = False) -> onnx.ModelProto:
    """Functions that call the next smaller one ten times each."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    functions = []
    for level in range(depth):
        names = ["x", *(f"t{place}" for place in range(9)), "y"]
        called, domain = (f"f{level - 1}", "d") if level or recursive else ("Identity", "")
        called = f"f{depth - 1}" if recursive and not level else called
        nodes = [helper.make_node(called, [a], [b], domain=domain) for a, b in itertools.pairwise(names)]
        functions.append(helper.make_function("d", f"f{level}", ["x"], ["y"], nodes, opsets))
    top = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="d")
    model = _model(["n", 6], [top], [], ["n", 6])
    model.functions.extend(functions)
    model.opset_import.append(opsets[1])
    return model


def _identity(shape: list[Any]) -> onnx.ModelProto:
    return _model(shape, [helper.make_node("Identity", ["x"], ["y"])], [], shape)


def _benched(folder: Path, make: Callable[[], onnx.ModelProto]) -> list[str]:
    (folder / "outside.bin").write_bytes(bytes(96))
    inner = folder / "models"
    inner.mkdir()
    (inner / "a.onnx").write_bytes(make().SerializeToString())
    return ["bench", "models/a.onnx", "models/a.onnx", "--seconds", "0.1"]


def _taken(folder: Path, make: Callable[[], onnx.ModelProto]) -> list[str]:
    """The same file as a MODEL."""
    return ["inspect", f"onnx:{_benched(folder, make)[1]}"]


for _name, _make in {
    "data outside": partial(_external, "../outside.bin"),
    "data at an absolute path": partial(_external, "/etc/passwd"),
    "data in a process's memory": partial(_external, "/proc/self/mem"),
    "data in a folder beside it": partial(_external, "sub/../../outside.bin"),
    "data in a file that is not there": partial(_external, "nowhere.bin"),
    "data outside, in a branch": _inner_external,
    "a weight larger than its data": partial(_lying_weight, [2**40, 4], bytes(96)),
    "a weight of negative size": partial(_lying_weight, [-6, 4], bytes(96)),
    "a weight that overflows": partial(_lying_weight, [2**62, 2**62], bytes(96)),
    "an input of a petabyte": partial(_identity, ["n", 2**20, 2**28]),
    "an input without numbers": partial(_identity, ["n", 0]),
    "a tensor of terabytes while it runs": partial(_grown, [2**20, 2**20]),
    "a loop without end": partial(_loop, [2**62]),
    "loops in loops": partial(_loop, [5000], depth=4),
    "a loop as long as its numbers say": partial(_loop, [2**31], computed=True),
    "functions of functions": partial(_unfolding, 9),
    "functions that call each other": partial(_unfolding, 3, recursive=True),
    "an operator of a foreign library": lambda: _model(
        ["n", 6], [helper.make_node("Evil", ["x"], ["y"], domain="evil.so")], []
    ),
}.items():
    added("ONNX", _name, partial(_benched, make=_make))
    added("ONNX", f"{_name}, as a MODEL", partial(_taken, make=_make))


@attack("ONNX")
def data_behind_a_link(folder: Path) -> list[str]:
    words = _benched(folder, partial(_external, "w.bin"))
    (folder / "models" / "w.bin").symlink_to(folder / "outside.bin")
    return words


def _raw(folder: Path, content: bytes) -> list[str]:
    (folder / "a.onnx").write_bytes(content)
    return ["bench", "a.onnx", "a.onnx", "--seconds", "0.1"]


for _name, _content in {
    "nothing": b"", "text": b"not a model", "a cut model": _identity(["n", 6]).SerializeToString()[:-9],
    "deep messages": b"\x3a\xff\xff\xff\xff\x0f" * 2000, "only the word location": b"location" * 100,
}.items():  # fmt: skip
    added("ONNX", f"a file of {_name}", partial(_raw, content=_content))


def png(width: int, height: int) -> bytes:
    """A picture that says how large it is, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def _folder_of(folder: Path, content: bytes) -> list[str]:
    project(folder)
    for name in ("a", "b"):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "one.png").write_bytes(content)
    return ["analyze", "net.py:net", "--data", "imagefolder:photos", "--out", "out"]


for _name, _content in {
    "of 60,000 x 60,000 pixels": png(60_000, 60_000), "of 2^31 pixels a side": png(2**31 - 1, 2**31 - 1),
    "that is cut": png(30, 30)[:40], "that is none": b"\x89PNG\r\n\x1a\n",
}.items():  # fmt: skip
    added("pictures", f"a picture {_name}", partial(_folder_of, content=_content))
