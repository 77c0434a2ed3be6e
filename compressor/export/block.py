"""The runtime's channel block: the width step below which a narrower layer is not faster.

onnxruntime lays convolutions out in blocks of channels (16 with AVX-512, 8 with AVX2), so that 33 channels
cost as much as the next multiple. The step is measured, not looked up: it depends on processor and version.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from compressor.export.session import session_options

EDGE, SIDE = 16, 14
"""Channels of the little networks' input, and its height and width."""

PAIRS: dict[int, tuple[tuple[int, int], ...]] = {
    8: ((40, 48), (56, 64)),
    4: ((36, 40), (44, 48), (52, 56)),
    1: ((33, 36), (41, 44)),
}
"""Step -> widths that only this step allows, each with the width that the next coarser step rounds it to."""

COARSEST = 16

WIDTHS = tuple(sorted({width for pairs in PAIRS.values() for pair in pairs for width in pair}))

_ENOUGH = 1 / 3
_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Block:
    """The measured step and what it was read from.

    `milliseconds` are tenth percentiles of a call for each width; `gains[step]` is the time that widths of
    that step save over the next coarser step, as a share of what their saved multiply-accumulates promise
    (1: all of it, 0: nothing). Measured for 3x3 convolutions.
    """

    block: int
    milliseconds: dict[int, float]
    gains: dict[int, float]
    threads: int
    rounds: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; keys are text."""
        plain = asdict(self)
        for name in ("milliseconds", "gains"):
            plain[name] = {str(key): value for key, value in plain[name].items()}
        return plain


def measured_block(threads: int = 1, seed: int = 0, seconds: float = 3.0) -> Block:
    """Measure the step of onnxruntime's convolutions here: 1, 4, 8 or 16. Takes at most about `seconds`.

    Little networks of different widths are timed in interleaved rounds; see `block_from`. The result may be
    kept for as long as machine, number of threads and onnxruntime stay the same.
    """
    begin = time.perf_counter()
    sessions = [
        onnxruntime.InferenceSession(network(width), session_options(threads), providers=["CPUExecutionProvider"])
        for width in WIDTHS
    ]
    generator = np.random.default_rng(seed)
    feed = {"input": generator.standard_normal((1, EDGE, SIDE, SIDE)).astype(np.float32)}
    for session in sessions * 3:
        session.run(None, feed)
    times: list[np.ndarray] = []
    while len(times) < _ROUNDS and (len(times) < 10 or time.perf_counter() - begin < seconds):
        row = np.zeros(len(sessions))
        for place in generator.permutation(len(sessions)):
            start = time.perf_counter()
            sessions[place].run(None, feed)
            row[place] = time.perf_counter() - start
        times.append(row)
    low = 1e3 * np.quantile(np.stack(times), 0.1, axis=0)
    figures = {width: float(value) for width, value in zip(WIDTHS, low, strict=True)}
    block, gains = block_from(figures)
    return Block(block, figures, gains, threads, len(times), time.perf_counter() - begin)


def block_from(times: dict[int, float]) -> tuple[int, dict[int, float]]:
    """The step that times by width speak of, and each step's gain.

    Going from 16 to 8, 4, 1, a finer step is believed as long as its widths bring at least a third of the
    time that their saved multiply-accumulates promise (a real step was seen to bring 0.6).
    """
    gains = {
        step: float(np.mean([np.log(times[up] / times[width]) / np.log(macs(up) / macs(width)) for width, up in pairs]))
        for step, pairs in PAIRS.items()
    }
    block = COARSEST
    for step in PAIRS:
        if gains[step] < _ENOUGH:
            break
        block = step
    return block, gains


def macs(width: int) -> int:
    """Multiply-accumulates of a position in `network(width)`, but for the kernel's size."""
    return EDGE * width + 2 * width * width


def network(width: int) -> bytes:
    """An ONNX model of three 3x3 convolutions, 16 -> width -> width -> width, with ReLU."""
    generator = np.random.default_rng(0)
    nodes, weights, source, channels = [], [], "input", EDGE
    for layer in range(3):
        size = (width, channels, 3, 3)
        values = generator.standard_normal(size) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"weight{layer}"))
        weights.append(numpy_helper.from_array(np.zeros(width, dtype=np.float32), f"bias{layer}"))
        names = [source, f"weight{layer}", f"bias{layer}"]
        nodes.append(helper.make_node("Conv", names, [f"conv{layer}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        source, channels = f"relu{layer}", width
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["output"]))
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, EDGE, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, width, 1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
