"""What every measure asks of its input, so that each says no in the same words. N samples, U units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.errors import DataError, UsageError

Array: TypeAlias = NDArray[Any]
Features: TypeAlias = Tensor | Array
"""Activations (samples, units), floating: a tensor on any device or an array."""

FLAT = 1e-7
"""A unit whose spread is below this part of its size is dead (constant), not a signal."""


def features_of(x: Features, where: str, least_samples: int = 3, least_units: int = 2) -> Tensor:
    """`x` (N, U) in float64, on its own device where that has float64, else on the CPU.

    Raises DataError for anything but two dimensions of finite floating numbers with enough samples and units.
    """
    rows = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x)).detach()
    if rows.ndim != 2:
        raise _unusable(where, f"shape {tuple(rows.shape)}", "two dimensions, (samples, units)", "flatten positions")
    if not rows.is_floating_point():
        raise _unusable(where, f"{rows.dtype} values", "floating activations", "hand over what the layer computes")
    if rows.shape[0] < least_samples or rows.shape[1] < least_units:
        expected = f"at least {least_samples} samples of at least {least_units} units"
        raise _unusable(where, f"shape {tuple(rows.shape)}", expected, "measure on more data or a wider layer")
    rows = (rows.cpu() if rows.device.type == "mps" else rows).to(torch.float64)
    bad = ~torch.isfinite(rows).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise _unusable(where, f"NaN or infinity in sample {first}", "finite activations", "check the network")
    return rows


def live_columns(rows: Tensor, where: str) -> Tensor:
    """(U,) bool: units that vary over the samples. Raises DataError where none does."""
    spread = (rows - rows.mean(0)).square().mean(0).sqrt()
    live = (spread > FLAT * rows.square().mean(0).sqrt()) & (spread > 0)
    if not bool(live.any()):
        raise _unusable(where, "constant units only", "units that vary over the samples", "check the layer and data")
    return live


def live_units(x: Features) -> Array:
    """(U,) bool array: which units vary over the samples; the others are dead (constant).

    >>> import numpy as np
    >>> live_units(np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]))
    array([ True, False])

    Raises DataError where no unit varies.
    """
    return live_columns(features_of(x, "live units"), "live units").cpu().numpy()


def covariance_of(rows: Tensor) -> Tensor:
    """(U, U) centred second moments of rows (N, U) in float64, divided by N."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def values_of(values: Any, where: str, dims: tuple[int, ...] = (1,)) -> Array:
    """Finite numbers as a float64 array of one of these numbers of dimensions. Raises DataError otherwise."""
    plain = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        found = np.asarray(plain, dtype=np.float64)
    except (TypeError, ValueError):
        raise _unusable(where, f"a {type(values).__name__}", "numbers", "hand over a list or an array") from None
    if found.ndim not in dims or not found.size:
        wanted = " or ".join(str(n) for n in dims)
        raise _unusable(where, f"shape {found.shape}", f"{wanted} dimension(s), not empty", "check the argument")
    if not np.isfinite(found).all():
        raise _unusable(where, "NaN or infinity", "finite numbers", "leave out what could not be measured")
    return found


def labels_of(labels: Any, samples: int, classes: int, where: str) -> Tensor:
    """Whole labels (N,) in 0..classes-1 as int64 on the CPU. Raises DataError otherwise."""
    found = torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels)).detach().cpu()
    if found.shape != (samples,) or found.is_floating_point() or found.dtype == torch.bool:
        expected = f"{samples} whole numbers, one per sample"
        raise _unusable(where, f"labels of shape {tuple(found.shape)}, {found.dtype}", expected, "check the labels")
    found = found.to(torch.int64)
    if int(found.min()) < 0 or int(found.max()) >= classes:
        got = f"labels from {int(found.min())} to {int(found.max())}"
        raise _unusable(where, got, f"labels from 0 to {classes - 1}", "check that labels and weights belong together")
    return found


def whole_number(value: Any, where: str, least: int) -> int:
    """`value` as an int of at least `least`. Raises UsageError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UsageError(where, f"{value!r}", f"a whole number from {least}", f"for example {max(least, 1)}")
    return int(value)


def share(value: Any, where: str) -> float:
    """`value` as a float strictly between 0 and 1. Raises UsageError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 < value < 1:
        raise UsageError(where, f"{value!r}", "a number between 0 and 1", "for example 0.95")
    return float(value)


def sizes_of(sizes: Sequence[int], units: int, where: str) -> list[int]:
    """Chunk sizes, each in 1..units. Raises UsageError otherwise."""
    found = [whole_number(size, f"{where}: sizes", 1) for size in np.asarray(sizes).reshape(-1).tolist()]
    if not found or max(found) > units:
        raise UsageError(f"{where}: sizes", f"{found}", f"at least one size, none above {units} units", "see ladder()")
    return found


def _unusable(where: str, got: str, expected: str, next_step: str) -> DataError:
    return DataError(where, got, expected, next_step)
