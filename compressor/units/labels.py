"""Which unit each element of a tensor belongs to: label tensors, and the union of labels that must go
together.

A label tensor has the shape of the tensor it describes; -1 marks elements that belong to no unit. Dimensions
along which labels do not change are kept as stride-0 views, so a label tensor costs about as much as its
units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Families:
    """Union-find over labels; a family may be frozen with the first reason given."""

    def __init__(self) -> None:
        self._parent = np.empty(1024, dtype=np.int64)
        self._count = 0
        self._reason: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """`count` new labels, each a family of its own."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            grown = np.empty(2 * self._count, dtype=np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        self._parent[start : self._count] = np.arange(start, self._count)
        return torch.arange(start, self._count)

    def root(self, label: int) -> int:
        """The family's representative (path halving)."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return int(label)

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """Representatives of an array of labels; -1 stays -1."""
        if self._count == 0:
            return labels.copy()
        found = self._parent[np.maximum(labels, 0)]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                return np.where(labels >= 0, found, -1)
            found = above

    def unite(self, left: int, right: int) -> None:
        """Make two families one; a frozen one freezes the other."""
        a, b = self.root(left), self.root(right)
        if a == b:
            return
        first, second = min(a, b), max(a, b)
        self._parent[second] = first
        reason = self._reason.pop(second, None)
        if reason is not None:
            self._reason.setdefault(first, reason)

    def unite_pairs(self, left: np.ndarray, right: np.ndarray) -> None:
        """Make families one, pair by pair; all labels are >= 0."""
        a, b = self.roots(left), self.roots(right)
        for x, y in zip(a[a != b].tolist(), b[a != b].tolist(), strict=True):
            self.unite(x, y)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """No unit of these labels may go."""
        for root in np.unique(self.roots(compact(labels).numpy())).tolist():
            if root >= 0:
                self._reason.setdefault(root, reason)

    def reason(self, label: int) -> str | None:
        """Why this label's family is frozen, or None."""
        return self._reason.get(self.root(label))


def narrowed(labels: Tensor, keep: tuple[int, ...] = ()) -> Tensor:
    """The labels with every stride-0 dimension (except those in `keep`) cut down to length 1."""
    for dim in range(labels.dim()):
        if dim not in keep and labels.size(dim) > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def compact(labels: Tensor) -> Tensor:
    """The same labels with each dimension along which they do not change turned into length 1."""
    labels = narrowed(labels)
    for dim in range(labels.dim()):
        if labels.size(dim) > 1 and bool((labels == labels.narrow(dim, 0, 1)).all()):
            labels = labels.narrow(dim, 0, 1)
    return labels


def normalised(labels: Tensor) -> Tensor:
    """The same labels and shape, constant dimensions as stride-0 views."""
    if labels.numel() == 0:
        return labels
    return compact(labels).expand(labels.shape)


def unlabelled(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Labels of a tensor that belongs to no unit."""
    return torch.full([1] * len(shape), -1, dtype=torch.int64).expand(shape)


def along(labels: Tensor, dim: int) -> Tensor | None:
    """The labels along `dim` if they are the same at every other position, else None."""
    if labels.numel() == 0:
        return None
    dim %= labels.dim()
    small = compact(labels)
    if any(small.size(d) > 1 for d in range(small.dim()) if d != dim):
        return None
    return small.reshape(-1).expand(labels.size(dim)) if small.numel() == 1 else small.reshape(-1)


def varies(labels: Tensor, dims: list[int]) -> bool:
    """True if labels change along any of `dims`."""
    if labels.numel() == 0:
        return False
    small = compact(labels)
    return any(small.size(d % labels.dim()) > 1 for d in dims)
