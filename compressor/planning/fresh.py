"""Fresh inputs made from calibration inputs: what a dependency must survive besides the data itself.

Floating leaves: noise with the data's mean and deviation per channel, images with their pixels shuffled
and rescaled, and mixtures of two images. Integer leaves: values of other samples, place by place
shuffled. Masks stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from compressor.errors import DataError
from compressor.sources.samples import runs


def sample_count(inputs: Any) -> int:
    """Number of samples of a pytree of tensors: their common first dimension.

    Raises DataError where there is none.
    """
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
    if not sizes or sizes[0] == 0:
        raise DataError("calibration inputs", "no samples", "tensors with samples along axis 0", "give some inputs")
    return sizes[0]


def taken(inputs: Any, index: Tensor) -> Any:
    """The samples `index` of a pytree; leaves without samples stay as they are."""
    count = sample_count(inputs)

    def pick(leaf: Any) -> Any:
        return leaf[index.to(leaf.device)] if _sampled(leaf, count) else leaf

    return pytree.tree_map(pick, inputs)


def joined(parts: list[Any]) -> Any:
    """Pytrees of samples, one behind the other."""
    flat = [pytree.tree_flatten(part) for part in parts]
    counts = [sample_count(part) for part in parts]
    leaves = []
    for values in zip(*(leaves for leaves, _ in flat), strict=True):
        sampled = all(_sampled(v, c) for v, c in zip(values, counts, strict=True))
        leaves.append(torch.cat(values) if sampled else values[0])
    return pytree.tree_unflatten(leaves, flat[0][1])


def batched(inputs: Any, size: int) -> Iterator[tuple[int, Any]]:
    """Batches in order, each with its number of samples."""
    for start, stop in runs(sample_count(inputs), size):
        yield stop - start, taken(inputs, torch.arange(start, stop))


def fresh_inputs(inputs: Any, count: int, generator: torch.Generator) -> Any:
    """`count` synthetic samples in the form of `inputs`; the same for the same state of `generator`."""
    total = sample_count(inputs)
    source = torch.randint(total, (count,), generator=generator)
    other = torch.randint(total, (count,), generator=generator)

    def make(leaf: Any) -> Any:
        if not _sampled(leaf, total):
            return leaf
        if leaf.is_floating_point():
            return _floating(leaf, source, other, generator)
        if leaf.dtype == torch.bool:
            return leaf[source.to(leaf.device)]
        return _shuffled(leaf, source, generator)

    return pytree.tree_map(make, inputs)


def _sampled(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == count


def _floating(leaf: Tensor, source: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    data = leaf.detach().cpu().double()
    dims = [d for d in range(data.dim()) if d != 1]
    mean = data.mean(dims, keepdim=True) if data.dim() > 1 else data.mean()
    deviation = data.sub(mean).square().mean(dims, keepdim=True).sqrt() if data.dim() > 1 else data.std(correction=0)
    # features that never vary in the data must vary here: a pixel that is always zero hides what needs it
    overall = data.sub(data.mean()).square().mean().sqrt()
    deviation = deviation.clamp_min(0.2 * float(overall) + 1e-6 * (1.0 + float(data.abs().max())))
    noise = torch.randn((len(source), *data.shape[1:]), generator=generator, dtype=torch.float64)
    made = mean + deviation * noise
    size = [len(source)] + [1] * (data.dim() - 1)
    scale = (torch.randn(size, generator=generator, dtype=torch.float64) * 0.5).exp()
    share = torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 0.5
    mixed = share * data[source] + (1 - share) * data[other]
    shuffled = _shuffled(data, source, generator) * scale
    kind = (torch.arange(len(source)) % 3).reshape(size)
    made = torch.where(kind == 0, made, torch.where(kind == 1, shuffled, mixed))
    return made.to(leaf.dtype).to(leaf.device)


def _shuffled(leaf: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    """Places of each sample in random order: of its pixels (all channels together), else of its features."""
    picked = leaf[source.to(leaf.device)]
    flat = picked.flatten(2) if picked.dim() > 2 else picked.reshape(len(picked), 1, -1)
    order = torch.rand(len(flat), flat.shape[-1], generator=generator).argsort(1).to(leaf.device)
    return torch.gather(flat, 2, order[:, None, :].expand(-1, flat.shape[1], -1)).reshape(picked.shape)
