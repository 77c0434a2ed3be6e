"""How many near-copies of calibration images the judge split's check notices, and how often it errs; rows for JSON."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from compressor.sources.data import load_data
from compressor.verify.near_copies import CHECKED, COMPARED, WARN_COUNT, WARN_SHARE, copied


def reencoded(images: Tensor, quality: int) -> Tensor:
    """Through JPEG, in the range of the images."""
    low, high = float(images.min()), float(images.max())
    grey = ((images[:, 0] - low) / (high - low) * 255).round().byte().numpy()
    made = []
    for pixels in grey:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        made.append(np.asarray(Image.open(file)).astype(np.float32) / 255 * (high - low) + low)
    return torch.from_numpy(np.stack(made))[:, None]


def cropped(images: Tensor) -> Tensor:
    """A pixel off each border, then back to the old size."""
    return functional.interpolate(images[..., 1:-1, 1:-1], images.shape[-2:], mode="bilinear")


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "JPEG, quality 95": lambda x: reencoded(x, 95),
    "JPEG, quality 75": lambda x: reencoded(x, 75),
    "brightness +1/255": lambda x: x + (x.max() - x.min()) / 255,
    "mirrored": lambda x: x.flip(-1),
    "moved by a pixel": lambda x: functional.pad(x, (1, 0), value=float(x.min()))[..., :-1],
    "cropped by a pixel": cropped,
}


def copies_found(names: tuple[str, ...] = ("digits", "fashion-mnist")) -> Iterator[dict[str, Any]]:
    """One row for each data set and kind of copy: the share noticed, and whether the split would be warned of."""
    for name in names:
        data = load_data(name)
        other = data.calibrate.batch(np.arange(min(COMPARED, len(data.calibrate))))[0]
        honest = data.judge.batch(np.arange(min(CHECKED, len(data.judge))))[0]
        sets = {"none (an honest judge split)": honest}
        sets |= {kind: make(other[:CHECKED]) for kind, make in COPIES.items()}
        for kind, own in sets.items():
            count = int(copied(own, other).sum())
            warned = count >= max(WARN_COUNT, WARN_SHARE * len(own))
            yield {"data": name, "copies": kind, "checked": len(own), "noticed": count / len(own), "warned": warned}
