"""The exported float32 file again, in half precision or in whole numbers of 8 bits, by onnxruntime's own converters.

Both variants take and give float32, as the file that they were made from, so that they can stand in its place.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from compressor.errors import ModelError, UsageError
from compressor.export.files import PRECISIONS, move, scratch_folder
from compressor.export.onnx import silenced
from compressor.export.session import OnnxModel
from compressor.foreign.files import read, short
from compressor.sources.samples import Samples, batches

Precision = Literal["fp16", "int8"]

IN_FLOAT32 = ("Gelu",)
"""Operators that stay in float32: onnxruntime 1.31 crashes on opening a file with this one in half precision."""

CALIBRATION, BATCH = 512, 32
"""Samples whose ranges are read, at most, and how many of them at a time."""


def file_name(precision: Precision, failed: bool = False) -> str:
    """What the variant of `model.onnx` is called; one whose verdict failed says so in its name.

    >>> file_name("int8"), file_name("int8", failed=True)
    ('model.int8.onnx', 'model.int8.failed.onnx')
    """
    return f"model.{precision}{'.failed' if failed else ''}.onnx"


def parse_precisions(given: list[str] | tuple[str, ...] | None) -> tuple[Precision, ...]:
    """The names given, each once, in the order of PRECISIONS. Raises UsageError for any other."""
    wrong = [name for name in given or () if name not in PRECISIONS]
    if wrong:
        raise UsageError("--precision", f"{wrong[0]!r}", f"one of {', '.join(PRECISIONS)}", "for example int8")
    chosen: tuple[Any, ...] = tuple(name for name in PRECISIONS if name in (given or ()))
    return chosen


def write_variant(precision: Precision, source: Path, target: Path, calibrate: Samples) -> int:
    """Write `source`, a float32 file, in another precision as `target`; returns its bytes.

    `fp16`: weights and arithmetic in half precision. `int8`: static quantisation in the QDQ form, each layer's weights
    by output channel, activations by the least and greatest value that they take on the first CALIBRATION samples of
    `calibrate`. Activations are unsigned and weights use 7 of their 8 bits: processors without VNNI instructions add
    two products in 16 bits, which larger weights would overflow, so that one file would give other answers there. Of a
    network with layer norms only the products with weights are quantised.
    Raises ModelError where the converter does not take the file.
    """
    with scratch_folder(target.parent) as scratch:
        draft = scratch / target.name
        try:
            if precision == "fp16":
                _halved(source, draft)
            else:
                _quantized(source, draft, calibrate)
            _refuse_crash(draft, OnnxModel(source).feed(next(batches(calibrate, 2)).inputs))
        except Exception as error:
            raise ModelError(
                f"{precision} variant of '{source.name}'", f"{type(error).__name__}: {short(error)}",
                "a file that onnxruntime's converter takes", "deploy the float32 file.",
            ) from error  # fmt: skip
        size = draft.stat().st_size
        move(draft, target)
    return size


_RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, dict(numpy.load(sys.argv[2])))
"""


def _refuse_crash(draft: Path, feed: dict[str, np.ndarray]) -> None:
    """RuntimeError for a file that does not run; in a process of its own, since some end the one that opens them."""
    inputs = draft.with_suffix(".npz")
    np.savez(inputs, **feed)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(draft), str(inputs)], capture_output=True, text=True, check=False
    )
    inputs.unlink()
    if done.returncode:
        words = done.stderr.strip().splitlines()
        ended = f"onnxruntime was ended by signal {-done.returncode}" if done.returncode < 0 else ""
        raise RuntimeError(ended or (words[-1] if words else "onnxruntime does not run it"))


def _halved(source: Path, draft: Path) -> None:
    with silenced(), _converters():
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        blocked = [*DEFAULT_OP_BLOCK_LIST, *IN_FLOAT32]
        onnx.save(convert_float_to_float16(read(source), keep_io_types=True, op_block_list=blocked), draft)


def _quantized(source: Path, draft: Path, calibrate: Samples) -> None:
    folded = draft.with_suffix(".folded.onnx")
    reader: Any = _Reader(source, calibrate.take(range(min(CALIBRATION, len(calibrate)))))
    with silenced(), _converters():
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        kinds, left_out = _scope(onnx.load(folded).graph)
        quantize_static(
            str(folded),
            str(draft),
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            nodes_to_exclude=left_out,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    folded.unlink()


def _scope(graph: onnx.GraphProto) -> tuple[list[str] | None, list[str]]:
    """Kinds of operators to quantise (None: all that can be), and names of nodes to leave out.

    Where a network has layer norms, some of its features are far larger than the others (Dettmers et al. 2022,
    arXiv:2208.07339): only products with weights are quantised there, sums, norms and attention stay in float32.
    """
    if not any(node.op_type == "LayerNormalization" for node in graph.node):
        return None, []
    weights = {tensor.name for tensor in graph.initializer}
    computed = [node.name for node in graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input)]
    return ["Conv", "Gemm", "MatMul"], computed


@contextlib.contextmanager
def _converters() -> Iterator[None]:
    """onnxruntime's converters find each other on Python's path only; afterwards that is as it was."""
    before = list(sys.path)
    sys.path.append(str(Path(onnxruntime.__file__).parent / "transformers"))
    try:
        yield
    finally:
        sys.path[:] = before


class _Reader:
    """The samples as the quantiser reads them: feeds of the file, batch by batch, then None."""

    def __init__(self, source: Path, samples: Samples) -> None:
        feed = OnnxModel(source).feed
        self._feeds: Iterator[dict[str, np.ndarray]] = (feed(some.inputs) for some in batches(samples, BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed."""
        return next(self._feeds, None)
