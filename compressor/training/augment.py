"""Random changes of inputs: of images, that keep their labels; of anything, for losses that need no labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.sources.trees import Tree, map_leaves, named_leaves


def augmented(images: Tensor, flip: bool, shift: int, draws: torch.Generator) -> Tensor:
    """Images (n, C, H, W): half of them mirrored, each moved by up to `shift` pixels, its edge repeated."""
    count, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(count, generator=draws) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)
    if shift:
        padded = F.pad(images, (shift,) * 4, mode="replicate")
        moves = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=draws)
        rows = (moves[0] + torch.arange(height)).to(images.device)
        columns = (moves[1] + torch.arange(width)).to(images.device)
        place = torch.arange(count, device=images.device)
        images = padded[place[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return images


def mixing(count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each of `count` inputs: its weight between 0 and 1, and which one it is averaged with."""
    return torch.rand(count, generator=draws), torch.randperm(count, generator=draws)


def mixed(inputs: Tree, own: Tensor, partner: Tensor, weight: Tensor) -> Tree:
    """The inputs at places `own`, each averaged with the one at `partner` (mixup, Zhang et al. 2018).

    Inputs with whole numbers in them (token ids, masks) have no average, and stay as they are.
    """
    if not all(leaf.is_floating_point() for _, leaf in named_leaves(inputs)):
        return map_leaves(lambda leaf: leaf[own.to(leaf.device)], inputs)

    def mix(leaf: Tensor) -> Tensor:
        share = weight.to(leaf).reshape(-1, *[1] * (leaf.ndim - 1))
        return share * leaf[own.to(leaf.device)] + (1 - share) * leaf[partner.to(leaf.device)]

    return map_leaves(mix, inputs)
