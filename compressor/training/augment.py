"""Random changes of images that keep their labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
