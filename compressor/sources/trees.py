"""Inputs of a network as trees: one tensor, or tuples / dicts of tensors with the samples first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Tree = Any
"""A tensor, or a tuple, list or dict of trees."""


def map_leaves(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The same tree with `function` applied to every tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    return tuple(map_leaves(function, value) for value in tree)


def named_leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its path in the tree (`""` for a plain tensor), in a fixed order."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key in sorted(tree, key=str):
            yield from named_leaves(tree[key], f"{name}.{key}" if name else str(key))
    else:
        for place, value in enumerate(tree):
            yield from named_leaves(value, f"{name}.{place}" if name else str(place))


def join(trees: Sequence[Tree], how: Callable[[list[Tensor]], Tensor] = torch.stack) -> Tree:
    """Many trees of one structure as one: leaves are stacked (or concatenated, with `torch.cat`)."""
    first = trees[0]
    if isinstance(first, Tensor):
        return how(list(trees))
    if isinstance(first, Mapping):
        return {key: join([tree[key] for tree in trees], how) for key in first}
    return tuple(join([tree[place] for tree in trees], how) for place in range(len(first)))


def tree_bytes(tree: Tree) -> int:
    """Memory of all tensors of the tree."""
    return sum(leaf.numel() * leaf.element_size() for _, leaf in named_leaves(tree))


def describe(tree: Tree) -> str:
    """Shapes for messages: `(1, 28, 28) float32`, or the same for every named leaf; per sample, without N."""
    parts = []
    for name, leaf in named_leaves(tree):
        shape = f"{tuple(leaf.shape[1:])} {str(leaf.dtype).removeprefix('torch.')}"
        parts.append(f"{name}: {shape}" if name else shape)
    return ", ".join(parts)


def row_hashes(tree: Tree) -> list[bytes]:
    """16 bytes for each sample of a batch: its values, types and shapes, wherever in a batch it stands."""
    hashers: list[Any] = []
    for name, leaf in named_leaves(tree):
        count = leaf.shape[0]
        hashers = hashers or [hashlib.blake2b(digest_size=16) for _ in range(count)]
        header = f"{name}|{leaf.dtype}|{tuple(leaf.shape[1:])}|".encode()
        rows = leaf.detach().reshape(count, -1).cpu().contiguous().view(torch.uint8).numpy()
        for hasher, row in zip(hashers, rows, strict=True):
            hasher.update(header)
            hasher.update(row.data)
    return [hasher.digest() for hasher in hashers]


def first_not_finite(tree: Tree) -> int | None:
    """Position in the batch of the first sample that holds NaN or infinity."""
    bad = [row for _, leaf in named_leaves(tree) if (row := _bad_row(leaf)) is not None]
    return min(bad, default=None)


def _bad_row(leaf: Tensor) -> int | None:
    if not leaf.is_floating_point():
        return None
    rows = ~torch.isfinite(leaf).reshape(leaf.shape[0], -1).all(dim=1)
    return int(rows.nonzero()[0]) if bool(rows.any()) else None
