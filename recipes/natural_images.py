"""Crops of the photographs that scikit-image and scikit-learn ship: natural images without labels, no download.

The photographs that judge are others than those that calibrate and tune.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PHOTOGRAPHS = {
    "calibrate": ("astronaut", "china", "camera", "coins", "brick", "motorcycle_left"),
    "tune": ("chelsea", "clock_motion"),
    "judge": ("coffee", "flower", "rocket"),
}
"""Part -> photographs; china and flower are scikit-learn's. Grey ones have three equal channels."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photograph(name: str) -> Tensor:
    """Pixels (3, H, W) from 0 to 1."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(f"{name}.jpg")
    else:
        import skimage.data  # pyright: ignore[reportMissingImports]
        from PIL import Image

        file = next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))
        pixels = Image.open(file).convert("RGB")
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def cut(image: Tensor, size: tuple[int, int], count: int, random: np.random.RandomState) -> Tensor:
    """Random windows of a photograph, of one to three times `size`, scaled to it."""
    found = []
    for _ in range(count):
        scale = random.uniform(1, min(3.0, image.shape[1] / size[0], image.shape[2] / size[1]))
        height, width = int(size[0] * scale), int(size[1] * scale)
        top, left = random.randint(image.shape[1] - height + 1), random.randint(image.shape[2] - width + 1)
        window = image[None, :, top : top + height, left : left + width]
        found.append(functional.interpolate(window, size=size, mode="bilinear", antialias=True)[0])
    return torch.stack(found)


def crops(height: int = 96, width: int = 96, each: int = 300, imagenet: bool = True) -> dict[str, Any]:
    """`each` crops of every photograph, normalised as ImageNet or to -1..1, as parts of a run's data."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET if imagenet else ((0.5,) * 3, (0.5,) * 3)))

    def part(names: Sequence[str], seed: int) -> Tensor:
        random = np.random.RandomState(seed)
        return torch.cat([(cut(photograph(n), (height, width), each, random) - mean) / deviation for n in names])

    return {name: part(names, seed) for seed, (name, names) in enumerate(PHOTOGRAPHS.items())}
