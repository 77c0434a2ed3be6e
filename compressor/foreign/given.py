"""What the given ONNX file itself answers, for any batch of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import SourceError
from compressor.foreign.files import open_session, told_length
from compressor.units.outputs import primary

TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
         "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}  # fmt: skip
"""Types of inputs that a network here can have."""


class GivenFile:
    """`GivenFile(path)(inputs)`: inputs with the samples first in, the judged output out, for any batch.

    SourceError where the file is not there, reads data elsewhere, is no ONNX model, or has inputs of other types.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        self._session = open_session(path, threads)
        self.inputs = {entry.name: TYPES.get(entry.type) for entry in self._session.get_inputs()}
        self.shapes: dict[str, list[Any]] = {entry.name: list(entry.shape) for entry in self._session.get_inputs()}
        self.outputs = {
            entry.name: "float" in entry.type or "double" in entry.type for entry in self._session.get_outputs()
        }
        self.judged = primary(self.outputs)
        self.length = told_length(self._session)
        """Tokens of the inputs that the file was made with, where it says so."""
        other = [f"'{name}'" for name, kind in self.inputs.items() if kind is None]
        if other or not all(self.shapes.values()):
            raise SourceError(
                f"'{path}'", f"inputs {', '.join(other) or 'without a batch'}", "inputs of floats or whole numbers",
                "export the network with float inputs.",
            )  # fmt: skip
        first = [shape[0] for shape in self.shapes.values()]
        self.batch: int | None = next((size for size in first if isinstance(size, int) and size > 0), None)
        """The only batch size that the file takes, if it takes one only."""

    def __call__(self, inputs: Any) -> Tensor:
        """The judged output (`logits`, else the first floating one) for a tensor, tuple or dict of tensors."""
        leaves = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
        leaves = [leaves] if isinstance(leaves, Tensor) else list(leaves)
        names = list(inputs) if isinstance(inputs, Mapping) else list(self.inputs)
        arrays = {name: leaf.detach().cpu().numpy() for name, leaf in zip(names, leaves, strict=True)}
        return torch.from_numpy(self.answers(arrays)[self.judged])

    def answers(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name; a batch is cut into those that the file takes, the last one filled up."""
        feed = {name: arrays[name].astype(kind, copy=False) for name, kind in self.inputs.items() if kind}
        count = len(next(iter(feed.values())))
        step = self.batch or max(count, 1)
        parts = []
        for start in range(0, count, step):
            cut = {name: array[start : start + step] for name, array in feed.items()}
            short = step - len(next(iter(cut.values())))
            if short:
                cut = {name: np.concatenate([array, array[-1:].repeat(short, 0)]) for name, array in cut.items()}
            parts.append([np.array(found) for found in self._session.run(list(self.outputs), cut)])
        joined = [np.concatenate(found)[:count] if found[0].ndim else found[0] for found in zip(*parts, strict=True)]
        return dict(zip(self.outputs, joined, strict=True))
