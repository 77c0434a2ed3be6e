"""An ONNX file in onnxruntime, called like a network."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from compressor.errors import SourceError, UsageError
from compressor.export.inputs import Inputs, leaves
from compressor.units.outputs import primary

TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
"""numpy types of onnxruntime's input types."""


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """Options with a fixed number of threads that stop spinning after each call.

    Spinning threads of one session would disturb another that is measured beside it.
    """
    if threads < 1:
        raise UsageError("threads", str(threads), "1 or more", "give the number of threads to use.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(path: str | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """A CPU session; SourceError if the file is not there or is no ONNX model."""
    options = session_options(threads)
    if not Path(path).is_file():
        raise SourceError(f"'{path}'", "no such file", "an ONNX model", "check the path.")
    _refuse_files_elsewhere(Path(path))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors have no common class but this)
        raise SourceError(
            f"'{path}'",
            f"onnxruntime: {_short(error)}",
            "an ONNX model that onnxruntime runs on the CPU",
            "check the file with `onnx.checker`, or export it again.",
        ) from None


def _refuse_files_elsewhere(path: Path) -> None:
    """SourceError for a model with weights in files that are not beside it: it could read any file."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"location") < 0:  # the key that every external tensor must have
                return
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # noqa: BLE001 (no ONNX file; onnxruntime says so)
        return
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data if tensor.data_location == onnx.TensorProto.EXTERNAL else ():
            place = Path(entry.value)
            if entry.key == "location" and (len(place.parts) != 1 or (path.parent / place).is_symlink()):
                raise SourceError(
                    f"'{path}', tensor '{tensor.name}'", f"data in another place: '{entry.value}'",
                    "data in the file itself, or in a file beside it", "do not use this file; get it again.",
                )  # fmt: skip


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a graph, also those in attributes of its nodes and in inner graphs."""
    yield from graph.initializer
    for tensor in graph.sparse_initializer:
        yield from (tensor.values, tensor.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


class OnnxModel:
    """`OnnxModel(path, threads=1)(batch)`: torch inputs in, the judged output as a torch tensor out.

    The judged output is the one named `logits`, else the first floating one. Inputs are matched by name where
    they are a dict, else by position, and converted to the file's types.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path, self.threads = Path(path), threads
        self._session = open_session(path, threads)
        self.inputs: tuple[str, ...] = tuple(entry.name for entry in self._session.get_inputs())
        outputs = {entry.name: "float" in entry.type or "double" in entry.type for entry in self._session.get_outputs()}
        self.outputs: tuple[str, ...] = tuple(outputs)
        self.judged = primary(outputs)
        self._types = {entry.name: entry.type for entry in self._session.get_inputs()}
        self.signature: tuple[tuple[str, str, tuple[int | str | None, ...]], ...] = tuple(
            (entry.name, entry.type, tuple(entry.shape)) for entry in self._session.get_inputs()
        )

    def __call__(self, inputs: Inputs) -> Tensor:
        """The judged output for a batch, on the device of its first tensor."""
        result = self.run(self.feed(inputs))
        return torch.from_numpy(np.array(result)).to(leaves(inputs)[0].device)

    def run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """The judged output for what `feed` made."""
        return np.asarray(self._session.run([self.judged], feed)[0])

    def feed(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """The batch as onnxruntime takes it; UsageError if it does not have the file's inputs."""
        given = leaves(inputs)
        names: Sequence[str] = list(inputs) if isinstance(inputs, Mapping) else self.inputs
        if len(names) != len(given) or not set(self.inputs) <= set(names):
            raise UsageError(
                f"inputs of '{self.path}'",
                ", ".join(inputs) if isinstance(inputs, Mapping) else f"{len(given)} tensor(s)",
                ", ".join(self.inputs),
                "give the inputs that the file names.",
            )
        return {
            name: _numpy(leaf).astype(TYPES[self._types[name]], copy=False)
            for name, leaf in zip(names, given, strict=True)
            if name in self._types
        }


def _numpy(leaf: Tensor) -> np.ndarray:
    leaf = leaf.detach().cpu()
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()  # numpy has no bfloat16


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:297] + "..."
