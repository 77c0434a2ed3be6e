"""From paths to a plan of a given size: one threshold on predicted loss per saved parameter (or MAC) over all paths.

Along each path the lower convex envelope of (saving, cumulative loss) decides where stopping pays; savings are
recomputed as neighbours shrink, and the threshold is bisected on the real size of the network that results.
"""

from __future__ import annotations

import numpy as np

from compressor.planning.paths import Path
from compressor.units.sizes import Sizes


def envelope(saving: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the lower convex hull of the points (saving, loss), both non-decreasing, starting at (0, 0)."""
    hull: list[int] = []
    for i in range(len(saving)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (loss[b] - loss[a]) * (saving[i] - saving[a]) >= (loss[i] - loss[a]) * (saving[b] - saving[a]):
                hull.pop()
            else:
                break
        hull.append(i)
    return np.array(hull)


def stops(path: Path, saving: np.ndarray, threshold: float) -> int:
    """How many units of a path go at this threshold (nats per saved unit of size)."""
    gained = np.concatenate([[0.0], np.cumsum(np.maximum(saving[path.order], 1e-9))])
    loss = np.concatenate([[0.0], np.cumsum(path.increments)])
    hull = envelope(gained, loss)
    slopes = np.diff(loss[hull]) / np.diff(gained[hull])
    return int(hull[int(np.sum(slopes <= threshold))])


def allocate(paths: list[Path], sizes: Sizes, measure: str, target: float, n_units: int) -> tuple[np.ndarray, float]:
    """Mask of the units that stay so that `measure` is the largest not above `target`; and the predicted loss."""
    mask = np.ones(n_units, dtype=bool)
    for _ in range(6):  # savings depend on the neighbours' widths: repeat at the widths found
        saving = sizes.saving(measure, mask)
        if not mask.all():
            full = sizes.saving(measure, np.ones(n_units, dtype=bool))
            saving = np.where(saving > 0, saving, 0.0)
            saving = _spread(paths, saving, full, mask)
        new = _at_target(paths, sizes, measure, target, saving, n_units)
        if (new == mask).all():
            break
        mask = new
    loss = sum(float(path.increments[: int((~mask[path.order]).sum())].sum()) for path in paths)
    return mask, loss


def _spread(paths: list[Path], saving: np.ndarray, full: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Units already dropped count with the saving that a kept unit of the same kind would bring now."""
    result = saving.copy()
    for path in paths:
        kept = path.order[mask[path.order]]
        rate = saving[kept].sum() / max(full[kept].sum(), 1e-9) if len(kept) else 1.0
        gone = path.order[~mask[path.order]]
        result[gone] = full[gone] * rate
    return result


def _at_target(
    paths: list[Path], sizes: Sizes, measure: str, target: float, saving: np.ndarray, n_units: int
) -> np.ndarray:
    low, high = -80.0, 20.0  # log of the threshold
    best = mask_at(paths, saving, np.exp(high), n_units)
    for _ in range(60):
        middle = (low + high) / 2
        mask = mask_at(paths, saving, np.exp(middle), n_units)
        if sizes.total(measure, mask) > target:
            low = middle
        else:
            high, best = middle, mask
    return best


def mask_at(paths: list[Path], saving: np.ndarray, threshold: float, n_units: int) -> np.ndarray:
    """Units that stay at one threshold."""
    mask = np.ones(n_units, dtype=bool)
    for path in paths:
        mask[path.order[: stops(path, saving, threshold)]] = False
    return mask
