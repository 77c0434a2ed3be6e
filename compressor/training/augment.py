"""Random changes of inputs: of images, that keep their labels; of anything, for losses that need no labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.sources.trees import Tree, map_leaves, named_leaves


def augmented(images: Tensor, flip: bool, shift: int, draws: torch.Generator) -> Tensor:
    """Images (n, C, H, W): half of them mirrored, each moved by up to `shift` pixels, its edge repeated."""
    count = len(images)
    if flip:
        mirrored = torch.rand(count, generator=draws) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)
    if shift:
        images = moved(images, torch.randint(0, 2 * shift + 1, (2, count), generator=draws) - shift, shift)
    return images


def moved(images: Tensor, pixels: Tensor, most: int) -> Tensor:
    """Images (n, C, H, W), each moved by its `pixels` (2, n), up and left, `most` at most; their edges are repeated."""
    count, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode="replicate")
    rows, columns = (
        (start[:, None] + most + torch.arange(size)).to(images.device)
        for start, size in zip(pixels, (height, width), strict=True)
    )
    place = torch.arange(count, device=images.device)
    return padded[place[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


PLAIN = 0.5
"""Share of the inputs that a loss without labels sees as they are: on mixed ones alone networks forget them."""
CUT = 0.5
"""Share of the others that get a rectangle of their partner (CutMix), where they are images, in place of an average."""
SMALLEST = 8
"""Images of fewer rows or columns are neither cut nor moved."""


@dataclass(frozen=True, slots=True)
class Views:
    """How each of n inputs is changed; everything is drawn for a whole batch, so that processes can share it."""

    partner: Tensor
    """(n,) which input of the batch it is mixed with."""
    weight: Tensor
    """(n,) its own share of what is seen, of (0, 1]."""
    cut: Tensor
    """(n,) whether images are cut, not averaged."""
    centre: Tensor
    """(2, n) of the rectangle, in shares of height and width."""
    move: Tensor
    """(2, n) pixels that images are moved by, -1, 0 or 1."""

    def of(self, places: Tensor) -> Views:
        """Those of some of the inputs."""
        return Views(
            self.partner[places], self.weight[places], self.cut[places], self.centre[:, places], self.move[:, places]
        )


def views(count: int, draws: torch.Generator) -> Views:
    """Views of `count` inputs: half as they are, the others mixed with another one; images move by a pixel."""
    plain = torch.rand(count, generator=draws) < PLAIN
    return Views(
        partner=torch.randperm(count, generator=draws),
        weight=torch.where(plain, 1.0, torch.rand(count, generator=draws)),
        cut=torch.rand(count, generator=draws) < CUT,
        centre=torch.rand(2, count, generator=draws),
        move=torch.randint(-1, 2, (2, count), generator=draws),
    )


def viewed(inputs: Tree, own: Tensor, partner: Tensor, how: Views) -> Tree:
    """The inputs at places `own`, mixed with those at `partner` and moved as `how` says.

    An average of two (mixup, Zhang et al. 2018) of anything; of images also a rectangle of the other (CutMix, Yun et
    al. 2019). Inputs with whole numbers in them (token ids, masks) have no average, and stay as they are.
    """
    if not all(leaf.is_floating_point() for _, leaf in named_leaves(inputs)):
        return map_leaves(lambda leaf: leaf[own.to(leaf.device)], inputs)

    def view(leaf: Tensor) -> Tensor:
        first, second = leaf[own.to(leaf.device)], leaf[partner.to(leaf.device)]
        share = how.weight.to(leaf).reshape(-1, *[1] * (leaf.ndim - 1))
        averaged = share * first + (1 - share) * second
        if leaf.ndim != 4 or min(leaf.shape[-2:]) < SMALLEST:
            return averaged
        pasted = torch.where(_rectangles(how, *leaf.shape[-2:]).to(leaf.device), second, first)
        cut = how.cut.to(leaf.device).reshape(-1, 1, 1, 1)
        return moved(torch.where(cut, pasted, averaged), how.move, 1)

    return map_leaves(view, inputs)


def _rectangles(how: Views, height: int, width: int) -> Tensor:
    """(n, 1, height, width): where the other image shows; of the shape of the whole, cut off at its edges."""
    side = (1 - how.weight).clamp_min(0).sqrt()

    def inside(size: int, centre: Tensor) -> Tensor:
        middles = (torch.arange(size) + 0.5) / size
        return (middles[None] - centre[:, None]).abs() < side[:, None] / 2

    rows, columns = inside(height, how.centre[0]), inside(width, how.centre[1])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
