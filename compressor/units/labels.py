"""Which unit each element of a tensor belongs to: label tensors, and the union of labels that must go together.

A label tensor has the shape of the tensor it describes; -1 marks elements that belong to no unit. Dimensions along
which labels do not change are kept as stride-0 views, so a label tensor costs about as much as its units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Families:
    """Union-find over labels; a family may be frozen with the first reason given."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """`count` new labels, each a family of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def root(self, label: int) -> int:
        """The family's representative (path halving)."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """Representatives of an array of labels; -1 stays -1."""
        unique, inverse = np.unique(labels, return_inverse=True)
        mapped = np.array([self.root(int(v)) if v >= 0 else -1 for v in unique], dtype=np.int64)
        return mapped[inverse].reshape(labels.shape)

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

    def freeze(self, labels: Tensor, reason: str) -> None:
        """No unit of these labels may go."""
        for label in torch.unique(compact(labels)).tolist():
            if label >= 0:
                self._reason.setdefault(self.root(label), reason)

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
