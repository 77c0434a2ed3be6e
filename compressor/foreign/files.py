"""ONNX files from anywhere: read without following them to other files, and run on the CPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
from onnx.external_data_helper import load_external_data_for_model

from compressor.errors import SourceError, UsageError
from compressor.foreign.harm import refuse_harm, refuse_harm_of

LENGTH = "compressor.length"
"""Name of a note in a file: the number of tokens of the inputs that it was made with."""


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
    refuse_harm(Path(path))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors have no common class but this)
        raise SourceError(
            f"'{path}'",
            f"onnxruntime: {short(error)}",
            "an ONNX model that onnxruntime runs on the CPU",
            "check the file with `onnx.checker`, or export it again.",
        ) from None


def told_length(session: onnxruntime.InferenceSession) -> int | None:
    """How many tokens the inputs had that a file was made with, where it takes any number and says so."""
    said = session.get_modelmeta().custom_metadata_map.get(LENGTH, "")
    return int(said) if said.isascii() and said.isdecimal() and 0 < len(said) < 10 else None


def read(path: Path) -> onnx.ModelProto:
    """The model in a file that onnxruntime has opened, with data that lies beside it; SourceError where it lies."""
    try:
        model = onnx.load(str(path), load_external_data=False)
        refuse_harm_of(path, model)
        load_external_data_for_model(model, str(path.parent))
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"'{path}'", short(error), "a sound ONNX model", "export it again.") from error
    return model


def short(error: Exception) -> str:
    """An error's words on one line."""
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:297] + "..."
