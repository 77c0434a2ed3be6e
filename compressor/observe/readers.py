"""How the input of one consumer becomes rows of regressors: per kernel tap where that is affordable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.algebra.patches import conv_patches, output_rows, sampled_positions
from compressor.units.graph import Tap

MAX_REGRESSORS = 4700
"""Above this many regressors (channels x kernel) a convolution is observed per channel instead of per kernel tap."""
ROWS_PER_REGRESSOR = 12
MIN_ROWS = 20_000
PLAIN = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


def takes_constant(tap: Tap, per_kernel: bool, intercept: bool) -> bool:
    """True if a constant may be folded at this tap, so that moments are centred there. `intercept`: it has a place.

    Zero padding leaves no exact place unless the border is part of the regression; a transposed convolution has none.
    """
    return intercept and tap.kind != "conv_transpose" and (per_kernel or tap.intercept_exact)


@dataclass(frozen=True)
class Geometry:
    """Where a convolution reads: `pads` as for `F.pad` in `mode`, then windows of `kernel`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]
    mode: str = "constant"

    @classmethod
    def of(cls, module: Any) -> Geometry | None:
        """Of a convolution layer; None if its forward does more than its attributes say."""
        if type(module).forward not in PLAIN:
            return None
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pads = tuple(module._reversed_padding_repeated_twice)  # also where padding is "same", and uneven
        return cls(tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation), pads, mode)

    def rows(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, D) what the convolution reads of x (N, C, *spatial) at flat output positions (N, P)."""
        padded = F.pad(x, self.pads, self.mode) if any(self.pads) else x
        return conv_patches(padded, self.kernel, self.stride, (0,) * len(self.kernel), self.dilation, positions)


class TapReader:
    """Turns the input (and output) of one consumer into rows of regressors (and targets)."""

    def __init__(self, tap: Tap, module: nn.Module, samples: int, key: int, geometry: Geometry | None = None) -> None:
        self.tap, self.key = tap, key
        weight: Any = module.weight
        features = len(weight) if tap.kind == "conv_transpose" else weight.shape[1]
        wide_size = features * math.prod(weight.shape[2:])
        self.geometry = (geometry or Geometry.of(module)) if tap.kind == "conv" else None
        self.per_kernel = self.geometry is not None and wide_size <= MAX_REGRESSORS
        self.size = wide_size if self.per_kernel else features
        groups = getattr(module, "groups", 1)
        self.outputs = weight.shape[1] * groups if tap.kind == "conv_transpose" else len(weight)
        self.wanted_rows = max(MIN_ROWS, ROWS_PER_REGRESSOR * self.size)
        self.rows_per_sample = math.ceil(self.wanted_rows / max(samples, 1))

    @property
    def bytes(self) -> int:
        """Memory that the sums of this tap take in float64."""
        return 8 * (self.size**2 + self.outputs**2)

    def picked(self, ids: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
        """(N, P) positions sampled for these samples: of the output map if per kernel tap, else of the input's rows."""
        if self.per_kernel:
            return sampled_positions(ids, math.prod(y.shape[2:]), self.rows_per_sample, self.key)
        if self.tap.kind == "linear":
            inner = math.prod(x.shape[1:-1])
            if inner <= 1:
                return None
            return sampled_positions(ids, inner, self.rows_per_sample, self.key)
        return sampled_positions(ids, math.prod(x.shape[2:]), self.rows_per_sample, self.key)

    def rows(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """(R, D) regressors at the sampled positions."""
        if self.per_kernel and self.geometry is not None:
            return self.geometry.rows(x, self._require(positions))
        if self.tap.kind == "linear":
            if positions is None:
                return x.reshape(-1, x.shape[-1])
            flat = x.reshape(len(x), -1, x.shape[-1])
            return torch.gather(flat, 1, positions[:, :, None].expand(-1, -1, flat.shape[2])).flatten(0, 1)
        return output_rows(x, self._require(positions))

    @staticmethod
    def _require(positions: Tensor | None) -> Tensor:
        if positions is None:
            raise RuntimeError("a convolution's rows need sampled positions")
        return positions


def blocks_of(tap: Tap, per_kernel: bool, kernel: int) -> dict[int, list[int]]:
    """Unit number -> its regressors at this tap."""
    width = kernel if per_kernel else 1
    found: dict[int, list[int]] = {}
    for entry, unit in enumerate(tap.units.tolist()):
        if unit >= 0:
            found.setdefault(unit, []).extend(range(entry * width, (entry + 1) * width))
    return found
