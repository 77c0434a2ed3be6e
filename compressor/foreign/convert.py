"""An ONNX file as a torch network, proven to answer as the file does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from compressor.errors import SourceError
from compressor.foreign import layers  # noqa: F401  (importing registers its rules)
from compressor.foreign.building import Building, attributes
from compressor.foreign.given import GivenFile
from compressor.foreign.group_norms import group_norms
from compressor.foreign.measured import BATCHES, Measured, feed_of, refused
from compressor.foreign.operators import RULES

TOLERANCE = 1e-3
"""Largest difference from the file, relative to the spread over the samples, that rounding explains."""
_ROUNDINGS = 64
_CHECKED = (1, 2, 5)
"""Batch sizes at which network and file are compared."""


def convert(measured: Measured, where: str) -> tuple[nn.Module, dict[str, str]]:
    """The network, and for each of its tensors the name of the ONNX tensor that it is.

    SourceError that names the first operator which cannot be taken over.
    """
    at = Building(measured, where)
    for place, name in enumerate(measured.inputs):
        at.nodes[name] = at.graph.placeholder("input" if place == 0 else f"input_{place}")
    norms = group_norms(measured)
    ends, inside = {norm.end: norm for norm in norms}, {name for norm in norms for name in norm.inside}
    for node in measured.model.graph.node:
        if not measured.data & set(node.output):
            continue  # follows from shapes: its value, or the shape that it leads to, was seen
        if inside & set(node.output):
            continue
        norm = next((ends[name] for name in node.output if name in ends), None)
        if norm is not None:
            at.nodes[norm.end] = at.layer(norm.layer, norm.called, at.value(norm.x))
            continue
        if node.op_type not in RULES or node.domain not in ("", "ai.onnx"):
            raise refused(where, node, f"operators among {', '.join(sorted(RULES))}")
        at.at = node
        made = RULES[node.op_type](at, node, attributes(node))
        at.nodes.update(dict(zip(node.output, made if isinstance(made, list) else [made], strict=False)))
    outputs = {entry.name: at.value(entry.name) for entry in measured.model.graph.output}
    named = {node.name: name for name, node in at.nodes.items() if isinstance(node, fx.Node) and node.op != "get_attr"}
    return at.finished(outputs), named


def refuse_difference(network: Any, named: Mapping[str, str], measured: Measured, given: GivenFile, where: str) -> None:
    """SourceError unless the network answers as the given file does, on random inputs and at several batch sizes.

    Compared are the outputs with the file itself, and every tensor with that of the file's graph: the message names
    the first operator that differs. Outputs that do not vary are no evidence, unless what they are made of varies.
    """
    feed = feed_of(given, measured.inputs, BATCHES[0], seed=10)
    there, seen = measured.run(feed), _watched(network, named, feed, where)
    for node in measured.model.graph.node:
        for name in node.output:
            if name in seen and name in there and _differs(seen[name], there[name]):
                raise refused(where, node, "the same outputs in torch as in onnxruntime")
    for batch in _CHECKED:
        feed = feed_of(given, measured.inputs, batch, seed=10 + batch)
        expected, got = given.answers(feed), _watched(network, named, feed, where)
        for name, answer in expected.items():
            if name in got and _differs(got[name], answer):
                raise SourceError(
                    where, f"another output '{name}' than the file's with {batch} samples", "the same",
                    "report this file; nothing was compressed.",
                )  # fmt: skip
    outputs = {entry.name for entry in measured.model.graph.output}
    before = {name for node in measured.model.graph.node if outputs & set(node.output) for name in node.input}
    if not any(_spread(there[name]) > _rounding(there[name]) for name in (outputs | before) & there.keys()):
        raise SourceError(
            where, "outputs that do not vary over random inputs", "outputs by which the conversion can be checked",
            "compress the network where it was trained (file.py:factory).",
        )  # fmt: skip


def _watched(
    network: Any, named: Mapping[str, str], feed: Mapping[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """What the network makes on the way, by the names of the ONNX tensors."""
    seen: dict[str, np.ndarray] = {}

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in named and isinstance(result, Tensor):
                seen[named[n.name]] = result.detach().numpy()
            return result

    try:
        with torch.no_grad():
            Watcher(network, graph=network.graph).run(*(torch.from_numpy(array) for array in feed.values()))
    except Exception as error:
        raise SourceError(
            where, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "a network that runs",
            "report this file; nothing was compressed.",
        ) from error  # fmt: skip
    return seen


def _differs(got: np.ndarray, expected: np.ndarray) -> bool:
    if got.shape != expected.shape:
        return True
    if not np.issubdtype(expected.dtype, np.floating):
        return not np.array_equal(got, expected)
    gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if not np.array_equal(np.isfinite(got), np.isfinite(expected)):
        return True
    gap = gap[np.isfinite(expected)]
    return float(gap.max(initial=0)) > max(TOLERANCE * _spread(expected), _rounding(expected))


def _spread(values: np.ndarray) -> float:
    """Standard deviation over the samples, root mean square over the entries; over all entries for a lone sample."""
    if not np.issubdtype(values.dtype, np.floating) or not values.size:
        return 0.0
    wide = values.astype(np.float64)
    wide = np.where(np.isfinite(wide), wide, 0.0)
    centred = wide - wide.mean(0) if len(wide) > 1 else wide - wide.mean()
    return float(np.sqrt(np.square(centred).mean()))


def _rounding(values: np.ndarray) -> float:
    """What rounding may move, in numbers around one and larger ones; runtimes approximate exp and its kin."""
    if not np.issubdtype(values.dtype, np.floating):
        return 0.0
    return _ROUNDINGS * float(np.finfo(values.dtype).eps) * max(1.0, float(np.abs(values).max(initial=0)))
