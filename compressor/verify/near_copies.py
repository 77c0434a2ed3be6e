"""Judge samples that are nearly those of another split: re-encoded, brighter, mirrored, shifted or cropped pictures.

Equal inputs are found by their hashes, and refused. Near-copies can only be suspected: a sample counts as one where
its nearest neighbour in another split is much nearer than its nearest neighbour among the judge samples themselves.
That asks for no threshold in units of the data, and dense regions with many look-alikes do not count. Pictures are
compared as small grey pictures of equal mean and contrast, each also mirrored, moved by a pixel and zoomed by a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compressor.sources.accept import same_random_state
from compressor.sources.trees import named_leaves
from compressor.verify.accuracy import SamplesLike

RATIO = 0.4
"""How much nearer than the judge samples' own neighbours; measured rates are in recipes/results/verdict_rates.json."""
WARN_SHARE, WARN_COUNT = 0.02, 3
"""Near-copies among the checked samples, as a share and a number, that are worth a warning."""
SIDE = 8
CHECKED, COMPARED = 500, 4000
"""Samples of the judge split and of each other split that are looked at, at most."""
READ_LIMIT = 2**27
"""Numbers that are read of each split at most (half a gigabyte)."""
FEWEST_NUMBERS = 16
"""Inputs of fewer numbers lie too close together to tell a copy from a neighbour."""


@dataclass(frozen=True, slots=True)
class NearCopies:
    """How many of the checked judge samples have a near-copy in each split."""

    checked: int
    found: Mapping[str, int]

    @property
    def suspicious(self) -> Mapping[str, int]:
        """Splits with more of them than chance explains."""
        least = max(WARN_COUNT, WARN_SHARE * self.checked)
        return {name: count for name, count in self.found.items() if count >= least}


def near_copies_warning(judge: SamplesLike, others: Mapping[str, SamplesLike]) -> str | None:
    """A warning that names the splits which hold near-copies of judge samples, and how many; None where there are none.

    Reads at most CHECKED judge samples and COMPARED of each other split.
    """
    with same_random_state():
        found = near_copies(judge, others)
    if found is None or not found.suspicious:
        return None
    said = ", ".join(f"{count} in '{name}'" for name, count in found.suspicious.items())
    return (
        f"Of {found.checked} judge samples that were looked at, near-copies are in other splits ({said}): re-encoded, "
        "mirrored, shifted or brighter. If they are copies the verdict flatters. Judge on data of another origin."
    )


def near_copies(judge: SamplesLike, others: Mapping[str, SamplesLike]) -> NearCopies | None:
    """Count them; None for inputs that have no such nearness (token ids, a few numbers, a handful of samples)."""
    own = _read(judge, CHECKED)
    if own is None or len(own) < 2 * WARN_COUNT:
        return None
    found = {}
    for name, samples in others.items():
        other = _read(samples, COMPARED)
        if other is not None and other.shape[1:] == own.shape[1:]:
            found[name] = int(copied(own, other).sum())
    return NearCopies(len(own), found)


def copied(own: Tensor, other: Tensor) -> Tensor:
    """(n,) whether each row of `own` has a near-copy among the rows of `other`; inputs (n, ...) and (m, ...)."""
    if own.ndim >= 4:
        keys, home, variants = _picture(other), _picture(own), _seen_otherwise(own)
    else:
        middle, spread = other.flatten(1).mean(0), other.flatten(1).std(0).clamp_min(1e-12)
        keys, home = ((rows.flatten(1) - middle) / spread for rows in (other, own))
        variants = iter([home])
    near, neighbour = torch.full((len(own),), torch.inf), torch.full((len(own),), torch.inf)
    for seen in variants:
        near = torch.minimum(near, torch.cdist(seen, keys).amin(1))
        neighbour = torch.minimum(neighbour, torch.cdist(seen, home).fill_diagonal_(torch.inf).amin(1))
    return near < RATIO * neighbour


def _read(samples: SamplesLike, limit: int) -> Tensor | None:
    """Inputs of samples spread evenly over the split, (n, ...) float32; of several inputs the largest floating one."""
    if not len(samples):
        return None
    first = _leaf(samples, torch.zeros(1, dtype=torch.int64))
    if first is None or first.numel() < FEWEST_NUMBERS:
        return None
    count = max(1, min(limit, len(samples), READ_LIMIT // first.numel()))
    ids = torch.linspace(0, len(samples) - 1, count).round().to(torch.int64).unique()
    parts = [_leaf(samples, chunk) for chunk in ids.split(256)]
    return torch.cat([part for part in parts if part is not None])


def _leaf(samples: SamplesLike, ids: Tensor) -> Tensor | None:
    leaves = [leaf for _, leaf in named_leaves(samples.batch(ids)[0]) if leaf.is_floating_point()]
    largest = max(leaves, key=lambda leaf: leaf.numel(), default=None)
    if largest is None:
        return None
    wide = largest.detach().cpu().float()
    return functional.adaptive_avg_pool2d(wide.flatten(1, -3), 64) if _large(wide) else wide


def _large(wide: Tensor) -> bool:
    """Pictures are kept at 64 pixels at most."""
    return wide.ndim >= 4 and min(wide.shape[-2:]) > 64


def _picture(inputs: Tensor) -> Tensor:
    """(n, at most 64): grey, small, of mean 0 and length 1."""
    grey = inputs.flatten(1, -3).mean(1, keepdim=True)
    height, width = (min(SIDE, size) for size in grey.shape[-2:])
    small = functional.adaptive_avg_pool2d(grey, (height, width)).flatten(1)
    centred = small - small.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-9)


def _seen_otherwise(inputs: Tensor) -> Iterator[Tensor]:
    """The pictures as they are, mirrored, moved by a pixel in each direction, and zoomed in and out by a pixel."""
    flat = inputs.flatten(1, -3)
    yield _picture(flat)
    yield _picture(flat.flip(-1))
    for move in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        yield _picture(flat.roll(move, (-2, -1)))
    size = list(flat.shape[-2:])
    if min(size) > 2:
        yield _picture(functional.interpolate(flat[..., 1:-1, 1:-1], size, mode="bilinear"))
        wider = functional.pad(flat, (1, 1, 1, 1), mode="replicate")
        yield _picture(functional.interpolate(wider, size, mode="bilinear"))
