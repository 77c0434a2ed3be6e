"""Where samples lie: tensors in memory, or a map-style dataset that is read when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from compressor.errors import CompressorError, DataError
from compressor.sources.trees import Tree, join, map_leaves, named_leaves, tree_bytes

READ_LIMIT = 4 * 1024**3
"""Bytes of a stream (a loader without a dataset, an IterableDataset) that are read into memory at most."""

_LABEL_KEYS = ("label", "labels", "target", "targets")
_INPUT_KEYS = ("image", "images", "input", "inputs", "x")
_KEPT_TYPES = (torch.int32, torch.int64, torch.bool)


class Store(Protocol):
    """A fixed number of samples that can be read by position."""

    def __len__(self) -> int: ...
    def read(self, ids: np.ndarray) -> tuple[Tree, Tensor | None]:
        """Inputs (n, ...) and labels (n,) at these positions."""
        ...


class MemoryStore:
    """Inputs and labels as tensors whose first dimension is the samples."""

    def __init__(self, inputs: Any, labels: Any = None) -> None:
        self.inputs = as_inputs(inputs)
        self.labels = None if labels is None else as_labels(_tensor(labels))
        sizes = {leaf.shape[0] if leaf.ndim else 0 for _, leaf in named_leaves(self.inputs)}
        if self.labels is not None:
            sizes.add(self.labels.shape[0] if self.labels.ndim else 0)
        if len(sizes) != 1:
            raise DataError(
                "data in memory",
                f"first dimensions of {sorted(sizes)} for inputs and labels",
                "one and the same number of samples in each",
                "pair every input with its label: (inputs (N, ...), labels (N,)).",
            )
        self._count = sizes.pop()

    def __len__(self) -> int:
        return self._count

    def read(self, ids: np.ndarray) -> tuple[Tree, Tensor | None]:
        """Rows of the tensors, copied."""
        rows = torch.as_tensor(ids, dtype=torch.int64)
        inputs = map_leaves(lambda leaf: leaf[rows.to(leaf.device)], self.inputs)
        return inputs, None if self.labels is None else self.labels[rows.to(self.labels.device)]


class DatasetStore:
    """A map-style dataset of `(input, label)`; `collate` is a loader's own collate function, if any."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any] | None = None) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, ids: np.ndarray) -> tuple[Tree, Tensor | None]:
        """Reads one sample after the other, in the order asked for."""
        pairs = [self._one(int(place)) for place in ids]
        return _join_samples(pairs, [int(place) for place in ids])

    def _one(self, place: int) -> tuple[Tree, Any]:
        try:
            sample = self.dataset[place]
        except CompressorError:
            raise
        except Exception as error:  # of the user's dataset, or of what decodes its files
            raise DataError(
                f"dataset {type(self.dataset).__name__}, sample {place}",
                f"{type(error).__name__}: {error}",
                "every sample can be read",
                "repair or remove this sample.",
            ) from error
        if self.collate is None:
            inputs, label = split_sample(sample)
            return as_inputs(inputs), label
        inputs, labels = split_sample(self.collate([sample]))
        return map_leaves(lambda leaf: leaf[0], as_inputs(inputs)), None if labels is None else labels[0]


def read_stream(stream: Iterable[Any], batched: bool, limit: int = READ_LIMIT) -> MemoryStore:
    """Reads an iterable of samples (or of batches) once into memory; DataError beyond `limit` bytes."""
    inputs: list[Tree] = []
    labels: list[Any] = []
    used = 0
    for item in stream:
        tree, label = split_sample(item)
        tree = as_inputs(tree)
        used += tree_bytes(tree)
        if used > limit:
            raise DataError(
                "data that can only be streamed",
                f"more than {limit / 1024**3:.3g} GiB",
                "a stream that fits into memory (it is read once and kept)",
                "give a map-style dataset (with len() and [i]), or fewer samples.",
            )
        inputs.append(tree)
        labels.append(label)
    if not inputs:
        raise empty("data stream")
    if not batched:
        return MemoryStore(*_join_samples(list(zip(inputs, labels, strict=True)), range(len(inputs))))
    known = [as_labels(_tensor(label)) for label in labels if label is not None]
    if known and len(known) != len(labels):
        raise _half_labelled()
    if any(label.dim() == 0 for label in known):
        raise DataError(
            "data stream", "one label to an item, as of a single sample", "batches: inputs (N, ...) and N labels",
            "wrap it in a list, or in a torch IterableDataset, which is read sample by sample.",
        )  # fmt: skip
    return MemoryStore(join(inputs, torch.cat), torch.cat(known) if known else None)


def split_sample(sample: Any) -> tuple[Any, Any]:
    """A sample or batch as (input, label or None): a pair, a dict with a label key, or an input alone."""
    if isinstance(sample, Mapping):
        key = next((key for key in _LABEL_KEYS if key in sample), None)
        rest = {name: value for name, value in sample.items() if name != key}
        if len(rest) == 1 and next(iter(rest)) in _INPUT_KEYS:
            return next(iter(rest.values())), None if key is None else sample[key]
        return rest, None if key is None else sample[key]
    if isinstance(sample, tuple | list):
        if len(sample) == 2:
            return sample[0], sample[1]
        if len(sample) == 1:
            return sample[0], None
        raise DataError(
            "dataset",
            f"samples of {len(sample)} parts",
            "(input, label) pairs",
            "wrap the dataset so that it returns pairs; an input of several tensors is a tuple or a dict.",
        )
    return sample, None


def as_inputs(tree: Any) -> Tree:
    """Tensors from tensors and arrays; refuses images that were not yet turned into floats.

    NumPy float64 becomes float32 (its default is nobody's choice); tensors keep their type.
    """
    if isinstance(tree, Mapping):
        return {key: as_inputs(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(as_inputs(value) for value in tree)
    leaf = _tensor(tree)
    if leaf.is_floating_point() or leaf.dtype in _KEPT_TYPES:
        return leaf.detach()
    raise DataError(
        "data",
        f"inputs of type {str(leaf.dtype).removeprefix('torch.')}",
        "floating point (or int64 token ids)",
        "convert and normalise the inputs as in training, e.g. x.float() / 255.",
    )


def as_labels(labels: Tensor) -> Tensor:
    """Class numbers as int64 (N,), anything else as floats (N, ...)."""
    labels = labels.detach()
    if labels.is_floating_point():
        return labels
    return (labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels).to(torch.int64)


def empty(where: str) -> DataError:
    """The refusal of data without samples."""
    return DataError(where, "0 samples", "at least one", "check the path, the split and any filter on it.")


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return torch.as_tensor(array.astype(np.float32) if array.dtype == np.float64 else array.copy())
    elif isinstance(value, bool | int | float) or (isinstance(value, list) and value):
        return torch.as_tensor(value)
    image = hasattr(value, "getbands")
    raise DataError(
        "data",
        "a PIL image" if image else f"a {type(value).__name__}",
        "tensors or numeric arrays",
        "add the transform of the model's training (ToTensor, Normalize) to the dataset."
        if image
        else "return (input, label) with a tensor as input.",
    )


def _join_samples(pairs: Sequence[tuple[Tree, Any]], ids: Sequence[int]) -> tuple[Tree, Tensor | None]:
    shapes = [[(name, tuple(leaf.shape)) for name, leaf in named_leaves(tree)] for tree, _ in pairs]
    for place, shape in zip(ids, shapes, strict=True):
        if shape != shapes[0]:
            raise DataError(
                f"dataset, sample {place}",
                f"input shape {shape[0][1] if len(shape) == 1 else shape}",
                f"{shapes[0][0][1] if len(shapes[0]) == 1 else shapes[0]} as sample {ids[0]} has",
                "resize or pad all inputs to one shape in the dataset's transform.",
            )
    labels = [label for _, label in pairs]
    missing = sum(label is None for label in labels)
    if 0 < missing < len(labels):
        raise _half_labelled()
    stacked = None if missing else as_labels(torch.stack([_tensor(label) for label in labels]))
    return join([tree for tree, _ in pairs]), stacked


def _half_labelled() -> DataError:
    return DataError(
        "dataset", "labels for some samples only", "a label for every sample, or for none", "drop the others."
    )
