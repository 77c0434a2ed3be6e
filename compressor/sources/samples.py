"""Samples: data behind one door, read in a fixed order, known by its content.

A sample's id is its position, 0..n-1. Its hash is over the *input* only, so that the same image is found
again in another split whether or not it carries a label there; a fingerprint covers inputs and labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.sources.accept import same_random_state, store_of
from compressor.sources.stores import MemoryStore, Store, empty
from compressor.sources.trees import Tree, first_not_finite, join, map_leaves, row_hashes, tree_bytes

KEEP_LIMIT = 1024**3
"""A dataset whose inputs take at most this many bytes stays in memory after its first full reading."""

_CHUNK = 64
_PROBES = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples: ids (n,) on the CPU, inputs (n, ...) as a tensor or a tree of them, labels or None."""

    ids: Tensor
    inputs: Tree
    labels: Tensor | None


class Samples:
    """A fixed sequence of samples: `len(s)`, `s[i] -> (input, label)`, `s.batch(ids)`."""

    def __init__(self, store: Store, ids: np.ndarray | None = None, name: str = "data") -> None:
        self.name = name
        self._store = store
        self._ids = np.arange(len(store)) if ids is None else np.asarray(ids, dtype=np.int64)
        self._hashes: np.ndarray | None = None
        self._labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, place: int) -> tuple[Tree, Any]:
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        inputs, labels = self.batch([place % len(self)])
        return map_leaves(lambda leaf: leaf[0], inputs), None if labels is None else labels[0]

    def batch(self, ids: Tensor | np.ndarray | Sequence[int]) -> tuple[Tree, Tensor | None]:
        """Inputs (n, ...) and labels (n,) or None; DataError if a sample changed since its hashing."""
        places = np.asarray(ids, dtype=np.int64)
        inputs, labels = self._store.read(self._ids[places])
        if self._hashes is not None and not isinstance(self._store, MemoryStore):
            again = np.array(row_hashes(inputs), dtype="S16")
            changed = np.flatnonzero(again != self._hashes[places])
            if len(changed):
                raise _two_answers(self.name, int(places[changed[0]]))
        return inputs, labels

    def named(self, name: str) -> Samples:
        """The same samples under the name that messages shall give them."""
        return self.take(np.arange(len(self)), name)

    def take(self, ids: Tensor | np.ndarray | Sequence[int], name: str | None = None) -> Samples:
        """A view of these samples, in this order, under new ids 0..k-1."""
        places = np.asarray(ids, dtype=np.int64)
        view = Samples(self._store, self._ids[places], name or self.name)
        if self._hashes is not None:
            view._hashes = self._hashes[places]
            view._labels = None if self._labels is None else self._labels[torch.as_tensor(places)]
        return view

    @property
    def hashes(self) -> np.ndarray:
        """16 bytes for each input, (n,) of dtype S16. Reads everything once; DataError for NaN inputs."""
        if self._hashes is None:
            self._scan()
        assert self._hashes is not None
        return self._hashes

    @property
    def labels(self) -> Tensor | None:
        """All labels, (n,), or None for unlabelled data."""
        if isinstance(self._store, MemoryStore):
            labels = self._store.labels
            return None if labels is None else labels[torch.as_tensor(self._ids)]
        return self._labels if len(self.hashes) else None

    @property
    def fingerprint(self) -> str:
        """sha256 over all samples' inputs and labels, the same for every order."""
        rows = self.hashes.tolist()
        if self.labels is not None:
            marks = self.labels.cpu().to(torch.float64).reshape(len(rows), -1).numpy()
            rows = [row + b"|" + mark.tobytes() for row, mark in zip(rows, marks, strict=True)]
        return hashlib.sha256(b"".join(sorted(rows))).hexdigest()

    def _scan(self) -> None:
        """One reading of everything: hashes, labels, a check for NaN; small data stays in memory."""
        rows: list[bytes] = []
        kept: list[Tree] | None = None if isinstance(self._store, MemoryStore) else []
        labels: list[Tensor] = []
        for batch in batches(self, _CHUNK):
            bad = first_not_finite(batch.inputs)
            if bad is not None:
                raise DataError(
                    f"{self.name}, sample {int(batch.ids[bad])}",
                    "NaN or infinite values in the input",
                    "finite numbers",
                    "repair or remove this sample, or its normalisation (a zero deviation?).",
                )
            rows += row_hashes(batch.inputs)
            if batch.labels is not None:
                labels.append(batch.labels)
            if kept is not None:
                kept.append(batch.inputs)
                if tree_bytes(kept[0]) / len(batch.ids) * len(self) > KEEP_LIMIT:
                    kept = None
        joined = torch.cat(labels) if labels else None
        if kept:
            self._store = MemoryStore(join(kept, torch.cat), joined)
            self._ids = np.arange(len(rows))
        self._labels = joined
        self._hashes = np.array(rows, dtype="S16")


def as_samples(data: Any, name: str = "data") -> Samples:
    """Samples from Samples, a Dataset or list, a DataLoader, a pair `(inputs, labels)`, or inputs alone.

    A loader lends its dataset, in the dataset's order (a subset sampler's indices sorted); its own collate
    function is applied sample by sample. Streams are read once into memory. Raises DataError for empty data,
    and for a dataset whose samples are not the same when read twice (random augmentation).
    """
    if isinstance(data, Samples):
        return data
    samples = Samples(*store_of(data), name=name)
    if not len(samples):
        raise empty(name)
    if not isinstance(samples._store, MemoryStore):
        _refuse_random(samples)
    return samples


def joined(parts: Sequence[Samples]) -> Samples:
    """The inputs of several samples as one sequence, one after the other, without labels."""
    return parts[0] if len(parts) == 1 else Samples(_Joined(parts), name=" and ".join(part.name for part in parts))


class _Joined:
    """A store of the inputs that several samples hold."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, ids: np.ndarray) -> tuple[Tree, Tensor | None]:
        """Reads from each part what it holds, and gives it back in the order asked for."""
        homes = np.searchsorted(self._ends, ids, side="right")
        order = np.argsort(homes, kind="stable")
        found = [
            part.batch(ids[homes == place] - (self._ends[place] - len(part)))[0]
            for place, part in enumerate(self._parts)
            if (homes == place).any()
        ]
        back = torch.as_tensor(np.argsort(order, kind="stable"))
        return map_leaves(lambda leaf: leaf[back.to(leaf.device)], join(found, torch.cat)), None


def batches(
    samples: Samples, size: int, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Iterator[Batch]:
    """All samples in the order of their ids; floating inputs are cast to `dtype` where one is given."""

    def move(leaf: Tensor) -> Tensor:
        return leaf.to(device, dtype if leaf.is_floating_point() else None)

    for start, stop in runs(len(samples), size):
        ids = torch.arange(start, stop)
        inputs, labels = samples.batch(ids)
        yield Batch(ids, map_leaves(move, inputs), None if labels is None else labels.to(device))


def runs(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Where batches of at most `size` start and end. None at the end is a single sample, if that can be helped:
    `squeeze()` would drop its axis.
    """
    start = 0
    while start < count:
        stop = min(start + size, count)
        stop -= count - stop == 1 and stop - start > 2
        yield start, stop
        start = stop


def shared(one: Samples, other: Samples) -> np.ndarray:
    """Ids in `one` of the samples whose input is also in `other`."""
    return np.flatnonzero(np.isin(one.hashes, other.hashes))


def _refuse_random(samples: Samples) -> None:
    """Reads some samples twice, without resetting random numbers in between."""
    places = sorted({int(place) for place in np.linspace(0, len(samples) - 1, _PROBES)})
    with same_random_state():
        first, second = ([samples.batch([place]) for place in places] for _ in range(2))
        for place, (inputs, labels), (again, labels_again) in zip(places, first, second, strict=True):
            same_label = labels is None or labels_again is None or torch.equal(labels, labels_again)
            if row_hashes(inputs) != row_hashes(again) or not same_label:
                raise _two_answers(samples.name, place)


def _two_answers(name: str, place: int) -> DataError:
    return DataError(
        f"{name}, sample {place}",
        "a different input when read a second time",
        "the same answer each time (a random augmentation is not data to measure or judge on)",
        "give the dataset with its evaluation transform.",
    )
