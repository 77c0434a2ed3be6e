"""ONNX files from anywhere: read without following them to other files, and run on the CPU."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime

from compressor.errors import SourceError, UsageError


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
    refuse_files_elsewhere(Path(path))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors have no common class but this)
        raise SourceError(
            f"'{path}'",
            f"onnxruntime: {short(error)}",
            "an ONNX model that onnxruntime runs on the CPU",
            "check the file with `onnx.checker`, or export it again.",
        ) from None


def read(path: Path) -> onnx.ModelProto:
    """The model in a file that onnxruntime has opened, with data that lies beside it; SourceError where it lies."""
    refuse_files_elsewhere(path)
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise SourceError(f"'{path}'", short(error), "a sound ONNX model", "export it again.") from error


def refuse_files_elsewhere(path: Path) -> None:
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


def short(error: Exception) -> str:
    """An error's words on one line."""
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:297] + "..."
