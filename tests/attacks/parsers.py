"""Every parser of ours, with inputs that are nearly right: it gives a value or a CompressorError, and nothing else."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from report_samples import passed
from safetensors.torch import save

from compressor.errors import CompressorError
from compressor.export.manifest import parse_manifest
from compressor.foreign.files import open_session
from compressor.options import parse_align, parse_keep
from compressor.recipe import parse_recipe
from compressor.report.record import validate
from compressor.sources.checkpoint import load_state
from compressor.sources.factories import split_query
from compressor.sources.named import _idx
from compressor.sources.tables import npz, pictures

Strategy = st.SearchStrategy[Any]
ODD = st.sampled_from(
    ["", "\x00", "\ud800", "../..", "nan", "1e999", "true", "a" * 300, "?", "&", "=", ":", "[", "{", "*a"]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A good file with a few bytes changed, taken out or put in, or cut."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["change", "remove", "insert", "cut"]))
        if how == "change":
            content[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif how == "remove":
            del content[place : place + draw(st.integers(1, 16))]
        elif how == "insert":
            content[place:place] = draw(st.binary(max_size=9))
        else:
            del content[place:]
    return bytes(content)


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """Plain data with one or two of its values replaced, wherever they stand."""
    made = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 2))):
        place = made
        while isinstance(place, (dict, list)) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], (dict, list)) or not place[key] or draw(st.integers(0, 3)) == 0:
                place[key] = draw(PLAIN)
                break
            place = place[key]
    return made


def _of_file(read: Callable[[Path], Any], suffix: str) -> Callable[[bytes], Any]:
    """A parser of bytes, from one of files."""

    def parse(content: bytes) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{suffix}"
            path.write_bytes(content)
            return read(path)

    return parse


def _saved(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(
        {"state_dict": {"a": torch.ones(2, 3), "b": torch.arange(3)}}, stream, _use_new_zipfile_serialization=zipped
    )
    return stream.getvalue()


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A safetensors file with a header of this kind and some data."""
    entry = st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "I64", "BOOL", "F8", ""]) | PLAIN,
        "shape": st.lists(st.integers(-2, 4) | st.integers(), max_size=3) | PLAIN,
        "data_offsets": st.lists(st.integers(-4, 24) | st.integers(), min_size=2, max_size=2) | PLAIN,
    })  # fmt: skip
    header = draw(st.dictionaries(st.text(max_size=6) | ODD | st.just("__metadata__"), entry | PLAIN, max_size=3))
    text = json.dumps(header).encode()
    length = draw(st.just(len(text)) | st.integers(0, 2**64 - 1))
    return struct.pack("<Q", length) + text + draw(st.binary(max_size=24))


def _packed(deflated: bool) -> bytes:
    stream = io.BytesIO()
    save_arrays = np.savez_compressed if deflated else np.savez
    save_arrays(stream, x=np.ones((4, 6), np.float32), y=np.arange(4))
    return stream.getvalue()


@st.composite
def _arrays(draw: st.DrawFn) -> bytes:
    """An archive with arrays of this kind under such names."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in draw(
            st.lists(st.sampled_from(["x", "y", "judge_x", "judge_y", "z", "x.npy"]) | ODD, max_size=3, unique=True)
        ):
            kind = draw(st.sampled_from(["<f4", ">i8", "|b1", "|O", "<U3", "<c8", "<M8[s]", "|V3", "?"]))
            shape = draw(st.lists(st.integers(-1, 4) | st.integers(), max_size=3))
            said = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': ({''.join(f'{n},' for n in shape)})}}\n"
            text = (said if draw(st.integers(0, 5)) else draw(st.text(max_size=40))).encode("utf-8", "replace")
            head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
            plain = "".join(letter for letter in name if letter.isprintable())  # zipfile writes no others
            archive.writestr(f"{plain}.npy", head + bytes(draw(st.integers(0, 200))))
    return stream.getvalue()


def _network() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], [1.0] * 9)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


RECIPE = b"""
description: a network
model: net.py:net
model_args: {width: 9, deep: true}
data: digits
train: {epochs: 1, batch: 250, lr: 0.02, flip: false}
compress: {max_drop: 5, keep: params=0.8, align: auto, seed: 3}
compare: {methods: {ours: ours}, sizes: [0.5, 0.2], seeds: [0]}
"""
MANIFEST = {
    "schema_version": 1, "source": {"kind": "torchvision", "place": "resnet18", "arguments": {"num_classes": 3}},
    "weights": {"file": "model.safetensors", "sha256": "0" * 64, "bytes": 8}, "tied": {"a": "b"}, "transient": ["c"],
    "widths": {"changed": {"fc.weight": {"before": [9, 4], "after": [3, 4]}},
               "added": {"x": {"shape": [2], "kind": "buffer"}},
               "removed": ["y"], "attributes": {"fc": {"out_features": {"before": 9, "after": 3}}}},
}  # fmt: skip
IDX = struct.pack(">IIII", 0x803, 2, 3, 3) + bytes(18)


@dataclass(frozen=True)
class Parser:
    """A function that reads what others wrote, and inputs for it."""

    parse: Callable[[Any], Any]
    inputs: Strategy


PARSERS = {
    "recipe (YAML)": Parser(lambda text: parse_recipe(text, "r.yaml"), mutated(RECIPE) | st.binary(max_size=60)),
    "manifest": Parser(
        parse_manifest, changed(MANIFEST) | st.binary(max_size=60) | mutated(json.dumps(MANIFEST).encode())
    ),
    "record": Parser(validate, changed(passed())),
    "spec": Parser(split_query, st.text(max_size=30) | st.lists(ODD, max_size=6).map("".join)),
    "--keep": Parser(parse_keep, st.text(max_size=12) | ODD.map("params={}".format) | st.tuples(PLAIN, PLAIN) | PLAIN),
    "--align": Parser(parse_align, PLAIN),
    "checkpoint": Parser(
        _of_file(load_state, ".pt"), mutated(_saved(True)) | mutated(_saved(False)) | st.binary(max_size=60)
    ),
    "safetensors": Parser(
        _of_file(load_state, ".safetensors"), headers() | mutated(save({"a": torch.ones(2), "b": torch.zeros(1, 3)}))
    ),
    "arrays (npz)": Parser(
        _of_file(lambda path: npz(path), ".npz"), mutated(_packed(True)) | mutated(_packed(False)) | _arrays()
    ),
    "pictures (csv)": Parser(
        _of_file(lambda path: pictures(path, lambda image: image), ".csv"),
        mutated(b"path,label\nfile.csv,1\nfile.csv,2\n") | st.binary(max_size=60),
    ),
    "ONNX": Parser(_of_file(lambda path: open_session(path).get_inputs(), ".onnx"), mutated(_network())),
    "IDX": Parser(
        _of_file(lambda path: _idx(path, 16), ".gz"), mutated(IDX).map(gzip.compress) | mutated(gzip.compress(IDX))
    ),
}  # fmt: skip


def fuzz(name: str, count: int) -> dict[str, int]:
    """Try so many inputs, always the same ones; an error that is none of ours is raised. How many were refused."""
    parser, seen, messages = PARSERS[name], {"inputs": 0, "refused": 0}, list[str]()

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(parser.inputs)
    def one(content: Any) -> None:
        seen["inputs"] += 1
        try:
            parser.parse(content)
        except CompressorError as error:
            seen["refused"] += 1
            messages.append(str(error))

    one()
    assert all(message.replace("\n", " ").isprintable() for message in messages)
    return seen


def fuzzed(count: int) -> dict[str, Any]:
    """All parsers: inputs tried and refused, and the error of a parser that let another one out."""
    found: dict[str, Any] = {}
    for name in PARSERS:
        try:
            found[name] = fuzz(name, count)
        except Exception as error:  # noqa: BLE001 (what is looked for)
            found[name] = {"inputs": count, "refused": 0, "error": f"{type(error).__name__}: {error}"[:300]}
    return found
