"""Width -> time tables: every layer at its real spatial size, in onnxruntime, on a small grid of widths.

Times are those of the layer's own kernel as onnxruntime's profile tells them, so that a layer measured alone does not
pay for bringing its input into the runtime's layout, which inside a network happens once. All widths of a layer are
timed in interleaved rounds, all layers in several passes, and the least time of each counts: disturbances only add.
Kernels that take long are timed on a part of the batch: on a busy machine they would never run undisturbed, and short
ones would look too good beside them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch.fx import Node

from compressor.export.session import session_options
from compressor.planning.timing import LayerTimes, falling
from compressor.surgery.landing import Landing
from compressor.units.graph import UnitGraph
from compressor.units.propagate import operation_name

SHARES = (0.125, 0.25, 0.5)
"""Widths of the grid as shares of the full one, which is always there; all rounded up to the block."""
PASSES, LEAST_ROUNDS, MOST_ROUNDS = 3, 3, 30
LONGEST = 2e-3
"""Seconds that a timed kernel may take before the batch is cut down."""

_LAYERS = ("Conv", "Gemm", "MatMul")
"""Parts of the names of nodes that are layers, fused or not."""


@dataclass(frozen=True)
class Shape:
    """A layer as the runtime sees it. `size` is its weight's, the two widths first; `outer` the input's batch and
    `inner` its positions; the rest are the attributes of the ONNX node."""

    kind: str
    size: tuple[int, ...]
    free: tuple[bool, bool]
    outer: int
    inner: tuple[int, ...]
    reads: int
    groups: int
    attributes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def entering(self) -> float:
        """Numbers in the layer's input."""
        return float(np.prod(self.inner, initial=1.0)) * self.outer * self.channels(self.size[0], self.size[1])

    def channels(self, first: int, second: int) -> int:
        """Width of the input at the given widths of the weight."""
        if self.groups > 1 and self.kind == "Conv":
            return second * (first // (self.size[0] // self.groups))
        return (first, second)[self.reads]

    def network(self, first: int, second: int) -> bytes:
        """An ONNX model of this one layer at the given widths of its weight."""
        channels, size = self.channels(first, second), (first, second, *self.size[2:])
        attributes: dict[str, Any] = {name: list(values) for name, values in self.attributes}
        if self.kind == "Gemm":
            attributes = {"transB": self.reads}
        elif self.groups > 1:
            attributes["group"] = channels // second if self.kind == "Conv" else self.groups
        values = np.random.default_rng(0).standard_normal(size, dtype=np.float32) / np.sqrt(np.prod(size) / size[0])
        shape = [self.outer, channels, *self.inner]
        graph = helper.make_graph(
            [helper.make_node(self.kind, ["input", "weight"], ["output"], **attributes)],
            "layer",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values.astype(np.float32), "weight")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@dataclass(frozen=True)
class Timetable:
    """What was measured: times of the layers, and `rest`, the microseconds of everything else in one call."""

    layers: tuple[LayerTimes, ...]
    rest: float
    batch: int
    threads: int
    block: int
    points: int
    """Times of different layers and widths that were taken."""
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: microseconds of each layer by the widths of its weight."""
        layers = [
            {
                "weight": layer.weight, "widths": [list(w) for w in layer.widths], "micros": layer.micros.tolist(),
                "reads": layer.reads, "entering": layer.entering,
            }
            for layer in self.layers
        ]  # fmt: skip
        plain = {name: getattr(self, name) for name in ("rest", "batch", "threads", "block", "points")}
        return {**plain, "seconds": round(self.seconds, 3), "layers": layers}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Timetable:
        """The table that `as_dict` was made of."""
        layers = tuple(
            LayerTimes(
                one["weight"], (tuple(one["widths"][0]), tuple(one["widths"][1])), np.array(one["micros"]),
                one["reads"], one["entering"],
            )
            for one in plain["layers"]
        )  # fmt: skip
        return cls(layers, **{name: value for name, value in plain.items() if name != "layers"})


def measured_table(
    file: Path, feed: dict[str, np.ndarray], spots: Sequence[Landing], samples: int, graph: UnitGraph, *,
    block: int, threads: int = 1, seconds: float = 20.0, seed: int = 0, report: Callable[[float], None] | None = None,
) -> Timetable:  # fmt: skip
    """Measure all layers of the network that `file` is the ONNX form of; `feed` is the batch that is asked about.

    `spots` are its layers, recorded with `samples` samples. Takes about `seconds`, more for networks of which a single
    call takes seconds (each width is timed at least PASSES x LEAST_ROUNDS times).
    """
    begin = time.perf_counter()
    batch = len(next(iter(feed.values())))
    free = free_axes(graph)
    shapes = [shape_of(spot, batch / samples, free) for spot in spots]
    grids = {shape: widths_of(shape, block) for shape in dict.fromkeys(shapes)}
    found: dict[Shape, np.ndarray] = {shape: np.full([len(w) for w in grid], np.inf) for shape, grid in grids.items()}
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        rest = _Rest(file, feed, Path(folder) / "whole", threads)
        for turn in range(PASSES):
            for place, (shape, grid) in enumerate(grids.items()):
                each = seconds / PASSES / len(grids)
                found[shape] = np.minimum(found[shape], _times(shape, grid, Path(folder), threads, each, generator))
                rest.run()
                if report is not None:
                    report((turn + (place + 1) / len(grids)) / PASSES)
        others = rest.micros()
    layers = tuple(
        LayerTimes(f"{spot.module}.weight", grids[shape], falling(found[shape]), shape.reads, shape.entering)
        for spot, shape in zip(spots, shapes, strict=True)
    )
    points = sum(times.size for times in found.values())
    return Timetable(layers, others, batch, threads, block, points, time.perf_counter() - begin)


def free_axes(graph: UnitGraph) -> set[tuple[str, int]]:
    """The axes of tensors along which units may go."""
    live = {int(unit) for group in graph.groups if group.frozen is None for unit in group.units}
    return {(axis.tensor, axis.axis) for axis in graph.axes if not live.isdisjoint(axis.units.tolist())}


def shape_of(spot: Landing, scale: float, free: set[tuple[str, int]]) -> Shape:
    """How the runtime sees a layer when each recorded row counts `scale` times."""
    node, weight = spot.node, f"{spot.module}.weight"
    movable = ((weight, 0) in free, (weight, 1) in free)
    entered = tuple(spot.source.meta["val"].shape)
    outer = max(1, round(entered[0] * scale))
    if operation_name(node) != "convolution":
        operand = node.args[2] if operation_name(node) == "addmm" else node.args[1]
        assert isinstance(operand, Node)
        first, second = operand.meta["val"].shape  # as it is multiplied: (what is read, what is written)
        direct = operand.op == "placeholder"
        size = (first, second) if direct else (second, first)
        return Shape("Gemm", size, movable, outer, (), 0 if direct else 1, 1, ())
    _, kernel, _, stride, padding, dilation, transposed, extra, groups = node.args
    assert isinstance(kernel, Node)
    assert isinstance(groups, int)
    size, dims = tuple(kernel.meta["val"].shape), len(entered) - 2
    attributes = {"strides": _many(stride, dims), "pads": 2 * _many(padding, dims), "dilations": _many(dilation, dims)}
    if transposed:
        attributes["output_padding"] = _many(extra, dims)
    kind, reads = ("ConvTranspose", 0) if transposed else ("Conv", 0 if groups > 1 and size[1] == 1 else 1)
    return Shape(kind, size, movable, outer, entered[2:], reads, groups, tuple(attributes.items()))


def _many(value: Any, dims: int) -> tuple[int, ...]:
    given = tuple(int(entry) for entry in value)
    return given * dims if len(given) == 1 else given


def widths_of(shape: Shape, block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The widths of its weight, along both axes, at which a layer is timed; the full one is the last."""

    def widths(full: int, free: bool) -> tuple[int, ...]:
        if not free:
            return (full,)
        some = {min(full, max(1, -(-int(share * full) // block)) * block) for share in SHARES}
        return tuple(sorted(some | {full}))

    return widths(shape.size[0], shape.free[0]), widths(shape.size[1], shape.free[1])


class _Profiled:
    """A session whose kernels are timed by the runtime itself."""

    def __init__(self, model: bytes | Path, place: Path, threads: int) -> None:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(place)
        self.session = onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )

    def run(self, feed: dict[str, np.ndarray]) -> float:
        """One call; its seconds."""
        start = time.perf_counter()
        self.session.run(None, feed)
        return time.perf_counter() - start

    def micros(self) -> tuple[float, float]:
        """Least microseconds of its nodes: the sum over those that are layers, and over the others.

        The session's profile ends.
        """
        file = Path(self.session.end_profiling())
        events = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        least: dict[tuple[str, bool], float] = {}
        for event in events:
            name, kernel, _ = str(event.get("name", "")).rpartition("_kernel_time")
            if event.get("cat") == "Node" and kernel:
                key = name, _is_layer(event["args"])
                least[key] = min(float(event["dur"]), least.get(key, np.inf))
        parts = [sum(micros for (_, layer), micros in least.items() if layer == wanted) for wanted in (True, False)]
        return parts[0], parts[1]


def _is_layer(about: dict[str, Any]) -> bool:
    """Convolutions and products with a matrix; a product of two stacks of matrices (attention) is no layer."""
    kind, shapes = str(about.get("op_name")), about.get("input_type_shape", [])
    if "MatMul" in kind and len(shapes) > 1:
        return all(len(size) == 2 for size in shapes[1].values())
    return any(name in kind for name in _LAYERS)


class _Rest:
    """Everything of a network but its layers, timed on a part of the batch where that takes long."""

    def __init__(self, file: Path, feed: dict[str, np.ndarray], place: Path, threads: int) -> None:
        batch = len(next(iter(feed.values())))
        trial = _Profiled(file, place, threads)
        seconds = min(trial.run(feed), trial.run(feed))
        trial.micros()
        self._part = _part(batch, seconds / 10)
        self._scale = batch / self._part
        self._feed = {name: value[: self._part] for name, value in feed.items()}
        self._session = _Profiled(file, place, threads)

    def run(self) -> None:
        """Time it once more."""
        self._session.run(self._feed)

    def micros(self) -> float:
        """Least microseconds of a call with the whole batch; ends the session."""
        return self._scale * self._session.micros()[1]


def _part(whole: int, seconds: float) -> int:
    """As many of `whole` rows, which take `seconds`, as take LONGEST."""
    return max(1, min(whole, int(whole * LONGEST / seconds)))


def _times(
    shape: Shape, grid: tuple[tuple[int, ...], tuple[int, ...]], folder: Path, threads: int, seconds: float,
    generator: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Least microseconds of a layer at each point of its grid, from interleaved rounds of about `seconds` in all."""
    trial = _Profiled(shape.network(*shape.size[:2]), folder / "trial", threads)
    full = generator.standard_normal((shape.outer, shape.channels(*shape.size[:2]), *shape.inner), dtype=np.float32)
    part = _part(shape.outer, min(trial.run({"input": full}) for _ in range(2)))
    sessions, feeds, parts = [], [], []
    for place, (first, second) in enumerate((a, b) for a in grid[0] for b in grid[1]):
        smaller = shape.size[0] * shape.size[1] / (first * second)
        parts.append(max(1, min(shape.outer, int(part * smaller))))
        timed = replace(shape, outer=parts[-1])
        sessions.append(_Profiled(timed.network(first, second), folder / str(place), threads))
        feeds.append({"input": np.ascontiguousarray(full[: parts[-1], : shape.channels(first, second)])})
    spent = sum(session.run(feed) for session, feed in zip(sessions, feeds, strict=True))
    for _ in range(int(np.clip(seconds / spent, LEAST_ROUNDS, MOST_ROUNDS))):
        for place in generator.permutation(len(sessions)):
            sessions[place].run(feeds[place])
    least = [session.micros()[0] * shape.outer / part for session, part in zip(sessions, parts, strict=True)]
    return np.array(least).reshape(len(grid[0]), len(grid[1]))
