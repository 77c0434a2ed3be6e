"""An ONNX file in onnxruntime, called like a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import UsageError
from compressor.export.inputs import Inputs, leaves
from compressor.foreign.files import open_session, session_options, told_length
from compressor.units.outputs import primary

__all__ = ["TYPES", "OnnxModel", "open_session", "session_options"]

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
        self.length = told_length(self._session)
        """Tokens of the inputs that the file was made with, where it says so."""
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
