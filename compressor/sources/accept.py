"""What a caller may hand over as data -> a store: loaders, datasets, streams, arrays."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from compressor.errors import DataError
from compressor.sources.stores import DatasetStore, MemoryStore, Store, read_stream

_WHOLE = (RandomSampler, SequentialSampler, DistributedSampler, WeightedRandomSampler)


def store_of(data: Any) -> tuple[Store, np.ndarray | None]:
    """The store behind what a caller handed over, and which of its samples are meant (None: all).

    Raises DataError for what is no data.
    """
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, IterableDataset):
        return _of_stream(data, batched=False)
    if isinstance(data, TensorDataset) and len(data.tensors) <= 2:
        return MemoryStore(*data.tensors), None
    if isinstance(data, Tensor | np.ndarray):
        return MemoryStore(data), None
    if isinstance(data, tuple | list) and _is_pair(data):
        return MemoryStore(*data), None
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        if isinstance(data, dict):
            raise _not_data(data)
        if not hasattr(data, "__len__"):
            raise DataError(
                f"dataset {type(data).__name__}", "no len()", "a map-style dataset", "define __len__ on it."
            )
        return DatasetStore(data), None
    if hasattr(data, "__iter__") and not isinstance(data, str | bytes):
        return _of_stream(data, batched=True)
    raise _not_data(data)


def _of_stream(stream: Iterable[Any], batched: bool) -> tuple[Store, None]:
    """A stream is read once, with random numbers of our own: one that draws (workers' seeds, an order of its own)
    gives the same samples in every run, and leaves the caller's generators alone.
    """
    with same_random_state():
        torch.default_generator.manual_seed(0)  # not torch.manual_seed: devices' generators are the caller's, too
        np.random.seed(0)
        random.seed(0)
        return read_stream(stream, batched), None


def _of_loader(loader: DataLoader) -> tuple[Store, np.ndarray | None]:
    own_collate = loader.collate_fn if loader.collate_fn is not default_collate else None
    if isinstance(loader.dataset, IterableDataset):
        return _of_stream(loader, batched=loader.batch_size is not None)
    if loader.batch_size is None and loader.batch_sampler is None:
        own_collate = None
    store, _ = (DatasetStore(loader.dataset, own_collate), None) if own_collate else store_of(loader.dataset)
    sampler = loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return store, np.unique(np.asarray(list(sampler.indices)))
    if isinstance(sampler, _WHOLE) and (loader.batch_size is not None or loader.batch_sampler is None):
        return store, None
    with same_random_state():
        if loader.batch_size is None and loader.batch_sampler is not None:
            drawn = [place for batch in loader.batch_sampler for place in batch]
        else:
            drawn = list(sampler)
    return store, np.unique(np.asarray(drawn, dtype=np.int64))


def _is_pair(data: Sequence[Any]) -> bool:
    """`(inputs, labels)`: both long arrays; a list of two `(input, label)` samples is a dataset."""
    if len(data) != 2 or not isinstance(data[1], Tensor | np.ndarray):
        return False
    return isinstance(data[0], Tensor | np.ndarray | dict | tuple) and data[1].ndim >= 1


def _not_data(data: Any) -> DataError:
    return DataError(
        "data",
        f"a {type(data).__name__}",
        "a Dataset, a DataLoader, a pair (inputs, labels) of tensors or arrays, or inputs alone",
        "wrap it as one of these.",
    )


@contextmanager
def same_random_state() -> Iterator[None]:
    """Whatever runs inside may draw random numbers; the caller's generators come back as they were."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
